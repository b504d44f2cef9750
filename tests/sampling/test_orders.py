"""Every registered sampler converges with the order it declares, on an exact mixture."""

import functools
import math

import pytest
import torch
from sampler_cases import without_noise
from stable_ids import stable_id

from k_diffusion import sampling
from k_diffusion.denoisers.analytic import Mixture
from k_diffusion.sampling.samplers.multistep import vp_clock

HIGH, LOW = 20.0, 0.05
MODEL = Mixture(
    torch.tensor([[1.0, 0.0], [-1.0, 0.7], [0.2, -1.2]], dtype=torch.float64),
    torch.tensor([0.3, 0.4, 0.5], dtype=torch.float64),
)
#: What is seen where it is not the declared order: the first step of a ramp hides an order above 3
#: (lms, UniPC, SA-Solver and the exponential predictor-corrector).
OBSERVED = {
    'lms': 3.37,
    'uni_pc': 3.84,
    'uni_pc_bh2': 3.84,
    'sa_solver': 3.84,
    'sa_solver_pece': 3.88,
    'exp_ab': 2.77,
    'dpmpp_3m': 2.77,
    'res_3m': 2.77,
    'abnorsett_4m': 2.52,
    'exp_pec': 3.68,
    'pec423_2h2s': 3.68,
    'pec433_2h3s': 3.67,
    'deis_4m': 3.4,
}
COUNTS = [32, 64, 128, 256]


@functools.cache
def start():
    return (
        torch.randn(16, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * HIGH
    )


@functools.cache
def converged(n=2000):
    """The end of the probability flow by the classical Runge-Kutta method in log sigma."""
    x, h = start(), math.log(LOW / HIGH) / n

    def slope(x, u):
        return x - MODEL(x, torch.full([len(x)], math.exp(u), dtype=torch.float64))

    for i in range(n):
        u = math.log(HIGH) + i * h
        k1 = slope(x, u)
        k2 = slope(x + h / 2 * k1, u + h / 2)
        k3 = slope(x + h / 2 * k2, u + h / 2)
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + slope(x + h * k3, u + h))
    return x


def schedule(n):
    return torch.linspace(math.log(HIGH), math.log(LOW), n + 1, dtype=torch.float64).exp()


def fitted_order(run):
    """The slope of the rms error over the number of steps."""
    n = torch.tensor(COUNTS, dtype=torch.float64).log()
    errors = torch.stack(
        [(run(count) - converged()).square().mean().sqrt() for count in COUNTS]
    ).log()
    n = n - n.mean()
    return -(n * errors).sum().item() / (n * n).sum().item()


#: Those that tend to the flow; ddpm's noise is part of it (test_law.py), and tables have a test of
#: their own (test_tables.py).
TO_THE_FLOW = [
    name
    for name, entry in sampling.SAMPLERS.items()
    if entry.order and name != 'ddpm' and entry.of not in ('exp_rk', 'rk')
]


@pytest.mark.parametrize('name', TO_THE_FLOW)
def test_declared_order(name):
    entry = sampling.SAMPLERS[name]

    def run(n):
        if name == 'dpm_adaptive':
            return entry.function(
                MODEL,
                start(),
                LOW,
                HIGH,
                disable=True,
                h_init=math.log(HIGH / LOW) / n,
                rtol=1e9,
                icoeff=0.0,
            )
        if name == 'dpm_fast':
            return entry.function(MODEL, start(), LOW, HIGH, 3 * n + 1, disable=True)
        return entry.function(MODEL, start(), schedule(n), disable=True, **without_noise(name))

    assert fitted_order(run) == pytest.approx(OBSERVED.get(name, entry.order), abs=0.2)


def identity(sigma):
    return sigma


@pytest.mark.parametrize(
    ('name', 'options', 'order'),
    [
        ('exp_ab', {'order': 1}, 1),
        ('exp_ab', {'order': 2}, 2.04),
        ('exp_ab', {'order': 3}, 2.77),
        ('exp_ab', {'order': 3, 'startup': 'res_2s'}, 3.05),
        ('res_multistep', {'order': 3}, 2.77),
        ('dpmpp_2m_sde', {'eta': 0.0, 'solver_type': 'midpoint'}, 2.03),
        ('dpmpp_2m_sde', {'eta': 0.0, 'solver_type': 'heun'}, 2.04),
        ('uni_pc', {'order': 1}, 1.98),
        ('uni_pc', {'order': 2, 'variant': 'bh1'}, 2.93),
        ('uni_pc', {'order': 2, 'variant': 'bh2'}, 3.08),
        ('uni_pc', {'order': 2, 'corrector': False}, 2.04),
        ('uni_pc', {'order': 3, 'corrector': False}, 2.77),
        ('deis', {'order': 1}, 1),
        ('deis', {'order': 2}, 1.94),
        ('deis', {'order': 4}, 3.4),
        ('lms', {'order': 1}, 1),
        ('lms', {'order': 2}, 1.94),
        ('lms', {'order': 3}, 2.88),
        ('ipndm', {'order': 1}, 1),
        ('ipndm', {'order': 2}, 1.97),
        ('ipndm', {'order': 3}, 1.91),
        ('ipndm_v', {'order': 2}, 1.94),
        ('gradient_estimation', {'ge_gamma': 1.5}, 1.97),
        ('heun', {'lower_order_final': 1}, 2),
        ('heun', {'euler_below': 1.0}, 1),
        ('zeab', {'order': 1}, 1),
        ('zeab', {'order': 2}, 1.96),
        ('zeab', {'order': 4}, 2.58),
        ('ipndm_v', {'order': 4}, 2.6),
        ('vab', {'order': 1}, 1),
        ('vab', {'order': 2}, 1.95),
        ('vab', {'order': 4}, 2.96),
        ('seeds_2', {'eta': 0.0, 'solver_type': 'phi_1'}, 1.97),
        ('res_2s', {'c2': 0.3}, 2),
        ('res_3s', {'c2': 0.5, 'c3': 1.0}, 3.02),
        ('res_3s', {'c2': 0.4, 'c3': 0.9}, 3.0),
        ('sa_solver', {'tau': 0.0, 'predictor_order': 2, 'corrector_order': 0}, 2.04),
        ('seeds_2', {'eta': 0.0, 'r': 1.0}, 1.97),
        ('er_sde', {'noise_scaler': identity, 'max_stage': 1}, 1),
        ('er_sde', {'noise_scaler': identity, 'max_stage': 2}, 1.99),
        ('er_sde', {'noise_scaler': identity, 'exact': True}, 3.05),
    ],
    ids=stable_id,
)
def test_order_of_options(name, options, order):
    function = sampling.SAMPLERS[name].function
    assert fitted_order(
        lambda n: function(MODEL, start(), schedule(n), disable=True, **options)
    ) == pytest.approx(order, abs=0.2)


def irregular(n):
    """Steps of log sigma that are long and short by turns."""
    steps = torch.tensor([1.4, 0.6], dtype=torch.float64).repeat(n // 2)
    share = torch.cat([steps.new_zeros(1), steps.cumsum(0)]) / n
    return (math.log(HIGH) + share * math.log(LOW / HIGH)).exp()


@pytest.mark.parametrize(
    ('name', 'options', 'order'),
    [
        ('ipndm', {'order': 2}, 1.0),
        ('ipndm_v', {}, 1.9),
        ('lms', {'order': 2}, 2.0),
        ('exp_ab', {'order': 2}, 2.0),
        ('deis', {'order': 2}, 2.0),
        ('uni_pc', {'order': 2}, 3.0),
        ('dpmpp_2m', {}, 2.0),
        ('zeab', {}, 2.9),
        ('vab', {}, 3.0),
        ('res_multistep_ancestral', {'eta': 0.0}, 2.0),
    ],
)
def test_order_on_irregular_schedules(name, options, order):
    function = sampling.SAMPLERS[name].function
    assert fitted_order(
        lambda n: function(MODEL, start(), irregular(n), disable=True, **options)
    ) == pytest.approx(order, abs=0.25)


def test_dpm_adaptive_keeps_its_tolerance():
    errors = []
    for tolerance in (1e-3, 1e-5, 1e-7):
        out = sampling.sample_dpm_adaptive(
            MODEL, start(), LOW, HIGH, rtol=tolerance, atol=tolerance, disable=True
        )
        errors.append((out - converged()).abs().max().item() / tolerance)
    assert max(errors) < 3


@pytest.mark.parametrize(
    ('sigmas', 'fitted'),
    [
        (sampling.get_sigmas_karras(8, 0.002, 80.0), True),
        (sampling.get_sigmas_flow(8), True),
        (sampling.get_sigmas_flow(4), False),
    ],
)
def test_the_clock_of_deis(sigmas, fitted):
    """It is 1 at the highest level and 1e-3 at the lowest as long as it can be and still rise
    all the way.
    """
    positive = sigmas[sigmas > 0].double()
    b, c = vp_clock(positive.tolist())
    t = torch.linspace(1e-3, 1, 1000, dtype=torch.float64)
    y = b * t + c * t**2 / 2
    assert (y.diff() > 0).all() and y[-1].item() == pytest.approx(
        positive[0].square().log1p().item()
    )
    assert (y[0].item() == pytest.approx(positive[-1].square().log1p().item())) == fitted


#: Model calls of ten steps where they are not ten times those of one.
CALLS = {'dpm_fast': 10, 'heunpp2': 27, 'sa_solver_pece': 19}


@pytest.mark.parametrize('name', sampling.SAMPLERS)
def test_declared_cost(name):
    entry, calls = sampling.SAMPLERS[name], 0

    def model(x, sigma):
        nonlocal calls
        calls += 1
        return MODEL(x, sigma)

    class Pair:
        def pair(self, x, sigma):
            return (model(x, sigma),) * 2

    arguments = {'sigmas': schedule(10), 'sigma_min': LOW, 'sigma_max': HIGH, 'n': 10}
    steps = list(
        sampling.iterate(
            entry,
            Pair() if sampling.SAMPLERS[name].needs_pair else model,
            start(),
            disable=True,
            **{key: arguments[key] for key in entry.takes},
        )
    )
    assert calls == steps[-1].nfe == CALLS.get(name, entry.nfe * len(steps))
