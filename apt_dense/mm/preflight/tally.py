"""Counting what is found many times, with the first example of each kind."""
from collections import Counter
from collections.abc import Iterator
from typing import Any

from apt_dense.mm.preflight.findings import Finding, Rule


class Tally:
    """Counts of rules, in the order in which they were first broken.

    Args:
        where: the file or key of all that is counted.
    """

    def __init__(self, where: str):
        self.where = where
        self.counts: Counter[Rule] = Counter()
        self.examples: dict[Rule, str] = {}

    def add(self, rule: Rule, example: str, *values: Any) -> None:
        """Count one; ``example.format(*values)`` is made for the first of a kind only."""
        if rule not in self.examples:
            self.examples[rule] = example.format(*values) if values else example
        self.counts[rule] += 1

    def findings(self) -> Iterator[Finding]:
        """One finding for each rule."""
        for rule, count in self.counts.items():
            yield Finding(rule, self.where, f'{rule.finds}, {"the first" if count > 1 else "namely"}: '
                                            f'{self.examples[rule]}', count)
