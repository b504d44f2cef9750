"""Runs in float32 that begin at the levels of flows, 1e4, against the same run in float64 with a
model in float64.
"""

import pytest
import torch

import k_diffusion as K

CENTRE = torch.sin(torch.arange(48.0, dtype=torch.float64)).reshape(1, 3, 4, 4)
#: Tables of such weights that the float32 answers of the model themselves move the end by this
#: much.
LARGE_WEIGHTS = {
    'dormand_prince_13s': 2e-4,
    'dormand_prince_6s': 1e-4,
    'dormand_prince_7s': 1e-4,
    'tsitouras_6s': 1e-4,
}


def velocity(x_t, t):
    """noise - clean for data from two Gaussians of deviation 0.3 at +-CENTRE, at x_t = (1 - t)
    clean + t noise.
    """
    t = t.to(x_t).view(-1, 1, 1, 1)
    x, variance = x_t / (1 - t), 0.09 + (t / (1 - t)) ** 2
    side = torch.tanh((x * CENTRE.to(x)).sum((1, 2, 3), keepdim=True) / variance)
    clean = (0.09 * x + (variance - 0.09) * side * CENTRE.to(x)) / variance
    return (x_t - clean) / t


denoiser = K.external.FlowDenoiser(velocity)
levels = denoiser.get_sigmas(8).double()


def start():
    return torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    'name',
    [
        entry.name
        for entry in K.sampling.catalogue()
        if 'sigmas' in entry.takes and not entry.needs_pair
    ],
)
def test_float32_comes_to_the_end_of_float64(name):
    dtypes = []

    def watched(x, sigma):
        dtypes.append(x.dtype)
        return denoiser(x, sigma)

    sample = K.sampling.SAMPLERS[name].function
    actual = sample(watched, start() * 1e4, levels, disable=True, seed=3)
    expected = sample(denoiser, start().double() * 1e4, levels, disable=True, seed=3)
    assert actual.dtype == torch.float32 and set(dtypes) == {torch.float32}
    assert float((actual - expected).abs().max() / expected.abs().max()) < LARGE_WEIGHTS.get(
        name, 1e-5
    )


@pytest.mark.parametrize('name', ['dpm_fast', 'dpm_adaptive'])
def test_float32_comes_to_the_end_of_float64_between_two_levels(name):
    options = {'n': 40} if name == 'dpm_fast' else {}
    sample = K.sampling.SAMPLERS[name].function
    actual, expected = (
        sample(denoiser, x * 2000, sigma_min=0.05, sigma_max=2000.0, disable=True, **options)
        for x in (start(), start().double())
    )
    # the steps of dpm_adaptive follow from differences of answers
    assert float((actual - expected).abs().max() / expected.abs().max()) < (
        1e-5 if name == 'dpm_fast' else 1e-4
    )


@pytest.mark.parametrize('name', ['euler', 'heun', 'dpmpp_2m_sde'])
def test_in_one_call_and_with_the_model_outside(name):
    actual = K.sample(denoiser, start() * 1e4, sampler=name, schedule=levels, seeds=5)
    expected = K.sample(denoiser, start().double() * 1e4, sampler=name, schedule=levels, seeds=5)
    assert float((actual - expected).abs().max() / expected.abs().max()) < 1e-5
    seeds = [
        K.core.random.derive_seed(K.core.random.derive_seed(5, 'sample', i), 'steps')
        for i in range(2)
    ]
    run = K.sampling.requests(name, start() * 1e4, levels, seed=seeds)
    request = next(run)
    try:
        while True:
            assert request.x.dtype == torch.float32 and request.live.dtype == torch.float64
            request = run.send(denoiser(request.x, request.sigma))
    except StopIteration as end:
        assert torch.equal(end.value, actual)


def test_noise_without_a_seed_is_that_of_float32():
    torch.manual_seed(1)
    actual = K.sampling.sample_euler_ancestral(denoiser, start() * 1e4, levels, disable=True)
    torch.manual_seed(1)
    expected = K.sampling.sample_euler_ancestral(
        denoiser,
        start() * 1e4,
        levels,
        disable=True,
        noise_sampler=lambda sigma, sigma_next: torch.randn(2, 3, 4, 4),
    )
    assert torch.equal(actual, expected)


def test_a_callback_is_shown_float32_and_its_edits_act():
    """Euler by hand from x = 5,000: x' = x + (sigma' - sigma) (x - D) / sigma, with 0.5 added to
    x after the second slope.
    """

    def gaussian(x, sigma):
        return x * 0.25 / (0.25 + sigma.view(-1, 1, 1, 1) ** 2)

    def edit(info):
        assert {info[key].dtype for key in ('x', 'denoised', 'sigma', 'sigma_hat')} == {
            torch.float32
        }
        if info['i'] == 1:
            info['x'] += 0.5

    walked = [5000.0, 3.0, 1.0, 0.0]
    actual = K.sampling.sample_euler(gaussian, start() * 5000, walked, callback=edit, disable=True)
    x = start().double() * 5000
    for i in range(3):
        slope = (x - gaussian(x, torch.full([2], walked[i], dtype=torch.float64))) / walked[i]
        x = x + 0.5 * (i == 1) + (walked[i + 1] - walked[i]) * slope
    torch.testing.assert_close(actual.double(), x, rtol=1e-5, atol=1e-6)


def test_levels_below_keep_float32():
    dtypes = []
    K.sampling.sample_euler(
        denoiser,
        start() * 80,
        [80.0, 1.0, 0.0],
        callback=lambda info: dtypes.append(info['x'].dtype),
        disable=True,
    )
    run = K.sampling.requests('euler', start() * 80, [80.0, 1.0, 0.0])
    assert next(run).live.dtype == torch.float32 and dtypes == [torch.float32] * 2
