"""What calibration leaves on disk: how much, how it resumes, and what damage does to it."""

import dataclasses
import shutil
from collections import namedtuple

import pytest
import torch

import spectra
from spectra.calibration.hidden import HiddenStates
from spectra.calibration.options import Calibration
from spectra.checkpoint.notes import CheckpointNote
from spectra.compression import block, calibrated, scratch, space
from spectra.compression.calibrated import calibrate
from spectra.compression.compress import compress
from spectra.compression.methods import WEIGHING
from spectra.compression.scratch import Scratch
from spectra.compression.settings import Settings
from spectra.machine.progress import silent
from spectra.models.source import Source
from spectra_data.errors import InputError
from tests.spectra.checkpoints import saved
from tests.spectra.interruption import StoppedError, stopped_at

OWN = Calibration(windows=4, length=16)
WIDE = {"hidden_size": 160, "intermediate_size": 320, "num_hidden_layers": 3}


def digests(folder):
    """What every file of weights holds."""
    return {file.name: file.read_bytes() for file in sorted(folder.glob("*.safetensors"))}


@pytest.fixture
def model(tmp_path, monkeypatch):
    monkeypatch.setenv("SPECTRA_CACHE", str(tmp_path / "cache"))
    saved(tmp_path / "m", **WIDE)
    return str(tmp_path / "m")


def calibrated_by(method, model, **options):
    return calibrate(Source(model), Settings(method, OWN), "cpu", silent, **options)


@pytest.mark.parametrize("method", WEIGHING)
def test_the_bytes_that_are_predicted_are_those_on_disk(model, tmp_path, monkeypatch, method):
    most = []

    def counted(real):
        def keeping(*arguments, **named):
            real(*arguments, **named)
            folders = (tmp_path / "cache/calibration").glob("*")
            files = [file for folder in folders for file in folder.glob("*.safetensors")]
            headers = sum(int.from_bytes(file.read_bytes()[:8], "little") + 8 for file in files)
            most.append(sum(file.stat().st_size for file in files) - headers)

        return keeping

    predicted = []
    monkeypatch.setattr(HiddenStates, "keep", counted(HiddenStates.keep))
    monkeypatch.setattr(Scratch, "finish", counted(Scratch.finish))
    monkeypatch.setattr(calibrated, "require_space", lambda *a: predicted.append(a[1]))
    calibrated_by(method, model)
    assert max(most) == pytest.approx(predicted[0], rel=0.05)
    assert max(most) <= predicted[0]


def test_too_little_disk_is_said_before_anything_runs(model, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10_000))
    monkeypatch.setattr(calibrated, "_take", lambda *a: pytest.fail("it ran"))
    with pytest.raises(InputError, match=r"needs .* of scratch in .*, but 10\.0 kB are free: set"):
        calibrated_by("fisher", model)
    monkeypatch.undo()
    monkeypatch.setattr(space, "WORTH_SAYING", 1000)
    with pytest.warns(CheckpointNote, match="calibration for whiten takes up to"):
        calibrated_by("whiten", model)


@pytest.mark.parametrize(
    ("method", "stop"),
    [
        ("fisher", 9),
        ("whiten", 9),
        *(pytest.param("fisher", n, marks=pytest.mark.slow) for n in (0, 1, 6, 7, 20)),
        *(pytest.param("whiten", n, marks=pytest.mark.slow) for n in (0, 20)),
    ],
)
def test_a_compression_that_is_stopped_anywhere_gives_the_same_files(
    model, tmp_path, monkeypatch, method, stop
):
    options = {"budget": 0.7, "align": 1, "method": method, "calibration": OWN}
    monkeypatch.setenv("SPECTRA_CACHE", str(tmp_path / "other"))
    whole = compress(model, None, tmp_path / "whole", **options)
    monkeypatch.setenv("SPECTRA_CACHE", str(tmp_path / "cache"))
    saved_names = stopped_at(monkeypatch, Scratch, "save", stop)
    monkeypatch.setattr(block, "available_cores", lambda: 1)  # one after another
    with pytest.raises(StoppedError):
        compress(model, None, tmp_path / "c", **options)
    made = compress(model, None, tmp_path / "c", **options)
    assert digests(made.path) == digests(whole.path)
    # only of the block that was under way, matrices are decomposed twice
    decomposed = [name for name, *_ in saved_names]
    assert len(decomposed) - len(set(decomposed)) < 7
    assert not list((tmp_path / "cache").rglob("hidden-*"))


@pytest.mark.parametrize("stop", [8, *(pytest.param(n, marks=pytest.mark.slow) for n in (0, 3))])
def test_sequential_truncation_that_is_stopped_anywhere_gives_the_same_files(
    model, tmp_path, monkeypatch, stop
):
    scan = spectra.scan(model, tmp_path / "scan.zarr")
    rank_map = spectra.allocate(scan, method="uniform", err=0.6)
    options = {"method": "sequential", "calibration": OWN}
    monkeypatch.setenv("SPECTRA_CACHE", str(tmp_path / "other"))
    whole = compress(model, rank_map, tmp_path / "whole", **options)
    monkeypatch.setenv("SPECTRA_CACHE", str(tmp_path / "cache"))
    kept = stopped_at(monkeypatch, Scratch, "save_factors", stop)
    with pytest.raises(StoppedError):
        compress(model, rank_map, tmp_path / "c", **options)
    again = compress(model, rank_map, tmp_path / "c", **options)
    assert digests(again.path) == digests(whole.path)
    made = [name for name, _ in kept]
    assert len(made) - len(set(made)) == stop % 7
    assert not list((tmp_path / "cache").rglob("hidden-*"))


def test_another_budget_needs_no_pass(model, tmp_path, monkeypatch):
    for budget in (0.7, 0.5):
        compress(model, None, tmp_path / str(budget), budget=budget, align=1, calibration=OWN)
        monkeypatch.setattr(calibrated, "_take", lambda *a: pytest.fail("it ran again"))
    fresh = tmp_path / "fresh"
    monkeypatch.undo()
    monkeypatch.setenv("SPECTRA_CACHE", str(tmp_path / "another"))
    made = compress(model, None, fresh, budget=0.5, align=1, calibration=OWN)
    assert digests(made.path) == digests(tmp_path / "0.5")


def test_large_decompositions_are_kept_if_that_is_wanted(model, tmp_path, monkeypatch):
    monkeypatch.setattr(scratch, "KEPT_BYTES", 0)
    options = {"budget": 0.7, "align": 1, "calibration": OWN}
    compress(model, None, tmp_path / "a", keep_scratch=True, **options)
    assert list((tmp_path / "cache/calibration").glob("*/*.matrix.safetensors"))
    compress(model, None, tmp_path / "b", **options)
    assert not list((tmp_path / "cache/calibration").glob("*/*.matrix.safetensors"))


@pytest.mark.parametrize(
    "kind", ["root", *(pytest.param(k, marks=pytest.mark.slow) for k in ("matrix", "spectrum"))]
)
def test_damage_is_said_and_computed_again(model, tmp_path, capsys, kind):
    options = {"budget": 0.7, "align": 1, "calibration": OWN}
    whole = compress(model, None, tmp_path / "whole", **options)
    path = sorted((tmp_path / "cache/calibration").glob(f"*/*.{kind}.safetensors"))[0]
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(InputError, match="was lost: repeat the command"):
        compress(model, None, tmp_path / "c", **options)
    assert f"{path} is damaged" in capsys.readouterr().err
    assert digests(compress(model, None, tmp_path / "c", **options).path) == digests(whole.path)


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_streamed_and_whole_models_give_the_same_factors(monkeypatch, tmp_path, family):
    """A model that is loaded whole, and one whose blocks are read when they run."""
    saved(tmp_path / "m", family)
    model = str(tmp_path / "m")
    streamed = calibrated_by("fisher", model)
    monkeypatch.setenv("SPECTRA_CACHE", str(tmp_path / "other"))
    monkeypatch.setattr("spectra.models.loading.load_skeleton", lambda source, **_: None)
    whole = calibrated_by("fisher", model)
    checkpoint = Source(model).checkpoint
    for matrix in checkpoint.matrices:
        weight = checkpoint.read(matrix)
        one, other = (w.of(matrix.name).truncated(weight, 20) for w in (streamed, whole))
        torch.testing.assert_close(one.product(), other.product(), rtol=0, atol=1e-5)


def test_all_matrices_are_decomposed_where_some_were_before(model):
    some = "model.layers.1.mlp.up_proj"
    calibrated_by("whiten", model, names={some})
    found = calibrated_by("whiten", model)
    for matrix in Source(model).checkpoint.matrices:
        assert found.of(matrix.name).spectrum(None).isfinite().all()


def test_matrices_that_are_not_wanted_are_not_decomposed(model):
    names = {"model.layers.1.mlp.up_proj"}
    found = calibrated_by("whiten", model, names=names)
    assert found.of(*names).spectrum(None).shape == (160,)
    with pytest.raises(KeyError):
        found.of("model.layers.0.mlp.up_proj")


def test_an_option_of_a_method_changes_what_it_is_known_by():
    text = Calibration()
    known = [
        Settings("fisher", text).weighting(),
        Settings("fisher", dataclasses.replace(text, seed=1)).weighting(),
        Settings("fisher", text, 0.1).weighting(),
        Settings("whiten", text).weighting(),
        Settings("asvd", text).weighting(),
        Settings("asvd", text, asvd_exponent=0.7).weighting(),
    ]
    assert len({str(one) for one in known}) == len(known)
