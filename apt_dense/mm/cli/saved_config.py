"""The config that mmengine writes into a checkpoint, read without running it."""
import ast
from typing import Any

from mmengine.config import Config

from apt_dense.mm.errors import DataError


def config_of(meta: object, name: str) -> Config | None:
    """The config under 'cfg' of a checkpoint's meta, None where there is none.

    mmengine would run the text as Python.  What it has written holds names, plain values and calls of ``dict``; that is
    all that is taken.

    Args:
        name: of the checkpoint, for messages.

    Raises:
        DataError: if the text holds anything else.
    """
    text = meta.get('cfg') if isinstance(meta, dict) else None
    if not isinstance(text, str):
        return None
    try:
        content = {}
        for statement in ast.parse(text).body:
            if not (isinstance(statement, ast.Assign) and len(statement.targets) == 1 and
                    isinstance(statement.targets[0], ast.Name)):
                raise ValueError(f'line {statement.lineno} is no "name = value"')
            content[statement.targets[0].id] = _value(statement.value)
    except (ValueError, SyntaxError) as error:
        raise DataError(f'the config inside {name} is not one that mmengine has written ({error}): give the config '
                        'file, and the checkpoint as weights') from error
    return Config(content)


def _value(node: ast.expr) -> Any:
    """Of a plain value, or of a call of ``dict`` with such; ValueError for anything else."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == 'dict' and not node.args:
        return {_key(keyword): _value(keyword.value) for keyword in node.keywords}
    if isinstance(node, ast.Dict):
        if None in node.keys:
            raise ValueError(f'line {node.lineno} unpacks a dict')
        return {_value(key): _value(value) for key, value in zip(node.keys, node.values, strict=True)}
    if isinstance(node, (ast.List, ast.Tuple)):
        values = [_value(element) for element in node.elts]
        return values if isinstance(node, ast.List) else tuple(values)
    try:
        return ast.literal_eval(node)
    except ValueError as error:
        raise ValueError(f'line {node.lineno} holds {ast.unparse(node)[:60]!r}') from error


def _key(keyword: ast.keyword) -> str:
    if keyword.arg is None:
        raise ValueError(f'line {keyword.value.lineno} unpacks a dict')
    return keyword.arg
