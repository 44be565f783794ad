"""How a checkpoint's tensors match the parameters of its model: names, and all differences.

transformers fills weights that it does not find with random numbers and continues. Here, stored
names are mapped to the model's by transformers' own conversion, also where a wrapper added a
prefix, and every difference is known before anything is computed.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from spectra.checkpoint.expected import Expected, expected_of
from spectra.checkpoint.tensors import StoredTensor
from spectra.matrices import WRAPPERS, layer_of
from spectra_data.errors import InputError

SHOWN = 4
DEEPEST = 3
"""Components that wrappers may have put before a name: ``base_model.model.``, ``module.``."""
NORMS = re.compile(r"norm|ln_?\d|layernorm", re.IGNORECASE)
LAYERS = re.compile(r"^(n|num|encoder|decoder)_(\w+_)?layers?$|^depths?$")
"""Keys of configurations that count layers."""
OWN = "spectra"
"""The quant_method of checkpoints that are read as dense."""


@dataclass(frozen=True, eq=False)
class Match:
    """Where transformers puts a checkpoint's tensors."""

    kind: str
    """Name of the model class that they fill."""
    plain: Mapping[str, str]
    """Names without the components that wrappers added, by stored names."""
    names: Mapping[str, str]
    """Names of parameters, by stored names of tensors that are exactly one parameter."""
    matrices: Mapping[str, str]
    """Paths of matrices that transformers puts into stacks, by stored path."""
    missing: tuple[str, ...] = ()
    """Parameters that no tensor fills."""
    unexpected: tuple[str, ...] = ()
    """Stored names of tensors that fill no parameter."""
    mismatched: tuple[str, ...] = ()
    """Parameters whose tensor has another shape, with both shapes."""
    ignored: tuple[str, ...] = ()
    """Tensors that the class itself ignores, e.g. another tower's."""
    language: str = ""
    """See `Expected.language`."""
    dropped: str = ""
    """Components dropped from stored names, for messages."""

    @property
    def faults(self) -> int:
        """Number of differences."""
        return len(self.missing) + len(self.unexpected) + len(self.mismatched)

    def in_blocks(self) -> "Match":
        """The same match, with only the differences that concern matrices in blocks."""
        return replace(
            self,
            missing=tuple(n for n in self.missing if _in_block(n)),
            unexpected=tuple(n for n in self.unexpected if _in_block(n)),
            mismatched=tuple(line for line in self.mismatched if _in_block(line)),
        )

    def lines(self) -> list[str]:
        """The differences in words: one line per kind, with the first names."""
        return amiss(
            {
                f"missing, which {self.kind} has": self.missing,
                f"not of {self.kind}": self.unexpected,
                f"of another shape than {self.kind} has": self.mismatched,
            }
        )


def amiss(found: Mapping[str, Collection[str]]) -> list[str]:
    """One line per kind of difference: how many weights, and the first names."""
    return [
        f"{len(names)} {'weight is' if len(names) == 1 else 'weights are'} {what}: {_some(names)}"
        for what, names in found.items()
        if names
    ]


def _some(names: Collection[str]) -> str:
    """The first few names, and the number of others."""
    first = sorted(names, key=_by_number)[:SHOWN]
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(first) + more


def _by_number(name: str) -> list[tuple[int, str]]:
    """A key that sorts layer 10 after layer 9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]


def match_of(tensors: Mapping[str, StoredTensor], config: Mapping[str, Any]) -> Match | None:
    """Match tensors with the parameters of a configuration's model.

    Tries several classes (causal language model, the configuration's own) and ways to drop a
    wrapper's prefix, and keeps the first with the fewest differences.

    Parameters
    ----------
    tensors
        Tensors by stored name.
    config
        Content of ``config.json``.

    Returns
    -------
    The match; None if transformers does not know the model.

    Raises
    ------
    InputError
        When the configuration contradicts itself.
    """
    _require_few_layers(config, len(tensors))
    best: Match | None = None
    for expected in expected_of(config):
        for plain, dropped in _plain_names(list(tensors)):
            match = _match(expected, tensors, plain, dropped)
            if best is None or match.faults < best.faults:
                best = match
            if not best.faults:
                return best
    if best is not None and not _is_comparable(config):
        return replace(best, missing=(), unexpected=(), mismatched=())
    return best


def _match(
    expected: Expected,
    tensors: Mapping[str, StoredTensor],
    plain: Mapping[str, str],
    dropped: str,
) -> Match:
    destinations = {stored: expected.place(plain[stored]) for stored in tensors}
    names: dict[str, str] = {}
    matrices: dict[str, str] = {}
    unexpected: list[str] = []
    mismatched: list[str] = []
    ignored: list[str] = []
    filled: set[str] = set()
    for stored, destination in destinations.items():
        held = [parameter for parameter in destination.parameters if parameter in expected.shapes]
        filled.update(held)
        if not held:
            candidates = (*destination.parameters, plain[stored])
            leave_out = any(expected.may_hold(parameter) for parameter in candidates)
            (ignored if leave_out else unexpected).append(stored)
        elif destination.whole:
            names[stored] = held[0]
            if wrong := _other_shape(tensors[stored], held[0], expected.shapes[held[0]]):
                mismatched.append(wrong)
        elif destination.matrix is not None:
            matrices[plain[stored].removesuffix(".weight")] = destination.matrix
    missing = [
        parameter
        for parameter in expected.shapes
        if parameter not in filled
        and not expected.may_miss(parameter)
        and not _has_twin(parameter, expected.tied, filled)
    ]
    return Match(
        expected.kind,
        plain,
        names,
        matrices,
        tuple(missing),
        tuple(unexpected),
        tuple(mismatched),
        tuple(ignored),
        expected.language,
        dropped,
    )


def _plain_names(stored: list[str]) -> Iterator[tuple[dict[str, str], str]]:
    """Ways to drop wrappers' components from names, the fewest first, with what was dropped."""
    now = {name: name for name in stored}
    yield dict(now), ""
    inner = {part for name in stored for part in name.split(".") if part in WRAPPERS}
    dropped = sorted(inner)
    if inner:
        now = {name: ".".join(p for p in name.split(".") if p not in inner) for name in stored}
        yield dict(now), ", ".join(f"{part}." for part in dropped)
    prefix = ""
    for _ in range(DEEPEST):
        # a trainer's module may hold others next to the model, e.g. a loss with weights
        firsts = {plain.partition(".")[0] for plain in now.values() if layer_of(plain) is not None}
        if len(firsts) != 1:
            return
        (first,) = firsts
        prefix += f"{first}."
        now = {name: plain.removeprefix(f"{first}.") for name, plain in now.items()}
        yield dict(now), ", ".join([*(f"{part}." for part in dropped), prefix])


def _other_shape(stored: StoredTensor, parameter: str, shape: tuple[int, ...]) -> str | None:
    if stored.shape == shape or stored.problem:
        return None
    return f"{parameter} ({_sides(stored.shape)} instead of {_sides(shape)})"


def _sides(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "one number"


def _has_twin(parameter: str, tied: Mapping[str, str], filled: set[str]) -> bool:
    """Whether another parameter that shares its values is filled."""
    source = tied.get(parameter, parameter)
    return any(other in filled for other in (source, *(t for t, s in tied.items() if s == source)))


def _is_comparable(config: Mapping[str, Any]) -> bool:
    """Whether a configuration determines which tensors a checkpoint must hold.

    It does not if it has no number of layers, or if other tools quantised the weights.
    """
    described = config.get("quantization_config")
    packed = isinstance(described, Mapping) and described.get("quant_method") != OWN
    return not packed and any(_layer_counts(config))


def _require_few_layers(config: Mapping[str, Any], tensors: int) -> None:
    """Require no more layers than tensors: a model of a billion layers takes hours to build."""
    for name, count in _layer_counts(config):
        if isinstance(count, int) and count > tensors:
            raise InputError(
                f"config.json says {name} = {count}, but the checkpoint holds {tensors} tensors"
            )


def _layer_counts(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Keys and values of a configuration's numbers of layers, also of its nested configurations."""
    for part in (config, *(part for part in config.values() if isinstance(part, Mapping))):
        yield from ((name, count) for name, count in part.items() if LAYERS.search(name))


def _in_block(name: str) -> bool:
    """Whether a name, or a line that begins with one, denotes a matrix or a stack in a block."""
    path = name.partition(" ")[0]
    stem = path.removesuffix(".weight")
    stacked = "experts" in path and not path.endswith("bias")
    return layer_of(stem) is not None and (stem != path or stacked) and not NORMS.search(stem)
