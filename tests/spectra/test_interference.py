"""The recorder never disturbs training: with it and without it, every bit is the same."""

import contextlib
import copy

import numpy as np
import pytest
import torch

import spectra
from spectra.matrices import find_matrices
from spectra.recording.probe import probe_gradients
from spectra.store.schema import Status
from tests.forked import Forked
from tests.small import random_batch, small_llama, small_model, train

EVERYTHING = {
    "probe": random_batch(0),
    "every": 2,
    "sketch": 64,
    "spectra": ("weight", "gradient", "training_gradient", "update"),
    "gradients": True,
    "subspaces": 2,
}


def trained(
    model,
    *,
    steps=5,
    accumulation=1,
    clip=None,
    precision=torch.float32,
    store=None,
    forward=None,
    optimizer=None,
    **options,
):
    """Train, recording where a store is given; all that training leaves behind."""
    optimizer = optimizer or torch.optim.AdamW(model.parameters(), lr=1e-2)
    torch.manual_seed(1)
    forward = forward or model
    context = contextlib.nullcontext()
    if store is not None:
        context = spectra.record(model, optimizer, store, **EVERYTHING | options)
    seen = []
    with context as recorder:
        for step in range(steps):
            for part in random_batch(100 + step).chunk(accumulation):
                with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
                    loss = forward(input_ids=part, labels=part).loss / accumulation
                loss.backward()
                seen.append(float(loss.detach()))
            if clip is not None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            optimizer.zero_grad()
        assert recorder is None or recorder.stopped is None
    return {
        "parameters": copy.deepcopy(dict(model.named_parameters())),
        "buffers": copy.deepcopy(dict(model.named_buffers())),
        "optimizer": copy.deepcopy(optimizer.state_dict()),
        "random": torch.get_rng_state(),
        "losses": torch.tensor(seen),
        "modes": torch.tensor([module.training for module in model.modules()]),
    }


SETUPS = {
    "float32": {},
    "bfloat16": {"precision": torch.bfloat16},
    "accumulation and clipping": {"accumulation": 2, "clip": 0.1},
    "bfloat16, accumulation, clipping": {
        "precision": torch.bfloat16,
        "accumulation": 4,
        "clip": 0.1,
    },
}
MODELS = {
    "llama": lambda: small_llama(),
    "llama with dropout": lambda: small_llama(attention_dropout=0.3),
    "tied llama": lambda: small_llama(tie_word_embeddings=True),
    "gpt2 with dropout": lambda: small_model("gpt2", resid_pdrop=0.2, attn_pdrop=0.2),
    "opt with dropout": lambda: small_model("opt", dropout=0.2),
    "gpt_neox": lambda: small_model("gpt_neox", attention_dropout=0.2),
    "mixtral": lambda: small_model("mixtral"),
    "bfloat16 weights": lambda: small_llama().bfloat16(),
}
EVERYTHING_AT_ONCE = ("gpt2 with dropout", "mixtral", "bfloat16 weights")


# some models with everything at once, one of them also in float32
QUICK = [
    ("llama with dropout", "float32"),
    ("llama with dropout", "accumulation and clipping"),
    *((model, "bfloat16, accumulation, clipping") for model in EVERYTHING_AT_ONCE),
]
SLOW = [(model, setup) for model in MODELS for setup in SETUPS if (model, setup) not in QUICK]


@pytest.mark.parametrize(
    ("model", "setup"), [*QUICK, *(pytest.param(*pair, marks=pytest.mark.slow) for pair in SLOW)]
)
def test_training_is_the_same_bit_for_bit_with_the_recorder_on(tmp_path, model, setup):
    alone = trained(MODELS[model]().train(), **SETUPS[setup])
    recorded = trained(MODELS[model]().train(), **SETUPS[setup], store=tmp_path / "a.zarr")
    torch.testing.assert_close(recorded, alone, rtol=0, atol=0, equal_nan=True)
    assert spectra.verify(tmp_path / "a.zarr").whole


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_recomputed_activations_are_left_alone(tmp_path, reentrant, family):
    def model():
        changes = {"resid_pdrop": 0.2} if family == "gpt2" else {}
        made = small_model(family, **changes).train()
        (
            getattr(made, "activation_checkpointing_enable", None)
            or made.gradient_checkpointing_enable
        )({"use_reentrant": reentrant})
        return made

    alone = trained(model())
    recorded = trained(model(), store=tmp_path / "a.zarr")
    torch.testing.assert_close(recorded, alone, rtol=0, atol=0)
    gradient = spectra.open(tmp_path / "a.zarr")["spectra"].gradient.isel(index=0)
    assert np.isfinite(gradient).all()


SLOW_COMPILATIONS = [("aot_eager", True), ("inductor", True), ("inductor", False)]


@pytest.mark.parametrize(
    ("backend", "whole"),
    [
        ("aot_eager", False),
        *(pytest.param(*pair, marks=pytest.mark.slow) for pair in SLOW_COMPILATIONS),
    ],
)
def test_compiled_models_are_left_alone(tmp_path, backend, whole):
    def run(**options):
        torch._dynamo.reset()
        model = small_model("gpt2", resid_pdrop=0.2).train()
        if whole:  # the recorder is given the compiled model itself
            compiled = torch.compile(model, backend=backend)
            return trained(compiled, **options)
        for i, block in enumerate(model.transformer.h):
            model.transformer.h[i] = torch.compile(block, backend=backend)
        return trained(model, **options)

    alone, recorded = run(), run(store=tmp_path / "a.zarr")
    torch.testing.assert_close(recorded, alone, rtol=0, atol=0)
    names = spectra.open(tmp_path / "a.zarr")["spectra"].matrix.values
    assert not any("_orig_mod" in name for name in names)
    assert names[0] == "transformer.h.0.attn.c_attn"


@pytest.mark.parametrize("place", ["wait", "drop"])
def test_recording_in_the_background_leaves_training_alone(tmp_path, place):
    alone = trained(small_llama(), clip=0.5)
    recorded = trained(small_llama(), clip=0.5, store=tmp_path / "a.zarr", background=place)
    torch.testing.assert_close(recorded, alone, rtol=0, atol=0)


class Releasing(torch.optim.SGD):
    """Clears every gradient as soon as it is used, inside of the step."""

    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.data.add_(parameter.grad, alpha=-group["lr"])
                    parameter.grad = None


def test_an_optimizer_that_clears_gradients_inside_the_step_is_seen_whole(tmp_path):
    models = {"releasing": small_llama(), "plain": small_llama()}
    for name, kind in (("releasing", Releasing), ("plain", torch.optim.SGD)):
        optimizer = kind(models[name].parameters(), lr=0.1)
        trained(models[name], optimizer=optimizer, store=tmp_path / f"{name}.zarr")
    one, other = (spectra.open(tmp_path / f"{n}.zarr")["spectra"] for n in ("releasing", "plain"))
    for kind in ("training_gradient", "update", "gradient"):
        np.testing.assert_allclose(one[kind], other[kind], rtol=1e-5, atol=1e-7)
    assert np.isfinite(one["training_gradient"].isel(step=1, index=0)).all()


def test_an_optimizer_inside_of_the_backward_pass_leaves_gaps_that_say_why(tmp_path):
    model = small_llama()
    inner = {p: torch.optim.SGD([p], lr=0.1) for p in model.parameters()}

    def step(parameter):
        inner[parameter].step()
        parameter.grad = None

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(step)
    trained(model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), store=tmp_path / "a.zarr")
    run = spectra.open(tmp_path / "a.zarr")
    status = run["status"].code.isel(step=slice(1, None))
    assert (status.sel(part=["update", "training_gradient"]) == Status.NO_GRADIENT).all()
    assert (status.sel(part=["weight", "gradient"]) == Status.MEASURED).all()
    assert np.isnan(run["spectra"]["update"]).all()
    assert spectra.verify(tmp_path / "a.zarr").whole


def statuses(run, part):
    return run["status"].code.sel(part=part).isel(step=slice(1, None)).values


def test_what_another_optimizer_updates_is_not_taken_for_still(tmp_path):
    model = small_llama()
    named = list(model.named_parameters())
    first = torch.optim.AdamW([p for n, p in named if ".mlp." not in n], lr=1e-2)
    second = torch.optim.SGD([p for n, p in named if ".mlp." in n], lr=0.1)
    with spectra.record(model, first, tmp_path / "a.zarr", **EVERYTHING):
        for step in range(4):
            batch = random_batch(step)
            model(input_ids=batch, labels=batch).loss.backward()
            first.step()
            second.step()
            model.zero_grad()
    run = spectra.open(tmp_path / "a.zarr")
    mlp = np.array([".mlp." in name for name in run["spectra"].matrix.values.tolist()])
    for part in ("update", "training_gradient"):
        expected = np.where(mlp, Status.NOT_OPTIMIZED, Status.MEASURED)
        assert (statuses(run, part) == expected).all()
    assert np.isnan(run["spectra"]["update"].isel(step=-1, index=0).values).tolist() == mlp.tolist()
    assert spectra.verify(tmp_path / "a.zarr").whole


def test_an_optimizer_with_a_closure_has_updates_and_says_why_no_gradients(tmp_path):
    model = small_llama()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with spectra.record(model, optimizer, tmp_path / "a.zarr", **EVERYTHING) as recorder:
        for step in range(4):
            batch = random_batch(step)

            def closure(batch=batch):
                optimizer.zero_grad()
                loss = model(input_ids=batch, labels=batch).loss
                loss.backward()
                return loss

            optimizer.step(closure)
        assert recorder.stopped is None
    run = spectra.open(tmp_path / "a.zarr")
    assert (statuses(run, "training_gradient") == Status.IN_CLOSURE).all()
    assert (statuses(run, "update") == Status.MEASURED).all()
    assert (run["spectra"]["update"].isel(step=-1, index=0) > 0).all()


def test_groups_that_are_clipped_apart_make_one_norm(tmp_path):
    model = small_llama()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    groups = [
        [p for n, p in model.named_parameters() if (".mlp." in n) == inside]
        for inside in (True, False)
    ]
    with spectra.record(model, optimizer, tmp_path / "a.zarr", **EVERYTHING | {"every": 1}):
        batch = random_batch(1)
        model(input_ids=batch, labels=batch).loss.backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()]).item()
        free = {n: p.grad.clone() for n, p in model.named_parameters()}
        for group, limit in zip(groups, (0.01, 0.1), strict=True):
            torch.nn.utils.clip_grad_norm_(group, limit)
        optimizer.step()
    run = spectra.open(tmp_path / "a.zarr")
    assert run["train"].gradient_norm.values[0] == pytest.approx(norm, rel=1e-5)
    assert np.isnan(run["train"].clip_factor.values[0])
    for name in ("model.layers.0.mlp.up_proj", "model.layers.1.self_attn.q_proj"):
        values = run["spectra"].training_gradient.sel(step=1, matrix=name).values
        expected = torch.linalg.svdvals(free[f"{name}.weight"].double())
        np.testing.assert_allclose(values[: len(expected)], expected, rtol=1e-3, atol=1e-7)


def test_a_compiled_optimizer_step_is_recorded(tmp_path):
    model = small_llama()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    compiled = torch.compile(lambda: optimizer.step(), backend="eager")
    with spectra.record(model, optimizer, tmp_path / "a.zarr", **EVERYTHING) as recorder:
        for step in range(4):
            batch = random_batch(step)
            model(input_ids=batch, labels=batch).loss.backward()
            compiled()
            optimizer.zero_grad()
        assert recorder.stopped is None
    assert spectra.open(tmp_path / "a.zarr")["spectra"].step.values.tolist() == [0, 2, 4]


def newer_precision(store):
    """In a process of its own: torch refuses to mix both ways of choosing a precision."""
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    model = small_llama()
    optimizer = torch.optim.AdamW(model.parameters())
    with spectra.record(model, optimizer, store, probe=random_batch(0), every=2) as recorder:
        train(model, optimizer, 2)
    assert recorder.stopped is None, recorder.stopped
    assert torch.backends.cuda.matmul.fp32_precision == "tf32"


def test_precision_chosen_by_the_newer_way_is_put_back(tmp_path):
    process = Forked(newer_precision, tmp_path / "a.zarr")
    _, errors = process.communicate()
    assert process.returncode == 0, errors


def test_torch_is_left_as_it_was_found(tmp_path):
    from torch.nn.utils import clip_grad

    before = clip_grad._clip_grads_with_norm_, torch.nn.utils.clip_grads_with_norm_
    trained(small_llama(), clip=0.1, store=tmp_path / "a.zarr")
    assert (clip_grad._clip_grads_with_norm_, torch.nn.utils.clip_grads_with_norm_) == before


def test_the_probe_is_the_batch_that_was_given_whatever_becomes_of_it(tmp_path):
    model = small_llama()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    probe = random_batch(0)
    with spectra.record(model, optimizer, tmp_path / "a.zarr", probe=probe, every=1):
        train(model, optimizer, 1)
        probe.copy_(random_batch(9))
        train(model, optimizer, 1)
    gradient = spectra.open(tmp_path / "a.zarr")["spectra"].gradient.values
    np.testing.assert_array_equal(gradient[1], gradient[2])


def test_training_gradients_are_read_whole_before_clipping(tmp_path):
    """Of two accumulated passes, whatever clipping does to them afterwards."""
    runs = {"clipped": {"clip": 0.01, "accumulation": 2}, "free": {"accumulation": 1}}
    for name, options in runs.items():
        trained(small_llama(), steps=1, store=tmp_path / f"{name}.zarr", every=1, **options)
    clipped, free = (spectra.open(tmp_path / f"{name}.zarr") for name in runs)
    one, other = (r["spectra"].training_gradient.sel(step=1).values for r in (clipped, free))
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-7)
    model = small_llama()
    batch = random_batch(100)
    model(input_ids=batch, labels=batch).loss.backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()]).item()
    assert clipped["train"].gradient_norm.values[0] == pytest.approx(norm, rel=1e-5)
    assert clipped["train"].clip_factor.values[0] == pytest.approx(0.01 / norm, rel=1e-4)
    for matrix, weight in find_matrices(model)[0].items():
        values = free["spectra"].training_gradient.sel(step=1, matrix=matrix.name).values
        expected = torch.linalg.svdvals(weight.of(weight.parameter.grad).double())
        np.testing.assert_allclose(values[: matrix.full_rank], expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("explicit", [True, False])
@pytest.mark.parametrize("fused", [True, False])
def test_scaled_gradients_are_unscaled_and_skipped_steps_are_no_steps(tmp_path, explicit, fused):
    model = small_llama()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    batch = random_batch(100)
    with spectra.record(model, optimizer, tmp_path / "a.zarr", **EVERYTHING | {"every": 1}) as r:
        for broken in (False, True, False):
            loss = model(input_ids=batch, labels=batch).loss
            scaler.scale(loss * (float("inf") if broken else 1.0)).backward()
            if explicit:
                scaler.unscale_(optimizer)
                torch.nn.utils.clip_grad_norm_(model.parameters(), 0.25)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        assert r.stopped is None
    run = spectra.open(tmp_path / "a.zarr")
    assert run["spectra"].step.values.tolist() == [0, 1, 2]
    plain = small_llama()
    plain(input_ids=batch, labels=batch).loss.backward()
    for matrix, weight in find_matrices(plain)[0].items():
        values = run["spectra"].training_gradient.sel(step=1, matrix=matrix.name).values
        expected = torch.linalg.svdvals(weight.of(weight.parameter.grad).double())
        np.testing.assert_allclose(values[: matrix.full_rank], expected, rtol=1e-3, atol=1e-7)
    if explicit:
        assert (run["train"].clip_factor.values < 1).all()
        assert np.isfinite(run["train"].gradient_norm.values).all()


def test_what_has_no_gradient_is_nan_and_says_why(tmp_path):
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            names = ("used", "unused", "frozen", "tied", "broken")
            self.blocks = torch.nn.ModuleList(
                [torch.nn.ModuleDict({n: torch.nn.Linear(4, 4) for n in names})]
            )
            block = self.blocks[0]
            block["frozen"].weight.requires_grad_(False)
            block["tied"].weight = block["used"].weight

        def forward(self, x, scale=1.0):
            block = self.blocks[0]
            y = block["tied"](block["frozen"](block["used"](x)))
            return y.square().mean() + (block["broken"](x) * scale).mean()

    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    x = torch.ones(2, 4)
    probe = {"x": x, "scale": torch.tensor(torch.inf)}
    with spectra.record(
        model, optimizer, tmp_path / "a.zarr", **EVERYTHING | {"probe": probe, "every": 1}
    ):
        model(x).backward()
        optimizer.step()
    run = spectra.open(tmp_path / "a.zarr")
    names = [f"blocks.0.{n}" for n in ("used", "unused", "frozen", "broken")]
    assert run["spectra"].matrix.values.tolist() == names  # the tied weight is one row
    codes = run["status"].code.isel(step=-1).to_pandas()
    meanings = run["status"].code.attrs["flag_meanings"].split()
    values = run["status"].code.attrs["flag_values"]
    meaning = dict(zip(values, meanings, strict=True))
    said = codes.map(meaning.get)
    assert said.loc["blocks.0.unused", "gradient"] == "independent"
    assert said.loc["blocks.0.unused", "training_gradient"] == "no_gradient"
    assert said.loc["blocks.0.frozen", "training_gradient"] == "frozen"
    assert said.loc["blocks.0.broken", "gradient"] == "not_finite"
    assert said.loc["blocks.0.broken", "sketch"] == "not_finite"
    assert (said["weight"] == "measured").all()
    for kind in ("gradient", "training_gradient"):
        measured = said[kind].to_numpy() == "measured"
        present = np.isfinite(run["spectra"][kind].isel(step=-1, index=0).values)
        assert measured.tolist() == present.tolist()
    first = run["status"].code.isel(step=0).to_pandas().map(meaning.get)
    assert (first["update"] == "first_state").all()
    reasons = run["status"].code.attrs["reasons"]
    assert reasons["frozen"] == "the matrix is not trained"
    assert spectra.verify(tmp_path / "a.zarr").whole


def test_the_pieces_of_a_probe_batch_add_up_to_all_of_it():
    model = small_llama()
    parameters = [weight.parameter for weight in find_matrices(model)[0].values()]
    batch = random_batch(0, windows=5)
    labels = batch.clone()
    labels[0, 3:] = -100
    labels[1] = -100
    probe = {"input_ids": batch, "labels": labels}
    model(**probe).loss.backward()
    for processes in (1, 2, 7):
        shares = [
            probe_gradients(model, probe, parameters, rank=rank, processes=processes)
            for rank in range(processes)
        ]
        for i, parameter in enumerate(parameters):
            total = sum(share[i] for share in shares if share[i] is not None)
            torch.testing.assert_close(total, parameter.grad, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("background", [None, "wait"])
def test_what_float32_cannot_hold_is_missing_with_that_reason(tmp_path, background):
    scales = {"fit": 1.0, "small": 1e-60, "large": 1e60}
    blocks = torch.nn.ModuleList(
        torch.nn.ModuleDict({name: torch.nn.Linear(6, 6, bias=False).double() for name in scales})
        for _ in range(1)
    )
    with torch.no_grad():
        for name, scale in scales.items():
            blocks[0][name].weight.mul_(scale)
    model = torch.nn.Module()
    model.blocks = blocks
    x = torch.ones(3, 6).double()

    def loss(_):
        return sum((scale * blocks[0][name](x)).mean() for name, scale in scales.items())

    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    options = EVERYTHING | {"probe": loss, "every": 1, "background": background}
    with spectra.record(model, optimizer, tmp_path / "a.zarr", **options):
        loss(model).backward()
        optimizer.step()
    assert spectra.verify(tmp_path / "a.zarr").whole
    run = spectra.open(tmp_path / "a.zarr")
    codes = run["status"].code.isel(step=0).to_pandas()
    # directions have no scale; what is handed to another process is float32 before
    lost = ["weight", "gradient", "sketch", "raw_gradient", *(["subspaces"] if background else [])]
    assert (codes.loc["blocks.0.fit", lost] == Status.MEASURED).all()
    assert (codes.loc[["blocks.0.small", "blocks.0.large"], lost] == Status.OUT_OF_RANGE).all(
        axis=None
    )
    values = run["spectra"].weight.isel(step=0).to_numpy()
    assert np.isnan(values).all(axis=1).tolist() == [False, True, True]
    assert not np.isinf(run["sketches"].gradient.to_numpy()).any()
