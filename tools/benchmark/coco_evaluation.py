"""Time COCO's evaluation by pycocotools and by faster-coco-eval, on made-up truth and detections, and compare them.

    python tools/benchmark/coco_evaluation.py --images 500 --detections 100 400 1500

Objects are as dense as in train2017: 7.3 an image in 80 classes, 1 % of them crowds.  Process time.  Then how long an
image's masks take to be encoded, by mmdet's function and by its replacement.
"""
import argparse
import contextlib
import io
import time

import apt_dense.mm.det  # noqa: F401  lets mmdet take faster-coco-eval
from apt_dense.command_line import at_least
from apt_dense.extras import from_extra

with from_extra('mm'):
    import numpy as np
    from mmdet.datasets.api_wrappers import COCO
    from mmdet.evaluation.metrics import coco_metric
    from pycocotools import mask as coco_mask

OBJECTS, CLASSES, HEIGHT, WIDTH = 7.3, 80, 480, 640


def make_truth(num_images: int, random: np.random.RandomState) -> dict:
    """A COCO file's content: ellipses as polygons, some as crowds."""
    annotations = []
    for image in range(1, num_images + 1):
        for _ in range(random.poisson(OBJECTS)):
            box = _box(random)
            crowd = int(random.rand() < 0.01)
            outline = _ellipse(box)
            mask = coco_mask.frPyObjects([outline], HEIGHT, WIDTH)[0]
            segmentation = {'size': [HEIGHT, WIDTH], 'counts': mask['counts'].decode()} if crowd else [outline]
            annotations.append(dict(
                id=len(annotations) + 1, image_id=image, category_id=_category(random), bbox=box, iscrowd=crowd,
                area=float(coco_mask.area(mask)), segmentation=segmentation))
    return dict(images=[dict(id=image, height=HEIGHT, width=WIDTH, file_name=f'{image}.jpg')
                        for image in range(1, num_images + 1)],
                annotations=annotations,
                categories=[dict(id=number, name=f'c{number}') for number in range(1, CLASSES + 1)])


def make_detections(truth: dict, per_image: int, random: np.random.RandomState) -> list[dict]:
    """Shifted objects, some of another class, and boxes anywhere; scores of two decimals, so that some tie."""
    objects = {image['id']: [] for image in truth['images']}
    for annotation in truth['annotations']:
        objects[annotation['image_id']].append(annotation)
    found = []
    for image, truths in objects.items():
        for number in range(per_image):
            if truths and number < per_image / 2:
                one = truths[random.randint(len(truths))]
                box = (np.array(one['bbox']) + random.randn(4) * 0.08 * max(one['bbox'][2:])).tolist()
                category = one['category_id'] if random.rand() < 0.8 else _category(random)
            else:
                box, category = _box(random), _category(random)
            box = [*box[:2], max(box[2], 2.0), max(box[3], 2.0)]
            mask = coco_mask.frPyObjects([_ellipse(box)], HEIGHT, WIDTH)[0]
            found.append(dict(image_id=image, category_id=category, bbox=box, score=round(float(random.rand()), 2),
                              segmentation={'size': [HEIGHT, WIDTH], 'counts': mask['counts'].decode()}))
    return found


def _box(random: np.random.RandomState) -> list[float]:
    width, height = (np.exp(random.uniform(np.log(8), np.log(300), 2))).tolist()
    return [random.uniform(0, WIDTH - 8), random.uniform(0, HEIGHT - 8), width, height]


def _category(random: np.random.RandomState) -> int:
    """Some classes are common."""
    return int(1 + CLASSES * random.rand()**3)


def _ellipse(box: list[float]) -> list[float]:
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    x, y, width, height = box
    return np.stack([x + width * (1 + np.cos(angles)) / 2, y + height * (1 + np.sin(angles)) / 2], 1).ravel().tolist()


def evaluate(evaluator: type, truth: dict, detections: list[dict], kind: str, use_cats: bool = True) -> object:
    """An evaluator that has run, with mmdet's numbers of detections; it prints nothing."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        if kind == 'segm':  # or COCO would take the box's area for the mask's
            detections = [{name: value for name, value in one.items() if name != 'bbox'} for one in detections]
        run = evaluator(coco, coco.loadRes([dict(one) for one in detections]), kind)
        run.params.maxDets = [100, 300, 1000]
        run.params.useCats = int(use_cats)
        run.evaluate()
        run.accumulate()
        run.summarize()
    return run


def time_encoding(detections: list[dict], per_image: int, num_images: int = 5) -> list[float]:
    """Seconds for the masks of an image by mmdet's own function and by the one in its place, which must agree."""
    encode, seconds, found = coco_metric.encode_mask_results, [0.0, 0.0], [None, None]
    for image in range(num_images):
        part = detections[image * per_image:(image + 1) * per_image]
        masks = np.ascontiguousarray([coco_mask.decode(one['segmentation']).astype(bool) for one in part])
        for index, function in enumerate((encode.__wrapped__, encode)):
            start = time.process_time()
            found[index] = function(masks)
            seconds[index] += (time.process_time() - start) / num_images
        assert found[0] == found[1]
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--images', type=at_least(1), default=500)
    parser.add_argument('--detections', type=at_least(1), nargs='+', default=[100, 400, 1500], help='of each image')
    args = parser.parse_args()
    faster = coco_metric.COCOeval
    plain = faster.__wrapped__
    truth = make_truth(args.images, np.random.RandomState(0))
    print(f'{args.images} images, {len(truth["annotations"])} objects; seconds of process time')
    print('| detections an image | kind | pycocotools | faster-coco-eval | ratio | largest difference |')
    print('|---|---|---|---|---|---|')
    for number in args.detections:
        detections = make_detections(truth, number, np.random.RandomState(1))
        for kind in ('bbox', 'segm'):
            seconds, stats = [], []
            for evaluator in (plain, faster):
                start = time.process_time()
                stats.append(evaluate(evaluator, truth, detections, kind).stats)
                seconds.append(time.process_time() - start)
            print(f'| {number} | {kind} | {seconds[0]:.1f} | {seconds[1]:.1f} | {seconds[1] / seconds[0]:.2f} | '
                  f'{np.abs(stats[0] - stats[1]).max():.0e} |', flush=True)
    print('\n| masks an image | encoded by mmdet, ms | by the covered columns, ms | ratio |\n|---|---|---|---|')
    for number in args.detections:
        plain, faster = time_encoding(make_detections(truth, number, np.random.RandomState(1)), number)
        print(f'| {number} | {1000 * plain:.0f} | {1000 * faster:.0f} | {faster / plain:.2f} |', flush=True)


if __name__ == '__main__':
    main()
