"""Wrappers that hold something for each item, under doubling and splitting of the batch."""

import itertools

import pytest
import torch

import k_diffusion as K
from k_diffusion.guidance import (
    classifier_free,
    composed,
    dynamic_thresholding,
    inpainting,
    loss_guidance,
    posterior_sampling,
    pseudo_inverse,
)
from k_diffusion.guidance.clip import ClipDistance

N = 5
LABELS = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0], dtype=torch.float64)
DRAWS = torch.Generator().manual_seed(3)
IMAGES = torch.randn(N, 1, 4, 4, dtype=torch.float64, generator=DRAWS)
MASKS = (torch.rand(N, 1, 4, 4, dtype=torch.float64, generator=DRAWS) > 0.5).double()
TARGETS = torch.randn(N, 2, 3, dtype=torch.float64, generator=DRAWS)


def denoise(x, sigma, c):
    shift = 0.1 * c.view(-1, 1, 1, 1).to(x)
    return x * (0.25 / (0.25 + sigma.view(-1, 1, 1, 1) ** 2)) + shift


def guided_by_hand(x, sigma, label, scale=7.0):
    """Classifier-free guidance of one item, towards its label from 0."""
    with_, without = (denoise(x, sigma, torch.tensor([c], dtype=x.dtype)) for c in (label, 0.0))
    return without + scale * (with_ - without)


def euler(model, x, levels):
    for sigma, sigma_next in itertools.pairwise(levels):
        slope = (x - model(x, torch.tensor([sigma], dtype=x.dtype))) / sigma
        x = x + slope * (sigma_next - sigma)
    return x


@pytest.mark.parametrize('batch_size', [1, 2, 3, 64])
@pytest.mark.parametrize('outside', [True, False])
def test_inpainting_of_many_images_under_guidance(batch_size, outside):
    start, levels = torch.randn(N, 1, 4, 4) * 4, [4.0, 2.0, 0.5, 0.0]
    how = {'schedule': levels, 'sampler': 'euler', 'cond': {'c': LABELS}, 'batch_size': batch_size}
    if outside:  # guidance by K.sample, round the inpainting
        how |= {'guidance': 7.0, 'null': {'c': 0.0}}
        model = inpainting(denoise, IMAGES, MASKS)
    else:
        model = inpainting(classifier_free(denoise, {'c': 0.0}, 7.0), IMAGES, MASKS)
    actual = K.sample(model, start, **how)
    for i in range(N):

        def by_hand(x, sigma, i=i):
            return torch.where(MASKS[i] > 0, IMAGES[i], guided_by_hand(x, sigma, float(LABELS[i])))

        expected = euler(by_hand, start[i : i + 1].double(), levels)[0]
        torch.testing.assert_close(actual[i].double(), expected, atol=1e-4, rtol=1e-4)


def blurred(clean):
    return clean.unflatten(-1, (2, 2)).mean(-1)


def first_pixels(views):
    return views.flatten(1)[:, :3]


def targeted(f, targets):
    weights = torch.ones(2, dtype=torch.float64)
    return loss_guidance(f, ClipDistance(first_pixels, targets, weights, 4, 1, 1.0, 0), 2.0)


PER_ITEM = {
    'inpainting': lambda f, i: inpainting(f, IMAGES[i], MASKS[i]),
    'inpainting with spread': lambda f, i: inpainting(f, IMAGES[i], MASKS[i], spread=0.5),
    'pseudo_inverse': lambda f, i: pseudo_inverse(f, blurred, blurred(IMAGES[i]), 0.5, 0.1),
    'posterior_sampling': lambda f, i: posterior_sampling(f, blurred, blurred(IMAGES[i]), 1.0, 0.5),
    'composed weights': lambda f, i: composed(
        f, {'c': 0.0}, [{'c': 2.0}, {'c': 3.0}], [LABELS.view(-1, 1, 1, 1)[i], -1.0]
    ),
    'a loss with targets': lambda f, i: targeted(f, TARGETS[i]),
    'thresholded': lambda f, i: dynamic_thresholding(inpainting(f, IMAGES[i], MASKS[i]), 0.9),
}


@pytest.mark.parametrize('name', PER_ITEM)
def test_doubled_by_guidance_each_item_keeps_its_own(name):
    """Guidance round a wrapper with entries per item, against the wrapper made for each item."""
    x, sigma = torch.randn(N, 1, 4, 4, dtype=torch.float64), LABELS / 2
    actual = classifier_free(PER_ITEM[name](denoise, slice(None)), {'c': 0.0}, 3.0)(
        x, sigma, c=LABELS
    )
    for i in range(N):
        part = slice(i, i + 1)
        alone = PER_ITEM[name](denoise, part)
        with_, without = (
            alone(x[part], sigma[part], c=c) for c in (LABELS[part], LABELS[part] * 0)
        )
        torch.testing.assert_close(actual[part], without + 3 * (with_ - without))


@pytest.mark.parametrize('joined', [True, False])
def test_the_memory_of_momentum_stays_with_its_batch(joined):
    def make():
        return K.guidance.adaptive_projected(denoise, {'c': 0.0}, 3.0, momentum=-0.5, joined=joined)

    start = torch.randn(4, 1, 4, 4) * 4
    how = {'schedule': [4.0, 2.0, 1.0, 0.0], 'sampler': 'euler', 'cond': {'c': LABELS[:4]}}
    parts = K.sample(make(), start, batch_size=2, **how)
    torch.testing.assert_close(parts, K.sample(make(), start, **how), atol=1e-5, rtol=1e-5)


MASK = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
KINDS = [MASK, MASK.bool(), MASK.int(), (MASK * 255).to(torch.uint8), MASK.half(), MASK[None, None]]


@pytest.mark.parametrize('mask', KINDS)
@pytest.mark.parametrize('spread', [None, 0.5])
def test_masks_of_every_kind_mean_the_same(mask, spread):
    x, sigma, image = torch.randn(3, 1, 2, 2), torch.tensor([0.5, 1.0, 2.0]), torch.rand(1, 2, 2)

    def gaussian(x, sigma):
        return x * (0.25 / (0.25 + sigma.view(-1, 1, 1, 1) ** 2))

    actual = inpainting(gaussian, image, mask, spread)(x, sigma)
    # The pixels of this Gaussian are independent: the unknown ones are not moved by the known.
    torch.testing.assert_close(actual, torch.where(MASK > 0, image, gaussian(x, sigma)))


def test_a_soft_mask_blends_and_a_mask_of_0_changes_no_bit():
    x, sigma, unknown = torch.randn(3, 1, 2, 2), torch.ones(3), torch.full((1, 2, 2), torch.nan)
    assert torch.equal(inpainting(lambda x, s: x, unknown, torch.zeros(2, 2))(x, sigma), x)
    quarter = torch.full((2, 2), 0.25)
    soft = inpainting(lambda x, s: x, torch.ones(1, 2, 2), quarter)(x, sigma)
    torch.testing.assert_close(soft, 0.25 + 0.75 * x)


@pytest.mark.parametrize('values', [[0, 100], [0.0, 255.0], [-1.0, 1.0], [torch.nan], [0, 1, 255]])
def test_other_masks_are_refused(values):
    with pytest.raises(ValueError, match='mask must hold booleans'):
        inpainting(denoise, torch.zeros(1, 1, len(values)), torch.tensor(values))


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match=r'mask must broadcast .*\[1, 4, 4\]; got shape \[3, 3\]'):
        inpainting(denoise, torch.zeros(1, 4, 4), torch.ones(3, 3))
    with pytest.raises(ValueError, match='one for each of the 5 items; got 3'):
        inpainting(denoise, IMAGES[:3], torch.ones(4, 4))(IMAGES, torch.ones(5), c=LABELS)


def test_rescaling_leaves_items_of_one_element_as_they_are():
    def one(x, sigma, c):
        return x + c[:, None]

    x, sigma, label = torch.randn(3, 1), torch.ones(3), torch.tensor([1.0, 2.0, 3.0])
    actual = classifier_free(one, {'c': 0.0}, 2.0, rescale=0.7)(x, sigma, c=label)
    torch.testing.assert_close(actual, x + 2 * label[:, None])
