"""A few samples of each dataset with their truth drawn, as the dataset itself reads them."""
import copy
import json
import os
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import DATASETS, VISUALIZERS, DefaultScope

from apt_dense.core.files import NotWritten
from apt_dense.drawing.saving import save_picture
from apt_dense.extras import from_extra
from apt_dense.mm.data.json_stream import LIST, read_sections
from apt_dense.mm.preflight.coco import reads_coco
from apt_dense.mm.preflight.datasets import SPLITS, Source, annotation_file, datasets_of, is_remote

with from_extra('mm'):
    from PIL import Image

EXCERPT_BYTES = 20 << 20  # of a larger file, about so much is looked at
PACK = {'mmdet': dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape')),
        'mmseg': dict(type='PackSegInputs')}
VISUALIZER = {'mmdet': 'DetLocalVisualizer', 'mmseg': 'SegLocalVisualizer'}


def draw_samples(cfg: Config, out_dir: str, num_pictures: int) -> Iterator[str]:
    """Draw samples of each dataset into ``out_dir/SPLIT_KEY_NAME.png``.

    The pipeline's loading steps run, and no others: the pictures show what is trained on before augmentation.

    Yields:
        a line for each dataset: where its pictures are, or why there are none.

    Raises:
        NotWritten: if they cannot be written.
    """
    done = []
    for split in SPLITS:
        for source in datasets_of(cfg, split):
            if source.settings in done or not (reads_coco(source) or is_semantic(source)):
                continue
            done.append(source.settings)
            try:
                with DefaultScope.overwrite_default_scope(cfg.default_scope), tempfile.TemporaryDirectory() as scratch:
                    names = _draw(source, cfg.default_scope, Path(out_dir), num_pictures, Path(scratch))
            except NotWritten:
                raise
            except Exception as error:  # bad data fails in many ways, and what was found has been said
                yield f'{source.key}: no pictures drawn ({type(error).__name__}: {str(error).splitlines()[0][:200]})'
            else:
                yield f'{source.key}: drawn with their truth: {", ".join(names) or "none"}'


def is_semantic(source: Source) -> bool:
    """True for mmsegmentation's datasets, which list a folder."""
    return source.kind is not None and any(base.__name__ == 'BaseSegDataset' for base in source.kind.__mro__)


def _draw(source: Source, scope: str, out_dir: Path, num_pictures: int, scratch: Path) -> list[str]:
    settings = copy.deepcopy(dict(source.settings))
    settings['pipeline'] = [*_loading(settings.get('pipeline') or ()), PACK[scope]]
    if reads_coco(source) and not is_remote(settings, annotation_file(source)):
        excerpt = scratch / 'excerpt.json'
        excerpt.write_text(json.dumps(_excerpt(annotation_file(source), num_pictures)))
        settings.update(ann_file=str(excerpt), test_mode=True, filter_cfg=None, indices=None)
        if 'on_bad_annotation' in settings:
            settings['on_bad_annotation'] = 'skip'
    dataset = DATASETS.build(settings)
    visualizer = VISUALIZERS.build(dict(type=VISUALIZER[scope], name=f'preflight {source.key} {scratch.name}'))
    visualizer.dataset_meta = dataset.metainfo
    names = []
    for index in _evenly(range(len(dataset)), num_pictures):
        sample = dataset[index]
        instances = sample['data_samples'].get('gt_instances')
        if instances is not None:  # the visualiser takes arrays
            instances.bboxes = getattr(instances.bboxes, 'tensor', instances.bboxes)
            if 'masks' in instances:
                instances.masks = instances.masks.to_ndarray().astype(bool)
        image = sample['inputs'].permute(1, 2, 0).numpy()[..., ::-1]
        stem = Path(sample['data_samples'].img_path).stem
        path = out_dir / f'{source.key.replace("_dataloader.dataset", "")}_{stem}.png'
        visualizer.add_datasample(stem, image.copy(), sample['data_samples'], draw_pred=False)
        save_picture(Image.fromarray(visualizer.get_image()), path)
        names.append(str(path))
    return names


def _loading(pipeline: Any) -> list[dict]:
    """The steps that load, those of a guard without the guard."""
    steps = []
    for step in pipeline:
        kind = step['type'] if isinstance(step['type'], str) else step['type'].__name__
        if kind.rpartition('.')[2].startswith('Load'):
            steps.append(step)
        elif kind == 'GuardSamples':
            steps += _loading(step['transforms'])
    return steps


def _excerpt(path: str, num_images: int) -> dict:
    """A COCO file of a few images with annotations, in one pass over a large one."""
    every = max(1, os.path.getsize(path) // EXCERPT_BYTES)
    content: dict[str, list] = dict(images=[], annotations=[], categories=[])
    keys = {'images': 'id', 'annotations': 'image_id'}
    for section, item in read_sections(path):
        if section in content and item is not LIST and (
                section not in keys or zlib.crc32(str(item.get(keys[section])).encode()) % every == 0):
            content[section].append(item)
    annotated = {str(item.get('image_id')) for item in content['annotations']}
    images = [image for image in content['images'] if str(image.get('id')) in annotated] or content['images']
    content['images'] = _evenly(images, num_images)
    wanted = {str(image['id']) for image in content['images']}
    content['annotations'] = [item for item in content['annotations'] if str(item.get('image_id')) in wanted]
    return content


def _evenly(items: Any, number: int) -> list:
    number = min(number, len(items))
    return [items[index * len(items) // number] for index in range(number)]
