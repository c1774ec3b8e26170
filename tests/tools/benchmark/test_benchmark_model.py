"""benchmark_model.py on small detectors and segmentors; their times are not judged."""
import json

import pytest
import torch
from mmengine.config import Config

from apt_dense.benchmark import report
from apt_dense.mm.cli import launch
from tests.locations import load_tool

bench = load_tool('benchmark/benchmark_model.py')


@pytest.mark.slow
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
