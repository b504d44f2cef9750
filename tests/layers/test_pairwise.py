"""Attention among few tokens against its plain twin: values, gradients, gradients of gradients,
and where it may run.
"""

from __future__ import annotations

import pytest
import torch

from k_diffusion.layers import pairwise
from k_diffusion.layers.attention import attend
from k_diffusion.layers.pairwise import pairwise_attention, pairwise_pays, plain_pairwise_attention


def leaf(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, requires_grad=True)


def inputs(n=3, m=5):
    return leaf(4, 2, n, 8), leaf(4, 2, m, 8), leaf(4, 2, m, 6)


def bias(*shape):
    return torch.randn(*shape, dtype=torch.float64)


BIASES = {
    'none': None,
    'for all': bias(3, 5),
    'by head': bias(1, 2, 3, 5),
    'by key': bias(4, 1, 1, 5),
    'in turn': bias(2, 1, 3, 5),
}


@pytest.mark.parametrize('mask', BIASES.values(), ids=BIASES)
def test_values_and_gradients_are_the_plain_ones(mask):
    q, k, v = inputs()
    full = None if mask is None else mask.view(*[1] * (4 - mask.ndim), *mask.shape)
    ours, theirs = (
        pairwise_attention(q, k, v, mask, 0.3),
        plain_pairwise_attention(q, k, v, full, 0.3),
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    weight = torch.randn_like(ours)
    for mine, expected in zip(
        torch.autograd.grad(ours, (q, k, v), weight), torch.autograd.grad(theirs, (q, k, v), weight)
    ):
        torch.testing.assert_close(mine, expected, rtol=1e-10, atol=1e-10)
        assert mine.abs().max() > 0


@pytest.mark.parametrize('mask', BIASES.values(), ids=BIASES)
def test_gradients_of_gradients(mask):
    def function(*qkv):
        return pairwise_attention(*qkv, mask, 0.3)

    qkv = inputs()
    assert torch.autograd.gradcheck(function, qkv) and torch.autograd.gradgradcheck(function, qkv)


@pytest.mark.parametrize('masks', [1, 2, 4])
def test_masks_in_turn_are_masks_of_the_batch(masks, monkeypatch):
    mask = torch.rand(masks, 1, 3, 5) > 0.4
    mask[..., 0] = True
    q, k, v = inputs()
    by_item = mask.expand(4 // masks, *mask.shape).flatten(0, 1)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, by_item)
    torch.testing.assert_close(attend(q, k, v, mask), expected)
    monkeypatch.setattr(pairwise, 'MOST_KEYS', 0)
    torch.testing.assert_close(attend(q, k, v, mask), expected)


def test_strided_queries_and_a_strided_gradient():
    q, k, v = (x.transpose(1, 2) for x in (leaf(4, 3, 2, 8), leaf(4, 5, 2, 8), leaf(4, 5, 2, 6)))
    y = attend(q, k, v).transpose(1, 2)
    weight = torch.randn_like(y)
    expected = torch.autograd.grad(
        plain_pairwise_attention(q, k, v, None, 8**-0.5).transpose(1, 2), (q, k, v), weight
    )
    torch.testing.assert_close(torch.autograd.grad(y, (q, k, v), weight), expected)


def test_other_modes_of_differentiation():
    qkv = tuple(x.detach() for x in inputs())
    tangents = tuple(torch.randn_like(x) for x in qkv)

    def plain(*qkv):
        return plain_pairwise_attention(*qkv, None, 8**-0.5)

    torch.testing.assert_close(
        torch.func.jvp(attend, qkv, tangents)[1], torch.func.jvp(plain, qkv, tangents)[1]
    )
    ours, theirs = (
        torch.func.grad(lambda *x, f=f: f(*x).pow(3).sum(), argnums=(0, 1, 2))(*qkv)
        for f in (attend, plain)
    )
    torch.testing.assert_close(ours, theirs)


def test_the_pairwise_one_runs_where_it_may():
    q, k, v = inputs()
    assert 'PairwiseAttention' in type(attend(q, k, v).grad_fn).__name__
    assert 'PairwiseAttention' not in type(attend(q, k, v, leaf(3, 5)).grad_fn).__name__
    assert (
        not pairwise_pays(q.detach(), k)
        and not pairwise_pays(q.half(), k)
        and not pairwise_pays(q, leaf(4, 2, 300, 8))
    )
    with torch.autocast('cpu', torch.bfloat16):
        assert not pairwise_pays(q, k)
    with torch.no_grad():
        assert not pairwise_pays(q, k)


def test_half_precision_is_left_to_torch():
    q, k, v = (x.detach().bfloat16().requires_grad_() for x in inputs())
    y = attend(q, k, v)
    assert y.dtype == torch.bfloat16 and 'PairwiseAttention' not in type(y.grad_fn).__name__
    exact = plain_pairwise_attention(q.double(), k.double(), v.double(), None, 8**-0.5)
    torch.testing.assert_close(y.double(), exact, rtol=0, atol=0.02 * exact.abs().max().item())
