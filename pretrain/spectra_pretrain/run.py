"""A pretraining run from its options: corpus, model, optimizer, and what it leaves."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from rich.console import Console

from spectra_data.errors import InputError
from spectra_data.sources import open_source
from spectra_data.tokenizer import TRAIN, load_tokenizer, resolve_tokenizer
from spectra_data.windows import Windows
from spectra_pretrain.batches import WindowBatches, WindowValidation
from spectra_pretrain.checkpoint import appearing, load_model, save_model
from spectra_pretrain.corpus import MANIFEST, Corpus, Text, open_corpus, recorded_tokens
from spectra_pretrain.loop import Training
from spectra_pretrain.machine import (
    checkpoint_activations,
    device_of,
    keep_freed_memory,
    set_attention,
)
from spectra_pretrain.optionfile import to_dict
from spectra_pretrain.options import PretrainOptions
from spectra_pretrain.plan import make_plan, measure, random_windows
from spectra_pretrain.presets import default_vocabulary, model_config
from spectra_pretrain.session import (
    Prepared,
    Summary,
    run,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


def pretrain(options: PretrainOptions, out: Path, *, resume: bool = False) -> Summary:
    """Pretrain, record, and leave a run in `out`; see `spectra_pretrain.session.run`.

    The folder gets spectra.zarr, checkpoints/, model/, pretrain.json, data.json, summary.json.
    """
    return run(Pretraining(options), out, resume=resume)


class Pretraining:
    """A model from its first weights on."""

    command = "pretrain"

    def __init__(self, options: PretrainOptions) -> None:
        self._options = options

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
        model = load_model(latest) if latest else new_model(options, len(tokenizer), tokenizer)
        torch.nn.Module.to(model, device).train()
        set_attention(model, options, device)
        if options.machine.activation_checkpointing:
            checkpoint_activations(model)
        training = new_training(options, model, corpus.train, corpus.validation)
        vocabulary = _vocabulary_line(options, len(tokenizer))
        plan = make_plan(options, model)

        def finish(out: Path) -> Summary:
            with appearing(out / "model") as folder:
                save_model(folder, model, tokenizer)
            return {}

        return Prepared(
            training,
            _probe(options, corpus.validation),
            [
                *plan.lines(options, f"model {options.model}", vocabulary),
                corpus.line(options.tokens),
            ],
            write_checkpoint=lambda folder: save_model(folder, model, tokenizer),
            finish=finish,
            files={MANIFEST: corpus.manifest},
            attrs={"model": options.model},
        )


def dry_run(options: PretrainOptions, *, as_json: bool = False) -> None:
    """Print what the run would be, in words or as one JSON object, and write nothing.

    Raises
    ------
    InputError
        When the run could not be made.
    """
    console = Console()
    open_source(options.corpus.data, options.corpus.text_field)
    given = None if options.corpus.tokenizer == TRAIN else load_tokenizer(options.corpus.tokenizer)
    vocab_size = len(given) if given else _trained_vocabulary(options)
    model = new_model(options, vocab_size, given)
    device = device_of(options.machine.device)
    keep_freed_memory(device)
    set_attention(torch.nn.Module.to(model, device), options, device)
    windows = random_windows(options, vocab_size)
    training = new_training(options, model, windows, windows)
    plan = make_plan(options, model)
    vocabulary = _vocabulary_line(options, vocab_size)
    probe = _probe(options, windows) if options.recorder.wanted else None
    forecast = measure(options, training, probe)
    if as_json:
        figures = asdict(plan) | asdict(forecast) | {"tokens": options.tokens}
        figures |= {"vocabulary": vocabulary}
        print(json.dumps({"options": to_dict(options)} | figures))
        return
    console.print_json(json.dumps(to_dict(options)))
    lines = plan.lines(options, f"model {options.model}", vocabulary) + forecast.lines(options)
    for line in [*lines, "nothing was written (--dry-run)"]:
        console.print(line, highlight=False, soft_wrap=True)


def new_training(
    options: PretrainOptions, model: "PreTrainedModel", train: Windows, validation: Windows
) -> Training:
    """A model before its first step: AdamW on windows of a corpus."""
    chosen = options.optimizer
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=chosen.learning_rate,
        betas=(chosen.beta1, chosen.beta2),
        weight_decay=chosen.weight_decay,
        fused=True,
    )
    return Training(
        options,
        model,
        optimizer,
        WindowBatches(train, options.seed, options.batch.batch_size),
        WindowValidation(validation, options.evaluation.eval_tokens, options.micro_batch_size),
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
        lambda source: resolve_tokenizer(corpus.tokenizer, source, _trained_vocabulary(options)),
        out,
        console,
        recorded=recorded_tokens(out) if latest else None,
        of_run=lambda: load_tokenizer(str(latest)),
    )


def new_model(
    options: PretrainOptions, vocab_size: int, tokenizer: "PreTrainedTokenizerFast | None"
) -> "PreTrainedModel":
    """A model with its first weights, of the seed.

    Raises
    ------
    InputError
        When there is no causal language model of that configuration.
    """
    from transformers import AutoModelForCausalLM

    config = model_config(options.model)
    config.vocab_size = vocab_size
    if options.batch.seq_len > getattr(config, "max_position_embeddings", options.batch.seq_len):
        config.max_position_embeddings = options.batch.seq_len
    if tokenizer is not None:
        config.bos_token_id = tokenizer.bos_token_id
        config.eos_token_id = tokenizer.eos_token_id
    if (config.pad_token_id or 0) >= vocab_size:  # it belonged to another tokenizer
        config.pad_token_id = None
    torch.manual_seed(options.seed)
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    except Exception as error:  # whatever a model's own checks raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"no causal language model of {options.model}: {reason}") from error
    _require_causal(options.model, model)
    model.train()
    return model


@torch.no_grad()
def _require_causal(name: str, model: "PreTrainedModel") -> None:
    """A token's prediction must not see what comes after it."""
    model.eval()
    tokens = torch.zeros(2, 4, dtype=torch.long)
    tokens[1, -1] = 1
    one, other = model(input_ids=tokens, use_cache=False).logits[:, 0]
    if not torch.allclose(one, other, rtol=1e-3, atol=1e-5, equal_nan=True):
        raise InputError(f"no causal language model of {name}: its predictions see later tokens")


def _probe(options: PretrainOptions, windows: Windows) -> torch.Tensor:
    """The first windows of the validation part, which training never sees: (windows, seq_len)."""
    count = min(options.recorder.probe_size, len(windows))
    return torch.from_numpy(windows.read(np.arange(count)))


def _trained_vocabulary(options: PretrainOptions) -> int:
    return options.corpus.vocab_size or default_vocabulary(options.model)


def _vocabulary_line(options: PretrainOptions, vocab_size: int) -> str:
    preset = default_vocabulary(options.model)
    if vocab_size == preset:
        return f"vocabulary {vocab_size:,}"
    return f"vocabulary {vocab_size:,} of the tokenizer in place of {preset:,}"
