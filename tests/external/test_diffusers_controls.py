"""ControlNets, IP-Adapters and LoRA of diffusers: what our denoiser gives with them is what the
pipelines give.
"""

import copy

import pytest
import torch

import k_diffusion as K

diffusers = pytest.importorskip('diffusers', reason='diffusers is in the extra "diffusers"')

STEPS = 4
BETAS = {'beta_start': 0.00085, 'beta_end': 0.012, 'beta_schedule': 'scaled_linear'}
UNET = {
    'block_out_channels': (16, 16),
    'layers_per_block': 1,
    'norm_num_groups': 4,
    'cross_attention_dim': 12,
    'attention_head_dim': 4,
    'in_channels': 4,
    'down_block_types': ('CrossAttnDownBlock2D', 'DownBlock2D'),
}
SD3 = {
    'sample_size': 8,
    'patch_size': 2,
    'in_channels': 4,
    'num_layers': 2,
    'attention_head_dim': 8,
    'num_attention_heads': 2,
    'joint_attention_dim': 12,
    'caption_projection_dim': 16,
    'pooled_projection_dim': 10,
    'out_channels': 4,
    'pos_embed_max_size': 8,
}
FLUX = {
    'patch_size': 1,
    'in_channels': 16,
    'num_layers': 1,
    'num_single_layers': 1,
    'attention_head_dim': 16,
    'num_attention_heads': 2,
    'joint_attention_dim': 12,
    'pooled_projection_dim': 10,
    'axes_dims_rope': (4, 4, 8),
}


def randn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))


WORDS, POOLED, NOISE, PICTURE = (
    randn(2, 5, 12),
    randn(2, 10),
    randn(2, 4, 8, 8),
    randn(2, 3, 64, 64).sigmoid(),
)


def make(kind, **settings):
    torch.manual_seed(0)
    model = getattr(diffusers, kind)(**settings).eval()
    generator = torch.Generator().manual_seed(1)
    for p in model.parameters():  # the last layers of a ControlNet are zero at first
        p.data += 0.05 * torch.randn(p.shape, generator=generator)
    return model


def make_unet(**options):
    return make(
        'UNet2DConditionModel',
        sample_size=8,
        out_channels=4,
        up_block_types=('UpBlock2D', 'CrossAttnUpBlock2D'),
        **UNET,
        **options,
    )


def stable_diffusion(kind='StableDiffusionPipeline', **parts):
    names = dict.fromkeys(
        ('vae', 'text_encoder', 'tokenizer', 'safety_checker', 'feature_extractor')
    )
    scheduler = diffusers.EulerDiscreteScheduler(**BETAS)
    pipeline = getattr(diffusers, kind)(
        **names, scheduler=scheduler, requires_safety_checker=False, **parts
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def sample(denoiser, scheduler, **cond):
    sigmas = K.external.scheduler_sigmas(scheduler, sigma_max=1e7)
    flow = isinstance(denoiser, K.external.FlowDenoiser)
    start = NOISE.double() * (1 + sigmas[0] if flow else scheduler.init_noise_sigma)
    return K.sampling.sample_euler(denoiser, start, sigmas, extra_args=cond, disable=True)


def assert_same(ours, expected):
    assert (ours - expected).abs().max() / expected.abs().max() < 1e-5


@torch.no_grad()
@pytest.mark.parametrize('several', [False, True])
def test_a_controlnet_of_stable_diffusion(several):
    nets = [make('ControlNetModel', **UNET) for _ in range(1 + several)]
    pipeline = stable_diffusion(
        'StableDiffusionControlNetPipeline',
        unet=make_unet(),
        controlnet=nets if several else nets[0],
    )
    pictures, scale = ([PICTURE, 1 - PICTURE], [0.7, 0.4]) if several else (PICTURE, 0.7)
    expected = pipeline(
        prompt_embeds=WORDS,
        image=pictures,
        controlnet_conditioning_scale=scale,
        guidance_scale=1.0,
        latents=NOISE.clone(),
        num_inference_steps=STEPS,
        output_type='latent',
        return_dict=False,
    )[0]
    cond = {
        'encoder_hidden_states': WORDS,
        'controlnet_cond': pictures,
        'conditioning_scale': scale,
    }
    ours = sample(K.external.from_diffusers(pipeline), pipeline.scheduler, **cond)
    assert_same(ours, expected)
    without = sample(
        K.external.from_diffusers(pipeline.unet, pipeline.scheduler),
        pipeline.scheduler,
        encoder_hidden_states=WORDS,
    )
    assert (without - expected).abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize('zeros', [False, True])
def test_a_controlnet_of_stable_diffusion_3(zeros):
    """Its network in their loop, written out: the pipeline wants an autoencoder for the picture."""
    network = make('SD3Transformer2DModel', **SD3)
    net = make(
        'SD3ControlNetModel', **{**SD3, 'num_layers': 1}, force_zeros_for_pooled_projection=zeros
    )
    scheduler, latents = (
        diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        randn(2, 4, 8, 8) * 0.5,
    )
    scheduler.set_timesteps(STEPS)
    expected = NOISE.double()
    for t in scheduler.timesteps:
        arguments = {
            'hidden_states': expected.float(),
            'timestep': t.expand(2),
            'encoder_hidden_states': WORDS,
        }
        blocks = net(
            **arguments,
            controlnet_cond=latents,
            conditioning_scale=0.7,
            pooled_projections=POOLED * (not zeros),
            return_dict=False,
        )[0]
        answer = network(
            **arguments,
            pooled_projections=POOLED,
            block_controlnet_hidden_states=blocks,
            return_dict=False,
        )[0]
        expected = scheduler.step(answer.double(), t, expected, return_dict=False)[0]
    denoiser = K.external.from_diffusers(network, scheduler, controlnet=net)
    assert_same(
        sample(
            denoiser,
            scheduler,
            encoder_hidden_states=WORDS,
            pooled_projections=POOLED,
            controlnet_cond=latents,
            conditioning_scale=0.7,
        ),
        expected,
    )


@torch.no_grad()
def test_a_controlnet_of_flux_is_given_its_picture_as_tokens():
    network = make('FluxTransformer2DModel', **FLUX)
    net = make('FluxControlNetModel', **FLUX)
    scheduler, latents = (
        diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        randn(2, 4, 8, 8) * 0.5,
    )
    scheduler.set_timesteps(STEPS)
    pack = diffusers.FluxPipeline._pack_latents
    ids = diffusers.FluxPipeline._prepare_latent_image_ids(2, 4, 4, 'cpu', torch.float32)
    expected = pack(NOISE, *NOISE.shape).double()
    for t in scheduler.timesteps:
        arguments = {
            'hidden_states': expected.float(),
            'timestep': t.expand(2) / 1000,
            'encoder_hidden_states': WORDS,
            'pooled_projections': POOLED,
            'img_ids': ids,
            'txt_ids': torch.zeros(5, 3),
            'return_dict': False,
        }
        blocks, single = net(
            **arguments, controlnet_cond=pack(latents, *latents.shape), conditioning_scale=0.7
        )
        answer = network(
            **arguments, controlnet_block_samples=blocks, controlnet_single_block_samples=single
        )[0]
        expected = scheduler.step(answer.double(), t, expected, return_dict=False)[0]
    expected = diffusers.FluxPipeline._unpack_latents(expected, 64, 64, 8)
    denoiser = K.external.from_diffusers(network, scheduler, controlnet=net)
    assert_same(
        sample(
            denoiser,
            scheduler,
            encoder_hidden_states=WORDS,
            pooled_projections=POOLED,
            controlnet_cond=latents,
            conditioning_scale=0.7,
        ),
        expected,
    )


@torch.no_grad()
def test_guidance_goes_through_a_controlnet():
    pipeline = stable_diffusion(
        'StableDiffusionControlNetPipeline',
        unet=make_unet(),
        controlnet=make('ControlNetModel', **UNET),
    )
    expected = pipeline(
        prompt_embeds=WORDS,
        negative_prompt_embeds=torch.zeros_like(WORDS),
        image=PICTURE,
        guidance_scale=3.0,
        latents=NOISE.clone(),
        num_inference_steps=STEPS,
        output_type='latent',
        return_dict=False,
    )[0]
    guided = K.guidance.classifier_free(
        K.external.from_diffusers(pipeline), {'encoder_hidden_states': torch.zeros(5, 12)}, 3.0
    )
    sigmas = K.external.scheduler_sigmas(pipeline.scheduler)
    ours = K.sampling.sample_euler(
        guided,
        NOISE.double() * pipeline.scheduler.init_noise_sigma,
        sigmas,
        disable=True,
        extra_args={'encoder_hidden_states': WORDS, 'controlnet_cond': PICTURE},
    )
    assert_same(ours, expected)


def test_what_a_controlnet_is_not_for():
    net, scheduler = make('ControlNetModel', **UNET), diffusers.EulerDiscreteScheduler(**BETAS)
    with pytest.raises(ValueError, match='ControlNet.*got UNet2DConditionModel'):
        K.external.from_diffusers(make_unet(), scheduler, controlnet=make_unet())
    plain = diffusers.UNet2DModel(
        sample_size=8,
        block_out_channels=(16,),
        down_block_types=('DownBlock2D',),
        up_block_types=('UpBlock2D',),
        norm_num_groups=4,
    )
    with pytest.raises(ValueError, match='for UNet2DModel'):
        K.external.from_diffusers(plain, scheduler, controlnet=net)
    denoiser = K.external.from_diffusers(make_unet(), scheduler, controlnet=net)
    with pytest.raises(TypeError, match='controlnet_cond'):
        denoiser(NOISE, torch.ones(2), encoder_hidden_states=WORDS)


def test_a_folder_with_a_controlnet_is_loaded_with_it(tmp_path):
    pipeline = stable_diffusion(
        'StableDiffusionControlNetPipeline',
        unet=make_unet(),
        controlnet=make('ControlNetModel', **UNET),
    )
    pipeline.save_pretrained(tmp_path)
    cond = {'encoder_hidden_states': WORDS, 'controlnet_cond': PICTURE}
    both = [
        K.external.from_diffusers(source)(NOISE, torch.ones(2), **cond)
        for source in (pipeline, tmp_path)
    ]
    torch.testing.assert_close(*both)


@torch.no_grad()
def test_residuals_computed_elsewhere_pass_through():
    unet, scheduler, net = (
        make_unet(),
        diffusers.EulerDiscreteScheduler(**BETAS),
        make('ControlNetModel', **UNET),
    )
    sigma = torch.full((2,), 2.0)
    denoiser = K.external.from_diffusers(unet, scheduler)
    t = denoiser.sigma_to_t(sigma)
    down, mid = net(
        NOISE / 5**0.5, t, encoder_hidden_states=WORDS, controlnet_cond=PICTURE, return_dict=False
    )
    cond = {
        'encoder_hidden_states': WORDS,
        'down_block_additional_residuals': down,
        'mid_block_additional_residual': mid,
    }
    expected = NOISE - 2 * unet(NOISE / 5**0.5, t, return_dict=False, **cond)[0]
    torch.testing.assert_close(denoiser(NOISE, sigma, **cond), expected, rtol=1e-5, atol=1e-5)
    controlled = K.external.from_diffusers(unet, scheduler, controlnet=net)
    output = controlled(NOISE, sigma, encoder_hidden_states=WORDS, controlnet_cond=PICTURE)
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)


def ip_adapter(unet, tokens=4, width=6):
    """The two parts of a file of an IP-Adapter for this U-Net."""
    generator = torch.Generator().manual_seed(4)

    def weight(*shape):
        return 0.3 * torch.randn(*shape, generator=generator)

    projection = {
        'proj.weight': weight(tokens * 12, width),
        'proj.bias': weight(tokens * 12),
        'norm.weight': weight(12),
        'norm.bias': weight(12),
    }
    cross = [name for name in unet.attn_processors if name.endswith('attn2.processor')]
    return {
        'image_proj': projection,
        'ip_adapter': {
            f'{2 * i + 1}.{part}.weight': weight(16, 12)
            for i in range(len(cross))
            for part in ('to_k_ip', 'to_v_ip')
        },
    }


@torch.no_grad()
def test_an_ip_adapter():
    unet = make_unet()
    plain = copy.deepcopy(unet)
    unet._load_ip_adapter_weights([ip_adapter(unet)])
    pipeline, embeds = (
        stable_diffusion(unet=unet, image_encoder=None),
        randn(1, 1, 6),
    )  # the pipeline repeats it for each prompt
    expected = pipeline(
        prompt_embeds=WORDS,
        ip_adapter_image_embeds=[embeds],
        guidance_scale=1.0,
        latents=NOISE.clone(),
        num_inference_steps=STEPS,
        output_type='latent',
        return_dict=False,
    )[0]
    ours = sample(
        K.external.from_diffusers(pipeline),
        pipeline.scheduler,
        encoder_hidden_states=WORDS,
        image_embeds=[embeds],
    )
    assert_same(ours, expected)
    without = sample(
        K.external.from_diffusers(plain, pipeline.scheduler),
        pipeline.scheduler,
        encoder_hidden_states=WORDS,
    )
    assert (without - expected).abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize('wrapped', [False, True])
def test_a_lora(wrapped):
    peft = pytest.importorskip(
        'peft', reason='PEFT, by which diffusers adds LoRA layers, is not installed'
    )
    unet = make_unet()
    config = peft.LoraConfig(r=2, target_modules=['to_q', 'to_v'], init_lora_weights=False)
    pipeline = stable_diffusion(unet=copy.deepcopy(unet))
    pipeline.unet.add_adapter(config)
    expected = pipeline(
        prompt_embeds=WORDS,
        guidance_scale=1.0,
        latents=NOISE.clone(),
        num_inference_steps=STEPS,
        output_type='latent',
        return_dict=False,
    )[0]
    source = pipeline.unet
    if wrapped:  # the same weights in PEFT's own wrapper
        source = peft.get_peft_model(unet, config)
        source.base_model.model.load_state_dict(pipeline.unet.state_dict())
    ours = sample(
        K.external.from_diffusers(source, pipeline.scheduler),
        pipeline.scheduler,
        encoder_hidden_states=WORDS,
    )
    assert_same(ours, expected)
    without = sample(
        K.external.from_diffusers(make_unet(), pipeline.scheduler),
        pipeline.scheduler,
        encoder_hidden_states=WORDS,
    )
    assert (without - expected).abs().max() > 1e-3
