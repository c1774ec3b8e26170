"""The preflight: all checks of a config and its data, before anything is built."""
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import DATASETS, DefaultScope
from tqdm import tqdm

from apt_dense.mm.cli.start import decide_together, start_processes
from apt_dense.mm.data.coco_file import CocoFile
from apt_dense.mm.preflight import cache
from apt_dense.mm.preflight.class_folders import check_class_folders
from apt_dense.mm.preflight.coco import check_coco
from apt_dense.mm.preflight.configs import check_config
from apt_dense.mm.preflight.configs_kinds import check_kinds
from apt_dense.mm.preflight.datasets import SPLITS, datasets_of, paths_of
from apt_dense.mm.preflight.draw import is_semantic
from apt_dense.mm.preflight.findings import STOP, WARN, Finding, raise_if_stopped
from apt_dense.mm.preflight.label_maps import check_label_maps

DEEP = ('sample', 'all')
BAR_BYTES = 20 << 20  # files from this size on get a progress bar


@dataclass
class Report:
    """What the preflight has found.

    Attributes:
        findings: each once, those that stop first.
        counts: lines of numbers, one a dataset.
    """
    findings: list[Finding] = field(default_factory=list)
    counts: list[str] = field(default_factory=list)

    @property
    def stops(self) -> bool:
        """True if nothing may start."""
        return any(finding.rule.severity == STOP for finding in self.findings)


def check(cfg: Config, needed: Sequence[str] = SPLITS, later: Sequence[str] = (), deep: str | None = None) -> Report:
    """Check a config and the data of its splits.

    Args:
        needed: splits of 'train', 'val', 'test' whose data must be there and sound.
        later: splits whose data must be sound, if they are there.  What would stop in the rest is a warning.
        deep: None reads no pixels; 'sample' or 'all' of the pictures and label maps.
    """
    report = Report()
    found: dict[tuple[str, str, str], Finding] = {}
    read = lru_cache(maxsize=1)(_read)  # train and val files need not be in memory at once
    for split in (*needed, *(split for split in SPLITS if split not in needed)):
        if any(True for _ in check_kinds(cfg, split)):  # check_config tells
            continue
        absent = next((path for path in paths_of(cfg, split) if not os.path.exists(path)), None)
        if split not in needed and absent:
            report.counts.append(f'{split}: {absent} is not there, passed over')
            continue
        report.counts += _count_pictures(cfg, split)
        for checks in (check_coco(cfg, split, deep, read, report.counts), check_label_maps(cfg, split, deep)):
            for finding in checks:
                if finding.rule.severity == STOP and split not in (*needed, *later):
                    finding = replace(finding, rule=replace(finding.rule, severity=WARN))
                found.setdefault((finding.rule.name, finding.where, finding.got), finding)
    for finding in (*check_config(cfg, (*needed, *later)), *check_class_folders(cfg, (*needed, *later))):
        found.setdefault((finding.rule.name, finding.where, finding.got), finding)
    report.findings = sorted(found.values(), key=lambda finding: finding.rule.severity != STOP)
    return report


def _count_pictures(cfg: Config, split: str) -> Iterator[str]:
    """Lines with the number of pictures of mmsegmentation's datasets."""
    for source in datasets_of(cfg, split):
        if is_semantic(source):
            with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
                try:
                    dataset = DATASETS.build(dict(source.settings, pipeline=[]))
                except Exception:  # check_label_maps says what is wrong
                    continue
            yield f'{split}: {dataset.data_prefix.get("img_path")}: {len(dataset)} pictures'


def _read(path: str) -> CocoFile:
    size = os.path.getsize(path)
    with tqdm(total=size, unit='B', unit_scale=True, desc=f'checking {path}',
              disable=True if size < BAR_BYTES else None) as bar:  # None: off where there is no terminal
        return CocoFile(path, keep_masks=False, on_progress=bar.update)


def check_before_start(cfg: Config, needed: Sequence[str], later: Sequence[str] = ()) -> None:
    """Check a config and its data before a training or a test; warn, or stop with everything that must be put right.

    With several processes rank 0 checks and the others wait.  What was found sound is not checked again before a file
    changes in size or time.

    Args:
        needed, later: splits, see ``check``.

    Raises:
        PreflightError: with all findings that must stop the run.
        LaunchError: on the other ranks.
    """
    start_processes(cfg)
    decide_together(lambda: _check_and_report(cfg, needed, later), lambda _: None)


def _check_and_report(cfg: Config, needed: Sequence[str], later: Sequence[str]) -> None:
    key = cache.fingerprint(cfg, needed, later)
    lines = cache.load(key)
    if lines is None:
        report = check(cfg, needed, later)
        lines = [str(finding) for finding in report.findings if finding.rule.severity != STOP]
        _log(lines)
        raise_if_stopped(report.findings)
        cache.store(key, lines)
    else:
        _log(lines)


def _log(lines: Iterable[str]) -> None:
    for line in lines:
        print_log(f'preflight: {line}', level=logging.WARNING)
