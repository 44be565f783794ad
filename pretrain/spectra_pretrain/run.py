"""A pretraining run from its options: corpus, model, optimizer, and results."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from rich.console import Console

from spectra.machine.devices import device_of
from spectra_data.errors import InputError
from spectra_data.sources import open_source
from spectra_data.tokenizer import (
    TRAIN,
    FittedVocabulary,
    expected_characters,
    load_tokenizer,
    resolve_tokenizer,
)
from spectra_data.windows import Windows
from spectra_pretrain.batches import WindowBatches, WindowValidation
from spectra_pretrain.checkpoint import appearing, load_model, save_model
from spectra_pretrain.corpus import MANIFEST, Corpus, Text, open_corpus, recorded_tokens
from spectra_pretrain.machine import chosen
from spectra_pretrain.memory import sizes, table_of
from spectra_pretrain.options import PretrainOptions
from spectra_pretrain.plan import make_plan, random_windows
from spectra_pretrain.preparation import (
    Data,
    prepare_trainee,
    read_held,
    training_of,
    write_held,
)
from spectra_pretrain.presets import model_config, model_of
from spectra_pretrain.rehearsal import Draft
from spectra_pretrain.session import Prepared, Summary, run, settled
from spectra_pretrain.vocabulary import trained_vocabulary, vocabulary_line

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


def pretrain(options: PretrainOptions, out: Path, *, resume: bool = False) -> Summary:
    """Pretrain and record a run in `out`; see `spectra_pretrain.session.run`.

    The folder gets spectra.zarr, checkpoints/, model/, pretrain.json, data.json, summary.json.
    """
    options = settled(options, Pretraining.command, out) if resume else options
    return run(Pretraining(options), out, resume=resume)


class Pretraining:
    """The training of a new model."""

    command = "pretrain"

    def __init__(self, options: PretrainOptions) -> None:
        self._options = chosen(options, device_of(options.machine.device))

    @property
    def options(self) -> PretrainOptions:
        """See `spectra_pretrain.session.Job`."""
        return self._options

    def prepare(
        self, latest: Path | None, out: Path, device: torch.device, console: Console
    ) -> Prepared:
        """See `spectra_pretrain.session.Job`."""
        options = self.options
        corpus = _open_corpus(options, latest, out, console)
        tokenizer = corpus.tokenizer
        vocabulary = vocabulary_line(options, len(tokenizer))
        options = options.with_fitted_vocabulary(len(tokenizer))
        adapts = options.trained.adapts
        if latest and not adapts:
            model = load_model(latest)
        else:
            model = new_model(options, len(tokenizer), tokenizer)
        trainee = prepare_trainee(options, model, None, device)
        if latest and adapts:
            read_held(trainee, latest)
        data = _data(options, corpus.train, corpus.validation, corpus.manifest)
        training = training_of(options, trainee, data, device)
        plan = make_plan(options, trainee.model)
        groups = trainee.groups(options)

        def write_checkpoint(folder: Path) -> None:
            if adapts:
                write_held(trainee, folder)
                tokenizer.save_pretrained(folder)
            else:
                save_model(folder, model, tokenizer)

        def finish(out: Path) -> Summary:
            with appearing(out / "model") as folder:
                save_model(folder, trainee.layers.merged(), tokenizer)
            return dict(sizes(groups))

        return Prepared(
            training,
            data.probe,
            options,
            [
                *plan.lines(options, _title(options), vocabulary),
                corpus.line(options.tokens),
                table_of(groups),
            ],
            write_checkpoint=write_checkpoint,
            finish=finish,
            files={MANIFEST: corpus.manifest},
            attrs={
                "model": options.model,
                "train": options.trained.train,
                "optimizer": options.optimizer.optimizer,
            },
        )

    def draft(self, device: torch.device) -> Draft:
        """See `spectra_pretrain.rehearsal.Drafted`."""
        options = self.options
        corpus = options.corpus
        source = open_source(corpus.data, corpus.text_field)
        given = None if corpus.tokenizer == TRAIN else load_tokenizer(corpus.tokenizer)
        size = len(given) if given else trained_vocabulary(options)
        if isinstance(size, FittedVocabulary):
            size = size.size(expected_characters(source))
        vocabulary = vocabulary_line(options, size)
        options = options.with_fitted_vocabulary(size)
        windows = random_windows(options, size)
        data = _data(options, windows, windows, {})
        trainee = prepare_trainee(options, new_model(options, size, given), None, device)
        return Draft(
            options,
            _title(options),
            vocabulary,
            trainee,
            training_of(options, trainee, data, device),
            data.probe,
            {"tokens": options.tokens, "vocabulary": vocabulary},
        )


def _data(
    options: PretrainOptions, train: Windows, validation: Windows, manifest: dict[str, Any]
) -> Data:
    """Windows of a corpus, in batches.

    The probe is the first windows of the validation part, which training never sees.
    """
    count = min(options.recorder.probe_size, len(validation))
    return Data(
        WindowBatches(train, options.seed, options.batch.batch_size),
        WindowValidation(validation, options.evaluation.eval_tokens, options.micro_batch_size),
        torch.from_numpy(validation.read(np.arange(count))),
        "",
        manifest,
    )


def _open_corpus(
    options: PretrainOptions, latest: Path | None, out: Path, console: Console
) -> Corpus:
    corpus = options.corpus
    return open_corpus(
        Text(
            corpus.data,
            corpus.text_field,
            corpus.validation_fraction,
            corpus.max_tokens,
            options.tokens,
            options.batch.seq_len,
        ),
        lambda source: resolve_tokenizer(corpus.tokenizer, source, trained_vocabulary(options)),
        out,
        console,
        recorded=recorded_tokens(out) if latest else None,
        of_run=lambda: load_tokenizer(str(latest)),
    )


def new_model(
    options: PretrainOptions, vocab_size: int, tokenizer: "PreTrainedTokenizerFast | None"
) -> "PreTrainedModel":
    """A model with initial weights that are drawn from the seed.

    Raises
    ------
    InputError
        When no causal language model has that configuration.
    """
    config = model_config(options.model)
    config.vocab_size = vocab_size
    if options.batch.seq_len > getattr(config, "max_position_embeddings", options.batch.seq_len):
        config.max_position_embeddings = options.batch.seq_len
    if tokenizer is not None:
        config.bos_token_id = tokenizer.bos_token_id
        config.eos_token_id = tokenizer.eos_token_id
    if (config.pad_token_id or 0) >= vocab_size:  # it belongs to another tokenizer
        config.pad_token_id = None
    torch.manual_seed(options.seed)
    model = model_of(options.model, config)
    _require_causal(options.model, model)
    model.train()
    return model


@torch.no_grad()
def _require_causal(name: str, model: "PreTrainedModel") -> None:
    """Require that the predictions at a token do not depend on later tokens."""
    model.eval()
    tokens = torch.zeros(2, 4, dtype=torch.long)
    tokens[1, -1] = 1
    one, other = model(input_ids=tokens, use_cache=False).logits[:, 0]
    if not torch.allclose(one, other, rtol=1e-3, atol=1e-5, equal_nan=True):
        raise InputError(f"no causal language model of {name}: its predictions see later tokens")


def _title(options: PretrainOptions) -> str:
    train, optimizer = options.trained.train, options.optimizer.optimizer
    selection = "" if train == "full" else f", {train} alone"
    update = "" if optimizer == "adamw" else f", by {optimizer}"
    return f"model {options.model}{selection}{update}"
