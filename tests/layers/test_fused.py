"""The fused functions against their plain twins: values, gradients, gradients of gradients,
other modes of differentiation.
"""

from __future__ import annotations

import pytest
import torch

from k_diffusion.layers import fused


def rms(x, scale):
    return fused.scaled_rms_norm(x, scale, 1e-6)


def plain_rms(x, scale):
    return fused.plain_rms_norm(x, scale[:, None, None], 1e-6)


def cosines(qkv, scale, theta):
    return torch.stack(fused.rotated_cosines(qkv, scale, theta))


def plain_cosines(qkv, scale, theta):
    return torch.stack(fused.plain_rotated_cosines(qkv, scale, theta, 1e-6))


def leaf(*shape):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def positive(*shape):
    return (torch.rand(*shape, dtype=torch.float64) + 0.5).requires_grad_()


SOURCE = torch.Generator().manual_seed(0)
THETA = torch.randn(1, 3, 2, 1, dtype=torch.float64, generator=SOURCE)
ALL = THETA.repeat(1, 1, 1, 2)
TWO = torch.randn(2, 3, 2, 1, dtype=torch.float64, generator=SOURCE)
CASES = {
    'norm': (rms, plain_rms, lambda: (leaf(3, 4, 5, 8), positive(3, 8))),
    'norm, one scale': (rms, plain_rms, lambda: (leaf(3, 4, 5, 8), positive(1, 8))),
    'geglu': (fused.linear_geglu, fused.plain_linear_geglu, lambda: (leaf(3, 5, 8), leaf(6, 8))),
    'cosines': (
        lambda x, s: cosines(x, s, THETA),
        lambda x, s: plain_cosines(x, s, THETA),
        lambda: (leaf(2, 3, 3, 2, 4), positive(2)),
    ),
    'cosines, all turned': (
        lambda x, s: cosines(x, s, ALL),
        lambda x, s: plain_cosines(x, s, ALL),
        lambda: (leaf(2, 3, 3, 2, 4), positive(2)),
    ),
    'cosines, angles in turn': (
        lambda x, s: cosines(x, s, TWO),
        lambda x, s: plain_cosines(x, s, TWO),
        lambda: (leaf(4, 3, 3, 2, 4), positive(2)),
    ),
}


@pytest.fixture(params=CASES)
def case(request):
    function, plain, inputs = CASES[request.param]
    return function, plain, inputs()


def test_values_and_gradients_are_the_plain_ones(case):
    function, plain, inputs = case
    ours, theirs = function(*inputs), plain(*inputs)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    weight = torch.randn_like(ours)
    for mine, expected in zip(
        torch.autograd.grad(ours, inputs, weight), torch.autograd.grad(theirs, inputs, weight)
    ):
        torch.testing.assert_close(mine, expected, rtol=1e-10, atol=1e-10)
        assert mine.abs().max() > 0


def test_gradients_of_gradients(case):
    function, _, inputs = case
    assert torch.autograd.gradcheck(function, inputs) and torch.autograd.gradgradcheck(
        function, inputs
    )


def test_other_modes_of_differentiation(case):
    function, plain, inputs = case
    inputs = tuple(x.detach() for x in inputs)
    tangents = tuple(torch.randn_like(x) for x in inputs)
    torch.testing.assert_close(
        torch.func.jvp(function, inputs, tangents)[1], torch.func.jvp(plain, inputs, tangents)[1]
    )
    ours, theirs = (
        torch.func.grad(lambda *x, f=f: f(*x).pow(3).sum())(*inputs) for f in (function, plain)
    )
    torch.testing.assert_close(ours, theirs)
    batched = torch.func.vmap(lambda x: function(x, *inputs[1:]))(
        torch.stack([inputs[0], 2 * inputs[0]])
    )
    torch.testing.assert_close(batched[0], plain(*inputs))


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision(case, dtype):
    function, _, inputs = case
    half = tuple(x.detach().to(dtype).requires_grad_() for x in inputs)
    exact = tuple(x.detach().double().requires_grad_() for x in half)
    ours, theirs = function(*half), function(*exact)
    assert ours.dtype == dtype
    tolerance = 0.02 * theirs.abs().max().item()
    torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=tolerance)
    weight = torch.randn_like(theirs)
    expected = torch.autograd.grad(theirs, exact, weight)
    tolerance = 0.03 * max(
        gradient.abs().max().item() for gradient in expected
    )  # that of a scale is a sum in which much cancels
    for mine, gradient in zip(torch.autograd.grad(ours, half, weight.to(dtype)), expected):
        assert mine.dtype == dtype
        torch.testing.assert_close(mine.double(), gradient, rtol=0, atol=tolerance)


def test_the_fused_one_runs_where_it_may(monkeypatch):
    assert fused.fusible()
    x = leaf(2, 3, 8)
    assert (
        'LinearGEGLUBackward'
        in type(fused.linear_geglu(x, leaf(6, 8)).grad_fn.next_functions[0][0]).__name__
    )
    states = []
    torch.func.vmap(lambda x: states.append(fused.fusible()) or x)(x)
    torch.func.jvp(lambda x: states.append(fused.fusible()) or x, (x.detach(),), (x.detach(),))
    assert states == [False, False]
