"""Random noise levels under the original's names and with its draws, and what they share with
quantiles: the inverse CDFs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .stratified import stratified_with_settings


def rand_log_normal(
    shape: Sequence[int],
    loc: float = 0.0,
    scale: float = 1.0,
    device: Any = 'cpu',
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """ln sigma ~ N(loc, scale^2). Karras et al. (2022), arXiv 2206.00364, section 5."""
    return log_normal(stratified_with_settings(shape, dtype, device), loc, scale)


def log_normal(u: Tensor, loc: float, scale: float) -> Tensor:
    u = u * (1 - 2e-7) + 1e-7
    return (loc + scale * math.sqrt(2) * torch.erfinv(2 * u - 1)).exp()


def rand_log_logistic(
    shape: Sequence[int],
    loc: float = 0.0,
    scale: float = 1.0,
    min_value: float = 0.0,
    max_value: float = math.inf,
    device: Any = 'cpu',
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """ln sigma ~ Logistic(loc, scale), sigma cut to [min_value, max_value]."""
    u = stratified_with_settings(shape, torch.float64, device)
    return log_logistic(u, loc, scale, min_value, max_value).to(dtype)


def log_logistic(u: Tensor, loc: float, scale: float, min_value: float, max_value: float) -> Tensor:
    def cdf(value: float) -> float:
        return (1 + math.tanh((math.log(value) - loc) / scale / 2)) / 2 if value > 0 else 0.0

    low, high = cdf(min_value), cdf(max_value)
    return (loc + scale * (low + u.double() * (high - low)).logit()).exp().to(u.dtype)


def rand_log_uniform(
    shape: Sequence[int],
    min_value: float,
    max_value: float,
    device: Any = 'cpu',
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """ln sigma uniform from ln min_value to ln max_value."""
    return log_uniform(stratified_with_settings(shape, dtype, device), min_value, max_value)


def log_uniform(u: Tensor, min_value: float, max_value: float) -> Tensor:
    low, high = math.log(min_value), math.log(max_value)
    return (low + u * (high - low)).exp()


def rand_v_diffusion(
    shape: Sequence[int],
    sigma_data: float = 1.0,
    min_value: float = 0.0,
    max_value: float = math.inf,
    device: Any = 'cpu',
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """atan(sigma / sigma_data) uniform, sigma cut to [min_value, max_value]: the time of a
    cosine schedule is uniform.
    """
    return v_diffusion(
        stratified_with_settings(shape, dtype, device), sigma_data, min_value, max_value
    )


def v_diffusion(u: Tensor, sigma_data: float, min_value: float, max_value: float) -> Tensor:
    low, high = math.atan(min_value / sigma_data), math.atan(max_value / sigma_data)
    return (low + u * (high - low)).tan() * sigma_data


def rand_split_log_normal(
    shape: Sequence[int],
    loc: float,
    scale_1: float,
    scale_2: float,
    device: Any = 'cpu',
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """ln sigma normal about loc, of width scale_1 below it and scale_2 above.

    (Never stratified.)
    """
    n = torch.randn(shape, device=device, dtype=dtype).abs()
    u = torch.rand(shape, device=device, dtype=dtype)
    return _split(torch.where(u < scale_1 / (scale_1 + scale_2), -n, n), loc, scale_1, scale_2)


def split_log_normal(u: Tensor, loc: float, scale_1: float, scale_2: float) -> Tensor:
    below = scale_1 / (scale_1 + scale_2)
    # Each side is half a normal distribution, stretched to its share.
    half = torch.where(u < below, u / below / 2, 1 - (1 - u) / (1 - below) / 2)
    return _split(torch.special.ndtri(half), loc, scale_1, scale_2)


def _split(n: Tensor, loc: float, scale_1: float, scale_2: float) -> Tensor:
    return (loc + n * torch.where(n < 0, scale_1, scale_2)).exp()


def rand_cosine_interpolated(
    shape: Sequence[int],
    image_d: float,
    noise_d_low: float,
    noise_d_high: float,
    sigma_data: float = 1.0,
    min_value: float = 1e-3,
    max_value: float = 1e3,
    device: Any = 'cpu',
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """A cosine schedule for images of image_d pixels: at large sigma noised like one for
    noise_d_low, at small for noise_d_high.

    Hoogeboom et al. (2023), arXiv 2301.11093. Stratified levels run from noisy to clean.
    """
    u = stratified_with_settings(shape, dtype, device)
    return _cosine_from_noisy(
        u, image_d, noise_d_low, noise_d_high, sigma_data, min_value, max_value
    )


def cosine_interpolated(u: Tensor, *parameters: float) -> Tensor:
    return _cosine_from_noisy(1 - u, *parameters)


def _cosine_from_noisy(
    u: Tensor,
    image_d: float,
    noise_d_low: float,
    noise_d_high: float,
    sigma_data: float,
    min_value: float,
    max_value: float,
) -> Tensor:
    clean, noisy = (
        -2 * math.log(value / sigma_data) for value in (min_value, max_value)
    )  # log SNR

    def shifted_cosine(noise_d: float) -> Tensor:
        shift = 2 * math.log(noise_d / image_d)
        start, end = (math.atan(math.exp(-(logsnr - shift) / 2)) for logsnr in (noisy, clean))
        return -2 * (start + u * (end - start)).tan().log() + shift

    logsnr = torch.lerp(shifted_cosine(noise_d_low), shifted_cosine(noise_d_high), u)
    return sigma_data * (-logsnr / 2).exp()
