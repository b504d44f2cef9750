"""Latent diffusion and Stable Diffusion in the manner of CompVis: any object with alphas_cumprod
[T] and apply_model(x, t, cond).

The condition `cond` is what apply_model takes: a tensor, or a dict of lists, c_crossattn (text, and
the label of 'adm' models) and c_concat (beside x); a tensor with one entry serves all items.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..core.conditions import expand_single
from .discrete import DiscreteEpsDDPMDenoiser, DiscreteVDDPMDenoiser, table_of


class CompVisDenoiser(DiscreteEpsDDPMDenoiser):
    """One that gives the noise.

    The table of levels lies where alphas_cumprod does; `device` is taken for old callers, unused.
    """

    def __init__(self, model: Any, quantize: bool = False, device: Any = 'cpu') -> None:
        super().__init__(model, table_of(model, 'model'), quantize)
        _check_answer(model, 'eps', 'CompVisVDenoiser')

    def get_eps(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self.inner_model.apply_model(
            x, *expand_single(args, len(x)), **expand_single(kwargs, len(x))
        )


class CompVisVDenoiser(DiscreteVDDPMDenoiser):
    """One that gives v, like Stable Diffusion 2.

    The table and `device` are as in CompVisDenoiser.
    """

    def __init__(self, model: Any, quantize: bool = False, device: Any = 'cpu') -> None:
        super().__init__(model, table_of(model, 'model'), quantize)
        _check_answer(model, 'v', 'CompVisDenoiser')

    def get_v(self, x: Tensor, t: Tensor, cond: Any = None, **kwargs: Any) -> Tensor:
        return self.inner_model.apply_model(
            x, t, expand_single(cond, len(x)), **expand_single(kwargs, len(x))
        )


def _check_answer(model: Any, answer: str, other: str) -> None:
    """Refuse a model that says it gives something else; many say nothing."""
    kind = getattr(model, 'parameterization', answer)
    if isinstance(kind, str) and kind != answer:
        advice = f'; wrap it in K.external.{other}' if kind in ('eps', 'v') else ''
        raise ValueError(f'model must give {answer}; its parameterization is {kind!r}{advice}')
