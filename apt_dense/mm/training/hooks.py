"""What APT saves, in the log and in every visualisation backend; and a guard over what is loaded."""
import time

import torch
from mmengine import dist
from mmengine.device import get_device
from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn

from apt_dense.core.vit import PackedViT
from apt_dense.mm.data.samplers import TokenBalancedBatchSampler, check_token_settings
from apt_dense.mm.errors import DataError
from apt_dense.mm.models.normalisation import check_model_normalisation
from apt_dense.mm.models.unloaded import unloaded


@HOOKS.register_module()
class KeptTokensHook(Hook):
    """Log the kept-token fraction and the tokens processed per second.

    ``kept_tokens`` is the number of tokens over the number of cells (base patches, padding included) of the batch; 1
    for the dense model; class tokens do not count.  ``kept_tokens_content`` leaves the padding out: tokens that cover a
    pixel of an image over cells that hold one.  It says what APT saves on the images themselves, since padding merges
    nearly for free.  ``tokens_per_second`` counts the tokens of this process over the whole training iteration, data
    loading included.  All are scalars of the message hub, so the log and all visualisation backends show them.  After
    validation and testing, ``val_kept_tokens``, ``test_kept_tokens`` and the same with ``_content`` are the fractions
    over the whole dataset, from all processes and all forward passes: the windows of slide inference and the scales of
    test-time augmentation count as often as they are computed.

    Where the backbone has ``max_tokens``, ``over_budget``, ``val_over_budget`` and ``test_over_budget`` are the share
    of the images whose thresholds it raised; each window of slide inference is an image.

    With several processes, the log lists every ``interval`` iterations, and at the end of training, each rank's mean
    number of tokens, and ``idle_share`` is the mean of 1 - (mean over the ranks) / (the largest rank's): the part of
    its time that a rank waits for the busiest one, as far as the time goes with the tokens.  Token counts of a
    TokenBalancedBatchSampler are refused if they were made with other settings than the config's.

    Args:
        interval: iterations between two exchanges of the counts; give the LoggerHook's.

    Raises:
        ValueError: if the model's backbone packs no tokens, or the token counts are stale.
    """

    def __init__(self, interval: int = 50):
        self.interval = interval
        self._started = 0.0
        self._counts: list[float] = []  # of an epoch, see _count
        self._handle = None
        self._sizes_px: list[tuple[int, int]] = []  # of the images of the batch, before padding
        self._rank_tokens: list[int] = []  # of this rank, since the last exchange

    def before_run(self, runner: Runner) -> None:
        model = unwrapped(runner.model)
        check_model_normalisation(model)
        model.data_preprocessor.register_forward_pre_hook(self._note_sizes)

    def _note_sizes(self, preprocessor: nn.Module, args: tuple) -> None:
        self._sizes_px = [tuple(image.shape[-2:]) for image in args[0]['inputs']]

    def _count(self, backbone: PackedViT) -> tuple[float, ...]:
        """Of a forward pass: tokens, cells, both of the content alone, images over their budget, images."""
        layout, side_px = backbone.last_layout, backbone.patch_size
        passes, rest = divmod(layout.batch_size, max(len(self._sizes_px), 1))
        if self._sizes_px and not rest:
            # A window of slide inference, of which there may be several, lies inside the image unless that is smaller.
            content = [(min(-(-height_px // side_px), layout.height), min(-(-width_px // side_px), layout.width))
                       for height_px, width_px in self._sizes_px] * passes
        else:  # a model that makes another batch of what it is given
            content = [(layout.height, layout.width)] * layout.batch_size
        return (sum(layout.scale_counts), layout.num_cells, int(layout.covers_content(content).sum()),
                sum(rows * cols for rows, cols in content), backbone.chooser.last_num_raised, layout.batch_size)

    def before_train(self, runner: Runner) -> None:
        sampler = runner.train_dataloader.batch_sampler
        sampler = getattr(sampler, 'batch_sampler', sampler)  # inside one that resumes
        if isinstance(sampler, TokenBalancedBatchSampler):
            check_token_settings(sampler.path, runner.cfg)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch=None) -> None:
        self._started = self._started or time.perf_counter()

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        backbone, now = backbone_of(runner.model), time.perf_counter()
        tokens, cells, content_tokens, content_cells, raised, images = self._count(backbone)
        runner.message_hub.update_scalar('train/kept_tokens', tokens / cells)
        runner.message_hub.update_scalar('train/kept_tokens_content', content_tokens / content_cells)
        if backbone.chooser.max_tokens is not None:
            runner.message_hub.update_scalar('train/over_budget', raised / images)
        runner.message_hub.update_scalar('train/tokens_per_second', tokens / (now - self._started))
        self._started = now
        self._rank_tokens.append(tokens)
        if self.every_n_train_iters(runner, self.interval):  # of the run, so that a resumed one logs the same
            self._compare_ranks(runner)

    def after_train(self, runner: Runner) -> None:
        if self._rank_tokens:
            self._compare_ranks(runner)

    def _compare_ranks(self, runner: Runner) -> None:
        """Log each rank's mean number of tokens since the last call, and the idle share."""
        own = torch.tensor(self._rank_tokens, dtype=torch.float32, device=get_device())
        self._rank_tokens = []
        if dist.get_world_size() == 1:
            return
        tokens = torch.stack(dist.all_gather(own)).cpu()  # (ranks, iterations)
        idle = (1 - tokens.mean(0) / tokens.amax(0)).mean().item()
        runner.message_hub.update_scalar('train/idle_share', idle)
        means = ' '.join(f'{mean:.0f}' for mean in tokens.mean(1))
        runner.logger.info(f'tokens a rank and iteration, rank 0 first, mean of {tokens.shape[1]} iterations: {means}; '
                           f'idle share {idle:.3f}')

    def before_val_epoch(self, runner: Runner) -> None:
        self._counts = [0.0] * 6
        self._handle = backbone_of(runner.model).register_forward_hook(self._add_pass)

    def _add_pass(self, backbone: PackedViT, inputs: tuple, outputs: tuple) -> None:
        self._counts = [old + more for old, more in zip(self._counts, self._count(backbone), strict=True)]

    def after_val_epoch(self, runner: Runner, metrics=None) -> None:
        self._log_epoch(runner, 'val')
        self._started = 0.0  # validation is no part of a training iteration

    before_test_epoch = before_val_epoch

    def after_test_epoch(self, runner: Runner, metrics=None) -> None:
        self._log_epoch(runner, 'test')

    def _log_epoch(self, runner: Runner, split: str) -> None:
        """Log the fractions since the epoch began, over all processes."""
        self._handle.remove()
        counts = torch.tensor(self._counts, dtype=torch.float64, device=get_device())
        dist.all_reduce(counts)
        tokens, cells, content_tokens, content_cells, raised, images = counts.tolist()
        scalars = {'kept_tokens': tokens / max(cells, 1), 'kept_tokens_content': content_tokens / max(content_cells, 1)}
        if backbone_of(runner.model).chooser.max_tokens is not None:
            scalars['over_budget'] = raised / max(images, 1)
        for name, value in scalars.items():
            runner.message_hub.update_scalar(f'{split}/{split}_{name}', value)


@HOOKS.register_module()
class CheckFrozenLoadedHook(Hook):
    """Refuse to train on top of frozen parameters that no checkpoint has set.

    mmengine loads what fits and only logs what does not, and without load_from it loads nothing.  For a model that is
    frozen except for a few parameters that means to train these on top of random weights.

    Raises:
        DataError: naming frozen parameters that are missing from the checkpoint or of another shape; or if training
            begins without a checkpoint.
    """

    def __init__(self):
        self._loaded = False

    def before_train(self, runner: Runner) -> None:
        if not self._loaded:
            raise DataError('this config trains a few parameters of a trained model, and no checkpoint was loaded: '
                            'set load_from')

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        self._loaded = True
        model = unwrapped(runner.model)
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        bad = [name for name in unloaded(model, checkpoint) if name not in trained]
        if bad:
            raise DataError(f'the checkpoint {runner._load_from} lacks {len(bad)} frozen parameters of this model, or '
                            f'has them in another shape: {", ".join(bad[:5])}{", ..." if len(bad) > 5 else ""}. '
                            "Give the checkpoint of this config's dense twin")


def unwrapped(model: nn.Module) -> nn.Module:
    """The model, out of any wrapper for data-parallel training or test-time augmentation."""
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    return model


def backbone_of(model: nn.Module, hook: str = 'KeptTokensHook') -> PackedViT:
    """The model's backbone; ValueError, naming the hook that needs it, if that is another one."""
    backbone = getattr(unwrapped(model), 'backbone', None)
    if not isinstance(backbone, PackedViT):
        raise ValueError(f'{hook} needs a model whose backbone packs tokens, such as APTEVA02, got '
                         f'{type(backbone).__name__}: remove the hook from custom_hooks')
    return backbone
