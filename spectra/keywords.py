"""Options that a command nests and a library function accepts by keyword, in one dataclass.

The dataclass has the names, defaults and documentation. A function accepts it whole, its fields as
keywords, or both; on the command line a field has its own name, or the one set by `named`.
"""

import dataclasses
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import tyro

Options = TypeVar("Options")
Function = TypeVar("Function", bound=Callable[..., Any])

_SECTION = re.compile(r"^Parameters\n-+\n(.*?)(?=\n\n\S[^\n]*\n-+\n|\Z)", re.DOTALL | re.MULTILINE)


def named(name: str, **more: Any) -> Any:
    """Name of a field on the command line, if it differs from the field's own.

    >>> @dataclasses.dataclass
    ... class Windows:
    ...     length: Annotated[int, named("seq-len")] = 512
    >>> names_of(Windows)
    {'length': 'seq_len'}
    """
    return tyro.conf.arg(name=name, **more)


def names_of(kind: type[Any]) -> dict[str, str]:
    """The fields of a dataclass with their names on the command line, as ``snake_case``."""
    return {f.name: _named(hints_of(kind)[f.name]) or f.name for f in dataclasses.fields(kind)}


def comma_list(metavar: str) -> Any:
    """How tyro reads and shows a list: typed with commas."""
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=lambda words: words[0],
        is_instance=lambda _: True,
        str_from_instance=lambda value: [typed(value)],
    )


def typed(value: Any) -> str:
    """An option's value as typed on the command line."""
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def share_of(text: str) -> float:
    """A share from its text: a fraction, or a number of percent.

    >>> share_of("0.5"), share_of("50%")
    (0.5, 0.5)
    """
    text = text.strip()
    return float(text[:-1]) / 100 if text.endswith("%") else float(text)


SHARE = tyro.constructors.PrimitiveConstructorSpec(
    nargs=1,
    metavar="SHARE",
    instance_from_str=lambda words: share_of(words[0]),
    is_instance=lambda value: isinstance(value, int | float),
    str_from_instance=lambda value: [str(value)],
)
Share = Annotated[float, SHARE]
"""A fraction; on the command line, 0.5 or 50%."""


def completed(kind: type[Options], given: Options | None, keywords: Mapping[str, Any]) -> Options:
    """Options of a kind: those given, or the defaults, with the keywords in place of their fields.

    Raises
    ------
    TypeError
        When a keyword is not a field.
    """
    unknown = keywords.keys() - {f.name for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if unknown:
        raise TypeError(f"unexpected keyword argument {min(unknown)!r}")
    if given is None:
        return kind(**keywords)
    return dataclasses.replace(given, **keywords)  # type: ignore[type-var]


def spelled_out(kind: type[Any]) -> Callable[[Function], Function]:
    """Show the fields of `kind` in the signature and the documentation of a function.

    The function accepts them as ``**keywords``; its docstring has an entry of that name.
    """

    def spell(function: Function) -> Function:
        own = inspect.signature(function)
        hints = get_type_hints(kind)
        fields = [
            inspect.Parameter(
                f.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=f.default,
                annotation=hints[f.name],
            )
            for f in dataclasses.fields(kind)
        ]
        kept = [p for p in own.parameters.values() if p.kind is not p.VAR_KEYWORD]
        function.__signature__ = own.replace(parameters=[*kept, *fields])  # type: ignore[attr-defined]
        if function.__doc__:  # None under python -OO
            function.__doc__ = _with_fields(function.__doc__, kind)
        return function

    return spell


def _with_fields(text: str, kind: type[Any]) -> str:
    """A docstring with the fields' lines in place of those of ``**keywords``."""
    documented = (
        _SECTION.search(inspect.cleandoc(c.__doc__ or "")) for c in reversed(kind.__mro__)
    )
    fields = "\n".join(section[1].rstrip() for section in documented if section)
    lines = inspect.cleandoc(text)
    return re.sub(r"^\*\*keywords\n(?:    .*\n?)+", lambda _: f"{fields}\n", lines, flags=re.M)


def hints_of(kind: type[Any]) -> dict[str, Any]:
    """Types of the fields of a dataclass, with their annotations."""
    return get_type_hints(kind, include_extras=True)


def _named(hint: Any) -> str | None:
    """The name set by `named`, as ``snake_case``."""
    extras = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
    names = (getattr(extra, "name", None) for extra in extras)
    return next((str(name).replace("-", "_") for name in names if name), None)
