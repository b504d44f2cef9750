"""Every family of diffusers with a tiny random network: our Euler is their sampler, to 1e-5."""

import pytest
import torch

import k_diffusion as K

diffusers = pytest.importorskip('diffusers', reason='diffusers is in the extra "diffusers"')

STEPS = 8
TINY_UNET = {
    'sample_size': 8,
    'block_out_channels': (16, 16),
    'layers_per_block': 1,
    'norm_num_groups': 4,
}
CROSS = {
    'down_block_types': ('CrossAttnDownBlock2D', 'DownBlock2D'),
    'up_block_types': ('UpBlock2D', 'CrossAttnUpBlock2D'),
    'cross_attention_dim': 12,
    'attention_head_dim': 4,
}


def randomised(model):
    """Zero-initialised last layers would make every answer 0 and every comparison pass."""
    generator = torch.Generator().manual_seed(1)
    for p in model.parameters():
        p.data += 0.05 * torch.randn(p.shape, generator=generator)
    return model.eval()


def unet(**options):
    model = diffusers.UNet2DModel(
        in_channels=3,
        out_channels=3,
        down_block_types=('DownBlock2D', 'AttnDownBlock2D'),
        up_block_types=('AttnUpBlock2D', 'UpBlock2D'),
        attention_head_dim=4,
        **TINY_UNET,
        **options,
    )
    return randomised(model), {}, 3


def unet_with_classes():
    model, _, channels = unet(num_class_embeds=5)
    return model, {'class_cond': torch.tensor([1, 4])}, channels


def stable_diffusion():
    model = diffusers.UNet2DConditionModel(in_channels=4, out_channels=4, **TINY_UNET, **CROSS)
    return randomised(model), {'encoder_hidden_states': torch.randn(2, 5, 12)}, 4


def sdxl():
    model = diffusers.UNet2DConditionModel(
        in_channels=4,
        out_channels=4,
        addition_embed_type='text_time',
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + 10,
        **TINY_UNET,
        **CROSS,
    )
    return (
        randomised(model),
        {
            'encoder_hidden_states': torch.randn(2, 5, 12),
            'text_embeds': torch.randn(2, 10),
            'time_ids': torch.tensor([[64.0, 64, 0, 0, 64, 64]] * 2),
        },
        4,
    )


def inpainting():
    model = diffusers.UNet2DConditionModel(in_channels=9, out_channels=4, **TINY_UNET, **CROSS)
    return (
        randomised(model),
        {'encoder_hidden_states': torch.randn(2, 5, 12), 'unet_cond': torch.randn(2, 5, 8, 8)},
        4,
    )


def dit():
    model = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=10,
    )
    return randomised(model), {'class_cond': torch.tensor([3, 10])}, 4


def sd3():
    model = diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        caption_projection_dim=16,
        pooled_projection_dim=10,
        out_channels=4,
        pos_embed_max_size=8,
    )
    return (
        randomised(model),
        {'encoder_hidden_states': torch.randn(2, 5, 12), 'pooled_projections': torch.randn(2, 10)},
        4,
    )


def flux(guidance_embeds=False):
    model = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=12,
        pooled_projection_dim=10,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=guidance_embeds,
    )
    return (
        randomised(model),
        {'encoder_hidden_states': torch.randn(2, 5, 12), 'pooled_projections': torch.randn(2, 10)},
        4,
    )


def theirs(model, scheduler, x, t, cond):
    """The model called as its own pipeline calls it."""
    cond = dict(cond)
    if 'class_cond' in cond:
        cond['class_labels'] = cond.pop('class_cond')
    if 'text_embeds' in cond:
        cond['added_cond_kwargs'] = {key: cond.pop(key) for key in ('text_embeds', 'time_ids')}
    channels = x.shape[1]
    if 'unet_cond' in cond:
        x = torch.cat([x, cond.pop('unet_cond')], 1)
    name = type(model).__name__
    if name.startswith('Flux'):
        b, c, h, w = x.shape
        packed = (
            x.view(b, c, h // 2, 2, w // 2, 2)
            .permute(0, 2, 4, 1, 3, 5)
            .reshape(b, h * w // 4, c * 4)
        )
        ids = diffusers.FluxPipeline._prepare_latent_image_ids(b, h // 2, w // 2, x.device, x.dtype)
        if model.config.guidance_embeds:
            cond['guidance'] = torch.full((b,), 3.5)
        out = model(
            hidden_states=packed,
            timestep=t.expand(b) / 1000,
            img_ids=ids,
            txt_ids=torch.zeros(5, 3),
            return_dict=False,
            **cond,
        )[0]
        return diffusers.FluxPipeline._unpack_latents(out, h * 8, w * 8, 8)
    if name.startswith('SD3'):
        return model(hidden_states=x, timestep=t.expand(len(x)), return_dict=False, **cond)[0]
    return model(x, t.expand(len(x)), return_dict=False, **cond)[0][:, :channels]


def their_run(model, scheduler, x, cond):
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, 'scale_model_input') else x
        x = scheduler.step(
            theirs(model, scheduler, scaled.float(), t, cond).to(x), t, x
        ).prev_sample
    return x


BETAS = {'beta_start': 0.00085, 'beta_end': 0.012, 'beta_schedule': 'scaled_linear'}
FAMILIES = {
    'unet': unet,
    'classes': unet_with_classes,
    'stable diffusion': stable_diffusion,
    'sdxl': sdxl,
    'inpainting': inpainting,
    'dit': dit,
}


@torch.no_grad()
@pytest.mark.parametrize('prediction', ['epsilon', 'v_prediction', 'sample'])
@pytest.mark.parametrize('family', FAMILIES)
def test_euler_is_their_euler_and_their_ddim(family, prediction):
    model, cond, channels = FAMILIES[family]()
    noise = torch.randn(2, channels, 8, 8, dtype=torch.float64)
    for kind in (diffusers.EulerDiscreteScheduler, diffusers.DDIMScheduler):
        ddim = kind is diffusers.DDIMScheduler
        options = (
            {'clip_sample': False, 'set_alpha_to_one': True}
            if ddim
            else {'timestep_spacing': 'trailing'}
        )
        scheduler = kind(prediction_type=prediction, **BETAS, **options)
        scheduler.set_timesteps(STEPS)
        denoiser = K.external.from_diffusers(model, scheduler)
        sigmas = K.external.scheduler_sigmas(scheduler)
        if ddim:  # variance preserving: it walks x / sqrt(1 + sigma^2)
            start = noise
            expected = their_run(model, scheduler, start, cond)
            ours = K.sampling.sample_euler(
                denoiser, start * (1 + sigmas[0] ** 2).sqrt(), sigmas, extra_args=cond, disable=True
            )
        else:
            start = noise * sigmas[0]
            expected = their_run(model, scheduler, start, cond)
            ours = K.sampling.sample_euler(denoiser, start, sigmas, extra_args=cond, disable=True)
        assert expected.std() > 0.01
        assert (ours - expected).abs().max() / expected.abs().max() < 1e-5, kind.__name__


@torch.no_grad()
@pytest.mark.parametrize('shift', [1.0, 3.0])
@pytest.mark.parametrize(
    'family', [sd3, flux, lambda: flux(True)], ids=['sd3', 'flux', 'flux with guidance']
)
def test_euler_is_their_flow_matching_euler(family, shift):
    model, cond, channels = family()
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(STEPS)
    noise = torch.randn(2, channels, 8, 8, dtype=torch.float64)
    expected = their_run(model, scheduler, noise, cond)
    denoiser, sigmas = (
        K.external.from_diffusers(model, scheduler),
        K.external.scheduler_sigmas(scheduler, sigma_max=1e7),
    )
    ours = K.sampling.sample_euler(
        denoiser, noise * (1 + sigmas[0]), sigmas, extra_args=cond, disable=True
    )
    assert isinstance(denoiser, K.external.FlowDenoiser) and denoiser.shift == shift
    assert (ours - expected).abs().max() / expected.abs().max() < 1e-5


@torch.no_grad()
@pytest.mark.parametrize('prediction', ['epsilon', 'v_prediction'])
def test_euler_is_their_edm_euler(prediction):
    model, _, channels = unet()
    scheduler = diffusers.EDMEulerScheduler(prediction_type=prediction, sigma_max=20.0)
    scheduler.set_timesteps(STEPS)
    sigmas = K.external.scheduler_sigmas(scheduler)
    start = torch.randn(2, channels, 8, 8, dtype=torch.float64) * sigmas[0]
    denoiser = K.external.from_diffusers(model, scheduler)
    expected = their_run(model, scheduler, start, {})
    ours = K.sampling.sample_euler(denoiser, start, sigmas, disable=True)
    assert (ours - expected).abs().max() / expected.abs().max() < 1e-5
    assert denoiser.get_sigmas(5)[0] == 20


def test_guidance_joins_the_conditions_of_sdxl():
    model, cond, channels = sdxl()
    denoiser = K.external.from_diffusers(model, diffusers.EulerDiscreteScheduler(**BETAS))
    null = {'encoder_hidden_states': torch.zeros(5, 12), 'text_embeds': torch.zeros(10)}
    guided = K.guidance.classifier_free(denoiser, null, 5.0)
    x, sigma = torch.randn(2, channels, 8, 8), torch.tensor([1.0, 5.0])
    without = denoiser(
        x, sigma, **{key: torch.zeros_like(cond[key]) for key in null}, time_ids=cond['time_ids']
    )
    with_ = denoiser(x, sigma, **cond)
    torch.testing.assert_close(
        guided(x, sigma, **cond), without + 5 * (with_ - without), rtol=1e-4, atol=1e-4
    )


def test_a_folder_is_loaded_without_what_is_not_needed(tmp_path):
    model, _, channels = unet()
    pipeline = diffusers.DDPMPipeline(
        model, diffusers.DDPMScheduler(prediction_type='v_prediction', **BETAS)
    )
    pipeline.save_pretrained(tmp_path / 'pipeline')
    x, sigma = torch.randn(2, channels, 8, 8), torch.tensor([0.5, 5.0])
    from_folder, from_pipeline = (
        K.external.from_diffusers(tmp_path / 'pipeline'),
        K.external.from_diffusers(pipeline),
    )
    assert isinstance(from_folder, K.external.DiscreteVDDPMDenoiser)
    torch.testing.assert_close(from_folder(x, sigma), from_pipeline(x, sigma))
    half = K.external.from_diffusers(tmp_path / 'pipeline', dtype=torch.bfloat16)
    assert half.inner_model.model.dtype == torch.bfloat16
    torch.testing.assert_close(half(x, sigma), from_pipeline(x, sigma), rtol=0.1, atol=0.1)
    index = tmp_path / 'pipeline' / 'model_index.json'
    index.write_text(
        index.read_text().replace(
            '"diffusers",\n    "UNet2DModel"', '"my_code",\n    "UNet2DModel"'
        )
    )
    with pytest.raises(ValueError, match='UNet2DModel of my_code'):
        K.external.from_diffusers(tmp_path / 'pipeline')


def test_zero_terminal_snr_is_a_finite_level():
    model, _, channels = unet()
    scheduler = diffusers.DDIMScheduler(
        prediction_type='v_prediction', rescale_betas_zero_snr=True, **BETAS
    )
    denoiser = K.external.from_diffusers(model, scheduler)
    sigmas = denoiser.get_sigmas(STEPS)
    assert sigmas[0] == pytest.approx(4096) and (sigmas.diff() < 0).all()
    out = K.sampling.sample_euler(
        denoiser, torch.randn(2, channels, 8, 8) * sigmas[0], sigmas, disable=True
    )
    assert out.isfinite().all() and 0.01 < out.std() < 10


@pytest.mark.parametrize(
    'wrong, message',
    [
        (lambda path: K.external.from_diffusers(path), 'is a folder without model_index.json'),
        (lambda path: K.external.from_diffusers(path / 'none'), 'is not a folder, and no model'),
        (lambda path: K.external.from_diffusers(unet()[0]), 'lacks a scheduler'),
        (
            lambda path: K.external.from_diffusers(
                unet()[0], diffusers.DDIMScheduler(prediction_type='flow')
            ),
            "with prediction_type 'flow'",
        ),
    ],
)
def test_refusals(tmp_path, monkeypatch, wrong, message):
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        wrong(tmp_path)


@torch.no_grad()
@pytest.mark.parametrize('family', ['stable diffusion', 'sdxl', 'inpainting'])
def test_conditions_of_one_item_serve_all(family):
    model, cond, channels = FAMILIES[family]()
    scheduler = diffusers.EulerDiscreteScheduler(**BETAS)
    denoiser = K.external.from_diffusers(model, scheduler)
    x, sigma = torch.randn(3, channels, 8, 8), torch.tensor([0.5, 1.0, 5.0])
    one = {name: value[:1] for name, value in cond.items()}
    actual = denoiser(x, sigma, **one)
    for i in range(3):
        torch.testing.assert_close(
            actual[i : i + 1], denoiser(x[i : i + 1], sigma[i : i + 1], **one), atol=1e-5, rtol=1e-5
        )


@torch.no_grad()
@pytest.mark.parametrize(
    'family, change, message',
    [
        (
            'classes',
            {'class_cond': torch.tensor([0, 5])},
            'class_cond must be between 0 and 4.*; got 5',
        ),
        ('classes', {'class_cond': -1}, 'class_cond must be between 0 and 4.*; got -1'),
        (
            'stable diffusion',
            {'encoder_hidden_states': torch.zeros(2, 5, 7)},
            r'encoder_hidden_states must have the width 12 .*; got the shape \[2, 5, 7\]',
        ),
    ],
)
def test_conditions_out_of_range(family, change, message):
    model, cond, channels = FAMILIES[family]()
    denoiser = K.external.from_diffusers(model, diffusers.EulerDiscreteScheduler(**BETAS))
    with pytest.raises(ValueError, match=message):
        denoiser(torch.randn(2, channels, 8, 8), torch.ones(2), **{**cond, **change})
