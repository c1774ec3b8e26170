"""How a function of a library is replaced."""
import functools
import sys
from collections.abc import Callable
from typing import Any


def replace_once(owner: Any, name: str, make: Callable[[Callable], Callable], static: bool = False) -> None:
    """Set owner.name to make(owner.name), unless it already is a replacement."""
    original = getattr(owner, name)
    if hasattr(original, 'replaced_by_apt_dense'):
        return
    copied = () if isinstance(original, type) else functools.WRAPPER_UPDATES  # a class's methods are no attributes
    replacement = functools.wraps(original, updated=copied)(make(original))
    replacement.replaced_by_apt_dense = True
    setattr(owner, name, staticmethod(replacement) if static else replacement)


def replace_in_package(package: str, name: str, make: Callable[[Callable], Callable]) -> None:
    """Set a function of a package's modules to make(function), once, wherever they have imported it by this name.

    Args:
        package: all of whose modules that hold the function are loaded, the package itself among them.
    """
    modules = [module for place, module in list(sys.modules.items()) if f'{place}.'.startswith(f'{package}.')]
    original = next(vars(module)[name] for module in modules if name in vars(module))
    if hasattr(original, 'replaced_by_apt_dense'):
        return
    replacement = functools.wraps(original)(make(original))
    replacement.replaced_by_apt_dense = True
    for module in modules:
        if vars(module).get(name) is original:
            setattr(module, name, replacement)
