"""All rules, as the documents list them."""
import importlib
import pkgutil
from collections.abc import Iterator

from apt_dense.mm import preflight
from apt_dense.mm.preflight import coco_rules
from apt_dense.mm.preflight.findings import MENDED, STOP, WARN, Rule

COCO_SECTIONS = {
    'COCO: the file': coco_rules.FILE_RULES,
    'COCO: mended when it is read': coco_rules.MENDED_RULES,
    'COCO: bad annotations': coco_rules.ANNOTATION_RULES,
    'COCO: what is left, and what looks odd': coco_rules.SET_RULES,
    'COCO: pictures': coco_rules.PICTURE_RULES,
}
MEANS = {STOP: 'stops', WARN: 'warns', MENDED: 'mended'}


def sections() -> Iterator[tuple[str, list[Rule]]]:
    """(title, rules): COCO's, then those of each other module of the preflight that has some."""
    known = {rule for rules in COCO_SECTIONS.values() for rule in rules} | {coco_rules.OTHER_CLASS}  # in no report
    yield from ((title, list(rules)) for title, rules in COCO_SECTIONS.items())
    for info in sorted(pkgutil.iter_modules(preflight.__path__), key=lambda info: info.name):
        module = importlib.import_module(f'{preflight.__name__}.{info.name}')
        own = [rule for rule in vars(module).values() if isinstance(rule, Rule) and rule not in known]
        if own:
            known.update(own)
            yield info.name.removesuffix('_rules').replace('_', ' ').capitalize(), own


def table() -> str:
    """Markdown tables of all rules."""
    parts = []
    for title, rules in sections():
        lines = [f'| `{rule.name}` | {MEANS[rule.severity]} | {rule.finds} | {rule.remedy} |' for rule in rules]
        head = [f'### {title}', '', '| rule | | finds | what to do, or what is done |', '|---|---|---|---|']
        parts.append('\n'.join([*head, *lines]))
    return '\n\n'.join(parts)
