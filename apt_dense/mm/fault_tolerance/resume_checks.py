"""What a resumed run takes from its checkpoint and not from its config: refused where it does not fit, else said.

mmengine loads an optimiser's groups and the schedules whole, with all their settings.
"""
from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.hooks import EMAHook
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel

from apt_dense.mm.cli.loading import listed
from apt_dense.mm.cli.trained_settings import changed_settings_of_model
from apt_dense.mm.errors import DataError

PROGRESS = ('last_step', 'base_values', 'verbose', 'best', 'num_bad_epochs', 'cooldown_counter')  # of a schedule
MOMENTS = ('exp_avg', 'exp_avg_sq', 'momentum_buffer')  # optimiser states of their parameter's shape
SCALER = ('growth_factor', 'backoff_factor', 'growth_interval')  # settings among the loss scaler's state
AVERAGE = ('momentum', 'gamma', 'interval', 'update_buffers')


def training_settings(runner: Runner) -> dict[str, Any]:
    """What a checkpoint keeps of the config to compare it later, as builtin types.

    Returns:
        'trained': the parameters' names in the optimisers' groups; 'frozen': those that need no gradient; 'settings',
        which the config decides in a resumed run too.
    """
    loop = runner.train_loop
    length = 'max_epochs' if isinstance(loop, EpochBasedTrainLoop) else 'max_iters'
    settings = {f'train_cfg.{length}': getattr(loop, length)}
    for hook in runner.hooks:
        if isinstance(hook, EMAHook):
            settings['EMAHook.ema_type'] = type(hook.ema_model).__name__
            settings.update({f'EMAHook.{name}': value for name, value in vars(hook.ema_model).items()
                             if name in AVERAGE})
    names = _names(runner)
    trained = {key: _names_by_group(wrapper, names) for key, wrapper in _optimizers(runner)}
    frozen = [name for name, parameter in _model(runner).named_parameters() if not parameter.requires_grad]
    return dict(trained=trained, frozen=frozen, settings=settings)


def check_resumable(runner: Runner, checkpoint: dict) -> None:
    """Check that a checkpoint's model and optimiser are the runner's; sharded models (FSDP) are not looked at.

    Raises:
        DataError: naming the parameters that are missing, of another shape, or trained in one of them only.
    """
    if not {'epoch', 'iter'} <= (checkpoint.get('meta') or {}).keys():
        raise DataError(f'{runner._load_from} holds weights and no state of a training, so there is nothing to resume. '
                        f'{remedy(runner)}')
    if isinstance(runner.model, FullyShardedDataParallel):
        return
    problems = _model_problems(_model(runner), checkpoint['state_dict'])
    if not problems:
        names = _names(runner)
        stored = (checkpoint.get('resume') or {}).get('trained', {})
        for key, wrapper in _optimizers(runner):
            state = _part(checkpoint.get('optimizer'), key)
            problems += _optimizer_problems(wrapper, state, stored.get(key), names)
    if problems:
        raise DataError(f'{runner._load_from} is of another training and cannot be resumed: {"; ".join(problems)}. '
                        f'{remedy(runner)}')


def remedy(runner: Runner) -> str:
    """What to do to train with the config as it is."""
    return (f'To train with this config from its weights: --cfg-options load_from={runner._load_from} and another '
            '--work-dir, without --resume')


def _model_problems(model: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    own = model.state_dict()
    missing = [name for name in own if name not in state and not name.endswith('num_batches_tracked')]
    other = [f'{name} is {tuple(state[name].shape)} in the checkpoint and {tuple(value.shape)} here'
             for name, value in own.items() if name in state and state[name].shape != value.shape]
    return [f'{len(names)} parameters {what}: {listed(names)}' for names, what in (
        (missing, 'are missing'), (other, 'have another shape')) if names]


def _optimizer_problems(wrapper: OptimWrapper, state: dict | None, stored: list[list[str]] | None,
                        names: dict[int, str]) -> list[str]:
    """Problems of an optimiser's state with the parameters that are trained now.

    Args:
        stored: names of the parameters in the checkpoint's groups; None if it does not say.
        names: id of a parameter -> its name.
    """
    if state is None:
        return []
    own = _names_by_group(wrapper, names)
    sizes = [len(group['params']) for group in state['param_groups']]
    flat, flat_stored = sum(own, []), sum(stored or [], [])
    if (stored or own) != own or sizes != [len(group) for group in own]:
        found = [f'{len(members)} are trained only {where}: {listed(sorted(members))}' for where, members in (
            ('there', set(flat_stored) - set(flat)), ('here', set(flat) - set(flat_stored))) if stored and members]
        counts = f'{sum(sizes)} parameters in {len(sizes)} groups, and this one {len(flat)} in {len(own)}'
        return ['; '.join([f'its optimiser has {counts}', *(found or ['they are grouped or ordered otherwise'])])]
    order = [index for group in state['param_groups'] for index in group['params']]
    parameters = [parameter for group in wrapper.optimizer.param_groups for parameter in group['params']]
    other = [name for name, index, parameter in zip(flat, order, parameters, strict=True)
             if any(moment.shape != parameter.shape for key, moment in state['state'].get(index, {}).items()
                    if key in MOMENTS)]
    return [f'{len(other)} optimiser states have another shape: {listed(other)}'] if other else []


def _names_by_group(wrapper: OptimWrapper, names: dict[int, str]) -> list[list[str]]:
    return [[names.get(id(parameter), '') for parameter in group['params']]
            for group in wrapper.optimizer.param_groups]


def changed_settings(runner: Runner, checkpoint: dict) -> list[str]:
    """One line for each setting that differs between the config and the checkpoint, which says whose holds."""
    lines = []
    for key, wrapper in _optimizers(runner):
        state = _part(checkpoint.get('optimizer'), key)
        if state is None:
            lines.append('the checkpoint holds no optimiser state: the moments start anew')
        else:
            lines += _optimizer_lines(f'optim_wrapper.{key and key + "."}', wrapper, state)
        schedules, stored = (_part(part, key) or [] for part in (
            runner.param_schedulers, checkpoint.get('param_schedulers')))
        lines += _schedule_lines(f'param_scheduler.{key and key + "."}', schedules, stored)
    has_average = any(isinstance(hook, EMAHook) for hook in runner.hooks)
    if 'ema_state_dict' in checkpoint and not has_average:
        lines.append('the checkpoint holds averaged weights and the config has no EMAHook: the averages are trained on')
    lines += [f"{line}: the config's holds from here on"
              for line in changed_settings_of_model(runner.cfg, checkpoint.get('meta'), runner._load_from)]
    return [*lines, *_lines_of_the_config(training_settings(runner), checkpoint.get('resume') or {})]


def _optimizer_lines(prefix: str, wrapper: OptimWrapper, state: dict) -> Iterator[str]:
    own, stored = wrapper.optimizer.param_groups, state['param_groups']
    for key in own[0]:
        if key in ('params', 'param_names') or key.startswith('initial_') or key not in stored[0]:
            continue
        # A schedule keeps in initial_lr what the config calls lr.
        pairs = [(group.get(f'initial_{key}', group[key]), old.get(f'initial_{key}', old[key]))
                 for group, old in zip(own, stored, strict=False)]
        differing = [(index, *pair) for index, pair in enumerate(pairs) if _plain(pair[0]) != _plain(pair[1])]
        if differing:
            index, now, then = differing[0]
            where = f' (of group {index}; {len(differing)} of {len(pairs)} groups differ)' if len(pairs) > 1 else ''
            yield _kept(f'{prefix}optimizer.{key}', now, then) + where
    scaler = getattr(wrapper, 'loss_scaler', None)
    now, then = (scaler.state_dict() if scaler else {}), state.get('loss_scaler', {})
    for key in SCALER:
        if key in now and key in then and now[key] != then[key]:
            yield _kept(f'{prefix}loss_scale.{key}', now[key], then[key])


def _schedule_lines(prefix: str, schedules: list, stored: list[dict]) -> Iterator[str]:
    if len(schedules) != len(stored):
        yield (f'{prefix[:-1]} has {len(schedules)} schedules in the config and {len(stored)} in the checkpoint: those '
               'that it lacks start at their first step, those that it has more are left out')
    for index, (schedule, then) in enumerate(zip(schedules, stored, strict=False)):
        now, then = _settings_of(schedule.state_dict()), _settings_of(then)
        if now.keys() != then.keys():
            yield (f'{prefix}{index} is a {type(schedule).__name__} in the config and of another type in the '
                   'checkpoint: the type is changed, and what both have is kept as in the checkpoint')
        for key in now:
            if key in then and now[key] != then[key]:
                yield _kept(f'{prefix}{index}.{key}', now[key], then[key])


def _settings_of(schedule: dict) -> dict[str, Any]:
    return {key: _plain(value) for key, value in schedule.items() if not key.startswith('_') and key not in PROGRESS}


def _lines_of_the_config(now: dict, then: dict) -> Iterator[str]:
    """What the config decides, as ``training_settings`` gives it, and what does not follow from it."""
    for name, value in now['settings'].items():
        old = then.get('settings', {}).get(name, value)
        if old != value:
            schedule = ", while the schedule is the checkpoint's" if name.startswith('train_cfg') else ''
            yield (f"{name} is {value} in the config and was {old} when the checkpoint was written: the config's holds "
                   f'from here on{schedule}')
    frozen, were_frozen = set(now['frozen']), set(then.get('frozen', now['frozen']))
    for names, change in ((frozen - were_frozen, 'are frozen here and were trained'),
                          (were_frozen - frozen, 'are trained here, with moments that start anew, and were frozen')):
        if names:
            yield f'{len(names)} parameters {change} when the checkpoint was written: {listed(sorted(names))}'


def _kept(name: str, now: Any, then: Any) -> str:
    return f'{name} is {now} in the config and {then} in the checkpoint, which is kept'


def _plain(value: Any) -> Any:
    """A value that can be compared, whether it was a list, a tuple or a counter."""
    if isinstance(value, Mapping):  # milestones
        return sorted(value.items())
    return list(value) if isinstance(value, (list, tuple)) else value


def _optimizers(runner: Runner) -> list[tuple[str, OptimWrapper]]:
    """(name, wrapper) of each optimiser; one alone has the name ''."""
    wrapper = runner.optim_wrapper
    return list(wrapper.items()) if isinstance(wrapper, OptimWrapperDict) else [('', wrapper)]


def _part(state: Any, key: str) -> Any:
    """What belongs to an optimiser of a runner with several, or all."""
    return state.get(key) if key and isinstance(state, Mapping) else state


def _names(runner: Runner) -> dict[int, str]:
    """id of a parameter -> its name."""
    return {id(parameter): name for name, parameter in _model(runner).named_parameters()}


def _model(runner: Runner) -> nn.Module:
    return runner.model.module if is_model_wrapper(runner.model) else runner.model
