"""EDM, EDM2 and guided-diffusion: what tells them, the range they are sampled in, their presets.

The stand-ins have the attributes and signatures of the publishers' classes (EDM: sigma_min,
sigma_max, round_sigma, label_dim; EDM2: sigma_data, label_dim, logvar_channels, no round_sigma) and
an exact denoiser of N(0, 0.5^2) inside.
"""

import math

import pytest
import torch
from torch import nn

import k_diffusion as K
from k_diffusion.external.published import GUIDED_DIFFUSION, GUIDED_UPSAMPLERS


def gaussian(x, sigma):
    return x * (0.25 / (0.25 + sigma.view(-1, 1, 1, 1) ** 2))


class EDMPrecond(nn.Module):
    def __init__(self, sigma_min=0.0, sigma_max=float('inf'), label_dim=0):
        super().__init__()
        self.sigma_min, self.sigma_max, self.label_dim, self.levels = (
            sigma_min,
            sigma_max,
            label_dim,
            [],
        )

    def round_sigma(self, sigma):
        return torch.as_tensor(sigma)

    def forward(self, x, sigma, class_labels=None, force_fp32=False, **model_kwargs):
        self.levels.append(float(sigma[0]))
        return gaussian(x, sigma)


class IDDPMPrecond(EDMPrecond):
    """Knows the levels e^k alone, from 0.0064 to 20,291 as the publishers' table reaches."""

    def __init__(self):
        super().__init__(0.0064, 20291.0)

    def round_sigma(self, sigma):
        return torch.as_tensor(sigma).log().round().exp()


class Precond(nn.Module):
    """EDM2: labels are one-hot, and there is no round_sigma."""

    def __init__(self, label_dim=3, logvar_channels=8):
        super().__init__()
        self.sigma_data, self.label_dim, self.logvar_channels, self.labels = (
            0.5,
            label_dim,
            logvar_channels,
            [],
        )

    def forward(
        self, x, sigma, class_labels=None, force_fp32=False, return_logvar=False, **unet_kwargs
    ):
        self.labels.append(class_labels)
        return gaussian(x, sigma)


@pytest.mark.parametrize(
    ('network', 'low', 'high'),
    [
        (EDMPrecond(), 0.002, 80.0),
        (EDMPrecond(0.02, 100.0), 0.02, 80.0),
        (EDMPrecond(0.002, 50.0), 0.002, 50.0),
        (IDDPMPrecond(), 0.0064, 80.0),
        (Precond(), 0.002, 80.0),
    ],
    ids=['EDM', 'VE', 'narrow', 'iDDPM', 'EDM2'],
)
def test_networks_of_edm_are_sampled_where_their_publishers_do(network, low, high):
    denoiser = K.external.wrap(network)
    assert (denoiser.sigma_min, denoiser.sigma_max) == (low, high)
    assert float(denoiser.get_sigmas(4)[0]) <= high * 1.5  # the nearest level that iDDPM knows
    x, sigma = torch.randn(2, 1, 2, 2), torch.tensor([1.0, math.e])
    torch.testing.assert_close(denoiser(x, sigma), gaussian(x, sigma))


def test_sample_asks_at_levels_that_the_network_knows():
    network = IDDPMPrecond()
    levels = []
    K.sample(
        K.external.wrap(network),
        [1, 1, 2, 2],
        6,
        'euler',
        schedule='karras',
        seeds=0,
        callback=lambda done, info: levels.append(float(info['sigma'])),
    )
    for walked, level in zip(levels, network.levels, strict=True):
        assert walked == pytest.approx(level, rel=1e-5)
        assert math.log(walked) == pytest.approx(round(math.log(walked)), abs=1e-5)
    assert max(levels) <= math.exp(5)  # not 20,291


def test_edm2_is_recognised_with_one_hot_labels():
    network = Precond()
    denoiser = K.external.wrap(network)
    assert denoiser.taken_for == 'a denoiser of EDM2 (Precond)'
    denoiser(torch.randn(3, 1, 2, 2), torch.ones(3), class_cond=torch.tensor([0, 2, 3]))
    assert network.labels[-1].tolist() == [[1, 0, 0], [0, 0, 1], [0, 0, 0]]  # 3 stands for no class
    assert K.external.wrap({'ema': network, 'dataset_kwargs': {}}).inner_model is network
    with pytest.raises(ValueError, match='class_cond must hold integers from 0 to 3.*got'):
        denoiser(torch.randn(1, 1, 2, 2), torch.ones(1), class_cond=torch.tensor([4]))


def test_a_wrapper_that_hands_its_arguments_on_is_its_network():
    class Passing(torch.nn.Module):
        def __init__(self, network):
            super().__init__()
            self.network = network

        def forward(self, *args, **kwargs):
            return self.network(*args, **kwargs)

    plain = Precond()
    x, sigma = torch.randn(2, 3, 4, 4), torch.tensor([1.0, 3.0])
    denoiser = K.external.wrap(Passing(plain))
    assert (
        denoiser.taken_for.startswith('a denoiser of EDM2')
        and denoiser.label_dim == plain.label_dim
    )
    torch.testing.assert_close(denoiser(x, sigma, class_cond=1), gaussian(x, sigma))
    assert plain.labels[-1].tolist() == [[0, 1, 0], [0, 1, 0]]
    with pytest.raises(
        ValueError, match='class_cond must be one class, or one for each of the 2 items'
    ):
        denoiser(x, sigma, class_cond=[1, 2, 0])
    with pytest.raises(
        ValueError, match='sigma must be one number, or one for each of the 2 items'
    ):
        denoiser(x, torch.ones(3))


def test_what_is_no_network_is_refused_by_name():
    with pytest.raises(TypeError, match='got the class Precond. Make an instance'):
        K.external.wrap(Precond)
    with pytest.raises(TypeError, match='Weights alone do not tell how they are called'):
        K.external.wrap({'weight': torch.zeros(1)})
    with pytest.raises(TypeError, match='path must be the path of a file; got int'):
        K.external.load_published(3)


def test_presets_of_guided_diffusion():
    """As its README has them: dropout 0.1 for the LSUN models, but for the horses without."""
    assert GUIDED_DIFFUSION['lsun']['dropout'] == 0.1
    assert GUIDED_DIFFUSION['lsun_horse_nodropout']['dropout'] == 0.0
    assert {
        name: (flags['small_size'], flags['large_size'])
        for name, flags in GUIDED_UPSAMPLERS.items()
    } == {'64_256_upsampler': (64, 256), '128_512_upsampler': (128, 512)}


@pytest.mark.parametrize(
    ('name', 'channels', 'dropout'),
    [('lsun_horse_nodropout', 3, 0.0), ('lsun_horse', 3, 0.1), ('64_256_upsampler', 6, None)],
)
def test_a_file_gets_the_preset_of_its_name(tmp_path, name, channels, dropout):
    weights = {
        'time_embed.0.weight': torch.zeros(8, 4),
        'input_blocks.0.0.weight': torch.zeros(4, channels, 3, 3),
        'out.2.weight': torch.zeros(6, 4, 3, 3),
    }
    torch.save(weights, tmp_path / f'{name}.pt')
    published = K.external.load_published(tmp_path / f'{name}.pt')
    assert published.arguments.get('dropout') == dropout
    assert published.arguments['learn_sigma'] and published.arguments['num_channels'] == 4
    assert ('upsampler' in published.network) == (channels == 6)
