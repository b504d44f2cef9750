"""The steps of stochastic samplers as Gaussians: against closed forms, the densities of whole
paths, and the noise that a run drew.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from scipy.stats import multivariate_normal

import k_diffusion as K
from k_diffusion.sampling import Transitions, iterate, transition

LEVELS = [10.0, 5.0, 3.0, 1.4, 0.6, 0.2, 0.0]
MEAN, STD = 0.7, 0.5
#: The samplers whose steps are not Gaussian, or known before the run.
OTHERS = {'dpmpp_sde', 'seeds_2', 'seeds_3', 'exp_heun_2_x0_sde', 'restart', 'dpm_adaptive'}
#: Those that draw noise when asked to at their start alone.
CHURNED = {'euler', 'heun', 'dpm_2'}
GAUSSIAN = sorted(
    entry.name
    for entry in K.sampling.catalogue()
    if entry.noise and entry.name not in OTHERS | CHURNED
)


def levels_of(entry):
    if 'sigmas' in entry.takes:
        return {'sigmas': LEVELS}
    return {'sigma_min': 0.2, 'sigma_max': 10.0, 'n': 7}


def options_of(entry):
    options = {'eta': 0.8} if 'eta' in entry.options else {}
    if entry.name == 'flow_map':
        options['gamma'] = 0.8
    return options | ({'interval': (0.0, 1.0)} if 'tau' in entry.options else {})


class Curved:
    """A denoiser that no sampler is exact for, with a weight."""

    def __init__(self, weight=0.8):
        self.weight, self.calls = weight, 0

    def __call__(self, x, sigma):
        self.calls += 1
        return torch.tanh(self.weight * x.roll(1, 1) / (1 + sigma[:, None]))

    def pair(self, x, sigma):
        return self(x, sigma), torch.sin(self.weight * x) / (1 + sigma[:, None])


class Affine:
    """D of Gaussian data with mean MEAN and standard deviation STD."""

    def __call__(self, x, sigma):
        share = STD**2 / (STD**2 + sigma[:, None] ** 2)
        return MEAN + share * (x - MEAN)

    def pair(self, x, sigma):
        return self(x, sigma), self(x, sigma)


def run_path(entry, model, x, noises):
    """The states of a run with these draws, the first one included."""
    remaining = iter(noises)
    states = iterate(
        entry,
        model,
        x,
        **levels_of(entry),
        **options_of(entry),
        noise_sampler=lambda *_: next(remaining),
    )
    return [x, *(state.x.clone() for state in states)]


def log_normal(x, mean, std):
    return -(((x - mean) / std) ** 2) / 2 - math.log(std) - math.log(2 * math.pi) / 2


@pytest.mark.parametrize('name', GAUSSIAN)
def test_the_noise_of_a_run_is_found_again(name):
    entry = K.sampling.find_sampler(name)
    steps = Transitions(name, **levels_of(entry), **options_of(entry))
    generator = torch.Generator().manual_seed(0)
    x, *noises = torch.randn(20, 3, 5, dtype=torch.float64, generator=generator)
    model = Curved()
    states = run_path(entry, model, 10 * x, noises)
    assert len(steps) == len(states) - 1
    noise_iterator = iter(noises)
    for i, std in enumerate(steps.stds):
        step = steps.transition(model, states, i)
        assert step.std == std
        if std:
            noise = (states[i + 1] - step.mean) / std
            assert (noise - next(noise_iterator)).abs().max() < 1e-12
        else:
            assert (states[i + 1] - step.mean).abs().max() < 1e-12


def ddim_step(sigma, sigma_next, eta):
    up = eta * sigma_next * math.sqrt(1 - (sigma_next / sigma) ** 2)
    down = math.sqrt(sigma_next**2 - up**2)
    return down / sigma, up


def sde_step(sigma, sigma_next, eta):
    return (sigma_next / sigma) ** (1 + eta), sigma_next * math.sqrt(
        1 - (sigma_next / sigma) ** (2 * eta)
    )


def er_step(sigma, sigma_next):
    def phi(s):  # Cui et al. 2023, eq. 26: sigma (exp(sigma^0.3) + 10)
        return s * (math.exp(s**0.3) + 10)

    share = phi(sigma_next) / phi(sigma)
    return share, math.sqrt(sigma_next**2 - (share * sigma) ** 2)


def vp_time(sigma):
    return (math.sqrt(0.01 + 39.8 * math.log(1 + sigma**2)) - 0.1) / 19.9


def tcd_step(sigma, sigma_next):
    t = 0.7 * vp_time(sigma_next)
    sigma_s = math.sqrt(math.exp(0.1 * t + 9.95 * t * t) - 1)
    return sigma_s / sigma, math.sqrt(sigma_next**2 - sigma_s**2)


#: (sampler, options, a step from sigma to sigma_next as the weight of x and the deviation of the
#: noise, from the papers), for x' = weight x + (1 - weight) D + noise.
FIRST_ORDER = [
    ('euler_ancestral', {'eta': 0.6}, lambda s, t: ddim_step(s, t, 0.6)),
    ('ddim', {'eta': 0.3}, lambda s, t: ddim_step(s, t, 0.3)),
    ('ddpm', {}, lambda s, t: ddim_step(s, t, 1.0)),
    ('exp_ab', {'order': 1, 'eta': 0.7}, lambda s, t: sde_step(s, t, 0.7)),
    ('sa_solver', {'predictor_order': 1, 'corrector_order': 0, 'interval': (0, 1), 'tau': 0.5},
     lambda s, t: sde_step(s, t, 0.25)),
    ('er_sde', {'max_stage': 1}, er_step),
    ('lcm', {}, lambda s, t: (0.0, t)),
    ('tcd', {'gamma': 0.3}, tcd_step),
]  # fmt: skip


@pytest.mark.parametrize(
    ('name', 'options', 'rule'), FIRST_ORDER, ids=lambda value: str(value)[:24]
)
def test_first_order_steps_have_their_closed_form(name, options, rule):
    steps = Transitions(name, LEVELS, **options)
    x = torch.tensor([[-3.0, 0.4], [1.0, 8.0]], dtype=torch.float64)
    x_next = torch.tensor([[-2.0, 0.1], [0.5, 3.0]], dtype=torch.float64)
    for i, (sigma, sigma_next) in enumerate(itertools.pairwise(LEVELS[:-1])):
        weight, std = rule(sigma, sigma_next)
        share = STD**2 / (STD**2 + sigma**2)
        mean = weight * x + (1 - weight) * (MEAN + share * (x - MEAN))
        step = steps.transition(Affine(), [x] * (i + 1), i)
        assert (step.mean - mean).abs().max() < 1e-10
        assert math.isclose(step.std, std, rel_tol=1e-9)
        assert step.sigma_next == sigma_next
        expected = log_normal(x_next, mean, std).sum(1)
        assert torch.allclose(step.log_prob(x_next), expected, rtol=1e-9)


@pytest.mark.parametrize('name', ['ddpm', 'euler_ancestral'])
def test_ddpm_steps_of_one_point_are_its_posterior(name):
    # Data in one point c: x' given x is the posterior of N(c, s'^2) after x ~ N(x', s^2 - s'^2).
    c, sigma, sigma_next = 0.3, 3.0, 1.4
    prior, noise = sigma_next**2, sigma**2 - sigma_next**2
    variance = 1 / (1 / prior + 1 / noise)
    x = torch.tensor([[2.0]], dtype=torch.float64)
    step = transition(name, lambda x, sigma: torch.full_like(x, c), [x], [sigma, sigma_next])
    assert math.isclose(step.mean.item(), variance * (c / prior + 2.0 / noise), rel_tol=1e-9)
    assert math.isclose(step.std, math.sqrt(variance), rel_tol=1e-9)


@pytest.mark.parametrize('name', GAUSSIAN)
def test_a_path_has_the_density_of_all_its_states(name):
    # On Gaussian data a run maps its draws to its states linearly, so that they are jointly normal.
    # The map is that of the sampler itself, run on one draw at a time.
    entry = K.sampling.find_sampler(name)
    steps = Transitions(name, **levels_of(entry), **options_of(entry))
    noisy = [i for i, std in enumerate(steps.stds) if std]
    indices = [
        0,
        *(i + 1 for i in noisy),
    ]  # the start, and the states that are not a function of it
    n = len(indices)
    draws = torch.cat([torch.zeros(1, n), torch.eye(n)]).double()
    runs = run_path(entry, Affine(), 10 * draws[:, :1], [z[:, None] for z in draws.T[1:]])
    runs = torch.cat([runs[i] for i in indices], 1)
    mean, maps = runs[0], (runs[1:] - runs[0]).T
    path = mean + maps @ torch.linspace(-1.5, 2, n).double()
    expected = multivariate_normal(mean.numpy(), (maps @ maps.T).numpy()).logpdf(path.numpy())
    states = run_path(
        entry,
        Affine(),
        path[:1, None],
        [torch.full((1, 1), z) for z in torch.linspace(-1.5, 2, n)[1:]],
    )
    log_density = log_normal(states[0], 0.0, 10.0).item() + sum(
        steps.transition(Affine(), states, i).log_prob(states[i + 1]).item() for i in noisy
    )
    assert math.isclose(log_density, expected, abs_tol=1e-6)


@pytest.mark.parametrize(
    ('name', 'options'),
    [
        ('euler_ancestral', {}),
        ('dpmpp_2m_sde', {}),
        ('dpmpp_2s_ancestral', {}),
        ('sa_solver', {'interval': (0, 1)}),
        ('er_sde', {}),
        ('res_multistep_ancestral_cfg_pp', {}),
    ],
)
def test_gradients_reach_the_model_through_the_history(name, options):
    generator = torch.Generator().manual_seed(1)
    states = list(torch.randn(5, 2, 3, dtype=torch.float64, generator=generator))

    def value(weight):
        step = transition(name, Curved(weight), states[:4], LEVELS, **options)
        return step.log_prob(states[4]).sum()

    weight = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    value(weight).backward()
    step = 1e-5
    slope = (value(0.8 + step) - value(0.8 - step)) / (2 * step)
    assert abs(slope) > 1e-3
    assert math.isclose(weight.grad.item(), slope.item(), rel_tol=1e-7)


def test_the_model_is_asked_for_what_a_step_needs():
    states = list(torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(2)))
    for name, options, calls in [
        ('ddpm', {}, 1),
        ('dpmpp_2m_sde', {}, 2),
        ('dpmpp_2s_ancestral', {}, 2),
        ('exp_ab', {'eta': 1.0}, 3),
    ]:
        model = Curved()
        transition(name, model, states, LEVELS, **options)
        assert model.calls == calls, name
    steps, model, answers = Transitions('exp_ab', LEVELS, eta=1.0), Curved(), {}
    for i in range(5):
        steps.transition(model, states, i, answers=answers)
    assert model.calls == 5


def test_conditions_reach_the_model():
    x = torch.zeros(2, 3)
    step = transition(
        'ddpm', lambda x, sigma, shift: x + shift, [x], [2.0, 1.0], extra_args={'shift': 4.0}
    )
    assert torch.allclose(step.mean, torch.full_like(x, 4.0 * 3 / 4))  # 1 - s'^2 / s^2


def test_high_levels_keep_the_states_in_float64_and_the_model_in_float32():
    sigmas = [20000.0, 3000.0, 10.0, 1.0, 0.0]
    dtypes = []

    def model(x, sigma):
        dtypes.append((x.dtype, sigma.dtype))
        return x / (1 + sigma[:, None] ** 2)

    x = 20000 * torch.randn(1, 4, generator=torch.Generator().manual_seed(3))
    noise = torch.Generator().manual_seed(4)
    states = [x, *(state.x for state in iterate('ddpm', model, x, sigmas, generator=noise))]
    assert states[1].dtype == torch.float64
    steps = Transitions('ddpm', sigmas)
    values = [steps.transition(model, states, i).log_prob(states[i + 1]) for i in range(3)]
    assert all(value.isfinite() for value in values)
    assert set(dtypes) == {(torch.float32, torch.float32)}


def test_divergence_is_that_of_two_gaussians():
    x = torch.zeros(1, 2, dtype=torch.float64)
    one, other = (
        transition('lcm', lambda x, sigma, c=c: x + c, [x], [2.0, 1.5]) for c in (0.0, 0.6)
    )
    expected = torch.distributions.kl_divergence(
        torch.distributions.Normal(one.mean, 1.5), torch.distributions.Normal(other.mean, 1.5)
    ).sum()
    assert math.isclose(one.divergence(other).item(), expected.item(), rel_tol=1e-12)
    assert torch.equal(one.sample(torch.ones_like(x)), torch.full_like(x, 1.5))


@pytest.mark.parametrize('name', sorted(OTHERS))
def test_other_steps_are_refused(name):
    entry = K.sampling.find_sampler(name)
    levels = {'sigma_min': 0.2, 'sigma_max': 10.0} if name == 'dpm_adaptive' else {'sigmas': LEVELS}
    options = {'eta': 1.0} if 'eta' in entry.options else {}
    if entry.name == 'flow_map':
        options['gamma'] = 0.8
    with pytest.raises(ValueError, match='adds noise before a call|follow from the answers'):
        Transitions(name, **levels, **options)


@pytest.mark.parametrize('name', sorted(CHURNED))
def test_churned_steps_are_refused(name):
    with pytest.raises(ValueError, match='adds noise before a call in step 0'):
        Transitions(name, LEVELS, s_churn=5.0)


def test_steps_without_a_density_are_refused():
    x = torch.zeros(1, 2)
    with pytest.raises(ValueError, match='draws none with these options'):
        Transitions('ddim', LEVELS)
    with pytest.raises(ValueError, match='std must be above 0'):
        transition('ddpm', Affine(), [x] * 6, LEVELS).log_prob(x)
    with pytest.raises(ValueError, match='step must be from 0 to 5; got 6'):
        transition('ddpm', Affine(), [x] * 7, LEVELS)
    with pytest.raises(ValueError, match='states must hold those before the steps 0 to 3'):
        transition('ddpm', Affine(), [x] * 2, LEVELS, step=3)
    with pytest.raises(ValueError, match='shape of the mean'):
        transition('ddpm', Affine(), [x], LEVELS).log_prob(x[:, :1])
    with pytest.raises(ValueError, match='got seed'):
        transition('ddpm', Affine(), [x], LEVELS, seed=0)
    with pytest.raises(ValueError, match='whose steps are not known'):
        transition(lambda model, x, sigmas: x, Affine(), [x], LEVELS)


def test_a_body_that_is_not_linear_is_refused():
    def sample_squared(steps, x, *, s_noise=1.0):
        """Square the estimate."""
        for step in steps:
            denoised = yield from step.ask(x)
            x = step.add_noise(denoised**2, step.sigma_next)
            x = yield x
        return x

    with pytest.raises(ValueError, match='squared is not with these options'):
        Transitions(K.sampling.make_sampler(sample_squared, 'squared', 1, noise='path'), LEVELS)
