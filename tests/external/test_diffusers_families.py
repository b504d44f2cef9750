"""Families of diffusers by their own pipelines: our Euler on the wrapped network is what the
pipeline's call gives, to 1e-5.
"""

import inspect
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch

import k_diffusion as K

diffusers = pytest.importorskip('diffusers', reason='diffusers is in the extra "diffusers"')

STEPS = 4  # divides 1000, or DDIM would not step onto its own next level
HEADS = {'num_attention_heads': 2, 'attention_head_dim': 8}


def text(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


@dataclass
class Case:
    """A pipeline with a tiny network, what it is called with, and the same conditions by the
    names of the network's forward.
    """

    pipeline: str
    network: str
    settings: dict[str, Any]
    call: dict[str, Any]
    cond: dict[str, Any]
    latents: tuple[int, ...] = (2, 4, 8, 8)
    size: dict[str, int] = field(default_factory=lambda: {'height': 64, 'width': 64})
    scheduler: Any = None
    parts: Any = dict  # makes other parts of the pipeline
    change: dict[str, Any] = field(default_factory=dict)  # attributes of the pipeline
    tokens: bool = False  # the pipeline takes and gives tokens, not latents

    def make_network(self):
        torch.manual_seed(0)
        model = getattr(diffusers, self.network)(**self.settings).eval()
        generator = torch.Generator().manual_seed(1)
        for p in model.parameters():  # zero-initialised last layers would make every answer 0
            p.data += 0.05 * torch.randn(p.shape, generator=generator)
        return model

    def make_pipeline(self, network):
        kind = getattr(diffusers, self.pipeline)
        parts = {
            name: None
            for name, p in inspect.signature(kind.__init__).parameters.items()
            if name != 'self' and p.default is p.empty
        }
        scheduler = self.scheduler or diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
        pipeline = kind(**{**parts, **self.parts(), 'transformer': network, 'scheduler': scheduler})
        for name, value in self.change.items():
            setattr(pipeline, name, value)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline


FLUX_LIKE = {
    'patch_size': 1,
    'in_channels': 16,
    'num_layers': 1,
    'num_single_layers': 1,
    'attention_head_dim': 16,
    'num_attention_heads': 2,
    'joint_attention_dim': 12,
}
ROPE = {'axes_dims_rope': (4, 4, 8)}
WORDS, MASK = text(2, 5, 12), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
GUIDED = {'guidance_scale': 1.0}
PATCHED = {'tokens': True, 'size': {'height': 64, 'width': 64}}


def unguided():
    return {'guider': diffusers.ClassifierFreeGuidance(enabled=False)}


def unguided_video():
    vae = diffusers.AutoencoderKLHunyuanVideo15(
        latent_channels=4, block_out_channels=(4, 4, 4, 4, 4), layers_per_block=1
    )
    return {**unguided(), 'vae': vae}


def small_vae():
    return {
        'vae': diffusers.AutoencoderKL(
            block_out_channels=(4,) * 4,
            norm_num_groups=2,
            down_block_types=('DownEncoderBlock2D',) * 4,
            up_block_types=('UpDecoderBlock2D',) * 4,
            shift_factor=0.0,
        )
    }


CASES = {
    'flux': Case(
        'FluxPipeline',
        'FluxTransformer2DModel',
        {**FLUX_LIKE, **ROPE, 'pooled_projection_dim': 10, 'guidance_embeds': True},
        {'prompt_embeds': WORDS, 'pooled_prompt_embeds': text(2, 10), 'guidance_scale': 2.0},
        {'encoder_hidden_states': WORDS, 'pooled_projections': text(2, 10), 'guidance': 2.0},
        **PATCHED,
    ),
    'flux 2': Case(
        'Flux2Pipeline',
        'Flux2Transformer2DModel',
        {**FLUX_LIKE, 'axes_dims_rope': (4, 4, 4, 4), 'timestep_guidance_channels': 16},
        {'prompt_embeds': WORDS, 'guidance_scale': 4.0},
        {'encoder_hidden_states': WORDS},
        (2, 16, 4, 4),
        {'height': 64, 'width': 64},
    ),
    'qwen image': Case(
        'QwenImagePipeline',
        'QwenImageTransformer2DModel',
        {
            'patch_size': 2,
            'in_channels': 16,
            'out_channels': 4,
            'num_layers': 1,
            'attention_head_dim': 16,
            'num_attention_heads': 2,
            'joint_attention_dim': 12,
            **ROPE,
        },
        {'prompt_embeds': WORDS, 'prompt_embeds_mask': MASK, 'true_cfg_scale': 1.0},
        {'encoder_hidden_states': WORDS, 'encoder_hidden_states_mask': MASK},
        **PATCHED,
    ),
    'chroma': Case(
        'ChromaPipeline',
        'ChromaTransformer2DModel',
        {
            **FLUX_LIKE,
            **ROPE,
            'approximator_num_channels': 8,
            'approximator_hidden_dim': 16,
            'approximator_layers': 1,
        },
        {'prompt_embeds': WORDS, 'prompt_attention_mask': MASK.bool(), **GUIDED},
        {'encoder_hidden_states': WORDS, 'attention_mask': MASK.bool()},
        **PATCHED,
    ),
    'z-image': Case(
        'ZImagePipeline',
        'ZImageTransformer2DModel',
        {
            'in_channels': 4,
            'dim': 16,
            'n_layers': 1,
            'n_refiner_layers': 1,
            'n_heads': 2,
            'n_kv_heads': 2,
            'cap_feat_dim': 12,
            'axes_dims': [2, 2, 4],
            'axes_lens': [64, 64, 64],
        },
        {'prompt_embeds': [WORDS[0], WORDS[1, :3]], 'guidance_scale': 0.0},
        {'cap_feats': WORDS, 'cap_mask': MASK},
    ),
    'sana': Case(
        'SanaPipeline',
        'SanaTransformer2DModel',
        {
            'in_channels': 4,
            'out_channels': 4,
            'num_layers': 1,
            **HEADS,
            'num_cross_attention_heads': 2,
            'cross_attention_head_dim': 8,
            'cross_attention_dim': 16,
            'caption_channels': 12,
            'sample_size': 8,
            'timestep_scale': 0.5,
        },
        {
            'prompt_embeds': WORDS,
            'prompt_attention_mask': MASK,
            'use_resolution_binning': False,
            **GUIDED,
        },
        {'encoder_hidden_states': WORDS, 'encoder_attention_mask': MASK},
        size={'height': 256, 'width': 256},
    ),
    'pixart': Case(
        'PixArtSigmaPipeline',
        'PixArtTransformer2DModel',
        {
            **HEADS,
            'in_channels': 4,
            'out_channels': 8,
            'num_layers': 1,
            'cross_attention_dim': 16,
            'sample_size': 8,
            'caption_channels': 12,
            'use_additional_conditions': False,
        },
        {
            'prompt_embeds': WORDS,
            'prompt_attention_mask': MASK,
            'use_resolution_binning': False,
            **GUIDED,
        },
        {'encoder_hidden_states': WORDS, 'encoder_attention_mask': MASK},
        scheduler=diffusers.EulerDiscreteScheduler(),
    ),
    'lumina 2': Case(
        'Lumina2Pipeline',
        'Lumina2Transformer2DModel',
        {
            'sample_size': 8,
            'in_channels': 4,
            'hidden_size': 16,
            'num_layers': 1,
            'num_refiner_layers': 1,
            'num_attention_heads': 2,
            'num_kv_heads': 1,
            'multiple_of': 8,
            'axes_dim_rope': (4, 2, 2),
            'axes_lens': (32, 32, 32),
            'cap_feat_dim': 12,
        },
        {'prompt_embeds': WORDS, 'prompt_attention_mask': MASK.bool(), **GUIDED},
        {'encoder_hidden_states': WORDS, 'encoder_attention_mask': MASK.bool()},
    ),
    'wan': Case(
        'WanPipeline',
        'WanTransformer3DModel',
        {
            **HEADS,
            'num_attention_heads': 2,
            'attention_head_dim': 12,
            'in_channels': 4,
            'out_channels': 4,
            'text_dim': 12,
            'freq_dim': 8,
            'ffn_dim': 16,
            'num_layers': 1,
            'rope_max_seq_len': 32,
        },
        {'prompt_embeds': WORDS, 'num_frames': 9, **GUIDED},
        {'encoder_hidden_states': WORDS},
        (2, 4, 3, 8, 8),
    ),
    'wan with a time for each token': Case(
        'WanPipeline',
        'WanTransformer3DModel',
        {
            'num_attention_heads': 2,
            'attention_head_dim': 12,
            'in_channels': 4,
            'out_channels': 4,
            'text_dim': 12,
            'freq_dim': 8,
            'ffn_dim': 16,
            'num_layers': 1,
            'rope_max_seq_len': 32,
        },
        {'prompt_embeds': WORDS, 'num_frames': 9, **GUIDED},
        {'encoder_hidden_states': WORDS},
        (2, 4, 3, 8, 8),
        parts=lambda: {'expand_timesteps': True},
    ),
    'ltx video': Case(
        'LTXPipeline',
        'LTXVideoTransformer3DModel',
        {
            'in_channels': 4,
            'out_channels': 4,
            **HEADS,
            'cross_attention_dim': 16,
            'num_layers': 1,
            'caption_channels': 12,
        },
        {
            'prompt_embeds': WORDS,
            'prompt_attention_mask': MASK,
            'num_frames': 17,
            'frame_rate': 25,
            **GUIDED,
        },
        {
            'encoder_hidden_states': WORDS,
            'encoder_attention_mask': MASK,
            'rope_interpolation_scale': (8 / 25, 32, 32),
        },
        (2, 4, 3, 4, 6),
        {'height': 128, 'width': 192},
        tokens=True,
    ),
    'auraflow': Case(
        'AuraFlowPipeline',
        'AuraFlowTransformer2DModel',
        {
            'sample_size': 8,
            'in_channels': 4,
            'num_mmdit_layers': 1,
            'num_single_dit_layers': 1,
            **HEADS,
            'joint_attention_dim': 12,
            'caption_projection_dim': 16,
            'pos_embed_max_size': 64,
        },
        {'prompt_embeds': WORDS, 'prompt_attention_mask': MASK, **GUIDED},
        {'encoder_hidden_states': WORDS},
    ),
    'cogvideox': Case(
        'CogVideoXPipeline',
        'CogVideoXTransformer3DModel',
        {
            **HEADS,
            'attention_head_dim': 16,
            'in_channels': 4,
            'out_channels': 4,
            'time_embed_dim': 8,
            'text_embed_dim': 12,
            'num_layers': 1,
            'sample_width': 12,
            'sample_height': 12,
            'sample_frames': 9,
            'max_text_seq_length': 5,
            'use_rotary_positional_embeddings': True,
        },
        {'prompt_embeds': WORDS, 'num_frames': 9, **GUIDED},
        {'encoder_hidden_states': WORDS},
        (2, 3, 4, 6, 8),
        {'height': 48, 'width': 64},
        scheduler=diffusers.CogVideoXDDIMScheduler(
            prediction_type='v_prediction', timestep_spacing='trailing'
        ),
    ),
    'cogvideox 1.5': Case(
        'CogVideoXPipeline',
        'CogVideoXTransformer3DModel',
        {
            'num_attention_heads': 2,
            'attention_head_dim': 16,
            'in_channels': 4,
            'out_channels': 4,
            'time_embed_dim': 8,
            'text_embed_dim': 12,
            'num_layers': 1,
            'sample_width': 12,
            'sample_height': 12,
            'sample_frames': 9,
            'max_text_seq_length': 5,
            'use_rotary_positional_embeddings': True,
            'patch_size_t': 2,
            'patch_bias': False,
        },
        {'prompt_embeds': WORDS, 'num_frames': 13, **GUIDED},
        {'encoder_hidden_states': WORDS},
        (2, 4, 4, 6, 8),
        {'height': 48, 'width': 64},
        scheduler=diffusers.CogVideoXDDIMScheduler(
            prediction_type='v_prediction', timestep_spacing='trailing'
        ),
    ),
    'hunyuan video': Case(
        'HunyuanVideoPipeline',
        'HunyuanVideoTransformer3DModel',
        {
            'in_channels': 4,
            'out_channels': 4,
            'num_attention_heads': 2,
            'attention_head_dim': 10,
            'num_layers': 1,
            'num_single_layers': 1,
            'num_refiner_layers': 1,
            'text_embed_dim': 12,
            'pooled_projection_dim': 10,
            'rope_axes_dim': (2, 4, 4),
        },
        {
            'prompt_embeds': WORDS,
            'prompt_attention_mask': MASK,
            'pooled_prompt_embeds': text(2, 10),
            'num_frames': 9,
        },
        {
            'encoder_hidden_states': WORDS,
            'encoder_attention_mask': MASK,
            'pooled_projections': text(2, 10),
        },
        (2, 4, 3, 8, 8),
    ),
    'hidream': Case(
        'HiDreamImagePipeline',
        'HiDreamImageTransformer2DModel',
        {
            'patch_size': 2,
            'in_channels': 4,
            'out_channels': 4,
            'num_layers': 1,
            'num_single_layers': 1,
            **HEADS,
            'caption_channels': [12, 12],
            'text_emb_dim': 10,
            'num_routed_experts': 2,
            'num_activated_experts': 1,
            'axes_dims_rope': (4, 2, 2),
            'max_resolution': (8, 8),
            'llama_layers': [0, 1],
            'force_inference_output': True,
        },
        {
            'prompt_embeds_t5': WORDS,
            'prompt_embeds_llama3': text(2, 2, 5, 12),
            'pooled_prompt_embeds': text(2, 10),
            **GUIDED,
        },
        {
            'encoder_hidden_states_t5': WORDS,
            'encoder_hidden_states_llama3': list(text(2, 2, 5, 12)),
            'pooled_embeds': text(2, 10),
        },
        change={'default_sample_size': 8},
    ),
    'sana video': Case(
        'SanaVideoPipeline',
        'SanaVideoTransformer3DModel',
        {
            'in_channels': 4,
            'out_channels': 4,
            'num_layers': 1,
            'num_attention_heads': 2,
            'attention_head_dim': 12,
            'num_cross_attention_heads': 2,
            'cross_attention_head_dim': 12,
            'cross_attention_dim': 24,
            'caption_channels': 12,
            'sample_size': 8,
            'rope_max_seq_len': 32,
        },
        {
            'prompt_embeds': WORDS,
            'prompt_attention_mask': MASK,
            'use_resolution_binning': False,
            'frames': 9,
            **GUIDED,
        },
        {'encoder_hidden_states': WORDS, 'encoder_attention_mask': MASK},
        (2, 4, 3, 8, 8),
    ),
    'skyreels': Case(
        'SkyReelsV2Pipeline',
        'SkyReelsV2Transformer3DModel',
        {
            'num_attention_heads': 2,
            'attention_head_dim': 12,
            'in_channels': 4,
            'out_channels': 4,
            'text_dim': 12,
            'freq_dim': 8,
            'ffn_dim': 16,
            'num_layers': 1,
            'rope_max_seq_len': 32,
        },
        {'prompt_embeds': WORDS, 'num_frames': 9, **GUIDED},
        {'encoder_hidden_states': WORDS},
        (2, 4, 3, 8, 8),
    ),
    'hunyuan image': Case(
        'HunyuanImagePipeline',
        'HunyuanImageTransformer2DModel',
        {
            'in_channels': 4,
            'out_channels': 4,
            'num_attention_heads': 2,
            'attention_head_dim': 8,
            'num_layers': 1,
            'num_single_layers': 1,
            'num_refiner_layers': 1,
            'patch_size': (1, 1),
            'text_embed_dim': 12,
            'text_embed_2_dim': 10,
            'rope_axes_dim': (4, 4),
        },
        {
            'prompt_embeds': WORDS,
            'prompt_embeds_mask': MASK,
            'prompt_embeds_2': text(2, 4, 10),
            'prompt_embeds_mask_2': MASK[:, :4],
        },
        {
            'encoder_hidden_states': WORDS,
            'encoder_attention_mask': MASK,
            'encoder_hidden_states_2': text(2, 4, 10),
            'encoder_attention_mask_2': MASK[:, :4],
        },
        size={'height': 256, 'width': 256},
        parts=unguided,
    ),
    'hunyuan video 1.5': Case(
        'HunyuanVideo15Pipeline',
        'HunyuanVideo15Transformer3DModel',
        {
            'in_channels': 9,
            'out_channels': 4,
            'num_attention_heads': 2,
            'attention_head_dim': 10,
            'num_layers': 1,
            'num_refiner_layers': 1,
            'text_embed_dim': 12,
            'text_embed_2_dim': 10,
            'image_embed_dim': 6,
            'rope_axes_dim': (2, 4, 4),
            'target_size': 64,
            'task_type': 't2v',
        },
        {
            'prompt_embeds': WORDS,
            'prompt_embeds_mask': MASK,
            'prompt_embeds_2': text(2, 4, 10),
            'prompt_embeds_mask_2': MASK[:, :4],
            'num_frames': 9,
        },
        {
            'encoder_hidden_states': WORDS,
            'encoder_attention_mask': MASK,
            'encoder_hidden_states_2': text(2, 4, 10),
            'encoder_attention_mask_2': MASK[:, :4],
            'unet_cond': torch.zeros(2, 5, 3, 4, 4),
            'image_embeds': torch.zeros(2, 3, 6),
        },
        (2, 4, 3, 4, 4),
        parts=unguided_video,
        change={'vision_num_semantic_tokens': 3, 'vision_states_dim': 6},
    ),
    'prx': Case(
        'PRXPipeline',
        'PRXTransformer2DModel',
        {
            'in_channels': 4,
            'context_in_dim': 12,
            'hidden_size': 16,
            'num_heads': 2,
            'depth': 1,
            'axes_dim': [4, 4],
        },
        {
            'prompt_embeds': WORDS,
            'prompt_attention_mask': MASK.bool(),
            'use_resolution_binning': False,
            **GUIDED,
        },
        {'encoder_hidden_states': WORDS, 'attention_mask': MASK.bool()},
    ),
    'ovis image': Case(
        'OvisImagePipeline',
        'OvisImageTransformer2DModel',
        {**FLUX_LIKE, **ROPE, 'out_channels': 16},
        {'prompt_embeds': WORDS, **GUIDED},
        {'encoder_hidden_states': WORDS},
        **PATCHED,
    ),
    'bria': Case(
        'BriaPipeline',
        'BriaTransformer2DModel',
        {**FLUX_LIKE, **ROPE},
        {'prompt_embeds': WORDS, **GUIDED},
        {'encoder_hidden_states': WORDS},
        parts=small_vae,
        **PATCHED,
    ),
}


# zero terminal SNR, as in the published CogVideoX: the pipeline starts at an infinite level
CASES['cogvideox zero terminal'] = replace(
    CASES['cogvideox'],
    scheduler=diffusers.CogVideoXDDIMScheduler(
        prediction_type='v_prediction', timestep_spacing='trailing', rescale_betas_zero_snr=True
    ),
)


def pack(case, pipeline, x):
    """Latents as the pipeline takes them, by its own function."""
    if not case.tokens:
        return x
    return pipeline._pack_latents(x) if x.ndim == 5 else pipeline._pack_latents(x, *x.shape)


def unpack(case, pipeline, answer):
    if case.network == 'Flux2Transformer2DModel':
        return answer.mT.unflatten(2, case.latents[2:]) if answer.ndim == 3 else answer
    if not case.tokens:
        return answer
    if len(case.latents) == 5:
        return pipeline._unpack_latents(answer, *case.latents[2:])
    return pipeline._unpack_latents(
        answer, case.size['height'], case.size['width'], pipeline.vae_scale_factor
    ).reshape(case.latents)


def run_pipeline(case, pipeline, noise):
    return unpack(
        case,
        pipeline,
        pipeline(
            latents=pack(case, pipeline, noise),
            num_inference_steps=STEPS,
            output_type='latent',
            return_dict=False,
            **case.size,
            **case.call,
        )[0],
    )


def run_ours(case, source, scheduler, noise, cond):
    """Our Euler from the same noise on the levels that their scheduler walked."""
    denoiser = K.external.from_diffusers(source, scheduler)
    sigmas = K.external.scheduler_sigmas(scheduler, sigma_max=1e7)
    flow, vp = isinstance(denoiser, K.external.FlowDenoiser), 'DDIM' in type(scheduler).__name__
    start = noise.double() * (
        1 + sigmas[0] if flow else (1 + sigmas[0] ** 2).sqrt() if vp else scheduler.init_noise_sigma
    )
    return K.sampling.sample_euler(denoiser, start, sigmas, extra_args=cond, disable=True)


@torch.no_grad()
@pytest.mark.parametrize('name', CASES)
def test_euler_is_the_call_of_the_pipeline(name):
    case = CASES[name]
    network = case.make_network()
    pipeline = case.make_pipeline(network)
    noise = torch.randn(case.latents, generator=torch.Generator().manual_seed(2))
    expected = run_pipeline(case, pipeline, noise.clone()).double()
    ours = run_ours(case, pipeline, pipeline.scheduler, noise, case.cond)
    assert expected.std() > 0.01 and (expected - noise).std() > 0.01
    assert (ours - expected).abs().max() / expected.abs().max() < 1e-5


@torch.no_grad()
@pytest.mark.parametrize('name', ['wan', 'sana', 'z-image', 'lumina 2'])
def test_guidance_is_that_of_the_pipeline(name):
    """One batch or two calls: the null text of Z-Image is of another length."""
    case, scale = CASES[name], 3.0
    empty = torch.zeros(2, 5, 12)
    null = {
        name: torch.zeros_like(value)
        if 'mask' not in name
        else torch.tensor([[1, 1, 0, 0, 0]] * 2).to(value)
        for name, value in case.cond.items()
    }
    call = {'negative_prompt_embeds': empty}
    if name in ('sana', 'lumina 2'):
        call['negative_prompt_attention_mask'] = null['encoder_attention_mask']
    if name == 'z-image':  # its scale counts from the conditional
        call['negative_prompt_embeds'] = list(empty[:, :2])
    call.update(
        {'sana': {'negative_prompt': None}, 'lumina 2': {'cfg_normalization': False}}.get(name, {})
    )
    case = replace(case, call={**case.call, **call, 'guidance_scale': scale - (name == 'z-image')})
    pipeline = case.make_pipeline(case.make_network())
    noise = torch.randn(case.latents, generator=torch.Generator().manual_seed(2))
    expected = run_pipeline(case, pipeline, noise.clone()).double()
    sigmas = K.external.scheduler_sigmas(pipeline.scheduler, sigma_max=1e7)
    guided = K.guidance.classifier_free(K.external.from_diffusers(pipeline), null, scale)
    ours = K.sampling.sample_euler(
        guided, noise.double() * (1 + sigmas[0]), sigmas, extra_args=case.cond, disable=True
    )
    assert (ours - expected).abs().max() / expected.abs().max() < 2e-5


@torch.no_grad()
@pytest.mark.parametrize('name', CASES)
def test_half_precision_and_conditions_of_one_item(name):
    case = CASES[name]
    network = case.make_network()
    scheduler = case.scheduler or diffusers.FlowMatchEulerDiscreteScheduler()
    x, sigma = (
        torch.randn(case.latents, generator=torch.Generator().manual_seed(2)),
        torch.tensor([0.5, 3.0]),
    )
    layers = 'encoder_hidden_states_llama3'  # a list with an entry for each layer
    one = {
        key: [entry[:1] for entry in value]
        if key == layers
        else value[:1]
        if torch.is_tensor(value)
        else value
        for key, value in case.cond.items()
    }
    denoiser = K.external.from_diffusers(network, scheduler)
    both = denoiser(x, sigma, **one)
    for i in range(2):
        torch.testing.assert_close(
            both[i : i + 1], denoiser(x[i : i + 1], sigma[i : i + 1], **one), rtol=1e-4, atol=1e-4
        )
    half = K.external.from_diffusers(network, scheduler, dtype=torch.bfloat16)(
        x, sigma, **case.cond
    )
    assert half.dtype == x.dtype and half.isfinite().all()


def test_channels_beside_those_of_flux_are_packed_together():
    """As in FluxControlPipeline and FluxFillPipeline, which pack both and join the tokens."""
    pack = diffusers.FluxPipeline._pack_latents
    case, hidden_states = CASES['flux'], []
    network = diffusers.FluxTransformer2DModel(
        **{**case.settings, 'in_channels': 32, 'out_channels': 16}
    ).eval()
    network.register_forward_pre_hook(
        lambda module, args, kwargs: hidden_states.append(kwargs['hidden_states']), with_kwargs=True
    )
    x, beside = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    denoiser = K.external.from_diffusers(network, diffusers.FlowMatchEulerDiscreteScheduler())
    assert denoiser(x, torch.ones(2), unet_cond=beside, **case.cond).shape == x.shape
    torch.testing.assert_close(
        hidden_states[0], torch.cat([pack(x / 2, *x.shape), pack(beside, *x.shape)], 2)
    )


def test_a_wrapper_of_ones_own_has_the_family_of_what_it_holds():
    case = replace(CASES['flux'], settings={**CASES['flux'].settings, 'guidance_embeds': True})

    class Mine(torch.nn.Module):
        def __init__(self, network):
            super().__init__()
            self.network = network

        def forward(self, hidden_states, timestep, **kwargs):
            return self.network(hidden_states=hidden_states, timestep=timestep, **kwargs)

    network, scheduler = case.make_network(), diffusers.FlowMatchEulerDiscreteScheduler()
    x, sigma = torch.randn(case.latents), torch.tensor([0.5, 3.0])
    mine, plain = (
        K.external.from_diffusers(source, scheduler) for source in (Mine(network), network)
    )
    torch.testing.assert_close(mine(x, sigma, **case.cond), plain(x, sigma, **case.cond))


def test_latents_of_flux_2_before_they_are_cut():
    """[B, 32, H, W] of its autoencoder or the [B, 128, H / 2, W / 2] that its pipeline makes of
    them.
    """
    case = CASES['flux 2']
    denoiser = K.external.from_diffusers(
        case.make_network(), diffusers.FlowMatchEulerDiscreteScheduler()
    )
    x = torch.randn(2, 4, 8, 8)
    cut = diffusers.Flux2Pipeline._patchify_latents
    torch.testing.assert_close(
        cut(denoiser(x, torch.ones(2), **case.cond)), denoiser(cut(x), torch.ones(2), **case.cond)
    )


@pytest.mark.parametrize(
    'name, change, message',
    [
        ('flux', {'encoder_hidden_states': None}, "condition 'encoder_hidden_states'"),
        ('z-image', {'cap_feats': None}, "condition 'cap_feats'"),
        ('hunyuan video', {'encoder_attention_mask': None}, "condition 'encoder_attention_mask'"),
        (
            'wan',
            {'pooled_projections': WORDS},
            "no condition 'pooled_projections'; it takes .*encoder_hidden_states",
        ),
    ],
)
def test_conditions_that_lack_or_are_not_known(name, change, message):
    case = CASES[name]
    denoiser = K.external.from_diffusers(
        case.make_network(), diffusers.FlowMatchEulerDiscreteScheduler()
    )
    cond = {key: value for key, value in {**case.cond, **change}.items() if value is not None}
    with pytest.raises(TypeError, match=message):
        denoiser(torch.randn(case.latents), torch.ones(2), **cond)


@pytest.mark.parametrize(
    'name, shape',
    [
        ('flux', (2, 5, 8, 8)),
        ('flux', (2, 4, 7, 8)),
        ('flux', (2, 4, 2, 8, 8)),
        ('ltx video', (2, 4, 8, 8)),
        ('ltx video', (2, 3, 2, 8, 8)),
    ],
)
def test_latents_of_another_shape(name, shape):
    case = CASES[name]
    denoiser = K.external.from_diffusers(
        case.make_network(), diffusers.FlowMatchEulerDiscreteScheduler()
    )
    with pytest.raises(ValueError, match='x must be latents'):
        denoiser(torch.randn(shape), torch.ones(2), **case.cond)


def stub(name):
    """A network of a class of theirs without its layers."""
    network = getattr(diffusers, name).__new__(getattr(diffusers, name))
    torch.nn.Module.__init__(network)
    return network


@pytest.mark.parametrize(
    'name, message',
    [
        ('CogView4Transformer2DModel', 'CogView4Transformer2DModel is .* not supported: its time'),
        ('LTX2VideoTransformer3DModel', 'video and its sound'),
        ('LuminaNextDiT2DModel', 'not supported'),
        ('MochiTransformer3DModel', 'from the data'),
        ('OmniGenTransformer2DModel', 'words and images'),
        ('CosmosTransformer3DModel', 'its pipeline'),
        ('AllegroTransformer3DModel', 'AllegroTransformer3DModel is .* not known here.*nearest'),
        ('StableAudioDiTModel', 'StableAudioDiTModel is .* not known here'),
    ],
)
def test_what_is_not_supported_is_refused_by_name(name, message):
    with pytest.raises(ValueError, match=message):
        K.external.from_diffusers(stub(name), diffusers.FlowMatchEulerDiscreteScheduler())


@pytest.mark.parametrize(
    'name, settings',
    [
        ('hunyuan image', {'use_meanflow': True}),
        ('hunyuan video 1.5', {'use_meanflow': True}),
        ('hunyuan video', {'image_condition_type': 'token_replace'}),
    ],
)
def test_settings_that_make_another_kind_of_network(name, settings):
    case = replace(CASES[name], settings={**CASES[name].settings, **settings})
    with pytest.raises(ValueError, match=f'{case.network} with these settings is not supported'):
        K.external.from_diffusers(case.make_network(), diffusers.FlowMatchEulerDiscreteScheduler())


def test_every_refused_class_is_one_of_theirs_and_no_class_is_in_both_lists():
    from k_diffusion.external.diffusers_families import _REFUSED, FAMILIES

    assert not set(_REFUSED) & set(FAMILIES)
    for name in (*_REFUSED, *FAMILIES):
        assert hasattr(diffusers, name), name
