"""The backends of neighbourhood attention: the same function, chosen and checked when a network
is built.
"""

from __future__ import annotations

import importlib.machinery
import sys
import types

import pytest
import torch

from k_diffusion.layers import neighborhood_backends
from k_diffusion.layers.neighborhood import neighborhood_attention
from k_diffusion.layers.neighborhood_backends import BACKENDS, attend_nearby, choose_backend
from k_diffusion.models.cosine_attention import NeighborhoodSelfAttentionBlock


@pytest.fixture
def fake_natten(monkeypatch):
    """fake_natten(fused=...): a stand-in for the package with its signature; returns the calls
    it gets.
    """

    def install(**attributes):
        package, functional, calls = (
            types.ModuleType('natten'),
            types.ModuleType('natten.functional'),
            [],
        )

        def na2d(query, key, value, kernel_size, stride=1, dilation=1, is_causal=False, scale=None):
            calls.append((tuple(query.shape), kernel_size, scale))
            return neighborhood_attention(query, key, value, kernel_size, scale)

        functional.na2d = na2d
        package.functional = functional
        package.__spec__ = importlib.machinery.ModuleSpec('natten', None)
        for name, value in attributes.items():
            setattr(package, name, value)
        monkeypatch.setitem(sys.modules, 'natten', package)
        monkeypatch.setitem(sys.modules, 'natten.functional', functional)
        return calls

    return install


@pytest.mark.parametrize(('height', 'width', 'kernel_size'), [(9, 12, 5), (7, 7, 7), (16, 8, 3)])
@pytest.mark.parametrize('scale', [None, 2.0])
def test_flex_attention_is_the_same_function(height, width, kernel_size, scale):
    q, k, v = torch.randn(3, 2, height, width, 2, 16)
    with torch.no_grad():
        flex = BACKENDS['flex'](q, k, v, kernel_size, scale)
    torch.testing.assert_close(
        flex, neighborhood_attention(q, k, v, kernel_size, scale), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize('attributes', [{'has_fused_na': lambda: True}, {}], ids=['0.17', '0.20'])
def test_natten_old_and_new_is_called_as_it_wants(fake_natten, attributes):
    calls = fake_natten(**attributes)
    assert choose_backend('natten', 5, 16) == 'natten'
    q, k, v = torch.randn(3, 2, 9, 12, 2, 16)
    torch.testing.assert_close(
        BACKENDS['natten'](q, k, v, 5, 1.0), neighborhood_attention(q, k, v, 5, 1.0)
    )
    assert calls == [((2, 9, 12, 2, 16), 5, 1.0)]
    # Not on CUDA: the tiles do it, and nothing fails at the first forward pass.
    torch.testing.assert_close(
        attend_nearby('natten', q, k, v, 5), neighborhood_attention(q, k, v, 5)
    )
    assert len(calls) == 1


def test_what_cannot_work_is_refused_at_construction(fake_natten, monkeypatch):
    monkeypatch.setitem(sys.modules, 'natten', None)
    monkeypatch.setattr(neighborhood_backends.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(ValueError, match="natten is not installed; 'tiles' gives the same"):
        NeighborhoodSelfAttentionBlock(32, 16, 8, 5, backend='natten')
    monkeypatch.undo()
    fake_natten(has_fused_na=lambda: False)
    with pytest.raises(ValueError, match='built without fused kernels'):
        choose_backend('natten', 5, 16)
    with pytest.raises(ValueError, match="unknown backend 'nattn', did you mean 'natten'"):
        choose_backend('nattn', 5, 16)


def test_the_fastest_is_taken_where_there_is_cuda(monkeypatch):
    times = {'tiles': 3.0, 'flex': 1.0, 'natten': 2.0}
    monkeypatch.setattr(neighborhood_backends, 'why_not_natten', lambda: None)
    monkeypatch.setattr(neighborhood_backends, '_milliseconds', lambda name, *_: times[name])
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    neighborhood_backends.fastest.cache_clear()
    assert choose_backend('auto', 7, 64) == 'flex'
    assert choose_backend('tiles', 7, 64) == 'tiles'

    def broken(name, *_):
        if name == 'flex':
            raise RuntimeError('no')
        return times[name]

    monkeypatch.setattr(neighborhood_backends, '_milliseconds', broken)
    neighborhood_backends.fastest.cache_clear()
    with pytest.warns(UserWarning, match='by flex failed here'):
        assert choose_backend('auto', 7, 64) == 'natten'
    neighborhood_backends.fastest.cache_clear()
    monkeypatch.undo()
    assert torch.cuda.is_available() or choose_backend('auto', 7, 64) == 'tiles'
