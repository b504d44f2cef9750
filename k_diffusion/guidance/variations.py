"""Image to image: a picture noised in part and denoised again, and noises that are nearly
another.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..core.arguments import show_value
from ..core.tensors import append_dims


def partial_noise(image: Tensor, sigmas: Tensor, noise: Tensor) -> Tensor:
    """x = image + sigmas[0] noise: what a sampler goes on from along `sigmas` to a picture like
    `image`.

    sigmas: the rest of a schedule, as K.schedules.sigmas_for_strength cuts it; the higher it
    begins, the less is left of the image. noise: unit Gaussian, [B, C, H, W]; several noises for
    one image [C, H, W] are variations of it. Meng et al. (2021), arXiv 2108.01073.
    """
    for name, value in ('image', image), ('noise', noise), ('sigmas', sigmas):
        if not isinstance(value, Tensor):
            raise TypeError(f'{name} must be a tensor; got {show_value(value)}')
    if not sigmas.ndim or not len(sigmas):
        raise ValueError(f'sigmas must hold at least one level; got shape {list(sigmas.shape)}')
    if noise.shape[-image.ndim :] != image.shape and noise.shape != image.shape:
        raise ValueError(
            f'noise of shape {list(noise.shape)} does not fit an image of {list(image.shape)}; '
            'give noise for each variation'
        )
    return image + noise * sigmas[0].to(noise)


def blended_noise(a: Tensor, b: Tensor, amount: float | Tensor) -> Tensor:
    """Unit noise between a (amount 0) and b (amount 1), along a quarter of a circle: cos(phi) a +
    sin(phi) b, phi = amount pi / 2.

    A little of another noise gives a picture that is a little different. amount: a number, or one
    for each item [B].
    """
    for name, value in ('a', a), ('b', b):
        if not isinstance(value, Tensor) or value.shape != a.shape:
            raise ValueError(
                f'{name} must be a tensor of noise, of one shape with the other; got '
                f'{show_value(value)}'
            )
    phi = torch.as_tensor(amount, dtype=a.dtype, device=a.device) * (math.pi / 2)
    phi = append_dims(phi, a.ndim) if phi.ndim else phi
    return phi.cos() * a + phi.sin() * b
