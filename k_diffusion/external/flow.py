"""Rectified flow: Stable Diffusion 3, Flux and similar models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..denoisers.base import PreconditionedDenoiser
from ..denoisers.scalings import Scalings, flow
from ..schedules import flow_time_to_sigma, get_sigmas_flow, sigma_to_flow_time
from .unwrapping import check_network

#: (c_skip, c_out, c_in) by prediction at x_t = x / (1 + sigma), t = sigma / (1 + sigma).
PREDICTIONS: Mapping[str, Callable[[Tensor], Scalings]] = {
    'flow': lambda sigma: flow(sigma, 1.0),
    'eps': lambda sigma: (torch.ones_like(sigma), -sigma, 1 / (1 + sigma)),
    'x0': lambda sigma: (torch.zeros_like(sigma), torch.ones_like(sigma), 1 / (1 + sigma)),
    'v': lambda sigma: ((1 + sigma) ** -2, -sigma / (1 + sigma), 1 / (1 + sigma)),
}


class FlowDenoiser(PreconditionedDenoiser):
    """D = (x - sigma F(x / (1 + sigma), time_scale t)) / (1 + sigma) with t = sigma / (1 + sigma).

    F predicts noise - clean, from x_t = (1 - t) clean + t noise.

    Args:
        inner_model: F, called as inner_model(x_t, time_scale t).
        shift: The shift of the family's schedule; a larger one puts more steps at high noise. It is
            used by `get_sigmas` only: D(x, sigma) is the same for any shift. A function of the
            number of tokens, such as K.schedules.flux_shift, if it depends on that.
        time_scale: 1000 for networks with times up to 1000 (Stable Diffusion 3).
        sigma_max: The level in place of infinity, where t is 1 (samplers keep x in float64 there).
        prediction: The output of F: 'flow' (noise - clean), 'eps' (the noise), 'x0' (clean) or 'v'
            ((1 - t) noise - t clean).

    Raises:
        ValueError: If a number is not positive, or the prediction is unknown.

    References:
        Liu et al. (2022), arXiv:2209.03003.
        Esser et al. (2024), arXiv:2403.03206, eq. 23 (shift).
    """

    def __init__(
        self,
        inner_model: Any,
        shift: float | Callable[[int], float] = 1.0,
        time_scale: float = 1.0,
        sigma_max: float = 1e4,
        prediction: str = 'flow',
    ) -> None:
        check_network('inner_model', inner_model)
        super().__init__(inner_model)
        for name, value in ('shift', shift), ('time_scale', time_scale), ('sigma_max', sigma_max):
            if not callable(value) and not value > 0:
                raise ValueError(f'{name} must be > 0; got {value}')
        if prediction not in PREDICTIONS:
            raise ValueError(
                f'prediction must be one of {", ".join(PREDICTIONS)}; got {prediction!r}'
            )
        self.shift, self.time_scale, self.sigma_max = shift, time_scale, sigma_max
        self.prediction = prediction

    def scalings(self, sigma: Tensor) -> Scalings:
        """Return (c_skip, c_out, c_in), each shaped like sigma.

        Args:
            sigma: Noise levels.
        """
        return PREDICTIONS[self.prediction](sigma)

    def sigma_to_t(self, sigma: Tensor) -> Tensor:
        """Return the time of the flow in [0, 1), in the shape of sigma.

        Args:
            sigma: Noise levels.
        """
        return sigma_to_flow_time(sigma)

    def t_to_sigma(self, t: Tensor) -> Tensor:
        """Return t / (1 - t), at most sigma_max, in the shape of t and at least float32.

        Args:
            t: Times in [0, 1].
        """
        t = t.to(torch.promote_types(t.dtype, torch.float32))
        return flow_time_to_sigma(t).clamp(max=self.sigma_max)

    def get_sigmas(
        self, n: int, shift: float | None = None, device: Any = 'cpu', tokens: int | None = None
    ) -> Tensor:
        """Return n steps evenly spaced in the time before the shift, then 0: [n + 1].

        Args:
            n: Number of steps.
            shift: Replaces the shift of the denoiser.
            device: The device of the result.
            tokens: Number of tokens of the image, for a shift that depends on it.

        Returns:
            The levels of K.schedules.get_sigmas_flow.

        Raises:
            ValueError: If the shift needs tokens and there are none, or is a number and tokens are
                given.
        """
        own = self.shift if shift is None else shift
        if callable(own) != (tokens is not None):
            rule = (
                'be the number of tokens of the image, on which the shift of this denoiser depends'
            )
            if not callable(own):
                rule = f'be omitted where the shift is a number, {own:g}'
            raise ValueError(f'tokens must {rule}; got {tokens}')
        value = own(tokens) if callable(own) and tokens is not None else own
        return get_sigmas_flow(n, sigma_max=self.sigma_max, shift=value, device=device)

    def network(self, x: Tensor, sigma: Tensor, **cond: Any) -> Tensor:
        """Return the prediction of the network at the levels sigma.

        Args:
            x: x_t, [B, ...].
            sigma: The noise levels, [B].
            **cond: Conditions.
        """
        t = self.sigma_to_t(sigma) * self.time_scale
        return self.inner_model(x, t.to(torch.promote_types(x.dtype, torch.float32)), **cond)
