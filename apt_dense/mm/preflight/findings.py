"""Rules and what they find: the one vocabulary of all checks.

A check is a function that yields findings; it raises nothing for bad data.  A rule says once, as data, what it finds,
how serious that is and what to do: the report, the log and the documents take their words from it.
"""
from collections.abc import Iterable
from dataclasses import dataclass

from apt_dense.mm.errors import DataError

STOP, WARN, MENDED = 'stop', 'warn', 'mended'


@dataclass(frozen=True)
class Rule:
    """What a check looks for.

    Attributes:
        name: short and stable, such as 'coco-duplicate-image-ids'; users name it in reports.
        severity: 'stop', nothing may start; 'warn', suspicious, goes on; 'mended', put right beyond doubt.
        finds: what is wrong, for the documents: 'image ids that occur twice'.
        remedy: what to do.
    """
    name: str
    severity: str
    finds: str
    remedy: str


@dataclass(frozen=True)
class Finding:
    """One thing that a rule has found.

    Attributes:
        rule: the rule.
        where: file or key of the config: 'data/annotations/train.json', 'model.roi_head.bbox_head.0.num_classes'.
        got: what is there, with an example, and what was wanted.
        count: how many of its kind there are.
    """
    rule: Rule
    where: str
    got: str
    count: int = 1

    def __str__(self) -> str:
        many = f' ({self.count} times)' if self.count > 1 else ''
        return f'{self.where}: {self.got}{many}. {self.rule.remedy} [{self.rule.name}]'


class PreflightError(DataError):
    """Findings that must stop a run, all of them in one message."""


def raise_if_stopped(findings: Iterable[Finding]) -> None:
    """Raise PreflightError with all findings of severity 'stop'.

    Raises:
        PreflightError: naming file, entry and remedy of each.
    """
    stops = [str(finding) for finding in findings if finding.rule.severity == STOP]
    if stops:
        raise PreflightError('\n'.join(stops))
