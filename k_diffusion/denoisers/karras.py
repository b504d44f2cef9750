"""The denoisers that networks of this house are trained as: the preconditioning of Karras et al. (2022), arXiv 2206.00364."""
from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from ..core.spectral import dct, freq_weight_nd
from ..core.tensors import append_dims, mean_per_item
from .base import PreconditionedDenoiser
from .scalings import Scalings, karras
from .weightings import WEIGHTINGS, snr


class Denoiser(PreconditionedDenoiser):
    """D = c_skip x + c_out F(c_in x, sigma), trained on weight(sigma) |F - target|^2.

    `weighting`: 'karras', 'soft-min-snr', 'snr' or a function of sigma [B]. `scales` other than 1 weighs the squared error
    over its spatial frequencies, coarse ones more, over that many octaves (0: over all of them).
    """

    def __init__(self, inner_model: Callable[..., Any], sigma_data: float = 1., weighting: str | Callable[[Tensor], Tensor] = 'karras',
                 scales: int = 1) -> None:
        super().__init__(inner_model, sigma_data)
        if scales < 0:
            raise ValueError(f'scales is {scales}; it must be 1 (all frequencies alike), more, or 0 for all octaves')
        self.weighting = weighting if callable(weighting) else partial(WEIGHTINGS[weighting], sigma_data=sigma_data)
        self.scales = scales

    def get_scalings(self, sigma: Tensor) -> Scalings:
        """(c_skip, c_out, c_in), each shaped like sigma."""
        return karras(sigma, self.sigma_data)

    def scalings(self, sigma: Tensor) -> Scalings:
        return self.get_scalings(sigma)

    def loss(self, input: Tensor, noise: Tensor, sigma: Tensor, **cond: Any) -> Tensor:
        """[B]: the weighted squared error of F at x = input + sigma noise."""
        x, sigma, target = self.example(input, noise, sigma)
        error = self.predict(x, sigma, **cond) - target
        if self.scales == 1:
            return mean_per_item(error**2) * self.weighting(sigma)
        frequencies = freq_weight_nd(error.shape[2:], self.scales, dtype=error.dtype, device=error.device)
        return mean_per_item(dct(error)**2 * frequencies) * self.weighting(sigma)


class DenoiserWithVariance(Denoiser):
    """A denoiser whose network also says how wrong it will be, trained on the Gaussian likelihood that makes of it.

    Called with return_variance=True the network gives (F, log variance [B]); loss = (|F - target|^2 / variance + log variance) / 2,
    which weighs the noise levels by itself, so that it takes no weighting and no scales.
    """

    def __init__(self, inner_model: Callable[..., Any], sigma_data: float = 1., weighting: str | Callable[[Tensor], Tensor] = 'karras',
                 scales: int = 1) -> None:
        _refuse('DenoiserWithVariance', weighting, scales)
        super().__init__(inner_model, sigma_data)

    def loss(self, input: Tensor, noise: Tensor, sigma: Tensor, **cond: Any) -> Tensor:
        """[B]: the negative log-likelihood of the target, up to a constant."""
        x, sigma, target = self.example(input, noise, sigma)
        prediction, logvar = self.predict(x, sigma, return_variance=True, **cond)
        logvar = append_dims(logvar, x.ndim)
        return mean_per_item(((prediction - target)**2 * (-logvar).exp() + logvar) / 2)


class SimpleLossDenoiser(Denoiser):
    """A denoiser trained on the squared error of the noise it implies, (x - D) / sigma: weighting 'snr' under its old name."""

    def __init__(self, inner_model: Callable[..., Any], sigma_data: float = 1., weighting: str | Callable[[Tensor], Tensor] = 'karras',
                 scales: int = 1) -> None:
        _refuse('SimpleLossDenoiser', weighting, scales)
        super().__init__(inner_model, sigma_data, weighting=partial(snr, sigma_data=sigma_data))


def _refuse(name: str, weighting: str | Callable[[Tensor], Tensor], scales: int) -> None:
    if weighting != 'karras' or scales != 1:
        raise ValueError(f"{name} got weighting={weighting!r} and scales={scales!r}, and its loss has neither; "
                         'leave both out, or take Denoiser')
