"""The denoisers that networks of this package are trained as.

References:
    Karras et al. (2022), arXiv:2206.00364.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..core.spectral import dct, freq_weight_nd
from ..core.tensors import append_dims, mean_per_item
from .base import PreconditionedDenoiser
from .scalings import SCALINGS, Scalings, karras
from .weightings import WEIGHTINGS, snr


class Denoiser(PreconditionedDenoiser):
    """D = c_skip x + c_out F(c_in x, sigma), trained on weight(sigma) |F - target|^2.

    The loss of D at a given weighting is the same for all preconditionings:
    |D - clean|^2 weight / c_out^2 with the c_out of Karras et al.

    With a contrast c the best F is (E[target | x] - c E[target]) / (1 - c). In evaluation mode the
    loss is without it, so that the loss of an item does not depend on other items.

    Args:
        inner_model: The network F.
        sigma_data: The standard deviation of the data.
        weighting: One of WEIGHTINGS, or a function of sigma [B].
        scales: Other than 1 weighs the squared error over its spatial frequencies, coarse ones
            more, over that many octaves; 0 for all octaves.
        preconditioning: One of SCALINGS, which determines what F predicts.
        contrast: Subtracts this many times the squared distance to the target of another item of
            the batch at the noise level of this item; in [0, 1), 0.05 is usual. Items 2k and 2k + 1
            are each other's; the last of an odd number has the first. A single item has none.

    Raises:
        ValueError: If scales or contrast is out of range.

    References:
        Karras et al. (2022), arXiv:2206.00364, section 5; Stoica et al. (2025), arXiv:2506.05350
        (contrast).
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
                f'scales must be 1 (all frequencies alike), more, or 0 (all octaves); got {scales}'
            )
        self.weighting = (
            weighting
            if callable(weighting)
            else partial(WEIGHTINGS[weighting], sigma_data=sigma_data)
        )
        if not 0 <= contrast < 1:
            raise ValueError(
                f'contrast must be at least 0 and below 1; got {contrast}: 0.05 is usual'
            )
        self.scales, self.contrast = scales, contrast

    def get_scalings(self, sigma: Tensor) -> Scalings:
        """Return (c_skip, c_out, c_in), each in the shape of sigma.

        Args:
            sigma: The noise levels.
        """
        return self._scalings(sigma, self.sigma_data)

    def scalings(self, sigma: Tensor) -> Scalings:
        """Return (c_skip, c_out, c_in), each [B].

        Args:
            sigma: The noise levels, [B].
        """
        return self.get_scalings(sigma)

    def loss(self, input: Tensor, noise: Tensor, sigma: Tensor, **cond: Any) -> Tensor:
        """Return the weighted squared error of F per item, [B], less the contrast.

        Args:
            input: Clean data, [B, ...].
            noise: Standard normal noise of the same shape.
            sigma: The noise levels, [B].
            **cond: Conditions.
        """
        x, sigma, target = self.example(input, noise, sigma)
        prediction = self.predict(x, sigma, **cond)
        loss = self._mean_square(prediction - target)
        n = len(input)
        if self.contrast and self.training and n > 1:
            partner = (torch.arange(n, device=input.device) ^ 1) % n
            other = self.example(input[partner], noise[partner], sigma)[2]
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
        """Return the weight [B] on the squared error of F.

        It is `weighting`, converted from the error of the F of Karras et al.

        Args:
            sigma: The noise levels, [B].
        """
        if self._scalings is karras:
            return self.weighting(sigma)
        return (
            self.weighting(sigma)
            * (self.scalings(sigma)[1] / karras(sigma, self.sigma_data)[1]) ** 2
        )


class DenoiserWithVariance(Denoiser):
    """A denoiser whose network also predicts its error, trained on the Gaussian likelihood.

    Called with return_variance=True the network returns (F, log variance [B]). The loss is
    (|F - target|^2 / variance + log variance) / 2. It weighs the noise levels by itself, so that it
    takes neither a weighting nor scales.

    Args:
        inner_model: The network F.
        sigma_data: The standard deviation of the data.
        weighting: Must be the default.
        scales: Must be the default.
        preconditioning: One of SCALINGS.

    Raises:
        ValueError: If there is a weighting or scales.

    References:
        Nix & Weigend (1994), "Estimating the mean and variance of the target probability
        distribution".
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
        """Return the negative log-likelihood of the target per item, [B], up to a constant.

        Args:
            input: Clean data, [B, ...].
            noise: Standard normal noise of the same shape.
            sigma: The noise levels, [B].
            **cond: Conditions.
        """
        x, sigma, target = self.example(input, noise, sigma)
        prediction, logvar = self.predict(x, sigma, return_variance=True, **cond)
        logvar = append_dims(logvar, x.ndim)
        return mean_per_item(((prediction - target) ** 2 * (-logvar).exp() + logvar) / 2)


class SimpleLossDenoiser(Denoiser):
    """A denoiser trained on the squared error of the noise that it implies, (x - D) / sigma.

    It is the weighting 'snr' under its old name.

    Args:
        inner_model: The network F.
        sigma_data: The standard deviation of the data.
        weighting: Must be the default.
        scales: Must be the default.
        preconditioning: One of SCALINGS.

    Raises:
        ValueError: If there is a weighting or scales.

    References:
        Ho et al. (2020), arXiv:2006.11239, equation 14.
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
    """Raise a ValueError for a weighting or scales of a denoiser whose loss has neither."""
    if weighting != 'karras' or scales != 1:
        raise ValueError(
            f'weighting and scales must be left out for {name}, whose loss has neither; got '
            f'weighting={weighting!r} and scales={scales!r}: leave both out, or use Denoiser'
        )
