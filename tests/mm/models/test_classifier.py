"""The classifier: equal to APT's public code, pooling against loops, training, and what it refuses."""
import numpy as np
import pytest
import torch
from mmengine.registry import MODELS
from mmengine.structures import BaseDataElement

from apt_dense import APTViT
from apt_dense.core.vit_conversion import convert_vit
from apt_dense.mm.errors import DataError
from tests.core.toys import SPLIT, image_of, normalise, random_scales, randomise
from tests.recipes import drawn

cls = pytest.importorskip('apt_dense.mm.cls', exc_type=ImportError)

HALF = (127.5,) * 3
VIT = dict(type='APTViT', img_size=32, patch_size=4, embed_dims=16, depth=3, num_heads=2, pretrain_img_size=32)
MERGING = dict(num_scales=3, thresholds=(SPLIT, SPLIT))


def on_device(model):
    """With its preprocessor, which mmengine tells the device when the model is moved."""
    return model.to(torch.get_default_device())


def toy(pooling='class_token', num_classes=5, **backbone):
    backbone = dict(VIT, final_norm=pooling == 'class_token', **backbone)
    model = on_device(cls.APTClassifier(backbone, num_classes, pooling)).eval()
    randomise(model)
    return model


def pictures():
    """(3, 3, 32, 48) uint8, in which few, some and most patches merge."""
    return image_of(random_scales([0.9, 0.5, 0.2], 8, 12, 3), 4)


def images():
    return normalise(pictures())


@pytest.fixture(scope='module')
def public(reference):
    """The stored run and its weights, as the public code names them."""
    data = reference('apt_vit_cls_token')
    meta = data['meta']
    state = {key: drawn(recipe['draw_key'], recipe['shape'], recipe['scale'], recipe['offset'], meta['seed'])
             for key, recipe in meta['recipe'].items()}
    return data, state


def classifier_of(meta: dict, **backbone) -> cls.APTClassifier:
    config = meta['config']
    return on_device(cls.APTClassifier(
        dict(type='APTViT', img_size=config['image_size'], pretrain_img_size=config['image_size'],
             embed_dims=config['embed_dim'], depth=config['depth'], num_heads=config['num_heads'], img_mean=HALF,
             img_std=HALF, **backbone), config['num_classes'])).eval()


@torch.no_grad()
def test_equals_the_public_code(public):
    """From its own names by the converter: rows after the embedding and every block, what the head gets, logits."""
    data, state = public
    model = classifier_of(data['meta'], num_scales=3, thresholds=data['meta']['config']['thresholds'])
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    model.load_state_dict(convert_vit(state, target_shapes=shapes).state_dict)
    batch = dict(inputs=list(data['in/uint8_bhwc'].permute(0, 3, 1, 2).flip(1)))
    x = model.data_preprocessor(batch)['inputs']
    layout = model.backbone.make_layout(x)
    assert list(layout.images.lengths) == data['meta']['seqlens']
    rows = model.backbone.block_rows(x, layout, frozenset(range(-1, 4)))
    order = public_order(data['tok/where'].numpy(), layout)
    for name, own in zip(['tokens', *(f'block{index}' for index in range(4))], rows, strict=True):
        torch.testing.assert_close(own[order][:, ::4], data[f'out/{name}_every_fourth'][0], atol=2e-5, rtol=0)
    torch.testing.assert_close(model.features(x), data['out/pooled'], atol=1e-5, rtol=0)
    torch.testing.assert_close(model.predict(x), data['out/logits'], atol=1e-5, rtol=0)


def public_order(where: np.ndarray, layout) -> list[int]:
    """The row here of each row there: (image, y px, x px, side px), class tokens with a side of 0."""
    y, x = layout.cell_yx
    image = layout.images.index
    own = {(int(image[row]), *((0, 0, 0) if layout.scales[row] < 0 else (
        int(y[row]) * 16, int(x[row]) * 16, 16 << int(layout.scales[row])))): row for row in range(layout.num_tokens)}
    return [own[tuple(int(number) for number in one)] for one in where]


@torch.no_grad()
def test_the_dense_twin_equals_the_public_code(public):
    data, state = public
    model = classifier_of(data['meta'])
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    model.load_state_dict(convert_vit(state, target_shapes=shapes).state_dict)
    x = model.data_preprocessor(dict(inputs=list(data['in/uint8_bhwc'].permute(0, 3, 1, 2).flip(1))))['inputs']
    torch.testing.assert_close(model(x, mode='predict'), data['out/dense/logits'], atol=1e-5, rtol=0)


def loop_pool(model, x, pooling):
    """Pooling written out, image by image."""
    pooled = []
    for image in x:
        rows, layout = model.backbone.forward_tokens(image[None])
        if pooling == 'class_token':
            pooled.append(rows[0])
            continue
        total, count = 0, 0
        for row in range(layout.num_prefix, len(rows)):
            weight = 1 if pooling == 'mean' else 4**int(layout.scales[row])
            total, count = total + weight * rows[row], count + weight
        pooled.append(total / count)
    return torch.stack(pooled)


@pytest.mark.parametrize('prefix', [dict(), dict(num_registers=2), dict(with_cls_token=False, prefix_positions=0)],
                         ids=['class token', 'registers', 'no prefix'])
@pytest.mark.parametrize('pooling', ['class_token', 'mean', 'mean_by_area'])
@torch.no_grad()
def test_pooling_is_that_of_a_loop(pooling, prefix):
    if pooling == 'class_token' and 'with_cls_token' in prefix:
        pytest.skip('there is none')
    model, x = toy(pooling, **MERGING, **prefix), images()
    lengths = model.backbone.make_layout(x).images.lengths
    assert len(set(lengths)) > 1 and min(lengths) < 96
    wanted = loop_pool(model, x, pooling)
    wanted = wanted if model.fc_norm is None else model.fc_norm(wanted)
    torch.testing.assert_close(model.features(x), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('reduction', [dict(type='ToMe', kept=0.7), dict(type='EViT', kept=0.7),
                                       dict(type='Random', kept=0.5), dict(type='Random')], ids=str)
@torch.no_grad()
def test_rows_that_a_reduction_leaves_are_pooled(reduction):
    """Alone or in a batch, the same; a row that others went into stands for all of their cells, one that is gone for
    none."""
    merging = MERGING if reduction == dict(type='Random') else {}
    model, x = toy('mean_by_area', reduction=reduction, **merging), images()
    packed = model.backbone.forward_packed(x)
    assert len(packed.rows) == sum(packed.images.lengths) < 3 * 97
    cells = [int(areas.sum()) for areas in packed.areas.split(packed.images.lengths)]
    if reduction['type'] == 'Random':
        assert cells == [length - 1 for length in packed.images.lengths]
    else:
        assert cells == [96] * 3
    if reduction['type'] != 'Random':  # which rows are drawn follows from the batch
        torch.testing.assert_close(model.predict(x)[1:2], model.predict(x[1:2]), atol=1e-5, rtol=1e-5)


def test_gradients_reach_every_parameter():
    """With mixed labels, where no patch of the largest scale is chosen."""
    model = cls.APTClassifier(dict(VIT, num_scales=3, thresholds=(SPLIT, -1)), 5, loss=dict(label_smoothing=0.1),
                              data_preprocessor=dict(type='ClassDataPreprocessor', mean=[123.675, 116.28, 103.53],
                                                     std=[58.395, 57.12, 57.375], bgr_to_rgb=True, cutmix_alpha=0.8,
                                                     num_classes=5))
    randomise(on_device(model))
    samples = [BaseDataElement(gt_label=label, metainfo=dict(img_path='x')) for label in (0, 4, 2)]
    batch = dict(inputs=list(pictures().flip(1)), data_samples=samples)
    data = model.data_preprocessor(batch, training=True)
    assert data['targets'].shape == (3, 5)
    torch.testing.assert_close(data['targets'].sum(1), torch.ones(3))
    losses = model(**data, mode='loss')
    wanted = torch.nn.functional.cross_entropy(model.predict(data['inputs']), data['targets'], label_smoothing=0.1)
    torch.testing.assert_close(losses['loss'], wanted)
    losses['loss'].backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())
    assert model.head.weight.grad.any() and model.backbone.patch_embed.zero_mlp.weight.grad.any()


@torch.no_grad()
def test_images_of_any_size():
    model = toy(**MERGING)
    assert model.predict(torch.randn(2, 3, 29, 50)).shape == (2, 5)


def test_trainable_freezes_the_rest():
    model = cls.APTClassifier(dict(VIT, **MERGING), 5, trainable=['backbone.patch_embed.conv_down', 'head'])
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {'backbone.patch_embed.conv_down.weight', 'backbone.patch_embed.conv_down.bias', 'head.weight',
                       'head.bias'}


@pytest.mark.parametrize(('change', 'message'), [
    (dict(pooling='max'), "unknown pooling 'max': choose one of"),
    (dict(pooling='class_token', backbone=dict(VIT, with_cls_token=False, prefix_positions=0)), 'with_cls_token=False'),
    (dict(pooling='mean'), 'final_norm=True, and fc_norm is a second norm'),
    (dict(num_classes=0), 'num_classes=0 must be a whole number from 1 on'),
    (dict(data_preprocessor=dict(type='ClassDataPreprocessor', mean=HALF, std=HALF, bgr_to_rgb=True, num_classes=5),
          backbone=dict(VIT, **MERGING)), 'img_mean')])
def test_what_does_not_fit_is_refused(change, message):
    with pytest.raises((ValueError, DataError), match=message):
        cls.APTClassifier(**dict(dict(backbone=VIT, num_classes=5), **change))


@pytest.mark.parametrize('label', [-1, 5])
def test_a_label_that_is_no_class(label):
    model = toy()
    batch = dict(inputs=[torch.zeros(3, 32, 32, dtype=torch.uint8)],
                 data_samples=[BaseDataElement(gt_label=label, metainfo=dict(img_path='a/b.jpg'))])
    with pytest.raises(DataError, match=rf'a/b.jpg is of class {label}, .* 5 classes'):
        model.data_preprocessor(batch, training=True)


def test_a_model_is_taken_as_it_is():
    backbone = APTViT(**{name: value for name, value in VIT.items() if name != 'type'})
    assert cls.APTClassifier(backbone, 3).backbone is backbone
    assert isinstance(MODELS.build(dict(type='APTClassifier', backbone=VIT, num_classes=3)), cls.APTClassifier)
