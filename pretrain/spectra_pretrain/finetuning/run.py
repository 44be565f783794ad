"""A finetuning run from its options: checkpoint, method, data, and what it leaves."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from spectra.allocation.rankmap import RankMap
from spectra.models.loading import silence_library_bars
from spectra_data.errors import InputError
from spectra_data.sources import open_source
from spectra_pretrain.batches import moved
from spectra_pretrain.corpus import MANIFEST
from spectra_pretrain.finetuning.base import Base, Origin
from spectra_pretrain.finetuning.distillation import learnt_from
from spectra_pretrain.finetuning.headloss import objective_of
from spectra_pretrain.finetuning.material import Data, random_data, read_data, read_task
from spectra_pretrain.finetuning.options import FinetuneOptions
from spectra_pretrain.finetuning.result import ask, write_result
from spectra_pretrain.loop import Objective, Training, own_loss
from spectra_pretrain.machine import (
    checkpoint_activations,
    device_of,
    keep_freed_memory,
    set_attention,
)
from spectra_pretrain.memory import Group, groups_of, table_of, total
from spectra_pretrain.optionfile import to_dict
from spectra_pretrain.plan import make_plan, measure
from spectra_pretrain.session import (
    Prepared,
    Summary,
    read_json,
    run,
)
from spectra_pretrain.trainee import (
    Trainee,
    held_state,
    load_held_state,
    make_trainee,
    optimizer_of,
)

HELD = "trained.safetensors"
BASE = "base.json"


def finetune(options: FinetuneOptions, out: Path, *, resume: bool = False) -> Summary:
    """Finetune, record, and leave a run in `out`; see `spectra_pretrain.session.run`.

    The folder gets spectra.zarr, checkpoints/, model/ or adapter/, finetune.json, data.json,
    summary.json.
    """
    return run(Finetuning(options), out, resume=resume)


class Finetuning:
    """A checkpoint that goes on learning."""

    command = "finetune"

    def __init__(self, options: FinetuneOptions) -> None:
        if not options.checkpoint:
            raise InputError("name the CHECKPOINT to finetune")
        self._options = options

    @property
    def options(self) -> FinetuneOptions:
        """See `spectra_pretrain.session.Job`."""
        return self._options

    def base(self) -> Base:
        """The checkpoint that is finetuned."""
        return Base(self.options.checkpoint, self.options.text.tokenizer)

    def prepare(
        self, latest: Path | None, out: Path, device: torch.device, console: Console
    ) -> Prepared:
        """See `spectra_pretrain.session.Job`."""
        options = self.options
        base = self.base()
        begun = _same_beginning(options, base, out, latest)
        data = read_data(options, base, out, latest, console)
        trainee, groups = prepare_model(options, base, device)
        if latest:
            load_held_state(trainee, _read_held(latest / HELD))
        training = training_of(options, trainee, data, base, device)
        plan = make_plan(options, trainee.model)
        rank_map = base.rank_map

        def finish(out: Path) -> Summary:
            found = _memory(groups)
            if options.task.task is not None:
                found |= ask(options, base, training, data.asked, console)
            write_result(options, base, begun["checkpoint"]["identity"], trainee, out)
            return found

        return Prepared(
            training,
            data.probe,
            [
                *plan.lines(options, f"{options.trained.train} of {_name(options)}", data.about),
                *([] if rank_map is None else [_map_line(rank_map)]),
                table_of(groups),
            ],
            write_checkpoint=lambda folder: save_file(_cpu(held_state(trainee)), folder / HELD),
            finish=finish,
            files={MANIFEST: data.manifest, BASE: begun},
            attrs={
                "model": _name(options),
                "train": options.trained.train,
                **({} if rank_map is None else {"rank_map": rank_map.to_dict()}),
            },
        )


def dry_run(options: FinetuneOptions, *, as_json: bool = False) -> None:
    """Print what the run would be, in words or as one JSON object, and write nothing.

    Raises
    ------
    InputError
        When the run could not be made.
    """
    silence_library_bars()
    console = Console()
    base = Finetuning(options).base()
    task = options.task.task
    data = None if task is None else read_task(options, base, task)
    if data is None:
        open_source(options.text.data, options.text.text_field)
    device = device_of(options.machine.device)
    keep_freed_memory(device)
    trainee, groups = prepare_model(options, base, device)
    data = data or random_data(options, len(base.tokenizer))
    training = training_of(options, trainee, data, base, device)
    plan = make_plan(options, trainee.model)
    forecast = measure(options, training, data.probe if options.recorder.wanted else None)
    if as_json:
        figures = asdict(plan) | asdict(forecast) | {"tokens": None if task else options.tokens}
        figures |= {"groups": [asdict(group) for group in groups]} | _memory(groups)
        print(json.dumps({"options": to_dict(options)} | figures))
        return
    console.print_json(json.dumps(to_dict(options)))
    lines = plan.lines(options, f"{options.trained.train} of {_name(options)}", data.about)
    for line in [
        *lines,
        table_of(groups),
        *forecast.lines(options),
        "nothing was written (--dry-run)",
    ]:
        console.print(line, highlight=False, soft_wrap=True)


def prepare_model(
    options: FinetuneOptions, base: Base, device: torch.device
) -> tuple[Trainee, list[Group]]:
    """The checkpoint's model, ready to be trained on a device, with its parameters counted.

    Raises
    ------
    InputError
        When the checkpoint does not fit what is asked.
    """
    model = base.model()
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if longest is not None and options.batch.seq_len > longest:
        raise InputError(f"the model takes {longest} tokens, not --seq-len {options.batch.seq_len}")
    rows = model.get_input_embeddings().weight.shape[0]
    if len(base.tokenizer) > rows:
        raise InputError(
            f"the tokenizer has {len(base.tokenizer):,} tokens, the model {rows:,}: name another "
            "--tokenizer"
        )
    trainee = make_trainee(options, model, base.rank_map)
    torch.nn.Module.to(trainee.model, device).train()
    set_attention(model, options, device)
    if options.precision == "bfloat16":
        # the stream of residuals is float32, as it is where embeddings are masters
        model.get_input_embeddings().register_forward_hook(lambda module, inputs, out: out.float())
    if options.machine.activation_checkpointing:
        model.enable_input_require_grads()
        checkpoint_activations(model)
    torch.manual_seed(options.seed)  # for what steps draw: dropout, rounding, projections
    galore = options.trained.galore_rank if options.trained.train == "galore" else None
    return trainee, groups_of(trainee.model, trainee.kinds, galore_rank=galore)


def training_of(
    options: FinetuneOptions, trainee: Trainee, data: Data, base: Base, device: torch.device
) -> Training:
    """A model before its first step, with the objective and the optimizer that are asked for."""
    if options.distillation.teacher is not None:
        objective: Objective = learnt_from(options, base, device)
    elif options.machine.compile:
        objective = own_loss
    else:
        reduced = options.precision == "bfloat16"
        autocast = torch.autocast(device.type, torch.bfloat16, enabled=reduced)
        objective = objective_of(trainee.model, moved(data.probe, device), autocast)
    return Training(
        options,
        trainee.model,
        optimizer_of(options, trainee),
        data.train,
        data.validation,
        objective=objective,
        method=trainee.method,
        from_checkpoint=True,
    )


def _same_beginning(
    options: FinetuneOptions, base: Base, out: Path, latest: Path | None
) -> dict[str, Any]:
    """What the options name by an address, which must be what the run began with."""
    begun = (read_json(out / BASE) if latest else None) or {}
    addresses = {"checkpoint": base.address, "teacher": options.distillation.teacher}
    found: dict[str, Any] = {}
    differing = []
    for name, address in addresses.items():
        if address is not None:
            before = Origin(**begun[name]) if name in begun else None
            origin = Origin.of(address, before)
            found[name] = asdict(origin)
            differing += [f"the {name} {address}"] if before and not origin.is_same(before) else []
    if options.trained.train.endswith(".json"):
        found["configuration"] = read_json(Path(options.trained.train))
        if begun and begun.get("configuration") != found["configuration"]:
            differing.append(options.trained.train)
    if differing:
        raise InputError(
            f"{differing[0]} is no longer what {out} began with: put it back, or begin anew in "
            "another --out"
        )
    return found


def _read_held(file: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(file)
    except Exception as error:  # of the disk or of safetensors
        raise InputError(f"{file} cannot be read ({error}): remove {file.parent}") from error


def _memory(groups: list[Group]) -> Summary:
    trained, frozen = total(groups, trained=True), total(groups, trained=False)
    return {
        "trained_parameters": trained.parameters,
        "parameters": trained.parameters + frozen.parameters,
        "weight_bytes": trained.weight_bytes + frozen.weight_bytes,
        "gradient_bytes": trained.gradient_bytes,
        "optimizer_bytes": trained.optimizer_bytes,
    }


def _map_line(rank_map: RankMap) -> str:
    lrc, nlrc = len(rank_map.lrc), len(rank_map.nlrc)
    return (
        f"rank map by {rank_map.method}: {lrc} LRCs, {nlrc} N-LRCs, ERR {rank_map.err:.1%}, "
        f"{rank_map.budget:.1%} of the block parameters, as {rank_map.storage}"
    )


def _name(options: FinetuneOptions) -> str:
    return Path(options.checkpoint).name


def _cpu(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
