"""The U-Nets of videos and the ControlNet of Sana: our Euler is the loop of their pipelines."""

import pytest
import torch

import k_diffusion as K

diffusers = pytest.importorskip('diffusers', reason='diffusers is in the extra "diffusers"')

STEPS = 4
BETAS = {'beta_start': 0.00085, 'beta_end': 0.012, 'beta_schedule': 'scaled_linear'}
UNET = {
    'block_out_channels': (32, 32),
    'layers_per_block': 1,
    'cross_attention_dim': 12,
}
SANA = {
    'in_channels': 4,
    'out_channels': 4,
    'num_attention_heads': 2,
    'attention_head_dim': 8,
    'num_cross_attention_heads': 2,
    'cross_attention_head_dim': 8,
    'cross_attention_dim': 16,
    'caption_channels': 12,
    'sample_size': 8,
}


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make(kind, **settings):
    torch.manual_seed(0)
    model = getattr(diffusers, kind)(**settings).eval()
    generator = torch.Generator().manual_seed(1)
    for p in model.parameters():  # zero-initialised last layers would make every answer 0
        p.data += 0.05 * torch.randn(p.shape, generator=generator)
    return model


def compare(denoiser, scheduler, noise, ask, cond):
    """Run their scheduler with ask(scaled x, t), and our Euler on its levels."""
    scheduler.set_timesteps(STEPS)
    flow = isinstance(denoiser, K.external.FlowDenoiser)
    x = noise.double() if flow else noise.double() * scheduler.init_noise_sigma
    sigmas = K.external.scheduler_sigmas(scheduler, sigma_max=1e7)
    ours = K.sampling.sample_euler(
        denoiser, x * (1 + sigmas[0]) if flow else x, sigmas, extra_args=cond, disable=True
    )
    for t in scheduler.timesteps:
        scaled = x if flow else scheduler.scale_model_input(x, t)
        x = scheduler.step(ask(scaled.float(), t).double(), t, x, return_dict=False)[0]
    assert x.std() > 0.01 and (x - noise).std() > 0.01
    assert (ours - x).abs().max() / x.abs().max() < 1e-5


@torch.no_grad()
@pytest.mark.parametrize('prediction', ['epsilon', 'v_prediction'])
def test_text_to_video(prediction):
    """As in TextToVideoSDPipeline: [B, 4, frames, H, W]."""
    model = make(
        'UNet3DConditionModel',
        down_block_types=('CrossAttnDownBlock3D', 'DownBlock3D'),
        up_block_types=('UpBlock3D', 'CrossAttnUpBlock3D'),
        attention_head_dim=4,
        norm_num_groups=4,
        **UNET,
    )
    scheduler = diffusers.EulerDiscreteScheduler(
        **BETAS, prediction_type=prediction, timestep_spacing='trailing'
    )
    text = randn(2, 5, 12, seed=3)

    def ask(x, t):
        return model(x, t, encoder_hidden_states=text, return_dict=False)[0]

    denoiser = K.external.from_diffusers(model, scheduler)
    compare(denoiser, scheduler, randn(2, 4, 3, 8, 8), ask, {'encoder_hidden_states': text})


@torch.no_grad()
def test_picture_to_video():
    """As in StableVideoDiffusionPipeline: [B, frames, 4, H, W] beside the picture's latents, v in
    EDM's time.
    """
    model = make(
        'UNetSpatioTemporalConditionModel',
        down_block_types=('CrossAttnDownBlockSpatioTemporal', 'DownBlockSpatioTemporal'),
        up_block_types=('UpBlockSpatioTemporal', 'CrossAttnUpBlockSpatioTemporal'),
        num_attention_heads=(2, 2),
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24,
        num_frames=3,
        **UNET,
    )
    scheduler = diffusers.EulerDiscreteScheduler(
        **BETAS,
        prediction_type='v_prediction',
        timestep_type='continuous',
        timestep_spacing='leading',
        use_karras_sigmas=True,
        sigma_min=0.002,
        sigma_max=700.0,
    )
    picture_embedding, ids = randn(2, 1, 12, seed=3), torch.tensor([[6.0, 127.0, 0.02]] * 2)
    picture = randn(2, 3, 4, 8, 8, seed=4)

    def ask(x, t):
        x = torch.cat([x, picture], 2)
        return model(x, t, picture_embedding, added_time_ids=ids, return_dict=False)[0]

    cond = {'encoder_hidden_states': picture_embedding, 'added_time_ids': ids, 'unet_cond': picture}
    denoiser = K.external.from_diffusers(model, scheduler)
    compare(denoiser, scheduler, randn(2, 3, 4, 8, 8), ask, cond)


@torch.no_grad()
def test_a_controlnet_of_sana():
    """As in SanaControlNetPipeline: its picture is latents."""
    model = make('SanaTransformer2DModel', num_layers=2, **SANA)
    net = make('SanaControlNetModel', num_layers=1, **SANA)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    text, mask = randn(2, 5, 12, seed=3), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    picture = randn(2, 4, 8, 8, seed=4)
    shared = {'encoder_hidden_states': text, 'encoder_attention_mask': mask}

    def ask(x, t):
        call = {**shared, 'timestep': t.expand(2), 'return_dict': False}
        residuals = net(x, controlnet_cond=picture, conditioning_scale=0.7, **call)[0]
        assert max(part.abs().max() for part in residuals) > 1e-3
        return model(x, controlnet_block_samples=tuple(residuals), **call)[0]

    denoiser = K.external.from_diffusers(model, scheduler, controlnet=net)
    cond = {**shared, 'controlnet_cond': picture, 'conditioning_scale': 0.7}
    compare(denoiser, scheduler, randn(2, 4, 8, 8), ask, cond)
