"""The LLaMA family that the low-rank literature pretrains, from 9M to 7B parameters.

The sizes are those of ReLoRA's and GaLore's published configurations. All have a vocabulary of 32
000, untied embeddings and RMSNorm eps 1e-6; a name states the parameters with that vocabulary.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spectra_data.errors import InputError, first_line
from spectra_data.reading import read_json

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

VOCABULARY = 32_000
MOST_LAYERS = 1000
POSITIONS = 1024


@dataclass(frozen=True)
class Size:
    """Sizes of a LLaMA."""

    hidden: int
    intermediate: int
    layers: int
    heads: int


PRESETS = {
    "llama_9m": Size(128, 352, 4, 4),
    "llama_20m": Size(256, 688, 4, 4),
    "llama_35m": Size(384, 1024, 6, 8),
    "llama_60m": Size(512, 1376, 8, 8),
    "llama_71m": Size(512, 1368, 12, 8),
    "llama_100m": Size(640, 1708, 12, 10),
    "llama_130m": Size(768, 2048, 12, 12),
    "llama_250m": Size(768, 2560, 24, 16),
    "llama_350m": Size(1024, 2736, 24, 16),
    "llama_1b": Size(2048, 5461, 24, 32),
    "llama_3b": Size(2560, 6848, 32, 32),
    "llama_7b": Size(4096, 11008, 32, 32),
}


def model_config(spec: str) -> "PreTrainedConfig":
    """The configuration that `spec` names: a preset, or the path of a Hugging Face config.json.

    Raises
    ------
    InputError
        When `spec` names neither, or the file is not the configuration of a causal language model.
    """
    from transformers import LlamaConfig

    if spec in PRESETS:
        size = PRESETS[spec]
        return LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=size.hidden,
            intermediate_size=size.intermediate,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            max_position_embeddings=POSITIONS,
            rms_norm_eps=1e-6,
            tie_word_embeddings=False,
        )
    path = Path(spec).expanduser()
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        raise InputError(
            f"no model {spec!r}: give a Hugging Face config.json or one of {', '.join(PRESETS)}"
        )
    return _read_config(path)


def _require_buildable(path: Path, fields: Mapping[str, Any]) -> None:
    """Refuse sizes that would fill memory before any check of the model notices."""
    layers = fields.get("num_hidden_layers", fields.get("n_layer", 0))
    if isinstance(layers, int) and layers > MOST_LAYERS:
        raise InputError(f"{path} states {layers} layers; at most {MOST_LAYERS} are trained")


def _read_config(path: Path) -> "PreTrainedConfig":
    from transformers import AutoConfig

    fields = read_json(path)
    try:
        model_type = fields.pop("model_type")
    except (KeyError, AttributeError, TypeError) as error:
        raise InputError(f"{path} is no Hugging Face config.json: it has no model_type") from error
    _require_buildable(path, fields)
    # the LLaMA family's old files use a key that transformers ignores, and a pad id of -1, which it
    # reads as the last row of the embedding
    if "max_sequence_length" in fields:
        fields.setdefault("max_position_embeddings", fields.pop("max_sequence_length"))
    if fields.get("pad_token_id") == -1:
        fields["pad_token_id"] = None
    try:
        return AutoConfig.for_model(model_type, **fields)
    except Exception as error:  # the library's validators raise exceptions of their own
        reason = str(error).strip().splitlines()[-1].strip()
        raise InputError(f"{path} is not a usable configuration: {reason}") from error


def model_of(spec: str, config: "PreTrainedConfig") -> "PreTrainedModel":
    """A new model, in float32.

    Parameters
    ----------
    spec
        Name of the model, for messages.
    config
        Its configuration.

    Raises
    ------
    InputError
        When no causal language model has that configuration.
    """
    import torch
    from transformers import AutoModelForCausalLM

    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    except Exception as error:  # any error of the model's own checks
        reason = first_line(error)
        raise InputError(f"no causal language model of {spec}: {reason}") from error
    return model


def default_vocabulary(spec: str) -> int:
    """Vocabulary size of the model before a tokenizer is chosen."""
    size = getattr(model_config(spec), "vocab_size", None)
    if size is None:
        raise InputError(f"no causal language model of {spec}: its configuration has no vocab_size")
    return int(size)
