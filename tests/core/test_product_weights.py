"""Weights as products take them: padded, and cast once."""
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from apt_dense.core.derived import pad
from apt_dense.core.layers import SwiGLU

from .test_eva02 import CLASS_TOKEN, MIXED, TOY
from .toys import image_of, normalise, randomise, toy_model

PADDED, KEPT = {'pad_mlp': True}, {'keep_casts': True}


@pytest.mark.parametrize('hidden', [42, 48])
def test_a_padded_mlp_is_the_mlp(hidden):
    """In float64, with its gradients; the parameters have their own shapes."""
    plain, padded = SwiGLU(16, hidden).double(), SwiGLU(16, hidden, padded=True).double()
    randomise(plain)
    padded.load_state_dict(plain.state_dict())
    x, results = torch.randn(7, 16, dtype=torch.float64), []
    for mlp in (plain, padded):
        given = x.clone().requires_grad_()
        output = mlp(given)
        output.square().sum().backward()
        results.append([output, given.grad, *(parameter.grad for parameter in mlp.parameters())])
    torch.testing.assert_close(results[1], results[0], atol=1e-11, rtol=1e-11)
    with torch.no_grad():
        torch.testing.assert_close(padded(x), results[0][0], atol=1e-12, rtol=0)


def test_widths_are_multiples_of_16():
    assert [SwiGLU(8, hidden, padded=True).width for hidden in (2730, 2736, 2048)] == [2736, 2736, 2048]
    assert SwiGLU(8, 2048, padded=True).weights is None  # nothing to do


def test_pad_and_its_gradient():
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.equal(pad(x, (4, 8), torch.float64), torch.nn.functional.pad(x, (0, 3, 0, 1)))
    assert torch.autograd.gradcheck(lambda x: pad(x, (4, 8), torch.float64), (x,))
    pad(x, (3, 6), torch.bfloat16).sum().backward()
    assert x.grad.dtype == torch.float64 and torch.equal(x.grad, torch.ones_like(x))


@pytest.mark.parametrize('option', [PADDED, KEPT, PADDED | KEPT])
@pytest.mark.parametrize('mode', ['inference', 'no_grad', 'train', 'frozen', 'recomputed'])
@pytest.mark.parametrize('dtype', [None, torch.bfloat16])
@pytest.mark.parametrize('settings', [TOY, CLASS_TOKEN], ids=['windows', 'class_token'])
def test_the_model_is_the_same(settings, mode, dtype, option):
    x, results = normalise(image_of(MIXED)), []
    for more in ({}, option):
        model = toy_model(**settings, **more, with_cp=mode == 'recomputed', drop_path_rate=0.3)
        model.train(mode in ('train', 'recomputed')).requires_grad_(mode != 'frozen')
        for parameter in (*model.patch_embed.parameters(), *model.blocks[1].parameters()):
            parameter.requires_grad_()
        gradients = {'inference': torch.inference_mode, 'no_grad': torch.no_grad}.get(mode, torch.enable_grad)
        for _ in range(2):  # the second takes what is kept
            torch.manual_seed(0)
            model.zero_grad()
            with gradients(), torch.autocast(torch.get_default_device().type, dtype or torch.bfloat16,
                                             enabled=dtype is not None):
                output = model(x)[0]
            if output.requires_grad:
                output.float().square().sum().backward()
        results.append([output, *(parameter.grad for parameter in model.parameters() if parameter.grad is not None)])
        names = list(model.state_dict())
    assert names == list(toy_model(**settings).state_dict())
    if option == KEPT:  # the same copies, made once
        assert all(torch.equal(*pair) for pair in zip(*results, strict=True))
    for found, wanted in zip(*results, strict=True):
        assert (found - wanted).norm() <= (1e-5 if dtype is None else 0.03) * wanted.norm()


class Casts(TorchDispatchMode):
    """Counts casts of weights."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.name() == 'aten::_to_copy' and isinstance(args[0], torch.nn.Parameter):
            self.count += 1
        return function(*args, **kwargs or {})


def casts(model, x, frozen: bool) -> int:
    with Casts() as found, torch.autocast(torch.get_default_device().type, torch.bfloat16):
        output = model(x)[0]
    if frozen:
        output.float().sum().backward()
    return found.count


def test_frozen_weights_are_cast_once():
    x = normalise(image_of(MIXED))
    plain, kept = toy_model(**TOY), toy_model(**TOY, **KEPT)
    for model in (plain, kept):
        model.blocks.requires_grad_(False)
        casts(model, x, True)
    others = casts(kept, x, True)  # of the patch embedding, which is trained
    assert casts(plain, x, True) == others + 13 * 3  # weights and biases of 3 blocks
    kept.blocks.requires_grad_(True)
    assert casts(kept, x, False) == others + 13 * 3


@torch.no_grad()
def test_kept_weights_follow_their_parameters():
    x, model = normalise(image_of(MIXED)), toy_model(**TOY, **PADDED, **KEPT)
    with torch.autocast(torch.get_default_device().type, torch.bfloat16):
        before = model(x)[0]
        model.blocks[0].mlp.w3.bias.add_(1)
        model.blocks[1].attn.q_bias.add_(1)
        after = model(x)[0]
        other = toy_model(**TOY)
        other.load_state_dict(model.state_dict())
        assert not torch.equal(after, before)
        torch.testing.assert_close(after, other(x)[0], atol=0.05, rtol=0.05)
