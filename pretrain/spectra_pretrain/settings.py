"""Options that one optimizer or one parametrization has alone."""

from dataclasses import dataclass

Check = tuple[bool, str]
"""Whether something is wrong, and what."""


@dataclass(frozen=True)
class Settings:
    """None; a way of training that has some derives a class. Names of fields begin with its own."""

    def checks(self) -> list[Check]:
        """What they must hold."""
        return []
