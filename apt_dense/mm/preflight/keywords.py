"""Names of the arguments that a class or a function takes, its ``**kwargs`` followed to where they go."""
import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NamedTuple

from mmengine.runner import FlexibleRunner, Runner
from torch import nn

LOOK_UPS = ('get', 'pop', 'setdefault')


class Uses(NamedTuple):
    """What a function does with the keywords that it collects.

    Attributes:
        names: that it looks up, or that those take to whom it hands them on.
        types: its own arguments that name a type to which they go: ``dict(type=resize_type, **kwargs)``.
        parents: they go to the constructors of the classes that follow this one: the class itself, for
            ``super().__init__``; None if they do not.
        refused: they go to something else that takes no others.
        dropped: what has another name is lost without an error.
    """
    names: frozenset[str] = frozenset()
    types: frozenset[str] = frozenset()
    parents: type | None = None
    refused: bool = False
    dropped: bool = False


def parameters_of(kind: Any) -> frozenset[str] | None:
    """Names that may be given to a class or function; None for any.

    Keywords that it collects are followed to its parents, to functions and methods that take them, and to names that
    are looked up in them.  None is said where its code does otherwise with them.
    """
    found = _taken(kind)
    return found and found.names


def handed_to(kind: Any) -> frozenset[str]:
    """The arguments that name the type to which a class or function hands what it does not know: 'resize_type'."""
    found = _taken(kind)
    return found.types if found else frozenset()


def default_of(kind: type | None, name: str) -> Any:
    """The default of an argument, also one that a class only hands on to its parents; None if there is none."""
    for base in kind.__mro__ if kind else ():
        parameter = inspect.signature(base.__init__).parameters.get(name) if '__init__' in vars(base) else None
        if parameter is not None:
            return None if parameter.default is parameter.empty else parameter.default
    return None


def drops_others(kind: Any) -> bool:
    """Whether a class or function takes keywords of any name and does nothing with them."""
    found = _taken(kind)
    return bool(found and found.dropped)


@cache
def _taken(kind: Any) -> Uses | None:
    """What may be given to a class or function; None for anything."""
    total = Uses()
    chain = list(kind.__mro__) if inspect.isclass(kind) else [kind]
    while chain:
        base = chain.pop(0)
        function = vars(base).get('__init__') if inspect.isclass(kind) else kind
        if function is None:
            continue
        uses = _own_uses(function, base, kind)
        total = uses and Uses(total.names | uses.names, total.types | uses.types, dropped=uses.dropped)
        if uses is None or uses.parents is None:
            return total
        while uses.parents in chain:
            chain.pop(0)
    return total


def _own_uses(function: Callable, base: Any, kind: Any) -> Uses | None:
    """What one function, or constructor of one class, takes; None for anything."""
    if function is object.__init__:
        return Uses()
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # of another language
        return None
    names = {item.name for item in parameters if item.kind in (item.KEYWORD_ONLY, item.POSITIONAL_OR_KEYWORD)}
    names = (names | _old_names(function)) - {'self'}
    collected = next((item.name for item in parameters if item.kind is item.VAR_KEYWORD), None)
    if collected is None or function is nn.Module.__init__:
        return Uses(frozenset(names))
    uses = _uses(function, collected, base, kind)
    return uses and uses._replace(names=uses.names | names, dropped=uses == Uses(uses.names))


def _old_names(function: Callable) -> set[str]:
    """Names that mmengine's ``deprecated_api_warning`` still takes."""
    names = set()
    while hasattr(function, '__wrapped__'):
        names |= set(inspect.getclosurevars(function).nonlocals.get('name_dict') or ())
        function = function.__wrapped__
    return names


def _uses(function: Callable, collected: str, base: Any, owner: Any) -> Uses | None:
    """What a function does with ``**collected``; None if that cannot be said."""
    function = inspect.unwrap(function)
    uses = Uses()
    for path in _paths_to(function, lambda node: isinstance(node, ast.Name) and node.id == collected):
        uses = _joined(uses, _use(path, function, base, owner))
        if uses is None:
            return None
    return uses


def _joined(first: Uses, second: Uses | None) -> Uses | None:
    return second and Uses(first.names | second.names, first.types | second.types, first.parents or second.parents,
                           first.refused or second.refused)


def _paths_to(function: Callable, wanted: Callable[[ast.AST], bool]) -> Iterator[list[ast.AST]]:
    """The nodes of a function's code that are wanted, each after those that it stands in; one empty path without code.
    """
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        yield []
        return
    stack: list[list[ast.AST]] = [[tree]]
    while stack:
        path = stack.pop()
        if wanted(path[-1]):
            yield path
        stack += [[*path, child] for child in ast.iter_child_nodes(path[-1])]


def _use(path: list[ast.AST], function: Callable, base: Any, owner: Any) -> Uses | None:
    """One place where the keywords stand: the last node of a path."""
    if len(path) < 3:
        return None
    node, parent, above = path[-1], path[-2], path[-3]
    if isinstance(parent, ast.keyword) and parent.arg is None and isinstance(above, ast.Call):
        return _handed_on(above, function, base, owner)
    if isinstance(parent, ast.Attribute) and isinstance(above, ast.Call) and parent.attr in LOOK_UPS and above.args:
        return _looked_up(above.args[0])
    if isinstance(parent, ast.Subscript) and parent.value is node:
        return _looked_up(parent.slice)
    if isinstance(parent, ast.Compare) and isinstance(parent.ops[0], (ast.In, ast.NotIn)):
        return _looked_up(parent.left)
    if isinstance(parent, ast.Assign) and len(parent.targets) == 1 and inspect.isclass(owner):
        return _kept(parent.targets[0], owner)
    return None


def _looked_up(node: ast.AST) -> Uses | None:
    return Uses(frozenset([node.value])) if isinstance(node, ast.Constant) else None


def _handed_on(call: ast.Call, function: Callable, base: Any, owner: Any) -> Uses | None:
    """Keywords in a call, as ``**kwargs``."""
    if isinstance(call.func, ast.Attribute) and call.func.attr == '__init__':
        return _to_parents(call.func.value, function, base)
    if isinstance(call.func, ast.Name) and call.func.id == 'dict':
        types = [item.value.id for item in call.keywords if item.arg == 'type' and isinstance(item.value, ast.Name)]
        return Uses(types=frozenset(types)) if types else None
    targets = list(_called(call.func, function, owner))
    taken = [_taken(target) for target in targets]
    if not targets or None in taken:
        return None
    return Uses(frozenset().union(*(uses.names for uses in taken)), refused=not any(uses.dropped for uses in taken))


def _to_parents(node: ast.AST, function: Callable, base: Any) -> Uses | None:
    """Keywords in a call of a constructor: of super(), super(Other, self) or Other."""
    named = node.args[0] if isinstance(node, ast.Call) and node.args else node
    if isinstance(named, ast.Call):  # super()
        return Uses(parents=base)
    other = function.__globals__.get(named.id) if isinstance(named, ast.Name) else None
    if not (inspect.isclass(other) and issubclass(base, other)):
        return None
    if named is node:  # Other.__init__(self, ...): what precedes it in the order of resolution
        return Uses(parents=base.__mro__[base.__mro__.index(other) - 1])
    return Uses(parents=other)


def _called(node: ast.AST, function: Callable, owner: Any) -> Iterator[Any]:
    """What the name of a call may mean: a function or class of the module, a method of the object or of the runner."""
    names = ast.unparse(node).split('.')
    if names[0] == 'runner' and len(names) == 2:
        yield from (getattr(kind, names[1]) for kind in (Runner, FlexibleRunner) if hasattr(kind, names[1]))
        return
    target = owner if names[0] == 'self' else function.__globals__.get(names[0])
    for name in names[1:]:
        target = getattr(target, name, None)
    if callable(target) and target is not owner:
        yield target


def _kept(target: ast.AST, owner: type) -> Uses | None:
    """Keywords that are kept as ``self.NAME``: what the methods do with them."""
    if not (isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == 'self'):
        return None
    uses = Uses()
    for base in owner.__mro__[:-1]:
        for method in vars(base).values():
            if not inspect.isfunction(method) or base.__module__ == 'torch.nn.modules.module':
                continue
            for path in _paths_to(inspect.unwrap(method), lambda node: ast.unparse(node) == f'self.{target.attr}' if (
                    isinstance(node, ast.Attribute)) else False):
                if path and isinstance(path[-1].ctx, ast.Store):
                    continue
                uses = _joined(uses, _use(path, inspect.unwrap(method), base, owner))
                if uses is None:
                    return None
    return uses
