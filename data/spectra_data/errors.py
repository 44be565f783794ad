"""The one error that a user can mend, and what others say."""


class InputError(ValueError):
    """What a user asked for cannot be done; the message says in one line what to do instead.

    Commands print it without a traceback and exit with 2.
    """


def first_line(error: BaseException) -> str:
    """What an error says, in one line; its kind where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
