"""The learning rate: a linear warm-up, then half a cosine."""

import math

from spectra_pretrain.options import OptimizerOptions


def learning_rate(step: int, steps: int, options: OptimizerOptions) -> float:
    """Learning rate of optimizer step number `step`, from 0 to `steps` - 1."""
    warmup = math.ceil(options.warmup * steps)
    # 1) linear warm-up, above 0 from the first step on
    if step < warmup:
        return options.learning_rate * (step + 1) / warmup
    # 2) cosine from the peak to its min_lr_ratio, which the last step reaches
    progress = (step - warmup) / max(1, steps - 1 - warmup)
    ratio = options.min_lr_ratio
    return options.learning_rate * (ratio + (1 - ratio) * 0.5 * (1 + math.cos(math.pi * progress)))
