"""Image to image: a picture noised in part and denoised again, and noises that are nearly another."""
from __future__ import annotations

import math

import torch
from torch import Tensor

from ..core.tensors import append_dims


def partial_noise(image: Tensor, sigmas: Tensor, strength: float, noise: Tensor) -> tuple[Tensor, Tensor]:
    """(x, the rest of the schedule): what a sampler is to go on from for a picture like `image`.

    strength in [0, 1] is the share of the schedule's steps that are taken: 0 gives the image back, 1 is sampling from (nearly)
    nothing but noise. noise: unit Gaussian, [B, C, H, W]; several noises for one image are variations of it.
    Meng et al. (2021), arXiv 2108.01073.
    """
    if not 0 <= strength <= 1:
        raise ValueError(f'strength is {strength}; it must be from 0 (the image as it is) to 1 (every step)')
    rest = sigmas[round((1 - strength) * (len(sigmas) - 1)):]
    return image + noise * rest[0].to(noise), rest


def blended_noise(a: Tensor, b: Tensor, amount: float | Tensor) -> Tensor:
    """Unit noise between a (amount 0) and b (amount 1), along a quarter of a circle: cos(phi) a + sin(phi) b, phi = amount pi / 2.

    A little of another noise gives a picture that is a little different. amount: a number, or one for each item [B].
    """
    phi = torch.as_tensor(amount, dtype=a.dtype, device=a.device) * (math.pi / 2)
    phi = append_dims(phi, a.ndim) if phi.ndim else phi
    return phi.cos() * a + phi.sin() * b
