"""A way of training is two choices: what is trained, and how it is optimised."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

import tyro

from spectra.keywords import Share
from spectra_pretrain.optimizers.registry import OPTIMIZERS
from spectra_pretrain.parametrizations.registry import DENSE, PARAMETRIZATIONS, PEFT
from spectra_pretrain.settings import Check, Settings

SELECTIONS = {
    "full": "everything",
    "lrc": "low-rank components alone, by the rank map",
    "nlrc": "the other matrices alone",
}
"""Selections of a model's own layers that `--train` names."""
SHORT_FORMS = {"galore": ("full", "galore")}
"""Names in the paper that stand for a `--train` and an `--optimizer`."""
ADAPTERS = {
    name: entry.summary
    for name, entry in PARAMETRIZATIONS.entries.items()
    if name not in (DENSE, PEFT)
}
"""Parametrizations that `--train` names, each with a line."""
USUAL = ("adamw", DENSE, PEFT)
"""Choices without options of their own."""


def _listed(named: Mapping[str, str]) -> str:
    return "; ".join(f"{name}: {what}" for name, what in named.items())


@dataclass(frozen=True)
class OptimizerOptions:
    """Optimizer, with warm-up and cosine decay of the learning rate."""

    optimizer: Annotated[
        str,
        tyro.conf.arg(
            metavar=f"{{{','.join(OPTIMIZERS)}}}",
            help=f"Name of the optimizer. {OPTIMIZERS.help()}. Its own options are in the help "
            "once it is named.",
        ),
    ] = "adamw"
    learning_rate: float = 1e-3
    """Peak learning rate."""
    min_lr_ratio: Share = 0.1
    """Final learning rate as a fraction of the peak."""
    warmup: Share = 0.1
    """Share of the steps in which the learning rate rises to its peak."""
    beta1: float = 0.9
    """Decay of the first moment."""
    beta2: float = 0.999
    """Decay of the second moment."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    clip: float = 1.0
    """Norm to which larger gradients are scaled down; 0 turns clipping off."""

    @property
    def adamw(self) -> dict[str, Any]:
        """Arguments of AdamW."""
        return {
            "lr": self.learning_rate,
            "betas": (self.beta1, self.beta2),
            "weight_decay": self.weight_decay,
        }


@dataclass(frozen=True)
class TrainedOptions:
    """Parameters to train, and their precision."""

    train: Annotated[
        str,
        tyro.conf.arg(
            metavar=f"{{{','.join((*SELECTIONS, *ADAPTERS))},FILE.json}}",
            help=f"Parameters to train. {_listed(SELECTIONS)}; {_listed(ADAPTERS)}; FILE.json: "
            "adapters of a peft configuration with its peft_type (AdaLoRA, PiSSA, OLoRA, RandLoRA, "
            "MiSS, OSF and others). galore is short for full with --optimizer galore.",
        ),
    ] = "lrc"
    norms: Literal["auto", "train", "freeze"] = "auto"
    """Treatment of the norms with lrc and nlrc; auto trains them, as the paper's code does.
    Adapters always freeze them, full always trains them."""
    masters: Literal["float32", "bfloat16"] = "float32"
    """Precision of trained weights and their gradients; moments are float32.
    bfloat16 needs half of that memory, and rounds every update stochastically."""
    map: str | None = None
    """Rank map that says which matrices are LRCs; by default the checkpoint's own."""

    @property
    def parametrization(self) -> str:
        """Name of the parametrization of its layers."""
        if self.train in SELECTIONS:
            return DENSE
        return PEFT if self.train.endswith(".json") else self.train

    @property
    def adapts(self) -> bool:
        """Whether layers are replaced."""
        return self.parametrization != DENSE

    @property
    def needs_map(self) -> bool:
        """Whether a rank map must say which matrices are LRCs."""
        return self.train in ("lrc", "nlrc")

    def checks(self) -> list[Check]:
        """Checks of these options."""
        names = (*SELECTIONS, *SHORT_FORMS, *ADAPTERS)
        return [
            (
                self.train not in names and not self.train.endswith(".json"),
                f"--train is one of {', '.join(names)}, or a peft configuration FILE.json, not "
                f"{self.train!r}",
            ),
            (
                self.adapts and self.norms == "train",
                "adapters freeze the norms: leave out --norms train",
            ),
            (
                self.train == "full" and self.norms == "freeze",
                "--train full trains everything: leave out --norms freeze",
            ),
            (
                self.map is not None and not self.needs_map,
                "--map goes with --train lrc or nlrc: leave it out",
            ),
        ]


def settings_of(optimizer: Any, train: Any) -> dict[str, type[Settings]]:
    """Option classes of an optimizer and a parametrization, by the fields of a run's options.

    The class of an unknown name has no options.
    """
    if train in SHORT_FORMS:
        train, optimizer = SHORT_FORMS[train]
    return {
        "optimizer_settings": _settings(OPTIMIZERS, optimizer),
        "layer_settings": _settings(PARAMETRIZATIONS, train),
    }


def owner_of(name: str) -> str | None:
    """The choice that an option belongs to, as on the command line; None if there is none.

    Examples
    --------
    >>> owner_of("lora_rank")
    '--train lora or dora'
    """
    for option, registry in (("--optimizer", OPTIMIZERS), ("--train", PARAMETRIZATIONS)):
        if not any(name.startswith(f"{kind}_") for kind in registry):  # see Settings
            continue
        owners = [
            kind for kind in registry if name in {f.name for f in fields(_settings(registry, kind))}
        ]
        if owners:
            return f"{option} {' or '.join(owners)}"
    return None


def _settings(registry: Any, name: Any) -> type[Settings]:
    if name in USUAL or name not in registry:  # without importing what is not used
        return Settings
    found: type[Settings] = registry[name].settings
    return found
