"""The augmentation: its draws, its geometry against a slow reference, and the batched one
against the one by one.
"""

from __future__ import annotations

import math

import pytest
import torch
from PIL import Image
from torch import nn

from k_diffusion.augmentation import (
    BatchedAugmentation,
    KarrasAugmentationPipeline,
    KarrasAugmentWrapper,
    rotate2d,
    scale2d,
    translate2d,
    warp,
)
from k_diffusion.core.images import from_bytes, pil_bytes, to_pil_image
from k_diffusion.data import icons


def expected_draws(seed, a_prob):
    """The original's draws, in its order."""
    torch.manual_seed(seed)

    def gated(*draw):
        gate = float(torch.rand([]) < a_prob)
        return [float(d()) * gate for d in draw]

    def angle():
        return (2 * torch.rand([]) - 1) * math.pi

    def normal():
        return torch.randn([])

    a0 = float(torch.randint(2, []))
    (a1,) = gated(lambda: torch.randint(2, []))
    (a2,) = gated(normal)
    (a3,) = gated(angle)
    a4, a5 = gated(angle, normal)
    a6, a7 = gated(normal, normal)
    return a0, a1, a2, a3, a4, a5, a6, a7


def expected_condition(a0, a1, a2, a3, a4, a5, a6, a7):
    return torch.tensor(
        [a0, a1, a2, math.cos(a3) - 1, math.sin(a3), a5 * math.cos(a4), a5 * math.sin(a4), a6, a7]
    )


def mat(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def turn(v):
    return mat([math.cos(v), -math.sin(v), 0], [math.sin(v), math.cos(v), 0], [0, 0, 1])


def stretch(x, y):
    return mat([x, 0, 0], [0, y, 0], [0, 0, 1])


def shift(x, y):
    return mat([1, 0, x], [0, 1, y], [0, 0, 1])


def expected_picture(picture, a0, a1, a2, a3, a4, a5, a6, a7, s=2**0.2, t=1 / 8):
    """Pixel by pixel, in float64, from the definition: cubic convolution, a = -1/2, mirrored
    about the outermost centres.
    """
    w, h = picture.size
    k, q = s**a2, s**a5
    matrix = (
        shift((w - 1) / 2, (h - 1) / 2)
        @ stretch(1 - 2 * a0, 1)
        @ stretch(1, 1 - 2 * a1)
        @ stretch(k, k)
        @ turn(-a3)
        @ turn(a4)
        @ stretch(q, 1 / q)
        @ turn(-a4)
        @ shift(t * w * a6, t * h * a7)
        @ shift(-(w - 1) / 2, -(h - 1) / 2)
    )
    return reference_warp(pil_bytes(picture).double() / 255, torch.linalg.inv(matrix)) * 2 - 1


def reference_warp(image, inverse):
    def kernel(d):
        d = abs(d)
        return (
            1.5 * d**3 - 2.5 * d**2 + 1
            if d <= 1
            else -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2
            if d < 2
            else 0.0
        )

    def mirrored(i, n):
        period = max(2 * n - 2, 1)
        return min(i % period, period - i % period) if n > 1 else 0

    c, h, w = image.shape
    out = torch.zeros(c, h, w, dtype=torch.float64)
    for y in range(h):
        for x in range(w):
            px, py, _ = (inverse @ torch.tensor([x, y, 1.0], dtype=torch.float64)).tolist()
            for j in range(math.floor(py) - 1, math.floor(py) + 3):
                for i in range(math.floor(px) - 1, math.floor(px) + 3):
                    out[:, y, x] += (
                        kernel(px - i) * kernel(py - j) * image[:, mirrored(j, h), mirrored(i, w)]
                    )
    return out


@pytest.fixture(scope='module')
def picture():
    noise = torch.randint(
        256, (11, 11, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8
    )
    return Image.frombytes('RGB', (11, 11), bytes(noise.flatten().tolist()))


def test_matrices():
    point = torch.tensor([2.0, 3.0, 1.0])
    assert (translate2d(1, -1) @ point).tolist() == [3, 2, 1]
    assert (scale2d(2, torch.tensor(0.5)) @ point).tolist() == [4, 1.5, 1]
    torch.testing.assert_close(rotate2d(math.pi / 2) @ point, torch.tensor([-3.0, 2.0, 1.0]))
    several = rotate2d(torch.tensor([0.0, math.pi], dtype=torch.float64))
    assert several.shape == (2, 3, 3) and several.dtype == torch.float64
    torch.testing.assert_close(
        several[1] @ point.double(), torch.tensor([-2.0, -3.0, 1.0], dtype=torch.float64)
    )


@pytest.mark.parametrize('seed', range(6))
@pytest.mark.parametrize('a_prob', [0.12, 1.0])
def test_the_pipeline_draws_and_resamples_as_the_original(picture, seed, a_prob):
    numbers = expected_draws(seed, a_prob)
    torch.manual_seed(seed)
    augmented, original, condition = KarrasAugmentationPipeline(a_prob)(picture)
    after = torch.rand([])
    expected_draws(seed, a_prob)
    assert after == torch.rand([])  # just as many draws
    torch.testing.assert_close(condition, expected_condition(*numbers), rtol=0, atol=1e-6)
    torch.testing.assert_close(original, from_bytes(pil_bytes(picture)), rtol=0, atol=0)
    torch.testing.assert_close(
        augmented.double(), expected_picture(picture, *numbers), rtol=0, atol=5e-6
    )


def test_nine_numbers_of_a_seed(picture):
    """Frozen, so that a change of the order of draws cannot hide behind a change of the test's
    own.
    """
    torch.manual_seed(0)
    *_, condition = KarrasAugmentationPipeline(1.0)(picture)
    expected = [0.0, 1.0, -2.178789, -0.326088, 0.738811, 0.463449, -0.329134, -0.335395, 0.456353]
    torch.testing.assert_close(condition, torch.tensor(expected), rtol=0, atol=2e-6)


def test_sides_of_a_picture_that_is_not_square(picture):
    wide = picture.resize((14, 7))
    for seed in range(3):
        torch.manual_seed(seed)
        augmented, _, _ = KarrasAugmentationPipeline(1.0)(wide)
        expected = expected_picture(wide, *expected_draws(seed, 1.0))
        assert augmented.shape == (3, 7, 14)
        torch.testing.assert_close(augmented.double(), expected, rtol=0, atol=5e-6)


def test_without_probability_only_the_flip_left_to_right_is_left(picture):
    flips = 0
    for seed in range(40):
        torch.manual_seed(seed)
        augmented, original, condition = KarrasAugmentationPipeline(0.0)(picture)
        assert condition[1:].eq(0).all()
        assert torch.equal(augmented, original.flip(2) if condition[0] else original)
        flips += int(condition[0])
    assert 10 <= flips <= 30


def test_disabled_it_leaves_the_picture_and_draws_all_the_same(picture):
    torch.manual_seed(4)
    augmented, original, condition = KarrasAugmentationPipeline(1.0, disable_all=True)(picture)
    after = torch.rand([])
    assert torch.equal(augmented, original) and condition.eq(0).all()
    torch.manual_seed(4)
    KarrasAugmentationPipeline(1.0)(picture)
    assert after == torch.rand([])


@pytest.mark.parametrize('mode', ['L', 'RGB', 'RGBA', 'P', 'CMYK'])
def test_modes(picture, mode):
    augmented, original, _ = KarrasAugmentationPipeline(1.0)(picture.convert(mode))
    assert augmented.shape == original.shape == ({'L': 1, 'RGBA': 4}.get(mode, 3), 11, 11)
    assert augmented.std() > 0.1


@pytest.mark.parametrize('a_prob', [0.0, 0.12, 1.0])
def test_the_batched_agrees_with_the_one_by_one(a_prob):
    images = icons(24, 16)
    augmented, condition = BatchedAugmentation(a_prob)(images, [100 + i for i in range(24)])
    assert augmented.shape == (24, 3, 16, 16) and condition.shape == (24, 9)
    for i, image in enumerate(images):
        torch.manual_seed(100 + i)
        one, _, numbers = KarrasAugmentationPipeline(a_prob)(to_pil_image(from_bytes(image)))
        torch.testing.assert_close(augmented[i], one, rtol=0, atol=1e-5)
        torch.testing.assert_close(condition[i], numbers, rtol=0, atol=1e-6)


def test_a_picture_does_not_depend_on_its_batch():
    """Bit for bit, also over the size that is warped in one go."""
    images, augment = icons(70, 64), BatchedAugmentation(0.5)
    together = augment(images, range(70))
    for i in (0, 13, 15, 16, 41, 69):
        alone = augment(images[i : i + 1], [i])
        assert torch.equal(alone[0][0], together[0][i]) and torch.equal(alone[1][0], together[1][i])


def test_images_are_left_as_they_were_given():
    images = icons(8, 16)
    before = images.clone()
    BatchedAugmentation(1.0)(images, range(8))
    assert torch.equal(images, before)


@pytest.mark.parametrize('shape', [(1, 1), (2, 3), (1, 5), (9, 6)])
@pytest.mark.parametrize('channels', [1, 4])
def test_warp_of_small_and_odd_shapes_far_outside(shape, channels):
    image = torch.rand(1, channels, *shape)
    maps = torch.tensor([[[1.3, -0.4, -7.2], [0.5, 0.9, 11.6], [0, 0, 1]]], dtype=torch.float64)
    torch.testing.assert_close(
        warp(image, maps)[0].double(), reference_warp(image[0].double(), maps[0]), rtol=0, atol=2e-6
    )


def test_warp_by_nothing_and_by_whole_pixels():
    image = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(
        warp(image, torch.eye(3, dtype=torch.float64).expand(2, 3, 3)), image, rtol=0, atol=0
    )
    moved = warp(image, torch.stack([translate2d(2, 0).double(), translate2d(0, -1).double()]))
    assert torch.equal(moved[0, :, :, :6], image[0, :, :, 2:]) and torch.equal(
        moved[1, :, 1:], image[1, :, :7]
    )
    assert torch.equal(
        moved[0, :, :, 6], image[0, :, :, 6]
    )  # mirrored about the last centre: 7 + 1 is 7 - 1


def test_errors():
    with pytest.raises(ValueError, match='a_prob is 1'):
        BatchedAugmentation(1.5)
    with pytest.raises(ValueError, match='3 images and 2 seeds'):
        BatchedAugmentation()(icons(3, 8), [1, 2])


class Recorder(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(9, 3)
        self.calls = []

    def forward(self, input, sigma, mapping_cond=None, **cond):
        self.conditions = mapping_cond, cond
        return input

    def param_groups(self, base_lr=1.0):
        return [{'params': list(self.parameters()), 'lr': base_lr}]

    def hidden_parameters(self):
        return [self.layer.weight]

    def set_skip_stages(self, skip_stages):
        self.calls.append(('skip_stages', skip_stages))
        return self

    def set_patch_size(self, patch_size):
        self.calls.append(('patch_size', patch_size))
        return self


def test_wrapper_hands_the_conditions_on():
    inner = Recorder()
    model = KarrasAugmentWrapper(inner)
    x, sigma = torch.randn(2, 3, 4, 4, dtype=torch.float64), torch.ones(2)
    assert torch.equal(model(x, sigma), x)
    assert (
        inner.conditions[0].shape == (2, 9)
        and inner.conditions[0].eq(0).all()
        and inner.conditions[0].dtype == torch.float64
    )
    aug, mapping = torch.randn(2, 9), torch.randn(2, 5)
    model(x, sigma, aug_cond=aug, mapping_cond=mapping, class_cond=torch.tensor([1, 2]))
    assert torch.equal(inner.conditions[0], torch.cat([aug, mapping], 1)) and inner.conditions[1][
        'class_cond'
    ].tolist() == [1, 2]
    model(x, sigma, mapping_cond=mapping)
    assert torch.equal(inner.conditions[0], torch.cat([torch.zeros(2, 9), mapping], 1))


def test_wrapper_hands_the_rest_on():
    inner = Recorder()
    model = KarrasAugmentWrapper(inner)
    assert (
        all(key.startswith('inner_model.') for key in model.state_dict())
        and len(model.state_dict()) == 2
    )
    assert model.param_groups(0.5)[0]['lr'] == 0.5
    assert model.hidden_parameters() == [inner.layer.weight]
    model.set_skip_stages(1)
    model.set_patch_size(2)
    assert inner.calls == [('skip_stages', 1), ('patch_size', 2)]
