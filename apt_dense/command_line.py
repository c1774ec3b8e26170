"""What programs take on their command lines."""
import argparse
import math
from collections.abc import Callable
from pathlib import Path

import torch

from apt_dense.core.files import check_target


def at_least(least: int) -> Callable[[str], int]:
    """An argparse type: a whole number from ``least`` on."""
    def number(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or value < least:
            raise argparse.ArgumentTypeError(f'got {text}, wanted a whole number from {least} on')
        return value

    return number


def between(least: float, most: float = math.inf) -> Callable[[str], float]:
    """An argparse type: a finite number from ``least`` to ``most``."""
    def number(text: str) -> float:
        value = _number(text)
        if not (math.isfinite(value) and least <= value <= most):
            raise argparse.ArgumentTypeError(
                f'got {text}, wanted a number ' + (f'from {least:g} on' if most == math.inf else (
                    f'from {least:g} to {most:g}')))
        return value

    return number


def share(text: str) -> float:
    """An argparse type: a share of the tokens, above 0 and up to 1."""
    value = _number(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f'got {text}, wanted a share above 0, up to 1')
    return value


def device(text: str) -> str:
    """An argparse type: the name of a device, 'cpu', 'cuda' or 'cuda:1'; it need not be there."""
    try:
        torch.device(text)
    except RuntimeError:
        raise argparse.ArgumentTypeError(f'got {text}, wanted cpu, cuda or cuda:NUMBER') from None
    return text


def target(text: str) -> Path:
    """An argparse type: a file that can be written, or written over."""
    try:
        check_target(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return Path(text)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
