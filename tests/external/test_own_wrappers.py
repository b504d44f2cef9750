"""Networks of diffusers inside modules of one's own: what is asked of the network itself, and
nothing else, is the expected value.
"""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

import k_diffusion as K

diffusers = pytest.importorskip('diffusers', reason='diffusers is in the extra "diffusers"')

TINY = {'sample_size': 8, 'block_out_channels': (8, 8), 'layers_per_block': 1, 'norm_num_groups': 4}
CROSS = {
    'in_channels': 4,
    'out_channels': 4,
    'down_block_types': ('CrossAttnDownBlock2D', 'DownBlock2D'),
    'up_block_types': ('UpBlock2D', 'CrossAttnUpBlock2D'),
    'cross_attention_dim': 12,
    'attention_head_dim': 4,
}
X, SIGMA = torch.randn(2, 4, 8, 8) * 4, torch.tensor([3.0, 7.0])


def stable_diffusion():
    return diffusers.UNet2DConditionModel(**TINY, **CROSS).eval(), {
        'encoder_hidden_states': torch.randn(2, 5, 12)
    }


def sdxl():
    unet = diffusers.UNet2DConditionModel(
        addition_embed_type='text_time',
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + 10,
        **TINY,
        **CROSS,
    ).eval()
    return unet, {
        'encoder_hidden_states': torch.randn(2, 5, 12),
        'text_embeds': torch.randn(2, 10),
        'time_ids': torch.tensor([[64.0, 64, 0, 0, 64, 64]] * 2),
    }


class Passing(nn.Module):
    def __init__(self, unet, config=None):
        super().__init__()
        self.unet = unet
        if config is not None:
            self.config = config

    def forward(self, *args, **kwargs):
        return self.unet(*args, **kwargs)


class Named(Passing):
    def forward(self, sample, timestep, **kwargs):
        return self.unet(sample, timestep, **kwargs)


class Short(Passing):
    def forward(this, x, t, **kwargs):
        return this.unet(x, t, **{**kwargs, 'return_dict': False})[0]


class Answering(Passing):
    """Gives an object of diffusers whatever it is asked for."""

    def forward(
        self, sample, timestep, encoder_hidden_states=None, added_cond_kwargs=None, return_dict=True
    ):
        return self.unet(
            sample, timestep, encoder_hidden_states, added_cond_kwargs=added_cond_kwargs
        )


class Dict(Passing):
    def forward(
        self, sample, timestep, encoder_hidden_states=None, added_cond_kwargs=None, return_dict=True
    ):
        return {
            'sample': self.unet(
                sample, timestep, encoder_hidden_states, added_cond_kwargs=added_cond_kwargs
            ).sample
        }


class Derived(diffusers.UNet2DConditionModel):
    def forward(self, *args, **kwargs):
        return super().forward(*args, **kwargs)


def derived(unet):
    network = Derived.from_config(unet.config).eval()
    network.load_state_dict(unet.state_dict())
    return network


WRAPPERS = [
    Passing,
    Named,
    Short,
    Answering,
    Dict,
    derived,
    lambda unet: Passing(Passing(unet)),
    lambda unet: nn.DataParallel(Passing(unet)),
    lambda unet: Named(unet, SimpleNamespace(sample_size=8)),
]


@torch.no_grad()
@pytest.mark.parametrize('family', [stable_diffusion, sdxl])
@pytest.mark.parametrize('wrapper', WRAPPERS)
def test_a_wrapper_of_ones_own_is_asked_as_its_network_is(family, wrapper):
    """D = x - sigma eps(x / sqrt(1 + sigma^2), t), at two levels of the table."""
    unet, cond = family()
    scheduler = diffusers.DDIMScheduler(beta_schedule='scaled_linear')
    denoiser = K.external.from_diffusers(wrapper(unet), scheduler)
    t = torch.tensor([300, 700])
    table = scheduler.alphas_cumprod[t]
    sigma = ((1 - table) / table).sqrt()
    added = (
        {'text_embeds': cond['text_embeds'], 'time_ids': cond['time_ids']}
        if 'time_ids' in cond
        else None
    )
    eps = unet(
        X * table.sqrt().view(-1, 1, 1, 1),
        t,
        cond['encoder_hidden_states'],
        added_cond_kwargs=added,
        return_dict=False,
    )[0]
    torch.testing.assert_close(
        denoiser(X, sigma, **cond), X - sigma.view(-1, 1, 1, 1) * eps, atol=1e-3, rtol=1e-4
    )


def test_wrappers_that_say_too_little_are_refused_at_once():
    unet, _ = stable_diffusion()

    class Silent(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = unet, nn.Linear(1, 1)

        def forward(self, *args, **kwargs):
            return self.a(*args, **kwargs)

    for network in (nn.Sequential(unet), nn.ModuleDict({'unet': unet}), Silent()):
        with pytest.raises(
            ValueError,
            match=rf'{type(network).__name__} must be called as forward\(sample, timestep, ..., '
            r'return_dict\)',
        ):
            K.external.from_diffusers(network, diffusers.DDIMScheduler())


@pytest.mark.parametrize(
    ('change', 'x', 'error', 'message'),
    [
        (
            {},
            X[:, :3],
            ValueError,
            r'x must have 4 channels for this UNet2DConditionModel, including those of unet_cond; '
            r'got 3',
        ),
        ({'unet_cond': X}, X, ValueError, 'x must have 4 channels .* got 8'),
        (
            {},
            X[0],
            ValueError,
            r'sigma must be one number, or one for each of the 4 items of x \[B, ...\]; got the '
            r'shapes \[2\]',
        ),
        (
            {'encoder_hidden_states': torch.zeros(3, 5, 12)},
            X,
            ValueError,
            r'must have 1 entry or one for each .*; got .*\[3, 5, 12\]',
        ),
        (
            {'encoder_hidden_states': torch.zeros(2, 5, 12).numpy()},
            X,
            TypeError,
            'encoder_hidden_states must be a tensor .*; got ndarray',
        ),
        (
            {'encoder_hidden_states': [[0.0] * 12] * 2},
            X,
            TypeError,
            'encoder_hidden_states must be a tensor .*; got list',
        ),
        (
            {'time_ids': None},
            X,
            TypeError,
            "UNet2DConditionModel must be given the condition 'time_ids'; got "
            "'encoder_hidden_states'",
        ),
        (
            {'text_embeds': torch.zeros(3, 10)},
            X,
            ValueError,
            'text_embeds must have 1 entry or one for each of the 2 items',
        ),
    ],
)
def test_mistakes_are_sentences(change, x, error, message):
    unet, cond = sdxl()
    denoiser = K.external.from_diffusers(unet, diffusers.DDIMScheduler())
    cond = {key: value for key, value in {**cond, **change}.items() if value is not None}
    with pytest.raises(error, match=message):
        denoiser(x, SIGMA, **cond)


@torch.no_grad()
def test_a_class_is_a_tensor_a_list_or_a_number():
    unet = diffusers.UNet2DModel(
        in_channels=4,
        out_channels=4,
        down_block_types=('DownBlock2D', 'DownBlock2D'),
        up_block_types=('UpBlock2D', 'UpBlock2D'),
        num_class_embeds=5,
        **TINY,
    ).eval()
    denoiser, x = K.external.from_diffusers(unet, diffusers.DDIMScheduler()), X
    expected = denoiser(x, SIGMA, class_cond=torch.tensor([3, 3]))
    for label in 3, [3, 3], torch.tensor(3):
        assert torch.equal(denoiser(x, SIGMA, class_cond=label), expected)
