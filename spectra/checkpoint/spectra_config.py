"""What a compressed checkpoint's configuration says of it: its rank map, and how it was made."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from spectra.allocation.rankmap import RankMap
from spectra.storages.registry import STORAGES
from spectra_data.errors import InputError

METHOD = "spectra"
"""The quant_method by which transformers finds our loader."""
VERSION = 3
"""Of the format. In the first, whose files are still read, nothing had a matrix' own name:
transformers without spectra drew random weights there. Now it finds an empty weight, and refuses.
"""
READ = (1, VERSION)


@dataclass(frozen=True)
class StoredModule:
    """One factored matrix, as it lies in the file."""

    name: str
    rows: int
    cols: int
    rank: int
    storage: str
    version: int = VERSION

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """What its layer holds in the weight's place, with shapes."""
        return STORAGES[self.storage].stored().shapes(self.rows, self.cols, self.rank)

    @property
    def guard(self) -> dict[str, tuple[int, ...]]:
        """The empty weight that keeps others from loading the file; none in the first format."""
        return {f"{self.name}.weight": (0,)} if self.version > 1 else {}

    @property
    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of what is in the file for it: its tensors, and the guard."""
        parts = {f"{self.name}.{part}": shape for part, shape in self.shapes.items()}
        return parts | self.guard


@dataclass(frozen=True)
class SpectraConfig:
    """The content of a compressed checkpoint's ``quantization_config``."""

    rank_map: RankMap
    """Of what is stored: its modules' errors are those of the stored product."""
    compression: Mapping[str, Any] = field(default_factory=dict)
    """Method, calibration data with its hashes, and settings."""
    sha256: Mapping[str, str] = field(default_factory=dict)
    """Of every tensor, by name: what loading compares."""
    version: int = VERSION

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "SpectraConfig":
        """From a model's configuration.

        Raises
        ------
        InputError
            When it has none of this version, or a damaged one.
        """
        described = config.get("quantization_config")
        if not isinstance(described, Mapping) or described.get("quant_method") != METHOD:
            raise InputError("this is no checkpoint of `spectra compress`")
        version = described.get("version")
        if version not in READ:
            raise InputError(
                f"the checkpoint was compressed by another version of the format: {version!r}, "
                f"not {VERSION}"
            )
        hashes = described.get("sha256") or {}
        made = described.get("compression") or {}
        if not isinstance(hashes, Mapping) or not isinstance(made, Mapping):
            raise InputError("the checkpoint's quantization_config is damaged")
        rank_map = RankMap.from_dict(described.get("rank_map") or {})
        return cls(rank_map, dict(made), dict(hashes), version)

    def to_dict(self) -> dict[str, Any]:
        """As config.json has it."""
        return {
            "quant_method": METHOD,
            "version": self.version,
            "compression": dict(self.compression),
            "rank_map": self.rank_map.to_dict(),
            "sha256": dict(self.sha256),
        }

    @cached_property
    def factored(self) -> dict[str, StoredModule]:
        """The matrices that are stored as factors, by name."""
        storage = self.rank_map.storage
        return {
            m.name: StoredModule(m.name, m.rows, m.cols, m.rank, storage, self.version)
            for m in self.rank_map.modules
            if m.factored
        }
