"""Flow maps and their losses, against the flow of Gaussian data in closed form."""

import math

import pytest
import torch
from torch import nn

import k_diffusion as K
from k_diffusion.denoisers import Denoiser, FlowMap
from k_diffusion.denoisers.analytic import Gaussian
from k_diffusion.denoisers.consistency_tuning import (
    consistency_loss,
    end_level,
    middle_level,
    pseudo_huber,
)
from k_diffusion.denoisers.guided_data import guide_data
from k_diffusion.denoisers.mean_flow import mean_flow_loss, velocity
from k_diffusion.denoisers.path_regression import choose_points, path_loss

STD = 0.7


class Noise(nn.Module):
    """A network with no structure: a fixed function of all that it is given."""

    def forward(self, x, sigma, sigma_next=None, **cond):
        second = torch.zeros_like(sigma) if sigma_next is None else sigma_next
        return torch.sin(3 * x + sigma[:, None] - 2 * second[:, None])


class ExactMap(nn.Module):
    """The flow map of N(0, STD^2), with the estimates of a FlowMap that follow from it."""

    sigma_data = 0.5
    flow_map = True

    def __init__(self):
        super().__init__()
        self.data = Gaussian(torch.zeros(()), torch.tensor(STD, dtype=torch.float64))

    def forward(self, x, sigma, sigma_next=None, **cond):
        second = torch.zeros_like(sigma) if sigma_next is None else sigma_next
        ratio = ((STD**2 + second**2) / (STD**2 + sigma**2)).sqrt()
        return ratio[:, None] * x

    def mean_estimate(self, x, sigma, sigma_next, **cond):
        if torch.allclose(sigma, sigma_next):
            return self.data(x, sigma)
        share = (sigma_next / sigma)[:, None]
        return (self(x, sigma, sigma_next) - share * x) / (1 - share)

    def scalings(self, sigma):
        return FlowMap(Noise(), self.sigma_data).scalings(sigma)


def batch(n=64, dtype=torch.float64, seed=0):
    source = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 3, generator=source, dtype=dtype)
    sigma = torch.rand(n, generator=source, dtype=dtype) * 5 + 0.1
    return x * (STD**2 + sigma[:, None] ** 2).sqrt(), sigma


def test_a_map_to_its_own_level_leaves_x_whatever_the_network_says():
    x, sigma = batch()
    assert torch.equal(FlowMap(Noise(), 0.5)(x, sigma, sigma), x)


def test_a_map_is_a_denoiser_that_leads_to_zero():
    x, sigma = batch()
    flow_map = FlowMap(Noise(), 0.5)
    assert torch.equal(flow_map(x, sigma), flow_map(x, sigma, torch.zeros_like(sigma)))
    assert torch.equal(flow_map(x, sigma), flow_map.mean_estimate(x, sigma, 0.0))


def test_a_network_of_one_level_makes_a_map_a_step_of_euler():
    class OneLevel(nn.Module):
        def forward(self, x, sigma, sigma_next=None):
            return torch.cos(x) * sigma[:, None]

    x, sigma = batch()
    second = sigma / 3
    denoised = Denoiser(OneLevel(), 0.5)(x, sigma)
    euler = x + (second - sigma)[:, None] * (x - denoised) / sigma[:, None]
    torch.testing.assert_close(FlowMap(OneLevel(), 0.5)(x, sigma, second), euler)
    torch.testing.assert_close(FlowMap(OneLevel(), 0.5).denoiser(x, sigma), denoised)


def test_the_loss_of_a_map_is_that_of_its_denoiser():
    x, sigma = batch()
    noise = torch.randn_like(x)
    flow_map = FlowMap(Noise(), 0.5)

    class AtOneLevel(nn.Module):
        def forward(self, x, sigma):
            return Noise()(x, sigma, sigma)

    expected = Denoiser(AtOneLevel(), 0.5).loss(x, noise, sigma)
    torch.testing.assert_close(flow_map.loss(x, noise, sigma), expected)


@pytest.mark.parametrize('scales', [0, 2])
def test_the_loss_of_a_map_takes_scales(scales):
    """For a network that does not look at the second level it is the loss of the denoiser."""

    def network(x, sigma, **levels):
        return torch.sin(3 * x)

    torch.manual_seed(0)
    x, noise = torch.randn(2, 4, 3, 8, 8, dtype=torch.float64)
    sigma = torch.rand(4, dtype=torch.float64) + 0.2
    map_, denoiser = (kind(network, 0.5, scales=scales) for kind in (FlowMap, Denoiser))
    expected = denoiser.loss(x, noise, sigma)
    torch.testing.assert_close(map_.loss(x, noise, sigma), expected)
    assert not torch.allclose(expected, Denoiser(network, 0.5).loss(x, noise, sigma))


def test_the_levels_of_consistency_tuning():
    high, none = torch.tensor([1e6]), torch.tensor([0.0])
    # n(t) is 1 far up, so that r / t = 1 - 1/2, then 1 - 1/4, and 1 - 1/256 in the last of 8 stages
    for progress, share in (0.0, 1 / 2), (0.125, 3 / 4), (0.999, 255 / 256):
        level = middle_level(high, none, progress, 8, 0.5)
        assert level.item() == pytest.approx(1e6 * share, rel=1e-6)
    # n(0) = 1 + 8 / 2 = 5: r is 0 until 2^(stage + 1) is larger
    low = torch.tensor([1e-6])
    assert middle_level(low, none, 0.0, 8, 0.5).item() == 0
    assert middle_level(low, none, 0.26, 8, 0.5).item() == pytest.approx(1e-6 * 3 / 8, rel=1e-4)
    assert middle_level(high, torch.tensor([7e5]), 0.0, 8, 0.5).item() == 7e5


def test_the_second_level_lies_below_the_first():
    sigma = torch.tensor([0.5, 0.5, 0.5, 80.0])
    share = torch.tensor([0.0, 0.5, 1.0, 0.5])
    at_end = torch.tensor([False, False, False, True])
    expected = [0.0, 0.5 * math.tan(math.pi / 8), 0.5, 0.0]
    torch.testing.assert_close(end_level(sigma, 0.5, share, at_end), torch.tensor(expected))


def test_consistency_at_the_second_level_is_denoising():
    """With r = u the target is the noised data itself, and the error that of G times (1 - u/t)."""
    x, sigma = batch()
    noise, second = torch.randn_like(x), sigma / 4
    flow_map = FlowMap(Noise(), 0.5)
    loss = consistency_loss(flow_map, x, noise, sigma, second, second)
    error = flow_map.mean_estimate(x + sigma[:, None] * noise, sigma, second) - x
    c_out = sigma * 0.5 / (sigma**2 + 0.25).sqrt()
    torch.testing.assert_close(loss, pseudo_huber(error, c_out))


def test_guidance_moves_the_nearer_level_and_not_the_input():
    """The exact denoiser of moved data has no error where the data are what it answers."""
    x, sigma = batch()
    noise, moved = torch.randn_like(x), torch.randn_like(x)
    state = x + sigma[:, None] * noise
    inputs = []

    class Answer(nn.Module):
        sigma_data, flow_map = 0.5, True
        scalings = ExactMap.scalings

        def forward(self, x, sigma, sigma_next):
            inputs.append(x)
            share = (sigma_next / sigma)[:, None]
            return share * x + (1 - share) * moved

    loss = consistency_loss(Answer(), x, noise, sigma, sigma / 2, sigma / 4, moved)
    assert loss.max() < 1e-9
    torch.testing.assert_close(inputs[1], state)
    torch.testing.assert_close(inputs[0], state / 2 + moved / 2)


def test_the_guided_velocity_leads_to_the_moved_data():
    x, sigma = batch()
    noise, moved = torch.randn_like(x), torch.randn_like(x)

    class Answer(nn.Module):
        sigma_data = 0.5

        def mean_estimate(self, x, sigma, sigma_next):
            return moved

    answer = Answer()
    assert mean_flow_loss(answer, answer, x, noise, sigma, sigma, moved).max() < 1e-9
    assert mean_flow_loss(answer, answer, x, noise, sigma, sigma).min() > 1e-3


def test_consistency_draws_one_dropout_mask_and_trains_through_the_first_level_alone():
    inputs = []

    class Dropping(nn.Module):
        def __init__(self):
            super().__init__()
            self.gain = nn.Parameter(torch.ones(()))

        def forward(self, x, sigma, sigma_next=None):
            mask = torch.rand(x.shape)
            inputs.append((mask, torch.is_grad_enabled()))
            return self.gain * mask.to(x) * x

    x, sigma = batch()
    network = Dropping()
    loss = consistency_loss(
        FlowMap(network, 0.5), x, torch.randn_like(x), sigma, sigma / 2, torch.zeros_like(sigma)
    )
    loss.mean().backward()
    (first, with_grad_first), (second, with_grad_second) = inputs
    assert torch.equal(first, second) and (with_grad_first, with_grad_second) == (False, True)
    assert network.gain.grad is not None


def test_the_exact_map_has_no_error_on_the_paths():
    x, sigma = batch()
    second = sigma * 0.3
    exact = ExactMap()
    ends = exact.data.flow(x[:1], sigma[0].item(), second[0].item())
    torch.testing.assert_close(exact(x, sigma, second)[:1], ends)
    assert path_loss(exact, x, sigma, exact(x, sigma, second), second).max() < 1e-12
    wrong = path_loss(exact, x, sigma, exact(x, sigma, second) + 0.1, second)
    assert (wrong > 1e-3).all()


def test_points_of_a_path():
    """A point is first as often as the angle to its next one says, and j is any later point."""
    levels = torch.tensor([40.0, 9.0, 3.0, 1.2, 0.5, 0.5 * 3**-0.5, 0.0])
    u = (torch.arange(60_000) + 0.5) / 60_000
    no = torch.zeros(len(u), dtype=torch.bool)
    i, j = choose_points(levels, 0.5, u, u.flip(0), no, no)
    assert i.min() == 0 and i.max() == 5 and (i < j).all() and j.max() == 6
    shares = torch.bincount(i) / len(i)
    # arctan(sigma / 0.5) of the last three points is 45, 30 and 0 degrees, of the first 89.284
    torch.testing.assert_close(shares[4:], torch.tensor([15.0, 30.0]) / 89.284, atol=1e-4, rtol=0)
    _, j = choose_points(levels, 0.5, u, u, ~no, no)
    shares = torch.bincount(j) / len(j)
    torch.testing.assert_close(shares[5:], torch.tensor([15.0, 30.0]) / 89.284, atol=1e-4, rtol=0)
    i, j = choose_points(levels, 0.5, u, u, ~no, ~no)
    assert (i == 0).all() and (j == 6).all()


def test_the_mean_velocity_of_the_exact_map_fulfils_the_identity():
    """u + (t - r) du/dt along v is v, the velocity of the flow; dx/dt of z = x / (c (1 + s)) is
    known from D.
    """
    x, sigma = batch()
    exact, c = ExactMap(), ExactMap.sigma_data
    second = sigma * torch.linspace(0, 0.99, len(sigma), dtype=x.dtype)
    s, s_next = sigma / c, second / c
    t, r = s / (1 + s), s_next / (1 + s_next)
    z = x / (c * (1 + s[:, None]))
    v = velocity(exact, z, t, sigma)
    denoised = exact.data(x, sigma)
    torch.testing.assert_close(v, (x - denoised) / sigma[:, None] - denoised / c)
    _, slope = torch.func.jvp(
        lambda z, t: velocity(exact, z, t, second), (z, t), (v, torch.ones_like(t))
    )
    whole = velocity(exact, z, t, second) + (t - r)[:, None] * slope
    torch.testing.assert_close(whole, v, atol=1e-9, rtol=1e-9)
    # and u itself is the way from z_r to z_t, divided by t - r
    end = exact(x, sigma, second) / (c * (1 + s_next[:, None]))
    torch.testing.assert_close(velocity(exact, z, t, second), (z - end) / (t - r)[:, None])


def test_guided_data_have_the_guided_estimate_as_their_mean():
    def denoise(x, sigma, label):
        return x * 0.5 + label[:, None]

    x, sigma = batch(4)
    label = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=x.dtype)
    sigma = torch.tensor([0.1, 1.0, 1.0, 5.0], dtype=x.dtype)
    scale = torch.tensor([3.0, 3.0, 1.0, 3.0], dtype=x.dtype)
    moved = guide_data(
        denoise, x, torch.zeros_like(x), sigma, {'label': label}, {'label': 0}, scale, (0.5, 2.0)
    )
    expected = torch.tensor([0.0, 2 * 2.0, 0.0, 0.0], dtype=x.dtype)  # (w - 1) (label - 0)
    torch.testing.assert_close(moved - x, expected[:, None].expand_as(x))


@pytest.mark.parametrize('levels', [[4.0, 0.0], [4.0, 1.1, 0.0], [4.0, 3.9, 0.2, 0.1, 0.0]])
def test_the_sampler_of_the_exact_map_is_exact_for_steps_of_any_length(levels):
    x = torch.randn(8, 3, dtype=torch.float64) * 4
    exact = ExactMap()
    estimates = []
    result = K.sampling.sample_flow_map(
        exact, x, levels, callback=lambda info: estimates.append(info['denoised']), disable=True
    )
    torch.testing.assert_close(result, exact.data.flow(x, 4.0, 0.0))
    assert len(estimates) == len(levels) - 1
    torch.testing.assert_close(estimates[-1], result)  # a step to 0 is its own mean estimate


def test_consistency_samplers_take_a_map():
    x = torch.randn(8, 3) * 4
    exact, levels = ExactMap().float(), [4.0, 1.0, 0.0]
    exact.data = Gaussian(torch.zeros(()), torch.tensor(STD))
    lcm = K.sampling.sample_lcm(exact, x, levels, seed=3, disable=True)
    renoised = K.sampling.sample_flow_map(exact, x, levels, gamma=1.0, seed=3, disable=True)
    torch.testing.assert_close(lcm, renoised)
    guided = K.guidance.classifier_free(exact, {'label': 0}, 1.0)
    one = K.sampling.sample_flow_map(guided, x, levels, {'label': 1}, disable=True)
    torch.testing.assert_close(one, exact.data.flow(x, 4.0, 0.0))


def test_levels_of_a_map_are_nested():
    flow_map = FlowMap(Noise(), 0.5)
    flow_map.sigma_min, flow_map.sigma_max = 0.02, 40.0
    plans = [K.generation.plan(flow_map, n, None, None, None, None, {}) for n in (1, 2, 4)]
    one, two, four = (plan.sigmas.tolist() for plan in plans)
    assert one == [40.0, 0.0] and two == four[::2] and len(four) == 5
    assert [plan.sampler for plan in plans] == ['flow_map'] * 3
    # the tangent of half an angle of tangent 40, times twice the standard deviation 0.5
    assert two[1] == pytest.approx((math.sqrt(1 + 40**2) - 1) / 40)
