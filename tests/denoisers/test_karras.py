"""The Karras family: the original's numbers, and what forward, loss, weighting and dtype promise
each other.
"""

import math

import pytest
import torch
from torch import nn

from k_diffusion.denoisers import (
    SCALINGS,
    WEIGHTINGS,
    Denoiser,
    DenoiserWithVariance,
    PreconditionedDenoiser,
    SimpleLossDenoiser,
)

WEIGHTS = ['karras', 'soft-min-snr', 'snr']


def network(x, t, return_variance=False):
    """The closed-form network of golden/denoisers (index.json)."""
    y = x.tanh() * (0.37 * t).cos()[:, None, None, None]
    return (y, y.mean((1, 2, 3))) if return_variance else y


@pytest.fixture
def numbers(golden):
    return golden('denoisers')


def loss(denoiser, numbers):
    return denoiser.loss(numbers['input'], numbers['noise'], numbers['sigma'])


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('weighting', WEIGHTS)
@pytest.mark.parametrize('scales', [1, 2])
def test_golden_loss(numbers, weighting, scales):
    close(
        loss(Denoiser(network, 0.6, weighting, scales), numbers),
        numbers[f'karras.{weighting}.scales{scales}'],
    )


def test_golden_forward(numbers):
    close(Denoiser(network, 0.6)(numbers['input'], numbers['sigma']), numbers['karras.forward'])


def test_golden_simple_and_variance(numbers):
    close(loss(SimpleLossDenoiser(network, 0.6), numbers), numbers['simple.loss'])
    close(loss(DenoiserWithVariance(network, 0.6), numbers), numbers['variance.loss'])


def error_of(denoiser, numbers):
    """The mean squared error of D against the clean data, [B]."""
    x = numbers['input'] + numbers['noise'] * numbers['sigma'][:, None, None, None]
    return (denoiser(x, numbers['sigma']) - numbers['input']).square().mean((1, 2, 3))


@pytest.mark.parametrize('weighting', WEIGHTS)
def test_the_loss_is_the_weighted_error_of_the_answer(numbers, weighting):
    denoiser, sigma = Denoiser(network, 0.6, weighting), numbers['sigma']
    of_the_network = (sigma**2 + 0.6**2) / (sigma * 0.6) ** 2  # 1 / c_out^2
    close(
        loss(denoiser, numbers),
        WEIGHTINGS[weighting](sigma, 0.6) * of_the_network * error_of(denoiser, numbers),
    )


@pytest.mark.parametrize('preconditioning', list(SCALINGS))
@pytest.mark.parametrize('weighting', [*WEIGHTS, 'flow'])
@pytest.mark.parametrize('scales', [1, 2])
def test_a_weighting_means_the_same_loss_whatever_the_network_predicts(
    numbers, preconditioning, weighting, scales
):
    """Networks that make the same D out of different predictions have the same loss."""
    usual, sigma = Denoiser(network, 0.6, weighting, scales), numbers['sigma']
    other = Denoiser(None, 0.6, weighting, scales, preconditioning=preconditioning)

    def predicts(x, sigma):
        c_skip, c_out, c_in = (c[:, None, None, None] for c in other.get_scalings(sigma))
        return (usual(x / c_in, sigma) - c_skip * (x / c_in)) / c_out

    other.inner_model = predicts
    x = numbers['input'] + numbers['noise'] * sigma[:, None, None, None]
    torch.testing.assert_close(other(x, sigma), usual(x, sigma), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(loss(other, numbers), loss(usual, numbers), rtol=1e-9, atol=1e-12)
    assert loss(usual, numbers).min() > 0


def test_the_flow_weighting_is_the_error_of_the_velocity(numbers):
    """At sigma_data 1 the velocity along the line from noise to clean is noise - clean = (x - (1
    + sigma) D) / sigma + ...
    """
    denoiser, sigma = Denoiser(network, 1.0, 'flow', preconditioning='x0'), numbers['sigma']
    x = numbers['input'] + numbers['noise'] * sigma[:, None, None, None]
    implied = (x - denoiser(x, sigma)) / sigma[:, None, None, None] - denoiser(x, sigma)
    velocity = numbers['noise'] - numbers['input']
    close(loss(denoiser, numbers), (implied - velocity).square().mean((1, 2, 3)))


def test_what_the_network_is_asked_for(numbers):
    """x0: the clean data over sigma_data; flow: at sigma_data 1 the velocity."""
    for preconditioning, sigma_data, expected in (
        ('x0', 0.6, numbers['input'] / 0.6),
        ('flow', 1.0, numbers['noise'] - numbers['input']),
        ('eps', 0.6, numbers['noise']),
    ):
        _, _, target = Denoiser(network, sigma_data, preconditioning=preconditioning).example(
            numbers['input'], numbers['noise'], numbers['sigma']
        )
        torch.testing.assert_close(target, expected, rtol=1e-9, atol=1e-9)
    with pytest.raises(ValueError, match="unknown preconditioning 'x-0'"):
        Denoiser(network, preconditioning='x-0')


def test_the_simple_loss_is_the_error_of_the_noise(numbers):
    denoiser, sigma = SimpleLossDenoiser(network, 0.6), numbers['sigma']
    close(loss(denoiser, numbers), error_of(denoiser, numbers) / sigma**2)


@pytest.mark.parametrize('name', SCALINGS)
def test_every_preconditioning_trains_what_it_runs(numbers, name):
    class Preconditioned(PreconditionedDenoiser):
        def scalings(self, sigma):
            return SCALINGS[name](sigma, self.sigma_data)

    denoiser, sigma = Preconditioned(network, 0.6), numbers['sigma']
    close(loss(denoiser, numbers), error_of(denoiser, numbers) / denoiser.scalings(sigma)[1] ** 2)


@pytest.mark.parametrize('name', SCALINGS)
def test_scalings_see_data_of_any_width_as_data_of_width_1(name):
    sigma = torch.tensor([0.02, 0.7, 30.0], dtype=torch.float64)
    unit, wide = SCALINGS[name](sigma / 0.6, 1.0), SCALINGS[name](sigma, 0.6)
    for ours, expected in zip(wide, (unit[0], unit[1] * 0.6, unit[2] / 0.6)):
        close(ours, expected)


def test_scalings_by_what_the_network_predicts():
    """With F the true v, noise, clean data or flow, D gives the clean data back."""
    clean, noise = torch.randn(2, 5, dtype=torch.float64)
    sigma = torch.full([5], 3.0, dtype=torch.float64)
    angle = math.atan(3.0)
    truth = {
        'v': math.cos(angle) * noise - math.sin(angle) * clean,
        'eps': noise,
        'x0': clean,
        'flow': noise - clean,
    }
    for name, prediction in truth.items():
        c_skip, c_out, c_in = SCALINGS[name](sigma, 1.0)
        close(c_skip * (clean + 3 * noise) + c_out * prediction, clean)
        assert (c_in > 0).all()
    t = sigma / (1 + sigma)
    close(SCALINGS['flow'](sigma, 1.0)[2] * (clean + 3 * noise), (1 - t) * clean + t * noise)


def test_three_scalings_with_the_network_kept_at_unit_variance():
    c_skip, c_out, c_in = Denoiser(network, 0.6).get_scalings(
        torch.tensor([0.1, 2.0], dtype=torch.float64)
    )
    variance = torch.tensor([0.1, 2.0], dtype=torch.float64) ** 2 + 0.36
    close(c_in**2 * variance, torch.ones(2, dtype=torch.float64))
    close(
        ((1 - c_skip) ** 2 * 0.36 + c_skip**2 * (variance - 0.36)) / c_out**2,
        torch.ones(2, dtype=torch.float64),
    )


def test_a_weighting_may_be_a_function(numbers):
    plain, weighed = (
        Denoiser(network, 0.6),
        Denoiser(network, 0.6, weighting=lambda sigma: 3 * sigma),
    )
    close(loss(weighed, numbers), 3 * numbers['sigma'] * loss(plain, numbers))


def test_an_item_alone_is_the_item_of_a_batch(numbers):
    denoiser = Denoiser(network, 0.6, 'soft-min-snr', scales=3)
    alone = denoiser.loss(numbers['input'][1:2], numbers['noise'][1:2], numbers['sigma'][1:2])
    assert torch.equal(alone, loss(denoiser, numbers)[1:2])


def test_conditions_pass_through_and_one_sigma_serves_all():
    denoiser = Denoiser(lambda x, sigma, plus, name: x * 0 + plus[:, None] if name == 'yes' else x)
    x = torch.randn(3, 4)
    out = denoiser(x, torch.tensor(2.0), plus=torch.arange(3.0), name='yes')
    torch.testing.assert_close(out, x / 5 + torch.arange(3.0)[:, None] * 2 / 5**0.5)


class Recorder(nn.Module):
    """A network that notes the dtypes it is given and fails on mixed ones."""

    def __init__(self, dtype):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, dtype=dtype))

    def forward(self, x, sigma, shift, index):
        self.dtypes = [x.dtype, sigma.dtype, shift.dtype, index.dtype]
        return torch.addcmul(shift, x, self.weight) + sigma[:, None]


@pytest.mark.parametrize(
    'network_dtype', [torch.bfloat16, torch.float16, torch.float32, torch.float64]
)
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float32, torch.float64])
def test_the_network_gets_its_own_dtype_and_the_caller_his(network_dtype, dtype):
    network = Recorder(network_dtype)
    denoiser, cond = Denoiser(network), {'shift': torch.zeros(3, 4), 'index': torch.arange(3)}
    x = torch.randn(3, 4, dtype=dtype)
    out = denoiser(x, torch.rand(3, dtype=torch.float64) + 0.1, **cond)
    assert out.dtype == dtype and network.dtypes == [network_dtype] * 3 + [torch.int64]
    loss = denoiser.loss(x, torch.randn_like(x), torch.rand(3, dtype=torch.float64) + 0.1, **cond)
    assert loss.dtype == torch.promote_types(dtype, torch.float32)


def test_half_precision_data_costs_no_more_than_its_rounding():
    x, sigma = (
        torch.randn(64, 8, dtype=torch.float64),
        torch.logspace(-2, 2, 64, dtype=torch.float64),
    )
    x = (x * (1 + sigma**2).sqrt()[:, None]).bfloat16()
    denoiser = Denoiser(lambda x, sigma: x.sin())
    exact = denoiser(x.double(), sigma)
    assert torch.equal(denoiser(x, sigma), denoiser(x.float(), sigma).bfloat16())
    torch.testing.assert_close(denoiser(x, sigma).double(), exact, rtol=2**-8, atol=1e-4)


@pytest.mark.parametrize('kind', [SimpleLossDenoiser, DenoiserWithVariance])
@pytest.mark.parametrize('option', [{'weighting': 'snr'}, {'scales': 2}])
def test_options_without_effect_are_refused(kind, option):
    with pytest.raises(
        ValueError, match=f'{kind.__name__}, whose loss has neither; got weighting='
    ):
        kind(network, **option)


def test_wrong_options_are_named():
    with pytest.raises(
        ValueError, match="unknown loss weighting 'soft-min-snrr', did you mean 'soft-min-snr'"
    ):
        Denoiser(network, weighting='soft-min-snrr')
    with pytest.raises(ValueError, match='scales must be 1 .*; got -1'):
        Denoiser(network, scales=-1)


def test_a_loss_in_inference_mode_does_not_spoil_training():
    network = nn.Linear(7, 7)
    denoiser = Denoiser(lambda x, sigma: network(x), scales=2)
    x = torch.randn(2, 1, 7)
    with torch.inference_mode():
        denoiser.loss(x, x, torch.ones(2))
    denoiser.loss(x, x, torch.ones(2)).sum().backward()
    assert network.weight.grad.abs().sum() > 0
