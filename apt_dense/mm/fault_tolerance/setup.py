"""What tools/train.py adds to every config, so that a run survives kills, signals and a full disk."""
from mmengine.config import Config, ConfigDict
from mmengine.logging import print_log

from apt_dense.mm.fault_tolerance import checkpointing, resume, signals  # noqa: F401  (they register what is named here)

TRAIN_LOOPS = {
    'IterBasedTrainLoop': 'ResumableIterBasedTrainLoop',
    'EpochBasedTrainLoop': 'ResumableEpochBasedTrainLoop',
}
HOOKS = ('ResumeStateHook', 'StopOnSignalHook')


def make_fault_tolerant(cfg: Config) -> None:
    """Replace mmengine's train loop and CheckpointHook by those that resume exactly, and add the hooks for it.

    The config itself stays one that mmengine's own tools can run.  ``exact_resume = False`` in it keeps mmengine's
    loop: the data up to the interruption is then loaded again, and what follows differs from an uninterrupted run.  A
    loop or checkpoint hook of another type is kept; without SafeCheckpointHook there is no StopOnSignalHook.
    """
    _replace_loop(cfg)
    hooks = cfg.setdefault('default_hooks', ConfigDict())
    checkpoint = hooks.setdefault('checkpoint', ConfigDict(type='CheckpointHook'))
    if checkpoint and _bare(checkpoint.type) == 'CheckpointHook':
        checkpoint.type = 'SafeCheckpointHook'
    safe = checkpoint and checkpoint.type == 'SafeCheckpointHook'
    present = {hook['type'] for hook in cfg.get('custom_hooks') or ()}
    cfg.custom_hooks = [*(cfg.get('custom_hooks') or ()), *(
        dict(type=name) for name in HOOKS if name not in present and (safe or name != 'StopOnSignalHook'))]


def _replace_loop(cfg: Config) -> None:
    settings = dict(cfg.train_cfg)
    if 'type' not in settings:
        settings['type'] = 'EpochBasedTrainLoop' if settings.pop('by_epoch') else 'IterBasedTrainLoop'
    loop = _bare(settings['type'])
    if not cfg.get('exact_resume', True):
        print_log('exact_resume=False: resumed runs will differ from uninterrupted ones')
    elif loop in TRAIN_LOOPS:
        cfg.train_cfg = dict(settings, type=TRAIN_LOOPS[loop])
    elif loop not in TRAIN_LOOPS.values():
        print_log(f'train_cfg.type={loop!r}: whether it resumes exactly is its own business')


def _bare(kind: str | type) -> str:
    """A registered type's name without its scope."""
    return (kind if isinstance(kind, str) else kind.__name__).rpartition('.')[2]
