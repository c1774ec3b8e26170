"""OpenMMLab's ways to predict one's own pictures: functions and inferencers, paths, arrays, lists, batches."""
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmdet.apis import DetInferencer, inference_detector, init_detector
from mmdet.utils import get_test_pipeline_cfg
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import MODELS
from mmseg.apis import MMSegInferencer, inference_model, init_model

from apt_dense.mm.seg import LoadLabelMap
from tests.mm.conftest import CONFIGS, draw_scene, shrink

SEGMENTORS = sorted(path.stem for path in CONFIGS.glob('*.py') if 'ade20k' in path.stem or path.stem.endswith('_seg'))
ONE_CLASS = {'classes': ['a'], 'palette': [[0, 0, 0]]}
DETECTORS = sorted(path.stem for path in CONFIGS.glob('*.py') if 'coco' in path.stem or '_det' in path.stem)


@pytest.fixture(autouse=True)
def quiet():
    """What the libraries say of missing class names is not looked at."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        yield


def shrunk_segmentor(name: str) -> Config:
    """A config with its own pipelines, crops and windows, and a tiny model."""
    cfg = Config.fromfile(CONFIGS / f'{name}.py')
    cfg.model.backbone.update(embed_dims=32, depth=4, num_heads=2, out_indices=(0, 1, 2, 3), init_cfg=None)
    cfg.model.neck.embed_dim = 32
    cfg.model.decode_head.update(in_channels=[32] * 4, channels=16)
    cfg.model.auxiliary_head.update(in_channels=32, channels=16)
    return cfg


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """BGR, uint8: rectangles of noise on grey."""
    return draw_scene(np.random.default_rng(seed), height, width, 2)[0]


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two pictures of different sizes, without loss."""
    for name, size in (('a.png', (96, 128)), ('b.png', (120, 90))):
        cv2.imwrite(str(tmp_path / name), picture(*size))
    return tmp_path


def weights(model: torch.nn.Module, folder: Path, dataset_meta: dict) -> str:
    torch.save(dict(state_dict=model.state_dict(), meta=dict(dataset_meta=dataset_meta)), folder / 'model.pth')
    return str(folder / 'model.pth')


def ids_of(result) -> torch.Tensor:
    return result.pred_sem_seg.data[0]


@pytest.mark.parametrize('name', SEGMENTORS)
def test_segmentation_with_every_config(name, folder):
    """A path, with the pipeline of the config's test; mmsegmentation looks for it in two places."""
    cfg = shrunk_segmentor(name)
    assert cfg.test_pipeline == cfg.test_dataloader.dataset.pipeline
    model = init_model(cfg, device='cpu')
    ids = ids_of(inference_model(model, str(folder / 'a.png')))
    assert ids.shape == (96, 128) and ids.min() >= 0 and ids.max() < cfg.model.decode_head.num_classes
    seen = Compose(cfg.test_pipeline)(dict(img_path=str(folder / 'a.png')))['inputs']
    inferencer = MMSegInferencer(cfg, weights(model, folder, ONE_CLASS), device='cpu')
    for given in (str(folder / 'a.png'), picture(96, 128)):
        assert torch.equal(inferencer.pipeline(given)['inputs'], seen)


def test_segmentation_of_paths_arrays_lists_and_batches(folder):
    model = init_model(shrunk_segmentor('apt_eva02_ti_demo_seg'), device='cpu')
    paths = [str(folder / name) for name in ('a.png', 'b.png')]
    wanted = [ids_of(inference_model(model, path)) for path in paths]
    assert all(len(ids.unique()) > 1 for ids in wanted)
    # Pictures of different sizes, which mmsegmentation puts into one batch.
    assert all(map(torch.equal, map(ids_of, inference_model(model, paths)), wanted))
    arrays = [cv2.imread(path) for path in paths]
    assert torch.equal(ids_of(inference_model(model, arrays[0])), wanted[0])
    assert all(map(torch.equal, map(ids_of, inference_model(model, arrays)), wanted))


@pytest.mark.parametrize('batch_size', [1, 2])
def test_the_segmentation_inferencer(folder, batch_size):
    cfg = shrunk_segmentor('apt_eva02_ti_demo_seg')
    model = init_model(cfg, device='cpu')
    paths = [str(folder / name) for name in ('a.png', 'b.png')]
    wanted = [ids_of(inference_model(model, path)).numpy() for path in paths]
    inferencer = MMSegInferencer(cfg, weights(model, folder, dict(cfg.metainfo)), device='cpu')
    (folder / 'model.pth').unlink()
    inputs = {'paths': paths, 'arrays': [cv2.imread(path) for path in paths], 'a folder': str(folder),
              'both': [paths[0], cv2.imread(paths[1])]}
    for kind, given in inputs.items():
        found = inferencer(given, batch_size=batch_size, out_dir=str(folder.parent / f'out_{kind}'))['predictions']
        order = [0, 1] if found[0].shape == wanted[0].shape else [1, 0]  # a folder's order is the file system's
        assert all(np.array_equal(found[index], wanted[place]) for place, index in enumerate(order)), kind
        for written in ('vis/a.png', 'pred/00000000_pred.png')[kind != 'paths':]:
            assert (folder.parent / f'out_{kind}' / written).is_file() or kind != 'paths'


def test_a_dataset_without_label_maps():
    """A dataset's sample without a label map is an error, a picture that belongs to none is not."""
    load = LoadLabelMap(num_classes=3)
    assert load(dict(img_path='photo.jpg')) == dict(img_path='photo.jpg')
    sample = dict(img_path='data/7.jpg', label_map=None, reduce_zero_label=False, seg_fields=[])
    with pytest.raises(ValueError, match=r'data/7\.jpg has no label map: .*seg_map_path.*LoadLabelMap out'):
        load(sample)


@pytest.mark.parametrize('name', DETECTORS)
def test_detection_with_every_config(name, folder):
    """The pipeline of the config's test, as mmdetection builds it, and its data preprocessor."""
    cfg = Config.fromfile(CONFIGS / f'{name}.py')
    steps = get_test_pipeline_cfg(cfg)
    preprocessor = MODELS.build(cfg.model.data_preprocessor)
    from_path = Compose(steps)(dict(img_path=str(folder / 'a.png'), img_id=0))
    steps[0].type = 'mmdet.LoadImageFromNDArray'
    from_array = Compose(steps)(dict(img=picture(96, 128), img_id=0))
    batch = preprocessor(pseudo_collate([from_path, from_array]))
    assert torch.equal(*batch['inputs']) and batch['inputs'].shape[1:] == (3, *[cfg.image_size] * 2)
    assert [sample.ori_shape for sample in batch['data_samples']] == [(96, 128)] * 2


@pytest.fixture
def detector():
    cfg = shrink(Config.fromfile(CONFIGS / 'apt_eva02_ti_demo_det.py'))
    torch.manual_seed(0)
    return cfg, init_detector(cfg, device='cpu', palette='random')


def test_detection_of_paths_arrays_and_lists(folder, detector):
    _, model = detector
    paths = [str(folder / name) for name in ('a.png', 'b.png')]
    wanted = [inference_detector(model, path).pred_instances for path in paths]
    assert all(len(instances) for instances in wanted)
    for given in (paths, [cv2.imread(path) for path in paths]):
        for found, instances in zip(inference_detector(model, given), wanted, strict=True):
            assert torch.equal(found.pred_instances.bboxes, instances.bboxes)
            assert torch.equal(found.pred_instances.masks, instances.masks)


@pytest.mark.parametrize('batch_size', [1, 2])
def test_the_detection_inferencer(folder, detector, batch_size):
    cfg, model = detector
    paths = [str(folder / name) for name in ('a.png', 'b.png')]
    wanted = [inference_detector(model, path).pred_instances for path in paths]
    inferencer = DetInferencer(cfg, weights(model, folder, dict(classes=cfg.metainfo.classes)), device='cpu',
                               show_progress=False)
    (folder / 'model.pth').unlink()
    arrays = [cv2.imread(path) for path in paths]
    for given in (paths, arrays, [paths[0], arrays[1]]):
        found = inferencer(given, batch_size=batch_size, out_dir=str(folder.parent / 'out'),
                           no_save_pred=given is not paths)  # mmdetection has no name for an array's file
        for prediction, instances in zip(found['predictions'], wanted, strict=True):
            np.testing.assert_allclose(prediction['scores'], instances.scores, atol=1e-5)
    assert (folder.parent / 'out/vis/a.png').is_file() and (folder.parent / 'out/preds/a.json').is_file()
