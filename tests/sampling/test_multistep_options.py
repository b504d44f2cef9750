"""Options of multistep and ancestral samplers by which other programs differ, and the methods on
noise and velocity.
"""

import itertools
import math

import pytest
import torch
from mixture_runs import DRAWS, MODEL, SIGMAS, X, close, run
from scipy.integrate import quad

from k_diffusion import sampling
from k_diffusion.sampling.coefficients import split_step


def lagrange_at(nodes, j, u):
    return math.prod((u - node) / (nodes[j] - node) for k, node in enumerate(nodes) if k != j)


def level(sigma):
    return torch.full([len(X)], sigma, dtype=torch.float64)


@pytest.mark.parametrize('order', [2, 3, 4])
def test_zeab_integrates_the_noise_over_log_sigma(order):
    """Weights by quadrature; the step to 0 gives D."""
    x, slopes, nodes = X, [], []
    for sigma, sigma_next in itertools.pairwise(SIGMAS.tolist()):
        slopes, nodes = (
            [(x - MODEL(x, level(sigma))) / sigma, *slopes][:order],
            [math.log(sigma), *nodes][:order],
        )
        if sigma_next == 0:
            x = x - sigma * slopes[0]
            break
        for j, slope in enumerate(slopes):
            x = (
                x
                + quad(
                    lambda u: math.exp(u) * lagrange_at(nodes, j, u),  # noqa: B023
                    math.log(sigma),
                    math.log(sigma_next),
                )[0]
                * slope
            )
    close(run('zeab', order=order), x)


@pytest.mark.parametrize('order', [2, 3, 4])
def test_vab_is_adams_bashforth_of_a_flow_model(order):
    """In the model's own frame, z = (1 - t) x0 + t n: dz/dt = n - x0."""
    times = [sigma / (1 + sigma) for sigma in SIGMAS.tolist()]
    z, slopes, nodes = X * (1 - times[0]), [], []
    for t, t_next in itertools.pairwise(times):
        x0 = MODEL(z / (1 - t), level(t / (1 - t)))
        slopes, nodes = [(z - (1 - t) * x0) / t - x0, *slopes][:order], [t, *nodes][:order]
        for j, slope in enumerate(slopes):
            z = z + quad(lambda u: lagrange_at(nodes, j, u), t, t_next)[0] * slope  # noqa: B023
    close(run('vab', order=order), z)


@pytest.mark.parametrize(
    ('name', 'options'),
    [
        ('lms', {}),
        ('ipndm', {}),
        ('ipndm_v', {}),
        ('ipndm_v', {'order': 4}),
        ('deis', {}),
        ('gradient_estimation', {}),
    ],
)
def test_euler_to_zero(name, options):
    """The end is D at the last level, whose x is that of the sampler without the option."""
    *_, before, _ = sampling.iterate(name, MODEL, X, SIGMAS, disable=True, **options)
    out = run(name, euler_to_zero=True, **options)
    close(out, MODEL(before.x, level(SIGMAS[-2].item())))
    assert (out - run(name, **options)).abs().max() > 1e-4


def test_the_clock_of_deis_may_be_that_of_another_range():
    own = run(
        'deis', clock_range=(SIGMAS[-2].item(), torch.tensor(SIGMAS[0].item(), dtype=torch.float64))
    )
    assert torch.equal(own, run('deis'))
    assert (run('deis', clock_range=(0.002, 80.0)) - own).abs().max() > 1e-3
    for wrong in ((80.0, 0.002), (0.0, 1.0), (1.0,), 3.0, 'ab'):
        with pytest.raises(ValueError, match='clock_range must be'):
            run('deis', clock_range=wrong)


def test_er_sde_by_a_sum_of_points():
    """A left sum is wrong by its end values: half as much with twice the points."""
    exact = run('er_sde')
    errors = [
        (run('er_sde', points=points) - exact).abs().max().item() for points in (200, 400, 3200)
    ]
    assert errors[0] / errors[1] == pytest.approx(2, abs=0.05) and errors[0] / errors[
        2
    ] == pytest.approx(16, abs=0.3)
    assert errors[0] > 1e-5
    with pytest.raises(ValueError, match='points must be an integer >= 0; got -1'):
        run('er_sde', points=-1)


def test_four_slopes_of_ipndm_v():
    """Published weights (Zhang & Chen 2022, appendix H, as all programs have them), here for
    steps of 1, 2, 4 and 8 from 15 to 0 ...
    """

    def weights(past, sigma_next):
        out = []
        for j in range(len(past)):

            def model(x, sigma, j=j):  # a slope of 1 at the j-th newest level, else of 0
                return x - sigma[:, None] * (sigma[:, None] == past[j])

            knots = [*reversed(past), sigma_next]
            states = list(
                sampling.iterate(
                    'ipndm_v',
                    model,
                    torch.zeros(1, 1, dtype=torch.float64),
                    knots,
                    order=4,
                    disable=True,
                )
            )
            out.append((states[-1].x - states[-2].x).item() / (sigma_next - past[0]))
        return out

    # ... where h = -1, h_1 = -2, h_2 = -4, h_3 = -8: t = (1 - 1 / 36) / 2, s = (4/9 + 5/6 / 42) *
    # 21 / 168, g = 1 / 4.
    t, s, g, q = 35 / 72, (4 / 9 + 5 / 252) / 8, 1 / 4, 1 / 2
    expected = [
        1 + 1 / 4 + t + s,
        -1 / 4 - 1.5 * t - (1.5 + g) * s,
        t * q + (q + g * 1.5) * s,
        -g * q * s,
    ]
    assert weights([1.0, 3.0, 7.0, 15.0], 0.0) == pytest.approx(expected, abs=1e-12)
    assert sum(expected) == pytest.approx(1)  # and not where the steps have no common ratio
    assert abs(sum(weights([1.0, 3.0, 8.0, 15.0], 0.0)) - 1) > 0.004


@pytest.mark.parametrize(
    ('sigma', 'sigma_next', 'eta'),
    [
        (10.0, 4.0, 1.0),
        (10.0, 4.0, 0.3),
        (4096.0, 9.0, 0.7),
        (0.3, 0.02, 1.0),
        (5.0, 1.0, 9.0),
        (5.0, 0.0, 1.0),
    ],
)
def test_the_split_in_flow_time(sigma, sigma_next, eta):
    t, t_next = sigma / (1 + sigma), sigma_next / (1 + sigma_next)
    t_down = max(0.0, t_next * (1 + (t_next / t - 1) * eta))
    down, up = split_step(sigma, sigma_next, eta, 'flow')
    assert down == pytest.approx(t_down / (1 - t_down)) and math.hypot(down, up) == pytest.approx(
        sigma_next
    )
    assert split_step(sigma, sigma_next, 0.0, 'flow') == (sigma_next, 0.0)
    with pytest.raises(ValueError, match="unknown down 'flaw', did you mean 'flow'"):
        split_step(sigma, sigma_next, eta, 'flaw')


@pytest.mark.parametrize('stages', [1, 2])
def test_ancestral_steps_of_a_flow_model(stages):
    """In the model's own frame: to t_down, then what brings signal and noise to t', by one stage
    or by two in log-SNR.
    """
    eta, draws = 0.8, iter(DRAWS)
    times = [sigma / (1 + sigma) for sigma in SIGMAS.tolist()]
    z = X * (1 - times[0])

    def estimate(z, t):
        return MODEL(z / (1 - t), level(t / (1 - t)))

    for t, t_next in itertools.pairwise(times):
        x0 = estimate(z, t)
        t_down = t_next * (1 - eta * (1 - t_next / t))
        if stages == 2 and t_next:
            middle = 1 / (1 + math.sqrt((1 - t) / t * (1 - t_down) / t_down))
            x0 = estimate(middle / t * z + (1 - middle / t) * x0, middle)
        z = t_down / t * z + (1 - t_down / t) * x0
        if t_next:
            gain = (1 - t_next) / (1 - t_down)
            z = gain * z + math.sqrt(t_next**2 - (gain * t_down) ** 2) * next(draws)
    close(run('euler_ancestral' if stages == 1 else 'dpmpp_2s_ancestral', eta=eta, down='flow'), z)


def test_weights_that_are_not_known():
    with pytest.raises(ValueError, match="unknown solver_type 'phi_3'"):
        run('seeds_2', solver_type='phi_3')


def test_sa_solver_lowers_its_order_to_the_levels_left():
    """The last step but one is Euler's; and a corrector left with the new value alone takes
    that.
    """
    *_, before, _, _ = sampling.iterate('exp_ab', MODEL, X, SIGMAS, disable=True, order=2)
    tail = sampling.sample_euler(MODEL, before.x, SIGMAS[-3:], disable=True)
    options = {'tau': 0.0, 'corrector_order': 0, 'predictor_order': 2}
    close(run('sa_solver', lower_order_final=True, **options), tail)
    assert (run('sa_solver', **options) - tail).abs().max() > 1e-3
    first = MODEL(X, level(5.0))
    second = MODEL(first + (X - first) / 5, level(1.0))
    out = sampling.sample_sa_solver_pece(
        MODEL,
        X,
        [5.0, 1.0, 0.0],
        disable=True,
        tau=0.0,
        predictor_order=1,
        corrector_order=2,
        lower_order_final=True,
    )
    close(out, MODEL(second + (X - second) / 5, level(1.0)))
