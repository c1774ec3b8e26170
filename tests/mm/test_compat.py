"""Each fix repairs what it names, and nothing else; a checkpoint that holds code is refused and not run."""
import importlib
import logging
import os
import pickle
import shutil
import socket
import sys
import warnings
import zipfile
from contextlib import nullcontext
from unittest import mock

import numpy as np
import pytest
import torch
from mmcv.ops import RoIAlign, nms, soft_nms
from mmcv.ops.nms import NMSop, SoftNMSop
from mmdet.apis import init_detector
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.losses import CrossEntropyLoss
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.fileio import FileClient
from mmengine.logging import HistoryBuffer, MessageHub, MMLogger
from mmengine.model import BaseModel
from mmengine.model.wrappers import MMDistributedDataParallel
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS
from mmengine.runner import CheckpointLoader, Runner, load_checkpoint
from mmengine.visualization import Visualizer
from mmseg.apis import init_model
from torch import nn

from apt_dense.mm import compat

NUMPY_TYPES = '?bhilqBHILQefd'


class Toy(BaseModel):
    """Linear regression of 1 on three numbers."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def forward(self, inputs, mode='tensor'):
        output = self.layer(torch.stack(inputs))
        return {'loss': (output - 1).square().mean()} if mode == 'loss' else output


class Call:
    """Pickled as a call of ``function``, which may be another Call: an unsafe load makes the call."""

    def __init__(self, function, *args):
        self.reduced = function, args

    def __reduce__(self):
        return self.reduced

    def __call__(self):
        """Never called: pickle wants what it is to call to be callable."""


def train_toy(work_dir, max_iters, **kwargs):
    data = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    runner = Runner(
        Toy(), work_dir=str(work_dir), experiment_name=f'{work_dir.name}_{max_iters}', default_scope='mmengine',
        train_dataloader=dict(dataset=[{'inputs': row} for row in data], batch_size=2, num_workers=0,
                              sampler=dict(type='InfiniteSampler')),
        train_cfg=dict(by_epoch=False, max_iters=max_iters), log_processor=dict(by_epoch=False),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.01)),
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=2),
                           logger=dict(type='LoggerHook', interval=1)), **kwargs)
    runner.message_hub.update_info('best_score', np.float64(0.25))
    runner.message_hub.update_info('confusion', np.arange(6).reshape(2, 3))
    runner.train()
    return runner


def test_runner_resumes_what_it_saved(tmp_path):
    first = train_toy(tmp_path, max_iters=2)
    second = train_toy(tmp_path, max_iters=4, resume=True, load_from=str(tmp_path / 'iter_2.pth'))
    losses, resumed = (runner.message_hub.get_scalar('train/loss').data[0] for runner in (first, second))
    assert len(losses) == 2 and len(resumed) == 4
    assert (resumed[:2] == losses).all()
    assert second.message_hub.get_scalar('train/loss').statistics('mean', 2) == pytest.approx(resumed[2:].mean())
    assert second.message_hub.get_info('best_score') == 0.25
    assert (second.message_hub.get_info('confusion') == [[0, 1, 2], [3, 4, 5]]).all()
    assert [state['step'].item() for state in second.optim_wrapper.state_dict()['state'].values()] == [4, 4]


@pytest.fixture
def checkpoint():
    """What CheckpointHook writes (a model, its optimiser, a message hub) and every numeric type of numpy."""
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    hub = MessageHub('checkpoint')
    for loss in (3.0, 2.0, 2.5):
        hub.update_scalar('train/loss', loss)
    hub.update_info('score', np.float64(0.75))
    return {
        'state_dict': model.state_dict(),
        'optimizer': optimizer.state_dict(),
        'message_hub': hub.state_dict(),
        'arrays': {code: np.array([[1, 0, 1]], code) for code in NUMPY_TYPES},
        'scalars': {code: np.dtype(code).type(1) for code in NUMPY_TYPES},
        'meta': {'iter': 3, 'classes': ('ball', 'crate'), 'cfg': 'a = 1'},
    }


def replace_in_pickle(path, old, new):
    """Write ``new`` for ``old`` in the pickle inside a checkpoint."""
    with zipfile.ZipFile(path) as file:
        entries = {entry: file.read(entry) for entry in file.namelist()}
    with zipfile.ZipFile(path, 'w') as file:  # uncompressed, as torch wants it
        for entry, content in entries.items():
            if entry.endswith('data.pkl'):
                assert old in content
                content = content.replace(old, new)
            file.writestr(entry, content)


@pytest.mark.parametrize('module', ['numpy.core.multiarray', 'numpy._core.multiarray'])
def test_checkpoint_loads_whichever_numpy_wrote_it(checkpoint, tmp_path, module):
    path = tmp_path / 'checkpoint.pth'
    torch.save(checkpoint, path)
    replace_in_pickle(path, np.zeros(0).__reduce__()[0].__module__.encode(), module.encode())
    model = nn.Linear(3, 2)
    loaded = load_checkpoint(model, str(path))
    for name, value in checkpoint['state_dict'].items():
        assert torch.equal(model.state_dict()[name], value), name
    history = loaded['message_hub']['log_scalars']['train/loss']
    assert isinstance(history, HistoryBuffer)
    assert [history.statistics(name) for name in ('min', 'max', 'mean', 'current')] == [2.0, 3.0, 2.5, 2.5]
    assert loaded['message_hub']['runtime_info']['score'] == 0.75
    for code in NUMPY_TYPES:
        assert loaded['arrays'][code].dtype == loaded['scalars'][code].dtype == np.dtype(code)
        assert loaded['arrays'][code].tolist() == [[1, 0, 1]] and loaded['scalars'][code] == 1
    mean = loaded['optimizer']['state'][0]['exp_avg']
    assert mean.abs().min() > 0 and torch.equal(mean, checkpoint['optimizer']['state'][0]['exp_avg'])
    assert loaded['meta'] == checkpoint['meta']


def call_through_getattr(function, *args):
    """A way to every builtin function that names nothing but getattr and HistoryBuffer."""
    namespace = Call(getattr, HistoryBuffer.mean, '__globals__')
    functions = Call(Call(getattr, namespace, 'get'), '__builtins__')
    return Call(Call(Call(getattr, functions, 'get'), function), *args)


ATTACKS = {
    'system': (lambda marker: Call(os.system, f'touch {marker}'), r'GLOBAL posix\.system '),
    'eval': (lambda marker: Call(eval, f'open({str(marker)!r}, "w").close()'), r'GLOBAL (\w+\.)?eval '),
    'getattr': (lambda marker: call_through_getattr('open', str(marker), 'w'),
                r"getattr\(.*'__globals__'\) is not allowed in a checkpoint"),
}


@pytest.fixture(params=ATTACKS)
def attack(request, tmp_path):
    """(checkpoint with code inside, the file that the code makes, the text of its refusal)."""
    path, marker = tmp_path / 'attack.pth', tmp_path / 'marker'
    make, refusal = ATTACKS[request.param]
    torch.save({'state_dict': {'weight': torch.ones(2)}, 'meta': make(marker)}, path)
    torch.load(path, weights_only=False)
    assert marker.exists()  # it works where nothing stops it
    marker.unlink()
    return str(path), marker, refusal


def test_code_in_a_checkpoint_is_refused_and_not_run(attack):
    path, marker, refusal = attack
    for load in (CheckpointLoader.load_checkpoint, torch.load):
        with pytest.raises(pickle.UnpicklingError, match=refusal):
            load(path, map_location='cpu')
    assert not marker.exists()


@pytest.mark.parametrize(('owner', 'name'), [
    (HistoryBuffer, '__init__'), (HistoryBuffer, 'register_statistics'), (np.ndarray, 'mean'), (np.dtype, 'type')])
def test_a_checkpoint_reaches_the_four_statistics_only(tmp_path, owner, name):
    torch.save({'allowed': HistoryBuffer.max, 'other': Call(getattr, owner, name)}, tmp_path / 'checkpoint.pth')
    with pytest.raises(pickle.UnpicklingError, match=rf"getattr\(.*'{name}'\) is not allowed in a checkpoint"):
        torch.load(tmp_path / 'checkpoint.pth')


def load_from_hub(path, monkeypatch, tmp_path):
    """Through torch.hub, which loads anything; a file that is in its cache is not fetched."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    (tmp_path / 'hub/checkpoints').mkdir(parents=True)
    shutil.copy(path, tmp_path / 'hub/checkpoints/some.pth')
    return CheckpointLoader.load_checkpoint('https://host/some.pth', map_location='cpu')


def load_with_fallback(path, monkeypatch, tmp_path):
    """As onedl-mmengine, which tries a second time without the check."""

    def fall_back(filename, map_location):
        try:
            return torch.load(filename, map_location=map_location)
        except pickle.UnpicklingError:
            return torch.load(filename, map_location=map_location, weights_only=False)

    monkeypatch.setitem(CheckpointLoader._schemes, '', fall_back)
    return CheckpointLoader.load_checkpoint(path)


def load_with_torch_of_old(path, monkeypatch, tmp_path):
    """As on torch 2.5, whose default is to run what a file says; a user may set the same today."""
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')
    return CheckpointLoader.load_checkpoint(path)


def load_detector(path, monkeypatch, tmp_path):
    return init_detector(Config(dict(model=dict(type='CompatModel', backbone=dict()))), path, palette='coco',
                         device='cpu')


def load_segmentor(path, monkeypatch, tmp_path):
    return init_model(Config(dict(model=dict(type='CompatModel'))), path, device='cpu')


@pytest.mark.parametrize('load', [
    load_from_hub, load_with_fallback, load_with_torch_of_old, load_detector, load_segmentor])
def test_no_way_of_loading_runs_code(load, attack, monkeypatch, tmp_path):
    path, marker, refusal = attack
    MODELS.register_module(name='CompatModel', module=lambda **settings: Toy(), force=True)
    with pytest.raises(pickle.UnpicklingError, match=refusal):
        load(path, monkeypatch, tmp_path / 'hub')
    assert not marker.exists()
    torch.save({'state_dict': Toy().state_dict(), 'meta': {'dataset_meta': {'classes': ('a',)}}}, path)
    assert load(path, monkeypatch, tmp_path / 'good')  # the same way takes a good one
    assert 'TORCH_FORCE_WEIGHTS_ONLY_LOAD' not in os.environ


@pytest.fixture
def boxes_and_scores():
    """Sixty overlapping boxes with distinct scores; bfloat16 holds all of these numbers exactly."""
    generator = torch.Generator().manual_seed(1)
    corners, sizes = (torch.randint(1, 100, (60, 2), generator=generator) for _ in range(2))
    scores = (torch.randperm(60, generator=generator) + 60) / 128
    return torch.cat([corners, corners + sizes], 1).float(), scores


@pytest.mark.parametrize('box_type', [torch.float32, torch.bfloat16])
def test_nms_of_bfloat16_scores_equals_float32(boxes_and_scores, box_type):
    boxes, scores = boxes_and_scores
    for threshold in (0.0, 0.7):
        dets, kept = nms(boxes, scores, 0.5, score_threshold=threshold)
        narrow_dets, narrow_kept = nms(boxes.to(box_type), scores.bfloat16(), 0.5, score_threshold=threshold)
        assert 1 < len(kept) < 60
        assert narrow_kept.equal(kept)
        assert narrow_dets.float().equal(dets)


@pytest.mark.parametrize('box_type', [torch.float32, torch.bfloat16])
def test_soft_nms_of_bfloat16_scores_equals_float32(boxes_and_scores, box_type):
    boxes, scores = boxes_and_scores
    for method in ('linear', 'gaussian', 'naive'):
        dets, kept = soft_nms(boxes, scores, 0.5, min_score=0.3, method=method)
        narrow_dets, narrow_kept = soft_nms(boxes.to(box_type), scores.bfloat16(), 0.5, min_score=0.3, method=method)
        assert 1 < len(kept) < 60
        assert narrow_kept.equal(kept)
        assert narrow_dets.dtype == torch.float32 and narrow_dets.equal(dets)


@pytest.fixture
def feature_map():
    return torch.randn(2, 5, 9, 13, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def rois():
    """(image, x1, y1, x2, y2) in pixels; the maps have a stride of 4 px."""
    return torch.tensor([[0, 3.5, 2.0, 30.0, 20.0], [1, 0, 0, 52, 36], [1, 10, 4, 18, 35], [0, 40, 20, 60, 50.0]])


@pytest.fixture
def roi_align():
    return RoIAlign((3, 4), spatial_scale=0.25, sampling_ratio=0)


def test_roi_align_of_bfloat16_is_float32_rounded(feature_map, rois, roi_align):
    narrow = feature_map.bfloat16().requires_grad_()
    wide = feature_map.bfloat16().float().requires_grad_()
    pooled, expected = roi_align(narrow, rois), roi_align(wide, rois)
    assert pooled.shape == (4, 5, 3, 4)
    assert pooled.dtype == torch.bfloat16
    assert pooled.equal(expected.bfloat16())
    weight = torch.randn(4, 5, 3, 4).bfloat16()
    (pooled * weight).sum().backward()
    (expected * weight).sum().backward()
    assert narrow.grad.equal(wide.grad.bfloat16())


@pytest.mark.parametrize('kind', [torch.float16, torch.float32, torch.float64])
def test_roi_align_leaves_other_types_alone(feature_map, rois, roi_align, kind, monkeypatch):
    seen = []
    monkeypatch.setattr(sys.modules['mmcv.ops.roi_align'], 'roi_align', lambda *args: seen.extend(args[:2]))
    roi_align(feature_map.to(kind), rois.to(kind))
    assert [tensor.dtype for tensor in seen] == [kind, kind]


@pytest.mark.parametrize('kind', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('reorder', [
    lambda x: x.to(memory_format=torch.channels_last), lambda x: x.mT.contiguous().mT,
    lambda x: x.repeat(2, 1, 1, 1)[::2]
], ids=['channels last', 'transposed', 'strided'])
def test_roi_align_does_not_depend_on_the_memory_order(feature_map, rois, roi_align, reorder, kind):
    maps = reorder(feature_map.to(kind)).requires_grad_()
    copy = maps.detach().contiguous().requires_grad_()
    assert not maps.is_contiguous()
    pooled, expected = roi_align(maps, rois), roi_align(copy, rois)
    assert pooled.equal(expected)
    weight = torch.randn_like(expected)
    (pooled * weight).sum().backward()
    (expected * weight).sum().backward()
    assert maps.grad.equal(copy.grad)


@pytest.fixture
def extractor(monkeypatch):
    """mmdet's RoI extractor with the fix, which ends with the test."""
    monkeypatch.setattr(SingleRoIExtractor, 'forward', SingleRoIExtractor.forward)
    compat.keep_rois_in_float32()
    return SingleRoIExtractor(dict(type='RoIAlign', output_size=2, sampling_ratio=0), out_channels=3,
                              featmap_strides=[4, 8], finest_scale=28)


def test_extractor_does_not_round_boxes(extractor):
    """The maps' values are x coordinates over 4096, so that what is pooled tells where; bfloat16 holds 2041 as 2040."""
    columns = (torch.arange(1024) * 4 + 2) / 4096
    fine = columns.expand(1, 3, 16, 1024)
    coarse = columns.view(512, 2).mean(1).expand(1, 3, 8, 512)
    rois = torch.tensor([[0, 2041.0, 4, 2059, 60], [0, 1003, 8, 1204, 56], [0, 3333, 0, 3403, 64]])
    centres = (rois[:, 1] + rois[:, 3]) / 2
    torch.testing.assert_close(extractor((fine, coarse), rois).mean((1, 2, 3)) * 4096, centres, atol=0.5, rtol=0)
    narrow = fine.bfloat16(), coarse.bfloat16()
    wide = tuple(level.float() for level in narrow)
    for options in ({}, {'roi_scale_factor': 1.5}):
        pooled = extractor(narrow, rois, **options)
        assert pooled.dtype == torch.bfloat16
        assert pooled.equal(extractor(wide, rois, **options).bfloat16())


def test_detectors_come_with_the_extractors_fix():
    importlib.import_module('apt_dense.mm.det')
    assert hasattr(SingleRoIExtractor.forward, 'replaced_by_apt_dense')


def test_extractor_without_rois_keeps_the_type(extractor):
    maps = torch.ones(1, 3, 16, 24, dtype=torch.bfloat16), torch.ones(1, 3, 8, 12, dtype=torch.bfloat16)
    pooled = extractor(maps, torch.zeros(0, 5))
    assert pooled.shape == (0, 3, 2, 2) and pooled.dtype == torch.bfloat16


def test_shapes_outside_a_picture_do_not_rescale_it():
    image = np.zeros((40, 60, 3), np.uint8)
    image[:, 30:] = 255
    visualizer = Visualizer(image=image)
    clean = visualizer.get_image()
    assert clean.shape == image.shape
    visualizer.draw_points(np.array([[300.0, 200.0]]))
    with pytest.warns(UserWarning, match='out of bounds'):
        visualizer.draw_lines(torch.tensor([100, 120]), torch.tensor([50, 90]))
    assert (visualizer.get_image() == clean).all()
    assert visualizer.ax_save.get_xlim() == (0, 60) and visualizer.ax_save.get_ylim() == (40, 0)
    visualizer.set_image(image[:20, :50])
    assert visualizer.ax_save.get_xlim() == (0, 50) and visualizer.ax_save.get_ylim() == (20, 0)


def test_bf16_wrapper_trains_under_autocast():
    torch.manual_seed(0)
    model, x = nn.Linear(3, 1).to(get_device()), torch.randn(16, 3).to(get_device())
    wrapper = build_optim_wrapper(model, dict(type='BF16OptimWrapper', optimizer=dict(type='AdamW', lr=0.05)))
    losses = []
    for _ in range(40):
        with wrapper.optim_context(model):
            output = model(x)
            loss = (output - 1).square().mean()
        wrapper.update_params(loss)
        losses.append(loss.item())
        assert output.dtype == torch.bfloat16
    assert model(x).dtype == model.weight.dtype == torch.float32
    assert losses[-1] < 0.2 * losses[0]


def test_bf16_wrapper_accumulates_gradients():
    model = nn.Linear(3, 1).to(get_device())
    model.no_sync = mock.Mock(side_effect=nullcontext)  # as a data-parallel wrapper has
    wrapper = compat.BF16OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1), accumulative_counts=2)
    wrapper.initialize_count_status(model, 0, 4)
    before, changed = model.weight.detach().clone(), []
    for _ in range(4):
        with wrapper.optim_context(model):
            loss = model(torch.ones(2, 3, device=get_device())).sum()
        wrapper.update_params(loss)
        changed.append(not torch.equal(model.weight, before))
        before = model.weight.detach().clone()
    assert changed == [False, True, False, True]
    assert model.no_sync.call_count == 2


def test_bf16_wrapper_asks_mmengine_for_the_device(monkeypatch):
    seen = []
    monkeypatch.setattr(compat.cpu, 'get_device', lambda: 'npu')
    monkeypatch.setattr(torch, 'autocast', lambda *args, **kwargs: seen.append((args, kwargs)) or nullcontext())
    model = nn.Linear(3, 1)
    with compat.BF16OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1)).optim_context(model):
        pass
    assert seen == [(('npu',), {'dtype': torch.bfloat16})]


@pytest.mark.skipif(get_device() != 'cpu', reason='mmengine trains on this device')
def test_data_parallel_training_on_a_cpu(tmp_path, monkeypatch):
    """For real, in a group of one process, as torchrun would start it."""
    with socket.socket() as server:
        server.bind(('127.0.0.1', 0))
        port = server.getsockname()[1]
    for name, value in dict(RANK=0, LOCAL_RANK=0, WORLD_SIZE=1, MASTER_ADDR='127.0.0.1', MASTER_PORT=port,
                            OMP_NUM_THREADS=1, MKL_NUM_THREADS=1).items():
        monkeypatch.setenv(name, str(value))
    cfg = Config(dict(launcher='pytorch', find_unused_parameters=True))
    try:
        compat.setup_cpu_ddp(cfg)
        compat.setup_cpu_ddp(cfg)  # a second time is nothing
        assert torch.distributed.get_backend() == 'gloo'
        runner = train_toy(tmp_path, max_iters=2, launcher='pytorch', cfg=cfg)
        assert isinstance(runner.model, MMDistributedDataParallel)
        assert runner.model.device_ids is None and runner.model.find_unused_parameters
        assert runner.iter == 2
    finally:
        torch.distributed.destroy_process_group()


@pytest.fixture
def groups(monkeypatch):
    """The arguments of each process group made; none is made."""
    made = []
    monkeypatch.setattr(torch.distributed, 'init_process_group', lambda *args, **kwargs: made.append((args, kwargs)))
    monkeypatch.setattr(compat.cpu, 'get_device', lambda: 'cpu')
    return made


@pytest.mark.parametrize(('settings', 'expected'), [
    ({}, dict(find_unused_parameters=False)),
    (dict(find_unused_parameters=True), dict(find_unused_parameters=True)),
    (dict(model_wrapper_cfg=None), dict(find_unused_parameters=False)),
    (dict(find_unused_parameters=True, model_wrapper_cfg=dict(type='Other', find_unused_parameters=False, bucket=3)),
     dict(type='Other', find_unused_parameters=False, bucket=3)),
])
def test_cpu_ddp_fills_in_what_the_config_leaves_open(groups, settings, expected):
    cfg = Config(dict(launcher='pytorch', **settings))
    compat.setup_cpu_ddp(cfg)
    assert groups == [(('gloo',), {})]
    assert cfg.model_wrapper_cfg == dict(
        dict(type='CPUDistributedDataParallel', device_ids=None, broadcast_buffers=False), **expected)


@pytest.mark.parametrize(('settings', 'device'), [
    ({}, 'cpu'), (dict(launcher='none'), 'cpu'), (dict(launcher='pytorch'), 'cuda'), (dict(launcher='slurm'), 'cuda')])
def test_nothing_to_set_up_without_launcher_or_with_a_gpu(groups, monkeypatch, settings, device):
    monkeypatch.setattr(compat.cpu, 'get_device', lambda: device)
    cfg = Config(dict(settings))
    compat.setup_cpu_ddp(cfg)
    assert not groups and cfg.to_dict() == settings


@pytest.mark.parametrize('launcher', ['slurm', 'mpi'])
def test_other_launchers_want_a_gpu(groups, launcher):
    with pytest.raises(ValueError, match=f"launcher '{launcher}' without a GPU: .*--launcher pytorch"):
        compat.setup_cpu_ddp(Config(dict(launcher=launcher)))
    assert not groups


NOISE = (
    '``build_loss`` would be deprecated soon, please use ``mmseg.registry.MODELS.build()`` ',
    '`reduce_zero_label` will be deprecated, if you would like to ignore the zero label, please set it',
    'torch.utils.checkpoint: the use_reentrant parameter should be passed explicitly.',
    '`broadcast_buffers` is deprecated. Use `forward_sync_buffers` instead.',
)
OTHERS = (
    'Your data: To copy construct from a tensor', 'build_loss would be deprecated', '`reduce_zero_label` is ignored',
    'torch.utils.checkpoint: None of the inputs have requires_grad=True',
    'torch/utils/checkpoint: the use_reentrant parameter',
    'lr_scheduler.step() before optimizer.step()')


def test_library_warnings_are_hidden_and_no_others():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        for _ in range(2):
            compat.filter_library_warnings()
            torch.tensor(torch.ones(2))  # "To copy construct from a tensor ..."
            CrossEntropyLoss(ignore_index=255)  # "Default ``avg_non_ignore`` is False ..."
            for message in (*NOISE, *OTHERS):
                for category in (UserWarning, FutureWarning, DeprecationWarning):
                    warnings.warn(message, category, stacklevel=1)
    assert [str(warning.message) for warning in caught] == [text for text in OTHERS for _ in range(3)] * 2


def test_library_log_lines_are_hidden_and_no_others(caplog):
    logger = MMLogger.get_instance('test_library_log_lines')  # print_log's 'current' is the newest
    logger.propagate = True
    logger.addHandler(caplog.handler)
    for _ in range(2):
        compat.filter_library_warnings(logger)
    FileClient('disk')
    logger.warning('%s is the alias of "LocalBackend"', '"HardDiskBackend"')
    logger.warning('my "FileClient" will be deprecated')
    logger.error('loss is nan')
    assert [record.getMessage() for record in caplog.records] == ['my "FileClient" will be deprecated', 'loss is nan']


def test_without_a_logger_only_warnings_are_filtered(caplog):
    with warnings.catch_warnings():
        compat.filter_library_warnings()
    with caplog.at_level(logging.WARNING):
        logging.getLogger().warning('"FileClient" will be deprecated in future')
    assert len(caplog.records) == 1


def test_fixes_are_applied_once(extractor):
    importlib.import_module('apt_dense.mm.det')  # calls the two that need mmdet

    def state():
        return (NMSop.forward, SoftNMSop.forward, RoIAlign.forward, Visualizer.set_image, SingleRoIExtractor.forward,
                BaseDenseHead.predict_by_feat, set(torch.serialization.get_safe_globals()))

    before = state()
    compat.apply()
    compat.keep_rois_in_float32()
    compat.keep_anchors_in_float32()
    assert state() == before
    assert all(hasattr(function, 'replaced_by_apt_dense') for function in before[:-1])
