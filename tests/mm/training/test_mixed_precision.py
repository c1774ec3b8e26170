"""Training and testing under autocast, and gradients over several batches; float16 with a loss scaler on the CPU."""
import math
from contextlib import contextmanager

import pytest
import torch
from mmdet.registry import MODELS as MMDET_MODELS
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import OPTIM_WRAPPERS, DefaultScope
from mmengine.runner import Runner
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from torch import nn

import apt_dense.mm.det
import apt_dense.mm.seg  # noqa: F401
from tests.mm.conftest import point_to
from tests.mm.fault_tolerance.test_non_finite import CPUScalerOptimWrapper
from tests.mm.models import test_seg
from tests.mm.models.test_seg import scenes  # noqa: F401  a fixture
from tests.mm.training.test_training import logged_scalars


@OPTIM_WRAPPERS.register_module(force=True)
class CPUFloat16OptimWrapper(CPUScalerOptimWrapper):
    """What AmpOptimWrapper(dtype='float16', loss_scale='dynamic') does on a GPU."""

    @contextmanager
    def optim_context(self, model):
        with super().optim_context(model), torch.autocast('cpu', dtype=torch.float16):
            yield


def check_run(runner: Runner, work_dir, metric: str) -> None:
    """Losses and metrics are finite, weights stayed float32 and moved."""
    scalars = logged_scalars(work_dir)
    losses = [entry['loss'] for entry in scalars if 'loss' in entry]
    assert len(losses) == runner.max_iters and all(map(math.isfinite, losses))
    assert any(metric in entry for entry in scalars)
    state = runner.model.state_dict()
    assert {value.dtype for value in state.values() if value.is_floating_point()} == {torch.float32}
    assert state['backbone.patch_embed.zero_mlp.weight'].any()


def segmentor_config() -> Config:
    """A tiny segmentor, whose loss weighs all pixels alike: two batches have the mean loss of the joined one."""
    cfg = test_seg.tiny()
    for head in (cfg.model.decode_head, cfg.model.auxiliary_head):
        head.loss_decode.class_weight = None
    return cfg


@pytest.mark.parametrize('nms', ['nms', 'soft_nms'])
def test_detector(nms, tiny_config, coco_root, tmp_path):
    """The test loop too runs under autocast, which is bfloat16 on a CPU; COCO's metric would refuse bfloat16 boxes."""
    cfg = point_to(tiny_config(), coco_root, tmp_path / 'work', max_iters=2)
    cfg.optim_wrapper.type = 'BF16OptimWrapper'
    cfg.val_cfg.fp16 = True
    cfg.model.test_cfg.rpn.update(nms_pre=100, max_per_img=30)
    cfg.model.test_cfg.rcnn.nms.type = nms
    runner = Runner.from_cfg(cfg)
    runner.train()
    check_run(runner, tmp_path / 'work', 'coco/segm_mAP')


@pytest.mark.parametrize('wrapper', ['BF16OptimWrapper', 'CPUFloat16OptimWrapper'])
def test_segmentor(wrapper, scenes, tmp_path):  # noqa: F811
    cfg = test_seg.point_to(segmentor_config(), scenes, tmp_path / 'work')
    cfg.optim_wrapper.type = wrapper
    cfg.val_cfg.fp16 = True
    with DefaultScope.overwrite_default_scope('mmseg'):
        runner = Runner.from_cfg(cfg)
        runner.train()
    check_run(runner, tmp_path / 'work', 'mIoU')


@pytest.mark.slow
@pytest.mark.parametrize('kind', [torch.bfloat16, torch.float16])
def test_proposals_are_not_rounded(kind, tiny_config):
    """From 1024 px on, bfloat16 has steps of 8 px: anchors, and all that comes of them, are float32."""
    cfg = tiny_config().model
    torch.manual_seed(0)
    head = MMDET_MODELS.build(dict(cfg.rpn_head, train_cfg=cfg.train_cfg.rpn, test_cfg=cfg.test_cfg.rpn)).eval()
    maps = [torch.randn(1, 64, max(1, 32 >> level), 512 >> level).to(kind) for level in range(5)]  # 2048 px wide
    meta = dict(img_shape=(128, 2048), scale_factor=(1.0, 1.0))
    with torch.no_grad(), torch.autocast('cpu', dtype=kind):
        scores, deltas = head(maps)
    assert scores[0].dtype == deltas[0].dtype == kind
    found = head.predict_by_feat(scores, deltas, batch_img_metas=[meta])[0].bboxes
    wide = [[level.float() for level in levels] for levels in (scores, deltas)]
    wanted = head.predict_by_feat(*wide, batch_img_metas=[meta])[0].bboxes
    assert found.dtype == torch.float32 and torch.equal(found, wanted)
    far = found[found[:, 0] > 1024]
    assert len(far) > 50 and (far[:, 0] % 8 != 0).float().mean() > 0.5


class Segments(BaseModel):
    """A segmentor whose loss depends on nothing but its weights and each image alone."""

    def __init__(self, with_cp: bool = False):
        super().__init__()
        with DefaultScope.overwrite_default_scope('mmseg'):
            cfg = segmentor_config()
            cfg.model.backbone.with_cp = with_cp
            self.inner = test_seg.build(cfg)

    def forward(self, images, labels):
        self.inner.eval()  # batch norms of the whole batch would tell its images from those of two halves
        samples = [SegDataSample(gt_sem_seg=PixelData(data=label)) for label in labels]
        return self.inner.parse_losses(self.inner.loss(images, samples))[0]


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Two images, one smooth and one not, and labels without ignored pixels."""
    images = torch.cat([torch.full((1, 3, 128, 128), 0.2), torch.randn(1, 3, 128, 128)])
    return images, torch.randint(6, (2, 1, 128, 128))


def trained(batch, parts: int, with_cp: bool = False, **wrapper) -> tuple[dict, dict]:
    """Gradients and weights after one optimiser step, on the batch in so many parts."""
    torch.manual_seed(0)
    model = Segments(with_cp)
    optim = build_optim_wrapper(model, dict(dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.1),
                                                 accumulative_counts=parts), **wrapper))
    gradients = {}
    optim.optimizer.register_step_pre_hook(lambda *_: gradients.update(
        (name, parameter.grad.clone()) for name, parameter in model.named_parameters()))
    for images, labels in zip(*(part.chunk(parts) for part in batch), strict=True):
        with optim.optim_context(model):
            loss = model(images, labels)
        optim.update_params(loss)
    return gradients, dict(model.named_parameters())


@pytest.mark.parametrize(('kind', 'tolerance'), [
    ('OptimWrapper', 1e-5), ('BF16OptimWrapper', 0.05), ('CPUFloat16OptimWrapper', 0.01)])
def test_accumulated_and_clipped_gradients_are_those_of_the_joined_batch(kind, tolerance, batch):
    options = dict(type=kind, clip_grad=dict(max_norm=0.5))
    joined, joined_weights = trained(batch, 1, **options)
    halves, halves_weights = trained(batch, 2, **options)
    norm = torch.stack([gradient.norm() for gradient in joined.values()]).norm()
    assert norm == pytest.approx(0.5, rel=1e-4)  # clipped
    unclipped, _ = trained(batch, 2, **dict(options, clip_grad=None))
    assert torch.stack([gradient.norm() for gradient in unclipped.values()]).norm() > 0.6
    difference = torch.stack([(halves[name] - joined[name]).norm() for name in joined]).norm()
    assert difference < tolerance * norm
    for name, weight in joined_weights.items():
        torch.testing.assert_close(halves_weights[name], weight, atol=0.1 * tolerance, rtol=0)


@pytest.mark.parametrize('kind', ['BF16OptimWrapper', 'CPUFloat16OptimWrapper'])
def test_gradients_under_autocast_are_close_to_float32s(kind, batch):
    """Also with recomputed activations, which must be recomputed in the same precision."""
    exact, _ = trained(batch, 1)
    narrow, _ = trained(batch, 1, type=kind, clip_grad=dict(max_norm=1e6))  # unscales float16's
    recomputed, _ = trained(batch, 1, with_cp=True, type=kind, clip_grad=dict(max_norm=1e6))
    norm = torch.stack([gradient.norm() for gradient in exact.values()]).norm()
    for found, wanted, limit in ((narrow, exact, 0.1), (recomputed, narrow, 1e-5)):
        assert torch.stack([(found[name] - wanted[name]).norm() for name in wanted]).norm() < limit * norm


def test_an_overflow_skips_the_step_and_lowers_the_scale():
    layer = nn.Linear(2, 1, bias=False)
    wrapper = CPUFloat16OptimWrapper(optimizer=torch.optim.SGD(layer.parameters(), lr=1.0))
    assert isinstance(wrapper, OptimWrapper)
    before = layer.weight.detach().clone()
    wrapper.update_params(layer(torch.full((1, 2), 3e38)).sum())
    assert torch.equal(layer.weight, before) and wrapper.loss_scaler.get_scale() == 512.0
    wrapper.update_params(layer(torch.ones(1, 2)).sum())
    assert torch.equal(layer.weight, before - 1)
