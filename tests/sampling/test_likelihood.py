"""The adaptive solver and the likelihood against closed forms."""

import math

import pytest
import torch

from k_diffusion import sampling
from k_diffusion.denoisers.analytic import Gaussian, Mixture
from k_diffusion.sampling.likelihood.divergence import Probes
from k_diffusion.sampling.likelihood.runge_kutta import dormand_prince


@pytest.mark.parametrize('tolerance', [1e-3, 1e-6, 1e-9])
def test_solver_keeps_its_tolerance(tolerance):
    y = (torch.tensor([[1.0, 2.0]], dtype=torch.float64), torch.tensor([0.0], dtype=torch.float64))
    (a, b), evaluations = dormand_prince(
        lambda t, y: (y[0] * t.cos()[:, None], y[0].sum(1)), y, 0.0, 5.0, tolerance, tolerance
    )
    torch.testing.assert_close(a, y[0] * math.exp(math.sin(5.0)), rtol=0, atol=20 * tolerance)
    assert 20 < evaluations < 2000 and b.item() > 0
    back, _ = dormand_prince(
        lambda t, y: (y[0] * t.cos()[:, None],), (a,), 5.0, 0.0, tolerance, tolerance
    )
    torch.testing.assert_close(back[0], y[0], rtol=0, atol=40 * tolerance)


def test_solver_has_order_five():
    errors = []
    for tolerance in (1e-5, 1e-10):
        y, evaluations = dormand_prince(
            lambda t, y: (-y[0],),
            (torch.ones(1, 1, dtype=torch.float64),),
            0.0,
            4.0,
            tolerance,
            0.0,
        )
        errors.append((math.log(evaluations), math.log(abs(y[0].item() - math.exp(-4)))))
    assert (errors[0][1] - errors[1][1]) / (errors[1][0] - errors[0][0]) > 4


def test_solver_refuses_nan_and_endless_runs():
    one = (torch.ones(1, 1),)
    with pytest.raises(ValueError, match='NaN or infinite near t=0'):
        dormand_prince(lambda t, y: (y[0] * math.nan,), one, 0.0, 1.0, 1e-4, 1e-4)
    with pytest.raises(ValueError, match='evaluations only reached t='):
        dormand_prince(lambda t, y: (y[0] ** 2,), one, 0.0, 2.0, 1e-6, 1e-6, max_evaluations=200)


@pytest.mark.parametrize('high', [5.0, 80.0])
def test_gaussian(high):
    model = Gaussian(
        torch.zeros(16, dtype=torch.float64), torch.linspace(0.2, 1.0, 16, dtype=torch.float64)
    )
    x = torch.randn(6, 16, dtype=torch.float64) * model.std
    ll, info = sampling.log_likelihood(model, x, 0.01, high)
    error = (ll - model.log_prob(x, 0.01)) / 16
    assert (
        error.abs().max() < (2e-2 if high == 5.0 else 1e-3) and info['fevals'] < 120
    )  # the prior ignores the data's own variance


class Rotated:
    """The denoiser of N(0, Q diag(std^2) Q^T), whose Jacobian is anything but diagonal."""

    def __init__(self, std, seed=0):
        turns = torch.randn(
            len(std), len(std), dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
        )
        self.axes, self.inner = torch.linalg.qr(turns)[0], Gaussian(torch.zeros_like(std), std)

    def __call__(self, x, sigma, **cond):
        return self.inner(x @ self.axes, sigma) @ self.axes.T

    def log_prob(self, x, sigma):
        return self.inner.log_prob(x @ self.axes, sigma)

    def draw(self, n, sigma):
        spread = (self.inner.std**2 + sigma**2).sqrt()
        return (torch.randn(n, len(spread), dtype=torch.float64) * spread) @ self.axes.T


LOW, HIGH = 0.01, 80.0
FULL = Rotated(torch.logspace(-1, 0, 16, dtype=torch.float64))
FLAT = Rotated(
    torch.cat([torch.ones(4, dtype=torch.float64), torch.zeros(12, dtype=torch.float64)])
)


def rms(ll, model, x):
    return ((ll - model.log_prob(x, LOW)) / x[0].numel()).square().mean().sqrt().item()


def turns_of(probes, matrix, shape, turns, n=3):
    """Return the estimates of the trace of a linear map in each turn, [turns, B, P]."""
    x = torch.randn(n, *shape, dtype=torch.float64, requires_grad=True)
    return torch.stack(
        [probes((x.flatten(1) @ matrix.T).view_as(x), x, turn) for turn in range(turns)]
    )


@pytest.mark.parametrize(
    'shape, turns', [((16,), 16), ((11,), 16), ((2, 3, 2), 16), ((1, 1, 4), 4), ((1,), 1)]
)
def test_a_set_of_probes_is_right_about_any_matrix(shape, turns):
    matrix = torch.randn(math.prod(shape), math.prod(shape), dtype=torch.float64)
    each = turns_of(Probes(2, seed=3), matrix, shape, 2 * turns)
    for block in each[:turns], each[turns:]:
        torch.testing.assert_close(block.mean(0), matrix.trace().expand(3, 2))
    if len(matrix) > 1:
        assert (
            each.std() > 0.1
            and (each[0, :, 0] != each[0, :, 1]).any()
            and (each[0] != each[turns]).any()
        )


def test_four_probes_are_right_about_pixels_that_know_their_neighbours():
    shape, at = (1, 6, 5), [(i, j) for i in range(6) for j in range(5)]
    near = torch.tensor([[max(abs(a - c), abs(b - d)) <= 1 for c, d in at] for a, b in at])
    matrix = torch.randn(30, 30, dtype=torch.float64) * near
    each = turns_of(Probes(1, seed=4), matrix, shape, 8)
    torch.testing.assert_close(each.view(2, 4, 3).mean(1), matrix.trace().expand(2, 3))
    assert (each[0] - matrix.trace()).abs().min() > 1e-3


def test_probes_that_change_beat_one_that_stays():
    x = FULL.draw(200, LOW)
    ours, info = sampling.log_likelihood(FULL, x, LOW, HIGH, steps=32, seed=1, data_std=0.5)
    stays, _ = sampling.log_likelihood(FULL, x, LOW, HIGH, seed=1)
    assert info['fevals'] == 128 and info['stderr'] is None
    assert rms(ours, FULL, x) < 0.02 and 10 * rms(ours, FULL, x) < rms(stays, FULL, x)


@pytest.mark.parametrize('model', [FULL, FLAT], ids=['full', 'flat'])
@pytest.mark.parametrize('std', [0.0, 0.5])
def test_the_exact_trace_leaves_the_solvers_error(model, std):
    x = model.draw(8, LOW)
    ll, info = sampling.log_likelihood(
        model, x, LOW, HIGH, steps=32, trace='exact', data_std=std, chunk=5
    )
    assert rms(ll, model, x) < 5e-4 and info['stderr'].abs().max() == 0
    alone, _ = sampling.log_likelihood(
        model, x, LOW, HIGH, steps=32, trace='exact', data_std=std, chunk=1
    )
    torch.testing.assert_close(alone, ll)


def test_a_mixture_with_the_exact_trace():
    means = torch.randn(6, 16, dtype=torch.float64)
    model = Mixture(means, torch.linspace(0.2, 0.5, 6, dtype=torch.float64))
    x = means[torch.arange(24) % 6] + 0.3 * torch.randn(24, 16, dtype=torch.float64)
    ll, _ = sampling.log_likelihood(
        model, x, LOW, HIGH, steps=32, trace='exact', data_mean=means.mean(0), data_std=1.0
    )
    assert rms(ll, model, x) < 2e-3
    finer, _ = sampling.log_likelihood(
        model, x, LOW, HIGH, steps=64, trace='exact', data_mean=means.mean(0), data_std=1.0
    )
    assert rms(finer, model, x) < rms(ll, model, x) / 4


def test_data_like_the_frame_need_no_steps():
    """The grid integrates the departure from a Gaussian; there is none here."""
    mean, std = (
        torch.linspace(-1, 1, 6, dtype=torch.float64),
        torch.linspace(0.3, 2, 6, dtype=torch.float64),
    )
    model = Gaussian(mean, std)
    x = mean + std * torch.randn(5, 6, dtype=torch.float64)
    ll, info = sampling.log_likelihood(model, x, LOW, 5.0, steps=1, data_mean=mean, data_std=std)
    torch.testing.assert_close(ll, model.log_prob(x, LOW))
    torch.testing.assert_close(info['latent'], model.flow(x, LOW, 5.0))
    adaptive, _ = sampling.log_likelihood(model, x, LOW, 5.0, data_mean=mean, data_std=std)
    torch.testing.assert_close(adaptive, model.log_prob(x, LOW), rtol=0, atol=5e-3)


@pytest.mark.parametrize(
    'options',
    [
        {'steps': 32, 'probes': 2, 'data_std': 0.5},
        {'steps': 32, 'probes': 4, 'data_std': 0.5},
        {'probes': 8},
    ],
    ids=str,
)
@pytest.mark.parametrize('name', ['full', 'mixture'])
def test_intervals_cover(options, name):
    torch.manual_seed(4)
    means = torch.randn(6, 16, dtype=torch.float64)
    mixture = Mixture(means, torch.linspace(0.2, 0.5, 6, dtype=torch.float64))
    points = means[torch.arange(300) % 6] + mixture.stds[torch.arange(300) % 6, None] * torch.randn(
        300, 16, dtype=torch.float64
    )
    model, x = (FULL, FULL.draw(300, LOW)) if name == 'full' else (mixture, points)
    ll, info = sampling.log_likelihood(model, x, LOW, HIGH, seed=1, **options)
    (low, high), true = info['interval'], model.log_prob(x, LOW)
    assert 0.91 <= ((low <= true) & (true <= high)).double().mean() <= 0.98
    assert ((low < ll - info['stderr']) & (ll + info['stderr'] < high)).all()


def test_standard_errors_are_those_of_the_mean():
    x = FULL.draw(1, LOW).expand(200, 16)
    for options in {'steps': 32, 'probes': 4, 'data_std': 0.5}, {'probes': 16}:
        ll, info = sampling.log_likelihood(FULL, x, LOW, HIGH, **options)
        assert info['stderr'].square().mean().sqrt().item() == pytest.approx(
            ll.std().item(), rel=0.2
        )


def test_an_item_is_the_same_alone():
    x = torch.cat([FULL.draw(3, LOW), FULL.draw(1, LOW) * 40])
    for options in {}, {'steps': 8}, {'steps': 8, 'probes': 3}:
        together, _ = sampling.log_likelihood(FULL, x, LOW, HIGH, seed=[5, 6, 7, 8], **options)
        for i, seed in enumerate([5, 6, 7, 8]):
            alone, _ = sampling.log_likelihood(
                FULL, x[i : i + 1], LOW, HIGH, seed=[seed], **options
            )
            torch.testing.assert_close(alone, together[i : i + 1], rtol=1e-9, atol=1e-9)
    other, _ = sampling.log_likelihood(FULL, x, LOW, HIGH, seed=[9, 9, 9, 9], steps=8)
    assert (other - together).abs().min() > 1e-3


@pytest.mark.parametrize(
    'options',
    [{'atol': 1e-7, 'rtol': 1e-7}, {'steps': 64}, {'steps': 64, 'data_std': 0.4}],
    ids=str,
)
def test_inversion_goes_there_and_back(options):
    x = FULL.draw(5, LOW)
    noise = sampling.invert(FULL, x, LOW, HIGH, **options)
    exact = FULL.inner.flow(x @ FULL.axes, LOW, HIGH) @ FULL.axes.T
    torch.testing.assert_close(noise, exact, rtol=2e-4, atol=1e-3)
    torch.testing.assert_close(
        sampling.invert(FULL, noise, HIGH, LOW, **options), x, rtol=0, atol=1e-3
    )
    _, info = sampling.log_likelihood(FULL, x, LOW, HIGH, **options)
    torch.testing.assert_close(info['latent'], noise, rtol=1e-5, atol=1e-4)


def test_conditions_reach_the_model_and_the_cap_holds():
    model = lambda x, sigma, mean: Gaussian(mean, torch.tensor(0.5))(x, sigma)
    x, mean = torch.randn(3, 2, 4), torch.randn(3, 1, 1)
    ll, _ = sampling.log_likelihood(
        model,
        x,
        LOW,
        HIGH,
        {'mean': mean},
        steps=32,
        data_mean=mean,
        data_std=0.5,
        dtype=torch.float64,
    )
    exact = Gaussian(mean.double(), torch.tensor(0.5, dtype=torch.float64)).log_prob(
        x.double(), LOW
    )
    assert ll.dtype == torch.float64
    torch.testing.assert_close(ll, exact, rtol=0, atol=2e-3)
    with pytest.raises(ValueError, match='evaluations only reached'):
        sampling.log_likelihood(model, x, LOW, HIGH, {'mean': mean}, max_evaluations=10)


def test_mixture_with_many_probes():
    """The divergence of a mixture is not diagonal, so one probe is right on average only."""
    model = Mixture(
        torch.tensor([[1.0, 0.0], [-1.0, 0.7]], dtype=torch.float64),
        torch.tensor([0.3, 0.4], dtype=torch.float64),
    )
    x = torch.tensor([[0.3, 0.2]], dtype=torch.float64).expand(400, 2)
    ll, _ = sampling.log_likelihood(model, x, 0.05, 60.0)
    exact = model.log_prob(x[:1], 0.05).item()
    assert ll.std() > 0.01 and ll.mean().item() == pytest.approx(
        exact, abs=4 * ll.std().item() / 20 + 2e-3
    )


def test_precision_and_refusals():
    model = lambda x, sigma, gain: gain * x / (1 + sigma[:, None] ** 2)
    ll, _ = sampling.log_likelihood(
        model,
        torch.ones(2, 4, dtype=torch.bfloat16),
        0.1,
        torch.tensor(20.0),
        extra_args={'gain': 1.0},
    )
    assert ll.dtype == torch.float32
    exact = torch.distributions.Normal(0, math.sqrt(1.01)).log_prob(torch.ones(4)).sum().item()
    assert ll[0].item() == pytest.approx(exact, abs=0.2)
    with pytest.raises(ValueError, match='0 < sigma_min < sigma_max'):
        sampling.log_likelihood(model, torch.ones(2, 4), 0.0, 20.0)
    with pytest.raises(ValueError, match='log_likelihood: the model returned NaN'):
        sampling.log_likelihood(lambda x, sigma: x * math.nan, torch.ones(2, 4), 0.1, 20.0)
    with pytest.raises(ValueError, match='no gradient with respect to x'):
        sampling.log_likelihood(
            torch.no_grad()(lambda x, sigma: x / 2), torch.ones(2, 4), 0.1, 20.0
        )
    with pytest.raises(ValueError, match='probes must be an integer >= 1; got 0'):
        sampling.log_likelihood(lambda x, sigma: x / 2, torch.ones(2, 4), 0.1, 20.0, probes=0)
    with pytest.raises(ValueError, match="got 'hutch'"):
        sampling.log_likelihood(lambda x, sigma: x / 2, torch.ones(2, 4), 0.1, 20.0, trace='hutch')
    with pytest.raises(ValueError, match=r'steps must be an integer >= 1 \(32 is usual\); got 0'):
        sampling.invert(lambda x, sigma: x / 2, torch.ones(2, 4), 0.1, 20.0, steps=0)
    with pytest.raises(ValueError, match='must be different levels'):
        sampling.invert(lambda x, sigma: x / 2, torch.ones(2, 4), 2.0, 2.0)
