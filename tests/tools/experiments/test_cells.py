"""Cells, grids, their configs and what identifies them."""
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from mmengine.registry import MODELS

from apt_dense.mm.data.inputs import chooser_of
from tests.locations import ROOT, TOOLS
from tests.tools.experiments.conftest import modules

cells, grids, cell_config, cell_identity = modules.cells, modules.grids, modules.cell_config, modules.cell_identity
CONFIGS = TOOLS / 'experiments/configs'
PATCHES = cells.Patches('entropy', 0.5, (1.0, 0.15))


@pytest.mark.parametrize('name', grids.GRIDS)
def test_cells_of_the_grids_have_names_of_their_own_and_survive_json(name):
    grid = cells.with_needed(grids.GRIDS[name]())
    assert len({cell.name for cell in grid}) == len(grid) > 0
    for cell in grid:
        assert cells.Cell.from_json(json.loads(json.dumps(cell.to_json()))) == cell
        assert cell.parent is None or grid.index(cell.parent) < grid.index(cell)
        assert '/' not in cell.name and '%' not in cell.name


def test_the_grid_holds_what_its_cells_are_compared_with():
    everything = set(cells.with_needed(grids.everything()))
    for cell in everything:
        assert cell.control in everything and cell.control.patches is None
        assert cell.resizing is None or cell.resizing in everything


def test_controls_have_the_same_iterations_at_the_same_rate():
    entire = cells.Cell('det', 'native', PATCHES, cells.Training('dense', 0.05, 0.1), 2)
    assert entire.control == cells.Cell('det', 'native', None, cells.Training('dense', 0.05, 0.1), 2)
    dense = cells.Cell('det', 'native', None, cells.SCRATCH, 2)
    for training in (cells.UNTRAINED, cells.Training('dense', 0.05, 0.1, 'added')):  # nothing of the dense model trains
        cell = replace(entire, training=training)
        assert cell.control == cell.parent == dense
    added = cell
    assert added.resizing.patches == replace(PATCHES, detail_branch='none')


def test_cells_that_make_no_sense():
    with pytest.raises(ValueError, match='of a dense model'):
        cells.Cell('det', 'native', None, cells.Training('dense', 0.05, 1.0, 'added'))
    with pytest.raises(ValueError, match='of a dense model'):
        cells.Cell('det', 'native', None, cells.UNTRAINED)
    with pytest.raises(ValueError, match='random weights that are not trained'):
        cells.Training('random', 0.0)
    with pytest.raises(ValueError, match="task='pose' is not one of"):
        cells.Cell('pose', 'native', PATCHES, cells.UNTRAINED)


def config_of(cell, **options):
    return cell_config.build_config(cell, grids.DATASETS[cell.dataset], CONFIGS, Path('DATA'), **options)


def test_a_short_training_is_the_dense_one_in_short():
    dense = config_of(cells.Cell('det', 'native', None, cells.SCRATCH, 3))
    short = config_of(cells.Cell('det', 'native', PATCHES, cells.Training('dense', 0.05, 0.1, 'added'), 3),
                      choice=dict(thresholds=(5.0, 5.0, 0.75), max_tokens=90), weights=Path('w.pth'))
    assert short.train_cfg.max_iters == round(0.05 * dense.train_cfg.max_iters)
    assert short.optim_wrapper.optimizer.lr == pytest.approx(0.1 * dense.optim_wrapper.optimizer.lr)
    for mine, whole in zip(short.param_scheduler, dense.param_scheduler, strict=True):
        assert mine.end == round(0.05 * whole.end) and mine.begin == round(0.05 * whole.begin)
    assert short.param_scheduler[1].eta_min == pytest.approx(0.1 * dense.param_scheduler[1].eta_min)
    assert short.randomness.seed == 3 and short.load_from == 'w.pth' and short.val_cfg is None
    assert list(short.model.trainable) == list(cell_config.ADDED)
    assert dense.model.get('trainable') is None and dense.val_cfg is not None
    assert dense.train_cfg.val_interval * cell_config.NUM_VALIDATIONS == dense.train_cfg.max_iters
    backbone = short.model.backbone
    assert (backbone.num_scales, backbone.thresholds, backbone.scorer) == (4, (5.0, 5.0, 0.75), 'entropy')
    assert backbone.max_tokens == 90
    twin = cell_config.dense_twin(short)
    assert twin.model.backbone.max_tokens is None
    assert twin.model.backbone.num_scales == 1 and twin.model.trainable is None and backbone.num_scales == 4


def test_drawn_thresholds_and_distillation():
    choice = dict(thresholds=(5.0, 5.0, 0.75), max_tokens=None, warm=[(1.0, 1.0, 0.1), (6.0, 6.0, 3.0)])
    cell = cells.Cell('det', 'native', PATCHES, cells.Training('dense', 0.05, 0.1))
    plain, warm, distilled, both = (
        config_of(replace(cell, training=replace(cell.training, extra=extra)), choice=choice, weights=Path('w.pth'))
        for extra in ('', 'warm', 'distilled', 'warm-distilled'))
    assert warm.custom_hooks[:-1] == plain.custom_hooks and warm.model == plain.model
    assert warm.custom_hooks[-1] == dict(type='WarmThresholdsHook', low=(1.0, 1.0, 0.1), high=(6.0, 6.0, 3.0))
    assert distilled.model.distill == dict(checkpoint='w.pth') and distilled.custom_hooks == plain.custom_hooks
    assert both.model == distilled.model and both.custom_hooks == warm.custom_hooks
    assert cell_config.dense_twin(distilled).model.distill is None
    with pytest.raises(ValueError, match='extra is one of'):
        cells.Training('dense', 0.05, extra='cooled')
    with pytest.raises(ValueError, match='extra is one of'):
        cells.Training('random', 1.0, extra='warm')


@pytest.mark.parametrize('extra', cells.EXPANSIONS)
def test_a_term_after_the_expansion(extra):
    """It starts at zero, so that the dense model's weights fit, and concerns merged patches alone."""
    training = cells.Training('dense', 0.05, 1.0, 'added', extra)
    cfg = config_of(cells.Cell('det', 'native', PATCHES, training), choice=dict(thresholds=(5.0,) * 3, max_tokens=None),
                    weights=Path('w.pth'))
    assert cfg.model.trainable == (*cell_config.ADDED, 'backbone.terms')
    assert chooser_of(cfg).thresholds == (5.0,) * 3
    twin = cell_config.dense_twin(cfg)
    assert twin.model.backbone.type == 'APTEVA02' and 'expansion' not in twin.model.backbone
    settings = dict(img_size=64, embed_dims=16, depth=2, num_heads=2, window_size=0, global_block_indexes=(),
                    out_indices=(0, 1), num_scales=2, thresholds=(1.0,))
    plain = MODELS.build(dict(type='APTEVA02', **settings))
    model = MODELS.build(dict(type='ExpandedEVA02', expansion=extra, **settings))
    assert sorted(model.load_state_dict(plain.state_dict(), strict=False).missing_keys) == [
        f'terms.{number}.{name}' for number in (0, 1) for name in ('bias', 'weight')]
    x = torch.randn(2, 3, 64, 64)
    x[:, :, :32] = 0.5  # merges
    merged = plain.make_layout(x).expand((plain.make_layout(x).scales > 0)[:, None])
    assert 0 < merged.float().mean() < 1
    for mine, theirs in zip(model(x), plain(x), strict=True):
        assert torch.equal(mine, theirs)
    sum(part.square().sum() for part in model(x)).backward()
    with torch.no_grad():
        for parameter in model.terms.parameters():
            assert parameter.grad.any()
            parameter.sub_(0.1 * parameter.grad.sign())
        for mine, theirs in zip(model(x), plain(x), strict=True):
            assert torch.equal((mine != theirs).any(1, keepdim=True), merged)
    with pytest.raises(ValueError, match="expansion='twice' is not one of"):
        MODELS.build(dict(type='ExpandedEVA02', expansion='twice', **settings))


def test_the_enlarged_dataset_is_enlarged_by_the_pipeline():
    cfg = config_of(cells.Cell('det', 'enlarged', None, cells.SCRATCH))
    assert cfg.test_evaluator.enlarged == 2.0 and cfg.test_dataloader.dataset.data_root == 'DATA/'
    assert cfg.test_evaluator.ann_file == 'DATA/annotations/instances_val.json'
    assert cfg.test_dataloader.dataset.pipeline[1].scale == (384, 384)
    assert cfg.test_dataloader.dataset.get('indices') is None and cfg.val_dataloader.dataset.indices == 50
    seg = config_of(cells.Cell('seg', 'enlarged', None, cells.SCRATCH))
    assert [evaluator.type for evaluator in seg.test_evaluator] == ['IoUMetric', 'BoundaryIoUMetric']


def copy_of_code(folder):
    for pattern in cell_identity.CODE:
        for path in ROOT.glob(pattern):
            target = folder / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    return folder


def test_the_hash_of_the_code_sees_what_runs(tmp_path):
    root, before = copy_of_code(tmp_path), cell_identity.code_hash()
    assert cell_identity.code_hash(root) == before
    path = root / 'apt_dense/core/quadtree.py'
    text = path.read_text()
    path.write_text('"""Another docstring."""\n# A comment.\n' + text.partition('"""\n')[2].replace('(\n', '('))
    assert cell_identity.code_hash(root) == before
    path.write_text(text.replace('score < threshold', 'score <= threshold'))
    assert cell_identity.code_hash(root) != before
    path.write_text(text)
    (root / 'apt_dense/mm/models/another.py').write_text('x = 1\n')  # a model that is new
    assert cell_identity.code_hash(root) != before
    path.unlink()
    with pytest.raises(FileNotFoundError, match='quadtree.py is not there.*CODE'):
        cell_identity.code_hash(root)


def test_the_hash_of_a_cell(tmp_path, monkeypatch):
    cell = cells.Cell('seg', 'native', cells.Patches('entropy', 0.5, (0.7,), 3), cells.Training('dense', 0.05, 0.1))
    first = cell_identity.cell_hash(cell, CONFIGS, 'code')
    others = [cell_identity.cell_hash(cell, CONFIGS, 'other code'),
              cell_identity.cell_hash(replace(cell, seed=1), CONFIGS, 'code'),
              cell_identity.cell_hash(replace(cell, patches=replace(cell.patches, kept=0.7)), CONFIGS, 'code')]
    config = tmp_path / 'seg.py'
    config.write_text(f"_base_ = '{CONFIGS}/seg.py'\nmodel = dict(decode_head=dict(channels=32))\n")
    others.append(cell_identity.cell_hash(cell, tmp_path, 'code'))
    cell_identity.cell_hash.cache_clear()
    monkeypatch.setitem(grids.DATASETS, 'native', replace(grids.DATASETS['native'], num_train=10))
    others.append(cell_identity.cell_hash(cell, CONFIGS, 'code'))
    cell_identity.cell_hash.cache_clear()
    assert len({first, *others}) == 6


def test_what_only_logs_does_not_change_a_cells_hash(tmp_path):
    cell = cells.Cell('seg', 'native', None, cells.SCRATCH)
    (tmp_path / 'seg.py').write_text(f"_base_ = '{CONFIGS}/seg.py'\n"
                                     'default_hooks = dict(logger=dict(interval=7))\nlog_level = "ERROR"\n')
    assert cell_identity.cell_hash(cell, tmp_path, '') == cell_identity.cell_hash(cell, CONFIGS, '')


def test_thresholds_keep_the_share_and_are_found_once(tmp_path, data, monkeypatch):
    patches = cells.Patches('upsampling_error', 0.6, (0.5,), 3)
    monkeypatch.setitem(grids.DATASETS, 'tiny', grids.Dataset('scenes_192', 4, 2, enlarged=2.0))
    cell = cells.Cell('det', 'tiny', patches, cells.UNTRAINED)
    cfg = cell_config.build_config(cell, grids.DATASETS['tiny'], CONFIGS, data / 'tiny')
    cache, find = tmp_path / 'thresholds.json', modules.cell_thresholds.find_cell_thresholds
    found = find(cfg, patches, 'code', cache)
    fine, coarse = found['thresholds']
    assert coarse == pytest.approx(0.5 * fine, rel=1e-3)
    maps = modules.cell_thresholds.score_all(modules.cell_thresholds.ConfigInputs(cfg, 'train', 'test'))
    kept = maps.count_tokens((fine, coarse), content_only=True).sum().item() / maps.num_content_cells.sum().item()
    assert 0.55 < kept <= 0.6 and found['max_tokens'] is None
    monkeypatch.setattr(modules.cell_thresholds, 'score_all', None)
    assert find(cfg, patches, 'code', cache) == found
    with pytest.raises(TypeError):
        find(cfg, replace(patches, kept=0.5), 'code', cache)
    with pytest.raises(TypeError):
        find(cfg, patches, 'other code', cache)


def test_a_number_of_tokens_for_each_image_keeps_the_share_too(tmp_path, data, monkeypatch):
    monkeypatch.setitem(grids.DATASETS, 'tiny', grids.Dataset('scenes_192', 4, 2, enlarged=2.0))
    patches = cells.Patches('upsampling_error', 0.6, num_scales=3, per='image')
    cfg = cell_config.build_config(cells.Cell('det', 'tiny', patches, cells.UNTRAINED), grids.DATASETS['tiny'], CONFIGS,
                                   data / 'tiny')
    choice = modules.cell_thresholds.find_cell_thresholds(cfg, patches, 'code', tmp_path / 'thresholds.json')
    maps = modules.cell_thresholds.score_all(modules.cell_thresholds.ConfigInputs(cfg, 'train', 'test'))
    shares = []
    for more in (0, 1):
        maps.max_tokens = choice['max_tokens'] + more
        counts = maps.count_tokens(choice['thresholds'], content_only=True).sum().item()
        shares.append(counts / maps.num_content_cells.sum().item())
    assert shares[0] <= 0.6 < shares[1], shares  # the largest number that does


def test_patches_that_make_no_sense():
    with pytest.raises(ValueError, match="per is 'dataset' or 'image'"):
        cells.Patches('entropy', 0.5, per='batch')
    with pytest.raises(ValueError, match='all sizes have one threshold'):
        cells.Patches('entropy', 0.5, (1.0, 0.15), per='image')


def test_lines_of_results_that_are_broken_are_named(tmp_path):
    path = tmp_path / 'cells.jsonl'
    path.write_text('{"cell": 1}\n')
    with pytest.raises(ValueError, match='line 1 is no result of a cell'):
        modules.cell_results.Results(path)
    assert modules.cell_results.rounded({'a': [1.23456789, 3]}) == {'a': [1.23457, 3]}
