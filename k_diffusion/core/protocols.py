"""The contracts the rooms share."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor


class DenoiseFn(Protocol):
    """A denoiser: (x [B, ...], sigma [B], **cond) -> the estimate of the clean data, shaped like
    x.
    """

    def __call__(self, x: Tensor, sigma: Tensor, **cond: Any) -> Tensor: ...


class FlowMapFn(DenoiseFn, Protocol):
    """A flow map: (x [B, ...], sigma [B], sigma_next [B], **cond) -> where the probability flow
    leads x from sigma to sigma_next.

    Without sigma_next it leads to 0, which is a sample of the clean data: as a denoiser it is a
    consistency model. Its attribute `flow_map` is True.
    """

    flow_map: bool

    def __call__(
        self, x: Tensor, sigma: Tensor, sigma_next: Tensor | None = None, **cond: Any
    ) -> Tensor: ...


class GuidedFn(DenoiseFn, Protocol):
    """A guided denoiser that also shows the estimate without the guidance: `pair` gives (guided,
    unconditional).
    """

    def pair(self, x: Tensor, sigma: Tensor, **cond: Any) -> tuple[Tensor, Tensor]: ...


class NoiseSampler(Protocol):
    """Noise of unit variance, shaped like the sample it was made for, for the step from sigma to
    sigma_next.
    """

    def __call__(self, sigma: Any, sigma_next: Any) -> Tensor: ...


class Density(Protocol):
    """The distribution of training noise levels: drawn by a call, or read off at quantiles u in
    (0, 1).
    """

    def __call__(self, shape: Any, device: Any = 'cpu') -> Tensor: ...

    def quantile(self, u: Tensor) -> Tensor: ...
