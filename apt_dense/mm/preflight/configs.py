"""A config before the first iteration: what contradicts itself, what has no effect, what fails after hours."""
from collections.abc import Iterator, Sequence

from mmengine.config import Config

from apt_dense.mm.preflight import (
    configs_building,
    configs_classes,
    configs_evaluation,
    configs_keys,
    configs_kinds,
    configs_loading,
    configs_metrics,
    configs_ranges,
    configs_types,
    configs_unused,
)
from apt_dense.mm.preflight.findings import Finding

MODULES = (configs_kinds, configs_types, configs_keys, configs_classes, configs_metrics, configs_evaluation,
           configs_loading, configs_ranges, configs_building, configs_unused)
RULES = tuple(rule for module in MODULES for rule in module.RULES)


def check_config(cfg: Config, splits: Sequence[str]) -> Iterator[Finding]:
    """Check a config, see RULES; files are opened where sizes of pictures or two annotation files are compared.

    Args:
        splits: of 'train', 'val', 'test'; those that are None in the config are passed over.
    """
    root = list(configs_kinds.check_root(cfg))
    yield from root
    if root:
        return
    yield from configs_kinds.check_counts(cfg) if 'train' in splits else ()
    broken = {split: list(configs_kinds.check_kinds(cfg, split)) for split in splits}
    for found in broken.values():
        yield from found
    splits = [split for split in splits if not broken[split]]  # what cannot be read cannot be checked further
    yield from configs_types.check_types(cfg, splits)
    yield from configs_keys.check_keys(cfg, splits)
    yield from configs_classes.check_classes(cfg, splits)
    yield from configs_metrics.check_metrics(cfg, splits)
    yield from configs_evaluation.check_evaluation(cfg, splits)
    yield from configs_loading.check_loading(cfg, splits)
    yield from configs_ranges.check_ranges(cfg, splits)
    yield from configs_building.check_building(cfg, splits)
    yield from configs_unused.check_unused(cfg)
