"""What can be recorded, each on its own switch: it is what it says, and as large as it says."""

import numpy as np
import pytest
import torch

import spectra
from spectra.linalg import leading_subspaces
from spectra.matrices import Matrix, find_matrices
from spectra.recording.probe import probe_gradients
from spectra.store.layout import Contents, Layout
from spectra_data.errors import InputError
from spectra_pretrain.presets import model_config
from tests.small import random_batch, small_llama, small_model, train


def recorded(path, model=None, steps=4, **options):
    model = model or small_llama()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    defaults = {"probe": random_batch(0), "every": 2, "steps": steps, "sketch": 0, "spectra": ()}
    with spectra.record(model, optimizer, path, **defaults | options):
        train(model, optimizer, steps)
    assert spectra.verify(path).whole
    return model, spectra.open(path)


def gradients_of(model):
    found = find_matrices(model)[0]
    parameters = list({id(w.parameter): w.parameter for w in found.values()}.values())
    gradients = probe_gradients(model, random_batch(0), parameters)
    by_parameter = dict(zip(map(id, parameters), gradients, strict=True))
    return {m.name: w.of(by_parameter[id(w.parameter)]) for m, w in found.items()}


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_raw_gradients_are_the_gradients_rounded_to_bfloat16(tmp_path, family):
    model, run = recorded(tmp_path / "a.zarr", small_model(family), gradients=True)
    expected = gradients_of(model)
    seen = set()
    for path in run.groups:
        if not path.startswith("/gradients/"):
            continue
        gradient = run[path].gradient
        assert gradient.dims == ("step", "matrix", "row", "col")
        assert gradient.step.values.tolist() == [0, 2, 4]
        for name in gradient.matrix.values:
            last = gradient.sel(step=4, matrix=name).values
            assert last.dtype == np.float32
            rounded = expected[name].to(torch.bfloat16).float().numpy()
            np.testing.assert_array_equal(last, rounded)
            seen.add(name)
    assert seen == set(expected)


def test_subspaces_are_those_of_the_gradient_and_nan_beyond_its_sides(tmp_path):
    model, run = recorded(tmp_path / "a.zarr", subspaces=3)
    left, right = run["subspaces"].gradient_left, run["subspaces"].gradient_right
    assert left.dims == ("step", "matrix", "row", "component")
    for name, gradient in gradients_of(model).items():
        u, v = leading_subspaces(gradient, 3)
        rows, cols = gradient.shape
        for array, vectors, side in ((left, u, rows), (right, v, cols)):
            stored = array.sel(step=4, matrix=name).values
            np.testing.assert_allclose(stored[:side], vectors, atol=1e-5)
            assert np.isnan(stored[side:]).all()


ALWAYS = {"spectra", "status", "train"}


@pytest.mark.parametrize(
    ("options", "groups", "names"),
    [
        ({"spectra": ("weight",)}, ALWAYS, {"weight"}),
        ({"spectra": ("update", "weight")}, ALWAYS, {"weight", "update"}),
        ({"spectra": ("training_gradient",)}, ALWAYS, {"training_gradient"}),
        ({"spectra": ("gradient", "weight")}, ALWAYS, {"weight", "gradient"}),
        ({"sketch": 16}, ALWAYS | {"sketches"}, set()),
        ({"subspaces": 1}, ALWAYS | {"subspaces"}, set()),
    ],
)
def test_every_part_has_a_switch_of_its_own(tmp_path, options, groups, names):
    _, run = recorded(tmp_path / "a.zarr", **options)
    assert set(run.children) == groups
    assert set(run["spectra"].data_vars) == names
    assert run["spectra"].step.values.tolist() == [0, 2, 4]


def test_only_the_matrices_asked_for_are_recorded_and_the_others_are_listed(tmp_path):
    _, run = recorded(tmp_path / "a.zarr", spectra=("weight",), matrices="*.0.mlp.*")
    assert run["spectra"].role.values.tolist() == ["gate", "up", "down"]
    skipped = {entry["name"]: entry["reason"] for entry in run.attrs["skipped"]}
    assert skipped["model.layers.1.mlp.up_proj"] == "not selected by matrices="
    assert skipped["lm_head.weight"] == "outside the transformer blocks"


def llama_130m():
    config = model_config("llama_130m")
    hidden, inner = config.hidden_size, config.intermediate_size
    shapes = dict.fromkeys(("q", "k", "v", "o"), (hidden, hidden))
    shapes |= {"gate": (inner, hidden), "up": (inner, hidden), "down": (hidden, inner)}
    return tuple(
        Matrix(f"model.layers.{layer}.{role}_proj", layer, role, *shape)
        for layer in range(config.num_hidden_layers)
        for role, shape in shapes.items()
    )


def test_a_snapshot_of_llama_130m_with_all_its_gradients_is_about_ten_files():
    layout = Layout(llama_130m(), 51, 25_000, Contents(gradients=True))
    files = 0
    for variable in layout.snapshot_arrays().values():
        shard = variable.shards or variable.chunks
        per_row = [-(-n // s) for n, s in zip(variable.shape[1:], shard[1:], strict=True)]
        files += int(np.prod(per_row))
    assert files == 8  # three spectra, the status, the sketches, gradients of three shapes
    assert layout.sizes["gradients"] / 51 == pytest.approx(170e6, rel=0.01)
    everything = Contents(
        ("weight", "gradient", "training_gradient", "update"), 4096, True, subspaces=16
    )
    assert len(Layout(llama_130m(), 51, 25_000, everything).snapshot_arrays()) == 11


def test_the_sizes_announced_are_those_on_disk_but_for_compression(tmp_path):
    """Of noise, which does not compress: announced and written agree within a third."""
    options = {"sketch": 2048, "gradients": True, "subspaces": 8}
    model = small_llama(hidden_size=64, intermediate_size=96)
    recorded(tmp_path / "a.zarr", model, **options, spectra=("weight", "gradient"))
    matrices = tuple(find_matrices(model)[0])
    layout = Layout(matrices, 3, 4, Contents(("weight", "gradient"), **options))
    for group in ("sketches", "gradients", "subspaces"):
        folder = tmp_path / "a.zarr" / group
        names = [f"gradient{side}" for side in ("", "_left", "_right")]
        files = [f for n in names for f in folder.rglob(f"{n}/c/**/*") if f.is_file()]
        written = sum(f.stat().st_size for f in files)
        assert 0.5 * layout.sizes[group] < written < 1.1 * layout.sizes[group], group


def test_runs_with_the_same_seed_have_comparable_sketches(tmp_path):
    stores = {name: tmp_path / f"{name}.zarr" for name in ("a", "b", "c")}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        recorded(stores[name], sketch=256, seed=seed, steps=2)
    a, b, c = (spectra.open(store)["sketches"].gradient.values for store in stores.values())
    np.testing.assert_array_equal(a, b)
    assert not np.allclose(a, c)
    norms = np.linalg.norm(a, axis=2), np.linalg.norm(c, axis=2)
    np.testing.assert_allclose(norms[0], norms[1], rtol=0.6)


def test_a_background_process_cannot_write_to_the_memory_of_this_one():
    with pytest.raises(InputError, match="is in the memory of this process"):
        recorded("memory://background.zarr", spectra=("weight",), background="wait")


def test_a_queue_that_no_memory_holds_is_refused_in_a_line(tmp_path):
    with pytest.raises(InputError, match="no memory for a queue of 1000000000000 snapshots"):
        recorded(tmp_path / "a.zarr", spectra="weight", background="wait", queue=10**12)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"spectra": ("weights",)}, "no spectra of 'weights'; there are: weight, gradient"),
        ({"subspaces": 17}, "a matrix has only 16 singular values"),
        ({"subspaces": -1}, "rank of at least 0"),
        ({}, "there is nothing to record"),
        ({"sketch": 16, "probe": None}, "there is nothing to record"),
        ({"spectra": ("weight",), "matrices": "*.nothing"}, "matches none"),
        ({"spectra": ("weight",), "overhead": 1.5}, "between 0 and 1"),
        ({"spectra": ("weight",), "background": "sometimes"}, "'wait' or 'drop'"),
        ({"spectra": ("weight",), "background": "wait", "queue": 0}, "at least 1 snapshot"),
        ({"spectra": "gradients"}, "no spectra of 'gradients'"),
    ],
)
def test_what_cannot_be_recorded_is_refused_in_a_line_and_leaves_nothing(
    tmp_path, options, message
):
    with pytest.raises(InputError, match=message):
        recorded(tmp_path / "a.zarr", **options)
    assert not any(tmp_path.iterdir())
