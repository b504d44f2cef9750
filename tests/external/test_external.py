"""Other families' networks: the original's numbers, exact denoisers behind each wrapper, and
what programs do with the tables.
"""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import k_diffusion as K
from k_diffusion.denoisers.analytic import Gaussian

DISCRETE = ['CompVisDenoiser', 'CompVisVDenoiser']
SD = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
ALPHAS = (1 - SD).cumprod(0).float()


def network(x, t, cond=None):
    """The closed-form network of golden/denoisers (index.json)."""
    return x.tanh() * (0.37 * t).cos()[:, None, None, None]


def latent(model=network, alphas=ALPHAS):
    """A function as the programs of CompVis pass it: not a module, but a call that applies one."""
    return SimpleNamespace(alphas_cumprod=alphas, apply_model=model)


@pytest.fixture
def numbers(golden):
    return golden('denoisers')


@pytest.fixture
def single(numbers):
    return {
        key: value.float()
        for key, value in numbers.items()
        if key in ('input', 'noise', 'sigma', 'alphas_cumprod')
    }


def close(ours, theirs, tolerance=1e-6):
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


# The original's numbers


def test_golden_v(numbers):
    denoiser = K.external.VDenoiser(network)
    close(denoiser(numbers['input'], numbers['sigma']), numbers['v.forward'], 1e-12)
    close(
        denoiser.loss(numbers['input'], numbers['noise'], numbers['sigma']),
        numbers['v.loss'],
        1e-12,
    )


@pytest.mark.parametrize('quantize', [False, True])
@pytest.mark.parametrize('name', DISCRETE)
def test_golden_discrete(numbers, single, name, quantize):
    denoiser = getattr(K.external, name)(latent(alphas=single['alphas_cumprod']), quantize)
    case = f'{name}.q{quantize:d}'
    # One rounding of t, 6e-5 above 512, may differ on another CPU; cos(0.37 t) makes 2e-5 of it.
    close(denoiser(single['input'], single['sigma'], cond=None), numbers[f'{case}.forward'], 5e-5)
    close(
        denoiser.loss(single['input'], single['noise'], single['sigma'], cond=None),
        numbers[f'{case}.loss'],
        5e-5,
    )
    t = denoiser.sigma_to_t(single['sigma'])
    assert t.dtype == numbers[f'{case}.sigma_to_t'].dtype
    close(t, numbers[f'{case}.sigma_to_t'], 2e-6)


def test_golden_table(numbers, single):
    denoiser = K.external.CompVisDenoiser(latent(alphas=single['alphas_cumprod']))
    close(denoiser.get_sigmas(11), numbers['discrete.get_sigmas_11'])
    close(
        denoiser.t_to_sigma(torch.tensor([0.0, 3.25, 500.5, 999.0])), numbers['discrete.t_to_sigma']
    )


def test_golden_openai(numbers, single):
    denoiser = K.external.OpenAIDenoiser(
        lambda x, t: torch.cat([network(x, t), x], 1),
        SimpleNamespace(alphas_cumprod=single['alphas_cumprod'].double().numpy()),
    )
    close(denoiser(single['input'], single['sigma']), numbers['OpenAIDenoiser.forward'], 5e-5)


# Exact networks behind each wrapper

DATA = Gaussian(torch.tensor([0.3, -1.0, 2.0]), torch.tensor([0.5, 1.0, 0.1]))


def truth(kind):
    """The network that gives the expected noise or v of DATA, from its own scaled input and time
    alone.
    """

    def predict(x, t, cond=None):
        sigma = (t * math.pi / 2).tan() if kind == 'continuous' else table.t_to_sigma(t)
        sigma = sigma[:, None]
        x = x * (1 + sigma**2).sqrt()
        noise = (x - DATA(x, sigma[:, 0])) / sigma
        return (
            noise
            if kind == 'eps'
            else (noise - sigma * DATA(x, sigma[:, 0])) / (1 + sigma**2).sqrt()
        )

    table = K.external.DiscreteSchedule(((1 - ALPHAS) / ALPHAS).sqrt().double(), quantize=False)
    return predict


WRAPPED = {
    'VDenoiser': lambda: K.external.VDenoiser(truth('continuous')),
    'CompVisDenoiser': lambda: K.external.CompVisDenoiser(latent(truth('eps'))),
    'CompVisVDenoiser': lambda: K.external.CompVisVDenoiser(latent(truth('v'))),
    'DiscreteEpsDDPMDenoiser': lambda: K.external.DiscreteEpsDDPMDenoiser(
        truth('eps'), ALPHAS, False
    ),
    'DiscreteVDDPMDenoiser': lambda: K.external.DiscreteVDDPMDenoiser(truth('v'), ALPHAS, False),
    'OpenAIDenoiser': lambda: K.external.OpenAIDenoiser(
        truth('eps'), SimpleNamespace(alphas_cumprod=ALPHAS), has_learned_sigmas=False
    ),
}


@pytest.mark.parametrize('name', WRAPPED)
def test_a_perfect_network_is_a_perfect_denoiser(name):
    sigma = torch.logspace(-1.5, 1.1, 16, dtype=torch.float64)
    x = torch.randn(16, 3, dtype=torch.float64) * (1 + sigma**2).sqrt()[:, None]
    close(WRAPPED[name]()(x, sigma), DATA(x, sigma), 1e-5)


@pytest.mark.parametrize('name', WRAPPED)
def test_samplers_and_the_likelihood_run_on_it(name):
    denoiser = WRAPPED[name]()
    x = torch.randn(4, 3, dtype=torch.float64) * 10
    sampled = K.sampling.sample_heun(
        denoiser, x, K.sampling.get_sigmas_karras(60, 0.03, 10.0), disable=True
    )
    close(sampled, DATA.flow(x, 10.0, 0.0), 5e-3)
    likelihood, _ = K.sampling.log_likelihood(denoiser, sampled, 0.03, 14.0)
    assert likelihood.isfinite().all()


@pytest.mark.parametrize('name', WRAPPED)
def test_the_loss_is_the_error_of_the_answer(name):
    denoiser, sigma = WRAPPED[name](), torch.tensor([0.05, 1.0, 10.0], dtype=torch.float64)
    clean, noise = torch.randn(2, 3, 3, dtype=torch.float64)
    error = (denoiser(clean + noise * sigma[:, None], sigma) - clean).square().mean(1)
    close(denoiser.loss(clean, noise, sigma), error / denoiser.scalings(sigma)[1] ** 2, 1e-10)


def test_a_level_of_zero_has_a_loss():
    assert (
        WRAPPED['CompVisDenoiser']()
        .loss(torch.randn(2, 3), torch.randn(2, 3), torch.tensor([1.0, 1e-30]))
        .isfinite()
        .all()
    )
    denoiser = K.external.DiscreteEpsDDPMDenoiser(lambda x, t: x * 0, ALPHAS, False)
    noise = torch.randn(2, 3)
    close(denoiser.loss(torch.randn(2, 3), noise, torch.zeros(2)), noise.square().mean(1))


# The table


@pytest.fixture
def schedule():
    return K.external.DiscreteSchedule(((1 - ALPHAS) / ALPHAS).sqrt(), quantize=False)


def test_the_table_is_there_to_read(schedule):
    assert set(schedule.state_dict()) == {'sigmas', 'log_sigmas'}
    assert schedule.sigmas.shape == schedule.log_sigmas.shape == (1000,)
    assert (
        schedule.sigma_min.ndim == 0
        and schedule.sigma_min == schedule.sigmas[0]
        and schedule.sigma_max == schedule.sigmas[-1]
    )
    assert schedule.sigmas[0].item() == pytest.approx(0.029167, rel=1e-4) and schedule.sigmas[
        -1
    ].item() == pytest.approx(14.6146, rel=1e-5)
    everything = schedule.get_sigmas()
    assert (
        everything.shape == (1001,)
        and torch.equal(everything[:-1].flip(0), schedule.sigmas)
        and everything[-1] == 0
    )
    assert schedule.get_sigmas(1).tolist() == [pytest.approx(14.6146, rel=1e-5), 0]


def test_there_and_back(schedule):
    t = torch.rand(5, 7) * 999
    close(schedule.sigma_to_t(schedule.t_to_sigma(t)), t, 2e-4)
    places = torch.arange(1000)
    assert torch.equal(schedule.t_to_sigma(places), schedule.log_sigmas.exp())
    assert torch.equal(schedule.sigma_to_t(schedule.sigmas, quantize=True), places)


def test_quantized_is_the_nearest_level(schedule):
    sigma = torch.logspace(-3, 3, 500, dtype=torch.float64)
    nearest = (sigma.log()[:, None] - schedule.log_sigmas.double()).abs().argmin(1)
    assert torch.equal(schedule.sigma_to_t(sigma, quantize=True), nearest)


@pytest.mark.parametrize('quantize', [False, True])
def test_ends_and_beyond(schedule, quantize):
    sigma = torch.tensor([0.0, 1e-9, 100.0, math.inf])
    assert schedule.sigma_to_t(sigma, quantize).tolist() == [0, 0, 999, 999]
    beyond = schedule.t_to_sigma(torch.tensor([-3.0, 999.5, 1000.0, math.inf]))
    close(beyond, schedule.sigmas[[0, -1, -1, -1]])


def test_single_numbers(schedule):
    t = schedule.sigma_to_t(torch.tensor(2.0))
    assert t.shape == () and 500 < t < 600
    close(schedule.t_to_sigma(t), torch.tensor(2.0))
    assert schedule.t_to_sigma(torch.tensor(5.0)) == schedule.t_to_sigma(torch.tensor([5.0]))[0]
    ends = [
        schedule.sigma_to_t(torch.tensor(s)) for s in (14.6146, 0.0292)
    ]  # as A1111's uniform schedule walks it
    levels = torch.FloatTensor([schedule.t_to_sigma(t) for t in torch.linspace(*ends, 11)[:-1]])
    assert (levels.diff() < 0).all() and levels[0] == pytest.approx(14.6146, rel=1e-5)


def test_the_table_can_be_replaced(schedule):
    schedule.sigmas = torch.tensor([1.0, 2.0, 4.0])
    schedule.log_sigmas = schedule.sigmas.log()
    assert 'sigmas' in dict(schedule.named_buffers()) and schedule.sigma_max == 4
    close(schedule.sigma_to_t(torch.tensor([2.0, 2 * 2**0.5, 9.0])), torch.tensor([1.0, 1.5, 2.0]))
    schedule.set_sigmas(torch.tensor([3.0, 9.0]))
    close(schedule.get_sigmas(3), torch.tensor([9.0, 27**0.5, 3.0, 0.0]))


@pytest.mark.parametrize(
    'sigmas', [[3.0, 2.0, 1.0], [0.0, 1.0, 2.0], [1.0], [], [[1.0, 2.0]], [1.0, math.nan]]
)
def test_no_table(sigmas):
    with pytest.raises(ValueError, match='sigmas must be at least two ascending levels'):
        K.external.DiscreteSchedule(torch.tensor(sigmas), False)


# alphas_cumprod with ends that are 0 or 1


@pytest.mark.parametrize('name', DISCRETE)
def test_zero_terminal_snr(name):
    alphas = ALPHAS.sqrt()
    alphas = ((alphas - alphas[-1]) * alphas[0] / (alphas[0] - alphas[-1])) ** 2
    assert alphas[-1] == 0
    denoiser = getattr(K.external, name)(latent(alphas=alphas))
    assert denoiser.sigma_max.item() == pytest.approx(4096) and denoiser.sigmas[-2] < 2500
    sigma = torch.tensor([0.0, 1.0, 3000.0, 1e6])
    t = denoiser.sigma_to_t(sigma)
    assert t[0] == 0 and 998 < t[2] < 999 and t[3] == 999
    assert denoiser.get_sigmas(20).isfinite().all() and denoiser.get_sigmas().isfinite().all()
    out = denoiser(torch.randn(4, 3, 2, 2), sigma)
    assert out.isfinite().all() and out.abs().sum() > 0


def test_other_ends():
    table = K.external.DiscreteEpsDDPMDenoiser(
        network, torch.tensor([1.0, 0.5, 1e-9, 0.0]), False
    ).sigmas
    assert (table.diff() > 0).all() and table.isfinite().all() and 0 < table[0] < 1e-3
    close(table[1], torch.tensor(1.0))
    coarse = K.external.DiscreteEpsDDPMDenoiser(network, ALPHAS.bfloat16(), False)  # levels merge
    assert coarse.sigma_to_t(torch.logspace(-5, 3, 999)).isfinite().all()


# v-diffusion


def test_v_diffusion_time():
    denoiser = K.external.VDenoiser(network)
    sigma = torch.logspace(-3, 3, 50, dtype=torch.float64)
    close(denoiser.t_to_sigma(denoiser.sigma_to_t(sigma)), sigma, 1e-10)
    assert (
        denoiser.sigma_to_t(torch.tensor(1.0)) == 0.5
        and denoiser.t_to_sigma(torch.tensor(0.0)) == 0
    )
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        assert denoiser.t_to_sigma(torch.tensor(1.0, dtype=dtype)) > 1e6
    levels = denoiser.t_to_sigma(torch.linspace(1, 0, 11))
    assert (levels.diff() < 0).all() and levels[-1] == 0
    sampled = K.sampling.sample_euler(
        K.external.VDenoiser(truth('continuous')),
        torch.randn(2, 3) * levels[0],
        levels,
        disable=True,
    )
    assert (sampled - DATA.mean).abs().max() < 4


# How programs use them


def test_subclasses_say_how_their_network_is_called():
    class Unet(K.external.DiscreteEpsDDPMDenoiser):
        def get_eps(self, x, t, text, scale=1.0):
            return self.inner_model({'sample': x, 'text': text})['out'] * scale

    class UnetV(K.external.DiscreteVDDPMDenoiser):
        def get_v(self, *args, **kwargs):
            return -super().get_v(*args, **kwargs)

    x, text, sigma = torch.randn(2, 3), torch.randn(2, 3), torch.tensor([0.5, 2.0])
    eps = Unet(lambda batch: {'out': batch['text'] + batch['sample']}, ALPHAS, False)(
        x, sigma, text=text, scale=2.0
    )
    s = sigma[:, None]
    close(eps, x - s * 2 * (text + x / (1 + s**2).sqrt()))
    close(UnetV(lambda x, t: x, ALPHAS, True)(x, sigma), x / (1 + s**2) + s * x / (1 + s**2))


def test_scalings_keep_their_shapes():
    sigma = torch.tensor([0.5, 2.0])
    c_out, c_in = K.external.DiscreteEpsDDPMDenoiser(network, ALPHAS, False).get_scalings(sigma)
    close((c_out, c_in), (-sigma, 1 / (1 + sigma**2).sqrt()))
    for denoiser in (
        K.external.VDenoiser(network),
        K.external.DiscreteVDDPMDenoiser(network, ALPHAS, False),
    ):
        assert denoiser.sigma_data == 1 and denoiser.inner_model is network
        close(
            denoiser.get_scalings(sigma),
            (1 / (1 + sigma**2), -sigma / (1 + sigma**2).sqrt(), 1 / (1 + sigma**2).sqrt()),
        )


@pytest.mark.parametrize('name', DISCRETE)
def test_conditions_reach_the_model(name):
    def apply_model(x, t, cond, control=None, mode='off'):
        assert mode == 'on' and t.shape == (2,)
        return cond['shift'] + control

    denoiser = getattr(K.external, name)(latent(apply_model), quantize=True, device='cpu')
    x, shift = torch.randn(2, 3), torch.randn(2, 3)
    out = denoiser(x, torch.tensor(1.0), cond={'shift': shift}, control=1.0, mode='on')
    c_skip, c_out, _ = denoiser.scalings(torch.tensor(1.0))
    close(out, x * c_skip + (shift + 1) * c_out)


def test_gradients_flow():
    model = nn.Linear(3, 3).requires_grad_(False)
    for denoiser in (
        K.external.CompVisDenoiser(latent(lambda x, t, cond=None: model(x))),
        K.external.VDenoiser(lambda x, t: model(x)),
    ):
        x = torch.randn(2, 3, requires_grad=True)
        denoiser(x, torch.tensor([0.5, 2.0])).sum().backward()
        assert (x.grad.abs() > 0).all()


# Half precision


class Latent(nn.Module):
    """A network that fails on mixed dtypes and notes the time it is given."""

    def __init__(self):
        super().__init__()
        self.register_buffer('alphas_cumprod', ALPHAS)
        self.linear = nn.Linear(3, 3)

    def apply_model(self, x, t, cond=None):
        self.t = t
        return self.linear(x)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize('name', DISCRETE)
def test_casting_the_wrapper_leaves_the_table(name, dtype):
    denoiser = getattr(K.external, name)(Latent())
    sigmas, x, sigma = denoiser.sigmas.clone(), torch.randn(2, 3), torch.tensor([0.31, 9.7])
    exact, t = denoiser(x, sigma), denoiser.inner_model.t
    denoiser = nn.Sequential(denoiser).to(dtype)[0]
    assert denoiser.inner_model.linear.weight.dtype == dtype and 'sigmas' in denoiser.state_dict()
    assert torch.equal(denoiser.sigmas, sigmas) and denoiser.log_sigmas.dtype == torch.float32
    out = denoiser(x.to(dtype), sigma)
    assert out.dtype == dtype
    close(denoiser.inner_model.t.float(), t)
    close(out.float(), exact, 0.1)
    close(denoiser(x, sigma), exact, 0.1)


def test_a_plain_object_around_a_half_network():
    """As diffusers' pipelines hold it."""
    holder = latent(alphas=ALPHAS)
    holder.unet = nn.Linear(3, 3).bfloat16()
    holder.apply_model = lambda x, t, cond: holder.unet(x) + cond
    x, cond = torch.randn(2, 3), torch.ones(2, 3)
    out = K.external.CompVisDenoiser(holder)(
        x.bfloat16(), torch.tensor([0.5, 2.0]), cond=cond.bfloat16()
    )
    assert out.dtype == torch.bfloat16 and (out - x).abs().sum() > 0


def test_v_diffusion_in_half_precision():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.time, self.out = nn.Linear(1, 3), nn.Linear(3, 3)

        def forward(self, x, t):
            return self.out(x + self.time(t[:, None]))

    denoiser, x, sigma = K.external.VDenoiser(Net()), torch.randn(2, 3), torch.tensor([0.5, 2.0])
    exact = denoiser(x, sigma)
    out = denoiser.bfloat16()(x.bfloat16(), sigma)
    assert out.dtype == torch.bfloat16
    close(out.float(), exact, 0.03)
