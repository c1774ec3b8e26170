"""What the libraries say of themselves is left out, what the core says gets into the log."""
import logging
import warnings

# What the libraries say about their own code; no user can act on it.  Regular expressions, matched at the start.
LIBRARY_WARNINGS = (
    r'To copy construct from a tensor',  # mmdet's mask head, once a picture
    r'``build_(loss|pixel_sampler)`` would be deprecated',  # mmseg's own decode heads call them
    r'`reduce_zero_label` will be deprecated',  # mmseg's datasets pass it to LoadAnnotations themselves
    r'The draw is False, it means that the hook for visualization',  # mmseg's hook, which draws only for --show-dir
    r'Default ``avg_non_ignore`` is False',  # both packages; False is what the published models were trained with
    r'torch\.utils\.checkpoint: the use_reentrant parameter',  # the libraries' backbones
    r'`broadcast_buffers` is deprecated',  # mmengine's DDP wrapper
)
LIBRARY_LOG_LINES = ('"FileClient" will be deprecated', '"HardDiskBackend" is the alias')  # mmengine's own hooks


def filter_library_warnings(logger: logging.Logger | None = None) -> None:
    """Hide what the libraries say about their own code, message by message; every other warning stays.

    Not called on import: which warnings a process shows is for the program to say, not for a library.

    Args:
        logger: the runner's; mmengine logs some of its deprecations instead of warning.
    """
    for message in LIBRARY_WARNINGS:
        warnings.filterwarnings('ignore', message=message)
    if logger is not None:
        logger.addFilter(_is_not_library_noise)


def log_core_to(logger: logging.Logger) -> None:
    """Let what the core says by Python's logging, such as the kernel that it takes, appear in a run's log.

    mmengine's loggers stand beside Python's, and hear nothing of them.  The next call takes this one's place.
    """
    core = logging.getLogger('apt_dense.core')
    core.setLevel(logging.INFO)
    core.handlers = list(logger.handlers)


def _is_not_library_noise(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(LIBRARY_LOG_LINES)
