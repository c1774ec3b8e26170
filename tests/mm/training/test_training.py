"""Training and evaluation through mmengine's runner, on data as it comes."""
import json
import math
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmengine.runner import Runner
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import apt_dense.mm.det  # noqa: F401
from apt_dense.mm.training import hooks
from tests.mm.conftest import ADDED, draw_scene, point_to, write_coco


def run(cfg) -> Runner:
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner


def logged_scalars(work_dir) -> list[dict]:
    return [json.loads(line) for path in work_dir.rglob('vis_data/scalars.json')
            for line in path.read_text().splitlines()]


def losses_of(work_dir) -> list[float]:
    return [entry['loss'] for entry in logged_scalars(work_dir) if 'loss' in entry]


@pytest.mark.parametrize('name', ['apt_eva02_ti_demo_det', 'eva02_ti_demo_det'])
def test_train_and_evaluate(name, tiny_config, coco_root, tmp_path):
    cfg = point_to(tiny_config(name), coco_root, tmp_path / 'work', max_iters=3)
    cfg.visualizer.vis_backends = [dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')]
    run(cfg)
    assert (tmp_path / 'work/iter_3.pth').is_file()
    scalars = logged_scalars(tmp_path / 'work')
    train = [entry for entry in scalars if 'loss' in entry]
    val = next(entry for entry in scalars if 'coco/bbox_mAP' in entry)
    assert len(train) == 3 and all(math.isfinite(entry['loss']) for entry in train)
    for kept in (*(entry['kept_tokens'] for entry in train), val['val_kept_tokens']):
        assert 0 < kept < 1 if name.startswith('apt') else kept == 1
    assert all(entry['tokens_per_second'] > 0 for entry in train)
    assert {'coco/bbox_mAP_50', 'coco/segm_mAP'} <= val.keys()
    events = next((tmp_path / 'work').rglob('events.out.tfevents*'))
    accumulator = EventAccumulator(str(events)).Reload()
    assert {'kept_tokens', 'val_kept_tokens', 'tokens_per_second', 'loss'} <= set(accumulator.Tags()['scalars'])


@pytest.mark.parametrize(('name', 'kept'), [('apt_eva02_ti_demo_det', 12 / 48), ('eva02_ti_demo_det', 1)])
def test_kept_tokens_without_padding(name, kept, tiny_config, tmp_path):
    """Constant images of 96 x 128 px, padded to 128 x 128: 6 x 8 of 8 x 8 cells, 3 x 4 of 4 x 4 patches of 32 px."""
    grey = np.full((96, 128, 3), 90, np.uint8)
    write_coco(tmp_path / 'data', [(f'{index}.png', grey, [[10, 10, 30, 30]]) for index in range(2)])
    cfg = point_to(tiny_config(name), tmp_path / 'data', tmp_path / 'work', max_iters=1)
    cfg.train_dataloader.dataset.pipeline = cfg.train_dataloader.dataset.pipeline[:2] + [dict(type='PackDetInputs')]
    if kept < 1:
        cfg.model.backbone.thresholds = (3.0, -1.0)  # no patches of 64 px
    run(cfg)
    train, val = (next(entry for entry in logged_scalars(tmp_path / 'work') if key in entry)
                  for key in ('loss', 'coco/bbox_mAP'))
    assert train['kept_tokens_content'] == val['val_kept_tokens_content'] == pytest.approx(kept)
    assert train['kept_tokens'] == val['val_kept_tokens'] == pytest.approx(16 / 64 if kept < 1 else 1)


def test_short_fine_tuning_changes_nothing_else(tiny_config, coco_root, tmp_path):
    cfg = point_to(tiny_config(), coco_root, tmp_path / 'work', max_iters=2)
    cfg.model.trainable = ADDED
    dense = MODELS.build(tiny_config('eva02_ti_demo_det').model)
    dense.init_weights()
    torch.save({'state_dict': dense.state_dict()}, tmp_path / 'dense.pth')
    cfg.load_from = str(tmp_path / 'dense.pth')
    runner = run(cfg)
    trained = runner.model.state_dict()
    for name, value in dense.state_dict().items():
        assert torch.equal(trained[name], value), name
    assert trained['backbone.patch_embed.zero_mlp.weight'].abs().max() > 0
    wanted = {f'{prefix}.{kind}' for prefix in ADDED for kind in ('weight', 'bias')}
    parameters = dict(runner.model.named_parameters())
    assert {id(value) for value in runner.optim_wrapper.optimizer.state} == {id(parameters[name]) for name in wanted}
    assert all(parameters[name].grad is None for name in parameters.keys() - wanted)
    log = next((tmp_path / 'work').rglob('*.log')).read_text()
    assert 'parameters, all others are frozen: backbone.patch_embed.conv_down.weight, ' in log


def test_short_fine_tuning_wants_all_frozen_weights(tiny_config, coco_root, tmp_path):
    """mmengine loads what fits and logs the rest: frozen random weights would pass for a trained detector."""
    cfg = point_to(tiny_config(), coco_root, tmp_path / 'work')
    cfg.model.trainable = ADDED
    state = MODELS.build(tiny_config('eva02_ti_demo_det').model).state_dict()
    del state['backbone.blocks.1.norm1.weight']
    state['rpn_head.rpn_cls.bias'] = torch.zeros(7)
    torch.save({'state_dict': state}, tmp_path / 'dense.pth')
    cfg.load_from = str(tmp_path / 'dense.pth')
    cfg.custom_hooks.append(dict(type='CheckFrozenLoadedHook'))
    with pytest.raises(ValueError, match=r'dense\.pth lacks 2 frozen parameters.*backbone\.blocks\.1\.norm1\.weight'):
        run(cfg)


def test_short_fine_tuning_wants_a_checkpoint(tiny_config, coco_root, tmp_path):
    cfg = point_to(tiny_config(), coco_root, tmp_path / 'work')
    cfg.model.trainable = ADDED
    cfg.custom_hooks.append(dict(type='CheckFrozenLoadedHook'))
    with pytest.raises(ValueError, match='no checkpoint was loaded: set load_from'):
        run(cfg)


def test_odd_images(tiny_config, tmp_path):
    """A grey file, one with alpha, 1 x 1 px, 10000 x 10 px, and images without objects train and evaluate."""
    rng = np.random.default_rng(1)
    scene, boxes = draw_scene(rng, 96, 128, 2)
    scenes = [
        ('grey.png', cv2.cvtColor(scene, cv2.COLOR_BGR2GRAY), boxes),
        ('alpha.png', np.dstack([scene, np.full(scene.shape[:2], 128, np.uint8)]), boxes),
        ('dot.png', np.full((1, 1, 3), 7, np.uint8), []),
        ('strip.png', rng.integers(0, 255, (10, 10000, 3), np.uint8), [[100, 0, 4000, 10]]),
        ('empty.jpg', np.zeros((100, 60, 3), np.uint8), []),
        ('usual.jpg', scene, boxes),
    ]
    write_coco(tmp_path / 'data', scenes)
    cfg = point_to(tiny_config(), tmp_path / 'data', tmp_path / 'work', max_iters=6)
    run(cfg)
    losses = losses_of(tmp_path / 'work')
    assert len(losses) == 6 and all(math.isfinite(loss) for loss in losses)


def test_empty_annotation_list(tiny_config, tmp_path):
    rng = np.random.default_rng(2)
    write_coco(tmp_path / 'data', [(f'{index}.jpg', draw_scene(rng, 96, 128, 1)[0], []) for index in range(3)])
    cfg = point_to(tiny_config(), tmp_path / 'data', tmp_path / 'work', max_iters=2)
    run(cfg)
    losses = losses_of(tmp_path / 'work')
    assert len(losses) == 2 and all(math.isfinite(loss) for loss in losses)


def test_wrong_padding_says_what_to_set(tiny_config, coco_root, tmp_path):
    cfg = point_to(tiny_config(), coco_root, tmp_path / 'work')
    cfg.model.data_preprocessor.pad_size_divisor = 32
    with pytest.raises(ValueError, match=r'grid \d+x\d+ is not a multiple of window_size=4: .*pad_size_divisor=64'):
        run(cfg)


def test_a_batch_without_coarse_patches_leaves_no_gradient_out(tiny_config):
    """Data-parallel training needs a gradient for every parameter, whatever the images hold."""
    cfg = tiny_config().model
    cfg.backbone.thresholds = (-1.0, -1.0)
    backbone = MODELS.build(cfg.backbone)
    backbone(torch.randn(2, 3, 128, 128))[0].sum().backward()
    assert not [name for name, parameter in backbone.named_parameters() if parameter.grad is None]


def test_hook_needs_the_backbone(tiny_config, coco_root, tmp_path):
    cfg = point_to(tiny_config(), coco_root, tmp_path / 'work')
    cfg.model.backbone = dict(type='mmdet.ResNet', depth=18, out_indices=(2,))
    cfg.model.neck = dict(type='mmdet.FPN', in_channels=[256], out_channels=64, num_outs=5)
    with pytest.raises(ValueError, match='KeptTokensHook needs a model whose backbone packs tokens, .*, got ResNet'):
        run(cfg)


def test_idle_share_of_a_resumed_run(monkeypatch):
    """Resumed at a multiple of the interval it is the uninterrupted run's; in between the first counts fewer."""
    monkeypatch.setattr(hooks.dist, 'get_world_size', lambda: 2)
    monkeypatch.setattr(hooks.dist, 'all_gather', lambda own: [own, torch.full_like(own, 100)])

    def logged_from(start: int) -> dict[int, tuple[float, str]]:
        found, hook = {}, hooks.KeptTokensHook(interval=3)
        for iteration in range(start, 9):
            layout = SimpleNamespace(scale_counts=(10 * iteration,), num_cells=100, batch_size=1, height=10, width=10,
                                     covers_content=lambda content: torch.ones(10))
            monkeypatch.setattr(hooks, 'backbone_of', lambda model, layout=layout: SimpleNamespace(
                last_layout=layout, patch_size=16, chooser=SimpleNamespace(max_tokens=None, last_num_raised=0)))
            scalars, lines = {}, []
            hook.after_train_iter(SimpleNamespace(
                model=None, iter=iteration, message_hub=SimpleNamespace(update_scalar=scalars.__setitem__),
                logger=SimpleNamespace(info=lines.append)), 0)
            if 'train/idle_share' in scalars:
                found[iteration + 1] = scalars['train/idle_share'], lines[0]
        return found

    whole = logged_from(0)
    assert list(whole) == [3, 6, 9]
    assert logged_from(3) == {key: whole[key] for key in (6, 9)}
    between = logged_from(4)
    assert between[9] == whole[9] and 'mean of 2 iterations: 45 100' in between[6][1]
