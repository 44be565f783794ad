"""Maps as files: the same bytes as from the command line."""

import shlex
import urllib.error
import urllib.parse
import urllib.request

import pytest

from spectra.cli import main
from spectra.exports.formats import FORMATS
from spectra_dashboard.access.library import Library
from spectra_dashboard.downloads import file_name, made
from spectra_data.errors import InputError

CASES = [
    {"method": "welore", "target": "err", "value": "0.5"},
    {"method": "welore", "target": "threshold", "value": "0.3"},
    {"method": "uniform", "target": "budget", "value": "0.7"},
    {"method": "budget", "target": "budget", "value": "0.8", "storage": "pivoted"},
    {"method": "d-rank", "target": "err", "value": "0.35", "step": "0"},
]


def command(asked, out):
    words = ["allocate", "scan.zarr", f"--{asked['target']}", asked["value"]]
    for name in ("method", "storage", "step"):
        if name in asked:
            words += [f"--{name}", asked[name]]
    return [*words, "--out", str(out)]


@pytest.mark.parametrize("asked", CASES, ids=lambda asked: f"{asked['method']}-{asked['target']}")
def test_a_download_equals_the_commands_file(folder, tmp_path, monkeypatch, capsys, asked):
    monkeypatch.chdir(folder)
    assert main(command(asked, tmp_path / "map.json")) == 0
    library = Library(folder)
    for kind in FORMATS:
        assert main(["export", str(tmp_path / "map.json"), "--format", kind, "--out",
                     str(tmp_path / kind)]) == 0  # fmt: skip
        found = made(library, asked | {"run": "scan.zarr"}, kind)
        assert found == (tmp_path / kind).read_bytes()


def test_a_map_that_lies_there_is_downloaded_as_it_is(folder):
    found = made(Library(folder), {"map": "maps/map.json"}, "json")
    assert found == (folder / "maps" / "map.json").read_bytes()


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"run": "../scan.zarr"}, "no store called"),
        ({"run": "scan.zarr", "format": "exe"}, "no format 'exe'"),
        ({"run": "scan.zarr", "method": "magic"}, "no method 'magic'"),
        ({"run": "scan.zarr", "step": "9"}, "no snapshot at step 9"),
        ({"run": "scan.zarr", "value": "1"}, "cannot be reached"),
        ({"run": "scan.zarr", "value": "abc"}, "from 0 to 1, not 'abc'"),
        ({"run": "scan.zarr", "value": "2"}, "from 0 to 1, not '2'"),
        ({"run": "scan.zarr", "step": "abc"}, "no step 'abc'"),
        ({"run": "broken.zarr"}, "broken.zarr/zarr.json is not JSON"),
        ({"map": "../maps/map.json"}, "no rank map called"),
        ({"run": "scan.zarr", "method": "uniform", "target": "threshold"}, "WeLore's"),
        ({"run": "scan.zarr", "value": "0", "format": "peft"}, "no LRC"),
    ],
)
def test_a_download_that_cannot_be_is_one_line(address, folder, asked, said):
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{address}/map?{urllib.parse.urlencode(asked)}")
    text = refused.value.read().decode()
    assert refused.value.code == 400
    assert said in text
    assert text.count("\n") == 1
    assert str(folder) not in text


def test_a_download_has_a_name(address):
    answer = urllib.request.urlopen(f"{address}/map?run=scan.zarr&format=csv")
    assert answer.headers["Content-Disposition"] == "attachment; filename=map-csv.csv"
    assert file_name("peft") == "adapter_config.json"


def test_names_are_quoted_for_the_shell(folder):
    from spectra_dashboard.pages.ranks import _command
    from spectra_dashboard.view import View

    class Odd:
        name = address = "a b;$(c)'.zarr"

    words = shlex.split(_command(Odd, View(storage="pivoted"), "uniform", 3))
    assert words[2] == Odd.name
    with pytest.raises(InputError):
        made(Library(folder), {"run": Odd.name}, "json")
