"""Latent diffusion and Stable Diffusion in the manner of CompVis: any object with alphas_cumprod [T] and apply_model(x, t, cond)."""
from __future__ import annotations

from typing import Any

from torch import Tensor

from .discrete import DiscreteEpsDDPMDenoiser, DiscreteVDDPMDenoiser, table_of


class CompVisDenoiser(DiscreteEpsDDPMDenoiser):
    """One that gives the noise. The table of levels lies where alphas_cumprod does; `device` is taken for old callers, unused."""

    def __init__(self, model: Any, quantize: bool = False, device: Any = 'cpu') -> None:
        super().__init__(model, table_of(model, 'model'), quantize)

    def get_eps(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.inner_model.apply_model(*args, **kwargs)


class CompVisVDenoiser(DiscreteVDDPMDenoiser):
    """One that gives v, like Stable Diffusion 2. The table and `device` are as in CompVisDenoiser."""

    def __init__(self, model: Any, quantize: bool = False, device: Any = 'cpu') -> None:
        super().__init__(model, table_of(model, 'model'), quantize)

    def get_v(self, x: Tensor, t: Tensor, cond: Any = None, **kwargs: Any) -> Tensor:
        return self.inner_model.apply_model(x, t, cond, **kwargs)
