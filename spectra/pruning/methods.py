"""Methods of pruning, by name."""

from typing import Literal, get_args

Method = Literal["magnitude", "wanda", "sparsegpt"]
METHODS: tuple[str, ...] = get_args(Method)
