"""Notes for the user on a checkpoint that is read nevertheless."""

import warnings


class CheckpointNote(UserWarning):
    """A line on how a checkpoint was read: printed by commands, a warning in library use."""


def note(line: str) -> None:
    """Issue a note; a repeated line is shown once."""
    warnings.warn(line, CheckpointNote, stacklevel=2)
