"""What the types of a config mean: looked up in OpenMMLab's registries, as its builders do."""
import difflib
import importlib
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from mmcv import ops
from mmengine import registry
from mmengine.config import Config
from mmengine.registry import Registry


def registered(kind: str, root: Registry, scope: str | None) -> Any:
    """What is registered under a name, in a scope or its parents; None if nothing is."""
    node = _of_scope(root, scope)
    if '.' in kind:  # of another scope, or a class with its modules: torch.optim.AdamW
        try:
            return node.get(kind)
        except RuntimeError:
            return None
    node.import_from_location()
    while node is not None and kind not in node.module_dict:  # Registry.get would try to import each unknown name
        node = node.parent
    return node and node.module_dict[kind]


def _of_scope(root: Registry, scope: str | None) -> Registry:
    """A scope's registry; the root where the scope has none of its kind, as mmengine does, but without its warning."""
    if scope and scope not in root.children:
        with suppress(ImportError):
            importlib.import_module(f'{scope}.registry')
    return root.children.get(scope, root)


def all_registered(kind: str, scope: str | None) -> Iterator[Any]:
    """Everything that a name is registered for: it may be a transform and a model."""
    for root in vars(registry).values():
        if isinstance(root, Registry) and (found := registered(kind, root, scope)) is not None:
            yield found


def is_known(kind: str, scope: str | None) -> bool:
    """Whether a name is registered for anything, or one of mmcv's operators, which are found by theirs."""
    return hasattr(ops, kind) or any(True for _ in all_registered(kind, scope))


def scope_at(key: str, cfg: Config) -> str | None:
    """The scope in which a type at a key is looked up: of the nearest ``_scope_`` on the way, or the config's."""
    scope, node = cfg.get('default_scope'), cfg
    for part in key.split('.') if key else ():
        node = node[int(part)] if isinstance(node, (list, tuple)) else node[part]
        scope = node.get('_scope_') or scope if isinstance(node, dict) else scope
    return scope


def nearest(kind: str, root: Registry | None, scope: str | None) -> list[str]:
    """Up to three registered names that may have been meant.

    Args:
        root: of which registry; None for any.
    """
    roots = [root] if root else [item for item in vars(registry).values() if isinstance(item, Registry)]
    names: dict[str, str] = {}
    for node in roots:
        scoped = _of_scope(node, scope)
        own = {name for item in (scoped, scoped.parent) if item for name in item.module_dict}
        names |= {name.casefold(): name for name in own}
        names |= {name.casefold(): f'{child}.{name}' for child, item in node.children.items()
                  for name in item.module_dict if name not in own}
    bare = kind.rpartition('.')[2].casefold()
    return [names[name] for name in difflib.get_close_matches(bare, names, 3, 0.7)]
