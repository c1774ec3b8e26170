"""What a checkpoint leaves unset in a model: a test stops, a training says so in its log.

mmengine loads what fits, and prints the rest to the terminal only.
"""
import copy
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner, load_checkpoint
from mmengine.runner.base_loop import BaseLoop
from torch import Tensor, nn

from apt_dense.core.embed import ADDED_PARAMETERS
from apt_dense.mm.cli.trained_settings import changed_settings_of_model
from apt_dense.mm.errors import DataError
from apt_dense.mm.training.hooks import unwrapped

SIZE_MISMATCH = re.compile(r'size mismatch for (\S+): .* shape torch\.Size\((.*)\) from .* torch\.Size\((.*)\)\.')


class Gaps(NamedTuple):
    """How a state dict and a model differ.

    Attributes:
        missing: names that only the model has; counters of batch norms do not count.
        misshapen: one text for each name that has another shape, or whose loading has failed.
        unexpected: names that only the state dict has.
    """
    missing: list[str]
    misshapen: list[str]
    unexpected: list[str]

    def __str__(self) -> str:
        parts = ((self.missing, 'parameters are missing'), (self.misshapen, 'have another shape'),
                 (self.unexpected, 'are not in the model'))
        return '; '.join(f'{len(names)} {what}: {listed(names)}' for names, what in parts if names)


def listed(names: Iterable[str], most: int = 5) -> str:
    """The first names, and dots for the rest."""
    names = list(names)
    return ', '.join(names[:most]) + (', ...' if len(names) > most else '')


def watch_next_load(model: nn.Module, report: Callable[[Gaps], None]) -> Callable[[], None]:
    """Have ``report`` called at the end of the model's next loading, with what that has found.

    Torch's own hooks see what is loaded after every module has renamed or resampled what it knows of: a position table
    of another grid is no gap.

    Args:
        model: without a wrapper; loaded by torch or by mmengine.

    Returns:
        A function that ends the watch.
    """
    found: list[tuple[list[str], ...]] = []

    def before(state_dict: dict, prefix: str, metadata: dict, strict: bool, missing: list[str], unexpected: list[str],
               errors: list[str]) -> None:
        found[:] = [(missing, unexpected, errors)]  # they are filled while the modules load

    def after(module: nn.Module, incompatible_keys: object) -> None:
        if found:
            missing, unexpected, errors = found.pop()
            report(Gaps([name for name in missing if not name.endswith('num_batches_tracked')],
                        [_shapes(error) for error in errors], list(unexpected)))

    handles = [model._register_load_state_dict_pre_hook(before), model.register_load_state_dict_post_hook(after)]
    return lambda: [handle.remove() for handle in handles]


def _shapes(error: str) -> str:
    match = SIZE_MISMATCH.match(error)
    return f'{match[1]} is {match[2]} in the checkpoint and {match[3]} in the model' if match else error


def is_dense_twins(model: nn.Module, gaps: Gaps) -> bool:
    """True if nothing is missing but what APT adds to the dense model, and that changes nothing as it starts."""
    if gaps.misshapen or not all(name.endswith(ADDED_PARAMETERS) for name in gaps.missing):
        return False
    embeddings = {name.rpartition('patch_embed.')[0] + 'patch_embed' for name in gaps.missing}
    last = [getattr(model.get_submodule(name), 'zero_mlp', None) for name in embeddings]
    return all(layer is not None and not any(parameter.any() for parameter in layer.parameters()) for layer in last)


@HOOKS.register_module()
class CheckLoadedHook(Hook):
    """Compare the checkpoint that is loaded with the model; ``launch.build_runner`` adds it to every run.

    In testing, a parameter that the checkpoint does not set is an error.  Allowed are those that APT adds to a dense
    model, as long as they change nothing: patches are merged without training.  In training with ``load_from``, what
    is not set is a warning in the log.  So is what has no place in the model, and a setting of merging that the
    checkpoint was not trained with, in both.  Resuming has checks of its own (``resume_checks``).

    Raises:
        DataError: naming parameters that are not finite, and in testing those that are missing or have another shape.
    """

    priority = 'VERY_HIGH'  # before EMAHook, which loads its own copy

    def __init__(self):
        self._end_watch = lambda: None

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Watch the loading that follows."""
        _bring_into_form(checkpoint)
        refuse_not_finite(checkpoint['state_dict'], unwrapped(runner.model), runner._load_from)
        if runner._resume:
            return
        for line in changed_settings_of_model(runner.cfg, checkpoint.get('meta'), runner._load_from):
            runner.logger.warning(f"{line}: the config's holds")
        training = isinstance(runner._train_loop, BaseLoop)
        model = unwrapped(runner.model)
        self._end_watch = watch_next_load(model, lambda gaps: self._report(runner, model, gaps, training))

    def before_train(self, runner: Runner) -> None:
        """End the watch."""
        self._end_watch()

    before_val = before_test = before_train

    def _report(self, runner: Runner, model: nn.Module, gaps: Gaps, training: bool) -> None:
        if not any(gaps):
            return
        if not training:
            refuse_gaps(model, gaps, runner._load_from)
        expected = is_dense_twins(model, gaps) and not gaps.unexpected
        runner.logger.log(logging.INFO if training and expected else logging.WARNING, (
            f'{runner._load_from} and the model differ: {gaps}. What the checkpoint does not set keeps its initial '
            'value, what has no place in the model is left out'))
        if gaps.missing and not training:
            runner.logger.warning('the added parameters change nothing as they are: this tests merging without '
                                  'training')


def refuse_gaps(model: nn.Module, gaps: Gaps, path: str) -> None:
    """Raise DataError if parameters that matter are not set by a checkpoint."""
    if (gaps.missing or gaps.misshapen) and not is_dense_twins(model, gaps):
        raise DataError(f'{path} does not fit the config, whose model has {len(model.state_dict())} parameters: '
                        f'{gaps}. All of them are needed: give the checkpoint of this config, or the config of this '
                        'checkpoint (its task, size and number of classes)')


def refuse_not_finite(state: Mapping[str, Any], model: nn.Module, path: str) -> None:
    """Raise DataError if parameters of a model would not be finite: it finds nothing then, and says nothing.

    Args:
        state: of the checkpoint; what has no place in the model does not count, nor do buffers.
    """
    shapes = {name.removeprefix('module.'): parameter.shape for name, parameter in model.named_parameters()}
    names = [name for name, shape in shapes.items() if isinstance(value := state.get(name), Tensor)
             and value.shape == shape and not value.isfinite().all()]
    if names:
        raise DataError(f'{path} has NaN or infinity in {len(names)} parameters: {listed(names)}. It was saved after '
                        'its training had diverged: take an earlier one')


def load_weights(model: nn.Module, path: str) -> None:
    """Load a checkpoint into a model that is to be measured.

    Raises:
        DataError: naming parameters that are missing or have another shape, but for those that APT adds to a dense
            model; or that are not finite.
    """
    end_watch = watch_next_load(model, lambda gaps: refuse_gaps(model, gaps, path))
    try:
        checkpoint = load_checkpoint(model, path, map_location='cpu')
    finally:
        end_watch()
    state = checkpoint.get('state_dict', checkpoint)
    refuse_not_finite({name.removeprefix('module.'): value for name, value in state.items()}, model, path)


def _bring_into_form(checkpoint: dict) -> None:
    """Put a bare state dict under 'state_dict', and take away 'module.' of data-parallel training.

    mmengine does so only for the model itself: EMAHook would leave its own copy at random weights, and evaluate that.
    """
    if 'state_dict' not in checkpoint:
        content = copy.copy(checkpoint)
        checkpoint.clear()
        checkpoint['state_dict'] = content
    state = checkpoint['state_dict']
    for name in [name for name in state if name.startswith('module.')]:
        state[name.removeprefix('module.')] = state.pop(name)
