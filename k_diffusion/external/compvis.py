"""Latent diffusion and Stable Diffusion in CompVis' form.

A model is any object with alphas_cumprod [T] and apply_model(x, t, cond). The condition `cond` is
what apply_model takes: a tensor, or a dict of lists, c_crossattn (text, and the label of 'adm'
models) and c_concat (concatenated to x). A tensor with one entry serves all items.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..core.conditions import expand_single
from .discrete import DiscreteEpsDDPMDenoiser, DiscreteVDDPMDenoiser, table_of


class CompVisDenoiser(DiscreteEpsDDPMDenoiser):
    """A CompVis model that predicts the noise.

    The table of levels is on the device of alphas_cumprod.

    Args:
        model: The model.
        quantize: Round levels to the nearest of the T levels.
        device: Accepted for old callers, and ignored.
    """

    def __init__(self, model: Any, quantize: bool = False, device: Any = 'cpu') -> None:
        super().__init__(model, table_of(model, 'model'), quantize)
        _check_answer(model, 'eps', 'CompVisVDenoiser')

    def get_eps(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the noise that the model predicts.

        Args:
            x: The scaled batch, [B, ...].
            *args: The timesteps and further arguments of apply_model.
            **kwargs: Conditions.
        """
        return self.inner_model.apply_model(
            x, *expand_single(args, len(x)), **expand_single(kwargs, len(x))
        )


class CompVisVDenoiser(DiscreteVDDPMDenoiser):
    """A CompVis model that predicts v, such as Stable Diffusion 2.

    Args:
        model: The model.
        quantize: Round levels to the nearest of the T levels.
        device: Accepted for old callers, and ignored.
    """

    def __init__(self, model: Any, quantize: bool = False, device: Any = 'cpu') -> None:
        super().__init__(model, table_of(model, 'model'), quantize)
        _check_answer(model, 'v', 'CompVisDenoiser')

    def get_v(self, x: Tensor, t: Tensor, cond: Any = None, **kwargs: Any) -> Tensor:
        """Return the v that the model predicts.

        Args:
            x: The scaled batch, [B, ...].
            t: The timesteps, [B].
            cond: The condition of apply_model.
            **kwargs: Further arguments of apply_model.
        """
        return self.inner_model.apply_model(
            x, t, expand_single(cond, len(x)), **expand_single(kwargs, len(x))
        )


def _check_answer(model: Any, answer: str, other: str) -> None:
    """Raise a ValueError if the model states another prediction; many state none."""
    kind = getattr(model, 'parameterization', answer)
    if isinstance(kind, str) and kind != answer:
        advice = f'; wrap it in K.external.{other}' if kind in ('eps', 'v') else ''
        raise ValueError(f'model must predict {answer}; its parameterization is {kind!r}{advice}')
