"""The backward Euler start of `ipndm` and `zeab`: x' = x + (sigma' - sigma) (x' - D) / sigma'."""

import math

import pytest
import torch

import k_diffusion as K

SIGMAS = [80.0, 20.0, 5.0, 1.0, 0.2, 0.0]
SAMPLERS = pytest.mark.parametrize('name', ['ipndm', 'zeab'])


def start(n=3):
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 80


def run(name, model, sigmas, **options):
    sample = K.sampling.SAMPLERS[name].function
    return sample(model, start(), sigmas, disable=True, backward_start=True, **options)


@SAMPLERS
@pytest.mark.parametrize('order', [1, 2, 3])
def test_a_constant_answer_is_followed_exactly(name, order):
    """D = m everywhere: the flow is x(sigma) = m + (x_0 - m) sigma / sigma_0, whatever m is."""
    m = torch.tensor([3.0, -2.0, 0.5, 10.0], dtype=torch.float64)
    levels_called = []

    def model(x, sigma):
        levels_called.append(sigma[0].item())
        return m.expand_as(x)

    states = K.sampling.iterate(name, model, start(), SIGMAS, order=order, backward_start=True)
    ends = [state.x.clone() for state in states]
    assert levels_called == SIGMAS[1:-1]  # no call at the first level
    for level, x in list(zip(SIGMAS[1:], ends))[1:]:
        torch.testing.assert_close(x, m + (start() - m) * level / 80, rtol=1e-12, atol=1e-12)


@SAMPLERS
def test_two_steps_by_hand(name):
    """D = 0.2 x + 1; the second step has the slope of the first twice, so any order gives this."""
    actual = run(name, lambda x, sigma: 0.2 * x + 1, SIGMAS[:3], order=3)
    draft = start() * 20 / 80
    denoised = 0.2 * draft + 1
    x = denoised + (start() - denoised) * 20 / 80
    torch.testing.assert_close(actual, x + (5 - 20) * (x - denoised) / 20)


@SAMPLERS
def test_its_error_is_of_second_order(name):
    """N(2, 1): D = (x + 2 sigma^2) / (1 + sigma^2) has the ends 2 + (x - 2) / sqrt(1 + 80^2)."""

    def model(x, sigma):
        return (x + 2 * sigma[:, None] ** 2) / (1 + sigma[:, None] ** 2)

    end = 2 + (start() - 2) * math.sqrt((1 + 1e-6) / (1 + 80**2))
    errors = []
    for n in (64, 128):
        levels = K.schedules.get_sigmas_karras(n, 1e-3, 80.0).double()[:-1]
        errors.append((run(name, model, levels, order=2) - end).abs().max().item())
    assert 1.8 < math.log2(errors[0] / errors[1]) < 2.5


@SAMPLERS
def test_the_guidance_of_an_interval_over_all_levels_is_that_of_none(name):
    """With one slope the parts of the step add up to the step of the guided denoiser."""

    def model(x, sigma, towards):
        return (0.3 + 0.2 * towards[:, None]) * x + towards[:, None]

    cond = {'towards': torch.ones(3)}
    guided = K.guidance.classifier_free(model, {'towards': 0}, 2.0, (0.0, 1e3))
    parts = run(name, guided, SIGMAS, extra_args=cond, order=1)
    whole = run(name, lambda x, sigma: guided(x, sigma, **cond), SIGMAS, order=1)
    torch.testing.assert_close(parts, whole)


@SAMPLERS
def test_the_callback_sees_every_step_and_its_edits_act(name):
    steps = []

    def edit(info):
        steps.append(info['i'])
        if info['i'] == 2:
            info['denoised'].fill_(7.0)

    edited = run(name, lambda x, sigma: 0.1 * x, SIGMAS, order=1, callback=edit)
    plain = run(name, lambda x, sigma: 0.1 * x, SIGMAS, order=1)
    assert steps == [0, 1, 2, 3, 4] and not torch.allclose(edited, plain)
    one = run(name, lambda x, sigma: 0.1 * x, [80.0, 0.0])  # no level for it: an Euler step
    torch.testing.assert_close(one, 0.1 * start())


def test_a_recipe_with_it_makes_as_many_calls_as_asked():
    levels_called = []

    def model(x, sigma):
        levels_called.append(sigma[0].item())
        return x * 0.25 / (0.25 + sigma[:, None] ** 2)

    for n in (2, 5, 8, 20):
        levels_called.clear()
        K.sample(model, [2, 4], n, seeds=0)
        assert len(levels_called) == n and max(levels_called) < 80
