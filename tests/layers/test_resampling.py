"""Resampling: the matrices against the dense convolutions they stand for, their adjoints,
layouts and dtypes.
"""

import pytest
import torch
import torch.nn.functional as F

from k_diffusion.layers import Downsample2d, Upsample2d
from k_diffusion.layers.layout import channels_last
from k_diffusion.layers.resampling import KERNELS, taps


def dense(module, x):
    """The original's way: a full C x C convolution with the kernel on its diagonal."""
    c, size = x.shape[1], len(module.kernel)
    reach = size // 2 - 1
    weight = x.new_zeros(c, c, size, size)
    weight[range(c), range(c)] = module.kernel.to(x)
    if isinstance(module, Downsample2d):
        return F.conv2d(F.pad(x, (reach,) * 4, module.pad_mode), weight, stride=2)
    pad = (reach + 1) // 2
    return F.conv_transpose2d(
        F.pad(x, (pad,) * 4, module.pad_mode), weight, stride=2, padding=2 * reach + 1
    )


@pytest.mark.parametrize('kernel', KERNELS)
@pytest.mark.parametrize('kind', [Downsample2d, Upsample2d])
@pytest.mark.parametrize('layout', [torch.Tensor.contiguous, channels_last])
def test_equals_the_dense_convolution_and_its_gradient(kind, kernel, layout):
    module = kind(kernel).double()
    x = layout(torch.randn(2, 3, 12, 16, dtype=torch.float64)).requires_grad_()
    ours, theirs = module(x), dense(module, x)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-7)  # the kernel is float32
    cotangent = torch.randn_like(theirs)
    (back,) = torch.autograd.grad(ours, x, cotangent)
    torch.testing.assert_close(
        back, torch.autograd.grad(theirs, x, cotangent)[0], rtol=0, atol=2e-7
    )
    inner = (ours * cotangent).sum() - (x * back).sum()  # <A x, y> = <x, A' y>
    assert abs(inner.item()) < 1e-10


@pytest.mark.parametrize('kind', [Downsample2d, Upsample2d])
def test_gradcheck(kind):
    x = torch.randn(1, 2, 4, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(kind().double(), x)


@pytest.mark.parametrize('kind, sides', [(Downsample2d, (4, 6)), (Upsample2d, (16, 24))])
def test_keeps_the_layout_the_dtype_and_a_constant(kind, sides):
    x = channels_last(torch.full((2, 5, 8, 12), 0.75, dtype=torch.bfloat16))
    y = kind()(x)
    assert (
        y.shape[2:] == sides
        and y.dtype == torch.bfloat16
        and y.is_contiguous(memory_format=torch.channels_last)
    )
    torch.testing.assert_close(y, torch.full_like(y, 0.75))
    assert kind()(x.float().contiguous()).is_contiguous()


def test_the_kernel_is_kept_with_the_weights():
    down, up = Downsample2d(), Upsample2d('cubic')
    assert (
        list(down.state_dict()) == ['kernel']
        and down.kernel.shape == (4, 4)
        and up.kernel.shape == (8, 8)
    )
    torch.testing.assert_close(
        down.kernel,
        torch.tensor([1.0, 3.0, 3.0, 1.0]).outer(torch.tensor([1.0, 3.0, 3.0, 1.0])) / 64,
    )
    torch.testing.assert_close(up.kernel.sum(), torch.tensor(4.0))
    torch.testing.assert_close(taps('lanczos3').sum(), torch.tensor(1.0))


def test_an_unknown_kernel_is_named():
    with pytest.raises(
        ValueError, match="unknown resampling kernel 'linaer', did you mean 'linear'"
    ):
        Downsample2d('linaer')
