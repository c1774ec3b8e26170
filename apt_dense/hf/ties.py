"""Parameters of one model that are those of another."""
from torch import Tensor, nn


class Ties:
    """Makes parameters of one model those of another, and sees to it that they stay so.

    They are the same ``Parameter`` objects.  Where shapes differ, what the model has is a view of the other's, made
    anew in each pass, so that gradients reach the one parameter that there is.

    A copy of both models, by ``copy.deepcopy`` or ``pickle``, is tied as they are.
    """

    def __init__(self):
        self._modules: list[tuple[nn.Module, str, nn.Module]] = []  # of the other: parent, name, module
        self._parameters: list[tuple[nn.Module, str, nn.Module, str]] = []  # other, name, own, name
        self._views: list[tuple[nn.Module, str, nn.Module, str, tuple[int, ...]]] = []

    def layer(self, own: nn.Module, root: nn.Module, path: str) -> None:
        """Tie the parameters of a layer to those of the other model's, bias or none included.

        Raises:
            ValueError: if the other layer is of another kind: adapted, quantised, parametrised.
        """
        other = self._resolve(root, path)
        weight = other._parameters.get('weight')
        if type(other) is not type(own) or type(weight) is not nn.Parameter or type(weight.data) is not Tensor or not (
                weight.is_floating_point()):
            raise ValueError(f'{path} is a {type(other).__name__}, wanted a plain {type(own).__name__}: adapt the '
                             'model before its layers are quantised, sharded, parametrised or replaced, by PEFT say')
        if isinstance(own, nn.LayerNorm):
            own.eps = other.eps
        for name in ('weight', 'bias'):
            self._tie(other, name, own, name)

    def parameter(self, own: nn.Module, name: str, root: nn.Module, path: str) -> None:
        """Tie one parameter, of any shape of as many numbers."""
        parent, _, other_name = path.rpartition('.')
        self._tie(self._resolve(root, parent), other_name, own, name)

    def tied(self) -> set[int]:
        """The ids of the other model's parameters that are in use."""
        return {id(other._parameters[name]) for other, name, *_ in (*self._parameters, *self._views)}

    def hold(self) -> None:
        """Take the other model's parameters where they are new objects, and make the views.

        Raises:
            RuntimeError: if a layer of the other model is no longer the one that was tied.
        """
        for parent, name, child in self._modules:
            if parent._modules.get(name) is not child:
                raise RuntimeError(f'{name!r} in {type(parent).__name__} was replaced after apt_dense.hf.adapt, which '
                                   'goes on with what it found: put other layers in before, or not at all')
        for other, name, own, own_name in self._parameters:
            parameter = self._of(other, name)
            if own._parameters[own_name] is not parameter:
                own._parameters[own_name] = parameter
        for other, name, own, own_name, shape in self._views:
            own.__dict__[own_name] = self._of(other, name).view(shape)

    def _tie(self, other: nn.Module, name: str, own: nn.Module, own_name: str) -> None:
        shape, parameter = own._parameters[own_name], other._parameters[name]
        if shape is None or parameter is None or shape.shape == parameter.shape:
            self._parameters.append((other, name, own, own_name))
            own._parameters[own_name] = parameter
        else:
            self._views.append((other, name, own, own_name, tuple(shape.shape)))
            del own._parameters[own_name]  # a plain attribute comes in its place

    @staticmethod
    def _of(other: nn.Module, name: str) -> nn.Parameter:
        if name not in other._parameters:
            raise RuntimeError(f'{name!r} of a {type(other).__name__} is no parameter any more: parametrise, prune or '
                               'shard a model before apt_dense.hf.adapt, or not at all')
        return other._parameters[name]

    def _resolve(self, root: nn.Module, path: str) -> nn.Module:
        """The module at a path; each step of it is watched."""
        module = root
        for name in path.split('.') if path else ():
            parent, module = module, module._modules[name]
            if not any(parent is known[0] and name == known[1] for known in self._modules):
                self._modules.append((parent, name, module))
        return module
