"""Tiled neighbourhood attention: equal to dense masked attention, and linear in the number of
tokens.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from k_diffusion.layers import neighborhood
from k_diffusion.layers.neighborhood import TILE, neighborhood_attention, neighborhood_mask
from k_diffusion.models.flops import flop_counter

GRIDS = [
    (7, 7, 7),
    (9, 9, 7),
    (8, 17, 3),
    (16, 16, 7),
    (13, 30, 5),
    (33, 10, 9),
    (11, 11, 11),
    (5, 6, 1),
]


@pytest.fixture(autouse=True)
def _tiled(monkeypatch):
    """Small grids, too, are cut into tiles here."""
    monkeypatch.setattr(neighborhood, 'WORTHWHILE', float('inf'))


def dense(q, k, v, kernel_size, scale=None):
    height, width = q.shape[1:3]
    mask = neighborhood_mask(height, width, kernel_size)
    flat = (x.flatten(1, 2).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(*flat, mask, scale=scale).transpose(1, 2).reshape(q.shape)


def qkv(height, width, dtype):
    # Strided views, as a network hands them over.
    return torch.randn(2, height, width, 3, 2, 8, dtype=dtype, requires_grad=True).unbind(3)


@pytest.mark.parametrize(('height', 'width', 'kernel_size'), GRIDS)
@pytest.mark.parametrize(('dtype', 'tolerance'), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_equals_dense_masked_attention(height, width, kernel_size, dtype, tolerance):
    q, k, v = qkv(height, width, dtype)
    ours, theirs = neighborhood_attention(q, k, v, kernel_size), dense(q, k, v, kernel_size)
    assert ours.shape == q.shape
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)
    weight = torch.randn_like(ours)
    for mine, dense_gradient in zip(
        torch.autograd.grad(ours, (q, k, v), weight), torch.autograd.grad(theirs, (q, k, v), weight)
    ):
        torch.testing.assert_close(mine, dense_gradient, rtol=0, atol=10 * tolerance)


def test_scale():
    q, k, v = qkv(9, 9, torch.float64)
    torch.testing.assert_close(
        neighborhood_attention(q, k, v, 3, scale=2.0), dense(q, k, v, 3, scale=2.0)
    )
    assert not torch.allclose(
        neighborhood_attention(q, k, v, 3, scale=2.0), neighborhood_attention(q, k, v, 3)
    )


def test_a_token_sees_the_square_around_it_moved_inside_near_the_border():
    height, width, kernel_size = 6, 9, 5
    mask = neighborhood_mask(height, width, kernel_size).view(height, width, height, width)
    for y in range(height):
        for x in range(width):
            top, left = min(max(y - 2, 0), height - 5), min(max(x - 2, 0), width - 5)
            square = torch.zeros(height, width, dtype=torch.bool)
            square[top : top + kernel_size, left : left + kernel_size] = True
            assert torch.equal(mask[y, x], square)


def test_work_is_linear_in_the_tokens():
    def flops(side):
        q = torch.empty(1, side, side, 2, 16, device='meta')
        with flop_counter() as counter:
            neighborhood_attention(q, q, q, 7)
        return counter.flops

    assert flops(16 * TILE) == 16 * flops(4 * TILE) > 0


def test_forward_gradient():
    x, tangent = torch.randn(2, 1, 10, 9, 1, 4, dtype=torch.float64).unbind(0)
    with sdpa_kernel(SDPBackend.MATH):
        _, derivative = torch.func.jvp(
            lambda x: neighborhood_attention(x, 2 * x, x.sin(), 3), (x,), (tangent,)
        )
        _, expected = torch.func.jvp(lambda x: dense(x, 2 * x, x.sin(), 3), (x,), (tangent,))
    torch.testing.assert_close(derivative, expected)
    assert derivative.abs().max() > 0.1


@pytest.mark.parametrize(
    ('kernel_size', 'sentence'),
    [
        (0, 'kernel_size must be odd, .*; got 0'),
        (4, 'kernel_size must be odd, .*; got 4'),
        (9, 'kernel_size must be at most 8 on a grid of 8x12 tokens; got 9'),
    ],
)
def test_refuses_a_neighbourhood_without_a_centre_or_larger_than_the_grid(kernel_size, sentence):
    q = torch.zeros(1, 8, 12, 1, 8)
    with pytest.raises(ValueError, match=sentence):
        neighborhood_attention(q, q, q, kernel_size)


def test_small_grids_are_done_whole_and_tiles_are_the_same(monkeypatch):
    q, k, v = qkv(14, 14, torch.float64)
    tiled = neighborhood_attention(q, k, v, 7)
    monkeypatch.undo()
    whole = neighborhood_attention(q, k, v, 7)
    torch.testing.assert_close(whole, tiled, rtol=0, atol=1e-12)
    assert not torch.equal(whole, tiled)  # other sums: the two ways were taken
