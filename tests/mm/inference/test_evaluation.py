"""Evaluation of an opened model: the figures of a runner's test, and what is refused."""
import pytest
from mmengine.registry import DefaultScope
from mmengine.runner import Runner

import apt_dense
from apt_dense.mm.errors import DataError
from apt_dense.mm.inference.evaluation import Evaluation, set_options


@pytest.mark.parametrize('task', ['det', 'seg'])
def test_the_figures_of_a_runner(task, checkpoints, tmp_path):
    model = apt_dense.load(checkpoints[task], as_published=True)
    seen = []
    evaluation = Evaluation(model.cfg)
    metrics = evaluation.evaluate(model, lambda sample, tokens: seen.append((sample.img_path, tokens.kept)))
    cfg = model.cfg
    cfg.update(load_from=str(checkpoints[task]), work_dir=str(tmp_path), experiment_name=tmp_path.name)
    cfg.visualizer.name = tmp_path.name
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        runner = Runner.from_cfg(cfg)
        wanted = runner.test()
    assert wanted and {name: metrics[name] for name in wanted} == pytest.approx(wanted)
    kept = runner.message_hub.get_scalar('test/test_kept_tokens_content').current()
    assert metrics['kept_tokens_content'] == pytest.approx(kept) and 0 < kept < 1
    assert len(seen) == len(evaluation) == 2 and all(0 < kept < 1 for _, kept in seen)
    assert [len(results) for results in evaluation.results] == [2]
    again = evaluation.evaluate(model)
    assert again == metrics and evaluation.batch(1)['data_samples'][0].img_path == seen[1][0]


def test_what_is_refused(checkpoints):
    model = apt_dense.load(checkpoints['seg'])
    with pytest.raises(DataError, match='--cfg-options model.backbone.thresholds: the model is what the checkpoint'):
        set_options(model.cfg, {'model.backbone.thresholds': [1, 1]})
    evaluation = Evaluation(model.cfg)
    model.classes = ('ground', *model.classes[1:])
    with pytest.raises(DataError, match="6 classes and the test dataset 6, class 0 is 'ground' and 'background'"):
        evaluation.evaluate(model)
    model.classes = model.classes[:5]
    with pytest.raises(DataError, match="5 classes and the test dataset 6, class 0 is"):
        evaluation.evaluate(model)
    set_options(model.cfg, {'test_dataloader.dataset.data_root': 'missing'})
    with pytest.raises(ValueError, match='dataset files are missing:\n *missing'):
        Evaluation(model.cfg)
    model.cfg.test_evaluator = None
    with pytest.raises(DataError, match='has no test_evaluator: give a config'):
        Evaluation(model.cfg)
