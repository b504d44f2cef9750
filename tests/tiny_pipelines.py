"""Tiny random networks in pipelines of diffusers, and their inputs."""

import diffusers
import torch

import k_diffusion as K

TINY = {
    'sample_size': 8,
    'block_out_channels': (16, 16),
    'layers_per_block': 1,
    'norm_num_groups': 4,
}
CROSS = {
    'in_channels': 4,
    'out_channels': 4,
    'down_block_types': ('CrossAttnDownBlock2D', 'DownBlock2D'),
    'up_block_types': ('UpBlock2D', 'CrossAttnUpBlock2D'),
    'cross_attention_dim': 12,
    'attention_head_dim': 4,
}
BETAS = {'beta_start': 0.00085, 'beta_end': 0.012, 'beta_schedule': 'scaled_linear'}


def randomised(model):
    generator = torch.Generator().manual_seed(1)
    for p in model.parameters():
        p.data += 0.02 * torch.randn(p.shape, generator=generator)
    return model.eval().requires_grad_(False)


def make_vae():
    torch.manual_seed(0)
    return randomised(
        diffusers.AutoencoderKL(
            block_out_channels=(16, 16),
            norm_num_groups=4,
            latent_channels=4,
            sample_size=16,
            down_block_types=('DownEncoderBlock2D',) * 2,
            up_block_types=('UpDecoderBlock2D',) * 2,
        )
    )


def make_flux():
    torch.manual_seed(0)
    return randomised(
        diffusers.FluxTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=12,
            pooled_projection_dim=10,
            axes_dims_rope=(4, 4, 8),
        )
    )


def flux_pipe(flux, vae, scheduler, kind='FluxPipeline'):
    pipe = getattr(diffusers, kind)(
        scheduler=scheduler,
        vae=vae,
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        transformer=flux,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def words(n=2):
    generator = torch.Generator().manual_seed(5)
    return [torch.randn([n, 5, 12], generator=generator) for _ in range(2)]


def latents(shape=(2, 4, 8, 8), seed=2):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def ours(scheduler, **options):
    return K.integrations.diffusers.KDiffusionScheduler.from_config(scheduler.config, **options)


#: Tables with weights so large that they multiply the rounding of float32 by more than 30.
LARGE_WEIGHTS = {
    'dormand_prince_13s',
    'dormand_prince_6s',
    'dormand_prince_7s',
    'res_16s_luan_alhsmy',
    'tsitouras_6s',
}


def rounding(name):
    """Return how far float32 may move the end of a run of the named sampler."""
    return 1e-4 if name in LARGE_WEIGHTS else 1e-5


def differ(a, b):
    return float((a - b).abs().max() / b.abs().max())


def save_stable_diffusion(folder):
    """Write a Stable Diffusion pipeline with a text encoder of random weights."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

    vocabulary = {'<pad>': 0, '<start>': 1, '<end>': 2, '<unknown>': 3, 'a': 4, 'boat': 5}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token='<unknown>'))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single='<start> $A <end>', special_tokens=[('<start>', 1), ('<end>', 2)]
    )
    special = {'pad_token': '<pad>', 'bos_token': '<start>', 'eos_token': '<end>'}
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token='<unknown>', model_max_length=8, **special
    )
    torch.manual_seed(0)
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(vocabulary),
            hidden_size=12,
            intermediate_size=24,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=8,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    )
    pipe = diffusers.StableDiffusionPipeline(
        vae=make_vae(),
        text_encoder=text,
        tokenizer=fast,
        unet=randomised(diffusers.UNet2DConditionModel(**TINY, **CROSS)),
        scheduler=diffusers.DDIMScheduler(**BETAS, steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(folder)
