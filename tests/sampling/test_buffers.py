"""Models that answer in one buffer."""

import math

import pytest
import torch
from sampler_cases import suited

import k_diffusion as K
from k_diffusion.sampling import SAMPLERS, iterate

SIGMAS = K.sampling.get_sigmas_karras(7, 0.1, 10.0)


def denoise(x, sigma, **cond):
    return x * (0.25 / (0.25 + sigma.view(-1, 1, 1, 1) ** 2)) + 0.3 * (x / 5).sin()


class Buffered:
    """Answers in its own buffers in turn; each is filled with NaN before the next answer."""

    def __init__(self, model, buffers):
        self.model, self.buffers, self.calls = model, [None] * buffers, 0

    def answer(self, value, place):
        if self.buffers[place] is None:
            self.buffers[place] = torch.empty_like(value)
        return self.buffers[place].copy_(value)

    def __call__(self, x, sigma, **cond):
        value = self.model(x, sigma, **cond).clone()
        for buffer in self.buffers:
            if buffer is not None:
                buffer.fill_(math.nan)
        self.calls += 1
        return self.answer(value, self.calls % len(self.buffers))


class BufferedPair(Buffered):
    def pair(self, x, sigma, **cond):
        values = [value.clone() for value in self.model.pair(x, sigma, **cond)]
        return tuple(self.answer(value, place) for place, value in enumerate(values))


def options_of(name):
    entry = SAMPLERS[name]
    where = {'sigmas': SIGMAS} if 'sigmas' in entry.takes else {'sigma_min': 0.1, 'sigma_max': 10.0}
    where |= {'n': 7} if 'n' in entry.takes else {}
    return {**where, 'seed': [1, 2], 'disable': True}


@pytest.mark.parametrize('buffers', [1, 2])
@pytest.mark.parametrize('name', SAMPLERS)
def test_an_answer_may_lie_in_a_buffer_that_is_used_again(name, buffers):
    x = torch.randn(2, 1, 3, 3) * 10
    model = suited(name, denoise)
    paired = hasattr(model, 'pair')
    reused = BufferedPair(model, 2) if paired else Buffered(model, buffers)
    options = options_of(name)
    expected = SAMPLERS[name].function(model, x, **options)
    result = SAMPLERS[name].function(reused, x, **options)
    for buffer in reused.buffers:
        if buffer is not None:
            buffer.fill_(math.nan)
    assert torch.equal(result, expected)
    states = list(iterate(name, reused, x, **options))
    for state, plain in zip(states, iterate(name, model, x, **options), strict=True):
        assert torch.equal(state.x, plain.x)
        assert plain.denoised is None or torch.equal(state.denoised, plain.denoised)
