"""Where the keywords go that a class or a function collects."""
import pytest
from mmdet.datasets import CocoDataset
from mmdet.models import VFNetHead
from mmengine.hooks import CheckpointHook, EMAHook, Hook
from mmengine.hooks.runtime_info_hook import RuntimeInfoHook
from mmengine.runner import Runner
from mmengine.utils import deprecated_api_warning
from mmseg.evaluation import IoUMetric

from apt_dense.mm.preflight.keywords import drops_others, handed_to, parameters_of


def helper(alpha, *, beta=1):
    pass


class Parent:
    def __init__(self, first, second=2):
        pass


class HandsOn(Parent):
    def __init__(self, third, **kwargs):
        super().__init__(**kwargs)


class DropsThem(Parent):
    def __init__(self, third, **kwargs):
        super().__init__(1)


class LooksThemUp(Parent):
    def __init__(self, **kwargs):
        self.a = kwargs.pop('a')
        self.b = kwargs['b'] if 'c' in kwargs else kwargs.get('d', 1)
        super().__init__(1)


class CallsAFunction(Parent):
    def __init__(self, **kwargs):
        helper(1, **kwargs)
        self.method(**kwargs)

    def method(self, gamma=0):
        pass


class KeepsThem(Hook):
    def __init__(self, **settings):
        self.settings = settings

    def after_train(self, runner):
        helper(**self.settings)
        return self.settings.get('delta')


class KeepsThemOpen(KeepsThem):
    def __init__(self, **settings):
        self.open = settings

    def after_train(self, runner):
        print(self.open)


class Builds:
    def __init__(self, kind_type='HandsOn', **kwargs):
        self.cfg = dict(type=kind_type, **kwargs)


class Loops:
    def __init__(self, **branches):
        self.branches = {name: [branch] for name, branch in branches.items()}


class Left(Parent):
    def __init__(self, left=1, **kwargs):
        super().__init__(**kwargs)


class PassesItsParentOver(Left):
    def __init__(self, own=1, **kwargs):
        super(Left, self).__init__(**kwargs)


class NamesItsParent(Left):
    def __init__(self, own=1, **kwargs):
        Parent.__init__(self, **kwargs)


class OldName:
    @deprecated_api_warning(dict(old='new'))
    def __init__(self, new=1):
        pass


@pytest.mark.parametrize(('kind', 'names'), [
    (helper, 'alpha beta'), (Parent, 'first second'), (HandsOn, 'first second third'), (DropsThem, 'third'),
    (LooksThemUp, 'a b c d'), (CallsAFunction, 'alpha beta gamma'), (KeepsThem, 'alpha beta delta'),
    (KeepsThemOpen, None), (Builds, 'kind_type'), (Loops, None), (PassesItsParentOver, 'own first second'),
    (NamesItsParent, 'own first second'), (OldName, 'old new'), (Hook, ''), (RuntimeInfoHook, '')])
def test_names_that_are_taken(kind, names):
    assert parameters_of(kind) == (None if names is None else set(names.split()))


def test_types_that_get_the_rest():
    assert handed_to(Builds) == {'kind_type'} and handed_to(EMAHook) == {'ema_type'} and handed_to(HandsOn) == set()


@pytest.mark.parametrize(('kind', 'drops'), [
    (DropsThem, True), (CallsAFunction, False), (CheckpointHook, False),
    (HandsOn, False), (Parent, False), (IoUMetric, True), (Loops, False), (Builds, False)])
def test_who_drops_the_rest(kind, drops):
    assert drops_others(kind) == drops


def test_classes_of_the_libraries():
    taken = parameters_of(CheckpointHook)
    assert {'interval', 'save_best', 'meta'} <= taken and 'intervall' not in taken  # meta: of Runner.save_checkpoint
    assert {'ann_file', 'caption_prompt', 'metainfo', 'indices'} <= parameters_of(CocoDataset)
    assert {'iou_metrics', 'prefix'} <= parameters_of(IoUMetric) and 'metric' not in parameters_of(IoUMetric)
    assert {'dcn_on_last_conv', 'strides'} <= parameters_of(VFNetHead)  # which passes FCOSHead over
    assert 'max_epochs' not in parameters_of(Runner) and 'train_dataloader' in parameters_of(Runner)
