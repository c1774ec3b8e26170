"""Names in a config's files that nothing reads: set, and without effect."""
import difflib
from collections.abc import Iterator
from typing import Any

from mmengine.config import Config

from apt_dense.mm.preflight.consumers import root_keys
from apt_dense.mm.preflight.findings import WARN, Finding, Rule
from apt_dense.mm.preflight.parts import listed
from apt_dense.mm.preflight.variables import Source, equal_places, places_of, read_source, value_at

OVERRIDDEN = Rule(
    'override-without-effect', WARN,
    'a name of a base, set again in a child, whose lines do not use it: the base has computed its settings already',
    'Use it in the child: train_dataloader = dict(dataset=dict(pipeline=train_pipeline)), for a train_pipeline')
UNREAD = Rule(
    'setting-nobody-reads', WARN, 'a top-level name that no other line uses and no tool reads',
    'Correct its name, or take it out')
RULES = (OVERRIDDEN, UNREAD)
CUSTOMARY = ('train_pipeline', 'val_pipeline', 'test_pipeline')  # whatever they are like: other lines use them


def check_unused(cfg: Config) -> Iterator[Finding]:
    """Look for names in the config's files that nothing reads; see RULES."""
    leaf = read_source(cfg.filename) if cfg.filename else None
    files = list({source.path: source for source in (*leaf.bases, leaf)}.values()) if leaf else []
    for source in files:
        heirs = [other for other in files if source.path in {base.path for base in other.bases}]
        for name in sorted(source.assigned - root_keys()):
            if name in cfg and not _is_used(name, source, heirs):
                yield from _unused(name, source, bool(heirs), cfg)


def _is_used(name: str, source: Source, heirs: list[Source]) -> bool:
    """Whether a line of the file itself uses a name, or one of a file with it as a base does."""
    return any(used == name for used, target, _ in source.reads if target != name) or any(
        used == f'_base_.{name}' for heir in heirs for used, _, _ in heir.reads)


def _unused(name: str, source: Source, inherited: bool, cfg: Config) -> Iterator[Finding]:
    where = f'{source.path}: {name}'
    if any(name in base.assigned for base in source.bases):
        places = places_of(name, cfg)
        if places and not any(_holds(value_at(cfg, place), cfg[name]) for place in places):
            yield Finding(OVERRIDDEN, where,
                          f'no line of this file uses it, and what the base made of its own stays in {listed(places)}')
        return
    nearest = [] if name in CUSTOMARY else difflib.get_close_matches(name, root_keys(), 2, 0.8)
    # A base may offer names that not every child uses; a config that was dumped has names that no line uses.
    offered = inherited or not source.bases
    # Of True there are many, which says nothing.
    spread = not isinstance(cfg[name], bool | None) and equal_places(cfg[name], cfg)
    if spread or offered and not nearest:
        return
    hint = f'; nearest: {", ".join(nearest)}' if nearest else ''
    yield Finding(UNREAD, where, f'no line uses it, and nothing reads it{hint}')


def _holds(setting: Any, value: Any) -> bool:
    """Whether a setting is a value, or one with the value in it: (1024, 1024) for 1024."""
    parts = isinstance(setting, (list, tuple)) or isinstance(setting, str) and isinstance(value, str)
    return setting == value or parts and value in setting
