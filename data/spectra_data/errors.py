"""The one error that a user can fix, and a one-line text of any other."""


class InputError(ValueError):
    """A user's request cannot be carried out; the message says in one line what to do instead.

    Commands print it without a traceback and exit with 2.
    """


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the error's type if the message is empty."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
