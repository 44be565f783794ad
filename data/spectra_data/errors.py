"""The one error that a user can mend."""


class InputError(ValueError):
    """What a user asked for cannot be done; the message says in one line what to do instead.

    Commands print it without a traceback and exit with 2.
    """
