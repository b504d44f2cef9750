"""Samplers read nothing back from the device between the first level and the last."""

from __future__ import annotations

import pytest
import torch
from waits import Marks, Waited, allow, no_waits

import k_diffusion as K
from k_diffusion.generation import sample_batch, stops_at
from k_diffusion.sampling import SAMPLERS
from k_diffusion.sampling.loop import Watch

#: Samplers that choose their steps by the error of the last one, which they must read.
ADAPTIVE = {name for name, entry in SAMPLERS.items() if entry.couples_batch}
SIGMAS = torch.tensor([10.0, 5.0, 2.0, 0.7, 0.2, 0.0])


def run(name, **options):
    entry, marks = SAMPLERS[name], Marks()
    scale = torch.ones(1)

    def denoise(x, sigma, **cond):
        assert marks.is_marked(x)
        return scale * x / (1 + sigma.view(-1, 1, 1, 1) ** 2)

    if entry.needs_pair:
        denoise = K.guidance.classifier_free(denoise, {'label': 1}, 1.0)
    with no_waits(marks), pytest.MonkeyPatch.context() as patch:
        allow(marks, patch, Watch, 'check')  # once, after the last step
        marks.mark(scale)
        x = marks.mark(torch.randn(2, 1, 4, 4) * 10)
        options = {**stops_at(entry, 0.2), **options}
        sigmas = SIGMAS if entry.levels is None else torch.tensor([*entry.levels])
        out = sample_batch(
            denoise, [1, 4, 4], sigmas, entry, [1, 2], {'label': 0}, None, 'cpu', options, x, True
        )
        assert marks.is_marked(out)
    assert out.isfinite().all()


@pytest.mark.parametrize('name', [name for name in SAMPLERS if name not in ADAPTIVE])
def test_samplers(name):
    run(name)


def test_guidance():
    marks = Marks()

    def denoise(x, sigma, label):
        return x / (1 + sigma.view(-1, 1, 1, 1) ** 2) + label.view(-1, 1, 1, 1)

    guided = K.guidance.classifier_free(denoise, {'label': torch.zeros(1)}, 2.0, (0.5, 5.0))
    with no_waits(marks), pytest.MonkeyPatch.context() as patch:
        allow(marks, patch, Watch, 'check')
        x, label = marks.mark(torch.randn(2, 1, 4, 4)), marks.mark(torch.ones(2))
        out = K.sampling.sample_dpmpp_2m(
            guided, x, SIGMAS, extra_args={'label': label}, disable=True
        )
        assert marks.is_marked(out)
    assert out.isfinite().all()


@pytest.mark.parametrize('name', sorted(ADAPTIVE))
def test_adaptive_samplers_read_their_error(name):
    with pytest.raises(Waited):
        run(name)
