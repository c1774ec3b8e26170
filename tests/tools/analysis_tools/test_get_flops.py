"""get_flops.py and benchmark_model.py on small detectors and segmentors; their times are not judged."""
import json

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope

from apt_dense.benchmark import report
from apt_dense.core.flops import dense_layout, multiply_adds
from apt_dense.mm.cli import launch
from tests.locations import load_tool
from tests.mm import conftest
from tests.mm.models import test_seg

flops = load_tool('analysis_tools/get_flops.py')
bench = load_tool('benchmark/benchmark_model.py')


@pytest.fixture
def written(tmp_path, tiny_config, coco_root):
    """written(name) -> the path of a tiny demo config on the small detection or segmentation dataset."""
    scenes = test_seg.write_scenes(tmp_path / 'semantic', [(128, 128), (150, 211)])

    def write(name: str) -> str:
        if name.endswith('seg'):
            cfg = test_seg.point_to(test_seg.tiny(name), scenes, tmp_path / 'work')
        else:
            cfg = conftest.point_to(tiny_config(name), coco_root, tmp_path / 'work')
        cfg.dump(tmp_path / f'{name}.py')
        return str(tmp_path / f'{name}.py')

    return write


@pytest.fixture
def mmseg_scope():
    with DefaultScope.overwrite_default_scope('mmseg'):
        yield


def build(path: str, **backbone):
    cfg = Config.fromfile(path)
    cfg.model.backbone.update(backbone)
    return cfg, flops.build_model(cfg, None)


def test_detector_backbone_is_counted_without_running(written, monkeypatch):
    cfg, model = build(written('apt_eva02_ti_demo_det'))
    inputs = flops.open_inputs(cfg, None)
    with torch.no_grad():
        model.test_step(inputs.sample(0))
    layout = model.backbone.last_layout
    monkeypatch.setattr(type(model.backbone.blocks[0]), 'forward', None)  # would fail if a block ran
    counts = flops.count_backbone(model.backbone, inputs.inputs(0))
    assert counts == dict(backbone=multiply_adds(model.backbone, layout).total, kept=layout.num_tokens / 64,
                          dense_backbone=multiply_adds(model.backbone, dense_layout(layout)).total,
                          kept_content=int(layout.covers_content([(6, 8)]).sum()) / 48)
    assert 0 < counts['kept'] < counts['kept_content'] < 1


def test_every_window_of_a_segmentor_counts(written, mmseg_scope):
    cfg, model = build(written('apt_eva02_ti_demo_seg'), thresholds=(-1.0, -1.0))
    inputs = flops.open_inputs(cfg, None).inputs(1)
    assert len(inputs) == 2, '128 x 180 px in windows of 128, 85 apart'
    counts = flops.count_backbone(model.backbone, inputs)
    one = multiply_adds(model.backbone, model.backbone.chooser.layout(inputs[0].x)).total
    assert counts == dict(backbone=2 * one, dense_backbone=2 * one, kept=1, kept_content=1)


def test_neck_and_heads_of_a_segmentor(written, mmseg_scope):
    """The neck alone is counted by hand: 2 + 1 transposed convolutions; the heads are in the same sum."""
    cfg, model = build(written('eva02_ti_demo_seg'))
    inputs = flops.open_inputs(cfg, None)
    with torch.no_grad():
        rest = flops.count_rest(model, inputs.sample(0))
        model.neck.forward = lambda maps: [
            torch.zeros(1, 32, side, side) for side in (32, 16, 8, 4)]  # the same shapes for nothing
        without_neck = flops.count_rest(model, inputs.sample(0))
    assert rest - without_neck == 32 * 32 * 4 * (8 * 8 + 16 * 16 + 8 * 8)


def test_get_flops_of_a_folder(written, tmp_path, capsys):
    folder = tmp_path / 'photos'
    folder.mkdir()
    for index in range(3):
        cv2.imwrite(str(folder / f'{index}.png'), np.random.default_rng(index).integers(0, 256, (90, 100 + index, 3)))
    (folder / 'notes.txt').write_text('no image')
    out = tmp_path / 'out/flops.json'
    flops.main([written('apt_eva02_ti_demo_det'), '--images', str(folder), '--num-images', '2', '--json', str(out)])
    content = json.loads(out.read_text())
    assert len(content['images']) == 2 and len(content['neck_and_heads']) == 1
    printed = capsys.readouterr().out
    assert '2 images' in printed and 'dense / APT, whole model' in printed
    line = next(line for line in printed.splitlines() if line.startswith('backbone, G'))
    mean = np.mean([image['backbone'] for image in content['images']])
    assert float(line.split()[3]) == pytest.approx(mean / 1e9, abs=6e-4)
    (tmp_path / 'empty').mkdir()
    with pytest.raises(launch.LaunchError, match='empty holds no image'):
        flops.main([written('apt_eva02_ti_demo_det'), '--images', str(tmp_path / 'empty')])


def test_other_backbones_are_refused(written):
    cfg = Config.fromfile(written('apt_eva02_ti_demo_det'))
    cfg.model.backbone = dict(type='mmdet.ResNet', depth=18)
    with pytest.raises(launch.LaunchError, match='wanted APTEVA02'):
        flops.open_inputs(cfg, None)


@pytest.mark.parametrize('kind', ['det', 'seg'])
def test_inference_against_the_dense_twin(written, tmp_path, capsys, kind):
    apt, dense = written(f'apt_eva02_ti_demo_{kind}'), written(f'eva02_ti_demo_{kind}')
    out = tmp_path / 'speed.json'
    bench.main([apt, '--against', dense, '--max-iter', '2', '--num-warmup', '1', '--num-batches', '2', '--json',
                str(out)])
    content = json.loads(out.read_text())
    results = content['results']
    assert list(results) == [apt, dense]
    assert results[apt]['kept'] < 1 and results[dense]['kept'] == 1
    thresholds = list(Config.fromfile(apt).model.backbone.thresholds)
    assert [results[name]['thresholds'] for name in (apt, dense)] == [thresholds, []]
    assert content['setting'].startswith('inference, batch 1, float32, ') and apt in content['environment']['command']
    table = report.whole_table(results).splitlines()
    assert f'{results[apt]["speedup"]:.3f} (' in table[2] and table[3].split()[-2] == '-'
    for result in results.values():
        times = result['seconds']['times']
        assert len(times) == 2 and result['images_per_second'] == pytest.approx(2 / sum(times))
    printed = capsys.readouterr().out.splitlines()
    assert printed[-4].startswith('inference, batch 1, float32') and printed[-1].startswith('speed-up: ')
    assert not (tmp_path / 'work').exists(), 'measuring leaves no work directory'


def test_mixed_precision_of_the_backbone(written):
    path = written('apt_eva02_ti_demo_det')
    args = bench.parse_args([path, '--amp', '--num-batches', '1'])
    cfg = launch.load_config(args)
    contestant, batch = bench.build(cfg, None, args), bench.load_batches(cfg, args)[0]
    dtypes = []
    contestant.model.backbone.blocks[0].attn.proj.register_forward_hook(lambda *call: dtypes.append(call[2].dtype))
    contestant.model.neck.register_forward_hook(lambda *call: dtypes.append(call[2][0].dtype))
    contestant.step(batch)
    assert dtypes[0] in (torch.bfloat16, torch.float16) and dtypes[1] == torch.float32


def test_missing_data_is_found_before_the_model_is_built(written, monkeypatch):
    monkeypatch.setattr(flops, 'build_model', None)
    with pytest.raises(launch.LaunchError, match='dataset files are missing'):
        flops.main([written('apt_eva02_ti_demo_det'), '--cfg-options', 'test_dataloader.dataset.data_root=/nowhere'])


def test_training_step_changes_the_weights(written):
    path = written('apt_eva02_ti_demo_det')
    args = bench.parse_args([path, '--task', 'train', '--num-batches', '1'])
    cfg = launch.load_config(args)
    contestant, batch = bench.build(cfg, None, args), bench.load_batches(cfg, args)[0]
    before = contestant.model.backbone.patch_embed.proj.weight.clone()
    results = bench.compare({'apt': contestant}, [batch], 1, 0, 'wall')
    assert not torch.equal(before, contestant.model.backbone.patch_embed.proj.weight)
    assert len(batch['inputs']) == 2 and results['apt']['seconds']['min'] > 0


def test_checkpoints_are_checked_and_loaded(written, tmp_path):
    path = written('eva02_ti_demo_det')
    args = bench.parse_args([path])
    cfg = launch.load_config(args)
    with pytest.raises(launch.LaunchError, match='does not exist'):
        bench.build(cfg, str(tmp_path / 'missing.pth'), args)
    model = bench.build(cfg, None, args).model
    torch.nn.init.constant_(model.backbone.pos_embed, 0.25)
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'weights.pth')
    loaded = bench.build(launch.load_config(args), str(tmp_path / 'weights.pth'), args).model
    assert (loaded.backbone.pos_embed == 0.25).all()
