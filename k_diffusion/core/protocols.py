"""The interfaces that the packages share, as protocols."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor


class DenoiseFn(Protocol):
    """A denoiser D(x, sigma, **cond), which estimates the clean data."""

    def __call__(self, x: Tensor, sigma: Tensor, **cond: Any) -> Tensor:
        """Return the estimate of the clean data.

        Args:
            x: Noisy data, [B, ...].
            sigma: The noise levels, [B].
            **cond: The conditions.

        Returns:
            The estimate, in the shape of x.
        """
        ...


class FlowMapFn(DenoiseFn, Protocol):
    """A flow map M(x, sigma, sigma_next, **cond), which solves the probability flow in one call.

    Without sigma_next it goes to level 0, which gives a sample of the clean data: used as a
    denoiser it is a consistency model. Its attribute `flow_map` is True.
    """

    flow_map: bool

    def __call__(
        self, x: Tensor, sigma: Tensor, sigma_next: Tensor | None = None, **cond: Any
    ) -> Tensor:
        """Return the states at sigma_next.

        Args:
            x: States at sigma, [B, ...].
            sigma: The noise levels, [B].
            sigma_next: The levels of the result, [B].
            **cond: The conditions.

        Returns:
            The states at sigma_next, in the shape of x.
        """
        ...


class GuidedFn(DenoiseFn, Protocol):
    """A guided denoiser that also returns the estimate without guidance."""

    def pair(self, x: Tensor, sigma: Tensor, **cond: Any) -> tuple[Tensor, Tensor]:
        """Return the guided and the unconditional estimate, for arguments as of a denoiser.

        Args:
            x: Noisy data, [B, ...].
            sigma: The noise levels, [B].
            **cond: The conditions.
        """
        ...


class NoiseSampler(Protocol):
    """A source of noise of unit variance, in the shape of the sample that it was created for."""

    def __call__(self, sigma: Any, sigma_next: Any) -> Tensor:
        """Return the noise for the step from sigma to sigma_next.

        Args:
            sigma: The noise level at the start of the step.
            sigma_next: The noise level at the end of the step.
        """
        ...


class Density(Protocol):
    """The distribution of training noise levels: a call draws levels."""

    def __call__(self, shape: Any, device: Any = 'cpu') -> Tensor:
        """Draw noise levels.

        Args:
            shape: The shape of the levels.
            device: Their device.
        """
        ...

    def quantile(self, u: Tensor) -> Tensor:
        """Return the levels at quantiles.

        Args:
            u: The quantiles, in (0, 1).
        """
        ...
