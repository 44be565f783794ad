"""The description in a compressed checkpoint's configuration: rank map, method, hashes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from spectra.allocation.rankmap import RankMap
from spectra.checkpoint.places import Place
from spectra.storages.registry import STORAGES
from spectra_data.errors import InputError

METHOD = "spectra"
"""The quant_method by which transformers finds our loader."""
VERSION = 3
"""Version of the format. In the first, which is still read, no tensor had a matrix's own name, and
transformers without spectra drew random weights there. Now it finds an empty weight, and refuses.
"""
WITH_PLACES = 4
"""Version of a checkpoint in which layers of several matrices are taken apart."""
READ = (1, VERSION, WITH_PLACES)


@dataclass(frozen=True)
class StoredModule:
    """One factored matrix, as stored in the file."""

    name: str
    rows: int
    cols: int
    rank: int
    storage: str
    version: int = VERSION
    owner: str | None = None
    """Parameter of the model that it is a part of; the weight of its own layer by default."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the tensors that its layer holds in place of the weight, by name."""
        return STORAGES[self.storage].stored().shapes(self.rows, self.cols, self.rank)

    @property
    def guard(self) -> dict[str, tuple[int, ...]]:
        """The empty weight that keeps other tools from loading the file; none in version 1."""
        return {self.owner or f"{self.name}.weight": (0,)} if self.version > 1 else {}

    @property
    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Shapes of all its tensors in the file by name, the guard included."""
        parts = {f"{self.name}.{part}": shape for part, shape in self.shapes.items()}
        return parts | self.guard


@dataclass(frozen=True)
class SpectraConfig:
    """The content of a compressed checkpoint's ``quantization_config``."""

    rank_map: RankMap
    """Rank map of what is stored: the errors of its modules are those of the stored product."""
    compression: Mapping[str, Any] = field(default_factory=dict)
    """Method, calibration data with its hashes, and settings."""
    sha256: Mapping[str, str] = field(default_factory=dict)
    """Hash of every tensor by name, verified on loading."""
    version: int = VERSION
    places: Mapping[str, Place] = field(default_factory=dict)
    """Places of all matrices in layers that are taken apart, by name."""

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "SpectraConfig":
        """Parse a model's configuration.

        Raises
        ------
        InputError
            When it has no description of a known version, or a damaged one.
        """
        described = config.get("quantization_config")
        if not isinstance(described, Mapping) or described.get("quant_method") != METHOD:
            raise InputError("this checkpoint was not written by `spectra compress`")
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
        places = described.get("places") or {}
        if not isinstance(places, Mapping):
            raise InputError("the checkpoint's quantization_config is damaged")
        found = {str(name): Place.of(place) for name, place in places.items()}
        return cls(rank_map, dict(made), dict(hashes), version, found)

    def to_dict(self) -> dict[str, Any]:
        """Content of ``quantization_config`` in ``config.json``."""
        described = {
            "quant_method": METHOD,
            "version": WITH_PLACES if self.places else self.version,
            "compression": dict(self.compression),
            "rank_map": self.rank_map.to_dict(),
            "sha256": dict(self.sha256),
        }
        places = {name: place.to_dict() for name, place in self.places.items()}
        return described | ({"places": places} if places else {})

    @cached_property
    def factored(self) -> dict[str, StoredModule]:
        """The matrices that are stored as factors, by name."""
        storage = self.rank_map.storage
        owners = {name: place.within.tensor for name, place in self.places.items()}
        return {
            m.name: StoredModule(
                m.name, m.rows, m.cols, m.rank, storage, self.version, owners.get(m.name)
            )
            for m in self.rank_map.modules
            if m.factored
        }

    @cached_property
    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Shapes of all tensors that a dense checkpoint has not, by name.

        They are those of factored matrices, and the weights of dense ones next to them in a layer.
        """
        found = {name: s for module in self.factored.values() for name, s in module.tensors.items()}
        for name, place in self.places.items():
            if name not in self.factored:
                found[f"{name}.weight"] = (place.rows, place.cols)
        return found

    @property
    def guards(self) -> dict[str, tuple[int, ...]]:
        """See `StoredModule.guard`."""
        return {name: s for module in self.factored.values() for name, s in module.guard.items()}
