"""Time the demo detector's steps with the plain operators and with mmcv's compiled ones.

    make data && python tools/benchmark/operators.py

In an environment of `MMCV=compiled make setup`.  Two models with the same weights take the same steps on the same
batches, in turns; process time of one thread.
"""
import argparse
import copy
import importlib
import sys
import time
from collections.abc import Callable

import torch

import apt_dense.mm.det  # noqa: F401  provides the plain operators
from apt_dense.command_line import at_least
from apt_dense.extras import from_extra
from apt_dense.mm.compat import filter_library_warnings, plain_operators

with from_extra('mm'):
    from mmdet.registry import MODELS
    from mmengine.config import Config
    from mmengine.logging import MMLogger
    from mmengine.optim import build_optim_wrapper
    from mmengine.registry import init_default_scope
    from mmengine.runner import Runner, set_random_seed

KINDS = ('compiled', 'plain')


def use(operators: object) -> None:
    """Let mmcv take its operators from there."""
    sys.modules['mmcv._ext'] = operators
    for name in ('nms', 'roi_align'):
        importlib.import_module(f'mmcv.ops.{name}').ext_module = operators


def seconds_of(step: Callable, seed: int) -> float:
    set_random_seed(seed)
    start = time.process_time()
    step()
    return time.process_time() - start


def report(name: str, seconds: dict[str, list[float]]) -> None:
    totals = {kind: sum(values) for kind, values in seconds.items()}
    ratios = torch.tensor(seconds['plain']) / torch.tensor(seconds['compiled'])
    low, middle, high = ratios.quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()
    print(f'{name}: {len(ratios)} steps, compiled {totals["compiled"]:.1f} s, plain {totals["plain"]:.1f} s, ratio '
          f'{totals["plain"] / totals["compiled"]:.3f}; of single steps {middle:.3f}, half of them between {low:.3f} '
          f'and {high:.3f}')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--config', default='configs/apt_eva02_ti_demo_det.py')
    parser.add_argument('--train', type=at_least(1), default=100, help='training steps')
    parser.add_argument('--test', type=at_least(1), default=40, help='pictures to test after them')
    args = parser.parse_args()
    sets = {'plain': plain_operators()}
    if sets['plain'] is None or isinstance(sets['plain'].compiled, str):
        sys.exit('error: it takes both kinds of operators: MMCV=compiled make setup, and APT_DENSE_OPS unset')
    sets['compiled'] = sets['plain'].compiled
    torch.set_num_threads(1)
    filter_library_warnings()
    MMLogger.get_current_instance().setLevel('WARNING')  # or it tells how each parameter was initialised
    cfg = Config.fromfile(args.config)
    init_default_scope('mmdet')
    for loader in (cfg.train_dataloader, cfg.test_dataloader):
        loader.update(num_workers=0, persistent_workers=False)
    set_random_seed(0)
    first = MODELS.build(cfg.model)
    first.init_weights()
    models = {kind: copy.deepcopy(first).train() for kind in KINDS}
    wrappers = {kind: build_optim_wrapper(models[kind], cfg.optim_wrapper) for kind in KINDS}

    def timed(step: Callable, seed: int, seconds: dict[str, list[float]]) -> None:
        for kind in KINDS if seed % 2 else reversed(KINDS):
            use(sets[kind])
            seconds[kind].append(seconds_of(lambda kind=kind: step(kind), seed))

    seconds = {kind: [] for kind in KINDS}
    batches = iter(Runner.build_dataloader(cfg.train_dataloader, seed=0))
    for number in range(args.train):
        batch = next(batches)
        timed(lambda kind, batch=batch: models[kind].train_step(copy.deepcopy(batch), wrappers[kind]), number, seconds)
    report('training', seconds)
    seconds = {kind: [] for kind in KINDS}
    batches = iter(Runner.build_dataloader(cfg.test_dataloader, seed=0))
    with torch.no_grad():
        for number, batch in zip(range(args.test), batches, strict=False):
            timed(lambda kind, batch=batch: models[kind].eval().test_step(copy.deepcopy(batch)), number, seconds)
    report('test', seconds)


if __name__ == '__main__':
    main()
