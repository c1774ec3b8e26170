"""Errors of a training's data, which the tools print as one message."""


class DataError(ValueError):
    """Something is wrong with the data, or with what was made from it: the message says all, a traceback would hide it.
    """


class BadSampleError(DataError):
    """A sample that cannot be loaded: in one process, of which the others know nothing."""


class NotFiniteError(DataError, FloatingPointError):
    """Losses or gradients that are not finite."""
