"""What programs take on their command lines."""
import argparse
from collections.abc import Callable


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
