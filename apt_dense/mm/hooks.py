"""What APT saves, in the training log and in every visualisation backend."""
import time

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn

from apt_dense.core.eva02 import APTEVA02


@HOOKS.register_module()
class KeptTokensHook(Hook):
    """Log the kept-token fraction and the tokens processed per second.

    ``kept_tokens`` is the number of tokens over the number of cells (base patches, padding included) of the batch; 1
    for the dense model.  ``tokens_per_second`` counts the tokens of this process over the whole training iteration,
    data loading included.  Both are scalars of the message hub, so the log and all visualisation backends show them;
    after validation and testing, ``kept_tokens`` is the fraction over the whole dataset.

    Raises:
        ValueError: if the model has no APTEVA02 backbone.
    """

    def __init__(self):
        self._started = 0.0
        self._tokens = self._cells = 0

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch=None) -> None:
        self._started = self._started or time.perf_counter()

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        layout = _backbone(runner.model).last_layout
        now = time.perf_counter()
        runner.message_hub.update_scalar('train/kept_tokens', layout.num_tokens / layout.num_cells)
        runner.message_hub.update_scalar('train/tokens_per_second', layout.num_tokens / (now - self._started))
        self._started = now

    def before_val_epoch(self, runner: Runner) -> None:
        self._tokens = self._cells = 0

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        layout = _backbone(runner.model).last_layout
        self._tokens += layout.num_tokens
        self._cells += layout.num_cells

    def after_val_epoch(self, runner: Runner, metrics=None) -> None:
        runner.message_hub.update_scalar('val/kept_tokens', self._tokens / max(self._cells, 1))
        self._started = 0.0  # validation is no part of a training iteration

    before_test_epoch = before_val_epoch
    after_test_iter = after_val_iter

    def after_test_epoch(self, runner: Runner, metrics=None) -> None:
        runner.message_hub.update_scalar('test/kept_tokens', self._tokens / max(self._cells, 1))


def _backbone(model: nn.Module) -> APTEVA02:
    """The model's backbone, out of any data-parallel wrapper."""
    if is_model_wrapper(model):
        model = model.module
    backbone = getattr(model, 'backbone', None)
    if not isinstance(backbone, APTEVA02):
        raise ValueError(f'KeptTokensHook needs a model whose backbone is APTEVA02, got {type(backbone).__name__}: '
                         'remove the hook from custom_hooks')
    return backbone
