"""Parts of a model that do not fit each other are named before the first picture is read."""
import copy

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from apt_dense.mm import det, seg  # noqa: F401  (they register)
from apt_dense.mm.errors import DataError
from apt_dense.mm.models.fitting import check_model_fits
from tests.locations import CONFIGS


def built(tiny_config, task: str, changes: dict) -> torch.nn.Module:
    if task == 'det':
        cfg = tiny_config()
    else:
        cfg = Config.fromfile(CONFIGS / 'apt_eva02_ti_demo_seg.py')
        cfg.model.backbone.update(embed_dims=32, depth=4, num_heads=2, out_indices=(0, 1, 2, 3))
        cfg.model.neck.embed_dim = 32
        cfg.model.decode_head.update(in_channels=[32] * 4, channels=16)
        cfg.model.auxiliary_head.update(in_channels=32, channels=16)
    cfg.merge_from_dict({f'model.{key}': value for key, value in changes.items()})
    with DefaultScope.overwrite_default_scope('mmdet' if task == 'det' else 'mmseg'):
        return MODELS.build(cfg.model)


@pytest.mark.parametrize(('task', 'changes', 'said'), [
    ('det', {'neck.in_channels': 64},
     r'model\.neck \(SimpleFPN\) does not take what model\.backbone gives, 1 map of 32'),
    ('det', {'backbone.embed_dims': 48}, r'model\.neck \(SimpleFPN\) .* 1 map of 48 channels'),
    ('det', {'rpn_head.in_channels': 32}, r'model\.rpn_head \(RPNHead\) .* model\.neck gives, 5 maps of 64 channels'),
    ('det', {'rpn_head.anchor_generator.strides': [4, 8, 16]},
     r'rpn_head has 3 strides .*, and model\.neck gives 5 maps of 64'),
    ('det', {'roi_head.bbox_head.1.in_channels': 32}, r'model\.roi_head\.bbox_head\.1 \('),
    ('det', {'roi_head.mask_head.in_channels': 32}, r'model\.roi_head\.mask_head \('),
    ('det', {'roi_head.stage_loss_weights': [1]}, r'roi_head\.stage_loss_weights has 1 entries, and .* is 3'),
    ('seg', {'neck.embed_dim': 64}, r'model\.neck \(Feature2Pyramid\) .* model\.backbone gives, 4 maps of 32 channels'),
    ('seg', {'decode_head.in_index': [0, 1, 2, 9]}, r'model\.decode_head \(UPerHead\) .* index out of range\. Set its'),
    ('seg', {'decode_head.in_channels': [64, 32, 32, 32]}, r'model\.decode_head \(UPerHead\)'),
    ('seg', {'auxiliary_head.in_index': 7}, r'model\.auxiliary_head \(FCNHead\)'),
    ('seg', {'auxiliary_head.in_channels': 64}, r'model\.auxiliary_head \(FCNHead\)'),
    ('seg', {'backbone.out_indices': (0, 1, 2)}, r'model\.\w+ \(\w+\) does not take what model\.\w+ gives, 3 maps')])
def test_what_does_not_fit(tiny_config, task, changes, said):
    with pytest.raises(DataError, match=said):
        check_model_fits(built(tiny_config, task, changes))


@pytest.mark.parametrize('task', ['det', 'seg'])
def test_what_fits_is_left_as_it_was(tiny_config, task):
    model = built(tiny_config, task, {})
    model.backbone.eval()  # as a frozen part
    state, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    random = torch.random.get_rng_state()
    check_model_fits(model)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), random)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize('kind', ['backbone', 'neck', 'roi_head'])
def test_parts_of_the_user_are_passed_over(tiny_config, kind):
    """What they take and give is theirs: a backbone may join two maps, a neck work in windows."""
    model = built(tiny_config, 'det', {'neck.in_channels': 64} if kind == 'backbone' else {
        'roi_head.mask_head.in_channels': 32} if kind == 'roi_head' else {'rpn_head.in_channels': 32})
    part = getattr(model, kind)
    own = type('Own', (type(part),), {'__module__': 'mine'})
    with pytest.raises(DataError):
        check_model_fits(model)
    part.__class__ = own
    check_model_fits(model)


def test_parts_of_two_data_types(tiny_config):
    model = built(tiny_config, 'det', {})
    model.backbone.bfloat16()
    check_model_fits(model)


def test_a_train_of_ones_own_is_not_called(tiny_config):
    model = built(tiny_config, 'det', {})
    model.neck.train = model.backbone.train = lambda mode=True: pytest.fail('train() may do more')
    check_model_fits(model)


def test_models_of_others_are_passed_over():
    check_model_fits(torch.nn.Linear(2, 2))
    check_model_fits(None)
