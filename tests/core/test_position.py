"""Resampling by matrices against torch's own interpolation."""
import pytest
import torch
import torch.nn.functional as F

from apt_dense.core.position import resample_table, resampling_matrix


@pytest.mark.parametrize('antialias', [False, True])
@pytest.mark.parametrize('size', [(96, 80), (7, 5), (10, 32), (28, 6)])
def test_equals_interpolation_in_float64(size, antialias):
    table = torch.randn(14, 13, 8)
    wanted = F.interpolate(table.double().permute(2, 0, 1)[None], size=size, mode='bicubic', align_corners=False,
                           antialias=antialias)[0].permute(1, 2, 0)
    resampled = resample_table(table, *size, antialias)
    assert resampled.dtype == torch.float32
    torch.testing.assert_close(resampled.double(), wanted, atol=2e-6, rtol=0)


def test_the_same_size_is_the_table_itself():
    table = torch.randn(4, 6, 8)
    assert resample_table(table, 4, 6) is table


def test_half_precision_is_resampled_in_float32():
    table = torch.randn(14, 14, 8).to(torch.bfloat16)
    assert torch.equal(resample_table(table, 32, 32), resample_table(table.float(), 32, 32).to(torch.bfloat16))


def test_a_matrix_made_in_inference_mode_serves_training():
    resampling_matrix.cache_clear()
    table = torch.randn(14, 14, 8, requires_grad=True)
    with torch.inference_mode():
        resample_table(table, 20, 24)
    resample_table(table, 20, 24).sum().backward()
    torch.testing.assert_close(table.grad.sum(), torch.tensor(20. * 24 * 8))


def test_gradients():
    table = torch.randn(5, 4, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda values: resample_table(values, 8, 3, True), table)
