"""Adapters of `peft` over a checkpoint's linear layers, low-rank ones included.

A low-rank layer is adapted as the two linear layers that it is made of, so that every method of
`peft` applies, and merging makes a layer of the same rank.
"""

import copy
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from spectra.checkpoint.digests import digest
from spectra.keywords import Share
from spectra.matrices import Matrix, Weight, find_matrices, layer_of
from spectra.models.adapter import require_peft, save_changed, save_peft
from spectra.models.pairs import chosen, linear_layers, pair, unpair
from spectra_data.errors import InputError, first_line
from spectra_data.reading import read_json
from spectra_pretrain.parametrizations.registry import ParametrizationKind
from spectra_pretrain.precision import set_precision
from spectra_pretrain.settings import Check, Settings

if TYPE_CHECKING:
    from spectra_pretrain.options import RunOptions

APPLIED = ("exclude_modules", "layers_to_transform", "layers_pattern")
PATTERNS = ("rank_pattern", "alpha_pattern")
NOT_LINEAR = ("ADAPTION_PROMPT", "LN_TUNING", "TRAINABLE_TOKENS")
INITS_OF_DATA = ("eva", "corda", "lora_ga")
"""Initialisations that would be ordinary LoRA without data."""


@dataclass(frozen=True)
class LoraSettings(Settings):
    """Options of LoRA and DoRA alone."""

    lora_rank: int = 16
    """Rank of the adapters."""
    lora_alpha: float = 32.0
    """Numerator of the adapters' scale: their output is multiplied by alpha / rank."""
    lora_dropout: Share = 0.0
    """Share of the adapters' inputs that are dropped."""

    def checks(self) -> list[Check]:
        """See `Settings`."""
        return [
            (self.lora_rank < 1, f"--lora-rank is at least 1, not {self.lora_rank}"),
            (not self.lora_alpha > 0, f"--lora-alpha is above 0, not {self.lora_alpha}"),
            (
                not 0 <= self.lora_dropout < 1,
                f"--lora-dropout is from 0 up to 1, not {self.lora_dropout}",
            ),
        ]


class AdaptedLayers:
    """A model in which only adapters are trained.

    Raises
    ------
    InputError
        When `peft` is missing, or cannot put these adapters into this model.
    """

    def __init__(self, model: Any, options: "RunOptions") -> None:
        peft = require_peft()
        pair(model)
        layers = linear_layers(model)
        try:
            config = _config(peft, options, layers)
        except (TypeError, AttributeError, re.error) as error:
            reason = first_line(error)
            raise InputError(
                f"{options.trained.train} is not a peft configuration: {reason}"
            ) from error
        model.requires_grad_(False)
        targets = [model.get_submodule(name) for name in config.target_modules]
        for target in targets:  # methods compute with these weights in float32
            target.weight.data = target.weight.data.float()
        weights = {name: model.get_submodule(name).weight for name in config.target_modules}
        before = {name: digest(weight) for name, weight in weights.items()}
        torch.manual_seed(options.seed)
        try:
            wrapped = peft.get_peft_model(model, config)
        except Exception as error:  # many kinds, by method
            raise InputError(f"peft cannot adapt this model: {first_line(error)}") from error
        if not any(p.requires_grad for p in wrapped.parameters()):
            raise InputError(f"{config.peft_type.value} trains nothing of this model")
        _require_mergeable(peft, wrapped, config)
        rewritten = _rewritten(wrapped, weights, before)
        set_precision(wrapped, options)
        for weight in rewritten.values():
            weight.data = weight.data.float()
        trained = [name for name, p in wrapped.named_parameters() if p.requires_grad]
        self._is_plain = config.peft_type.value == "LORA" and not rewritten
        if not self._is_plain:
            _require_weights_alone(config)
        self._names = list(weights)
        self._ranks = RankAllocation(wrapped) if config.peft_type.value == "ADALORA" else None
        self.model = wrapped
        self.kept = (*trained, *rewritten)

    def weights(self) -> Mapping[Matrix, Weight]:
        """See `Parametrized`."""
        return find_matrices(self.model)[0]

    def after_step(self, step: int, /) -> None:
        """See `Parametrized`."""
        if self._ranks is not None:
            self._ranks.after_step(step)

    def state(self) -> dict[str, Any]:
        """See `Parametrized`."""
        return {} if self._ranks is None else self._ranks.state()

    def load_state(self, state: dict[str, Any], /) -> None:
        """See `Parametrized`."""
        if self._ranks is not None:
            self._ranks.load_state(state)

    def save(self, folder: Path, base: str, identity: str, /) -> None:
        """See `Parametrized`."""
        if self._is_plain:
            save_peft(folder, base, identity, self.model)
            return
        # what peft writes for other methods does not always load again
        model, changed = self._unloaded()
        tensors = {n: p.detach() for n, p in model.named_parameters() if id(p) in changed}
        save_changed(folder, base, identity, tensors)

    def merged(self) -> Any:
        """See `Parametrized`."""
        return self._unloaded()[0]

    def _unloaded(self) -> tuple[Any, set[int]]:
        """The model with merged adapters, and the identities of the weights that hold them now."""
        for parameter in self.model.parameters():
            if parameter.ndim > 1 and parameter.is_floating_point():
                parameter.data = parameter.data.float()
        base = self.model.merge_and_unload()
        changed = {id(base.get_submodule(name).weight) for name in self._names}
        unpair(base)
        return base, changed


def apply(model: Any, options: "RunOptions", kinds: Mapping[int, str]) -> AdaptedLayers:
    """Put adapters into a model; see `AdaptedLayers`."""
    return AdaptedLayers(model, options)


def _config(peft: Any, options: "RunOptions", layers: dict[str, str]) -> Any:
    """The configuration of `peft`, with full names of linear layers as targets."""
    trained, settings = options.trained, options.layer_settings
    if isinstance(settings, LoraSettings):
        fields: dict[str, Any] = {
            "peft_type": "LORA",
            "r": settings.lora_rank,
            "lora_alpha": settings.lora_alpha,
            "lora_dropout": settings.lora_dropout,
            "use_dora": trained.parametrization == "dora",
        }
    else:
        fields = _read(Path(trained.train))
    targets = fields.get("target_modules") or "all-linear"
    names = list(layers) if targets == "all-linear" else chosen(layers, targets)
    # full names override peft's other filters, so these are applied here
    if excluded := fields.get("exclude_modules"):
        names = [name for name in names if name not in chosen(layers, excluded)]
    if (kept := fields.get("layers_to_transform")) is not None:
        kept = [kept] if isinstance(kept, int) else list(kept)
        names = [name for name in names if layer_of(name) in kept]
    fields = {k: v for k, v in fields.items() if k not in APPLIED}
    if forward := fields.get("feedforward_modules"):
        fields["feedforward_modules"] = [n for n in chosen(layers, forward) if n in names]
    if not layers:
        raise InputError("adapters need linear layers in the blocks, and this model has none")
    if not names:
        raise InputError(
            f"target_modules {targets!r} match no linear layer; names are like {next(iter(layers))}"
        )
    own = {"target_modules": names, "task_type": "CAUSAL_LM", "inference_mode": False}
    fields = fields | own
    for key in PATTERNS:
        if fields.get(key):
            fields[key] = _of_parts(key, fields[key], layers, names)
    if fields["peft_type"] == "ADALORA":
        fields = {"total_step": options.steps} | fields
    try:
        config = peft.PeftConfig.from_peft_type(**fields)
    except Exception as error:  # many kinds, by method
        raise InputError(
            f"{trained.train} is not a peft configuration: {first_line(error)}"
        ) from error
    if config.is_prompt_learning:
        raise InputError(
            f"{config.peft_type.value} trains prompts, which a checkpoint cannot hold: choose "
            "adapters of weights"
        )
    if config.peft_type.value in NOT_LINEAR:
        raise InputError(
            f"{config.peft_type.value} trains no linear layers: choose adapters of these, or "
            "another --train"
        )
    if (init := getattr(config, "init_lora_weights", None)) in INITS_OF_DATA:
        raise InputError(
            f"init_lora_weights {init!r} needs data, which is not supported here: choose another, "
            "e.g. pissa or olora"
        )
    config.target_modules = set(names)  # peft shortens long lists; ours are exact
    return config


def _require_mergeable(peft: Any, wrapped: Any, config: Any) -> None:
    """Require that what is trained can be saved at the end, by trying it on a copy of one layer."""
    layer: Any = peft.tuners.tuners_utils.BaseTunerLayer
    adapted_layers = [module for module in wrapped.modules() if isinstance(module, layer)]
    refusal = (
        f"adapters of {config.peft_type.value} cannot be merged into this model, so no checkpoint "
        "could be written"
    )
    if not hasattr(wrapped.base_model, "merge_and_unload") or not adapted_layers:
        raise InputError(refusal)
    smallest = min(adapted_layers, key=lambda one: one.get_base_layer().weight.numel())
    try:
        with torch.no_grad():
            copy.deepcopy(smallest).merge()
    except Exception as error:  # many kinds, by method
        raise InputError(f"{refusal}: {first_line(error)}") from error


def _require_weights_alone(config: Any) -> None:
    """Require that only adapters of weights are trained: nothing else is saved merged."""
    other = [
        name
        for name in ("modules_to_save", "trainable_token_indices")
        if getattr(config, name, None)
    ]
    bias = getattr(config, "bias", "none")
    other += ["bias"] if bias not in ("none", False, None) else []
    if other:
        raise InputError(
            f"{', '.join(other)} go with plain LoRA and DoRA only: leave them out of a "
            f"configuration of {config.peft_type.value}"
        )


def _read(path: Path) -> dict[str, Any]:
    fields = read_json(path)
    if not isinstance(fields, dict) or "peft_type" not in fields:
        raise InputError(
            f"{path} is not a peft configuration: it has no peft_type (LORA, ADALORA, RANDLORA, …)"
        )
    return fields


def _of_parts(
    key: str, pattern: Mapping[str, Any], layers: Mapping[str, str], names: Iterable[str]
) -> dict[str, Any]:
    """A pattern by names of matrices, turned into one by names of their linear layers."""
    found: dict[str, Any] = {}
    for wanted, value in pattern.items():
        matching = re.compile(rf"(.*\.)?({wanted})$")
        own = [n for n in names if matching.match(n) or matching.match(layers[n])]
        if not own:
            raise InputError(f"{key} names {wanted!r}, which is not a target")
        found |= dict.fromkeys(own, value)
    return found


def _rewritten(
    wrapped: Any, weights: Mapping[str, torch.nn.Parameter], before: Mapping[str, bytes]
) -> dict[str, torch.nn.Parameter]:
    """The frozen weights that preparing the adapters has changed, by their current names."""
    changed = {id(w) for name, w in weights.items() if digest(w) != before[name]}
    return {
        name: p
        for name, p in wrapped.named_parameters()
        if id(p) in changed and not p.requires_grad
    }


class RankAllocation:
    """The ranks of AdaLoRA, which it reallocates during training."""

    HELD = ("ipt", "exp_avg_ipt", "exp_avg_unc")

    def __init__(self, wrapped: Any) -> None:
        self._tuner = wrapped.base_model
        (self._config,) = wrapped.peft_config.values()

    def after_step(self, step: int, /) -> None:
        """See `Parametrized`."""
        self._tuner.update_and_allocate(step)

    def state(self) -> dict[str, Any]:
        """See `Parametrized`."""
        held = {name: dict(getattr(self._tuner.rankallocator, name)) for name in self.HELD}
        return held | {"rank_pattern": self._config.rank_pattern}

    def load_state(self, state: dict[str, Any], /) -> None:
        """See `Parametrized`."""
        devices = {name: p.device for name, p in self._tuner.model.named_parameters()}
        for name in self.HELD:
            held = {n: value.to(devices[n]) for n, value in state[name].items()}
            setattr(self._tuner.rankallocator, name, held)
        self._config.rank_pattern = state["rank_pattern"]


LORA = DORA = ParametrizationKind(apply, LoraSettings)
PEFT = ParametrizationKind(apply)
