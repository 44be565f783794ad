"""Knowledge distillation: the teacher's predictions in addition to the text's own next tokens."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from spectra_data.errors import InputError
from spectra_pretrain.batches import Batch
from spectra_pretrain.finetuning.base_model import BaseModel
from spectra_pretrain.finetuning.options import FinetuneOptions


def learnt_from(options: FinetuneOptions, base: BaseModel, device: torch.device) -> "Distillation":
    """The objective of learning from the teacher that the options name.

    Raises
    ------
    InputError
        When the teacher has another vocabulary, or accepts fewer tokens than the run's windows.
    """
    chosen = options.distillation
    teacher = BaseModel(chosen.teacher or "")
    if teacher.tokenizer.get_vocab() != base.tokenizer.get_vocab():
        raise InputError(
            f"the teacher {chosen.teacher} has another tokenizer than {base.address}: its "
            "predictions are of other tokens"
        )
    model = teacher.model().eval().requires_grad_(False)
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if longest is not None and options.batch.seq_len > longest:
        raise InputError(
            f"the teacher accepts {longest} tokens, not --seq-len {options.batch.seq_len}"
        )
    dtype = torch.bfloat16 if options.reduced else torch.float32
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return Distillation(model.to(device), chosen.distill_weight, chosen.temperature)


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
        """Mean loss over the labels that count."""
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        with torch.no_grad():
            taught = self.teacher(**inputs, use_cache=False).logits
        output = forward(**batch, use_cache=False)
        counts = batch["labels"][:, 1:] != -100
        # rows above the tokenizer's tokens are padding, whose number differs by model
        shared = min(output.logits.shape[-1], taught.shape[-1])
        logits, taught = (one[:, :-1, :shared][counts] for one in (output.logits, taught))
        divergence = divergence_of(logits, taught, self.temperature)
        own: torch.Tensor = output.loss
        return (1 - self.weight) * own + self.weight * divergence


def divergence_of(logits: torch.Tensor, taught: torch.Tensor, temperature: float) -> torch.Tensor:
    """T² KL(teacher ‖ student), the mean over tokens, in nats.

    Parameters
    ----------
    logits, taught
        Logits of student and teacher, (tokens, vocabulary).
    temperature
        Temperature T.
    """
    student = F.log_softmax(logits.float() / temperature, dim=-1)
    teacher = F.log_softmax(taught.float() / temperature, dim=-1)
    divergence = F.kl_div(student, teacher, log_target=True, reduction="batchmean")
    return divergence * temperature**2
