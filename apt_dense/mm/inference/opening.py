"""From a name, a config or a checkpoint to a model that predicts."""
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import DATASETS, MODELS, DefaultScope
from mmengine.utils import import_modules_from_strings
from torch import nn

from apt_dense.calibration.shares import thresholds_for
from apt_dense.core.checkpoint_files import load_official, read_pickle
from apt_dense.core.conversion import convert
from apt_dense.core.eva02_keys import looks_official
from apt_dense.core.vit import PackedViT
from apt_dense.extras import from_extra
from apt_dense.mm import compat
from apt_dense.mm.cli.config_files import CONFIGS, find_config, read_config
from apt_dense.mm.cli.loading import refuse_gaps, refuse_not_finite, watch_next_load
from apt_dense.mm.cli.saved_config import config_of
from apt_dense.mm.cli.trained_settings import changed_settings_of_model
from apt_dense.mm.data.inputs import ConfigInputs
from apt_dense.mm.errors import DataError, LaunchError
from apt_dense.mm.inference.calibrating import calibration_images, score_all
from apt_dense.mm.inference.model import Model
from apt_dense.mm.inference.options import check_options, find_device

with from_extra('mm'):
    from mmdet.visualization.palette import get_palette

CHECKPOINT_SUFFIXES = ('.pth', '.pt', '.bin', '.ckpt', '.safetensors')
# What users of mmdetection mean by a detector's predictions; the published test setting keeps boxes of any score.
USUAL_TEST = dict(score_thr=0.05, max_per_img=100, nms=dict(type='nms', iou_threshold=0.5))
NUM_SCALES = {'det': 4, 'seg': 3}  # where thresholds are wanted of a config that has none
BEST_SCORER = 'upsampling_error_max'  # of a model that was trained without merging: docs/results.md
DEVICE = re.compile(r'auto|cpu|cuda(:\d+)?')
# Of an official file, which has no config: those that it may belong to.
OFFICIAL = {'det': ('eva02_b_coco', 'eva02_l_coco'),
            'seg': ('eva02_b_ade20k_512', 'eva02_l_ade20k_512', 'eva02_l_ade20k_640')}


def load(config_or_checkpoint: str | Path, weights: str | Path | None = None, device: str = 'auto',
         kept: float | None = None, *, calibrate_on: str | Path | Sequence[str | Path] | None = None,
         thresholds: Sequence[float] | None = None, scorer: str | None = None, max_tokens: int | None = None,
         proportional_attention: bool | None = None, as_published: bool = False) -> Model:
    """Open a model for prediction.

    Args:
        config_or_checkpoint: the name of one of this project's configs ('apt_eva02_l_coco'), a config file, or a
            checkpoint.  A checkpoint of a training holds its config; an official EVA-02 file has none and is
            recognised.
        weights: a checkpoint, if the first argument is a config; official files are converted on the way.  Without it
            the weights are random numbers, which a warning says.
        device: 'cpu', 'cuda', 'cuda:1', ...; 'auto' is a GPU where there is one.
        kept: the share of tokens to keep, padding left out, of the pictures of ``calibrate_on``: thresholds are found
            in the proportions of the config's own, or all alike where it has none.  1 merges nothing, and needs no
            pictures.
        calibrate_on: pictures, or folders of them, like those to be predicted.
        thresholds: of the patches, fine to coarse, in place of the config's.  A dense model merges patches then; by the
            entropy as the paper's Resizing baseline does.
        scorer: what the thresholds are of, a name of ``apt_dense.core.scorers.SCORERS``, with ``kept`` or
            ``thresholds``.  By default the config's; for a dense model, 'upsampling_error_max' with ``kept``, which
            has lost the least accuracy (docs/results.md), and 'entropy' with ``thresholds``, the paper's.
        max_tokens: the most of an image, see ``PatchChooser``.
        proportional_attention: merged patches count in attention by their cells.  By default the config's; of a dense
            model that does not say, True, but for 'entropy' with ``thresholds``, which is the paper's.
        as_published: test a detector as its published figures were measured, every box of any score, which is slow.
            By default: scores from 0.05, 100 boxes, NMS at 0.5.

    Raises:
        DataError: for a name or a file that is not there, weights that do not fit, or settings that contradict each
            other.

    Example::

        model = apt_dense.load('apt_eva02_l_coco', 'checkpoints/apt_l.pth')
        for result in model.predict('photos/'):
            result.draw(f'found/{Path(result.name).name}')
    """
    compat.filter_library_warnings()
    _check_sources(config_or_checkpoint, weights)
    check_options(kept, calibrate_on, thresholds, scorer, max_tokens)
    images = None if calibrate_on is None else calibration_images(calibrate_on, f'kept={kept}')
    device = find_device(device)
    thresholds = None if thresholds is None else tuple(thresholds)
    source = str(config_or_checkpoint)
    cfg, weights = _find_config(source, None if weights is None else str(weights))
    _check_task(cfg, source)
    _import_modules(cfg, source)
    _set_for_prediction(cfg, as_published)
    _warn_of_other_settings(cfg, weights, proportional_attention)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        if proportional_attention is not None:
            cfg.model.backbone.proportional_attention = proportional_attention
        _set_patches(cfg, kept, images, thresholds, scorer, max_tokens)
        model = _build(cfg, source)
        metainfo = DATASETS.build({**_leaf(cfg.test_dataloader.dataset), 'lazy_init': True}).metainfo
    found = _draw_weights(model, source) if weights is None else _load(model, weights)
    model.dataset_meta = _classes(cfg, {**metainfo, **found}, weights)
    model.to(device).eval()
    return Model(model, cfg)


def _check_sources(config_or_checkpoint: Any, weights: Any) -> None:
    if isinstance(config_or_checkpoint, (dict, Config)):
        raise DataError("load got a config, wanted its file: cfg.dump('mine.py'), then load('mine.py', WEIGHTS)")
    if not isinstance(config_or_checkpoint, (str, Path)):
        raise DataError(f'load got {config_or_checkpoint!r}, wanted a checkpoint, or the name or file of a config')
    if weights is not None and not isinstance(weights, (str, Path)):
        raise DataError(f'load got {weights!r} for weights, wanted a checkpoint')
    if isinstance(weights, str) and DEVICE.fullmatch(weights):
        raise DataError(f'load got the device {weights!r} for weights: name it, device={weights!r}')


def _find_config(source: str, weights: str | None) -> tuple[Config, str | None]:
    """The config, and the checkpoint to load."""
    path = Path(source).expanduser()
    if path.suffix in CHECKPOINT_SUFFIXES:
        if weights is not None:
            raise DataError(f'{source} and {weights} are both checkpoints: give one, or a config first')
        _check_checkpoint(source)
        return _config_of_checkpoint(path), str(path)
    if weights is not None:
        _check_checkpoint(weights)
    try:
        find_config(source, CONFIGS)
    except LaunchError as error:
        raise DataError(f'{error} (a checkpoint ends in {", ".join(CHECKPOINT_SUFFIXES)})') from error
    try:
        return read_config(source, CONFIGS, import_custom_modules=False), weights
    except LaunchError as error:
        raise DataError(str(error)) from error


def _check_checkpoint(path: str) -> None:
    if Path(path).expanduser().is_dir():
        raise DataError(f'checkpoint {path} is a folder: give a file of it, such as iter_3000.pth')
    if not Path(path).expanduser().is_file():
        raise DataError(f'checkpoint {path} does not exist (in {Path.cwd()})')


def _import_modules(cfg: Config, source: str) -> None:
    settings = cfg.get('custom_imports') or dict(imports=['apt_dense.mm'])
    try:
        import_modules_from_strings(**settings)
    except ImportError as error:
        raise DataError(f'{source} has custom_imports={settings.get("imports")}, and: {error}. Put the folder of the '
                        'module on PYTHONPATH') from error


def _config_of_checkpoint(path: Path) -> Config:
    """The config inside a checkpoint, or that of the official model whose file it is."""
    cfg = config_of(_meta_of(str(path)), path.name)
    if cfg is not None:
        return cfg
    state = _official_state(str(path))
    task = looks_official(state)
    if task not in OFFICIAL:
        what = 'a pre-trained backbone without a head' if task else 'no config'
        raise DataError(f'{path} holds {what}: give the config first and this file as weights, '
                        f"apt_dense.load('CONFIG', '{path}')")
    fitting = []
    for name in OFFICIAL[task]:
        cfg = Config.fromfile(CONFIGS / f'{name}.py')
        try:
            conversion = convert(state, task, _shapes(cfg))
        except ValueError:
            continue
        fitting.append((len(conversion.resampled), name, cfg))
    if not fitting:
        raise DataError(f'{path} is an official EVA-02 file, and fits none of {", ".join(OFFICIAL[task])}: give its '
                        'config first, and this file as weights')
    return min(fitting, key=lambda entry: entry[:2])[2]


def _meta_of(path: str) -> dict[str, Any]:
    """What mmengine has noted in a checkpoint; {} where there is nothing."""
    if path.endswith('.safetensors'):
        return {}
    try:
        content = read_pickle(Path(path))
    except ValueError as error:
        raise DataError(str(error)) from error
    return content.get('meta') or {} if isinstance(content, dict) else {}


def _official_state(path: str) -> dict[str, torch.Tensor]:
    try:
        return load_official(path)[0]
    except ValueError as error:
        raise DataError(str(error)) from error


def _shapes(cfg: Config) -> dict[str, torch.Size]:
    """Names and shapes of a config's model, which takes no memory."""
    with DefaultScope.overwrite_default_scope(cfg.default_scope), torch.device('meta'):
        return {name: tensor.shape for name, tensor in MODELS.build(cfg.model).state_dict().items()}


def _check_task(cfg: Config, source: str) -> None:
    model = cfg.get('model') or {}
    family = MODELS.get(model.get('backbone', {}).get('type') or '') or object
    if not ('roi_head' in model or 'decode_head' in model) or not issubclass(family, PackedViT):
        raise DataError(f'{cfg.filename or source} has model {model.get("type")} on backbone '
                        f'{model.get("backbone", {}).get("type")}: wanted a detector with a roi_head or a segmentor '
                        'with a decode_head on a backbone that packs tokens, such as APTEVA02. '
                        'tools/test.py CONFIG CHECKPOINT --out FILE.pkl writes the logits of a classifier')
    if 'roi_head' in model and not (model.get('test_cfg') or {}).get('rcnn'):
        raise DataError(f'{cfg.filename or source} has no model.test_cfg.rcnn, which says which boxes are kept: '
                        'add it')
    if not cfg.get('test_dataloader'):
        raise DataError(f'{cfg.filename or source} has no test_dataloader, whose pipeline prepares the pictures: '
                        'add one')


def _set_for_prediction(cfg: Config, as_published: bool) -> None:
    """Drop what only training needs, set what a config may leave out, and take the usual test setting of detectors."""
    for name in ('trainable', 'distill'):
        cfg.model.pop(name, None)
    cfg.model.backbone.init_cfg = None
    scope, visualizer = ('mmdet', 'DetLocalVisualizer') if 'roi_head' in cfg.model else ('mmseg', 'SegLocalVisualizer')
    cfg.default_scope = cfg.get('default_scope') or scope
    cfg.visualizer = cfg.get('visualizer') or dict(type=visualizer)
    if 'roi_head' in cfg.model and not as_published:
        cfg.model.test_cfg.rcnn.update(USUAL_TEST)


def _set_patches(cfg: Config, kept: float | None, images: list[Path] | None, thresholds: Sequence[float] | None,
                 scorer: str | None, max_tokens: int | None) -> None:
    backbone = cfg.model.backbone
    if scorer is not None and scorer != backbone.get('scorer', 'entropy'):
        # The proportions of the config's thresholds are those of its scorer.
        backbone.update(scorer=scorer, thresholds=(0.0,) * (backbone.get('num_scales', 1) - 1))
    if max_tokens is not None:
        backbone.max_tokens = max_tokens
    if thresholds is not None:
        own = backbone.get('num_scales', 1)
        if own > 1 and len(thresholds) != own - 1:
            raise DataError(f'got {len(thresholds)} thresholds {tuple(thresholds)}, and the model has {own} sizes of '
                            f'patches: give {own - 1}, fine to coarse')
        if own == 1 and len(thresholds) and backbone.get('scorer', 'entropy') != 'entropy':
            backbone.setdefault('proportional_attention', True)  # not the paper's Resizing
        backbone.update(thresholds=tuple(thresholds), num_scales=len(thresholds) + 1)
    elif kept is not None:
        if backbone.get('num_scales', 1) == 1:
            num_scales = NUM_SCALES['det' if 'roi_head' in cfg.model else 'seg']
            while backbone.get('window_size', 0) % 2**(num_scales - 1):
                num_scales -= 1
            backbone.update(num_scales=num_scales, thresholds=(0.0,) * (num_scales - 1), scorer=scorer or BEST_SCORER)
            backbone.setdefault('proportional_attention', True)
        if kept < 1:
            backbone.thresholds = _calibrate(cfg, kept, images)
        else:
            backbone.thresholds = (-1.0,) * (backbone.num_scales - 1)


def _calibrate(cfg: Config, kept: float, images: list[Path]) -> tuple[float, ...]:
    """Thresholds at which the share is kept, of the content of some pictures."""
    try:
        inputs = ConfigInputs(cfg, images=images)
        return thresholds_for(score_all(inputs), kept, inputs.chooser.thresholds)
    except ValueError as error:
        raise DataError(f'kept={kept}: {error}') from error


def _warn_of_other_settings(cfg: Config, weights: str | None, proportional_attention: bool | None) -> None:
    """Of the config, in place of those that the weights were trained with; what was asked for is no surprise."""
    lines = [] if weights is None else changed_settings_of_model(cfg, _meta_of(weights), weights)
    for line in lines:
        if proportional_attention is None or not line.startswith('backbone.proportional_attention'):
            warnings.warn(f"{line}: the config's holds", stacklevel=3)


def _build(cfg: Config, source: str) -> nn.Module:
    try:
        return MODELS.build(cfg.model)
    except (AssertionError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(f'{source}: its model cannot be built: {" ".join(str(error).split())}') from error


def _leaf(dataset: dict) -> dict:
    """A dataset's config without wrappers around it."""
    inner = dataset.get('dataset') or next(iter(dataset.get('datasets', ())), None)
    return dict(dataset) if inner is None else _leaf(inner)


def _load(model: nn.Module, path: str) -> dict[str, Any]:
    """Load a checkpoint; return the classes that it names."""
    state = _official_state(path)
    task = looks_official(state)
    if task is not None:
        shapes = {name: value.shape for name, value in model.state_dict().items()}
        try:
            state = convert(state, task, shapes).state_dict
        except ValueError as error:
            raise DataError(f'{path}: {error}') from error
    state = {name.removeprefix('module.'): value for name, value in state.items()}
    refuse_not_finite(state, model, path)
    end_watch = watch_next_load(model, lambda gaps: refuse_gaps(model, gaps, path))
    try:
        model.load_state_dict(state, strict=False)
    finally:
        end_watch()
    return {key.lower(): value for key, value in (_meta_of(path).get('dataset_meta') or {}).items()}


def _draw_weights(model: nn.Module, source: str) -> dict[str, Any]:
    """Random weights, without mmengine's line in the log for each parameter, and a warning; they name no classes."""
    warnings.warn(f'{source} without weights: they are random numbers, and so is what it predicts. Give a checkpoint '
                  'as weights', stacklevel=3)
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel('WARNING')
    try:
        model.init_weights()
    finally:
        logger.setLevel(level)
    return {}


def _classes(cfg: Config, metainfo: dict[str, Any], weights: str | None) -> dict[str, Any]:
    """The dataset's meta of the model; DataError if its classes are not as many as the head's."""
    heads = cfg.model.roi_head.bbox_head if 'roi_head' in cfg.model else cfg.model.decode_head
    head = heads[0] if isinstance(heads, list) else heads
    classes = metainfo.get('classes') or ()
    if len(classes) != head.num_classes:
        raise DataError(f'{weights or cfg.filename} names {len(classes)} classes, and the head has num_classes='
                        f'{head.num_classes}: set metainfo=dict(classes=...) of the test dataset')
    return {**metainfo, 'palette': metainfo.get('palette') or get_palette('random', len(classes))}
