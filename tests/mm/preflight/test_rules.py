"""The rules, and the document that lists them."""
from pathlib import Path

from apt_dense.mm.preflight import coco_rules, rules
from apt_dense.mm.preflight.findings import Rule

DOCUMENT = Path(__file__).parents[3] / 'docs/data.md'


def test_the_document_lists_the_rules():
    """If not: python tools/check_data.py --rules, below its last comment."""
    listed = DOCUMENT.read_text().partition('<!-- rules -->\n')[2]
    assert listed.strip() == rules.table()


def test_every_rule_is_listed_once():
    names = [rule.name for _, some in rules.sections() for rule in some]
    assert len(names) == len(set(names))
    defined = {value.name for value in vars(coco_rules).values() if isinstance(value, Rule)}
    assert defined - {coco_rules.OTHER_CLASS.name} <= set(names)
    assert set(rules.COCO_SECTIONS['COCO: mended when it is read']) >= (
        coco_rules.BREAKS_DATASET | coco_rules.BREAKS_METRIC)
