"""guided-diffusion's own ways, frozen networks that recompute, EDM, flow, and recognising what
one is given.
"""

import enum
import logging
import math
import sys
import types
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import k_diffusion as K
from k_diffusion.denoisers.analytic import Gaussian

T = 400
BETAS = torch.linspace(1e-4 * 1000 / T, 0.02 * 1000 / T, T, dtype=torch.float64)
ALPHAS = (1 - BETAS).cumprod(0)
DATA = Gaussian(
    torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64),
    torch.tensor([0.5, 1.0, 0.1], dtype=torch.float64),
)


class MeanType(enum.Enum):
    PREVIOUS_X = 1
    START_X = 2
    EPSILON = 3


def truth(scale=1.0, kind='eps'):
    """The network of DATA, trained at the T levels of the base process, its times counted in
    `scale`.
    """
    table = K.external.DiscreteSchedule(((1 - ALPHAS) / ALPHAS).sqrt(), quantize=False)

    def network(x, t, y=None):
        sigma = table.t_to_sigma(t / scale)[:, None]
        x = x * (1 + sigma**2).sqrt()
        clean = DATA(x, sigma[:, 0])
        out = clean if kind == 'x0' else (x - clean) / sigma
        return torch.cat([out, out * 0 + 7], 1)

    return network


def diffusion(every=1, rescale=False, kind=MeanType.EPSILON):
    """As SpacedDiffusion holds them: the levels that are left, and which of the base process
    they were.
    """
    timesteps = list(range(0, T, every))
    return SimpleNamespace(
        alphas_cumprod=ALPHAS[timesteps].numpy(),
        timestep_map=timesteps,
        original_num_steps=T,
        rescale_timesteps=rescale,
        model_mean_type=kind,
        model_var_type=SimpleNamespace(name='LEARNED_RANGE'),
    )


@pytest.mark.parametrize('kind', ['eps', 'x0'])
@pytest.mark.parametrize('rescale', [False, True])
@pytest.mark.parametrize('every', [1, 4])
def test_respaced_rescaled_and_predicting_the_clean(every, rescale, kind):
    spaced = diffusion(every, rescale, MeanType.START_X if kind == 'x0' else MeanType.EPSILON)
    denoiser = K.external.wrap(truth(1000 / T if rescale else 1.0, kind), spaced)
    assert 'guided-diffusion' in denoiser.taken_for and ('clean' in denoiser.taken_for) == (
        kind == 'x0'
    )
    sigma = denoiser.sigmas[:: max(1, 40 // every)].double()
    x = torch.randn(len(sigma), 3, dtype=torch.float64) * (1 + sigma**2).sqrt()[:, None]
    torch.testing.assert_close(denoiser(x, sigma), DATA(x, sigma), rtol=2e-4, atol=2e-4)
    between = (
        sigma[2:] * sigma[1:-1]
    ).sqrt()  # below, a respaced table has nothing but its first level
    torch.testing.assert_close(denoiser(x[2:], between), DATA(x[2:], between), rtol=2e-2, atol=2e-2)
    quantized = K.external.OpenAIDenoiser(
        truth(1000 / T if rescale else 1.0, kind), spaced, quantize=True
    )
    torch.testing.assert_close(quantized(x, sigma), DATA(x, sigma), rtol=2e-4, atol=2e-4)


def test_the_loss_of_a_network_of_the_clean_is_its_error():
    denoiser = K.external.wrap(truth(kind='x0'), diffusion(kind=MeanType.START_X))
    clean, noise = torch.randn(2, 4, 3, dtype=torch.float64)
    sigma = torch.tensor([0.1, 1.0, 3.0, 10.0], dtype=torch.float64)
    error = (denoiser(clean + noise * sigma[:, None], sigma) - clean).square().mean(1)
    torch.testing.assert_close(denoiser.loss(clean, noise, sigma), error)


def test_a_network_of_the_previous_picture_is_refused():
    with pytest.raises(ValueError, match='PREVIOUS_X'):
        K.external.OpenAIDenoiser(truth(), diffusion(kind=MeanType.PREVIOUS_X))


def test_a_classifier_of_theirs_guides():
    def classifier(x, t):
        assert t.min() >= 0 and t.max() <= T - 1
        return torch.stack([x.sum(1), -x.sum(1)], 1)

    log_prob = K.external.openai_classifier(classifier, diffusion(4))
    guided = K.guidance.classifier_guidance(DATA, log_prob, 2.0)
    x, sigma = torch.randn(2, 3, dtype=torch.float64), torch.tensor([0.5, 2.0], dtype=torch.float64)
    moved = guided(x, sigma, class_cond=torch.tensor([0, 1])) - DATA(x, sigma)
    assert (moved[0] > 0).all() and (moved[1] < 0).all()


# Frozen networks that recompute their activations


class Checkpoint(torch.autograd.Function):
    """The checkpointing of guided-diffusion.

    It stores nothing in the forward pass and recomputes in the backward pass, for inputs and
    parameters.
    """

    @staticmethod
    def forward(ctx, function, length, *args):
        ctx.function, ctx.inputs, ctx.params = function, list(args[:length]), list(args[length:])
        with torch.no_grad():
            return function(*ctx.inputs)

    @staticmethod
    def backward(ctx, *grads):
        inputs = [x.detach().requires_grad_() for x in ctx.inputs]
        with torch.enable_grad():
            out = ctx.function(*[x.view_as(x) for x in inputs])
        return (
            None,
            None,
            *torch.autograd.grad(out, inputs + ctx.params, grads, allow_unused=True),
        )


def checkpoint(func, inputs, params, flag):
    return Checkpoint.apply(func, len(inputs), *inputs, *params) if flag else func(*inputs)


@pytest.fixture
def attention(monkeypatch):
    """A block of a Python module of its own, as guided_diffusion.unet is one."""
    module = types.ModuleType('their_unet')
    module.checkpoint = checkpoint

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 3)

        def forward(self, x, t, cond=None):
            return module.checkpoint(
                lambda x: self.linear(x).tanh(), (x,), list(self.parameters()), True
            )

    Block.__module__ = 'their_unet'
    monkeypatch.setitem(sys.modules, 'their_unet', module)
    return Block, module


@pytest.mark.parametrize('is_wrapped', [False, True])
def test_gradients_flow_through_a_frozen_network_that_recomputes(attention, is_wrapped):
    block, module = attention[0](), attention[1]
    holder = SimpleNamespace(
        alphas_cumprod=ALPHAS.float(), apply_model=lambda x, t, cond: block(x, t), net=block
    )
    denoiser = (
        K.external.CompVisDenoiser(holder)
        if is_wrapped
        else K.external.DiscreteEpsDDPMDenoiser(block, ALPHAS.float(), False)
    )
    x, sigma = torch.randn(2, 3, requires_grad=True), torch.tensor([0.5, 2.0])
    (expected,) = torch.autograd.grad(
        denoiser(x, sigma, **({'cond': None} if is_wrapped else {})).sum(), x
    )
    block.requires_grad_(False)
    (actual,) = torch.autograd.grad(
        denoiser(x, sigma, **({'cond': None} if is_wrapped else {})).sum(), x
    )
    torch.testing.assert_close(actual, expected)
    assert module.checkpoint is checkpoint
    with pytest.raises(RuntimeError, match='does not require grad'):  # what happens without
        torch.autograd.grad(block(x, sigma).sum(), x)


# Rectified flow


def flow_network(x, t):
    sigma = (t / (1 - t)).double()
    x = x * (1 + sigma)[:, None]
    clean = DATA(x, sigma)
    return (x - clean) / sigma[:, None] - clean


def test_flow():
    denoiser = K.external.FlowDenoiser(flow_network, shift=3.0)
    sigma = torch.tensor([0.03, 1.0, 20.0], dtype=torch.float64)
    x = torch.randn(3, 3, dtype=torch.float64) * (1 + sigma)[:, None]
    torch.testing.assert_close(denoiser(x, sigma), DATA(x, sigma), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(denoiser.t_to_sigma(denoiser.sigma_to_t(sigma)), sigma)
    sigmas = denoiser.get_sigmas(4)
    torch.testing.assert_close(sigmas, torch.tensor([1e4, 9.0, 3.0, 1.0, 0.0]))
    t = denoiser.sigma_to_t(denoiser.get_sigmas(4, shift=1.0))
    torch.testing.assert_close(t, torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0]), rtol=2e-4, atol=0)
    assert denoiser.t_to_sigma(torch.tensor(1.0)) == 1e4
    times = []
    K.external.FlowDenoiser(lambda x, t: times.append(t) or x, time_scale=1000.0)(x, sigma)
    torch.testing.assert_close(times[0], 1000 * sigma / (1 + sigma))
    out = K.sampling.sample_heun(
        denoiser,
        torch.randn(2000, 3, dtype=torch.float64) * 1e4,
        denoiser.get_sigmas(40),
        disable=True,
    )
    torch.testing.assert_close(out.mean(0), DATA.mean, atol=0.08, rtol=0)
    torch.testing.assert_close(out.std(0), DATA.std, atol=0.03, rtol=0.05)


# EDM


class EDMPrecond(nn.Module):
    """As EDM's own: already a denoiser, float32 whatever it is given, classes one-hot."""

    def __init__(self, sigma_max=math.inf, levels=None):
        super().__init__()
        self.sigma_min, self.sigma_max, self.label_dim, self.levels = 0, sigma_max, 4, levels
        self.calls = []

    def round_sigma(self, sigma):
        if self.levels is None:
            return torch.as_tensor(sigma)
        return self.levels[
            (torch.as_tensor(sigma).flatten()[:, None] - self.levels).abs().argmin(1)
        ].view_as(torch.as_tensor(sigma))

    def forward(self, x, sigma, class_labels=None, force_fp32=False):
        assert x.dtype == sigma.dtype == torch.float32 and sigma.shape == (len(x),)
        self.calls.append((sigma, class_labels))
        shift = 0 if class_labels is None else (class_labels @ torch.arange(1.0, 5.0))[:, None]
        return x / (1 + sigma[:, None] ** 2) + shift


def test_edm():
    denoiser = K.external.wrap(EDMPrecond())
    assert denoiser.taken_for == 'a denoiser of EDM (EDMPrecond)'
    x, sigma = (
        torch.randn(3, 2, dtype=torch.float64),
        torch.tensor([0.1, 1.0, 30.0], dtype=torch.float64),
    )
    out = denoiser(x, sigma, class_cond=torch.tensor([0, 3, 4]))
    torch.testing.assert_close(
        out,
        x / (1 + sigma[:, None] ** 2) + torch.tensor([[1.0], [4.0], [0.0]]),
        rtol=1e-5,
        atol=1e-5,
    )
    assert out.dtype == torch.float64 and denoiser.inner_model.calls[0][1].tolist()[2] == [
        0.0,
        0.0,
        0.0,
        0.0,
    ]
    torch.testing.assert_close(
        denoiser.get_sigmas(18), K.sampling.get_sigmas_karras(18, 0.002, 80.0)
    )
    guided = K.guidance.classifier_free(denoiser, {'class_cond': 4}, 3.0)(
        x, sigma, class_cond=torch.tensor([0, 3, 3])
    )
    torch.testing.assert_close(
        guided - x / (1 + sigma[:, None] ** 2),
        torch.tensor([[3.0], [12.0], [12.0]]).double().expand(3, 2),
    )


def test_edm_with_levels_of_its_own():
    levels = torch.logspace(-2, 1.7, 60)
    denoiser = K.external.EDMDenoiser(EDMPrecond(50.0, levels))
    sigmas = denoiser.get_sigmas(12)
    assert (
        set(sigmas[:-1].tolist()) <= set(levels.tolist())
        and sigmas[-1] == 0
        and denoiser.sigma_max == 50
    )
    denoiser(torch.randn(1, 2), torch.tensor([0.123]))
    assert denoiser.inner_model.calls[0][0].item() in levels.tolist()


# Recognising


def test_recognised(caplog):
    latent = SimpleNamespace(
        alphas_cumprod=ALPHAS.float(), apply_model=lambda x, t, cond: x, parameterization='v'
    )

    class Picture(nn.Module):
        shape = (3, 64, 64)

        def forward(self, input, t):
            return input

    with caplog.at_level(logging.INFO, 'k_diffusion.external'):
        assert type(K.external.wrap(latent)) is K.external.CompVisVDenoiser
        del latent.parameterization
        assert type(K.external.wrap(latent, quantize=True)) is K.external.CompVisDenoiser
        picture = K.external.wrap(Picture())
    assert type(picture) is K.external.VDenoiser and '3x64x64' in picture.taken_for
    assert len(caplog.records) == 3 and 'CompVis that gives v' in caplog.text
    assert K.external.wrap(picture) is picture
    with pytest.raises(ValueError, match='one of these: a pipeline of diffusers.* got Linear'):
        K.external.wrap(nn.Linear(1, 1))
