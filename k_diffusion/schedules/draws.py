"""Random noise levels with the names and the draws of the original, and inverse CDFs."""

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
    """Draw levels with ln sigma ~ N(loc, scale^2).

    Args:
        shape: The shape of the result.
        loc: Mean of ln sigma.
        scale: Standard deviation of ln sigma.
        device: The device of the result.
        dtype: Its dtype.

    References:
        Karras et al. (2022), arXiv:2206.00364, section 5.
    """
    return log_normal(stratified_with_settings(shape, dtype, device), loc, scale)


def log_normal(u: Tensor, loc: float, scale: float) -> Tensor:
    """Return the quantiles of `rand_log_normal`.

    Args:
        u: Numbers in (0, 1).
        loc: Mean of ln sigma.
        scale: Standard deviation of ln sigma.
    """
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
    """Draw levels with ln sigma ~ Logistic(loc, scale), truncated to [min_value, max_value].

    Args:
        shape: The shape of the result.
        loc: Mean of ln sigma.
        scale: Scale of ln sigma.
        min_value: The lowest level.
        max_value: The highest level.
        device: The device of the result.
        dtype: Its dtype.
    """
    u = stratified_with_settings(shape, torch.float64, device)
    return log_logistic(u, loc, scale, min_value, max_value).to(dtype)


def log_logistic(u: Tensor, loc: float, scale: float, min_value: float, max_value: float) -> Tensor:
    """Return the quantiles of `rand_log_logistic`.

    Args:
        u: Numbers in (0, 1).
        loc: Mean of ln sigma.
        scale: Scale of ln sigma.
        min_value: The lowest level.
        max_value: The highest level.
    """

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
    """Draw levels with ln sigma uniform between ln min_value and ln max_value.

    Args:
        shape: The shape of the result.
        min_value: The lowest level.
        max_value: The highest level.
        device: The device of the result.
        dtype: Its dtype.
    """
    return log_uniform(stratified_with_settings(shape, dtype, device), min_value, max_value)


def log_uniform(u: Tensor, min_value: float, max_value: float) -> Tensor:
    """Return the quantiles of `rand_log_uniform`.

    Args:
        u: Numbers in (0, 1).
        min_value: The lowest level.
        max_value: The highest level.
    """
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
    """Draw levels with atan(sigma / sigma_data) uniform, truncated to [min_value, max_value].

    The time of a cosine schedule is then uniform.

    Args:
        shape: The shape of the result.
        sigma_data: Standard deviation of the data.
        min_value: The lowest level.
        max_value: The highest level.
        device: The device of the result.
        dtype: Its dtype.
    """
    return v_diffusion(
        stratified_with_settings(shape, dtype, device), sigma_data, min_value, max_value
    )


def v_diffusion(u: Tensor, sigma_data: float, min_value: float, max_value: float) -> Tensor:
    """Return the quantiles of `rand_v_diffusion`.

    Args:
        u: Numbers in (0, 1).
        sigma_data: Standard deviation of the data.
        min_value: The lowest level.
        max_value: The highest level.
    """
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
    """Draw levels with ln sigma normal around loc, of width scale_1 below it and scale_2 above.

    The draws are never stratified.

    Args:
        shape: The shape of the result.
        loc: Mode of ln sigma.
        scale_1: Width below the mode.
        scale_2: Width above the mode.
        device: The device of the result.
        dtype: Its dtype.
    """
    n = torch.randn(shape, device=device, dtype=dtype).abs()
    u = torch.rand(shape, device=device, dtype=dtype)
    return _split(torch.where(u < scale_1 / (scale_1 + scale_2), -n, n), loc, scale_1, scale_2)


def split_log_normal(u: Tensor, loc: float, scale_1: float, scale_2: float) -> Tensor:
    """Return the quantiles of `rand_split_log_normal`.

    Args:
        u: Numbers in (0, 1).
        loc: Mode of ln sigma.
        scale_1: Width below the mode.
        scale_2: Width above the mode.
    """
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
    """Draw the levels of an interpolated cosine schedule for images of image_d pixels.

    At large sigma the noise is that for images of noise_d_low pixels, at small sigma for
    noise_d_high. Stratified levels run from noisy to clean.

    Args:
        shape: The shape of the result.
        image_d: Side of the images, in pixels.
        noise_d_low: Side whose schedule is used at large sigma.
        noise_d_high: Side whose schedule is used at small sigma.
        sigma_data: Standard deviation of the data.
        min_value: The lowest level.
        max_value: The highest level.
        device: The device of the result.
        dtype: Its dtype.

    References:
        Hoogeboom et al. (2023), arXiv:2301.11093.
    """
    u = stratified_with_settings(shape, dtype, device)
    return _cosine_from_noisy(
        u, image_d, noise_d_low, noise_d_high, sigma_data, min_value, max_value
    )


def cosine_interpolated(u: Tensor, *parameters: float) -> Tensor:
    """Return the quantiles of `rand_cosine_interpolated`.

    Args:
        u: Numbers in (0, 1).
        *parameters: image_d, noise_d_low, noise_d_high, sigma_data, min_value and max_value.
    """
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
    """Return the levels at shares u of the way from noisy to clean."""
    log_snr = [-2 * math.log(value / sigma_data) for value in (min_value, max_value)]
    clean, noisy = log_snr

    def shifted_cosine(noise_d: float) -> Tensor:
        shift = 2 * math.log(noise_d / image_d)
        start, end = (math.atan(math.exp(-(logsnr - shift) / 2)) for logsnr in (noisy, clean))
        return -2 * (start + u * (end - start)).tan().log() + shift

    logsnr = torch.lerp(shifted_cosine(noise_d_low), shifted_cosine(noise_d_high), u)
    return sigma_data * (-logsnr / 2).exp()
