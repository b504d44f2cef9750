"""The augmentation of Karras et al. (2022), and the wrapper that passes it to the model.

Each image is flipped, scaled, rotated, stretched along a random axis and shifted, each with
probability `a_prob` (except the horizontal flip, whose probability is 1/2). The network gets the
augmentation as nine numbers, so that it learns the augmented distribution without producing it: at
sampling the nine numbers are 0.

`KarrasAugmentationPipeline` takes one image and draws from torch's global generator;
`BatchedAugmentation` takes a batch and a seed or the drawn numbers for each image, and returns
the same result for an image in any batch.

References:
    Karras et al. (2022), arXiv:2206.00364, appendix F.2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .core.devices import has_float64, send
from .core.images import from_bytes, pil_bytes

if TYPE_CHECKING:
    from PIL.Image import Image

#: The number of pixels per pass: enough to hide the overhead of operations, few enough for the
#: cache of the processor.
_PIXELS_AT_ONCE = 2**16


def translate2d(tx: float | Tensor, ty: float | Tensor) -> Tensor:
    """Return the matrix that moves a point (x, y, 1) by (tx, ty): [3, 3], or [..., 3, 3].

    Args:
        tx: The shift along x, a number or [...].
        ty: The shift along y.
    """
    return _matrix(1, 0, tx, 0, 1, ty, 0, 0, 1)


def scale2d(sx: float | Tensor, sy: float | Tensor) -> Tensor:
    """Return the matrix that scales x by sx and y by sy: [3, 3], or [..., 3, 3] for tensors.

    Args:
        sx: The factor of x, a number or [...].
        sy: The factor of y.
    """
    return _matrix(sx, 0, 0, 0, sy, 0, 0, 0, 1)


def rotate2d(theta: float | Tensor) -> Tensor:
    """Return the matrix that rotates x towards y: [3, 3], or [..., 3, 3] for a tensor.

    Args:
        theta: The angle in radians, a number or [...].
    """
    theta = torch.as_tensor(theta)
    cos, sin = theta.cos(), theta.sin()
    return _matrix(cos, -sin, 0, sin, cos, 0, 0, 0, 1)


def _matrix(*entries: float | Tensor) -> Tensor:
    kinds = [
        entry.dtype for entry in entries if isinstance(entry, Tensor) and entry.is_floating_point()
    ]
    dtype = kinds[0] if kinds else torch.get_default_dtype()
    return torch.stack(
        torch.broadcast_tensors(*(torch.as_tensor(entry, dtype=dtype) for entry in entries)), -1
    ).unflatten(-1, (3, 3))


class BatchedAugmentation:
    """Augments uint8 images [B, C, H, W] with one seed each.

    Returns float32 images in [-1, 1] and conditions [B, 9]. The original swaps the two sides in
    shifts, which matters for images that are not square; here each axis has its own. Cubic
    resampling
    can exceed [-1, 1] slightly at sharp edges, which is not clipped.

    Args:
        a_prob: The probability of each change.
        a_scale: The scale factor of one standard deviation.
        a_aniso: The stretch factor of one standard deviation.
        a_trans: The shift of one standard deviation, as a share of width and height.
    """

    def __init__(
        self,
        a_prob: float = 0.12,
        a_scale: float = 2**0.2,
        a_aniso: float = 2**0.2,
        a_trans: float = 1 / 8,
    ) -> None:
        if not 0 <= a_prob <= 1:
            raise ValueError(f'a_prob is {a_prob}; it must be a probability from 0 to 1')
        self.a_prob, self.a_scale, self.a_aniso, self.a_trans = a_prob, a_scale, a_aniso, a_trans

    def __call__(self, images: Tensor, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
        if len(seeds) != len(images):
            raise ValueError(
                f'the augmentation got {len(images)} images and {len(seeds)} seeds; give one seed '
                'per image'
            )
        source = torch.Generator()
        parameters = [self.draw(source.manual_seed(seed)) for seed in seeds]
        return self.apply(images, torch.tensor(parameters, dtype=torch.float64))

    def numbers(self, uniform: Tensor) -> Tensor:
        """Return what happens to each picture, as `draw` does for one: float64 [B, 8].

        Args:
            uniform: Numbers drawn from (0, 1), float64 [B, 13] on the host.
        """
        gate, coin = (self.a_prob > uniform.T).double(), (uniform.T < 0.5).double()
        angle, normal = (2 * uniform.T - 1) * math.pi, torch.special.ndtri(uniform.T)
        flips = [coin[0], gate[1] * coin[2]]
        turns = [gate[3] * normal[4], gate[5] * angle[6], gate[7] * angle[8], gate[7] * normal[9]]
        return torch.stack([*flips, *turns, gate[10] * normal[11], gate[10] * normal[12]], 1)

    def draw(self, generator: torch.Generator | None = None) -> list[float]:
        """Draw the augmentation of one image.

        There are always thirteen draws in this order, so that a change of a_prob does not affect
        the other
        draws.

        Args:
            generator: The source; by default torch's global generator.

        Returns:
            Flips in x and y, log-scale, angle, angle and log-strength of the stretch, shifts in x
                and y.
        """
        value = torch.empty([], dtype=torch.float32)

        def uniform() -> float:
            return value.uniform_(generator=generator).item()

        def normal() -> float:
            return value.normal_(generator=generator).item()

        def coin() -> float:
            return value.random_(2, generator=generator).item()

        def gate() -> bool:
            return uniform() < self.a_prob

        def angle() -> float:
            return (2 * uniform() - 1) * math.pi

        x_flip = coin()
        y_flip = gate() * coin()
        scale = gate() * normal()
        rotation = gate() * angle()
        stretched = gate()
        axis, strength = stretched * angle(), stretched * normal()
        shifted = gate()
        return [
            x_flip,
            y_flip,
            scale,
            rotation,
            axis,
            strength,
            shifted * normal(),
            shifted * normal(),
        ]

    def apply(self, images: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Augment uint8 images by their parameters, and resample only where necessary.

        Args:
            images: uint8 [B, C, H, W].
            parameters: float64 [B, 8] on the host.

        Returns:
            Images and conditions.
        """
        numbers = parameters.T.contiguous()
        warped = numbers[2:].ne(0).any(0)
        out = from_bytes(images)
        for flip, axis in ((numbers[0], 3), (numbers[1], 2)):
            indices = send((flip.ne(0) & ~warped).nonzero()[:, 0], images.device)
            out[indices] = out[indices].flip(axis)
        indices = warped.nonzero()[:, 0]
        if len(indices):
            maps = torch.linalg.inv(self._matrices(numbers[:, indices], *images.shape[2:]))
            indices = send(indices, images.device)
            out[indices] = warp(out[indices], maps)
        return out, send(_condition(numbers), images.device)

    def _matrices(self, numbers: Tensor, h: int, w: int) -> Tensor:
        """Return the maps of pixels (x, y, 1), float64 [B, 3, 3], from the eight numbers [8, B]."""
        x_flip, y_flip, scale, rotation, axis, strength, shift_x, shift_y = numbers
        one = torch.ones_like(scale)
        size, stretch = self.a_scale**scale, self.a_aniso**strength
        return reduce(
            torch.bmm,
            (
                translate2d(one * (w - 1) / 2, one * (h - 1) / 2),
                scale2d(1 - 2 * x_flip, 1 - 2 * y_flip),
                scale2d(size, size),
                rotate2d(-rotation),
                rotate2d(axis),
                scale2d(stretch, 1 / stretch),
                rotate2d(-axis),
                translate2d(self.a_trans * w * shift_x, self.a_trans * h * shift_y),
                translate2d(-one * (w - 1) / 2, -one * (h - 1) / 2),
            ),
        )


def _condition(numbers: Tensor) -> Tensor:
    """Return the conditions [B, 9] from the eight numbers [8, B]; 0 without augmentation."""
    x_flip, y_flip, scale, rotation, axis, strength, shift_x, shift_y = numbers
    return torch.stack(
        [
            x_flip,
            y_flip,
            scale,
            rotation.cos() - 1,
            rotation.sin(),
            strength * axis.cos(),
            strength * axis.sin(),
            shift_x,
            shift_y,
        ],
        1,
    ).float()


class KarrasAugmentationPipeline:
    """Augments one PIL image with draws from torch's global generator.

    Returns (augmented [C, H, W], original [C, H, W], condition [9]), float32, images in [-1, 1].

    Args:
        a_prob: As in `BatchedAugmentation`.
        a_scale: Likewise.
        a_aniso: Likewise.
        a_trans: Likewise.
        disable_all: Return the original (the numbers are drawn in any case).
    """

    def __init__(
        self,
        a_prob: float = 0.12,
        a_scale: float = 2**0.2,
        a_aniso: float = 2**0.2,
        a_trans: float = 1 / 8,
        disable_all: bool = False,
    ) -> None:
        self.augmentation = BatchedAugmentation(a_prob, a_scale, a_aniso, a_trans)
        self.disable_all = disable_all

    def __call__(self, image: Image) -> tuple[Tensor, Tensor, Tensor]:
        image = image if image.mode in ('L', 'LA', 'RGB', 'RGBA') else image.convert('RGB')
        parameters = self.augmentation.draw()
        original = pil_bytes(image)
        augmented, condition = self.augmentation.apply(
            original[None],
            torch.tensor([[0.0] * 8 if self.disable_all else parameters], dtype=torch.float64),
        )
        return augmented[0], from_bytes(original), condition[0]


def warp(images: Tensor, maps: Tensor) -> Tensor:
    """Resample images: the pixel (x, y) of the result is read at maps @ (x, y, 1).

    Uses cubic convolution on 4x4 pixels with a = -1/2; outside, the image is mirrored about the
    centres
    of its outermost pixels.

    Args:
        images: [B, C, H, W].
        maps: [B, 3, 3].

    References:
        Keys (1981), doi:10.1109/TASSP.1981.1163711.
    """
    at_once = max(1, _PIXELS_AT_ONCE // images[0, 0].numel())
    maps = maps.to(torch.float64 if has_float64(images.device) else torch.float32)
    maps = send(maps, images.device)
    return torch.cat([_warp(i, m) for i, m in zip(images.split(at_once), maps.split(at_once))])


def _warp(images: Tensor, maps: Tensor) -> Tensor:
    b, c, h, w = images.shape
    y = torch.arange(h, dtype=maps.dtype, device=images.device)[:, None]
    x = torch.arange(w, dtype=maps.dtype, device=images.device)
    columns, across = _taps(maps[:, 0], x, y, w)
    rows, down = _taps(maps[:, 1], x, y, h)

    bordered = (
        images.permute(0, 2, 3, 1)
        .index_select(1, _mirror(h, images))
        .index_select(2, _mirror(w, images))
    )
    width, pixels = w + 3, (h + 3) * (w + 3)
    # Row n of the table is pixel n and the three to its right, so that one look-up serves four
    # taps.
    flat = F.pad(bordered.flatten(), (0, 3 * c))
    table = flat.as_strided((b * pixels, 4 * c), (c, 1)).contiguous()
    first = torch.arange(b, device=images.device)[:, None, None] * pixels + rows * width + columns
    four = torch.arange(4, device=images.device)
    mixed = _weighted_rows(table, first.view(-1, 1) + four * width, down)
    mixed = _weighted_rows(
        mixed.view(-1, c), torch.arange(len(mixed) * 4, device=images.device).view(-1, 4), across
    )
    return mixed.view(b, h, w, c).permute(0, 3, 1, 2)


def _weighted_rows(table: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """Return out[n] = sum over k of weight[n, k] * table[index[n, k]], without copying rows."""
    return F.embedding_bag(index, table, per_sample_weights=weight, mode='sum')


def _taps(line: Tensor, x: Tensor, y: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Return the pixels at or before points along one axis, and the weights of four around each.

    The map of the axis is `line` [B, 3]; pixels are [B, H, W], weights [BHW, 4].
    """
    of_x, of_y, constant = line[..., None, None].unbind(1)
    at = of_x * x + of_y * y + constant
    period = max(2 * length - 2, 1)
    at = at / period
    at = (at - at.round()).abs_() * period * (length > 1)
    first = at.floor()
    return first.long(), _cubic((at - first).float()).view(-1, 4)


def _cubic(f: Tensor) -> Tensor:
    """Return the weights [..., 4] of the pixels at -1, 0, 1, 2 for a point at f in [0, 1]."""
    square = f * f
    cube = square * f
    return torch.stack(
        [
            square - (cube + f) / 2,
            1 - 2.5 * square + 1.5 * cube,
            f / 2 + 2 * square - 1.5 * cube,
            (cube - square) / 2,
        ],
        -1,
    )


def _mirror(length: int, like: Tensor) -> Tensor:
    """Return the indices -1 ... length + 1, with those outside mirrored into 0 ... length - 1."""
    index = torch.arange(-1, length + 2, device=like.device)
    period = max(2 * length - 2, 1)
    return torch.minimum(index % period, -index % period) if length > 1 else index * 0


class KarrasAugmentWrapper(nn.Module):
    """A network whose first nine mapping conditions are aug_cond, zeros by default.

    Args:
        model: The network.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.inner_model: Any = model

    def forward(
        self,
        input: Tensor,
        sigma: Tensor,
        aug_cond: Tensor | None = None,
        mapping_cond: Tensor | None = None,
        **cond: Any,
    ) -> Any:
        """Call the inner network with the augmentation parameters in its mapping condition.

        Args:
            input: Noised images [B, C, H, W].
            sigma: Noise levels [B].
            aug_cond: Augmentation parameters [B, 9]; zeros, for none, by default.
            mapping_cond: Further mapping conditions [B, n].
            cond: Further conditions of the network.
        """
        if aug_cond is None:
            aug_cond = input.new_zeros([input.shape[0], 9])
        mapping_cond = aug_cond if mapping_cond is None else torch.cat([aug_cond, mapping_cond], 1)
        return self.inner_model(input, sigma, mapping_cond=mapping_cond, **cond)

    def param_groups(self, *args: Any, **kwargs: Any) -> list[dict[str, Any]]:
        """Return the parameter groups of the inner network."""
        return self.inner_model.param_groups(*args, **kwargs)

    def hidden_parameters(self) -> list[nn.Parameter]:
        """Return the hidden parameters of the inner network."""
        return self.inner_model.hidden_parameters()

    def set_skip_stages(self, skip_stages: int) -> Any:
        """Set the skip_stages of the inner network."""
        return self.inner_model.set_skip_stages(skip_stages)

    def set_patch_size(self, patch_size: int) -> Any:
        """Set the patch_size of the inner network."""
        return self.inner_model.set_patch_size(patch_size)
