"""What a user should know of a checkpoint that is read nevertheless."""

import warnings


class CheckpointNote(UserWarning):
    """A line on how a checkpoint was read; the command prints it, a library warns with it."""


def note(line: str) -> None:
    """Say a line; the same one is said once."""
    warnings.warn(line, CheckpointNote, stacklevel=2)
