"""The recorder as a callback of transformers' Trainer."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers

from spectra.recording.micro_batches import Probe
from spectra.recording.recorder import Recorder
from spectra.recording.start import record


class TrainerCallback(transformers.TrainerCallback):
    """Records a run of `transformers.Trainer`.

    Snapshots count optimizer steps, as the Trainer's global step does; gradients are seen whole,
    after accumulation and before clipping. Resuming from a checkpoint resumes the store. The loss
    stored is the one that the Trainer logs, a mean since its previous log (`logging_steps`).

    Parameters
    ----------
    store
        Path of the store, or an address that fsspec writes to.
    probe
        The fixed batch on which gradients are taken.
    **keywords
        Keywords of `spectra.record`, e.g. ``every=100``.

    Examples
    --------
    >>> trainer = Trainer(
    ...     model, args, callbacks=[spectra.TrainerCallback("runs/a.zarr", probe=batch)]
    ... )  # doctest: +SKIP
    """

    def __init__(self, store: str | Path, *, probe: Probe | None, **keywords: Any) -> None:
        self.recorder: Recorder | None = None
        """The recorder; None before training begins."""
        self._store, self._probe, self._keywords = store, probe, keywords

    def on_train_begin(
        self,
        args: transformers.TrainingArguments,
        state: transformers.TrainerState,
        control: transformers.TrainerControl,
        **kwargs: Any,
    ) -> None:
        resumed = state.global_step > 0
        defaults = {"steps": state.max_steps, "start_step": state.global_step, "resume": resumed}
        self.recorder = record(
            kwargs["model"],
            kwargs["optimizer"],
            self._store,
            probe=self._probe,
            **defaults | self._keywords,
        )

    def on_pre_optimizer_step(
        self,
        args: transformers.TrainingArguments,
        state: transformers.TrainerState,
        control: transformers.TrainerControl,
        **kwargs: Any,
    ) -> None:
        tokens = getattr(state, "num_input_tokens_seen", 0)
        if self.recorder is not None and tokens:
            self.recorder.log(tokens=tokens)

    def on_log(
        self,
        args: transformers.TrainingArguments,
        state: transformers.TrainerState,
        control: transformers.TrainerControl,
        logs: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if self.recorder is not None and logs and "loss" in logs:
            self.recorder.log_last(loss=float(logs["loss"]))

    def on_evaluate(
        self,
        args: transformers.TrainingArguments,
        state: transformers.TrainerState,
        control: transformers.TrainerControl,
        metrics: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if self.recorder is not None and metrics and "eval_loss" in metrics:
            self.recorder.log_validation(float(metrics["eval_loss"]))

    def on_save(
        self,
        args: transformers.TrainingArguments,
        state: transformers.TrainerState,
        control: transformers.TrainerControl,
        **kwargs: Any,
    ) -> None:
        if self.recorder is not None:
            self.recorder.flush()

    def on_train_end(
        self,
        args: transformers.TrainingArguments,
        state: transformers.TrainerState,
        control: transformers.TrainerControl,
        **kwargs: Any,
    ) -> None:
        if self.recorder is not None:
            self.recorder.close()
