"""Knowledge distillation: the teacher's predictions beside the text's own next tokens."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from pretrain.batches import Batch


@dataclass(frozen=True, eq=False)
class Distillation:
    """An objective: (1 - weight) cross-entropy + weight T² KL(teacher ‖ student) at temperature T.

    Source: Hinton et al. 2015, "Distilling the Knowledge in a Neural Network".
    """

    teacher: Any
    """A model with the same vocabulary, frozen."""
    weight: float
    temperature: float

    def __call__(self, forward: Callable[..., Any], batch: Batch) -> torch.Tensor:
        """The mean over the labels that count."""
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        with torch.no_grad():
            taught = self.teacher(**inputs, use_cache=False).logits
        output = forward(**batch, use_cache=False)
        counts = batch["labels"][:, 1:] != -100
        divergence = divergence_of(
            output.logits[:, :-1][counts], taught[:, :-1][counts], self.temperature
        )
        own: torch.Tensor = output.loss
        return (1 - self.weight) * own + self.weight * divergence


def divergence_of(logits: torch.Tensor, taught: torch.Tensor, temperature: float) -> torch.Tensor:
    """T² KL(teacher ‖ student), the mean over tokens, in nats.

    Parameters
    ----------
    logits, taught
        Of student and teacher, (tokens, vocabulary).
    temperature
        T.
    """
    student = F.log_softmax(logits.float() / temperature, dim=-1)
    teacher = F.log_softmax(taught.float() / temperature, dim=-1)
    divergence = F.kl_div(student, teacher, log_target=True, reduction="batchmean")
    return divergence * temperature**2
