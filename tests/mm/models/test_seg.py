"""Segmentation: training and evaluation through mmengine's runner, slide and whole inference, images of any size."""
import json
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner
from mmengine.structures import PixelData
from mmseg.models.segmentors import EncoderDecoder
from mmseg.structures import SegDataSample

import apt_dense.mm.det
from apt_dense.core.position import resample_positions
from apt_dense.mm import seg
from apt_dense.mm.cli import launch, outputs
from apt_dense.mm.training.hooks import KeptTokensHook
from tests.mm.conftest import ADDED, CONFIGS, draw_scene, run_briefly

CROP = 128
own_device = pytest.mark.own_device  # mmengine's runner takes the GPU itself


@pytest.fixture(autouse=True)
def scope():
    """mmsegmentation's scope, as its runner sets it."""
    with DefaultScope.overwrite_default_scope('mmseg'):
        yield


def tiny(name: str = 'apt_eva02_ti_demo_seg') -> Config:
    """A demo config with a tiny model: crops of 128 px, 4 blocks of 32 channels, 3 scales for APT."""
    cfg = Config.fromfile(CONFIGS / f'{name}.py')
    model = cfg.model
    model.backbone.update(img_size=CROP, embed_dims=32, depth=4, num_heads=2, out_indices=(0, 1, 2, 3),
                          pretrain_img_size=CROP)
    if model.backbone.num_scales > 1:
        model.backbone.update(num_scales=3, scorer='entropy', thresholds=(3.0, 3.0))
    model.data_preprocessor.size = (CROP, CROP)
    model.neck.embed_dim = 32
    model.decode_head.update(in_channels=[32] * 4, channels=16)
    model.auxiliary_head.update(in_channels=32, channels=16)
    model.test_cfg.update(crop_size=(CROP, CROP), stride=(85, 85))
    return cfg


def write_scenes(root: Path, sizes: list[tuple[int, int]]) -> Path:
    """Scenes with their label maps, train and val alike, in the demo dataset's layout; a strip of each is 255."""
    rng = np.random.default_rng(0)
    for split in ('train', 'val'):
        for folder in (root / split, root / 'semantic' / split):
            folder.mkdir(parents=True)
    for index, (height, width) in enumerate(sizes):
        image, boxes = draw_scene(rng, height, width, 1 + index % 3)
        labels = np.zeros((height, width), np.uint8)
        for number, (x, y, w, h) in enumerate(boxes):
            labels[y:y + h, x:x + w] = 1 + number
        labels[:4] = 255
        for split in ('train', 'val'):
            cv2.imwrite(str(root / split / f'{index}.jpg'), image)
            cv2.imwrite(str(root / 'semantic' / split / f'{index}.png'), labels)
    return root


@pytest.fixture
def scenes(tmp_path) -> Path:
    """Of the crop's size, larger, smaller, no multiples of 16."""
    return write_scenes(tmp_path / 'data', [(128, 128), (150, 211), (99, 75), (96, 200)])


def point_to(cfg: Config, root: Path, work_dir: Path, max_iters: int = 2) -> Config:
    """Train ``max_iters`` steps on ``root`` in this process, logging every step."""
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.dataset.data_root = f'{root}/'
        loader.update(num_workers=0, persistent_workers=False)
        for transform in loader.dataset.pipeline:
            if 'scale' in transform:
                transform.scale = (4 * CROP, CROP)
            if 'crop_size' in transform:
                transform.crop_size = (CROP, CROP)
    return run_briefly(cfg, work_dir, max_iters)


def logged(work_dir: Path) -> list[dict]:
    return [json.loads(line) for path in work_dir.rglob('vis_data/scalars.json')
            for line in path.read_text().splitlines()]


def build(cfg: Config) -> torch.nn.Module:
    """A segmentor with random weights and statistics; one process has no SyncBN."""
    torch.manual_seed(0)
    text = json.dumps(cfg.model.to_dict()).replace('"SyncBN"', '"BN"')
    model = MODELS.build(ConfigDict(json.loads(text)))
    for name, value in model.named_buffers():
        if name.endswith('running_var'):
            value.uniform_(0.5, 1.5)
        elif name.endswith('running_mean'):
            value.normal_(std=0.1)
    return model.eval().to(torch.get_default_device())  # mmengine's preprocessor asks where it was sent


def metas(height: int, width: int) -> list[dict]:
    return [dict(ori_shape=(height, width), img_shape=(height, width))]


def image(height: int, width: int) -> torch.Tensor:
    """Half smooth, half noise; normalised."""
    torch.manual_seed(1)
    x = torch.full((1, 3, height, width), 0.3)
    x[..., width // 2:] = torch.randn(1, 3, height, width - width // 2)
    return x


@pytest.mark.parametrize('name', ['apt_eva02_ti_demo_seg', 'eva02_ti_demo_seg'])
@own_device
def test_train_and_evaluate(name, scenes, tmp_path):
    cfg = point_to(tiny(name), scenes, tmp_path / 'work', max_iters=3)
    Runner.from_cfg(cfg).train()
    scalars = logged(tmp_path / 'work')
    train = [entry for entry in scalars if 'loss' in entry]
    val = next(entry for entry in scalars if 'mIoU' in entry)
    assert len(train) == 3 and all(math.isfinite(entry['loss']) for entry in train)
    assert all({'decode.loss_ce', 'aux.loss_ce'} <= entry.keys() for entry in train)
    assert {'mIoU', 'mAcc', 'aAcc'} <= val.keys()
    for kept in (*(entry['kept_tokens'] for entry in train), val['val_kept_tokens']):
        assert 0 < kept < 1 if name.startswith('apt') else kept == 1
    assert (tmp_path / 'work/iter_3.pth').is_file()


@own_device
def test_a_budget_is_kept_and_logged(scenes, tmp_path):
    cfg = point_to(tiny(), scenes, tmp_path / 'work', max_iters=3)
    cfg.model.backbone.max_tokens = 20
    runner = Runner.from_cfg(cfg)
    runner.train()
    runner.test()
    assert 0 < runner.message_hub.get_scalar('test/test_over_budget').current() <= 1
    train = [entry for entry in logged(tmp_path / 'work') if 'loss' in entry]
    val = next(entry for entry in logged(tmp_path / 'work') if 'mIoU' in entry)
    assert any(entry['over_budget'] > 0 for entry in train) and 0 < val['val_over_budget'] <= 1
    assert all(entry['kept_tokens'] <= 20 / 64 for entry in train)


@own_device
def test_short_fine_tuning_changes_nothing_else(scenes, tmp_path):
    cfg = point_to(tiny(), scenes, tmp_path / 'work')
    cfg.model.trainable = ADDED
    cfg.custom_hooks.append(dict(type='CheckFrozenLoadedHook'))
    dense = build(tiny('eva02_ti_demo_seg')).state_dict()
    torch.save({'state_dict': dense}, tmp_path / 'dense.pth')
    cfg.load_from = str(tmp_path / 'dense.pth')
    runner = Runner.from_cfg(cfg)
    runner.train()
    trained = runner.model.state_dict()
    for name, value in dense.items():  # the statistics of batch norm too
        assert torch.equal(trained[name], value), name
    assert trained['backbone.patch_embed.zero_mlp.weight'].abs().max() > 0


@own_device
def test_short_fine_tuning_takes_a_position_table_of_another_grid(scenes, tmp_path):
    """Loading resamples it, so it is there: a segmentor of 512 px serves for a config of 640 px."""
    cfg = point_to(tiny(), scenes, tmp_path / 'work')
    cfg.model.trainable = ADDED
    cfg.custom_hooks.append(dict(type='CheckFrozenLoadedHook'))
    dense = build(tiny('eva02_ti_demo_seg')).state_dict()
    table = torch.randn(1, 1 + 4 * 4, 32)
    torch.save({'state_dict': dict(dense, **{'backbone.pos_embed': table})}, tmp_path / 'dense.pth')
    cfg.load_from = str(tmp_path / 'dense.pth')
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert torch.equal(runner.model.backbone.pos_embed, resample_positions(table, 8))


@torch.no_grad()
@pytest.mark.parametrize('name', ['apt_eva02_ti_demo_seg', 'eva02_ti_demo_seg'])
def test_slide_is_whole_on_an_image_of_the_crops_size(name):
    model = build(tiny(name))
    x = image(CROP, CROP)
    slide = model.inference(x, metas(CROP, CROP))
    model.test_cfg.mode = 'whole'
    whole = model.inference(x, metas(CROP, CROP))
    assert slide.shape == (1, 6, CROP, CROP)
    torch.testing.assert_close(slide, whole, atol=1e-6, rtol=0)
    assert slide.std() > 1e-4


@torch.no_grad()
def test_slide_is_the_mean_of_its_windows():
    model = build(tiny())
    x = image(CROP, 200)
    logits = model.inference(x, metas(CROP, 200))
    windows = {left: model.encode_decode(x[..., left:left + CROP], metas(CROP, CROP)) for left in (0, 72)}
    torch.testing.assert_close(logits[..., :72], windows[0][..., :72])
    torch.testing.assert_close(logits[..., 72:128], (windows[0][..., 72:] + windows[72][..., :56]) / 2)
    torch.testing.assert_close(logits[..., 128:], windows[72][..., 56:])


@torch.no_grad()
@pytest.mark.parametrize('name', ['apt_eva02_ti_demo_seg', 'eva02_ti_demo_seg'])
@pytest.mark.parametrize('max_windows', [1, 2, 4, 100])
def test_windows_together_are_the_windows_alone(name, max_windows):
    """mmsegmentation computes each by itself.  Two images, which count apart."""
    model = build(tiny(name))
    x = torch.cat([image(150, 331), image(150, 331).flip(3) * 0.5])
    wanted = EncoderDecoder.slide_inference(model, x, metas(150, 331) * 2)
    model.test_cfg.max_windows, batches = max_windows, []
    model.backbone.register_forward_hook(lambda *_: batches.append(model.backbone.last_layout.batch_size))
    torch.testing.assert_close(model.inference(x, metas(150, 331) * 2), wanted, atol=1e-5, rtol=0)
    together = max(max_windows // 2, 1)
    num_windows = 2 * 4
    assert batches == [2 * min(together, num_windows - begin) for begin in range(0, num_windows, together)]


@torch.no_grad()
def test_the_content_of_several_windows():
    """Two windows of an image that is lower than a window: below it, both hold padding."""
    model, hook = build(tiny()), KeptTokensHook()
    hook._sizes_px = [(96, 200)]
    model.inference(image(96, 200), metas(96, 200))
    assert model.backbone.last_layout.batch_size == 2
    assert hook._count(model.backbone)[3] == 2 * 6 * 8


@torch.no_grad()
def test_a_budget_of_a_batch_is_one_windows():
    cfg = tiny()
    cfg.model.backbone.update(max_tokens=20, max_tokens_per='batch')
    model = build(cfg)
    wanted = EncoderDecoder.slide_inference(model, image(150, 331), metas(150, 331))
    torch.testing.assert_close(model.inference(image(150, 331), metas(150, 331)), wanted, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize(('height', 'width'), [(99, 75), (64, 192), (1, 1), (200, 331)])
@pytest.mark.parametrize('mode', ['slide', 'whole'])
def test_any_size(height, width, mode):
    """Smaller than the crop, no multiple of a patch, larger than the position table: logits of the image's own size."""
    model = build(tiny())
    model.test_cfg.mode = mode
    x = image(height, width)
    logits = model.inference(x, metas(height, width))
    assert logits.shape == (1, 6, height, width) and logits.isfinite().all()
    if mode == 'whole':
        padded = F.pad(x, (0, -width % 64, 0, -height % 64))
        maps = model.decode_head(model.neck(model.backbone(padded)))
        expected = F.interpolate(maps, padded.shape[2:], mode='bilinear', align_corners=False)
        torch.testing.assert_close(logits, expected[..., :height, :width])


@torch.no_grad()
@pytest.mark.parametrize('mode', ['slide', 'whole'])
def test_any_size_with_windows(mode):
    """A window of 8 cells of 16 px is larger than the largest patch: images are padded to windows."""
    cfg = tiny()
    cfg.model.backbone.update(with_cls_token=False, window_size=8, global_block_indexes=(1, 3))
    model = build(cfg)
    model.test_cfg.mode = mode
    assert model.backbone.size_divisor_px == 128
    for height, width in ((99, 75), (150, 211), (128, 64)):
        logits = model.inference(image(height, width), metas(height, width))
        assert logits.shape == (1, 6, height, width) and logits.isfinite().all()


@torch.no_grad()
def test_predictions_have_the_original_size():
    model = build(tiny())
    x = torch.randint(0, 256, (3, 120, 90), dtype=torch.uint8)
    sample = SegDataSample(metainfo=dict(ori_shape=(60, 45), img_shape=(120, 90)))
    result, = model.test_step(dict(inputs=[x], data_samples=[sample]))
    assert result.pred_sem_seg.data.shape == (1, 60, 45)


@torch.no_grad()
def test_apt_that_merges_nothing_is_the_dense_model():
    cfg = tiny()
    cfg.model.backbone.thresholds = (-1.0, -1.0)
    dense, apt = build(tiny('eva02_ti_demo_seg')), build(cfg)
    missing = apt.load_state_dict(dense.state_dict(), strict=False).missing_keys
    assert all(name.startswith(tuple(ADDED)) for name in missing)
    x = image(CROP, 192)
    torch.testing.assert_close(apt.inference(x, metas(CROP, 192)), dense.inference(x, metas(CROP, 192)),
                               atol=1e-5, rtol=0)


def test_ignored_pixels_have_no_loss():
    model = build(tiny()).train()

    def gradients(labels: torch.Tensor) -> torch.Tensor:
        samples = [SegDataSample(gt_sem_seg=PixelData(data=labels)) for _ in range(2)]
        model.zero_grad()
        losses = model.loss(image(CROP, CROP).expand(2, -1, -1, -1), samples)
        sum(value for name, value in losses.items() if 'loss' in name).backward()
        assert all(value.isfinite().all() for value in losses.values())
        return model.decode_head.conv_seg.weight.grad.clone()

    assert gradients(torch.full((1, CROP, CROP), 255)).abs().max() == 0
    half = torch.full((1, CROP, CROP), 255)
    half[:, :, :64] = 3
    assert gradients(half).abs().max() > 0


def test_detector_and_segmentor_in_one_process(request):
    with DefaultScope.overwrite_default_scope('mmdet'):
        detector = MODELS.build(request.getfixturevalue('tiny_config')().model)
    segmentor = build(tiny())
    assert type(detector.backbone) is type(segmentor.backbone) is MODELS.get('APTEVA02')
    assert type(segmentor.decode_head.loss_decode).__module__.startswith('mmseg')
    assert type(detector.rpn_head.loss_cls).__module__.startswith('mmdet')
    assert apt_dense.mm.det.APTCascadeRCNN is type(detector) and seg.APTEncoderDecoder is type(segmentor)


def test_a_position_table_of_another_size_is_resampled(tmp_path, caplog):
    """As from a pre-trained backbone, whose table is of 14 x 14."""
    cfg = tiny()
    source = build(tiny()).backbone.state_dict()
    smaller = torch.randn(1, 1 + 4 * 4, 32)
    torch.save({'state_dict': {f'backbone.{key}': value for key, value in
                               dict(source, pos_embed=smaller).items()}}, tmp_path / 'pretrained.pth')
    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'pretrained.pth'),
                                       prefix='backbone.')
    model = MODELS.build(cfg.model)
    model.init_weights()
    table = model.backbone.pos_embed
    assert table.shape == (1, 65, 32)
    assert torch.equal(table[:, 0], smaller[:, 0])
    grid = F.interpolate(smaller[:, 1:].unflatten(1, (4, 4)).permute(0, 3, 1, 2), (8, 8), mode='bicubic')
    torch.testing.assert_close(table[:, 1:], grid.flatten(2).transpose(1, 2))
    torch.testing.assert_close(model.backbone.blocks[0].norm1.weight, source['blocks.0.norm1.weight'])


def run_test(cfg: Config, checkpoint: Path, tta: bool = False, out: str | None = None) -> dict:
    """What tools/test.py does."""
    cfg.load_from = str(checkpoint)
    if tta:
        outputs.set_tta(cfg)
    if out:
        outputs.set_output(cfg, out)
    return launch.build_runner(cfg).test()


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    torch.save({'state_dict': build(tiny()).state_dict()}, tmp_path / 'model.pth')
    return tmp_path / 'model.pth'


def test_out_in_the_submission_format(scenes, tmp_path, checkpoint):
    """8-bit maps of the image's size, named and in folders like the images; with reduce_zero_label ids begin at 1."""
    for folder, suffix in (('val', '.jpg'), ('semantic/val', '.png')):
        (scenes / folder / 'more').mkdir()
        (scenes / folder / f'0{suffix}').rename(scenes / folder / f'more/1{suffix}')
    for reduced in (False, True):
        cfg = point_to(tiny(), scenes, tmp_path / f'work_{reduced}')
        cfg.test_dataloader.dataset.reduce_zero_label = reduced
        cfg.test_evaluator.format_only = True
        run_test(cfg, checkpoint, out=str(tmp_path / f'maps_{reduced}'))
    images = sorted((scenes / 'val').rglob('*.jpg'))
    assert len(images) == 4
    for path in images:
        name = path.relative_to(scenes / 'val').with_suffix('.png')
        plain, shifted = (cv2.imread(str(tmp_path / f'maps_{reduced}' / name), cv2.IMREAD_UNCHANGED)
                          for reduced in (False, True))
        assert plain.dtype == np.uint8 and plain.shape == cv2.imread(str(path)).shape[:2]
        assert np.array_equal(shifted, plain + 1) and shifted.max() <= 6


@pytest.mark.parametrize(('change', 'message'), [
    (lambda cfg: cfg.test_evaluator.update(format_only=True), 'say where, with --out DIRECTORY'),
    (lambda cfg: cfg.test_dataloader.dataset.pipeline.pop(2), 'loads no label maps, .*format_only=True and --out'),
])
def test_a_test_without_label_maps_says_what_it_wants(change, message):
    cfg = tiny()
    outputs.check_label_maps(cfg)
    change(cfg)
    with pytest.raises(launch.LaunchError, match=message):
        outputs.check_label_maps(cfg)


def test_training_images_smaller_than_the_crop_are_padded():
    """The image with zeros, the mean colour; its labels with 255."""
    preprocessor = MODELS.build(Config.fromfile(CONFIGS / 'apt_eva02_l_ade20k_512.py').model.data_preprocessor)
    sample = SegDataSample(gt_sem_seg=PixelData(data=torch.full((1, 300, 400), 3)))
    batch = preprocessor(dict(inputs=[torch.full((3, 300, 400), 250)], data_samples=[sample]), training=True)
    image, labels = batch['inputs'][0], batch['data_samples'][0].gt_sem_seg.data[0]
    assert image.shape == (3, 512, 512) and labels.shape == (512, 512)
    inside = torch.zeros(512, 512, dtype=torch.bool)
    inside[:300, :400] = True
    assert (image[:, ~inside] == 0).all() and (image[:, inside] > 1).all()
    assert (labels[~inside] == 255).all() and (labels[inside] == 3).all()


@own_device
def test_a_wrong_crop_says_what_to_set(scenes, tmp_path):
    cfg = point_to(tiny(), scenes, tmp_path / 'work')
    cfg.model.data_preprocessor.size = (120, 120)
    crop = next(step for step in cfg.train_dataloader.dataset.pipeline if step.type == 'RandomCrop')
    crop.crop_size = (120, 120)
    with pytest.raises(ValueError, match='input is 120x120 px, .*pad the image to 128x128 px'):
        Runner.from_cfg(cfg).train()


@own_device
def test_short_fine_tuning_wants_the_statistics_of_batch_norm(scenes, tmp_path):
    cfg = point_to(tiny(), scenes, tmp_path / 'work')
    cfg.model.trainable = ADDED
    cfg.custom_hooks.append(dict(type='CheckFrozenLoadedHook'))
    state = build(tiny('eva02_ti_demo_seg')).state_dict()
    del state['decode_head.bottleneck.bn.running_var']
    torch.save({'state_dict': state}, tmp_path / 'dense.pth')
    cfg.load_from = str(tmp_path / 'dense.pth')
    with pytest.raises(ValueError, match=r'lacks 1 frozen parameters.*decode_head\.bottleneck\.bn\.running_var'):
        Runner.from_cfg(cfg).train()


def test_test_time_augmentation(scenes, tmp_path, checkpoint):
    """One scale and no flip is the plain test; more of them run and change the result."""
    def prepare(name: str, ratios: tuple, flips: tuple) -> Config:
        cfg = point_to(tiny(), scenes, tmp_path / name)
        load, _, labels, pack = cfg.test_dataloader.dataset.pipeline
        resizes = [dict(type='Resize', scale=(int(4 * CROP * ratio), int(CROP * ratio)), keep_ratio=True)
                   for ratio in ratios]
        cfg.tta_pipeline = [load, dict(type='TestTimeAug', transforms=[
            resizes, [dict(type='RandomFlip', prob=prob) for prob in flips], [labels], [pack]])]
        return cfg

    plain = run_test(point_to(tiny(), scenes, tmp_path / 'plain'), checkpoint)
    one = run_test(prepare('one', (1.0,), (0.0,)), checkpoint, tta=True)
    both = run_test(prepare('both', (0.75, 1.0), (0.0, 1.0)), checkpoint, tta=True)
    assert {'mIoU', 'mAcc', 'aAcc'} <= plain.keys()
    assert one == plain and both != plain
    kept = next(entry['test_kept_tokens'] for entry in logged_test(tmp_path / 'both'))
    assert 0 < kept < 1


def logged_test(work_dir: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in work_dir.glob('*/*.json')]


def test_tta_needs_settings(tmp_path):
    with pytest.raises(launch.LaunchError, match='--tta: .* has no tta_model, tta_pipeline; the ADE20K configs do'):
        outputs.set_tta(Config.fromfile(CONFIGS / 'eva02_b_coco.py'))


@pytest.mark.parametrize('size', [512, 640])
def test_the_configs_tta_pipeline(size, tmp_path):
    """Twelve images, none with a short side below the crop."""
    from mmcv.transforms import Compose
    cfg = Config.fromfile(CONFIGS / f'eva02_l_ade20k_{size}.py')
    cv2.imwrite(str(tmp_path / 'image.jpg'), np.zeros((60, 90, 3), np.uint8))
    cv2.imwrite(str(tmp_path / 'labels.png'), np.ones((60, 90), np.uint8))
    paths = dict(img_path=str(tmp_path / 'image.jpg'), seg_map_path=str(tmp_path / 'labels.png'))
    out = Compose(cfg.tta_pipeline)(dict(paths, reduce_zero_label=True, label_map=None, seg_fields=[]))
    sides = [int(size * ratio) for ratio in (1, 1, 1, 1.25, 1.5, 1.75) for _ in 'ab']
    assert [tuple(part.shape[1:]) for part in out['inputs']] == [(side, round(side * 1.5)) for side in sides]
    assert [sample.flip for sample in out['data_samples']] == [False, True] * 6
    assert [sample.gt_sem_seg.data.shape for sample in out['data_samples']] == [(1, 60, 90)] * 12
