"""Data loaders, loops and pipelines: settings that stop a run late, or let it train on nothing new."""
import importlib.util
from collections.abc import Iterator, Sequence

from mmengine.config import Config
from mmengine.fileio.backends.registry_utils import backends
from mmengine.registry import DATASETS, TRANSFORMS

from apt_dense.mm.preflight.datasets import joined
from apt_dense.mm.preflight.findings import STOP, WARN, Finding, Rule, raise_if_stopped
from apt_dense.mm.preflight.parts import class_of, kind_of, leaf_datasets, listed, metrics_of, nested_steps

WORKERS = Rule(
    'workers-settings-without-workers', STOP, 'settings of data loader workers where there are none',
    'Take them out with num_workers=0: persistent_workers=False, prefetch_factor=None')
ENDLESS = Rule(
    'endless-sampler', STOP, 'an InfiniteSampler where an end is wanted: an epoch, a validation, a test',
    "Train with train_cfg=dict(type='IterBasedTrainLoop', max_iters=N), or take sampler=dict(type='DefaultSampler')")
INCOMPLETE = Rule(
    'incomplete-split', STOP, 'a data loader for validation or testing without its evaluator, or the other way round',
    'Set both, or both to None')
BY_EPOCH = Rule(
    'counted-in-epochs', WARN, 'schedules or checkpoints that count epochs in a training that counts iterations',
    'Add by_epoch=False, with its numbers in iterations: an IterBasedTrainLoop has one epoch, which ends with it')
LATE = Rule(
    'later-than-the-end', WARN, 'schedules that end, or validations that begin, after the last iteration',
    'Set it along with train_cfg.max_iters')
AT_REST = Rule(
    'rate-of-zero', WARN, 'a rate that falls to 0 before the end of the training, after which nothing is learnt',
    'Set its end to that of the training, or an eta_min')
BACKEND = Rule(
    'storage-that-does-not-fit', STOP, 'backend_args that do not fit the paths, or cannot be used here',
    'Local paths: no backend_args; addresses: the backend of their kind, and data_root with the address')
MIXING = Rule(
    'mixing-without-samples', STOP, 'CopyPaste, Mosaic, MixUp or another step that mixes samples, and gets none to mix',
    "Wrap the dataset: dict(type='MultiImageMixDataset', dataset=dict(..., pipeline=[the loading steps]), "
    'pipeline=[the mixing step, and all after it]), the mixing step at its top level')
MASKLESS = Rule(
    'mixing-without-masks', STOP, 'Mosaic or MixUp where masks are loaded: they move boxes only',
    'Take CachedMosaic or CachedMixUp, which move masks and want no MultiImageMixDataset, or load no masks')
UNSIZED = Rule(
    'pasting-into-other-sizes', WARN, 'CopyPaste of pictures that may have several sizes, which fails',
    "Add to the inner pipeline what makes them equal: RandomResize, RandomCrop and dict(type='Pad', size=(N, N))")
RULES = (WORKERS, ENDLESS, INCOMPLETE, BY_EPOCH, LATE, AT_REST, BACKEND, MIXING, MASKLESS, UNSIZED)

WITHOUT_MASKS = ('Mosaic', 'MixUp', 'YOLOXMixUp')
PACKAGES = {'petrel': 'petrel_client', 'lmdb': 'lmdb', 'memcached': 'mc'}  # that mmengine's backends import


def check_loading(cfg: Config, splits: Sequence[str]) -> Iterator[Finding]:
    """Check data loaders, loops and pipelines; see RULES."""
    yield from _check_complete(cfg, splits)
    if 'train' in splits:
        yield from _check_counting(cfg)
        yield from _check_rate(cfg)
    for split in splits:
        yield from check_loader(cfg, split)
        yield from _check_backends(cfg, split)
        yield from _check_mixing(cfg, split)


def check_loader(cfg: Config, split: str) -> Iterator[Finding]:
    """Check a split's workers and sampler: what ends a run in torch's words, or never."""
    loader, key = cfg.get(f'{split}_dataloader'), f'{split}_dataloader'
    if not isinstance(loader, dict):
        return
    if not loader.get('num_workers'):
        for name in ('persistent_workers', 'prefetch_factor'):
            if loader.get(name):
                yield Finding(WORKERS, f'{key}.{name}', f'{loader[name]}, and {key}.num_workers is 0')
    train_cfg = cfg.get('train_cfg') or {}
    epochs = split != 'train' or 'Epoch' in kind_of(train_cfg) or train_cfg.get('by_epoch')
    for name in ('sampler', 'batch_sampler'):
        kind = kind_of(loader.get(name))
        if epochs and ('Infinite' in kind or kind in ('TokenBalancedBatchSampler', 'MultiDataSampler')):
            wanted = f'train_cfg counts epochs ({kind_of(train_cfg) or "by_epoch=True"})' if split == 'train' else (
                f'a {"validation" if split == "val" else "test"} ends after each picture once')
            yield Finding(ENDLESS, f'{key}.{name}.type', f'{kind} has no end, and {wanted}')


def check_loaders(cfg: Config, *splits: str) -> None:
    """Check what torch's data loaders refuse in words of their own, or never end with; see ``check_loader``.

    Raises:
        PreflightError: naming the settings.
    """
    raise_if_stopped(finding for split in splits for finding in check_loader(cfg, split))


def _check_complete(cfg: Config, splits: Sequence[str]) -> Iterator[Finding]:
    for split in splits:
        names = (f'{split}_dataloader', f'{split}_evaluator')
        given = [name for name in names if cfg.get(name) is not None]
        if split != 'train' and len(given) == 1:
            absent, = set(names) - set(given)
            yield Finding(INCOMPLETE, absent, f'not set, and {given[0]} is')


def _schedules(cfg: Config) -> Sequence:
    schedules = cfg.get('param_scheduler') or []
    return schedules if isinstance(schedules, (list, tuple)) else [schedules]


def _check_rate(cfg: Config) -> Iterator[Finding]:
    train_cfg = cfg.get('train_cfg') or {}
    by_epoch = 'Epoch' in kind_of(train_cfg) or bool(train_cfg.get('by_epoch'))
    unit = 'max_epochs' if by_epoch else 'max_iters'
    last, schedules = train_cfg.get(unit), [one for one in _schedules(cfg) if isinstance(one, dict)]
    for index, schedule in enumerate(schedules):
        end = schedule.get('end')
        falls = kind_of(schedule) in ('CosineAnnealingLR', 'PolyLR') and schedule.get('eta_min', 0) == 0 and (
            'eta_min_ratio' not in schedule and schedule.get('by_epoch', True) == by_epoch)
        if falls and isinstance(end, int) and isinstance(last, int) and end < last and not any(
                other.get('begin', 0) >= end for other in schedules):
            yield Finding(AT_REST, f'param_scheduler.{index}.end', f'{end}, and train_cfg.{unit} is {last}')


def _check_counting(cfg: Config) -> Iterator[Finding]:
    train_cfg = cfg.get('train_cfg') or {}
    last = train_cfg.get('max_iters')
    schedules = _schedules(cfg)
    if not isinstance(last, int) or 'Epoch' in kind_of(train_cfg) or train_cfg.get('by_epoch'):
        return
    for index, schedule in enumerate(schedules):
        key = f'param_scheduler.{index}'
        if isinstance(schedule, dict) and schedule.get('by_epoch', True) and not schedule.get('convert_to_iter_based'):
            yield Finding(BY_EPOCH, f'{key}.by_epoch', f'True, and train_cfg.max_iters is {last}: the rate stays')
        elif isinstance(schedule, dict) and isinstance(schedule.get('end'), int) and schedule['end'] > last:
            yield Finding(LATE, f'{key}.end', f'{schedule["end"]}, and train_cfg.max_iters is {last}')
    hook = (cfg.get('default_hooks') or {}).get('checkpoint')
    if isinstance(hook, dict) and hook.get('by_epoch', True):
        yield Finding(BY_EPOCH, 'default_hooks.checkpoint.by_epoch',
                      f'True, and train_cfg.max_iters is {last}: no checkpoint before the end')
    if train_cfg.get('val_begin', 1) > last:
        yield Finding(LATE, 'train_cfg.val_begin', f'{train_cfg["val_begin"]}, and train_cfg.max_iters is {last}: '
                      'nothing is validated')


def _check_backends(cfg: Config, split: str) -> Iterator[Finding]:
    for (key, settings), _ in leaf_datasets(cfg, split):
        prefixes = settings.get('data_prefix') if isinstance(settings.get('data_prefix'), dict) else {}
        paths = {f'{key}.ann_file': settings.get('ann_file'),
                 **{f'{key}.data_prefix.{name}': path for name, path in prefixes.items()}}
        paths = {name: joined(settings, path) for name, path in paths.items() if isinstance(path, str) and path}
        yield from _check_backend(f'{key}.backend_args', settings.get('backend_args'), paths)
        kind = class_of(settings, DATASETS, cfg)
        lists = kind is not None and 'BaseSegDataset' in [base.__name__ for base in kind.__mro__]
        remote = next((path for path in paths.values() if path.startswith(('http://', 'https://'))), None)
        if lists and remote and not settings.get('ann_file'):
            yield Finding(BACKEND, f'{key}.ann_file', f'not set, and {remote} cannot be listed: give a list of names')
        for step_key, step in nested_steps(settings.get('pipeline'), f'{key}.pipeline'):
            images = {name: path for name, path in paths.items() if not name.endswith('ann_file')}
            yield from _check_backend(f'{step_key}.backend_args', step.get('backend_args'), images)
    for key, metric in metrics_of(cfg, split):
        if isinstance(metric.get('ann_file'), str):
            yield from _check_backend(f'{key}.backend_args', metric.get('backend_args'),
                                      {f'{key}.ann_file': metric['ann_file']})


def _check_backend(key: str, backend_args: dict | None, paths: dict[str, str]) -> Iterator[Finding]:
    name = backend_args.get('backend', 'local') if isinstance(backend_args, dict) else None
    if name is None:
        return
    if name not in backends:
        yield Finding(BACKEND, f'{key}.backend', f'{name!r} is not one of {listed(backends)}')
        return
    package = PACKAGES.get(name)
    if package and importlib.util.find_spec(package) is None:
        yield Finding(BACKEND, f'{key}.backend', f'{name!r} needs the package {package}, which is not installed')
    for path_key, path in paths.items():
        is_address = path.startswith(('http://', 'https://'))
        if name == 'http' and not is_address or name == 'local' and '://' in path:
            kind = 'no address' if name == 'http' else 'an address'
            yield Finding(BACKEND, f'{key}.backend', f'{name!r}, and {path_key} is {path}, {kind}')
            return


def _check_mixing(cfg: Config, split: str) -> Iterator[Finding]:
    for leaf, wrappers in leaf_datasets(cfg, split):
        for key, node in (*wrappers, leaf):
            mixes = kind_of(node) == 'MultiImageMixDataset'
            for step_key, step in nested_steps(node.get('pipeline'), f'{key}.pipeline'):
                at_top = mixes and step_key.rpartition('.')[0] == f'{key}.pipeline'
                if _is_mixing(step, cfg) and not at_top:
                    place = f'inside another step of {key}' if mixes else f'in the pipeline of a {kind_of(node)}'
                    yield Finding(MIXING, step_key, f'{kind_of(step)} stands {place}, where it gets one sample')
            if mixes and cfg.get('model'):
                yield from _check_mixed(key, node, leaf, cfg)


def _is_mixing(step: dict, cfg: Config) -> bool:
    kind = class_of(step, TRANSFORMS, cfg)
    draws = kind is not None and any({'get_indexes', 'get_indices'} & set(vars(base)) for base in kind.__mro__)
    return draws and not kind_of(step).startswith('Cached')


def _check_mixed(key: str, wrapper: dict, leaf: tuple[str, dict], cfg: Config) -> Iterator[Finding]:
    """What the samples must have that a MultiImageMixDataset mixes."""
    inner = list(nested_steps(leaf[1].get('pipeline'), f'{leaf[0]}.pipeline'))
    mixing = [step for _, step in nested_steps(wrapper.get('pipeline'), key) if _is_mixing(step, cfg)]
    packed = [step_key for step_key, step in inner if kind_of(step).startswith('Pack')]
    if mixing and packed:
        yield Finding(MIXING, packed[0], f'packs the samples before {kind_of(mixing[0])} mixes them')
    loads = [(step_key, step) for step_key, step in inner if kind_of(step) == 'LoadAnnotations']
    where = f'{loads[0][0]}.with_mask' if loads else f'{leaf[0]}.pipeline'
    masks = any(load.get('with_mask') for _, load in loads)
    sized = any(kind_of(step) in ('Pad', 'Resize') and not step.get('keep_ratio') for _, step in inner)
    for kind in {kind_of(step): step for step in mixing}:
        if kind in WITHOUT_MASKS and masks:
            yield Finding(MASKLESS, where, f'True, and {kind} mixes no masks: those of one picture are left')
        elif kind == 'CopyPaste' and not masks and not any(step.get('paste_by_box') for step in mixing):
            yield Finding(MIXING, where, 'no masks are loaded, and CopyPaste wants them: with_mask=True')
        elif kind == 'CopyPaste' and not sized:
            yield Finding(UNSIZED, f'{leaf[0]}.pipeline', 'no Pad, and no Resize without keep_ratio')
