"""What a config's backbone is given: the same token counts as the real model's, in testing and in training."""
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope, init_default_scope
from mmengine.runner import Runner

import apt_dense.mm.det
import apt_dense.mm.seg  # noqa: F401
from apt_dense.calibration.thresholds import ScoreMaps
from apt_dense.calibration.token_counts import read_token_counts
from apt_dense.mm.data.inputs import ConfigInputs, input_settings
from tests.locations import load_tool
from tests.mm import conftest
from tests.mm.models import test_seg


@pytest.fixture
def det_config(tiny_config, coco_root, tmp_path) -> Config:
    return conftest.point_to(tiny_config(), coco_root, tmp_path / 'work')


@pytest.fixture
def seg_config(tmp_path) -> Config:
    """Images of the crop's size, larger (several windows), smaller, no multiples of 16."""
    root = test_seg.write_scenes(tmp_path / 'data', [(128, 128), (150, 211), (99, 75), (96, 200)])
    return test_seg.point_to(test_seg.tiny(), root, tmp_path / 'work')


def counted(inputs: ConfigInputs, thresholds: tuple[float, ...]) -> list[list[tuple[int, ...]]]:
    """For each image, for each of its inputs: tokens of each scale."""
    result = []
    for index in range(len(inputs)):
        scores = ScoreMaps(inputs.chooser.num_scales)
        for maps, content in inputs.score(index):
            scores.add(maps, content)
        result.append([tuple(row) for row in scores.count_tokens(thresholds).tolist()])
    return result


def counted_by_the_model(cfg: Config) -> list[list[tuple[int, ...]]]:
    """The same from the layouts of the real backbone's forward passes in testing."""
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model).eval()
    current = []
    model.backbone.register_forward_hook(
        lambda backbone, args, outputs: current.append(backbone.last_layout.scale_counts))
    result = []
    with torch.no_grad():
        for batch in Runner.build_dataloader(cfg.test_dataloader):
            current.clear()
            model.test_step(batch)
            result.append(list(current))
    return result


def test_detection_with_its_padding(det_config):
    expected = counted_by_the_model(det_config)
    assert len(expected) == 6 and all(len(inputs) == 1 for inputs in expected)
    assert len(set(map(tuple, expected))) > 2
    inputs = ConfigInputs(det_config)
    assert counted(inputs, det_config.model.backbone.thresholds) == expected
    assert Path(inputs.path(0)).is_file()


@pytest.mark.parametrize('mode', ['slide', 'whole'])
def test_segmentation_with_its_windows(seg_config, mode):
    with DefaultScope.overwrite_default_scope('mmseg'):
        seg_config.model.test_cfg.update(mode=mode, max_windows=1)  # a pass each, as they are counted here
        expected = counted_by_the_model(seg_config)
        assert len(expected) == 4
        assert (max(map(len, expected)) > 1) == (mode == 'slide')
        assert counted(ConfigInputs(seg_config), seg_config.model.backbone.thresholds) == expected


def test_stock_segmentor_with_padding_by_the_data_preprocessor(seg_config):
    with DefaultScope.overwrite_default_scope('mmseg'):
        seg_config.model.type = 'EncoderDecoder'
        seg_config.model.data_preprocessor.test_cfg = dict(size_divisor=64)
        seg_config.model.test_cfg = dict(mode='whole')
        assert counted(ConfigInputs(seg_config), (3.0, 3.0)) == counted_by_the_model(seg_config)


@pytest.mark.parametrize('kind', ['det_config', 'seg_config'])
def test_training_draws_depend_on_seed_and_image_alone(request, kind):
    cfg = request.getfixturevalue(kind)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        inputs = ConfigInputs(cfg, 'train')
        first = counted(inputs, (3.0, 3.0))
        assert all(len(one) == 1 and sum(count << 2 * scale for scale, count in enumerate(one[0])) == 64
                   for one in first)  # crops of 128 px
        assert counted(inputs, (3.0, 3.0)) == first
        assert counted(ConfigInputs(cfg, 'train', seed=1), (3.0, 3.0)) != first
        # Training images through the test pipeline: what a cache for a sampler holds.
        assert counted(ConfigInputs(cfg, 'train', 'test'), (3.0, 3.0)) == counted(ConfigInputs(cfg), (3.0, 3.0))


def test_another_number_of_scales_and_wrapped_datasets(det_config):
    leaf = det_config.test_dataloader.dataset
    repeated = dict(type='RepeatDataset', times=3, dataset=leaf)
    det_config.test_dataloader.dataset = dict(type='ConcatDataset', datasets=[repeated, leaf])
    inputs = ConfigInputs(det_config, num_scales=2)
    assert len(inputs) == 12 and inputs.path(0) == inputs.path(6)
    (maps, content), = inputs.score(0)
    assert content == (6, 8)
    assert [tuple(scores.shape) for scores in maps] == [(4, 4)]


def test_errors(det_config):
    path = Path(ConfigInputs(det_config).path(1))
    path.write_bytes(b'no image')
    inputs = ConfigInputs(det_config)
    with pytest.raises(ValueError, match=f'{path.name} cannot be read'):
        inputs.score(1)
    path.unlink()
    with pytest.raises(ValueError, match=f'{path.name} cannot be read'):
        inputs.score(1)
    assert inputs.score(0)
    det_config.val_dataloader = None
    with pytest.raises(ValueError, match='no val_dataloader'):
        ConfigInputs(det_config, 'val')
    det_config.model.data_preprocessor.pad_size_divisor = 16
    with pytest.raises(ValueError, match=r'jpg: grid .* is not a multiple of'):
        ConfigInputs(det_config).score(0)


def test_settings_tell_what_changes_the_counts(det_config):
    settings = input_settings(det_config)
    assert settings == ConfigInputs(det_config).settings
    for change in ({'model.backbone.scorer': 'laplacian_mean'}, {'model.data_preprocessor.pad_size_divisor': 256},
                   {'test_dataloader.dataset.ann_file': 'other.json'},
                   {'test_dataloader.dataset.pipeline.1.scale': (64, 64)}):
        changed = Config(det_config.to_dict())
        changed.merge_from_dict(change)
        assert input_settings(changed) != settings, change
    unrelated = Config(det_config.to_dict())
    unrelated.merge_from_dict({'optim_wrapper.optimizer.lr': 1, 'model.neck.out_channels': 8})
    assert input_settings(unrelated) == settings


def test_the_tool_with_a_config(det_config, tmp_path, capsys):
    tool = load_tool('analysis_tools/calibrate_thresholds.py')
    expected = [sum(sum(counts) for counts in inputs) for inputs in counted_by_the_model(det_config)]
    det_config.dump(tmp_path / 'config.py')
    arguments = ['--config', str(tmp_path / 'config.py'), '--num-workers', '0', '--out-dir', str(tmp_path)]
    tokens_file = tmp_path / 'tokens.json'
    assert tool.main([*arguments, '--thresholds', '3', '3', '--save-tokens', str(tokens_file)]) == 0
    assert '6 images, 6 inputs' in capsys.readouterr().out
    settings = {**input_settings(Config.fromfile(tmp_path / 'config.py')), 'thresholds': (3.0, 3.0)}
    tokens = read_token_counts(tokens_file, settings)
    assert list(tokens.values()) == expected and all(Path(path).is_file() for path in tokens)
    status = tool.main([*arguments, '--kept', '0.5', '--cfg-options', 'test_dataloader.dataset.data_root=nowhere'])
    assert status == 2 and 'dataset files are missing' in capsys.readouterr().err
