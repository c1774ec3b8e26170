import pytest
import torch
from mmengine.runner import Runner

from apt_dense.mm.errors import LaunchError
from apt_dense.mm.training.warm_thresholds import WarmThresholdsHook
from tests.mm.conftest import point_to


def with_hook(cfg, **ends):
    cfg.custom_hooks = [*cfg.custom_hooks, dict(type='WarmThresholdsHook', **ends)]
    return cfg


def test_trains_with_many_thresholds_and_tests_with_the_configs(tiny_config, coco_root, tmp_path):
    cfg = with_hook(point_to(tiny_config(), coco_root, tmp_path / 'work', max_iters=4), low=(0.5, 0.5), high=(6, 4))
    cfg.train_cfg.val_interval = 2
    runner = Runner.from_cfg(cfg)
    backbone, seen = runner.model.backbone, {True: [], False: []}
    backbone.register_forward_pre_hook(lambda module, _: seen[module.training].append(module.thresholds))
    runner.train()
    assert len(set(seen[True])) == 4 and set(seen[False]) == {tuple(cfg.model.backbone.thresholds)}
    for fine, coarse in seen[True]:
        assert 0.5 <= fine < 6 and 0.5 <= coarse < 4
        share = torch.tensor(fine / 0.5).log() / torch.tensor(6 / 0.5).log()
        assert coarse == pytest.approx(0.5 * (4 / 0.5)**share.item(), rel=1e-5)
    assert backbone.thresholds == tuple(cfg.model.backbone.thresholds)


def test_thresholds_follow_from_seed_and_iteration():
    hook = WarmThresholdsHook((1,), (4,))
    drawn = [hook.thresholds(seed, iteration)[0] for seed in (0, 1, 2**31 - 1) for iteration in range(200)]
    assert len(set(drawn)) == len(drawn) and drawn[7] == hook.thresholds(0, 7)[0]
    shares = torch.tensor(drawn).log() / torch.tensor(4.).log()
    assert shares.min() < 0.03 and shares.max() > 0.97 and abs(shares.mean() - 0.5) < 0.05


@pytest.mark.parametrize(('ends', 'message'), [
    (dict(low=(2, 2), high=(1, 3)), 'low not above high'),
    (dict(low=(0, 1), high=(1, 3)), 'must be positive numbers'),
    (dict(low=(1,), high=(3, 3)), r'low: got 1 thresholds \(1,\) for 3 scales'),
    (dict(low=(1, 1), high=(3, 3, 3)), r'high: got 3 thresholds'),
])
def test_ends_that_make_no_sense(ends, message, tiny_config, coco_root, tmp_path):
    cfg = with_hook(point_to(tiny_config(), coco_root, tmp_path / 'work'), **ends)
    with pytest.raises(LaunchError, match=message):
        Runner.from_cfg(cfg).train()
