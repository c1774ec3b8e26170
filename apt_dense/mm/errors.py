"""Errors of a training's data and its settings, which the tools print as one message."""


class LaunchError(ValueError):
    """A mistake in the command, the config or the data: the message says all, a traceback would hide it."""


class DataError(ValueError):
    """Something is wrong with the data, with what was made from it or with how it is to be read.

    The message says all, a traceback would hide it.
    """


class BadSampleError(DataError):
    """A sample that cannot be loaded: in one process, of which the others know nothing."""


class NotFiniteError(DataError, FloatingPointError):
    """Losses or gradients that are not finite."""
