"""The dataset for the speed of whole models: its images keep what they promise, for every pair of configs."""
import pytest
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from apt_dense.mm.cli import launch
from tests.locations import load_tool

tool = load_tool('benchmark/synthetic_dataset.py')
bench = load_tool('benchmark/benchmark_model.py')
PAIRS = [('apt_eva02_ti_demo_det', 'eva02_ti_demo_det', 256), ('apt_eva02_ti_demo_seg', 'eva02_ti_demo_seg', 256),
         ('apt_eva02_l_coco', 'eva02_l_coco', 1536), ('apt_eva02_l_ade20k_512', 'eva02_l_ade20k_512', 512)]


@pytest.mark.parametrize(('apt', 'dense', 'img_size'), PAIRS)
def test_images_keep_the_share(tmp_path, apt, dense, img_size):
    """As the configs' own pipelines, preprocessors and choosers see them; no two have one number of tokens."""
    tool.main([str(tmp_path), '--apt', apt, '--dense', dense, '--img-size', str(img_size), '--num-images', '3'])
    args = bench.parse_args([str(tmp_path / 'apt.py'), '--num-batches', '3'])
    cfg, twin = launch.load_config(args), Config.fromfile(tmp_path / 'dense.py')
    backbone = dict(cfg.model.backbone)
    assert not twin.model.backbone.get('thresholds') and twin.test_dataloader == cfg.test_dataloader
    with DefaultScope.overwrite_default_scope(launch.scope_of(cfg)):
        batches = bench.load_batches(cfg, args)
        preprocessor = MODELS.build(cfg.model.data_preprocessor)
        chooser = MODELS.get(backbone.pop('type')).build_chooser(**backbone)
        inputs = [preprocessor(batch, False)['inputs'] for batch in batches]
    cells = (img_size // 16)**2
    tokens = [sum(chooser.layout(x).scale_counts) for x in inputs]
    assert [x.shape[-2:] for x in inputs] == [(img_size, img_size)] * 3
    assert [second - first for first, second in zip(tokens, tokens[1:], strict=False)] == [3, 3]
    assert tokens[1] == pytest.approx(0.7 * cells, abs=1.5)
