"""A finetuning run from its options: checkpoint, method, data, and results."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from spectra.allocation.rankmap import RankMap
from spectra.machine.devices import device_of
from spectra.models.source import Source
from spectra_data.errors import InputError
from spectra_data.sources import open_source
from spectra_pretrain.corpus import MANIFEST
from spectra_pretrain.finetuning.base_model import BaseModel, Origin
from spectra_pretrain.finetuning.data import random_data, read_data, read_task
from spectra_pretrain.finetuning.distillation import learnt_from
from spectra_pretrain.finetuning.options import FinetuneOptions
from spectra_pretrain.finetuning.result import ask, write_result
from spectra_pretrain.loop import Training
from spectra_pretrain.machine import chosen
from spectra_pretrain.memory import sizes, table_of
from spectra_pretrain.plan import make_plan
from spectra_pretrain.preparation import (
    Data,
    prepare_trainee,
    read_held,
    training_of,
    write_held,
)
from spectra_pretrain.rehearsal import Draft
from spectra_pretrain.session import (
    Prepared,
    Summary,
    read_json,
    run,
    settled,
)
from spectra_pretrain.trainee import Trainee

BASE = "base.json"


def finetune(options: FinetuneOptions, out: Path, *, resume: bool = False) -> Summary:
    """Finetune and record a run in `out`; see `spectra_pretrain.session.run`.

    The folder gets spectra.zarr, checkpoints/, model/ or adapter/, finetune.json, data.json,
    summary.json.
    """
    options = settled(options, Finetuning.command, out) if resume else options
    return run(Finetuning(options), out, resume=resume)


class Finetuning:
    """The training of a checkpoint."""

    command = "finetune"

    def __init__(self, options: FinetuneOptions) -> None:
        if not options.checkpoint:
            raise InputError("name the CHECKPOINT to finetune")
        self._options = chosen(options, device_of(options.machine.device))

    @property
    def options(self) -> FinetuneOptions:
        """See `spectra_pretrain.session.Job`."""
        return self._options

    def base(self) -> BaseModel:
        """The checkpoint that is finetuned."""
        return BaseModel(self.options.checkpoint, self.options.text.tokenizer)

    def prepare(
        self, latest: Path | None, out: Path, device: torch.device, console: Console
    ) -> Prepared:
        """See `spectra_pretrain.session.Job`."""
        options = self.options
        base = self.base()
        begun = _same_beginning(options, base, out, latest)
        data = read_data(options, base, out, latest, console)
        trainee = trainee_of(options, base, device)
        if latest:
            read_held(trainee, latest)
        training = self._training(base, trainee, data, device)
        plan = make_plan(options, trainee.model)
        groups = trainee.groups(options)
        rank_map = base.rank_map

        def finish(out: Path) -> Summary:
            found: Summary = dict(sizes(groups))
            if options.task.task is not None:
                found |= ask(options, base, training, data.test_questions, console)
            write_result(options, base, begun["checkpoint"]["identity"], trainee, out)
            return found

        return Prepared(
            training,
            data.probe,
            options,
            [
                *plan.lines(options, _title(options), data.about),
                *([] if rank_map is None else [_map_line(rank_map)]),
                table_of(groups),
            ],
            write_checkpoint=lambda folder: write_held(trainee, folder),
            finish=finish,
            files={MANIFEST: data.manifest, BASE: begun},
            attrs={
                "model": _name(options),
                "train": options.trained.train,
                "optimizer": options.optimizer.optimizer,
                **({} if rank_map is None else {"rank_map": rank_map.to_dict()}),
            },
        )

    def draft(self, device: torch.device) -> Draft:
        """See `spectra_pretrain.rehearsal.Drafted`."""
        options = self.options
        base = self.base()
        task = options.task.task
        data = None if task is None else read_task(options, base, task)
        if data is None:
            open_source(options.text.data, options.text.text_field)
        trainee = trainee_of(options, base, device)
        data = data or random_data(options, len(base.tokenizer))
        return Draft(
            options,
            _title(options),
            data.about,
            trainee,
            self._training(base, trainee, data, device),
            data.probe,
            {"tokens": None if task else options.tokens},
        )

    def _training(
        self, base: BaseModel, trainee: Trainee, data: Data, device: torch.device
    ) -> Training:
        has_teacher = self.options.distillation.teacher is not None
        objective = learnt_from(self.options, base, device) if has_teacher else None
        return training_of(
            self.options, trainee, data, device, objective=objective, from_checkpoint=True
        )


def trainee_of(options: FinetuneOptions, base: BaseModel, device: torch.device) -> Trainee:
    """The checkpoint's model, ready to be trained on a device.

    Raises
    ------
    InputError
        When the checkpoint does not fit the options.
    """
    model = base.model()
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if longest is not None and options.batch.seq_len > longest:
        raise InputError(
            f"the model accepts {longest} tokens, not --seq-len {options.batch.seq_len}"
        )
    rows = model.get_input_embeddings().weight.shape[0]
    if len(base.tokenizer) > rows:
        raise InputError(
            f"the tokenizer has {len(base.tokenizer):,} tokens, the model {rows:,}: name another "
            "--tokenizer"
        )
    return prepare_trainee(options, model, base.rank_map, device)


def _same_beginning(
    options: FinetuneOptions, base: BaseModel, out: Path, latest: Path | None
) -> dict[str, Any]:
    """Identities of what the options name by address, which must be those of the run's start."""
    begun = (read_json(out / BASE) if latest else None) or {}
    teacher = options.distillation.teacher
    sources = {"checkpoint": base.source, "teacher": Source(teacher) if teacher else None}
    found: dict[str, Any] = {}
    differing = []
    for name, source in sources.items():
        if source is not None:
            before = Origin(**begun[name]) if name in begun else None
            origin = Origin.of(source, before)
            found[name] = asdict(origin)
            differing += [f"the {name} {source}"] if before and not origin.is_same(before) else []
    if options.trained.train.endswith(".json"):
        found["configuration"] = read_json(Path(options.trained.train))
        if begun and begun.get("configuration") != found["configuration"]:
            differing.append(options.trained.train)
    if differing:
        raise InputError(
            f"{differing[0]} is no longer what {out} started with: restore it, or start a new run "
            "in another --out"
        )
    return found


def _map_line(rank_map: RankMap) -> str:
    lrc, nlrc = len(rank_map.lrc), len(rank_map.nlrc)
    return (
        f"rank map by {rank_map.method}: {lrc} LRCs, {nlrc} N-LRCs, ERR {rank_map.err:.1%}, "
        f"{rank_map.budget:.1%} of the block parameters, as {rank_map.storage}"
    )


def _title(options: FinetuneOptions) -> str:
    optimizer = options.optimizer.optimizer
    update = "" if optimizer == "adamw" else f" by {optimizer}"
    return f"{options.trained.train}{update} of {_name(options)}"


def _name(options: FinetuneOptions) -> str:
    return Path(options.checkpoint).name
