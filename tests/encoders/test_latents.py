"""Latents: there and back, their statistics, the cache on disk, and both kinds of autoencoder."""

import pytest
import torch

from k_diffusion.core.images import from_bytes
from k_diffusion.core.weights import save_safetensors
from k_diffusion.encoders import (
    ENCODERS,
    LatentEncoder,
    cached_latents,
    diffusers_autoencoder,
    own_autoencoder,
    statistics,
)
from k_diffusion.models import Autoencoder, AutoencoderConfig


class Halving(torch.nn.Module):
    """An 'autoencoder' whose latents are known: each 2x2 square's mean and spread, scaled."""

    factor, input_channels, latent_channels = 2, 1, 2

    def __init__(self, gain=3.0):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.tensor(gain), requires_grad=False)
        self.calls = 0

    def encode(self, x):
        self.calls += 1
        squares = x.unfold(2, 2, 2).unfold(3, 2, 2).flatten(4)[:, 0]
        z = torch.stack([squares.mean(-1) * self.gain, squares.std(-1) + 1], 1)
        return z, z * 0

    def decode(self, z):
        return (z[:, :1] / self.gain).repeat_interleave(2, 2).repeat_interleave(2, 3)


class Pictures(list):
    pass


@pytest.fixture
def pictures():
    return Pictures(
        {'image': torch.randint(0, 256, (1, 8, 8), dtype=torch.uint8)} for _ in range(20)
    )


@pytest.mark.parametrize('content', [b'', b'\0' * 40, b'hello world', None])
def test_damaged_latents_are_computed_again(pictures, tmp_path, content):
    first = cached_latents(LatentEncoder(Halving()), pictures, 'twenty', tmp_path)
    path = next(tmp_path.iterdir())
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]) if content is None else content)
    encoder = LatentEncoder(Halving())
    with pytest.warns(UserWarning, match='its contents are computed again'):
        assert torch.equal(cached_latents(encoder, pictures, 'twenty', tmp_path), first)
    assert encoder.network.calls == 1 and path.read_bytes() == whole


def test_latents_are_computed_once_and_normalised(pictures, tmp_path):
    encoder = LatentEncoder(Halving())
    latents = cached_latents(encoder, pictures, 'twenty', tmp_path / 'cache', batch_size=6)
    assert latents.shape == (20, 2, 4, 4) and encoder.network.calls == 4
    mean, std = statistics(latents)
    assert mean == pytest.approx([0, 0], abs=1e-5) and std == pytest.approx([1, 1], abs=1e-5)
    x = from_bytes(torch.stack([p['image'] for p in pictures]))
    torch.testing.assert_close(encoder.encode(x), latents)
    again = LatentEncoder(Halving())
    torch.testing.assert_close(
        cached_latents(again, pictures, 'twenty', tmp_path / 'cache'), latents
    )
    assert again.network.calls == 0 and torch.equal(again.std, encoder.std)
    for other, name in (
        (LatentEncoder(Halving(2.0)), 'twenty'),
        (LatentEncoder(Halving()), 'others'),
    ):
        cached_latents(other, pictures, name, tmp_path / 'cache')
        assert other.network.calls == 1
    encoder_with_statistics = LatentEncoder(Halving(), [1.0, 1.0], [2.0, 2.0])
    torch.testing.assert_close(
        cached_latents(encoder_with_statistics, pictures, 'twenty', tmp_path / 'cache'),
        (encoder.network.encode(x)[0] - 1) / 2,
    )


def test_decoding_undoes_the_normalisation():
    encoder = LatentEncoder(Halving(), [0.5, 1.0], [2.0, 0.1])
    x = torch.rand(3, 1, 4, 4).repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(encoder.decode(encoder.encode(x)), x)
    z = torch.randn(1, 2, 2, 2, requires_grad=True)
    encoder.decode(z).sum().backward()
    assert z.grad.abs().sum() > 0
    with pytest.raises(ValueError, match='mean and std must hold a number for each'):
        encoder.set_statistics([0.0], [1.0])


def test_our_autoencoder_learns(tmp_path):
    torch.manual_seed(0)
    config = AutoencoderConfig(
        input_channels=1, input_size=(16, 16), channels=[16, 32], latent_channels=3
    )
    network = config.build()
    x = torch.nn.functional.interpolate(
        torch.rand(16, 1, 4, 4) * 2 - 1, scale_factor=4.0, mode='bilinear'
    )
    optimizer = torch.optim.AdamW(network.param_groups(3e-3))
    losses = []
    for _ in range(60):
        loss = network.loss(x, torch.randn(16, 3, 8, 8), 1e-4)
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
        losses.append(loss.detach())
    assert losses[0].shape == (16,) and losses[-1].mean() < losses[0].mean() / 3
    assert network.encode(x)[0].shape == (16, 3, 8, 8)
    assert {id(p) for p in network.hidden_parameters()} < {id(p) for p in network.parameters()}
    save_safetensors(
        tmp_path / 'a.safetensors',
        network.state_dict(),
        {
            'model': {
                'type': 'autoencoder',
                'input_channels': 1,
                'input_size': [16, 16],
                'channels': [16, 32],
                'latent_channels': 3,
            }
        },
    )
    for location in (tmp_path, tmp_path / 'a.safetensors'):
        loaded = ENCODERS['autoencoder'](location=str(location)).make()
        torch.testing.assert_close(loaded.encode(x), network.encode(x)[0])
    with pytest.raises(ValueError, match='multiples of 2'):
        network.encode(torch.zeros(1, 1, 15, 16))


def test_an_autoencoder_of_diffusers(tmp_path):
    diffusers = pytest.importorskip('diffusers', reason='diffusers is in the extra "diffusers"')
    model = diffusers.AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        down_block_types=('DownEncoderBlock2D',) * 2,
        up_block_types=('UpDecoderBlock2D',) * 2,
    )
    model.eval().save_pretrained(tmp_path / 'pipeline' / 'vae')
    x = torch.rand(2, 3, 16, 16) * 2 - 1
    mean = model.encode(x).latent_dist.mean
    for location in ('pipeline', 'pipeline/vae'):
        encoder = ENCODERS['diffusers'](
            location=str(tmp_path / location), mean=[0.1] * 4, std=[0.5] * 4
        ).make()
        assert (encoder.factor, encoder.latent_channels, encoder.input_channels) == (2, 4, 3)
        torch.testing.assert_close(encoder.encode(x), (mean - 0.1) / 0.5)
        torch.testing.assert_close(encoder.decode(encoder.encode(x)), model.decode(mean).sample)
    with pytest.raises(FileNotFoundError, match='no AutoencoderKL can be loaded'):
        diffusers_autoencoder(str(tmp_path))


def test_refusals(tmp_path):
    assert ENCODERS['pixels']().make() is None
    with pytest.raises(ValueError, match='must hold one .safetensors file; got 0'):
        own_autoencoder(str(tmp_path))
    save_safetensors(
        tmp_path / 'other.safetensors', {'a': torch.ones(1)}, {'model': {'type': 'image_v1'}}
    )
    with pytest.raises(ValueError, match='must be an autoencoder from'):
        own_autoencoder(str(tmp_path))
    with pytest.raises(ValueError, match='multiples of 4'):
        AutoencoderConfig(input_channels=1, input_size=(18, 18), channels=[16, 16, 16])
    with pytest.raises(ValueError, match='multiple of 16'):
        AutoencoderConfig(input_channels=1, input_size=(16, 16), channels=[50])
    assert Autoencoder(1, 2, [16]).factor == 1
