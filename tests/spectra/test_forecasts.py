"""`--dry-run`: what commands will read, need and take. Times are compared in the benchmarks."""

import json

import pytest
import torch

import spectra
from spectra.cli import main
from spectra.compression.compress import compress
from spectra.compression.scratch import Scratch
from spectra.forecasting import blocks, costs
from spectra.forecasting.blocks import SampleBlock
from spectra.forecasting.forecast import Forecast, Stage, duration
from spectra.models.source import Source
from spectra.scanning.decomposition import DecompositionOptions
from tests.spectra.checkpoints import saved

MEDIUM = {"hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 3}
TEXT = ["--windows", "4", "--seq-len", "16"]


@pytest.fixture
def model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPECTRA_CACHE", str(tmp_path / "cache"))
    saved(tmp_path / "m", **MEDIUM)
    spectra.scan("m", "scan.zarr")
    spectra.allocate("scan.zarr", err=0.5, method="uniform").save("map.json")
    return tmp_path


def said(capsys, *command):
    """The forecast of a command, as JSON."""
    assert main([*command, "--dry-run", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def bytes_of(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    "command",
    [
        ["scan", "m", "--out", "new"],
        ["scan", "m", "--out", "new", "--approximate"],
        ["compress", "m", "--map", "map.json", "--out", "new"],
        ["compress", "m", "--budget", "0.7", "--align", "1", "--out", "new", *TEXT],
        ["prune", "m", "--sparsity", "0.5", "--method", "magnitude", "--out", "new"],
        ["prune", "m", "--sparsity", "0.5", "--out", "new", *TEXT],
    ],
    ids=["scan", "approximate", "map", "budget", "magnitude", "wanda"],
)
def test_what_will_be_written_is_known_before(model, capsys, command):
    before = {path for path in model.rglob("*") if "cache" not in path.parts}
    found = said(capsys, *command)
    assert {path for path in model.rglob("*") if "cache" not in path.parts} == before
    assert found["seconds"] == pytest.approx(sum(found["stages"].values()))
    assert all(seconds >= 0 for seconds in found["stages"].values())
    assert main(command) == 0
    assert found["writes"] == pytest.approx(bytes_of(model / "new"), rel=0.3)


def test_scratch_is_known_before(model, capsys, monkeypatch):
    largest = [0]
    finish = Scratch.finish

    def watched(self, *arguments, **keywords):
        finish(self, *arguments, **keywords)
        largest.append(bytes_of(self.path))

    monkeypatch.setattr(Scratch, "finish", watched)
    command = ["compress", "m", "--budget", "0.7", "--align", "1", "--out", "new", *TEXT]
    found = said(capsys, *command)
    assert main(command) == 0
    assert found["scratch"] == pytest.approx(max(largest), rel=0.3)


def test_text_that_is_kept_is_not_written_again(model, capsys):
    command = ["compress", "m", "--budget", "0.7", "--align", "1", *TEXT]
    assert "own text" in said(capsys, *command, "--out", "new")["stages"]
    assert main([*command, "--out", "new"]) == 0
    capsys.readouterr()
    assert "own text" not in said(capsys, *command, "--out", "other")["stages"]


@pytest.mark.parametrize("loading", ["whole", "blocks"])
@pytest.mark.parametrize("what", ["perplexity", "task"])
def test_an_evaluation_is_forecast(shared, capsys, what, loading):
    stories = str(shared / "data/checkpoints/stories260K")
    text = ["--data", str(shared / "data/text/wikitext2-valid.txt"), "--seq-len", "32"]
    task = ["--task", "coinflip", "--task-data", str(shared / "data/tasks")]
    command = ["evaluate", stories, "--windows", "3", "--loading", loading]
    command += text if what == "perplexity" else task
    assert main([*command, "--dry-run"]) == 0
    words = capsys.readouterr().out
    assert f"blocks are {'all in memory' if loading == 'whole' else 'read one at a time'}" in words
    assert words.endswith("nothing was written (--dry-run)\n")
    assert said(capsys, *command)["reads"] > 1e6


@pytest.mark.parametrize("family", ["mixtral", "phi3", "gpt2"])
def test_layers_of_several_matrices_are_forecast(tmp_path, capsys, monkeypatch, family):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPECTRA_CACHE", str(tmp_path / "cache"))
    saved(tmp_path / "m", family)
    command = ["compress", "m", "--budget", "0.8", "--align", "1", "--out", "new", *TEXT]
    found = said(capsys, *command)
    assert found["stages"]["passes of text"] > 0
    assert not (tmp_path / "new").exists()


def test_what_would_be_refused_is_refused(model, capsys):
    other = ["compress", "m", "--map", "map.json", "--budget", "0.5", "--out", "new", "--dry-run"]
    assert main(other) == 2
    assert "name either --map or --budget" in capsys.readouterr().err
    assert main(["compress", "m", "--budget", "0.001", "--out", "new", "--dry-run"]) == 2
    assert "cannot be reached" in capsys.readouterr().err
    assert main(["prune", "m", "--sparsity", "2", "--out", "new", "--dry-run"]) == 2
    assert main(["scan", "nothing", "--out", "new", "--dry-run"]) == 2


def test_a_compressed_checkpoint_is_forecast_as_it_is_stored(model, capsys, shared):
    made = compress("m", spectra.RankMap.load("map.json"), "c")
    assert said(capsys, "scan", "c", "--out", "new")["reads"] > 0
    assert said(capsys, "prune", "c", "--sparsity", "0.5", "--method", "magnitude", "--out", "new")[
        "writes"
    ] == pytest.approx(made.bytes, rel=0.3)


def test_large_matrices_cost_what_their_side_says(monkeypatch):
    monkeypatch.setattr(costs, "timed", lambda run, before=None: 1.0)
    monkeypatch.setattr(costs, "timed_together", lambda run, count: 1.0)
    options = DecompositionOptions(seed=987)  # no other test's
    half = costs.spectrum(768, 768, torch.float32, options, 2)
    twice = costs.spectrum(3072, 3072, torch.float32, options, 2)
    assert half == 1.0
    assert twice == pytest.approx(2.0**costs.SPECTRUM)


def test_lengths_of_time_are_read_at_a_glance():
    found = [duration(s) for s in (0.44, 12.3, 59.4, 185, 3599.4, 7 * 3600 + 12 * 60)]
    assert found == ["0.4 s", "12 s", "59 s", "3:05 min", "59:59 min", "7:12 h"]
    forecast = Forecast(10**9, 2 * 10**9, 5, (Stage("one", 1.0), Stage("other", 2.0)), 10**10)
    assert next(forecast.lines("there")).endswith("2.0 GB of memory and 10.0 GB of scratch")


def _run_once(run, before=None):
    run()
    return 1.0


def test_a_block_that_memory_does_not_hold_is_halved_and_costs_as_much(model, monkeypatch):
    monkeypatch.setattr(blocks, "timed", _run_once)
    whole = SampleBlock(Source("m"))
    monkeypatch.setattr(blocks, "free_memory", lambda device: 3 * whole.inside)
    half = SampleBlock(Source("m"))
    assert (half.inside, half.outside, half.outputs) == (whole.inside, whole.outside, whole.outputs)
    for cost in (lambda b: b.forward(32), lambda b: b.backward(32), lambda b: b.step(2)):
        assert cost(half) == 4 * cost(whole)
    assert half.head(32) == 2 * whole.head(32)


def test_blocks_of_a_pivoted_checkpoint_run_as_they_are(model):
    compress("m", spectra.RankMap.load("map.json"), "c", storage="pivoted")
    block = SampleBlock(Source("c"))
    assert not any(buffer.is_meta for buffer in block.blocks.model.buffers())
    assert block.forward(16) > 0


def test_what_is_not_forecast_is_refused(model, shared, capsys):
    stories = str(shared / "data/checkpoints/stories260K")
    text = ["--data", str(shared / "data/text/wikitext2-valid.txt")]
    assert main(["evaluate", stories, *text, "--speed", "--dry-run"]) == 2
    assert "not forecast" in capsys.readouterr().err
    assert main(["scan", "m", "--out", "n", "--scheduler", "tcp://x:1", "--dry-run"]) == 2
    assert "a cluster's time is not known here" in capsys.readouterr().err
