"""The learning rate: a linear warm-up, then half a cosine."""

import math

import torch
from torch.optim.lr_scheduler import LambdaLR

from spectra_pretrain.options import RunOptions
from spectra_pretrain.ways import OptimizerOptions


def factor(step: int, steps: int, options: OptimizerOptions) -> float:
    """Learning rate in optimizer step `step`, from 0, as a share of its peak.

    It replaces the schedule of transformers, which begins at 0, so that its first step does
    nothing, and does not reach its end in the last step.
    """
    warmup = math.ceil(options.warmup * steps)
    # 1) linear warm-up, above 0 from the first step on
    if step < warmup:
        return (step + 1) / warmup
    # 2) cosine from the peak to its min_lr_ratio, which the last step reaches
    progress = min(1.0, (step - warmup) / max(1, steps - 1 - warmup))
    ratio = options.min_lr_ratio
    return ratio + (1 - ratio) * 0.5 * (1 + math.cos(math.pi * progress))


def scheduled(optimizer: torch.optim.Optimizer, options: RunOptions, step: int) -> LambdaLR:
    """The schedule of an optimizer before a step: every group's rate is its peak times `factor`.

    Parameters
    ----------
    optimizer
        Its groups' ``lr`` are the peaks; after steps, their ``initial_lr``.
    options
        Options of the run.
    step
        Optimizer steps done.
    """
    return LambdaLR(
        optimizer,
        lambda done: factor(done, options.steps, options.optimizer),
        last_epoch=step - 1,
    )
