"""Image to image: an image with partial noise, and interpolated noise."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..core.arguments import show_value
from ..core.tensors import append_dims


def partial_noise(image: Tensor, sigmas: Tensor, noise: Tensor) -> Tensor:
    """Return x = image + sigmas[0] noise, from which a sampler continues along `sigmas`.

    The result of the sampler is an image like `image`. Several noises for one image give variations
    of it.

    Args:
        image: [C, H, W] or [B, C, H, W].
        sigmas: The rest of a schedule, as K.schedules.sigmas_for_strength returns it; a higher
            start keeps less of the image.
        noise: Unit Gaussian noise, [B, C, H, W].

    Raises:
        TypeError: If an argument is not a tensor.
        ValueError: If the shapes do not fit.

    References:
        Meng et al. (2021), arXiv:2108.01073.
    """
    for name, value in ('image', image), ('noise', noise), ('sigmas', sigmas):
        if not isinstance(value, Tensor):
            raise TypeError(f'{name} must be a tensor; got {show_value(value)}')
    if not sigmas.ndim or not len(sigmas):
        raise ValueError(f'sigmas must hold at least one level; got shape {list(sigmas.shape)}')
    if noise.shape[-image.ndim :] != image.shape and noise.shape != image.shape:
        raise ValueError(
            f'noise must have the shape of the image, {list(image.shape)}, for each variation; got '
            f'{list(noise.shape)}'
        )
    return image + noise * sigmas[0].to(noise)


def blended_noise(a: Tensor, b: Tensor, amount: float | Tensor) -> Tensor:
    """Interpolate unit noise from a (amount 0) to b (amount 1) along a quarter circle.

    The result is cos(phi) a + sin(phi) b with phi = amount pi / 2. A small amount gives a slightly
    different image. k-diffusion's own.

    Args:
        a: Unit noise.
        b: Unit noise of the same shape.
        amount: A number, or one for each item [B].
    """
    for name, value in ('a', a), ('b', b):
        if not isinstance(value, Tensor) or value.shape != a.shape:
            raise ValueError(
                f'{name} must be a tensor of noise, a and b of the same shape; got '
                f'{show_value(value)}'
            )
    phi = torch.as_tensor(amount, dtype=a.dtype, device=a.device) * (math.pi / 2)
    phi = append_dims(phi, a.ndim) if phi.ndim else phi
    return phi.cos() * a + phi.sin() * b
