"""Samplers with their model outside: the calls they ask for, and the same result as with the
model inside.
"""

import pytest
import torch
from sampler_cases import suited, with_noise

from k_diffusion import sampling

SIGMAS = torch.tensor([10.0, 5.0, 2.0, 0.7, 0.2, 0.05, 0.0])
NAMES = sorted(sampling.SAMPLERS)


def model(x, sigma):
    """The exact denoiser of data N(0.3, 0.5^2)."""
    s = sigma.view(-1, *[1] * (x.ndim - 1)).to(x.dtype)
    return 0.3 + (x - 0.3) * (0.25 / (0.25 + s**2))


def start(n=3, dtype=torch.float32):
    return (torch.randn([n, 2, 4, 4], generator=torch.Generator().manual_seed(0)) * 10).to(dtype)


def levels_of(name):
    takes = sampling.SAMPLERS[name].takes
    return (
        {'sigmas': SIGMAS}
        if 'sigmas' in takes
        else {'sigma_min': 0.05, 'sigma_max': 10.0, **({'n': 7} if 'n' in takes else {})}
    )


def serve(run, denoiser, requests=None):
    """Answer a run to its end."""
    try:
        request = next(run)
        while True:
            if requests is not None:
                requests.append(request)
            request = run.send(request.answer(denoiser))
    except StopIteration as end:
        return end.value


@pytest.mark.parametrize('name', NAMES)
def test_every_sampler_with_callback_and_seeds(name):
    """Bit for bit what sample_<name> gives and shows, with noise, a seed for each item, and
    edits by the callback.
    """
    entry, denoiser = sampling.SAMPLERS[name], suited(name, model)
    steps = [], []

    def callback(infos):
        def look(info):
            infos.append((info['i'], float(info['sigma']), info['denoised'].clone()))
            info['denoised'].mul_(0.99)

        return look

    options = {**levels_of(name), **with_noise(name)}
    expected = entry.function(
        denoiser, start(), callback=callback(steps[0]), disable=True, seed=[4, 5, 6], **options
    )
    requests = []
    actual = serve(
        sampling.requests(name, start(), callback=callback(steps[1]), seed=[4, 5, 6], **options),
        denoiser,
        requests,
    )
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)
    torch.testing.assert_close(steps[1], steps[0], rtol=0, atol=0)
    assert all(
        request.pair == entry.needs_pair and float(request.sigma[0]) == pytest.approx(request.level)
        for request in requests
    )
    alone = serve(
        sampling.requests(name, start()[1:2], callback=callback([]), seed=[5], **options), denoiser
    )
    if not entry.couples_batch:
        torch.testing.assert_close(alone, actual[1:2])


def test_the_calls_of_heun_by_hand():
    """Karras et al. (2022), algorithm 2: both slopes of each step, and one in the step to 0."""
    run = sampling.requests('heun', start(), [4.0, 1.0, 0.0])
    x = start()
    first = next(run)
    assert (first.level, first.i, first.n, first.pair, dict(first.cond)) == (4.0, 0, 2, False, {})
    torch.testing.assert_close(first.x, x)
    torch.testing.assert_close(first.sigma, torch.full([3], 4.0))
    d_1 = torch.full_like(x, 0.2)
    second = run.send(d_1)
    x_2 = x + (1 - 4) * (x - d_1) / 4
    torch.testing.assert_close(second.x, x_2)
    assert (second.level, second.i) == (1.0, 0)
    d_2 = torch.full_like(x, 0.1)
    third = run.send(d_2)
    x = x + (1 - 4) * ((x - d_1) / 4 + (x_2 - d_2)) / 2
    torch.testing.assert_close(third.x, x)
    assert (third.level, third.i) == (1.0, 1)
    with pytest.raises(StopIteration) as end:
        run.send(d_1)
    torch.testing.assert_close(end.value.value, d_1)


def test_an_edit_of_the_live_x_moves_the_sampler():
    """Euler to 0 gives D; one step before it x' = x + (sigma' - sigma) (x - D) / sigma of the
    edited x.
    """
    run = sampling.requests('euler', start(dtype=torch.float16), [4.0, 1.0, 0.0])
    request = next(run)
    assert request.x.dtype == torch.float16 and request.live.dtype == torch.float32
    request.live.add_(1.0)
    d = torch.full([3, 2, 4, 4], 0.2)
    x = start(dtype=torch.float16).float() + 1
    torch.testing.assert_close(run.send(d).live, x - 3 * (x - d) / 4)


@pytest.mark.parametrize(
    'name', ['heun', 'dpmpp_2m_sde', 'uni_pc', 'dpm_adaptive', 'euler_cfg_pp', 'restart']
)
def test_it_goes_on_from_a_record(name):
    """The model is asked again for nothing that the record holds; the rest of the run is the
    same.
    """
    denoiser, options = (
        suited(name, model),
        {**levels_of(name), **with_noise(name), 'seed': [1, 2, 3]},
    )
    expected = serve(sampling.requests(name, start(), **options), denoiser)
    record = sampling.Record()
    run = sampling.requests(name, start(), record=record, **options)
    request = next(run)
    for _ in range(3):
        request = run.send(request.answer(denoiser))
    again = sampling.requests(name, start(), record=sampling.Record(record.state_dict()), **options)
    requests = []
    actual = serve(again, denoiser, requests)
    torch.testing.assert_close(requests[0].x, request.x, rtol=0, atol=0)
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def test_the_analytical_first_step_is_not_asked_for():
    requests = []
    actual = serve(sampling.requests('euler', start(), SIGMAS, afs=0.5), model, requests)
    assert len(requests) == len(SIGMAS) - 2 and requests[0].level == 5.0
    torch.testing.assert_close(
        actual, sampling.sample_euler(model, start(), SIGMAS, afs=0.5, disable=True), rtol=0, atol=0
    )


def test_conditions_come_back():
    request = next(sampling.requests('euler', start(), SIGMAS, extra_args={'class_cond': 3}))
    assert request.cond == {'class_cond': 3}


def test_gradients_are_the_hosts_own():
    """The model is called outside of no_grad, whatever the sampler does inside."""
    run = sampling.requests('dpmpp_2m', start(), SIGMAS)
    request = next(run)
    assert torch.is_grad_enabled()
    run.send(model(request.x.requires_grad_(), request.sigma))
    assert torch.is_grad_enabled()


def calls_inside(model, x, sigmas, extra_args=None, callback=None, disable=None):
    return model(x, x.new_ones([len(x)]))


def direct(steps, x):
    for step in steps:
        x = yield step.denoise(x)
    return x


@pytest.mark.parametrize(
    'sampler, options, message',
    [
        (calls_inside, {}, 'calls its model itself'),
        (sampling.make_sampler(direct, 'direct', 1), {}, 'step.ask'),
        ('eulr', {}, 'euler'),
        ('euler', {'seed': 'x'}, 'seed'),
        ('euler', {'sigmas': [1.0, 2.0]}, 'descending'),
    ],
)
def test_mistakes(sampler, options, message):
    with pytest.raises(ValueError, match=message):
        serve(sampling.requests(sampler, start(), **{'sigmas': SIGMAS, **options}), model)


def test_an_answer_that_is_not_finite_is_named():
    run = sampling.requests('euler', start(), SIGMAS)
    with pytest.raises(
        ValueError, match='sample_euler: the model returned NaN or infinity in step 0, at sigma 10'
    ):
        run.send(next(run).x * torch.nan)


def test_a_body_that_calls_its_model_directly_still_runs():
    sample = sampling.make_sampler(direct, 'direct', 1)
    torch.testing.assert_close(
        sample(model, start(), [2.0, 1.0], disable=True), model(start(), torch.full([3], 2.0))
    )
