import math

import pytest
import torch

from k_diffusion.guidance import classifier_free


def denoise(x, sigma, class_cond, shift=0.0):
    """A denoiser whose answer tells its class."""
    return x / (1 + sigma[:, None]) + class_cond[:, None].to(x) + shift


def test_scale_1_is_the_denoiser_itself():
    batch_sizes = []

    def recorded(x, sigma, **cond):
        batch_sizes.append(len(x))
        return denoise(x, sigma, **cond)

    x, sigma, label = torch.randn(4, 3), torch.rand(4) + 0.1, torch.tensor([0, 1, 2, 3])
    assert torch.equal(
        classifier_free(recorded, {'class_cond': 9}, 1.0)(x, sigma, class_cond=label),
        denoise(x, sigma, label),
    )
    assert batch_sizes == [4]


def test_the_pair_is_the_guided_and_the_unconditional_estimate():
    x, sigma, label = torch.randn(4, 3), torch.rand(4) + 0.1, torch.tensor([0, 1, 2, 3])
    for scale in (0.4, 1.0, 2.0):
        guided, unconditional = classifier_free(denoise, {'class_cond': 9}, scale).pair(
            x, sigma, class_cond=label
        )
        torch.testing.assert_close(unconditional, denoise(x, sigma, torch.full((4,), 9)))
        torch.testing.assert_close(
            guided, unconditional + scale * (denoise(x, sigma, label) - unconditional)
        )


@pytest.mark.parametrize('scale', [0.0, 0.5, 3.0])
def test_extrapolates_from_the_null_class(scale):
    x, sigma, label = (
        torch.randn(4, 3),
        torch.tensor([0.1, 1.0, 2.0, 3.0]),
        torch.tensor([0, 1, 2, 3]),
    )
    with_, without = (
        denoise(x, sigma, label, shift=2.0),
        denoise(x, sigma, torch.full((4,), 9), shift=2.0),
    )
    actual = classifier_free(denoise, {'class_cond': 9}, scale)(
        x, sigma, class_cond=label, shift=2.0
    )
    torch.testing.assert_close(actual, without + scale * (with_ - without))


def test_only_inside_the_interval():
    x, sigma, label = torch.randn(3, 3), torch.tensor([0.5, 1.0, 2.0]), torch.tensor([1, 1, 1])
    actual = classifier_free(denoise, {'class_cond': 0}, 3.0, (0.5, 1.0))(
        x, sigma, class_cond=label
    )
    plain = denoise(x, sigma, label)
    assert torch.allclose(actual[[0, 2]], plain[[0, 2]]) and torch.allclose(
        actual[1] - plain[1], torch.full((3,), 2.0)
    )


def test_a_batch_of_one_is_the_item_of_a_batch():
    x, sigma, label = torch.randn(4, 3), torch.rand(4) + 0.1, torch.tensor([0, 1, 2, 3])
    guided = classifier_free(denoise, {'class_cond': 9}, 2.0)
    assert torch.equal(
        guided(x, sigma, class_cond=label)[2:3], guided(x[2:3], sigma[2:3], class_cond=label[2:3])
    )


def test_refusals():
    with pytest.raises(ValueError, match='finite'):
        classifier_free(denoise, {}, math.nan)
    with pytest.raises(ValueError, match='interval'):
        classifier_free(denoise, {}, 2.0, (3.0, 1.0))
    with pytest.raises(ValueError, match="with the condition 'class_cond'"):
        classifier_free(denoise, {'class_cond': 9}, 2.0)(torch.ones(1, 1), torch.ones(1))
