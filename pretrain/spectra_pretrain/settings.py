"""Options that belong to one optimizer or one parametrization."""

from dataclasses import dataclass

Check = tuple[bool, str]
"""Whether something is wrong, and the message that says what."""


@dataclass(frozen=True)
class Settings:
    """No options; a choice that has some derives a class, whose fields begin with its name."""

    def checks(self) -> list[Check]:
        """Checks of these options."""
        return []
