"""The samplers in the loops of modular pipelines of diffusers, on tiny random networks, with
diffusers' own guiders.
"""

import itertools
import re
from pathlib import Path

import pytest
import torch

import k_diffusion as K

diffusers = pytest.importorskip('diffusers', reason='diffusers is in the extra "diffusers"')
from diffusers.guiders import (  # noqa: E402
    AdaptiveProjectedGuidance,
    ClassifierFreeGuidance,
    SkipLayerGuidance,
)
from diffusers.modular_pipelines.flux import before_denoise as flux_before  # noqa: E402
from diffusers.modular_pipelines.flux import denoise as flux_denoise  # noqa: E402
from diffusers.modular_pipelines.flux import inputs as flux_inputs  # noqa: E402
from diffusers.modular_pipelines.modular_pipeline import SequentialPipelineBlocks  # noqa: E402
from diffusers.modular_pipelines.stable_diffusion_xl import before_denoise as before  # noqa: E402
from diffusers.modular_pipelines.stable_diffusion_xl import decoders, denoise  # noqa: E402
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

KDiffusionLoop = K.integrations.diffusers_modular.KDiffusionLoop
use_samplers = K.integrations.diffusers_modular.use_samplers


class TextToImage(SequentialPipelineBlocks):
    """The blocks of SDXL after the text encoders."""

    model_name = 'stable-diffusion-xl'
    block_classes = (
        before.StableDiffusionXLInputStep,
        before.StableDiffusionXLSetTimestepsStep,
        before.StableDiffusionXLPrepareLatentsStep,
        before.StableDiffusionXLPrepareAdditionalConditioningStep,
        denoise.StableDiffusionXLDenoiseStep,
    )
    block_names = ('input', 'set_timesteps', 'prepare_latents', 'conditioning', 'denoise')


class Inpainting(SequentialPipelineBlocks):
    """The loop of inpainting alone."""

    model_name = 'stable-diffusion-xl'
    block_classes = (denoise.StableDiffusionXLInpaintDenoiseStep,)
    block_names = ('denoise',)


class FluxBlocks(SequentialPipelineBlocks):
    model_name = 'flux'
    block_classes = (
        flux_inputs.FluxTextInputStep,
        flux_before.FluxPrepareLatentsStep,
        flux_before.FluxSetTimestepsStep,
        flux_before.FluxRoPEInputsStep,
        flux_denoise.FluxDenoiseStep,
    )
    block_names = ('input', 'prepare_latents', 'set_timesteps', 'rope', 'denoise')


@pytest.fixture(scope='module')
def unet():
    torch.manual_seed(0)
    return randomised(
        diffusers.UNet2DConditionModel(
            addition_embed_type='text_time',
            addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=6 * 4 + 10,
            **TINY,
            **CROSS,
        )
    )


def euler(**options):
    # with 'leading' their first level would be sqrt(1 + sigma^2)
    return diffusers.EulerDiscreteScheduler(**BETAS, timestep_spacing='linspace', **options)


def texts():
    cond, null = words()
    return {
        'prompt_embeds': cond,
        'negative_prompt_embeds': null,
        'pooled_prompt_embeds': latents([2, 10], 6),
        'negative_pooled_prompt_embeds': latents([2, 10], 7),
    }


def run(unet, vae, scheduler, guider, samplers=True, blocks=TextToImage, **arguments):
    blocks = use_samplers(blocks()) if samplers else blocks()
    pipe = blocks.init_pipeline()
    parts = {'unet': unet, 'vae': vae, 'scheduler': scheduler, 'guider': guider}
    pipe.update_components(
        **{name: part for name, part in parts.items() if name in pipe.components}
    )
    pipe.set_progress_bar_config(disable=True)
    arguments = {
        'num_inference_steps': 6,
        'height': 16,
        'width': 16,
        'latents': latents(),
        **texts(),
        **arguments,
    }
    return pipe(output='latents', **arguments)


def denoisers(unet, scheduler):
    """The conditional and the unconditional denoiser of the test's texts."""
    whole, ids = (
        K.external.from_diffusers(unet, scheduler),
        torch.tensor([[16.0, 16, 0, 0, 16, 16]] * 2),
    )
    embeddings = texts()

    def of(prefix):
        cond = {
            'encoder_hidden_states': embeddings[f'{prefix}prompt_embeds'],
            'text_embeds': embeddings[f'{prefix}pooled_prompt_embeds'],
            'time_ids': ids,
        }
        return lambda x, sigma: whole(x, torch.as_tensor(sigma).expand(2), **cond)

    return of(''), of('negative_')


class Counted(torch.nn.Module):
    def __init__(self, unet):
        super().__init__()
        self.unet, self.config, self.calls = unet, unet.config, 0
        self.add_embedding = unet.add_embedding

    @property
    def dtype(self):
        return self.unet.dtype

    def forward(self, *args, **kwargs):
        self.calls += 1
        return self.unet(*args, **kwargs)


QUICK = ('euler', 'heun', 'dpmpp_2m', 'dpmpp_2m_sde', 'uni_pc')


@pytest.mark.parametrize(
    'name',
    [
        entry.name if entry.name in QUICK else pytest.param(entry.name, marks=pytest.mark.slow)
        for entry in K.sampling.catalogue()
        if not entry.needs_pair
    ],
)
def test_sdxl_is_k_sample(unet, vae, name):
    base = euler()
    adaptive = name == 'dpm_adaptive'
    steps, options = (60, {'per_item': False}) if adaptive else (6, {})
    actual = run(
        unet,
        vae,
        ours(base, sampler=name, schedule='karras', seed=[3, 4]),
        ClassifierFreeGuidance(guidance_scale=1.5),
        num_inference_steps=steps,
    )
    cond, null = denoisers(unet, base)
    whole = K.external.from_diffusers(unet, base)
    expected = K.sample(
        lambda x, sigma: null(x, sigma) + 1.5 * (cond(x, sigma) - null(x, sigma)),
        latents() * whole.sigma_max,
        steps,
        name,
        'karras',
        seeds=[3, 4],
        sigma_min=float(whole.sigma_min),
        sigma_max=float(whole.sigma_max),
        options=options,
    )
    # Both DPM-Solvers of k-diffusion amplify the rounding of float32 in their long first steps.
    assert differ(actual, expected) < (
        1e-4 if name in ('dpm_adaptive', 'dpm_fast') else rounding(name)
    )


@pytest.mark.parametrize(
    'guider',
    [
        lambda: ClassifierFreeGuidance(
            guidance_scale=3.0, guidance_rescale=0.5, start=0.2, stop=0.7
        ),
        lambda: AdaptiveProjectedGuidance(
            guidance_scale=4.0, adaptive_projected_guidance_momentum=-0.5, eta=0.5
        ),
        lambda: SkipLayerGuidance(
            guidance_scale=2.0,
            skip_layer_guidance_stop=0.6,
            skip_layer_config=diffusers.LayerSkipConfig(
                indices=[0], fqn='mid_block.attentions.0.transformer_blocks', skip_ff=True
            ),
        ),
    ],
)
def test_guiders_are_those_of_their_own_loop(unet, vae, guider):
    """Euler of diffusers in diffusers' loop, and ours in ours, under the same guider."""
    base = euler()
    theirs = run(unet, vae, base, guider(), samplers=False)
    actual = run(unet, vae, ours(base, sampler='euler'), guider())
    assert differ(actual, theirs) < 2e-5
    assert (
        differ(
            actual,
            run(unet, vae, ours(base, sampler='euler'), ClassifierFreeGuidance(guidance_scale=1.0)),
        )
        > 1e-3
    )


def test_a_guiders_interval_is_a_share_of_the_steps(unet, vae):
    """Heun by hand: both calls of the first three steps of six are guided, and none after."""
    scheduler, counted = ours(euler(), sampler='heun', schedule='karras'), Counted(unet)
    guider = ClassifierFreeGuidance(guidance_scale=2.0, stop=0.5)
    actual = run(counted, vae, scheduler, guider)
    assert counted.calls == 2 * 6 + 5
    assert guider.forward.__func__ is ClassifierFreeGuidance.forward and 'set_state' not in vars(
        guider
    )
    cond, null = denoisers(unet, euler())
    sigmas, x = scheduler.levels.tolist(), latents() * scheduler.levels[0].float()
    for i, (sigma, sigma_next) in enumerate(itertools.pairwise(sigmas)):
        scale = 2.0 if i < 3 else 1.0

        def slope(x, sigma, scale=scale):
            return (x - null(x, sigma) - scale * (cond(x, sigma) - null(x, sigma))) / sigma

        d = slope(x, sigma)
        if sigma_next:
            d = (d + slope(x + (sigma_next - sigma) * d, sigma_next)) / 2
        x = x + (sigma_next - sigma) * d
    assert differ(actual, x) < 1e-5


def test_cfg_pp_has_the_unconditional_estimate_of_the_guider(unet, vae):
    """x' = D + sigma' (x - D_u) / sigma, without a watch of the network."""
    scheduler = ours(euler(), sampler='euler_cfg_pp', schedule='karras')
    actual = run(unet, vae, scheduler, ClassifierFreeGuidance(guidance_scale=1.3))
    cond, null = denoisers(unet, euler())
    x = latents() * scheduler.levels[0].float()
    for sigma, sigma_next in itertools.pairwise(scheduler.levels.tolist()):
        d_u = null(x, sigma)
        x = d_u + 1.3 * (cond(x, sigma) - d_u) + sigma_next / sigma * (x - d_u)
    assert differ(actual, x) < 1e-5
    with pytest.raises(ValueError, match='must see the unconditional estimate'):
        run(unet, vae, scheduler, ClassifierFreeGuidance(guidance_scale=1.0))


def test_calls_that_are_not_used_are_not_made(unet, vae):
    for name, options, calls in (
        ('euler', {'afs': True}, 5),
        ('heun', {'s_churn': 3.0}, 11),
        ('dpm_2', {}, 11),
    ):
        counted = Counted(unet)
        run(
            counted,
            vae,
            ours(euler(), sampler=name, sampler_options=options, seed=1),
            ClassifierFreeGuidance(guidance_scale=1.0),
        )
        assert counted.calls == calls
    counted = Counted(unet)
    scheduler = ours(
        euler(),
        sampler='dpm_adaptive',
        schedule='karras',
        sampler_options={'rtol': 0.5, 'atol': 0.5},
    )
    run(
        counted, vae, scheduler, ClassifierFreeGuidance(guidance_scale=1.0), num_inference_steps=300
    )
    assert counted.calls < 300


def test_inpainting_is_that_of_their_own_loop(unet, vae):
    mask = torch.zeros(2, 1, 8, 8)
    mask[..., 4:] = 1
    base = euler()
    ids = torch.tensor([[16.0, 16, 0, 0, 16, 16]] * 2)
    arguments = {
        'mask': mask,
        'noise': latents(seed=11),
        'image_latents': latents(seed=12),
        'denoiser_input_fields': {**texts(), 'add_time_ids': ids, 'negative_add_time_ids': ids},
    }
    results = []
    for scheduler, samplers in ((base, False), (ours(base, sampler='euler'), True)):
        scheduler.set_timesteps(6)
        scheduler.set_begin_index(2)
        x = scheduler.add_noise(
            arguments['image_latents'], arguments['noise'], scheduler.timesteps[2:3].repeat(2)
        )
        results.append(
            run(
                unet,
                vae,
                scheduler,
                ClassifierFreeGuidance(guidance_scale=1.5),
                samplers,
                Inpainting,
                **arguments,
                latents=x,
                timesteps=scheduler.timesteps[2:],
                num_inference_steps=4,
            )
        )
    assert differ(results[1], results[0]) < 1e-5


def test_generators_become_seeds_in_every_family(flux, vae):
    """The loop of Flux passes no generator to step; the pipeline with ours as its scheduler
    takes seeds.
    """
    base = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    cond, _ = words()
    arguments = {
        'prompt_embeds': cond,
        'pooled_prompt_embeds': latents([2, 10], 6),
        'num_inference_steps': 5,
        'height': 16,
        'width': 16,
    }

    def draw(scheduler, **more):
        pipe = use_samplers(FluxBlocks()).init_pipeline()
        pipe.update_components(scheduler=scheduler, transformer=flux)
        pipe.set_progress_bar_config(disable=True)
        rows = torch.nn.functional.pixel_unshuffle(latents(), 2).flatten(2).mT
        return pipe(
            output='latents', **{**arguments, 'height': 64, 'width': 64}, latents=rows, **more
        ), rows  # no VAE: 8 pixels each

    sources = [torch.Generator().manual_seed(seed) for seed in (5, 6)]
    actual, rows = draw(ours(base, sampler='dpmpp_2m_sde'), generator=sources)
    seeds = [
        int(torch.randint(2**63 - 1, [], generator=torch.Generator().manual_seed(seed)))
        for seed in (5, 6)
    ]
    pipe = flux_pipe(flux, vae, ours(base, sampler='dpmpp_2m_sde', seed=seeds))
    assert differ(actual, pipe(**arguments, latents=rows, output_type='latent').images) < 1e-5


def test_what_is_replaced_and_refused(unet, vae):
    blocks = use_samplers(diffusers.StableDiffusionXLAutoBlocks())
    loops = blocks.sub_blocks['denoise'].sub_blocks['denoise'].sub_blocks.values()
    kinds = [
        list(loop.sub_blocks.values()) if not isinstance(loop, KDiffusionLoop) else [loop]
        for loop in loops
    ]
    assert (
        all(isinstance(loop, KDiffusionLoop) for each in kinds for loop in each)
        and sum(map(len, kinds)) == 4
    )
    assert use_samplers(kinds[0][0]) is kinds[0][0]
    with pytest.raises(
        ValueError, match='must be a KDiffusionScheduler; got EulerDiscreteScheduler'
    ):
        run(unet, vae, euler(), ClassifierFreeGuidance(guidance_scale=1.0))


def test_the_example_of_the_page(unet, vae, monkeypatch):
    page = (Path(__file__).parents[2] / 'docs' / 'diffusers.md').read_text()
    (example,) = re.findall(r'```python\n([^`]*use_samplers.*?)```', page, re.S)
    pipes = []

    class Blocks(TextToImage):
        block_classes = (*TextToImage.block_classes, decoders.StableDiffusionXLDecodeStep)
        block_names = (*TextToImage.block_names, 'decode')

        def init_pipeline(self, folder):
            pipe = super().init_pipeline()
            pipe.load_components = lambda: pipe.update_components(
                unet=unet, vae=vae, scheduler=euler()
            )
            called = type(pipe).__call__
            monkeypatch.setattr(
                type(pipe),
                '__call__',
                lambda self, prompt, **inputs: called(
                    self, **{**texts(), 'height': 16, 'width': 16, 'latents': latents(), **inputs}
                ),
            )
            pipes.append(pipe)
            return pipe

    monkeypatch.setattr(diffusers, 'StableDiffusionXLAutoBlocks', Blocks)
    names: dict = {}
    exec(example, names)
    assert names['images'][0].size == (16, 16)
    assert pipes[0].scheduler.entry.name == 'heun' and pipes[0].guider.guidance_scale == 5
