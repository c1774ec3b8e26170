"""Keys anywhere in a config that nothing takes: mistyped, or at the wrong place."""
import difflib
from collections.abc import Iterator, Sequence

from mmengine.config import Config

from apt_dense.mm.preflight.consumers import (
    BUILDERS_KEYS,
    SUGGESTED,
    is_below_own_class,
    is_read,
    kinds_at,
    readable_keys,
)
from apt_dense.mm.preflight.findings import STOP, WARN, Finding, Rule
from apt_dense.mm.preflight.keywords import drops_others
from apt_dense.mm.preflight.parts import listed, settings_of

REFUSED = Rule(
    'key-not-taken', STOP, 'a key that the type beside it does not take, or takes for another one and drops',
    'Correct its name, or take it out')
UNREAD = Rule(
    'key-nobody-reads', WARN, 'a key that no code reads, or that the type beside it drops without a word',
    'Correct its name, or take it out')
RULES = (REFUSED, UNREAD)
MISTYPED = 0.9  # so alike are a name and the one that was meant, where the type would drop it without a word
UNREAD_PLACES = ('env_cfg', 'auto_scale_lr')  # whose other keys stop nothing


def check_keys(cfg: Config, splits: Sequence[str]) -> Iterator[Finding]:
    """Look for keys that nothing takes in all that is used for some splits; see RULES.

    What an argument of a command is asked, see ``options.merge_options``, the files of a config are asked here.
    """
    for key, node in settings_of(cfg, splits):
        known = readable_keys(key, node, cfg)
        for name in node:
            if (known is None or name not in known) and not is_read(key, name, node, cfg):
                yield _finding(key, name, node, known, cfg)


def _finding(key: str, name: str, node: dict, known: set[str] | None, cfg: Config) -> Finding:
    kinds = kinds_at(key, node, cfg) if node.get('type') else []
    dropped = any(drops_others(kind) for kind in kinds)
    named = known or set(node) - {name} | SUGGESTED.get(key.rpartition('.')[2], set())
    near = difflib.get_close_matches(name, named, 3, 0.7)
    certain = (known is not None or key == 'default_hooks') and key not in UNREAD_PLACES and not (
        key.startswith('tta_') or is_below_own_class(key.rpartition('.')[0], cfg) or
        dropped and not difflib.get_close_matches(name, named, 1, MISTYPED))
    reader = ' or '.join(dict.fromkeys(kind.__name__ for kind in kinds))
    said = f'{reader} {"drops it" if dropped else "does not take it"}' if kinds else 'nothing reads it'
    hint = f'; nearest: {", ".join(near)}' if near else (
        f'; it takes {listed(sorted(known - BUILDERS_KEYS), 12)}' if known else '')
    return Finding(REFUSED if certain else UNREAD, f'{key}.{name}', said + hint)
