"""guided-diffusion and CompVis by their published conventions, and by their real classes where
those can be imported.
"""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

import k_diffusion as K

T = 1000
SD = torch.linspace(0.00085**0.5, 0.012**0.5, T, dtype=torch.float64) ** 2
ALPHAS = (1 - SD).cumprod(0)


def randomise(model):
    """Zero-initialised last layers would make every answer 0."""
    generator = torch.Generator().manual_seed(1)
    for p in model.parameters():
        p.data += 0.05 * torch.randn(p.shape, generator=generator)
    return model.eval()


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def assert_same(ours, expected, tolerance=1e-5):
    assert expected.std() > 0.01
    assert (ours - expected).abs().max() / expected.abs().max() < tolerance


# CompVis: conditions in lists under c_crossattn and c_concat


class LatentDiffusion(nn.Module):
    """Its conventions without its dependencies: apply_model, and the wrapper that hands each
    kind of condition to the network.
    """

    def __init__(self, network, key, parameterization='eps', alphas=ALPHAS):
        super().__init__()
        self.network, self.key, self.parameterization = network, key, parameterization
        self.register_buffer('alphas_cumprod', alphas.float())
        self.register_buffer('alphas_cumprod_prev', torch.cat([torch.ones(1), alphas.float()[:-1]]))
        self.register_buffer('betas', SD.float())
        self.num_timesteps, self.device = len(alphas), torch.device('cpu')

    def apply_model(self, x_noisy, t, cond, return_ids=False):
        if not isinstance(cond, dict):
            cond = {
                'c_concat' if self.key == 'concat' else 'c_crossattn': cond
                if isinstance(cond, list)
                else [cond]
            }
        if self.key in ('concat', 'hybrid'):
            x_noisy = torch.cat([x_noisy, *cond['c_concat']], 1)
        if self.key in ('crossattn', 'hybrid'):
            return self.network(x_noisy, t, context=torch.cat(cond['c_crossattn'], 1))
        return (
            self.network(x_noisy, t, y=cond['c_crossattn'][0])
            if self.key == 'adm'
            else self.network(x_noisy, t)
        )


class Small(nn.Module):
    """A network that mixes x, its time and its conditions."""

    def __init__(self, channels):
        super().__init__()
        self.conv, self.text, self.classes = (
            nn.Conv2d(channels, 4, 3, padding=1),
            nn.Linear(6, 4),
            nn.Embedding(5, 4),
        )

    def forward(self, x, t, context=None, y=None):
        h = self.conv(x) + (t.float() / 300).sin()[:, None, None, None]
        if context is not None:
            h = h + self.text(context).mean(1)[:, :, None, None]
        return h.tanh() if y is None else (h + self.classes(y)[:, :, None, None]).tanh()


TEXT, BESIDE = randn(2, 5, 6), randn(2, 3, 8, 8, seed=1)
CONDITIONS = {
    None: (4, None),
    'crossattn': (4, TEXT),
    'crossattn in a dict': (4, {'c_crossattn': [TEXT[:, :2], TEXT[:, 2:]]}),
    'concat': (7, BESIDE),
    'concat in a dict': (7, {'c_concat': [BESIDE[:, :1], BESIDE[:, 1:]]}),
    'hybrid': (7, {'c_crossattn': [TEXT], 'c_concat': [BESIDE]}),
    'adm': (4, torch.tensor([1, 4])),
}


def ddim(model, x, levels, cond, uncond=None, scale=1.0):
    """Deterministic DDIM (Song et al.

    2020, eq. 12) as CompVis' sampler walks it, from levels of the table to ever lower ones.
    """
    alphas = model.alphas_cumprod.double()
    for place, following in zip(levels, [*levels[1:], None]):
        t = torch.full((len(x),), place)
        answer = model.apply_model(x.float(), t, cond).double()
        if uncond is not None:
            answer = torch.lerp(model.apply_model(x.float(), t, uncond).double(), answer, scale)
        a, after = alphas[place], torch.tensor(1.0) if following is None else alphas[following]
        noise = a.sqrt() * answer + (1 - a).sqrt() * x if model.parameterization == 'v' else answer
        x = after.sqrt() * (x - (1 - a).sqrt() * noise) / a.sqrt() + (1 - after).sqrt() * noise
    return x


@torch.no_grad()
@pytest.mark.parametrize('answer', ['eps', 'v'])
@pytest.mark.parametrize('name', CONDITIONS)
def test_conditions_of_latent_diffusion(name, answer):
    channels, cond = CONDITIONS[name]
    torch.manual_seed(0)
    model = LatentDiffusion(Small(channels), name and name.split()[0], answer)
    levels, noise = [901, 601, 301, 1], randn(2, 4, 8, 8, seed=2, dtype=torch.float64)
    denoiser = K.external.wrap(model)
    assert isinstance(
        denoiser, K.external.CompVisVDenoiser if answer == 'v' else K.external.CompVisDenoiser
    )
    sigmas = torch.cat([denoiser.sigmas[levels].double(), torch.zeros(1)])
    ours = K.sampling.sample_euler(
        denoiser,
        noise * (1 + sigmas[0] ** 2).sqrt(),
        sigmas,
        extra_args={'cond': cond},
        disable=True,
    )
    assert_same(ours, ddim(model, noise, levels, cond))


@torch.no_grad()
@pytest.mark.parametrize('answer', ['eps', 'v'])
def test_guidance_replaces_the_text_of_a_hybrid_model(answer):
    torch.manual_seed(0)
    model = LatentDiffusion(Small(7), 'hybrid', answer)
    cond, empty = CONDITIONS['hybrid'][1], torch.zeros(2, 5, 6)
    levels, noise = [901, 601, 301, 1], randn(2, 4, 8, 8, seed=2, dtype=torch.float64)
    guided = K.guidance.classifier_free(
        K.external.wrap(model), {'cond': {'c_crossattn': [empty]}}, 3.0
    )
    sigmas = torch.cat([K.external.wrap(model).sigmas[levels].double(), torch.zeros(1)])
    ours = K.sampling.sample_euler(
        guided, noise * (1 + sigmas[0] ** 2).sqrt(), sigmas, extra_args={'cond': cond}, disable=True
    )
    assert_same(ours, ddim(model, noise, levels, cond, {**cond, 'c_crossattn': [empty]}, 3.0))


@pytest.mark.parametrize('answer', ['eps', 'v'])
def test_one_entry_of_a_condition_serves_all_items(answer):
    denoiser = K.external.wrap(LatentDiffusion(Small(7), 'hybrid', answer))
    one = {'c_crossattn': [TEXT[:1]], 'c_concat': [BESIDE[:1]]}
    all_ = {
        'c_crossattn': [TEXT[:1].expand(2, -1, -1)],
        'c_concat': [BESIDE[:1].expand(2, -1, -1, -1)],
    }
    x, sigma = randn(2, 4, 8, 8), torch.tensor([0.5, 3.0])
    torch.testing.assert_close(denoiser(x, sigma, cond=one), denoiser(x, sigma, cond=all_))


@pytest.mark.parametrize(
    'kind, says, message',
    [
        (
            'CompVisDenoiser',
            'v',
            "must predict eps; its parameterization is 'v'; wrap it in K.external.CompVisVDenoiser",
        ),
        (
            'CompVisVDenoiser',
            'eps',
            "must predict v; its parameterization is 'eps'; wrap it in K.external.CompVisDenoiser",
        ),
        ('CompVisDenoiser', 'x0', "must predict eps; its parameterization is 'x0'$"),
    ],
)
def test_a_model_that_says_it_gives_something_else(kind, says, message):
    with pytest.raises(ValueError, match=message):
        getattr(K.external, kind)(LatentDiffusion(Small(4), None, says))


@torch.no_grad()
@pytest.mark.parametrize('name', [None, 'crossattn', 'concat', 'hybrid', 'adm'])
def test_their_network_under_their_sampler(name, monkeypatch):
    pytest.importorskip('ldm', reason='CompVis/latent-diffusion is not on the path')
    pytest.importorskip('einops', reason="einops, which CompVis' networks need, is not installed")
    pytest.importorskip(
        'omegaconf', reason="omegaconf, which CompVis' networks need, is not installed"
    )
    from ldm.models.diffusion.ddim import DDIMSampler
    from ldm.modules.diffusionmodules.openaimodel import UNetModel

    channels, cond = CONDITIONS[name]
    torch.manual_seed(0)
    text = name in ('crossattn', 'hybrid')
    network = randomise(
        UNetModel(
            image_size=8,
            in_channels=channels,
            out_channels=4,
            model_channels=32,
            num_res_blocks=1,
            attention_resolutions=(1,),
            channel_mult=(1, 2),
            num_heads=2,
            use_spatial_transformer=text,
            context_dim=6 if text else None,
            num_classes=5 if name == 'adm' else None,
        )
    )
    model = LatentDiffusion(network, name)
    monkeypatch.setattr(
        DDIMSampler, 'register_buffer', lambda *args: setattr(*args)
    )  # theirs moves everything to a GPU
    noise = randn(2, 4, 8, 8, seed=2)
    sampler = DDIMSampler(model)
    sampler.make_schedule(4, verbose=False)
    expected, _ = sampler.ddim_sampling(cond, noise.shape, x_T=noise)
    denoiser = K.external.wrap(model)
    places = [751, 501, 251, 1]
    sigmas = torch.cat(
        [denoiser.sigmas[places], denoiser.sigmas[:1]]
    ).double()  # it ends at the first level of the table
    ours = K.sampling.sample_euler(
        denoiser,
        noise.double() * (1 + sigmas[0] ** 2).sqrt(),
        sigmas,
        extra_args={'cond': cond},
        disable=True,
    )
    assert_same(ours * model.alphas_cumprod[0].double().sqrt(), expected)


# guided-diffusion: upsamplers and classifiers


def linear_diffusion(steps=T):
    alphas = (1 - torch.linspace(1e-4, 0.02, steps, dtype=torch.float64)).cumprod(0)
    return SimpleNamespace(
        alphas_cumprod=alphas.numpy(),
        original_num_steps=steps,
        rescale_timesteps=False,
        model_mean_type=SimpleNamespace(name='EPSILON'),
        model_var_type=SimpleNamespace(name='LEARNED_RANGE'),
    )


class Upsampler(nn.Module):
    """Beside x the small picture, enlarged bilinearly, as SuperResModel has it; a variance
    beside the noise.
    """

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(6, 6, 3, padding=1)

    def forward(self, x, timesteps, low_res=None, y=None):
        low_res = nn.functional.interpolate(low_res, x.shape[-2:], mode='bilinear')
        return (
            self.conv(torch.cat([x, low_res], 1))
            + (timesteps.float() / 300).sin()[:, None, None, None]
        )


class EncoderUNetModel(nn.Module):
    """A classifier of noisy pictures by the name of theirs."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 5)

    def forward(self, x, timesteps):
        return self.linear(x.mean((2, 3)) * 4) * (timesteps.float() / 500 + 1).reciprocal()[:, None]


@torch.no_grad()
def test_an_upsampler_is_given_the_small_picture():
    torch.manual_seed(0)
    network, small = Upsampler(), randn(2, 3, 4, 4)
    denoiser = K.external.wrap(network, linear_diffusion())
    x, place = randn(2, 3, 8, 8, seed=1), torch.tensor([100, 700])
    sigma = denoiser.sigmas[place]
    noise = network(x / (1 + sigma**2).sqrt()[:, None, None, None], place, low_res=small)[:, :3]
    torch.testing.assert_close(
        denoiser(x, sigma, low_res=small),
        x - sigma[:, None, None, None] * noise,
        rtol=1e-4,
        atol=1e-4,
    )
    one = denoiser(x, sigma, low_res=small[:1])
    torch.testing.assert_close(one, denoiser(x, sigma, low_res=small[:1].expand(2, -1, -1, -1)))


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_a_frozen_classifier_in_its_own_dtype(dtype):
    torch.manual_seed(0)
    classifier = EncoderUNetModel().requires_grad_(False)
    diffusion = linear_diffusion()
    log_prob = K.external.openai_classifier(classifier, diffusion)
    x = randn(2, 3, 8, 8).to(dtype).requires_grad_()
    sigma, labels = torch.tensor([0.3, 2.0], dtype=dtype), torch.tensor([1, 3])
    actual = log_prob(x, sigma, labels)
    place = K.external.DiscreteSchedule(
        torch.as_tensor((1 / diffusion.alphas_cumprod - 1) ** 0.5).float(), False
    ).sigma_to_t(sigma)
    logits = classifier((x / (1 + sigma**2).sqrt()[:, None, None, None]).float(), place).to(dtype)
    torch.testing.assert_close(actual, torch.log_softmax(logits, 1)[[0, 1], labels])
    assert torch.autograd.grad(actual.sum(), x)[0].abs().max() > 0
    assert log_prob(x, sigma, labels[:1]).shape == (2,)


def test_a_classifier_is_no_denoiser():
    with pytest.raises(ValueError, match='EncoderUNetModel, a classifier.*openai_classifier'):
        K.external.wrap(EncoderUNetModel(), linear_diffusion())


@pytest.fixture(scope='module')
def script_util():
    pytest.importorskip('guided_diffusion', reason='openai/guided-diffusion is not on the path')
    from guided_diffusion import script_util

    return script_util


SMALL = {
    'num_channels': 32,
    'num_res_blocks': 1,
    'num_head_channels': 16,
    'use_scale_shift_norm': True,
    'resblock_updown': True,
    'learn_sigma': True,
    'class_cond': True,
    'timestep_respacing': 'ddim4',
}


def their_levels(diffusion):
    sigmas = torch.as_tensor((1 / diffusion.alphas_cumprod - 1) ** 0.5).flip(0)
    return torch.cat([sigmas, torch.zeros(1, dtype=sigmas.dtype)])


@torch.no_grad()
def test_their_upsampler(script_util):
    args = script_util.sr_model_and_diffusion_defaults()
    args.update({**SMALL, 'large_size': 64, 'small_size': 16, 'attention_resolutions': '8'})
    torch.manual_seed(0)
    network, diffusion = script_util.sr_create_model_and_diffusion(**args)
    randomise(network)
    cond, noise = (
        {'low_res': randn(2, 3, 16, 16), 'y': torch.tensor([3, 800])},
        randn(2, 3, 64, 64, seed=2),
    )
    expected = diffusion.ddim_sample_loop(
        network, noise.shape, noise=noise, clip_denoised=False, model_kwargs=cond, device='cpu'
    )
    sigmas = their_levels(diffusion)
    ours = K.sampling.sample_euler(
        K.external.wrap(network, diffusion),
        noise.double() * (1 + sigmas[0] ** 2).sqrt(),
        sigmas,
        extra_args=cond,
        disable=True,
    )
    assert_same(ours, expected)


@pytest.mark.parametrize('pool', ['attention', 'spatial'])
def test_their_classifier_guides_their_network(script_util, pool):
    args = script_util.model_and_diffusion_defaults()
    args.update({**SMALL, 'image_size': 64, 'attention_resolutions': '8'})
    torch.manual_seed(0)
    network, diffusion = script_util.create_model_and_diffusion(**args)
    classifier = script_util.create_classifier(
        **{
            **script_util.classifier_defaults(),
            'classifier_width': 64,
            'classifier_depth': 1,
            'classifier_attention_resolutions': '8',
            'classifier_pool': pool,
        }
    )
    randomise(network).requires_grad_(False)
    randomise(classifier)
    labels, noise, scale = torch.tensor([3, 800]), randn(2, 3, 64, 64, seed=2), 20.0

    def gradient(x, t, y):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            return (
                scale * torch.autograd.grad(classifier(x, t).log_softmax(-1)[[0, 1], y].sum(), x)[0]
            )

    def loop(function):
        with torch.no_grad():
            return diffusion.ddim_sample_loop(
                network,
                noise.shape,
                noise=noise,
                clip_denoised=False,
                model_kwargs={'y': labels},
                cond_fn=function,
                device='cpu',
            )

    expected, without = loop(gradient), loop(None)
    log_prob = K.external.openai_classifier(classifier.requires_grad_(False), diffusion)
    guided = K.guidance.classifier_guidance(
        K.external.wrap(network, diffusion), log_prob, scale, key='y', keep=True
    )
    sigmas = their_levels(diffusion)
    ours = K.sampling.sample_euler(
        guided,
        noise.double() * (1 + sigmas[0] ** 2).sqrt(),
        sigmas,
        extra_args={'y': labels},
        disable=True,
    )
    assert (expected - without).abs().max() / expected.abs().max() > 1e-3
    assert_same(ours, expected)
