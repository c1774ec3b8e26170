"""Top-level names of a config's files that only other lines use, and where their values end up.

``image_size = 1024`` is such a name: mmengine computes the config from it once, when the file is read.  Setting it
afterwards, or in a child's file whose lines do not use it, changes nothing.
"""
import ast
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from mmengine.config import Config

from apt_dense.mm.preflight.consumers import root_keys


class Source(NamedTuple):
    """One file of a config.

    Attributes:
        path: the file.
        bases: of its ``_base_``, theirs included.
        assigned: its top-level names.
        reads: (name, target, path below target) for each use of a name in another's value: for ``a = dict(b=[c])``
            ('c', 'a', '.b.0').  A target of '' is a use in another statement.
    """
    path: str
    bases: tuple['Source', ...]
    assigned: set[str]
    reads: list[tuple[str, str, str]]


def read_source(path: str) -> Source | None:
    """A config file with its bases; None if it is no such Python file (JSON, lazy imports)."""
    try:
        with open(path, encoding='utf-8') as file:
            statements = ast.parse(file.read()).body
    except (OSError, SyntaxError, UnicodeDecodeError):
        return None
    if any(isinstance(statement, ast.With) for statement in statements):  # read_base(): names are imported
        return None
    bases, assigned, reads = (), set(), []
    for statement in _simple(statements):
        for target, value in _assignments(statement):
            if target == '_base_':
                bases = tuple(_read_bases(path))
                continue
            assigned.update([target] if target else [])
            reads += [(name, target, below if target else '') for name, below in _reads(value, '')]
    return Source(path, bases, assigned, reads)


def _simple(statements: Iterable[ast.stmt]) -> Iterator[ast.AST]:
    """Statements, and what stands in loops and branches; of these, the heads."""
    for statement in statements:
        if isinstance(statement, (ast.If, ast.While)):
            yield statement.test
        elif not isinstance(statement, ast.Try):
            yield statement
        if isinstance(statement, (ast.If, ast.While, ast.For, ast.Try)):
            inner = [*statement.body, *statement.orelse, *getattr(statement, 'finalbody', ())]
            handlers = getattr(statement, 'handlers', ())
            yield from _simple([*inner, *(step for handler in handlers for step in handler.body)])


def _assignments(statement: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """(name, its value) of what a statement sets; ('', expression) of all else that it uses."""
    if isinstance(statement, ast.Assign):
        pairs = [(target, statement.value) for target in statement.targets]
    elif isinstance(statement, ast.AugAssign) or isinstance(statement, ast.AnnAssign) and statement.value:
        pairs = [(statement.target, statement.value)]
    elif isinstance(statement, ast.For):
        pairs = [(statement.target, statement.iter)]
    else:
        pairs = []
        yield '', statement
    for target, value in pairs:
        yield from _assigned(target, value)
    for node in ast.walk(statement if not isinstance(statement, ast.For) else statement.iter):
        if isinstance(node, ast.NamedExpr):
            yield node.target.id, node.value


def _assigned(target: ast.AST, value: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    if isinstance(target, ast.Name):
        yield target.id, value
    elif isinstance(target, (ast.Tuple, ast.List)):
        alike = isinstance(value, (ast.Tuple, ast.List)) and len(value.elts) == len(target.elts) and not any(
            isinstance(item, ast.Starred) for item in (*target.elts, *value.elts))
        for item, part in zip(target.elts, value.elts if alike else [value] * len(target.elts), strict=True):
            yield from _assigned(item.value if isinstance(item, ast.Starred) else item, part)
    else:  # a part of something: a['b'] = c
        yield '', target
        yield '', value


def _read_bases(path: str) -> Iterator[Source]:
    for name in Config._get_base_files(path):  # mmengine's: names of packages' configs, and expressions
        source = read_source(Config._get_cfg_path(name, path)[0])
        if source is not None:
            yield from (*source.bases, source)


def _reads(node: ast.AST, path: str) -> Iterator[tuple[str, str]]:
    """(name, path below the value) of each name that an expression uses."""
    if isinstance(node, ast.Name):
        if isinstance(node.ctx, ast.Load):
            yield node.id, path
    elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == '_base_':
        yield f'_base_.{node.attr}', path
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == 'dict':
        for item in node.args:
            yield from _reads(item, path)
        for keyword in node.keywords:
            yield from _reads(keyword.value, f'{path}.{keyword.arg}' if keyword.arg else path)
    elif isinstance(node, ast.Dict):
        for key, value in zip(node.keys, node.values, strict=True):
            yield from _reads(value, f'{path}.{key.value}' if isinstance(key, ast.Constant) else path)
    elif isinstance(node, (ast.List, ast.Tuple)) and not any(isinstance(item, ast.Starred) for item in node.elts):
        for index, item in enumerate(node.elts):
            yield from _reads(item, f'{path}.{index}')
    else:
        for child in ast.iter_child_nodes(node):
            yield from _reads(child, path)


def places_of(name: str, cfg: Config) -> list[str]:
    """The keys of a config where a top-level name's value ends up; where its files do not say, where an equal one is.

    Args:
        name: a name that only other lines use.
    """
    source = read_source(cfg.filename) if cfg.filename else None
    reads = [read for file in (*source.bases, source) for read in file.reads] if source else []
    found = [place for place in _trace(name, reads, frozenset()) if place.partition('.')[0] in root_keys()]
    found = [place for place in dict.fromkeys(_existing(place, cfg) for place in found) if place]
    found = [place for place in found if not any(other.startswith(f'{place}.') for other in found)]
    return found or equal_places(cfg[name], cfg)


def equal_places(value: Any, cfg: Config) -> list[str]:
    """The keys of a config whose value equals one, of those that are read when it is run."""
    return [key for key, other in flattened(cfg) if key.partition('.')[0] in root_keys() and other == value]


def _trace(name: str, reads: list[tuple[str, str, str]], passed: frozenset[str]) -> Iterator[str]:
    """Keys that are computed from a name, through other names too."""
    for used, target, below in reads:
        if used.removeprefix('_base_.') == name and target and target != name and target not in passed:
            yield target + below
            for place in _trace(target, reads, passed | {name}):
                yield place + below


def _existing(place: str, cfg: Config) -> str:
    """The longest beginning of a key that the config has; an entry of a tuple counts as the tuple."""
    node, kept = cfg, []
    for part in place.split('.'):
        if isinstance(node, list) and part.isdigit() and int(part) < len(node):
            node = node[int(part)]
        elif isinstance(node, (dict, Config)) and part in node:
            node = node[part]
        else:
            break
        kept.append(part)
    return '.'.join(kept)


def flattened(node: Any, key: str = '') -> Iterator[tuple[str, Any]]:
    """(key, value) of everything in a config, of its lists and dicts too."""
    if key:
        yield key, node
    items = node.items() if isinstance(node, (dict, Config)) else enumerate(node) if isinstance(node, list) else ()
    for name, item in items:
        yield from flattened(item, f'{key}.{name}' if key else str(name))


def value_at(cfg: Config, key: str) -> Any:
    """A setting by its key.

    Raises:
        KeyError, TypeError, IndexError, ValueError: if the config has no such key; see ``has_key``.
    """
    node: Any = cfg
    for part in key.split('.'):
        node = node[int(part)] if isinstance(node, (list, tuple)) else node[part]
    return node


def has_key(cfg: Config, key: str) -> bool:
    """Whether the config has a setting of this key."""
    try:
        value_at(cfg, key)
    except (KeyError, TypeError, IndexError, ValueError):
        return False
    return True
