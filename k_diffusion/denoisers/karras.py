"""The denoisers that networks of this house are trained as, preconditioned after Karras et al.

(2022), arXiv 2206.00364, or otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from ..core.spectral import dct, freq_weight_nd
from ..core.tensors import append_dims, mean_per_item
from .base import PreconditionedDenoiser
from .scalings import SCALINGS, Scalings, karras
from .weightings import WEIGHTINGS, snr


class Denoiser(PreconditionedDenoiser):
    """D = c_skip x + c_out F(c_in x, sigma), trained on weight(sigma) |F - target|^2.

    `weighting`: one of WEIGHTINGS or a function of sigma [B]. `scales` other than 1 weighs the
    squared error over its spatial frequencies, coarse ones more, over that many octaves (0: over
    all of them). `preconditioning`, one of SCALINGS, says what F predicts. The loss of D at a given
    weighting is the same for all of them:
    |D - clean|^2 weight / c_out^2 with the c_out of Karras et al.

    `contrast` subtracts so many times the squared distance to the target of the next item of the
    batch at this item's noise level: Stoica et al. (2025), arXiv 2506.05350. The best F is then
    (E[target | x] - contrast E[target]) / (1 - contrast). In evaluation mode the loss is without
    it, and that of an item its own.
    """

    def __init__(
        self,
        inner_model: Callable[..., Any],
        sigma_data: float = 1.0,
        weighting: str | Callable[[Tensor], Tensor] = 'karras',
        scales: int = 1,
        preconditioning: str = 'karras',
        contrast: float = 0.0,
    ) -> None:
        super().__init__(inner_model, sigma_data)
        self.preconditioning = preconditioning
        self._scalings = SCALINGS[preconditioning]
        if scales < 0:
            raise ValueError(
                f'scales is {scales}; it must be 1 (all frequencies alike), more, or 0 for all '
                'octaves'
            )
        self.weighting = (
            weighting
            if callable(weighting)
            else partial(WEIGHTINGS[weighting], sigma_data=sigma_data)
        )
        if not 0 <= contrast < 1:
            raise ValueError(
                f'contrast must be at least 0 and below 1; got {contrast} (0.05 is usual)'
            )
        self.scales, self.contrast = scales, contrast

    def get_scalings(self, sigma: Tensor) -> Scalings:
        """(c_skip, c_out, c_in), each shaped like sigma."""
        return self._scalings(sigma, self.sigma_data)

    def scalings(self, sigma: Tensor) -> Scalings:
        return self.get_scalings(sigma)

    def loss(self, input: Tensor, noise: Tensor, sigma: Tensor, **cond: Any) -> Tensor:
        """[B]: the weighted squared error of F at x = input + sigma noise, less the contrast."""
        x, sigma, target = self.example(input, noise, sigma)
        prediction = self.predict(x, sigma, **cond)
        loss = self._mean_square(prediction - target)
        if self.contrast and self.training:
            other = self.example(input.roll(1, 0), noise.roll(1, 0), sigma)[2]
            loss = loss - self.contrast * self._mean_square(prediction - other)
        return loss * self.weight(sigma)

    def _mean_square(self, error: Tensor) -> Tensor:
        """Return [B], the mean square of an error, over the frequencies that `scales` weighs."""
        if self.scales == 1:
            return mean_per_item(error**2)
        frequencies = freq_weight_nd(
            error.shape[2:], self.scales, dtype=error.dtype, device=error.device
        )
        return mean_per_item(dct(error) ** 2 * frequencies)

    def weight(self, sigma: Tensor) -> Tensor:
        """The weight [B] on the squared error of F: `weighting`, carried over from the error
        that it is meant for.
        """
        if self._scalings is karras:
            return self.weighting(sigma)
        return (
            self.weighting(sigma)
            * (self.scalings(sigma)[1] / karras(sigma, self.sigma_data)[1]) ** 2
        )


class DenoiserWithVariance(Denoiser):
    """A denoiser whose network also says how wrong it will be, trained on the Gaussian likelihood
    that makes of it.

    Called with return_variance=True the network gives (F, log variance [B]); loss = (|F - target|^2
    / variance + log variance) / 2, which weighs the noise levels by itself, so that it takes no
    weighting and no scales.
    """

    def __init__(
        self,
        inner_model: Callable[..., Any],
        sigma_data: float = 1.0,
        weighting: str | Callable[[Tensor], Tensor] = 'karras',
        scales: int = 1,
        preconditioning: str = 'karras',
    ) -> None:
        _refuse('DenoiserWithVariance', weighting, scales)
        super().__init__(inner_model, sigma_data, preconditioning=preconditioning)

    def loss(self, input: Tensor, noise: Tensor, sigma: Tensor, **cond: Any) -> Tensor:
        """[B]: the negative log-likelihood of the target, up to a constant."""
        x, sigma, target = self.example(input, noise, sigma)
        prediction, logvar = self.predict(x, sigma, return_variance=True, **cond)
        logvar = append_dims(logvar, x.ndim)
        return mean_per_item(((prediction - target) ** 2 * (-logvar).exp() + logvar) / 2)


class SimpleLossDenoiser(Denoiser):
    """A denoiser trained on the squared error of the noise it implies, (x - D) / sigma:
    weighting 'snr' under its old name.
    """

    def __init__(
        self,
        inner_model: Callable[..., Any],
        sigma_data: float = 1.0,
        weighting: str | Callable[[Tensor], Tensor] = 'karras',
        scales: int = 1,
        preconditioning: str = 'karras',
    ) -> None:
        _refuse('SimpleLossDenoiser', weighting, scales)
        super().__init__(
            inner_model,
            sigma_data,
            weighting=partial(snr, sigma_data=sigma_data),
            preconditioning=preconditioning,
        )


def _refuse(name: str, weighting: str | Callable[[Tensor], Tensor], scales: int) -> None:
    if weighting != 'karras' or scales != 1:
        raise ValueError(
            f'{name} got weighting={weighting!r} and scales={scales!r}, and its loss has neither; '
            'leave both out, or take Denoiser'
        )
