"""Noise of the libraries is hidden, and nothing else."""
import logging
import warnings

import torch
from mmdet.models.losses import CrossEntropyLoss
from mmengine.fileio import FileClient
from mmengine.logging import MMLogger

from apt_dense.mm import compat

NOISE = (
    '``build_loss`` would be deprecated soon, please use ``mmseg.registry.MODELS.build()`` ',
    '``build_pixel_sampler`` would be deprecated soon, please use ``mmseg.registry.TASK_UTILS.build()`` ',
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
