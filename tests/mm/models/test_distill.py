"""Training towards the dense model's feature maps."""
import pytest
import torch
from mmdet.registry import MODELS
from mmengine.registry import DefaultScope
from mmengine.runner import Runner

import apt_dense.mm.det  # noqa: F401
from apt_dense.mm.errors import DataError, LaunchError
from tests.mm.conftest import point_to
from tests.mm.models import test_seg

pytestmark = pytest.mark.own_device  # mmengine's runner takes the GPU itself


@pytest.fixture
def dense(tiny_config, tmp_path):
    """A checkpoint of the dense detector."""
    model = MODELS.build(tiny_config('eva02_ti_demo_det').model)
    path = tmp_path / 'dense.pth'
    torch.save({'state_dict': model.state_dict()}, path)
    return path


def config(tiny_config, coco_root, tmp_path, dense, **options):
    cfg = point_to(tiny_config(), coco_root, tmp_path / 'work', max_iters=2)
    cfg.model.distill = dict(checkpoint=str(dense), **options)
    cfg.load_from = str(dense)
    return cfg


@pytest.mark.parametrize('weight', [1.0, 2.5])
def test_the_loss_is_the_relative_error_of_the_features(weight, tiny_config, coco_root, tmp_path, dense):
    cfg = config(tiny_config, coco_root, tmp_path, dense, weight=weight)
    runner, given, logged = Runner.from_cfg(cfg), [], []
    model = runner.model
    train_step = model.train_step

    def noted(*args, **kwargs):
        logged.append(train_step(*args, **kwargs))
        return logged[-1]

    model.train_step = noted
    model.backbone.register_forward_hook(lambda module, args, maps: given.append(
        (args[0].clone(), maps[0].detach().clone())) if module.training else None)
    names, own = set(model.state_dict()), set(dict(model.named_parameters()))
    runner.train()
    teacher = model._teacher[0]
    assert teacher.num_scales == 1 and not any(parameter.requires_grad for parameter in teacher.parameters())
    for name, value in torch.load(dense)['state_dict'].items():  # it has not been trained
        if name.startswith('backbone.'):
            assert torch.equal(teacher.state_dict()[name.removeprefix('backbone.')].cpu(), value.cpu()), name
    assert set(model.state_dict()) == names and set(dict(model.named_parameters())) == own
    for (images, maps), losses in zip(given, logged, strict=True):
        target = teacher(images)[0]
        wanted = weight * ((maps - target)**2).mean() / target.var()
        torch.testing.assert_close(losses['loss_distill'].detach(), wanted)
        assert losses['loss_distill'] > 0


def test_nothing_to_learn_where_nothing_is_merged(tiny_config, coco_root, tmp_path, dense):
    cfg = config(tiny_config, coco_root, tmp_path, dense)
    cfg.model.backbone.thresholds = (-1, -1)
    cfg.model.trainable = ['backbone.patch_embed.zero_mlp']
    runner, logged = Runner.from_cfg(cfg), []
    train_step = runner.model.train_step
    runner.model.train_step = lambda *args, **kwargs: logged.append(train_step(*args, **kwargs)) or logged[-1]
    runner.train()
    assert all(losses['loss_distill'].item() == pytest.approx(0, abs=1e-10) for losses in logged)


def test_segmentation(tmp_path):
    cfg = test_seg.tiny()
    with DefaultScope.overwrite_default_scope('mmseg'):
        dense = MODELS.build({**cfg.model, 'backbone': {**cfg.model.backbone, 'num_scales': 1, 'thresholds': ()}})
        torch.save({'state_dict': dense.state_dict()}, tmp_path / 'dense.pth')
        model = MODELS.build({**cfg.model, 'distill': dict(checkpoint=str(tmp_path / 'dense.pth'))})
        model.init_weights()
    assert model._teacher[0].num_scales == 1 and model.with_auxiliary_head == dense.with_auxiliary_head


@pytest.mark.parametrize(('change', 'message'), [
    (lambda state: state.pop('backbone.pos_embed'), r'lacks 1 parameters of the dense backbone.*: pos_embed'),
    (lambda state: state.clear(), 'is no state dict'),
])
def test_a_checkpoint_without_the_backbone(change, message, tiny_config, coco_root, tmp_path, dense):
    content = torch.load(dense)
    change(content['state_dict'])
    torch.save(content, tmp_path / 'other.pth')
    cfg = config(tiny_config, coco_root, tmp_path, tmp_path / 'other.pth')
    with pytest.raises(DataError, match=message):
        Runner.from_cfg(cfg).train()


def test_a_file_that_is_not_there_and_a_wrong_entry(tiny_config, coco_root, tmp_path):
    cfg = config(tiny_config, coco_root, tmp_path, tmp_path / 'none.pth')
    with pytest.raises(DataError, match=r'distill: .*none.pth does not exist'):
        Runner.from_cfg(cfg).train()
    cfg.model.distill = dict(teacher='x.pth')
    with pytest.raises(LaunchError, match="wants 'checkpoint'"):
        MODELS.build(cfg.model)
