"""The preflight over configs: every line of its list, for train, val and test, in wrappers too."""
import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image

import apt_dense.mm.det  # noqa: F401
from apt_dense.mm.preflight import cache, run
from apt_dense.mm.preflight.draw import draw_samples
from apt_dense.mm.preflight.findings import MENDED, STOP, WARN, PreflightError
from tests.mm.preflight.coco_files import CLASSES, HEIGHT, WIDTH, annotation, coco, dataset, write

ROOT = Path(__file__).parents[3]
SPLITS = ('train', 'val', 'test')


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv('APT_DENSE_CACHE', str(tmp_path / 'cache'))


def config(root: Path, kind: str = 'Checked', masks: bool = True, contents: dict | None = None, **more) -> Config:
    """Three splits in three folders, good but for ``contents``; ``more`` goes into the datasets."""
    cfg = dict(default_scope='mmdet')
    for split in SPLITS:
        content = (contents or {}).get(split, coco())
        if content is not None:
            write(root / split, content)
        test_mode = split != 'train'
        cfg[f'{split}_dataloader'] = dict(batch_size=1, dataset=dataset(
            root / split, f'{kind}CocoDataset', masks, test_mode, **more))
        if test_mode:
            cfg[f'{split}_evaluator'] = dict(type=f'{kind}CocoMetric', ann_file=f'{root}/{split}/a.json',
                                             metric=['bbox', 'segm'] if masks else 'bbox')
    return Config(cfg)


def found(cfg, *args, **kwargs) -> dict[str, str]:
    """Rule -> severity of all findings."""
    return {finding.rule.name: finding.rule.severity for finding in run.check(cfg, *args, **kwargs).findings}


def test_nothing_is_found_where_nothing_is_wrong(tmp_path):
    report = run.check(config(tmp_path, filter_cfg=dict(filter_empty_gt=True)), deep='all')
    assert not report.findings
    assert [line.split(':')[0] for line in report.counts] == list(SPLITS)
    assert all('4 images, 4 with objects; 4 objects of 3 of 3 classes' in line for line in report.counts)
    assert not run.check(config(tmp_path, 'Coco'[:0])).findings  # mmdetection's own classes


def spoil(split, **change):
    """A config's contents of which one annotation in one split is changed."""
    content = coco(7)
    content['annotations'][3].update(change)
    return {split: content}


@pytest.mark.parametrize('split', SPLITS)
@pytest.mark.parametrize(('contents', 'rule', 'severity', 'plain'), [
    (dict(iscrowd=None), 'coco-iscrowd', MENDED, 'metric'),
    (dict(area=None), 'coco-area', MENDED, 'both'),
    (dict(id=0), 'coco-unscored-ids', MENDED, 'metric'),
    (dict(id=1), 'coco-annotation-ids', MENDED, 'both'),
    (dict(iscrowd='0'), 'coco-iscrowd-text', MENDED, 'both'),
    (dict(category_id='1'), 'coco-id-types', MENDED, 'both'),
    (dict(segmentation=[]), 'coco-no-mask', STOP, 'itself'),
    (dict(segmentation=dict(size=[24, 32], counts=[0, 768])), 'coco-mask-size', STOP, 'itself'),
    (dict(image_id=99), 'coco-unknown-image', STOP, 'warns'),
    (dict(bbox=[4, float('nan'), 5, 5]), 'coco-box-not-finite', STOP, 'itself'),
], ids=lambda value: value if isinstance(value, str) else None)
def test_annotations_in_each_split(split, contents, rule, severity, plain, tmp_path):
    contents = spoil(split, **contents)
    assert found(config(tmp_path, contents=contents))[rule] == severity
    rules = found(config(tmp_path, '', contents=contents))
    if plain == 'itself':
        assert rules[rule] == STOP
    elif plain == 'warns':
        assert rules[rule] == WARN
    else:
        wrong = plain == 'both' or split != 'train'
        assert (rules.get('coco-unmended') == STOP) == wrong and rule not in rules


@pytest.mark.parametrize('split', SPLITS)
def test_bad_annotations_that_are_skipped_are_warnings(split, tmp_path):
    cfg = config(tmp_path, contents=spoil(split, segmentation=[]), on_bad_annotation='skip')
    for name in ('val', 'test'):
        cfg[f'{name}_evaluator'].on_bad_annotation = 'skip'
    assert found(cfg) == {'coco-no-mask': WARN}


@pytest.mark.parametrize('split', SPLITS)
def test_the_order_of_categories(split, tmp_path):
    content = coco(categories=list(reversed(coco()['categories'])))
    assert found(config(tmp_path, contents={split: content})) == {'coco-category-order': MENDED}
    rules = run.check(config(tmp_path, '', contents={split: content})).findings
    assert {finding.rule.name for finding in rules} == {'coco-unmended'}
    assert f'{split}_dataloader.dataset.type=CocoDataset does not mend it' in str(rules[0])
    assert "Set type='CheckedCocoDataset'" in str(rules[0])


@pytest.mark.parametrize('split', SPLITS)
@pytest.mark.parametrize('content', ['[]', '<html>', 'version https://git-lfs.github.com/spec/v1', '{"images": [',
                                     coco(images=[]), coco(categories=[dict(id=1, name='Cat')])])
def test_unusable_files(split, content, tmp_path):
    findings = run.check(config(tmp_path, contents={split: content})).findings
    assert findings and all(f'{split}/a.json' in finding.where for finding in findings)
    assert any(finding.rule.severity == STOP for finding in findings)


WRAPPERS = {
    'list': lambda data: [data],
    'repeat': lambda data: dict(type='RepeatDataset', times=3, dataset=data),
    'concat': lambda data: dict(type='ConcatDataset', datasets=[data, data]),
    'balanced': lambda data: dict(type='ClassBalancedDataset', oversample_thr=0.1, dataset=data),
    'mixed': lambda data: dict(type='MultiImageMixDataset', pipeline=[dict(type='Mosaic')],
                               dataset=dict(type='RepeatDataset', times=2, dataset=data)),
}


@pytest.mark.parametrize('wrapper', WRAPPERS)
@pytest.mark.parametrize('kind', ['Checked', ''])
@pytest.mark.parametrize('split', SPLITS)
def test_wrapped_datasets(split, kind, wrapper, tmp_path):
    cfg = config(tmp_path, kind, contents=spoil(split, segmentation=[]))
    data = cfg[f'{split}_dataloader'].dataset
    cfg[f'{split}_dataloader'].dataset = WRAPPERS[wrapper](data)
    assert found(cfg)['coco-no-mask'] == STOP
    write(tmp_path / split, coco())
    assert not found(cfg)
    empty = coco(annotations=[annotation(1, 1, 1, [500, 500, 9, 9])])
    write(tmp_path / split, empty)
    report = str(next(finding for finding in run.check(cfg).findings if finding.rule.name == 'coco-no-image-left'))
    assert report.startswith(f'{split} dataset {tmp_path}/{split}/a.json has no object left: 4 images, 4 without')


def test_nothing_left_after_filtering(tmp_path):
    for change, said in ((dict(min_size=60), '4 smaller than min_size=60'),
                         (dict(filter_empty_gt=True), '0 annotations')):
        contents = dict(train=coco(annotations=[])) if 'filter_empty_gt' in change else {}
        finding, = run.check(config(tmp_path / str(len(contents)), contents=contents, filter_cfg=change)).findings
        assert finding.rule.name == 'coco-no-image-left' and said in finding.got


def test_what_else_is_wrong_where_the_classes_do_not_fit(tmp_path):
    """Everything at once, and nothing that only follows."""
    content = coco(7, categories=[dict(id=number, name=name) for number, name in enumerate(('Cat', 'dog', 'emu'), 1)])
    content['annotations'][3]['segmentation'] = []
    cfg = config(tmp_path, contents=dict(train=content, val=content))
    (tmp_path / 'train/img/2.png').unlink()
    assert found(cfg) == {'coco-class-spelling': STOP, 'coco-no-mask': STOP, 'picture-missing': STOP}


def test_nothing_but_crowds(tmp_path):
    content = coco()
    for item in content['annotations']:
        item['iscrowd'] = 1
    assert found(config(tmp_path, contents=dict(train=content))) == {'coco-only-crowds': STOP}


def test_an_evaluation_without_truth(tmp_path):
    """But for a submission, whose file has none."""
    content = coco()
    del content['annotations']
    cfg = config(tmp_path, contents=dict(test=content))
    assert found(cfg) == {'coco-nothing-to-score': STOP}
    cfg.test_evaluator.update(format_only=True, outfile_prefix='out')
    assert not found(cfg)


@pytest.mark.parametrize('split', SPLITS)
def test_boxes_as_corners_and_as_fractions(split, tmp_path):
    content = coco(8)
    for item in content['annotations']:
        item['bbox'] = [40, 30, 60, 45]
    assert found(config(tmp_path, masks=False, contents={split: content})) == {'coco-boxes-as-corners': WARN}
    for item in content['annotations']:
        item['bbox'] = [0.5, 0.5, 0.25, 0.25]
    rules = found(config(tmp_path, masks=False, contents={split: content}))
    assert rules['coco-boxes-as-fractions'] == WARN and rules['coco-no-image-left'] == STOP


def test_other_suspicions(tmp_path):
    content = coco(8)
    content['annotations'][0]['segmentation'] = [[50, 40, 60, 40, 60, 47]]
    content['images'][1]['file_name'] = content['images'][2]['file_name']
    content['annotations'] = [item for item in content['annotations'] if item['category_id'] != 3]
    assert found(config(tmp_path, contents=dict(train=content))) == {
        'coco-box-beside-mask': WARN, 'coco-one-file-two-ids': WARN, 'coco-class-without-objects': WARN}
    content['annotations'] = content['annotations'][:1]
    content['images'] = [dict(content['images'][0], id=number, file_name='1.png') for number in range(1, 40)]
    rules = found(config(tmp_path, contents=dict(train=content), filter_cfg=dict(filter_empty_gt=True)))
    assert rules['coco-nearly-empty'] == WARN


# ---- pictures ----
@pytest.mark.parametrize('split', SPLITS)
def test_missing_pictures(split, tmp_path):
    cfg = config(tmp_path)
    (tmp_path / split / 'img/2.png').rename(tmp_path / split / 'img/2.PNG')
    finding, = run.check(cfg).findings
    assert str(finding).startswith(f'{tmp_path}/{split}/img/: 1 of 4: pictures that are not there, namely: 2.png '
                                   '(2.PNG is there)')
    pipeline = [dict(type='GuardSamples', on_bad='skip', transforms=cfg.train_dataloader.dataset.pipeline[:2])]
    cfg.train_dataloader.dataset.pipeline = pipeline
    assert found(cfg) == {'picture-missing': WARN if split == 'train' else STOP}


def test_pictures_that_are_not_loaded_may_be_missing(tmp_path):
    content = coco()
    content['images'].append(dict(id=9, file_name='no.png', width=WIDTH, height=HEIGHT))
    cfg = config(tmp_path, contents=dict(train=content), filter_cfg=dict(filter_empty_gt=True))
    (tmp_path / 'train/img/no.png').unlink()
    assert not found(cfg)


def test_backslashes(tmp_path):
    content = coco()
    content['images'][0]['file_name'] = 'sub\\1.png'
    assert found(config(tmp_path, contents=dict(val=content))) == {'coco-backslashes': MENDED}
    assert found(config(tmp_path, '', contents=dict(val=content))) == {'picture-missing': STOP}


def save_turned(path: Path, orientation: int, size=(WIDTH, HEIGHT)) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new('RGB', size).save(path, 'JPEG', exif=exif)


@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize('split', SPLITS)
def test_pictures_that_exif_turns(split, orientation, tmp_path):
    cfg = config(tmp_path)
    save_turned(tmp_path / split / 'img/1.png', orientation)
    loaded = cv2.imread(str(tmp_path / split / 'img/1.png')).shape[:2]
    expected = {} if orientation == 1 else (
        {'picture-turned': STOP} if loaded == (WIDTH, HEIGHT) else {'picture-maybe-turned': WARN})
    assert found(cfg) == expected and (loaded == (WIDTH, HEIGHT)) == (orientation >= 5)
    cfg[f'{split}_dataloader'].dataset.pipeline[0].color_type = 'color_ignore_orientation'
    assert not found(cfg)
    if orientation >= 5:  # the file describes what is shown
        save_turned(tmp_path / split / 'img/1.png', orientation, (HEIGHT, WIDTH))
        assert found(cfg) == {'picture-size': STOP}
        cfg[f'{split}_dataloader'].dataset.pipeline[0].color_type = 'color'
        assert not found(cfg)


def test_pictures_of_another_size_and_broken_ones(tmp_path):
    cfg = config(tmp_path)
    cv2.imwrite(str(tmp_path / 'train/img/1.png'), np.zeros((24, 32, 3), np.uint8))
    (tmp_path / 'val/img/2.png').write_text('no picture')
    path = tmp_path / 'test/img/3.png'
    path.write_bytes(path.read_bytes()[:-30])
    assert found(cfg) == {'picture-size': STOP, 'picture-unreadable': STOP}
    where = {finding.where for finding in run.check(cfg).findings}
    assert where == {f'{tmp_path}/train/img/', f'{tmp_path}/val/img/'}  # pixels are not read
    for deep in ('sample', 'all'):
        assert f'{tmp_path}/test/img/' in {finding.where for finding in run.check(cfg, deep=deep).findings}


def test_pictures_of_another_loader_and_format(tmp_path):
    """What Pillow cannot read is no fault where something else reads it."""
    cfg = config(tmp_path)
    path = tmp_path / 'train/img/1.png'
    picture = cv2.imread(str(path))
    ok, data = cv2.imencode('.hdr', picture.astype(np.float32))  # OpenCV has this format, Pillow does not
    assert ok
    path.write_bytes(data.tobytes())
    assert not found(cfg, deep='all')
    path.write_bytes(b'\x93NUMPY and so on')
    assert found(cfg) == {'picture-unreadable': STOP}
    for loader in (dict(type='LoadImageFromNDArray'), dict(type='LoadImageFromFile', imdecode_backend='tifffile')):
        cfg.train_dataloader.dataset.pipeline[0] = loader
        assert not found(cfg, deep='all')


# ---- the tools ----
def test_splits_that_the_run_does_not_need(tmp_path):
    cfg = config(tmp_path, contents=dict(test='[]', val=coco()))
    assert found(cfg, ['train', 'val'], ['test']) == {'coco-not-an-object': STOP}
    assert found(cfg, ['train']) == {'coco-not-an-object': WARN}
    (tmp_path / 'test/a.json').unlink()
    report = run.check(cfg, ['train', 'val'], ['test'])
    assert not report.findings and report.counts[-1] == f'test: {tmp_path}/test/a.json is not there, passed over'
    assert found(cfg) == {'coco-file-missing': STOP}


def test_a_restart_pays_nothing(tmp_path, monkeypatch, capsys):
    cfg = config(tmp_path, contents=spoil('train', iscrowd=None))
    calls = []
    whole = run.check
    monkeypatch.setattr(run, 'check', lambda *args: calls.append(1) or whole(*args))
    for _ in range(2):
        run.check_before_start(cfg, ['train', 'val'])
        printed = capsys.readouterr().out
        assert printed.count('[coco-iscrowd]') == 1 and 'is not kept' not in printed
    cfg.work_dir, cfg.resume = 'elsewhere', True
    run.check_before_start(cfg, ['train', 'val'])
    assert len(calls) == 1
    for number, change in enumerate((lambda: write(tmp_path / 'val', coco(5)),
                                     lambda: save_turned(tmp_path / 'val/img/9.png', 1),
                                     lambda: cfg.update(tta_model=dict(type='Other'))), start=2):
        change()
        run.check_before_start(cfg, ['train', 'val'])
        assert len(calls) == number
    write(tmp_path / 'val', '[]')
    for number in (5, 6):  # what stops is not remembered
        with pytest.raises(PreflightError, match='is a list, not an object'):
            run.check_before_start(cfg, ['train', 'val'])
        assert len(calls) == number


def test_a_cache_that_cannot_be_written_is_no_reason_to_stop(tmp_path, monkeypatch, capsys):
    (tmp_path / 'file').touch()
    monkeypatch.setenv('APT_DENSE_CACHE', str(tmp_path / 'file'))
    run.check_before_start(config(tmp_path), ['train', 'val'])
    assert 'set APT_DENSE_CACHE' in capsys.readouterr().out
    assert cache.load('0') is None


def check_data(cfg: Config, folder: Path, *options: str) -> subprocess.CompletedProcess:
    path = folder / 'config.py'
    path.write_text('\n'.join(f'{key} = {value!r}' for key, value in cfg.to_dict().items()) +
                    "\ncustom_imports = dict(imports=['apt_dense.mm.det'])\n")
    return subprocess.run([sys.executable, 'tools/check_data.py', str(path), '--out-dir', f'{folder}/out', *options],
                          cwd=ROOT, capture_output=True, text=True)


@pytest.mark.slow
def test_the_tool_says_everything_at_once(tmp_path):
    cfg = config(tmp_path, contents=dict(train=coco(categories=[dict(id=1, name='Cat')]), val='[]') | spoil(
        'test', iscrowd=None))
    done = check_data(cfg, tmp_path)
    assert done.returncode == 2, done.stderr
    for said in ('must be put right: ', '[coco-class-spelling]', '[coco-not-an-object]', '[coco-missing-class]',
                 'put right when it is read: 1', '[coco-iscrowd]', 'test: ', '7 images, 7 with objects',
                 'train_dataloader.dataset: no pictures drawn', 'test_dataloader.dataset: drawn with their truth'):
        assert said in done.stdout
    assert len(list((tmp_path / 'out').glob('test_*.png'))) == 3


def test_pictures_show_the_truth(tmp_path):
    """As the dataset reads it: a file in another order, and mmsegmentation's label maps."""
    cfg = config(tmp_path, contents=dict(train=coco(categories=list(reversed(coco()['categories'])))))
    lines = list(draw_samples(cfg, str(tmp_path / 'out'), 2))
    assert len(lines) == 3 and all('drawn with their truth' in line for line in lines)
    drawn = cv2.imread(str(tmp_path / 'out/train_1.png'))
    assert drawn.shape == (HEIGHT, WIDTH, 3)
    assert (drawn[6:22, 5:25] != 90).any() and (drawn[30:, 40:] == 90).all()
    for folder, value in (('img', 90), ('map', 1)):
        (tmp_path / 'seg' / folder).mkdir(parents=True)
        for name in 'ab':
            suffix, shape = ('jpg', (48, 64, 3)) if folder == 'img' else ('png', (48, 64))
            cv2.imwrite(str(tmp_path / f'seg/{folder}/{name}.{suffix}'), np.full(shape, value, np.uint8))
    seg = Config(dict(default_scope='mmseg', train_dataloader=dict(dataset=dict(
        type='BaseSegDataset', data_root=f'{tmp_path}/seg', data_prefix=dict(img_path='img', seg_map_path='map'),
        metainfo=dict(classes=CLASSES, palette=[[0, 0, 0], [255, 0, 0], [0, 255, 0]]), pipeline=[
            dict(type='LoadImageFromFile'), dict(type='LoadLabelMap', num_classes=3), dict(type='PackSegInputs')]))))
    import apt_dense.mm.seg  # noqa: F401
    lines = list(draw_samples(seg, str(tmp_path / 'out'), 2))
    assert 'drawn with their truth' in lines[0] and (tmp_path / 'out/train_a.png').exists()
    assert run.check(seg, ['train']).counts == [f'train: {tmp_path}/seg/img: 2 pictures']


def test_an_excerpt_of_a_large_file(tmp_path, monkeypatch):
    monkeypatch.setattr('apt_dense.mm.preflight.draw.EXCERPT_BYTES', 2000)
    content = coco(60)
    write(tmp_path / 'train', json.dumps({key: content[key] for key in ('annotations', 'categories', 'images')}))
    write(tmp_path / 'train', content, name='other.json')  # its pictures
    cfg = config(tmp_path, contents=dict(train=None))
    line = next(draw_samples(cfg, str(tmp_path / 'out'), 3))
    assert line.count('.png') == 3


def test_links_that_lead_back_do_not_hold_up_the_check(tmp_path):
    (tmp_path / 'data/train').mkdir(parents=True)
    (tmp_path / 'data/train/above').symlink_to(tmp_path / 'data')
    (tmp_path / 'data/train/a.png').touch()
    lines = list(cache._states(str(tmp_path / 'data')))
    assert len(lines) == 2 and 'a.png' in lines[1]
