"""The scheduler in diffusers' own pipelines, on tiny random networks: K.sample on the wrapped
network, to 1e-5.
"""

import copy
import itertools
import json
import pickle
import re
from pathlib import Path

import pytest
import torch

import k_diffusion as K

diffusers = pytest.importorskip('diffusers', reason='diffusers is in the extra "diffusers"')
from sampler_cases import COMFYUI  # noqa: E402
from tiny_pipelines import (  # noqa: E402
    BETAS,
    CROSS,
    TINY,
    differ,
    flux_pipe,
    latents,
    ours,
    randomised,
    rounding,
    words,
)

KDiffusionScheduler = K.integrations.diffusers.KDiffusionScheduler

SAMPLERS = ['euler', 'heun', 'dpmpp_2m', 'uni_pc', 'dpmpp_2m_sde', 'euler_ancestral']


def stable_diffusion(unet, vae, scheduler, kind='StableDiffusionPipeline'):
    pipe = getattr(diffusers, kind)(
        vae=vae,
        text_encoder=None,
        tokenizer=None,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def ddim():
    return diffusers.DDIMScheduler(**BETAS, steps_offset=1, clip_sample=False)


def guided(denoiser, cond, null, scale=1.5):
    return K.guidance.classifier_free(denoiser, {'encoder_hidden_states': null}, scale), {
        'encoder_hidden_states': cond
    }


# Stable Diffusion


@pytest.mark.parametrize('prediction', ['epsilon', 'v_prediction', 'sample'])
@pytest.mark.parametrize('name', SAMPLERS)
def test_stable_diffusion(unet, vae, name, prediction):
    base = diffusers.PNDMScheduler(**BETAS, skip_prk_steps=True, steps_offset=1)
    base.register_to_config(prediction_type=prediction)  # PNDM itself knows two of the three
    pipe = stable_diffusion(unet, vae, base)
    pipe.scheduler = ours(base, sampler=name, schedule='karras', seed=[7, 8])
    cond, null = words()
    x = latents()
    actual = pipe(
        prompt_embeds=cond,
        negative_prompt_embeds=null,
        latents=x,
        num_inference_steps=6,
        guidance_scale=1.5,
        output_type='latent',
    ).images
    euler = diffusers.EulerDiscreteScheduler(**BETAS, prediction_type=prediction)
    denoiser, cond = guided(K.external.from_diffusers(unet, euler), cond, null)
    expected = K.sample(
        denoiser, x * float(denoiser.sigma_max), 6, name, 'karras', seeds=[7, 8], cond=cond
    )
    assert differ(actual, expected) < 1e-5


@pytest.mark.parametrize('strength', [0.5, 0.8])
@pytest.mark.parametrize('name', SAMPLERS)
def test_stable_diffusion_image_to_image(unet, vae, name, strength):
    """Image-to-image leaves out the first steps and begins at the image with the noise of the
    level it comes to.
    """
    base = ddim()
    pipe = stable_diffusion(
        unet,
        vae,
        ours(base, sampler=name, schedule='karras', seed=3),
        'StableDiffusionImg2ImgPipeline',
    )
    cond, null = words()
    image = latents(seed=9)
    actual = pipe(
        image=image,
        strength=strength,
        prompt_embeds=cond,
        negative_prompt_embeds=null,
        num_inference_steps=10,
        guidance_scale=1.5,
        generator=torch.Generator().manual_seed(4),
        output_type='latent',
    ).images
    denoiser, cond = guided(K.external.from_diffusers(unet, base), cond, null)
    sigmas = K.schedules.get_sigmas_karras(
        10, float(denoiser.sigma_min), float(denoiser.sigma_max)
    )[-int(10 * strength) - 1 :]
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(4))
    expected = K.sample(
        denoiser, image + noise * sigmas[0], sampler=name, schedule=sigmas, seeds=3, cond=cond
    )
    assert differ(actual, expected) < 1e-5


@pytest.mark.parametrize('name', ['euler', 'heun', 'dpmpp_2m'])
def test_inpainting_keeps_what_is_masked(unet, vae, name):
    """Four-channel inpainting puts the noisy image back between model calls; the sampler goes on
    from the edited latents.
    """
    pipe = stable_diffusion(unet, vae, ours(ddim(), sampler=name), 'StableDiffusionInpaintPipeline')
    cond, null = words(1)
    image, mask = (
        torch.rand([1, 3, 16, 16], generator=torch.Generator().manual_seed(0)) * 2 - 1,
        torch.zeros([1, 1, 16, 16]),
    )
    mask[..., 8:] = 1
    states = []

    def look(pipe, i, t, inputs):
        states.append(inputs['latents'])
        return {}

    actual = pipe(
        image=image,
        mask_image=mask,
        prompt_embeds=cond,
        negative_prompt_embeds=null,
        num_inference_steps=5,
        height=16,
        width=16,
        output_type='latent',
        generator=torch.Generator().manual_seed(0),
        callback_on_step_end=look,
    ).images
    encoded = pipe._encode_vae_image(image, torch.Generator().manual_seed(0))
    assert actual.shape == encoded.shape and actual.isfinite().all()
    assert len(states) == len(pipe.scheduler.timesteps)
    half = actual.shape[-1] // 2
    # the noise that is put back at a level lies on the line from the image to the first of them
    ratio = [
        (x - states[-1])[..., :half].norm() / (states[0] - states[-1])[..., :half].norm()
        for x in states[:-1]
    ]
    expected_ratio = [float(s / pipe.scheduler.sigmas[1]) for s in pipe.scheduler.sigmas[1:-1]]
    torch.testing.assert_close(
        torch.stack(ratio), torch.tensor(expected_ratio), rtol=1e-4, atol=1e-5
    )


def test_an_edit_between_steps_moves_the_sampler(unet, vae):
    """callback_on_step_end returns other latents: the same run by hand, x' = x + (sigma' -
    sigma) (x - D) / sigma.
    """
    pipe = stable_diffusion(unet, vae, ours(ddim(), sampler='euler', schedule='karras'))
    cond, null = words()
    x = latents()

    def edit(pipe, i, t, inputs):
        return {'latents': inputs['latents'] + 0.5} if i == 1 else {}

    actual = pipe(
        prompt_embeds=cond,
        negative_prompt_embeds=null,
        latents=x,
        num_inference_steps=4,
        guidance_scale=1.5,
        output_type='latent',
        callback_on_step_end=edit,
    ).images
    denoiser, conditions = guided(K.external.from_diffusers(unet, pipe.scheduler), cond, null)
    sigmas = pipe.scheduler.levels.tolist()
    x = x * sigmas[0]
    for i, (sigma, sigma_next) in enumerate(itertools.pairwise(sigmas)):
        x = (
            x
            + (sigma_next - sigma)
            * (x - denoiser(x, torch.tensor([sigma] * 2), **conditions))
            / sigma
            + 0.5 * (i == 1)
        )
    assert differ(actual, x) < 1e-5


@pytest.mark.parametrize('strength', [0.3, 0.5, 0.8])
@pytest.mark.parametrize('name', ['restart', 'dpm_fast', 'dpm_adaptive'])
def test_image_to_image_with_samplers_that_choose_their_calls(unet, vae, name, strength):
    """They start at the level that the strength comes to, with the calls that remain."""
    adaptive = name == 'dpm_adaptive'
    n, options = (100, {'rtol': 0.2, 'atol': 0.05}) if adaptive else (10, {})
    base = ddim()
    pipe = stable_diffusion(
        unet,
        vae,
        ours(base, sampler=name, schedule='karras', seed=3, sampler_options=options),
        'StableDiffusionImg2ImgPipeline',
    )
    cond, null = words(1)
    image = latents([1, 4, 8, 8], seed=9)
    actual = pipe(
        image=image,
        strength=strength,
        prompt_embeds=cond,
        negative_prompt_embeds=null,
        num_inference_steps=n,
        guidance_scale=1.5,
        generator=torch.Generator().manual_seed(4),
        output_type='latent',
    ).images
    denoiser, cond = guided(K.external.from_diffusers(unet, base), cond, null)
    low, high = float(denoiser.sigma_min), float(denoiser.sigma_max)
    karras = K.schedules.get_sigmas_karras(n, low, high)
    sigmas = karras[-round(n * strength) - 1 :]
    if name == 'dpm_fast':
        whole = K.sampling.requests(
            'dpm_fast', torch.zeros(1, 1), sigma_min=low, sigma_max=high, n=n
        )
        calls = []
        try:
            request = next(whole)
            while True:
                calls.append(request.level)
                request = whole.send(request.x)
        except StopIteration:
            pass
        sigmas[0] = calls[n - round(n * strength)]
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(4))
    start = image + noise * sigmas[0]
    expected = K.sample(denoiser, start, None, name, sigmas, seeds=3, cond=cond, options=options)
    assert differ(actual, expected) < (1e-4 if adaptive else 1e-5)


# The other families


@pytest.mark.parametrize('name', SAMPLERS)
def test_sdxl(vae, name):
    torch.manual_seed(0)
    unet = randomised(
        diffusers.UNet2DConditionModel(
            addition_embed_type='text_time',
            addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=6 * 4 + 10,
            **TINY,
            **CROSS,
        )
    )
    base = diffusers.EulerDiscreteScheduler(**BETAS, timestep_spacing='leading', steps_offset=1)
    parts = {
        'vae': vae,
        'text_encoder': None,
        'text_encoder_2': None,
        'tokenizer': None,
        'tokenizer_2': None,
        'unet': unet,
        'scheduler': ours(base, sampler=name, seed=1),
    }
    cond, _ = words()
    pooled, x = latents([2, 10], 6), latents()
    for strength in (None, 0.6):
        kind = (
            'StableDiffusionXLPipeline' if strength is None else 'StableDiffusionXLImg2ImgPipeline'
        )
        pipe = getattr(diffusers, kind)(**parts)
        pipe.set_progress_bar_config(disable=True)
        start = (
            {'latents': x, 'height': 16, 'width': 16}
            if strength is None
            else {'image': x, 'strength': strength}
        )
        actual = pipe(
            prompt_embeds=cond,
            pooled_prompt_embeds=pooled,
            num_inference_steps=5,
            guidance_scale=1.0,
            output_type='latent',
            original_size=(16, 16),
            target_size=(16, 16),
            generator=torch.Generator().manual_seed(4),
            **start,
        ).images
        base.set_timesteps(5)
        sigmas = K.external.scheduler_sigmas(base)
        begin = x * sigmas[0]
        if strength is not None:
            sigmas = sigmas[-4:]
            begin = x + torch.randn(x.shape, generator=torch.Generator().manual_seed(4)) * sigmas[0]
        cond_of = {
            'encoder_hidden_states': cond,
            'text_embeds': pooled,
            'time_ids': torch.tensor([[16.0, 16, 0, 0, 16, 16]] * 2),
        }
        expected = K.sample(
            K.external.from_diffusers(unet, base),
            begin.float(),
            sampler=name,
            schedule=sigmas,
            seeds=1,
            cond=cond_of,
        )
        assert differ(actual, expected) < 1e-5


def pack(x):
    return torch.nn.functional.pixel_unshuffle(x, 2).flatten(2).mT


@pytest.mark.parametrize('height', [8, 12])
@pytest.mark.parametrize('name', SAMPLERS)
def test_flux(flux, vae, name, height):
    """Shift by the number of tokens; Flux packs its latents into rows of patches, and the noise
    of the steps is that of the image all the same.
    """
    base = diffusers.FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, shift=3.0
    )
    shape = None if height == 8 else [4, height, 8]  # a square is the default
    pipe = flux_pipe(flux, vae, ours(base, sampler=name, seed=1, latent_shape=shape))
    x, pooled = latents((2, 4, height, 8)), latents([2, 10], 6)
    cond, _ = words()
    arguments = {
        'prompt_embeds': cond,
        'pooled_prompt_embeds': pooled,
        'num_inference_steps': 5,
        'output_type': 'latent',
        'height': 2 * height,
        'width': 16,
    }
    actual = pipe(latents=pack(x), **arguments).images
    sigmas = pipe.scheduler.levels
    mu = 0.5 + (1.15 - 0.5) / (4096 - 256) * (2 * height - 256)
    times = torch.linspace(1, 1 / 5, 5, dtype=torch.float64)
    shifted = torch.e**mu / (torch.e**mu + 1 / times - 1)
    torch.testing.assert_close(sigmas[1:-1], (shifted / (1 - shifted))[1:], rtol=1e-5, atol=0.0)
    expected = K.sample(
        K.external.from_diffusers(flux, base),
        x * (1 + sigmas[0].float()),
        sampler=name,
        schedule=sigmas,
        seeds=1,
        cond={'encoder_hidden_states': cond, 'pooled_projections': pooled},
    )
    assert differ(actual, pack(expected)) < 1e-5
    if name == 'euler':
        pipe.scheduler = base
        assert (
            differ(actual, pipe(latents=pack(x), **arguments).images) < 1e-3
        )  # its first time is 1, ours 1 - 1e-4


@pytest.mark.parametrize(
    'name', ['euler', 'dpmpp_2m', 'heun', 'dpmpp_2m_sde', 'restart', 'dpm_fast']
)
def test_flux_image_to_image(flux, vae, name):
    base = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipe = flux_pipe(flux, vae, ours(base, sampler=name, seed=2), 'FluxImg2ImgPipeline')
    cond, _ = words(1)
    image, pooled = latents([1, 4, 8, 8]), latents([1, 10], 6)
    actual = pipe(
        image=image,
        strength=0.6,
        prompt_embeds=cond,
        pooled_prompt_embeds=pooled,
        num_inference_steps=5,
        height=16,
        width=16,
        generator=torch.Generator().manual_seed(3),
        output_type='latent',
    ).images
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(3))
    scheduler = pipe.scheduler
    begin = int(len(scheduler.timesteps) * (1 - 0.6))
    sigma = scheduler.sigmas[begin] / (1 - scheduler.sigmas[begin])
    sigmas = scheduler.levels[scheduler.levels <= sigma * (1 + 1e-6)]
    if name == 'dpm_fast':  # as many calls as remain, the last one at its low end
        n = len(scheduler.timesteps) - begin - 1
        sigmas = torch.cat([sigma[None].double(), scheduler.levels[-n:]])
    expected = K.sample(
        K.external.from_diffusers(flux, base),
        image + sigma * noise,
        sampler=name,
        schedule=sigmas,
        seeds=2,
        cond={'encoder_hidden_states': cond, 'pooled_projections': pooled},
    )
    assert differ(actual, pack(expected)) < 1e-5


# Every sampler, in a pipeline's loop


def walk(scheduler, network, x, n=6, sigmas=None, **options):
    """The loop of a pipeline."""
    scheduler.set_timesteps(n, sigmas=sigmas)
    x = x * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        x = scheduler.step(
            network(scheduler.scale_model_input(x, t), t), t, x, return_dict=False, **options
        )[0]
    return x


def noise_of_gaussian(std=0.6):
    """The noise that the exact denoiser of data N(0, std^2) sees in x = sqrt(1 + sigma^2) x_in,
    as a network of diffusers.
    """
    table = diffusers.EulerDiscreteScheduler(**BETAS).alphas_cumprod.double()
    log_sigmas = ((1 - table) / table).log() / 2

    def network(x, t):
        place = t.double().clamp(0, 999)
        low = place.floor().long().clamp(max=998)
        sigma = torch.lerp(log_sigmas[low], log_sigmas[low + 1], place - low).exp().to(x)
        return x * (1 + sigma**2).sqrt() * sigma / (sigma**2 + std**2)

    return network


def exact(x, sigma, std=0.6):
    return x * (std**2 / (std**2 + sigma.view(-1, 1, 1, 1) ** 2))


@pytest.mark.parametrize(
    'name', [entry.name for entry in K.sampling.catalogue() if not entry.needs_pair]
)
def test_every_sampler(name):
    scheduler = KDiffusionScheduler(name, 'karras', seed=[5, 6], **BETAS)
    x = latents()
    n, options = (60, {'per_item': False}) if name == 'dpm_adaptive' else (6, {})
    actual = walk(scheduler, noise_of_gaussian(), x, n)
    sigma_max, sigma_min = scheduler.levels[0], scheduler.levels[-2]
    expected = K.sample(
        exact,
        x * sigma_max.float(),
        n,
        name,
        'karras',
        seeds=[5, 6],
        sigma_min=float(sigma_min),
        sigma_max=float(sigma_max),
        options=options,
    )
    # Rounding errors change the sizes of the steps that the adaptive sampler takes.
    assert differ(actual, expected) < (1e-4 if name == 'dpm_adaptive' else rounding(name))
    assert len(scheduler.timesteps) >= n and len(scheduler.sigmas) == len(scheduler.timesteps) + 1


@pytest.mark.parametrize(
    'name, options', [('heun', {'s_churn': 3.0}), ('euler', {'afs': True}), ('sei', {'tele': True})]
)
def test_a_sampler_that_does_not_ask_at_its_first_level(name, options):
    """The network's first answer is not used, and the first level is walked without it."""
    scheduler = KDiffusionScheduler(name, 'karras', options, seed=1, **BETAS)
    x = latents()
    sigmas = [8.0, 4.0, 2.0, 1.0, 0.5, 0.1, 0.0]  # with its end, as diffusers takes it
    actual = walk(scheduler, noise_of_gaussian(), x, None, sigmas)
    expected = K.sample(exact, x * 8, sampler=name, schedule=sigmas, seeds=1, options=options)
    assert differ(actual, expected) < 1e-5
    torch.testing.assert_close(
        scheduler.timesteps[0], scheduler.denoiser.sigma_to_t(torch.tensor(8.0))
    )


def test_cfg_pp_sees_the_unconditional_estimate(unet, vae):
    """x' = D + sigma' / sigma (x - D_u), both estimates from the doubled batch of the pipeline's
    network.
    """
    pipe = stable_diffusion(
        unet, vae, KDiffusionScheduler('euler_cfg_pp', 'karras', **BETAS, steps_offset=1)
    )
    cond, null = words()
    arguments = {
        'prompt_embeds': cond,
        'negative_prompt_embeds': null,
        'latents': latents(),
        'num_inference_steps': 4,
        'guidance_scale': 1.2,
        'output_type': 'latent',
    }
    with pytest.raises(ValueError, match='scheduler.watch'):
        pipe(**arguments)
    handle = pipe.scheduler.watch(unet)
    actual = pipe(**arguments).images
    handle.remove()
    denoiser = K.external.from_diffusers(unet, pipe.scheduler)
    sigmas = pipe.scheduler.levels.tolist()
    x = latents() * sigmas[0]
    for sigma, sigma_next in itertools.pairwise(sigmas):
        d, d_u = (
            denoiser(x, torch.tensor([sigma] * 2), encoder_hidden_states=words)
            for words in (cond, null)
        )
        x = d_u + 1.2 * (d - d_u) + sigma_next / sigma * (x - d_u)
    assert differ(actual, x) < 1e-5


@pytest.mark.parametrize(
    'name', [entry.name for entry in K.sampling.catalogue() if entry.needs_pair]
)
def test_every_sampler_of_cfg_pp(name):
    """The pipeline's network answers for both halves of a doubled batch, which the scheduler
    watches.
    """
    scale, scheduler = 1.4, KDiffusionScheduler(name, 'karras', seed=[5, 6], **BETAS)

    class Halves(torch.nn.Module):
        def forward(self, x, t):
            return (torch.cat([noise_of_gaussian(0.9)(x, t), noise_of_gaussian(0.6)(x, t)]),)

    network, x = Halves(), latents()
    scheduler.watch(network)

    def guided(x, t):
        unconditional, conditional = network(x, t)[0].chunk(2)
        return unconditional + scale * (conditional - unconditional)

    class Pair:
        def pair(self, x, sigma):
            return exact(x, sigma, 0.9) + scale * (
                exact(x, sigma, 0.6) - exact(x, sigma, 0.9)
            ), exact(x, sigma, 0.9)

        def __call__(self, x, sigma):
            return self.pair(x, sigma)[0]

    actual = walk(scheduler, guided, x)
    expected = K.sample(
        Pair(), x * scheduler.levels[0].float(), None, name, scheduler.levels, seeds=[5, 6]
    )
    assert differ(actual, expected) < 1e-5


def test_every_sampler_of_comfyui_is_known_by_its_name():
    assert {
        KDiffusionScheduler(name, **BETAS).entry.name for name in COMFYUI
    } <= K.sampling.SAMPLERS.keys()


def test_dpm_adaptive_stops_at_its_budget():
    scheduler = KDiffusionScheduler('dpm_adaptive', 'karras', **BETAS)
    with pytest.raises(ValueError, match='num_inference_steps must be at least'):
        walk(scheduler, noise_of_gaussian(), latents(), 5)


# Noise


def test_generators_become_a_seed_for_each_image():
    """An image depends on its own generator alone; the seeds are the generators' next numbers."""
    network, x = noise_of_gaussian(), latents([3, 4, 8, 8])

    def generators(*seeds):
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    scheduler = KDiffusionScheduler('dpmpp_2m_sde', 'karras', **BETAS)
    together = walk(scheduler, network, x, generator=generators(1, 2, 3))
    alone = walk(scheduler, network, x[1:2], generator=generators(2))
    torch.testing.assert_close(together[1:2], alone, rtol=0, atol=0)
    samples = [
        int(torch.randint(2**63 - 1, [], generator=generator)) for generator in generators(1, 2, 3)
    ]
    scheduler = KDiffusionScheduler('dpmpp_2m_sde', 'karras', seed=samples, **BETAS)
    torch.testing.assert_close(walk(scheduler, network, x), together, rtol=0, atol=0)
    one = walk(
        KDiffusionScheduler('dpmpp_2m_sde', 'karras', **BETAS),
        network,
        x,
        generator=torch.Generator().manual_seed(0),
    )
    assert differ(one, together) > 0.01
    with pytest.raises(ValueError, match='each of the 3 items; got 2'):
        walk(scheduler.from_config(scheduler, seed=None), network, x, generator=generators(1, 2))


def test_deterministic_samplers_leave_the_global_generator_alone():
    state = torch.get_rng_state()
    walk(KDiffusionScheduler('dpmpp_2m', 'karras', **BETAS), noise_of_gaussian(), latents())
    assert torch.equal(state, torch.get_rng_state())


def test_half_precision_keeps_the_sampler_in_float32():
    network, x = noise_of_gaussian(), latents()
    actual = walk(KDiffusionScheduler('dpmpp_2m', 'karras', **BETAS), network, x.half())
    expected = walk(KDiffusionScheduler('dpmpp_2m', 'karras', **BETAS), network, x.half().float())
    assert actual.dtype == torch.float16 and differ(actual.float(), expected) < 2e-3


# Files, copies, mistakes


@pytest.fixture
def calibration():
    spectrum = K.sampling.Spectrum(torch.zeros(4, 8, 8), torch.full([4, 8, 8], 0.36), 'cosines')
    corrections = tuple((0.0,) * K.sampling.calibration.solver.CORRECTIONS['sei'] for _ in range(4))
    return K.sampling.Calibration('sei', (14.6, 3.0, 1.0, 0.4, 0.1, 0.0), corrections, spectrum)


def test_a_calibration(calibration, tmp_path):
    """Its file is all that is needed, and its content is saved with the scheduler."""
    from k_diffusion.sampling.calibration.files import to_json

    (tmp_path / 'solver.json').write_text(to_json(calibration))
    scheduler = KDiffusionScheduler(calibration=str(tmp_path / 'solver.json'), **BETAS)
    (tmp_path / 'solver.json').unlink()
    scheduler.save_pretrained(tmp_path)
    scheduler = KDiffusionScheduler.from_pretrained(tmp_path)
    x = latents()
    actual = walk(scheduler, noise_of_gaussian(), x, 4)
    expected = K.sample(exact, x * 14.6, sampler=calibration.sampler())
    assert differ(actual, expected) < 1e-5
    with pytest.raises(ValueError, match='4 steps'):
        scheduler.set_timesteps(7)


def test_saved_and_loaded_with_its_pipeline(unet, vae, tmp_path):
    pipe = stable_diffusion(
        unet,
        vae,
        KDiffusionScheduler(
            'DPM++ 2M SDE Karras', sampler_options={'eta': 0.5}, seed=3, **BETAS, steps_offset=1
        ),
    )
    pipe.save_pretrained(tmp_path)
    loaded = diffusers.StableDiffusionPipeline.from_pretrained(
        tmp_path,
        text_encoder=None,
        tokenizer=None,
        safety_checker=None,
        feature_extractor=None,
        image_encoder=None,
    )
    assert isinstance(loaded.scheduler, KDiffusionScheduler)
    assert (
        json.loads((tmp_path / 'scheduler/scheduler_config.json').read_text())['sampler']
        == 'dpmpp_2m_sde'
    )
    assert dict(loaded.scheduler.config, _class_name=0, _diffusers_version=0) == dict(
        pipe.scheduler.config, _class_name=0, _diffusers_version=0
    )
    network, x = noise_of_gaussian(), latents()
    torch.testing.assert_close(
        walk(loaded.scheduler, network, x), walk(pipe.scheduler, network, x), rtol=0, atol=0
    )


def test_another_scheduler_from_ours(unet):
    """The settings of the pipeline's own scheduler are kept, so a pipeline goes back to one of
    diffusers.
    """
    base = diffusers.EulerDiscreteScheduler(**BETAS, prediction_type='v_prediction')
    back = diffusers.EulerDiscreteScheduler.from_config(ours(base, sampler='heun').config)
    assert (
        back.config.prediction_type == 'v_prediction' and back.config.beta_end == BETAS['beta_end']
    )


def test_a_copy_in_the_middle_begins_anew():
    scheduler, network = KDiffusionScheduler('heun', 'karras', **BETAS), noise_of_gaussian()
    scheduler.set_timesteps(4)
    x = latents() * scheduler.init_noise_sigma
    scheduler.step(
        network(scheduler.scale_model_input(x, scheduler.timesteps[0]), scheduler.timesteps[0]),
        scheduler.timesteps[0],
        x,
    )
    again = copy.deepcopy(scheduler)
    assert scheduler.step_index == 1 and again.step_index is None
    torch.testing.assert_close(
        walk(again, network, latents(), 4), walk(scheduler, network, latents(), 4)
    )


@pytest.mark.parametrize(
    'make, message',
    [
        (lambda: KDiffusionScheduler('eulr'), 'euler'),
        (
            lambda: KDiffusionScheduler.from_config(
                {'sigma_data': 1.0, 'sigma_schedule': 'exponential', 'solver_order': 2}
            ),
            'CosineDPMSolver',
        ),
        (lambda: ours(diffusers.CMStochasticIterativeScheduler(), sampler='euler'), 'consistency'),
        (lambda: ours(diffusers.CogVideoXDDIMScheduler(), sampler='euler'), 'CogVideoX'),
        (lambda: KDiffusionScheduler(prediction_type='w'), 'prediction_type'),
        (lambda: KDiffusionScheduler('euler').step(latents(), 0, latents()), 'set_timesteps'),
        (lambda: begin_inside('dpm_2', 3), 'inside one'),
        (lambda: begin_inside('euler', 3, {'s_churn': 3.0}), 'without churn'),
        (lambda: KDiffusionScheduler(sampler_options=[1]), r'a dict; got \[1\]'),
        (lambda: step_of_tokens([3, 'a']), r"latents \[2, 4, 4\]; got \[3, 'a'\]"),
        (lambda: begin_inside('ddim', 0, {'eta': -1.0}), 'eta must be'),
        *[
            (
                lambda n=n: KDiffusionScheduler('euler', **BETAS).set_timesteps(n),
                'num_inference_steps',
            )
            for n in (0, -3, 2.5, None, True)
        ],
    ],
)
def test_mistakes(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def step_of_tokens(latent_shape):
    scheduler = KDiffusionScheduler(
        'euler', latent_shape=latent_shape, prediction_type='flow_prediction'
    )
    scheduler.set_timesteps(3)
    return scheduler.step(torch.zeros(2, 4, 4), scheduler.timesteps[0], torch.zeros(2, 4, 4))


def begin_inside(name, index, options=None):
    scheduler = KDiffusionScheduler(name, 'karras', options, **BETAS)
    scheduler.set_timesteps(5)
    scheduler.set_begin_index(index)
    return scheduler.step(latents(), scheduler.timesteps[index], latents())


def test_the_examples_of_the_page(unet, vae, tmp_path, monkeypatch):
    """The pipeline's example with a small random pipeline in place of a downloaded one; the
    coroutine's as it stands.
    """
    page = (Path(__file__).parents[2] / 'docs' / 'diffusers.md').read_text()
    first, _, second = re.findall(
        r'```python\n(.*?)```', page, re.S
    )  # the one between: test_diffusers_modular.py
    assert sum(bool(line.strip()) for line in first.splitlines()) <= 10
    cond, null = words(1)
    pipe = stable_diffusion(
        unet, vae, diffusers.PNDMScheduler(**BETAS, skip_prk_steps=True, steps_offset=1)
    )
    monkeypatch.setattr(diffusers.StableDiffusionPipeline, 'from_pretrained', lambda folder: pipe)
    monkeypatch.setattr(
        pipe, 'encode_prompt', lambda *args, **kwargs: (cond.repeat(2, 1, 1), null.repeat(2, 1, 1))
    )
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(first, names)
    assert len(names['images']) == 2 and names['images'][0].size == (16, 16)
    assert (tmp_path / 'path/to/copy/scheduler/scheduler_config.json').exists()
    exec(second, names)
    sigmas = torch.tensor([10.0, 2.0, 0.5, 0.0])
    assert names['x'].shape == (1, 4, 8, 8) and names['x'].abs().max() < sigmas[0]


# Found in review


@pytest.mark.parametrize('edits', [False, True])
@pytest.mark.parametrize('name', ['dpmpp_2m', 'dpmpp_2m_sde'])
def test_inference_mode(unet, vae, name, edits):
    """Under inference mode, whose tensors have no version, edits are seen all the same."""

    def edit(pipe, i, t, inputs):
        return {'latents': inputs['latents'] + 0.1} if edits else {}

    pipe = stable_diffusion(unet, vae, ours(ddim(), sampler=name, seed=1))
    cond, null = words()
    arguments = {
        'prompt_embeds': cond,
        'negative_prompt_embeds': null,
        'num_inference_steps': 4,
        'guidance_scale': 1.5,
        'output_type': 'latent',
        'callback_on_step_end': edit,
    }
    expected = pipe(**arguments, latents=latents()).images
    with torch.inference_mode():
        actual = pipe(**arguments, latents=latents()).images
    torch.testing.assert_close(actual.clone(), expected, rtol=0, atol=0)


def test_another_sampler_leaves_out_what_belonged_to_the_last(calibration):
    from k_diffusion.sampling.calibration.files import to_dict

    first = KDiffusionScheduler(
        'DPM++ 2M SDE Karras', sampler_options={'eta': 0.5}, seed=3, **BETAS
    )
    other = KDiffusionScheduler.from_config(first.config, sampler='euler')
    assert (
        other.config.sampler_options == {}
        and other.config.schedule == 'karras'
        and other.config.seed == 3
    )
    titled = KDiffusionScheduler.from_config(first.config, sampler='Euler Exponential')
    assert (titled.config.sampler, titled.config.schedule) == ('euler', 'exponential')
    assert KDiffusionScheduler.from_config(first.config, seed=4).config.sampler_options == {
        'eta': 0.5
    }
    fitted = KDiffusionScheduler(calibration=to_dict(calibration), **BETAS)
    assert KDiffusionScheduler.from_config(fitted.config, sampler='heun').entry.name == 'heun'


def test_a_pickled_copy_draws_the_same(calibration):
    from k_diffusion.sampling.calibration.files import to_dict

    network, x = noise_of_gaussian(), latents()
    for scheduler, n in (
        (KDiffusionScheduler('dpmpp_2m_sde', 'karras', seed=3, **BETAS), 6),
        (KDiffusionScheduler(calibration=to_dict(calibration), **BETAS), 4),
    ):
        again = pickle.loads(pickle.dumps(scheduler))
        torch.testing.assert_close(
            walk(again, network, x, n), walk(scheduler, network, x, n), rtol=0, atol=0
        )
