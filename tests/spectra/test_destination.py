"""What `--out` names: files, links, devices, pipes, folders; one writer a folder."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

import spectra
from spectra.checkpoint.writer import writing
from spectra.cli import main
from spectra.compression.merge import merge
from spectra.store.destination import make_folder, write_result
from spectra.store.durable import write_file
from spectra.store.lock import locked
from spectra_data.errors import InputError
from tests.small import random_batch, small_llama
from tests.spectra.checkpoints import saved


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    """A checkpoint, its scan, its map, and what is compressed by it."""
    folder = tmp_path_factory.mktemp("material")
    saved(folder / "m")
    scan = spectra.scan(str(folder / "m"), folder / "scan.zarr")
    rank_map = spectra.allocate(scan, err=0.6, method="uniform")
    rank_map.save(folder / "map.json")
    spectra.compress(str(folder / "m"), rank_map, folder / "small")
    return folder


COMMANDS = {
    "allocate": ["allocate", "scan.zarr", "--err", "0.6", "--method", "uniform"],
    "export": ["export", "map.json", "--format", "json"],
    "report": ["report", "scan.zarr"],
    "metrics": ["metrics", "scan.zarr"],
    "scan": ["scan", "m"],
    "compress": ["compress", "m", "--map", "map.json"],
    "merge": ["merge", "small"],
    "prune": ["prune", "m", "--sparsity", "0.5", "--method", "magnitude"],
    "pretrain": ["pretrain"],
    "finetune": ["finetune", "small"],
    "experiment": ["experiment", "table1", "m", "--data", "map.json"],
}
FILES = ("allocate", "export", "report", "metrics")


def folder(place):
    place.mkdir()


def pipe(place):
    os.mkfifo(place)


def broken_link(place):
    place.symlink_to(place.with_name("nowhere"))


def loop(place):
    place.symlink_to(place)


NO_PLACE = [
    (command, obstacle)
    for command in COMMANDS
    for obstacle in (folder, pipe, broken_link, loop)
    if command in FILES or obstacle is not folder
]


@pytest.mark.parametrize(("command", "obstacle"), NO_PLACE)
def test_what_is_no_place_for_a_result_is_named_and_stays(
    material, tmp_path, monkeypatch, capsys, command, obstacle
):
    monkeypatch.chdir(material)
    place = tmp_path / "out.csv"
    obstacle(place)
    before = place.lstat()
    assert main([*COMMANDS[command], "--out", str(place)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"spectra {command}: ")
    assert "out.csv" in line
    assert place.lstat()[:2] == before[:2]
    assert list(tmp_path.iterdir()) == [place]


WORK = {
    "allocate": "spectra.allocation.allocate.allocate",
    "export": "spectra.exports.formats.export",
    "report": "spectra.report.page.report_html",
    "metrics": "spectra.analysis.table.metrics_table",
    "scan": "spectra.scanning.scan.run_scan",
    "compress": "spectra.compression.compress.make_plan",
    "merge": "spectra.compression.merge.write_shards",
    "prune": "spectra.pruning.prune.write_shards",
    "pretrain": "spectra_pretrain.session._train",
    "finetune": "spectra_pretrain.session._train",
    "experiment": "spectra.experiments.measured.Ledger",
}
"""Where each command begins what may take hours."""


@pytest.mark.parametrize("place", ["/proc/out.csv", "file/out.csv", "file/below/out.csv"])
@pytest.mark.parametrize("command", COMMANDS)
def test_what_cannot_be_written_is_refused_before_the_work(
    material, tmp_path, monkeypatch, capsys, command, place
):
    monkeypatch.chdir(material)
    monkeypatch.setattr(WORK[command], lambda *_, **__: pytest.fail("the work was begun"))
    (tmp_path / "file").write_text("mine")
    assert main([*COMMANDS[command], "--out", str(tmp_path / place)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"spectra {command}: cannot write {tmp_path / place}: ")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_store_that_cannot_be_written_to_is_refused_before_the_work(
    material, monkeypatch, capsys
):
    def refused(*_, **__):
        raise InputError("cannot write it")

    monkeypatch.chdir(material)
    monkeypatch.setattr("spectra.store.destination.require_writable", refused)
    monkeypatch.setattr("spectra.allocation.path.require_writable", refused)
    monkeypatch.setattr("spectra.allocation.path.compression_path", lambda *_: pytest.fail("begun"))
    monkeypatch.setattr("spectra.models.source.Source.__init__", lambda *_: pytest.fail("begun"))
    evaluate = ["evaluate", "small", "--data", "map.json", "--store", "scan.zarr"]
    for command in (["path", "scan.zarr"], evaluate):
        assert main(command) == 2
        assert "cannot write it" in capsys.readouterr().err


@pytest.mark.parametrize("command", FILES)
def test_a_link_to_a_file_stays_a_link_and_a_device_a_device(
    material, tmp_path, monkeypatch, command
):
    monkeypatch.chdir(material)
    (tmp_path / "file.csv").write_text("before")
    (tmp_path / "link.csv").symlink_to("file.csv")
    assert main([*COMMANDS[command], "--out", str(tmp_path / "link.csv")]) == 0
    assert (tmp_path / "link.csv").is_symlink()
    assert len((tmp_path / "file.csv").read_text()) > 100
    (tmp_path / "null").symlink_to(os.devnull)
    assert main([*COMMANDS[command], "--out", str(tmp_path / "null")]) == 0
    assert Path(os.devnull).is_char_device()


@pytest.mark.parametrize("redirected", [True, False])
def test_standard_output_gets_the_result_and_nothing_else(material, tmp_path, redirected):
    command = [
        sys.executable,
        "-m",
        "spectra.cli",
        "allocate",
        "scan.zarr",
        "--err",
        "0.6",
        "--method",
        "uniform",
    ]
    given = {"cwd": material, "stderr": subprocess.PIPE, "check": True}
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with (tmp_path / "out").open("wb") as file:
        done = subprocess.run(
            [*command, "--out", "/dev/stdout"],
            stdout=file if redirected else subprocess.PIPE,
            env=environment,
            **given,
        )
    printed = (tmp_path / "out").read_bytes() if redirected else done.stdout
    assert json.loads(printed) == json.loads((material / "map.json").read_text())
    assert b"wrote /dev/stdout" in done.stderr


def test_a_pipe_that_is_read_gets_the_result(tmp_path):
    place, read = tmp_path / "pipe", []
    os.mkfifo(place)
    reader = os.open(place, os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(reader, True)
    content = bytes(range(256)) * 1024  # more than a pipe holds

    def drain():
        while part := os.read(reader, 1 << 20):
            read.append(part)

    thread = threading.Thread(target=drain)
    descriptor = os.open(place, os.O_WRONLY)  # so that the reader waits
    thread.start()
    write_result(place, content)
    os.close(descriptor)
    thread.join()
    os.close(reader)
    assert b"".join(read) == content


def test_nothing_but_files_is_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="it is a pipe"):
        write_file(tmp_path / "pipe", b"")
    with pytest.raises(InputError, match="is not a folder"):
        make_folder(tmp_path / "pipe")


def left_by_a_kill(target: Path, *, whole_folder: bool = False) -> Path:
    left = target.with_name(f".{target.name}.{'0' * 32}.partial")
    if whole_folder:
        left.mkdir()
        (left / "zarr.json").write_text("{}")
    else:
        left.write_text("half")
    return left


def test_the_next_result_removes_what_a_killed_one_left_and_nothing_else(tmp_path):
    left, other = left_by_a_kill(tmp_path / "map.json"), left_by_a_kill(tmp_path / "other.json")
    write_result(tmp_path / "map.json", b"{}")
    assert not left.exists()
    assert other.exists()


def recorded(store, **options):
    model = small_llama()
    optimizer = torch.optim.AdamW(model.parameters())
    probe = random_batch(0)
    spectra.record(model, optimizer, store, probe=probe, every=3, steps=7, **options).close()


def test_the_next_writer_of_a_store_removes_what_a_killed_one_left(tmp_path):
    store = tmp_path / "run.zarr"
    beside = left_by_a_kill(store, whole_folder=True)
    recorded(store)
    assert not beside.exists()
    inside = [left_by_a_kill(store / name) for name in ("zarr.json", "spectra/weight/zarr.json")]
    recorded(store, resume=True)
    assert not any(path.exists() for path in inside)
    assert spectra.verify(store).problems == ("it holds no snapshot",)


@pytest.mark.parametrize("command", ["compress", "merge", "prune"])
def test_two_processes_do_not_write_one_result(material, tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(material)
    out = tmp_path / "out"
    given = [*COMMANDS[command], "--out", str(out)]
    out.mkdir()
    with locked(out):
        assert main(given) == 2
    assert f"another process is writing to {out}" in capsys.readouterr().err
    left_by_a_kill(out / "model.safetensors", whole_folder=True)
    assert main(given) == 0  # the lock went with its holder
    assert not list(out.glob(".*"))
    assert main(given) == 2
    assert "is not empty" in capsys.readouterr().err


def test_a_refused_result_leaves_no_folder(material, tmp_path):
    with pytest.raises(InputError, match="not a compressed checkpoint"):
        merge(str(material / "m"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "own").mkdir()
    with pytest.raises(ValueError, match="refused"), writing(tmp_path / "own"):
        raise ValueError("refused")
    assert (tmp_path / "own").exists()


def test_a_folder_that_rust_cannot_open_is_refused_before_the_work(tmp_path, material):
    out = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    with pytest.raises(InputError, match="is not UTF-8, which safetensors and tokenizers need"):
        merge(str(material / "small"), out)
    assert list(tmp_path.iterdir()) == []
