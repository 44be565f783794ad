"""Options once: what a function of the library takes by keyword, a command nests."""

import dataclasses
import inspect
import re

import pytest

import spectra
from spectra import cli
from spectra.allocation.options import Allocation
from spectra.allocation.path import compression_path
from spectra.calibration.options import Calibration
from spectra.compression.settings import Compression
from spectra.keywords import completed, names_of, spelled_out
from spectra.recording.options import Recording

TAKEN = [
    (spectra.record, Recording, ("pretrain", "finetune")),
    (spectra.allocate, Allocation, ("allocate",)),
    (spectra.compress, Compression, ("compress",)),
    (None, Calibration, ("compress", "prune")),
]


@pytest.mark.parametrize(("function", "kind", "_"), TAKEN[:3])
def test_a_function_shows_the_fields_that_it_takes(function, kind, _):
    shown = inspect.signature(function).parameters
    for field in dataclasses.fields(kind):
        if field.default is not dataclasses.MISSING:
            assert shown[field.name].default == field.default
        assert re.search(rf"^{field.name}\n    \S", function.__doc__, re.MULTILINE), field.name
    assert not any(p.kind is p.VAR_KEYWORD for p in shown.values())
    assert "keywords" not in function.__doc__.split("Returns")[0].splitlines()


@pytest.mark.parametrize(("_", "kind", "commands"), TAKEN)
def test_a_command_has_an_option_for_every_field(_, kind, commands, capsys):
    for command in commands:
        with pytest.raises(SystemExit):
            cli.main([command, "--help"])
        text = capsys.readouterr().out
        for field, name in names_of(kind).items():
            if field != "calibration":  # a group of its own
                assert re.search(rf"--{name.replace('_', '-')}\b", text), (command, name)


def test_options_are_taken_whole_by_keyword_or_both():
    assert completed(Recording, None, {}) == Recording()
    assert completed(Recording, None, {"every": 3}) == Recording(every=3)
    given = Recording(every=3, sketch=8)
    assert completed(Recording, given, {"sketch": 9}) == Recording(every=3, sketch=9)
    with pytest.raises(TypeError, match="unexpected keyword argument 'evry'"):
        completed(Recording, given, {"evry": 9})


def test_a_keyword_that_is_no_field_is_an_error_before_anything_is_read():
    for call in (
        lambda: spectra.record(None, None, "a.zarr", probe=None, evry=3),
        lambda: spectra.allocate("a.zarr", er=0.5),
        lambda: spectra.compress("a", None, "b", metod="svd"),
        lambda: compression_path(None, err=0.5),  # it has all of them
    ):
        with pytest.raises(TypeError, match="unexpected keyword argument"):
            call()


def test_a_function_may_be_documented_without_its_options():
    def bare(**keywords): ...

    assert list(inspect.signature(spelled_out(Calibration)(bare)).parameters) == [
        f.name for f in dataclasses.fields(Calibration)
    ]


@pytest.mark.parametrize(
    ("given", "every"), [(7, 7), ("7", 7), ("0,7", (0, 7)), ([0, 7], (0, 7)), (range(2), (0, 1))]
)
def test_snapshots_are_every_so_many_steps_or_at_a_list(given, every):
    assert Recording(every=given) == Recording(every=every)
    assert Recording(every=given).schedule(9).due(7) == (every != (0, 1))


def test_lists_are_typed_with_commas():
    one = Recording(spectra="weight,update", matrices="*.mlp.*,*.q_proj")
    assert one == Recording(spectra=["weight", "update"], matrices=["*.mlp.*", "*.q_proj"])
    assert one.contents().spectra == ("weight", "update")
    with pytest.raises(spectra.InputError, match="every N steps or at listed steps such as"):
        Recording(every="1,x")
