"""One network, noise, condition and seed: K.sample, a pipeline of diffusers and a node of ComfyUI
give the same latents with every sampler.
"""

import comfyui_stand_in as host
import pytest
import torch

import k_diffusion as K
from k_diffusion.integrations.comfyui import NODE_CLASS_MAPPINGS
from k_diffusion.sampling.menus import list_options

diffusers = pytest.importorskip('diffusers', reason='diffusers is in the extra "diffusers"')
from tiny_pipelines import (  # noqa: E402
    BETAS,
    differ,
    flux_pipe,
    latents,
    ours,
    rounding,
    words,
)

ENTRIES = {entry.name: entry for entry in K.sampling.catalogue()}
SCALE, SEED = 1.5, 7
pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def comfyui(monkeypatch, tmp_path):
    host.install(monkeypatch, tmp_path)


def node(name):
    """The node with the defaults of the library in its widgets."""
    values = {key: option.default for key, option in list_options(ENTRIES[name]).items()}
    values.pop('down', None)
    return NODE_CLASS_MAPPINGS[f'KDiffusion_{name}']().give(**values, time='sigma')[0]


def in_comfyui(sampler, noise, denoise, kind, levels, scale):
    """Run a node from clean latents of 0; `denoise(x, sigma, positive)`."""
    ends = {'sigma_min': torch.tensor(0.0), 'sigma_max': torch.tensor(1e9)}
    model = host.Model(denoise, type('Sampling', (kind,), ends)())
    return host.Guider(model, scale).sample(
        noise, torch.zeros_like(noise), sampler, levels.float(), seed=SEED
    )


def finish(name, in_node, denoiser, levels, factor, **cond):
    """Two samplers end at the least level above 0 in ComfyUI; elsewhere D there is the result."""
    if 'sigmas' in ENTRIES[name].takes:
        return in_node
    low = levels[-2].float()
    return denoiser(in_node * factor, low.expand(len(in_node)), **cond)


def check(name, pictures):
    """Rounding changes the sizes of the steps that the adaptive sampler takes."""
    in_pipeline, in_node, by_call = pictures
    tolerance = 3e-4 if ENTRIES[name].couples_batch else rounding(name)
    assert differ(in_pipeline, by_call) < tolerance
    assert differ(in_node, by_call) < tolerance


def shape_and_steps(name):
    return ([1, 4, 8, 8], 60) if ENTRIES[name].couples_batch else ([2, 4, 8, 8], 5)


@pytest.mark.parametrize(
    ('name', 'prediction'),
    [
        *[(name, 'epsilon') for name in ENTRIES],
        *[(name, 'v_prediction') for name in ('heun', 'dpmpp_2m_sde', 'euler_cfg_pp')],
    ],
)
def test_with_guidance(unet, vae, name, prediction):
    shape, n = shape_and_steps(name)
    base = diffusers.DDIMScheduler(**BETAS, clip_sample=False, prediction_type=prediction)
    pipe = diffusers.StableDiffusionPipeline(
        vae=vae,
        text_encoder=None,
        tokenizer=None,
        unet=unet,
        scheduler=ours(base, sampler=name, schedule='karras', seed=SEED),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    cond, null = words(shape[0])
    handle = pipe.scheduler.watch(unet)
    in_pipeline = pipe(
        prompt_embeds=cond,
        negative_prompt_embeds=null,
        latents=latents(shape),
        num_inference_steps=n,
        guidance_scale=SCALE,
        output_type='latent',
    ).images
    handle.remove()
    levels = pipe.scheduler.levels
    denoiser = K.external.from_diffusers(unet, base)
    guided = K.guidance.classifier_free(denoiser, {'encoder_hidden_states': null}, SCALE)
    x = latents(shape) * levels[0].float()
    by_call = K.sample(
        guided, x, None, name, levels, seeds=SEED, cond={'encoder_hidden_states': cond}
    )

    def denoise(x, sigma, positive):
        return denoiser(x, sigma, encoder_hidden_states=cond if positive else null)

    # ComfyUI rounds the levels to float32
    in_node = in_comfyui(node(name), latents(shape), denoise, host.EPS, levels, SCALE)
    in_node = finish(name, in_node, guided, levels, 1.0, encoder_hidden_states=cond)
    check(name, (in_pipeline, in_node, by_call))


@pytest.mark.parametrize('name', [name for name, entry in ENTRIES.items() if not entry.needs_pair])
def test_of_a_flow(flux, vae, name):
    shape, n = shape_and_steps(name)
    base = diffusers.FlowMatchEulerDiscreteScheduler()
    options = {'down': 'flow'} if 'down' in ENTRIES[name].options else {}  # as the nodes have it
    scheduler = ours(base, sampler=name, seed=SEED, sampler_options=options)
    pipe = flux_pipe(flux, vae, scheduler)
    cond, _ = words(shape[0])
    pooled = latents([shape[0], 10], 6)
    times = torch.linspace(0.9, 0.1, n)
    noise = latents(shape)
    rows = torch.nn.functional.pixel_unshuffle(0.9 * noise, 2).flatten(2).mT
    in_pipeline = pipe(
        prompt_embeds=cond,
        pooled_prompt_embeds=pooled,
        latents=rows,
        sigmas=times.tolist(),
        num_inference_steps=n,
        height=16,
        width=16,
        output_type='latent',
    ).images
    denoiser, levels = K.external.from_diffusers(flux, base), scheduler.levels
    extra = {'encoder_hidden_states': cond, 'pooled_projections': pooled}
    x = 0.9 * noise.double() * (1 + levels[0])
    by_call = K.sample(
        denoiser, x, None, name, levels, seeds=SEED, cond=extra, options=options
    ).float()

    def denoise(x, sigma, positive):
        return denoiser(x, sigma, **extra)

    on_levels = levels / (1 + levels)
    in_node = in_comfyui(node(name), noise, denoise, host.CONST, on_levels, 1.0)
    in_node = finish(name, in_node, denoiser, levels, float(1 + levels[-2]), **extra)
    unpacked = torch.nn.functional.pixel_shuffle(in_pipeline.mT.unflatten(2, (4, 4)), 2)
    check(name, (unpacked, in_node, by_call))
