"""How a function of a library is replaced."""
import functools
from collections.abc import Callable
from typing import Any


def replace_once(owner: Any, name: str, make: Callable[[Callable], Callable], static: bool = False) -> None:
    """Set owner.name to make(owner.name), unless it already is a replacement."""
    original = getattr(owner, name)
    if hasattr(original, 'replaced_by_apt_dense'):
        return
    replacement = functools.wraps(original)(make(original))
    replacement.replaced_by_apt_dense = True
    setattr(owner, name, staticmethod(replacement) if static else replacement)
