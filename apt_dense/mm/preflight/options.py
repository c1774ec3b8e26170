"""Options of a command that change a config: each must be one that something reads."""
import argparse
import copy
import difflib
import re
from collections.abc import Iterator
from typing import Any

from mmengine.config import Config, DictAction

from apt_dense.mm.errors import LaunchError
from apt_dense.mm.preflight.consumers import SUGGESTED, is_read, readable_keys, root_keys
from apt_dense.mm.preflight.parts import listed
from apt_dense.mm.preflight.variables import flattened, has_key, places_of, value_at

DICT = re.compile(r'\s*(dict\(.*\)|\{.*:.*\})\s*')  # which mmengine's options do not read


class OptionsAction(DictAction):
    """mmengine's reading of KEY=VALUE, which fails on anything else with an error that does not name it."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: list[str],
                 option_string: str | None = None) -> None:
        """Add the options to the namespace."""
        for option in values:
            if '=' not in option:
                parser.error(f'{option_string} got {option!r}, wanted KEY=VALUE without spaces')
            key, value = option.split('=', maxsplit=1)
            if DICT.fullmatch(value):
                parser.error(f'{option_string} got {option!r}, wanted each entry of a dict as an option: '
                             f'{key}.NAME=VALUE')
            try:
                self._parse_iterable(value)
            except (AssertionError, RecursionError):  # brackets that are not closed, or that of a call
                parser.error(f'{option_string} got {option!r}, wanted one value or a list such as [1,2]')
        super().__call__(parser, namespace, values, option_string)


def merge_options(cfg: Config, options: dict[str, Any], strict: bool = True) -> list[str]:
    """Put options of a command into a config, as ``Config.merge_from_dict`` does, and check that they change something.

    Args:
        strict: False makes a warning of a key that nothing seems to read.

    Returns:
        Warnings: one for each option of a top-level name that only other lines of the config's files use, with the keys
        where its value stands.

    Raises:
        LaunchError: naming each option that does not fit the config, or that the config does not have and nothing
            reads, with the nearest names.
    """
    problems = [problem for key, value in options.items() for problem in _misfits(cfg, key, value)]
    if problems:
        raise LaunchError(_joined(problems))
    before = copy.deepcopy(cfg)
    try:
        cfg.merge_from_dict(options)
    except (KeyError, TypeError) as error:  # a part of something that is no dict
        raise LaunchError(f'--cfg-options: {error.args[0]}') from error
    problems = [problem for key in options for problem in _unread(before, cfg, key)]
    if problems and strict:
        raise LaunchError(_joined(problems))
    elsewhere = [_warning(before, key, value) for key, value in options.items()
                 if key.partition('.')[0] in before and key.partition('.')[0] not in root_keys()]
    return [f'--cfg-options {problem}' for problem in problems] + elsewhere


def _joined(problems: list[str]) -> str:
    return '--cfg-options: ' + '\n'.join(problems)


def _misfits(cfg: Config, key: str, value: Any) -> Iterator[str]:
    """What is wrong with an option's indices, or its value."""
    node, passed = cfg, []
    parts = key.split('.')
    for place, part in enumerate(parts):
        here, rest = '.'.join(passed), '.'.join(parts[place:])
        if isinstance(node, tuple):
            yield f'{key}: {here} is a tuple, give it whole: {here}="[{",".join(map(str, node))}]"'
            return
        if isinstance(node, list) and not part.isdigit():
            choices = listed((f'{here}.{index}.{rest}' for index in range(len(node))), 4)
            yield f'{key}: {here} is a list of {len(node)}, say by an index of which: {choices}'
            return
        if isinstance(node, list) and int(part) >= len(node):
            yield f'{key}: Index {part} exceeds the length of the list {here}, which has {len(node)} entries'
            return
        if not isinstance(node, list) and not (isinstance(node, (dict, Config)) and part in node):
            break
        node = node[int(part)] if isinstance(node, list) else node[part]
        passed.append(part)
    if isinstance(node, dict) and parts[-1].isdigit() and not isinstance(value, dict):
        yield f'{key}={value}: {key} is a dict, set an entry of it: {", ".join(f"{key}.{name}" for name in node)}'


def _unread(before: Config, after: Config, key: str) -> Iterator[str]:
    """What is wrong with an option that the config did not have."""
    parts = key.split('.')
    for place, part in enumerate(parts):
        if has_key(before, '.'.join(parts[:place + 1])):
            continue
        here = '.'.join(parts[:place])
        node = value_at(after, here) if here else after
        if not isinstance(node, (dict, Config)) or is_read(here, part, node, after):
            continue
        if here == 'default_hooks':
            hooks = listed(sorted(set(node) - {part}), 10)
            yield (f'{key}: there is no hook {part!r} in the config, which has {hooks}. A new one needs '
                   f'{here}.{part}.type')
            return
        known = set(node) - {part} | (readable_keys(here, node, after) or set())
        known |= SUGGESTED.get(here.rpartition('.')[2], set())
        reader = f'{node.get("type")} does not take it' if here and node.get('type') else 'nothing reads it'
        nearest = _nearest(key, part, here, known, before)
        hint = f'Nearest: {", ".join(nearest)}' if nearest else (
            f'{here or "the config"} has {listed(sorted(set(node) - {part}), 12)}')
        yield f'{key}: the config does not have this key, and {reader}. {hint}'
        return


def _nearest(key: str, part: str, here: str, known: set[str], cfg: Config) -> list[str]:
    """Keys that may have been meant: the name in another spelling, the same one elsewhere, a similar one."""
    rest = key[len(here) + bool(here) + len(part):]
    spelled = [f'{here}.{name}{rest}'.lstrip('.') for name in difflib.get_close_matches(part, known, 3, 0.7)]
    all_keys = [name for name, _ in flattened(cfg) if name.partition('.')[0] in root_keys()]
    below = [name for name in all_keys if name.endswith(f'.{key}')]
    if not spelled and not below:
        last = key.rpartition('.')[2]
        below = [name for name in all_keys if name.rpartition('.')[2] == last]
    if not spelled and not below and not here:
        below = difflib.get_close_matches(key, all_keys)
    return list(dict.fromkeys([*spelled, *below]))[:4]


def _warning(before: Config, key: str, value: Any) -> str:
    name, _, rest = key.partition('.')
    places = [f'{place}.{rest}' if has_key(before, f'{place}.{rest}') else place for place in places_of(name, before)]
    stands = f'its value stands in {listed(places, 12)}: set those' if places else 'its value stands nowhere: drop it'
    return (f'--cfg-options {key}={value} changes nothing: only other lines of the config have used {name}, when they '
            f'were read; {stands}, or write a config of your own with this one as its _base_')
