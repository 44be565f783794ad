"""What a compressed checkpoint's configuration says of it: its rank map, and how it was made."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from data.errors import InputError
from spectra.allocation.rankmap import RankMap
from spectra.compression.factors import keeps_columns

METHOD = "spectra"
"""The quant_method by which transformers finds our loader."""
VERSION = 1


@dataclass(frozen=True)
class StoredModule:
    """One factored matrix, as it lies in the file."""

    name: str
    rows: int
    cols: int
    rank: int
    storage: str

    @property
    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of what stands for its weight."""
        rows, cols, rank = self.rows, self.cols, self.rank
        if self.storage == "factors":
            return {f"{self.name}.A": (rows, rank), f"{self.name}.B": (rank, cols)}
        if keeps_columns(rows, cols):
            kept, others, count = (rows, rank), (rank, cols - rank), cols
        else:
            kept, others, count = (rank, cols), (rows - rank, rank), rows
        return {
            f"{self.name}.kept": kept,
            f"{self.name}.coefficients": others,
            f"{self.name}.order": (count,),
        }


@dataclass(frozen=True)
class SpectraConfig:
    """The content of a compressed checkpoint's ``quantization_config``."""

    rank_map: RankMap
    """Of what is stored: its modules' errors are those of the stored product."""
    compression: Mapping[str, Any] = field(default_factory=dict)
    """Method, calibration data with its hashes, and settings."""
    sha256: Mapping[str, str] = field(default_factory=dict)
    """Of every tensor, by name: what loading compares."""

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
        if described.get("version") != VERSION:
            raise InputError(
                f"the checkpoint was compressed by another version of the format: "
                f"{described.get('version')!r}, not {VERSION}"
            )
        hashes = described.get("sha256") or {}
        made = described.get("compression") or {}
        if not isinstance(hashes, Mapping) or not isinstance(made, Mapping):
            raise InputError("the checkpoint's quantization_config is damaged")
        return cls(RankMap.from_dict(described.get("rank_map") or {}), dict(made), dict(hashes))

    def to_dict(self) -> dict[str, Any]:
        """As config.json has it."""
        return {
            "quant_method": METHOD,
            "version": VERSION,
            "compression": dict(self.compression),
            "rank_map": self.rank_map.to_dict(),
            "sha256": dict(self.sha256),
        }

    @cached_property
    def factored(self) -> dict[str, StoredModule]:
        """The matrices that are stored as factors, by name."""
        storage = self.rank_map.storage
        return {
            m.name: StoredModule(m.name, m.rows, m.cols, m.rank, storage)
            for m in self.rank_map.modules
            if m.factored
        }
