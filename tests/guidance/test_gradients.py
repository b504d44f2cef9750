"""Guidance by gradients and by measurements, against exact posteriors."""

import itertools

import pytest
import torch

import k_diffusion as K
from k_diffusion.denoisers.analytic import Gaussian, Mixture
from k_diffusion.guidance import (
    blended_noise,
    classifier_guidance,
    clip_guidance,
    inpainting,
    loss_guidance,
    partial_noise,
    posterior_sampling,
    pseudo_inverse,
    spherical_distance,
    time_travel,
    views,
)
from k_diffusion.guidance.views import uniform

SPREAD = 0.5
DATA = Gaussian(torch.zeros(6), torch.full((6,), SPREAD, dtype=torch.float64))
SIGMA = torch.tensor([0.05, 0.7, 20.0], dtype=torch.float64)


def noisy(n=3):
    return torch.randn(n, 6, dtype=torch.float64) * SIGMA[:n, None]


def posterior(operator, y, noise, x, sigma):
    """E[clean | x, y] of DATA by linear algebra, one item after another."""
    out = []
    for xi, si in zip(x, sigma):
        precision = (
            torch.eye(6, dtype=x.dtype) * (1 / SPREAD**2 + 1 / si**2)
            + operator.T @ operator / noise**2
        )
        out.append(torch.linalg.solve(precision, xi / si**2 + operator.T @ y / noise**2))
    return torch.stack(out)


@pytest.mark.parametrize('noise', [1e-4, 0.3])
def test_the_pseudo_inverse_is_exact_on_a_gaussian(noise):
    operator, y, x = (
        torch.randn(3, 6, dtype=torch.float64),
        torch.randn(3, dtype=torch.float64),
        noisy(),
    )
    guided = pseudo_inverse(DATA, lambda clean: clean @ operator.T, y, SPREAD, noise)
    torch.testing.assert_close(
        guided(x, SIGMA), posterior(operator, y, noise, x, SIGMA), rtol=1e-5, atol=1e-6
    )


def test_orthonormal_measurements_need_no_solving():
    operator, y, x = (
        torch.eye(6, dtype=torch.float64)[[1, 4]],
        torch.randn(2, dtype=torch.float64),
        noisy(),
    )
    either = [
        pseudo_inverse(DATA, lambda clean: clean @ operator.T, y, SPREAD, 0.2, orthonormal=o)(
            x, SIGMA
        )
        for o in (True, False)
    ]
    torch.testing.assert_close(*either)
    by_gradient = posterior_sampling(DATA, lambda clean: clean @ operator.T, y, 1.0, SPREAD, 0.2)(
        x, SIGMA
    )
    torch.testing.assert_close(by_gradient, either[0])


def test_posterior_sampling_meets_a_measurement_that_is_not_linear():
    data = Mixture(torch.tensor([[2.0, 0.0], [-2.0, 0.0], [0.0, 2.0]]), torch.full((3,), 0.3))
    guided = posterior_sampling(
        data, lambda clean: clean.norm(dim=1, keepdim=True), torch.tensor([[2.6]]), 0.5, 1.0
    )
    x = torch.randn(200, 2) * 20
    lengths = [
        K.sampling.sample_heun(
            f, x, K.sampling.get_sigmas_karras(30, 0.02, 20.0), disable=True
        ).norm(dim=1)
        for f in (data, guided)
    ]
    assert (lengths[1] - 2.6).abs().mean() < 0.1 < 0.3 < (lengths[0] - 2.6).abs().mean()


def test_inpainting_keeps_what_is_known_and_fits_the_rest():
    torch.manual_seed(1)
    means = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=2)))[
        [0, 3]
    ]  # both pixels agree
    data, image, mask = (
        Mixture(means, torch.full((2,), 0.1)),
        torch.tensor([1.0, 0.0]),
        torch.tensor([1.0, 0.0]),
    )
    x, sigmas = torch.randn(100, 2) * 20, K.sampling.get_sigmas_karras(40, 0.01, 20.0)
    plain, moved = (
        K.sampling.sample_heun(inpainting(data, image, mask, spread), x, sigmas, disable=True)
        for spread in (None, 1.0)
    )
    assert torch.allclose(plain[:, 0], torch.ones(100)) and torch.allclose(
        moved[:, 0], torch.ones(100)
    )
    assert (moved[:, 1] > 0.5).float().mean() > 0.95 and (plain[:, 1] > 0.5).float().mean() > 0.6
    nothing = inpainting(data, image, torch.zeros(2))(x, torch.full((100,), 3.0))
    assert torch.equal(nothing, data(x, torch.full((100,), 3.0)))


# Losses and classifiers


def tilt(denoised, sigma):
    return ((denoised - 1) ** 2).sum(1)


def test_a_loss_is_followed_in_proportion_to_what_is_unknown():
    x = noisy()
    guided = loss_guidance(DATA, tilt, 0.01)(x, SIGMA)
    variance = (SPREAD**2 * SIGMA**2 / (SPREAD**2 + SIGMA**2))[:, None]
    expected = DATA(x, SIGMA) - 0.01 * variance * 2 * (
        DATA(x, SIGMA) - 1
    )  # sigma^2 J = the posterior variance
    torch.testing.assert_close(guided, expected)
    torch.testing.assert_close(
        loss_guidance(DATA, tilt, 0.01, through=False, spread=SPREAD)(x, SIGMA), expected
    )
    moved = loss_guidance(DATA, tilt, 0.3, spread=SPREAD)(x, SIGMA) - DATA(x, SIGMA)
    torch.testing.assert_close(moved.square().mean(1).sqrt(), 0.3 * variance[:, 0].sqrt())


def test_scale_0_and_a_wide_clamp_are_no_ops_to_the_last_bit():
    x = noisy()
    assert torch.equal(loss_guidance(DATA, tilt, 0.0)(x, SIGMA), DATA(x, SIGMA))
    assert torch.equal(
        loss_guidance(DATA, tilt, 1.0, clamp=(-1e3, 1e3))(x, SIGMA),
        loss_guidance(DATA, tilt, 1.0)(x, SIGMA),
    )
    assert torch.equal(
        posterior_sampling(DATA, lambda c: c, torch.zeros(6), 0.0)(x, SIGMA), DATA(x, SIGMA)
    )
    assert torch.equal(
        classifier_guidance(DATA, None, 0.0)(x, SIGMA, class_cond=torch.ones(3)), DATA(x, SIGMA)
    )
    assert loss_guidance(DATA, tilt, 1.0, clamp=(-0.1, 0.1))(x, SIGMA).abs().max() <= 0.1


def test_an_exact_classifier_leads_to_the_class():
    """Guided by the true p(y | x, sigma), the mixture's denoiser becomes that of the component."""
    means, stds = (
        torch.tensor([[2.0, 0.0], [-1.0, 1.0], [0.0, -2.0]], dtype=torch.float64),
        torch.tensor([0.3, 0.5, 0.4], dtype=torch.float64),
    )
    mixture, sigma = Mixture(means, stds), torch.tensor([0.2, 1.0, 5.0], dtype=torch.float64)
    label, x = torch.tensor([0, 2, 1]), torch.randn(3, 2, dtype=torch.float64) * 3

    def log_prob(x, sigma, y):
        variances = [s**2 + sigma**2 for s in stds]
        joint = torch.stack(
            [-((x - m) ** 2).sum(1) / (2 * v) - v.log() for m, v in zip(means, variances)], 1
        )
        return joint.log_softmax(1).gather(1, y[:, None])[:, 0]

    actual = classifier_guidance(mixture, log_prob)(x, sigma, class_cond=label)
    want = torch.cat(
        [
            Gaussian(means[y], stds[y].expand(2))(x[i : i + 1], sigma[i : i + 1])
            for i, y in enumerate(label)
        ]
    )
    torch.testing.assert_close(actual, want)
    with pytest.raises(ValueError, match="with the condition 'class_cond'"):
        classifier_guidance(mixture, log_prob)(x, sigma)


# CLIP and its views


def test_views_are_a_function_of_the_level_and_the_seed():
    images, sigma = torch.rand(3, 2, 24, 20), torch.tensor([0.3, 2.0, 7.0])
    crops = views(images, 8, sigma, 4, seed=5)
    assert crops.shape == (12, 2, 8, 8)
    torch.testing.assert_close(views(images[1:2], 8, sigma[1:2], 4, seed=5), crops[1::3])
    assert not torch.allclose(views(images, 8, sigma, 4, seed=6), crops) and not torch.allclose(
        crops[3:6], crops[6:9]
    )
    flat = views(torch.full((3, 2, 24, 20), 0.25), 8, sigma, 4)
    torch.testing.assert_close(flat, torch.full_like(flat, 0.25))


def test_the_numbers_behind_the_views_are_uniform():
    u = uniform(torch.linspace(0.01, 80, 20000), 3, 3)
    assert u.min() >= 0 and u.max() < 1
    histogram = torch.histc(u, 16, 0, 1) / u.numel() * 16
    assert (histogram - 1).abs().max() < 0.05 and torch.corrcoef(u.T).fill_diagonal_(
        0
    ).abs().max() < 0.03
    assert len(u[:, 0].unique()) > 19000


def test_the_distance_is_half_the_squared_angle():
    a, b = (
        torch.tensor([[3.0, 0.0], [1.0, 1.0], [2.0, 0.0]]),
        torch.tensor([[0.0, 5.0], [1.0, 1.0], [-1.0, 1e-3]]),
    )
    angles = torch.tensor([torch.pi / 2, 0.0, torch.pi - 1e-3])
    torch.testing.assert_close(spherical_distance(a, b), angles**2 / 2, atol=1e-3, rtol=1e-3)


def test_clip_guidance_turns_the_estimate_to_its_target():
    """An 'encoder' that sees two colours: samples of two-coloured noise lean to the colour asked
    for.
    """

    def encode(pictures):
        return pictures.mean((2, 3)) + torch.tensor([0.01, 0.02])

    data = Gaussian(torch.zeros(2, 8, 8), torch.full((2, 8, 8), 0.5))
    x, sigma = torch.randn(4, 2, 8, 8) * 2, torch.full((4,), 2.0)
    red, green = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    means = [
        clip_guidance(data, encode, target, None, 50.0, 8, 2)(x, sigma).mean((2, 3))
        for target in (red, green)
    ]
    assert (means[0][:, 0] - means[0][:, 1] > means[1][:, 0] - means[1][:, 1]).all()
    both = clip_guidance(
        data, encode, torch.cat([red, green]), torch.tensor([1.0, 0.0]), 50.0, 8, 2
    )(x, sigma)
    torch.testing.assert_close(both.mean((2, 3)), means[0])
    own = clip_guidance(data, encode, red, None, 50.0, 8, 2)(
        x, sigma, clip_targets=green.expand(4, 1, 2)
    )
    torch.testing.assert_close(own.mean((2, 3)), means[1])
    assert torch.equal(clip_guidance(data, encode, red, scale=0.0)(x, sigma), data(x, sigma))


# From pictures to pictures


def test_partial_noise_and_variations():
    image, noise, sigmas = (
        torch.randn(2, 4, 4),
        torch.randn(5, 2, 4, 4),
        K.sampling.get_sigmas_karras(10, 0.1, 10.0),
    )
    x = partial_noise(image, sigmas[6:], noise)
    assert torch.allclose(x, image + noise * sigmas[6]) and torch.equal(
        partial_noise(image, sigmas[10:], noise)[3], image
    )
    a, b = torch.randn(2, 50000)
    mixed = blended_noise(a, b, 0.3)
    assert (
        abs(mixed.std() - 1) < 0.02 and 0.85 < torch.corrcoef(torch.stack([a, mixed]))[0, 1] < 0.93
    )
    ends = blended_noise(a[None], b[None], torch.tensor([0.0]))
    assert torch.equal(ends[0], a)
    with pytest.raises(ValueError, match='must have the shape of the image'):
        partial_noise(image, sigmas, noise[:, :1])


def test_time_travel_takes_steps_again_and_keeps_the_law():
    data = Gaussian(torch.tensor([1.0, -1.0]), torch.tensor([0.5, 2.0]))
    calls, numbers = [], []

    def counted(x, sigma):
        calls.append(float(sigma[0]))
        return data(x, sigma)

    sigmas = K.sampling.get_sigmas_karras(60, 0.05, 30.0)
    x = torch.randn(4000, 2) * 30
    travelling = time_travel(K.sampling.sample_euler_ancestral, 3, (0.5, 5.0))
    out = travelling(
        counted, x, sigmas, callback=lambda info: numbers.append(info['i']), disable=True
    )
    within = int(((sigmas > 0.5) & (sigmas <= 5)).sum())
    assert len(calls) == 60 + 2 * within and sorted(set(numbers)) == list(range(60))
    torch.testing.assert_close(out.mean(0), data.mean, atol=0.15, rtol=0)
    torch.testing.assert_close(out.std(0), data.std, atol=0.1, rtol=0.05)
    assert time_travel(K.sampling.sample_euler, 1) is K.sampling.sample_euler
