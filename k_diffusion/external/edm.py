"""The networks of EDM and EDM2, which are denoisers, and those of diffusers' EDM schedulers."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.conditions import cast_floating
from ..denoisers.base import PreconditionedDenoiser, at_least_float32
from ..denoisers.scalings import Scalings, karras, v
from ..schedules import append_zero, get_sigmas_karras
from .unwrapping import check_network, unwrap_network

#: The range of noise levels at which EDM and EDM2 are sampled, within that of the network.
_SAMPLED = (0.002, 80.0)


class EDMDenoiser(nn.Module):
    """A preconditioned network of EDM or EDM2 as a denoiser.

    The network is an EDMPrecond, VPPrecond, VEPrecond, iDDPMPrecond or Precond, and D is its
    output. class_cond [B] replaces their one-hot class_labels; the class `label_dim` stands for
    none. Networks with a list of noise levels only (iDDPM) are evaluated at the nearest one.
    Further attributes of the network (img_resolution, img_channels, sigma_data) are available here.

    Args:
        inner_model: The network.
    """

    def __init__(self, inner_model: Any) -> None:
        check_network('inner_model', inner_model)
        super().__init__()
        self.inner_model = inner_model
        self.label_dim = int(self._own('label_dim', 0) or 0)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            own = vars(self)
            inner = own.get('_modules', {}).get('inner_model', own.get('inner_model'))
            if name.startswith('_') or inner is None:
                raise
        return getattr(unwrap_network(inner), name)

    def _own(self, name: str, default: Any) -> Any:
        """Return an attribute of the network inside its wrappers."""
        return getattr(unwrap_network(self.inner_model), name, default)

    @property
    def sigma_min(self) -> float:
        """Return the lowest level of EDM's sampling, 0.002, or of the network if that is higher."""
        return max(float(self._own('sigma_min', 0.0)), _SAMPLED[0])

    @property
    def sigma_max(self) -> float:
        """Return the highest level of EDM's sampling, 80, or of the network if that is lower."""
        return min(float(self._own('sigma_max', math.inf)), _SAMPLED[1])

    def get_sigmas(self, n: int, device: Any = 'cpu') -> Tensor:
        """Return n Karras levels in this range, rounded to levels of the network, then 0: [n + 1].

        Args:
            n: Number of steps.
            device: The device of the result.
        """
        return append_zero(
            self.round_sigma(
                get_sigmas_karras(n, self.sigma_min, self.sigma_max, device=device)[:-1]
            )
        )

    def round_sigma(self, sigma: Tensor) -> Tensor:
        """Return the nearest noise levels that the network knows.

        Args:
            sigma: Noise levels.
        """
        theirs = self._own('round_sigma', None)
        return sigma if theirs is None else torch.as_tensor(theirs(sigma)).to(sigma)

    def forward(
        self, x: Tensor, sigma: Tensor, class_cond: Tensor | int | None = None, **cond: Any
    ) -> Any:
        """Return D, and logvar with it if return_logvar requests it.

        Args:
            x: The noisy batch, [B, ...].
            sigma: Its noise levels, [B].
            class_cond: Classes, [B], or one for all items.
            **cond: Further arguments of the network.
        """
        sigma = at_least_float32(x, sigma)[1].to(torch.float32)
        cond = cast_floating(cond, torch.float32)
        if class_cond is not None:
            cond['class_labels'] = self._one_hot(
                torch.as_tensor(class_cond, device=x.device), len(x)
            )
        answer = self.inner_model(x.to(torch.float32), self.round_sigma(sigma), **cond)
        return cast_floating(answer, x.dtype)  # a tuple with return_logvar

    def _one_hot(self, classes: Tensor, n: int) -> Tensor:
        if not self.label_dim:
            raise ValueError(
                f'class_cond must be omitted: {type(unwrap_network(self.inner_model)).__name__} '
                'has '
                'no classes'
            )
        if classes.is_floating_point() or (
            classes.is_cpu and ((classes < 0) | (classes > self.label_dim)).any()
        ):
            raise ValueError(
                f'class_cond must hold integers from 0 to {self.label_dim}, which stands for no '
                'class; '
                f'got {classes.tolist()}'
            )
        if classes.shape not in ((), (1,), (n,)):
            raise ValueError(
                f'class_cond must be one class, or one for each of the {n} items; got the shape '
                f'{list(classes.shape)}'
            )
        return F.one_hot(classes.expand(n).long(), self.label_dim + 1)[:, :-1].to(torch.float32)


class KarrasTimeDenoiser(PreconditionedDenoiser):
    """EDM's preconditioning of a network F(c_in x, ln(sigma) / 4), as in diffusers' EDM schedulers.

    Args:
        inner_model: F.
        sigma_data: Standard deviation of the data.
        prediction: 'epsilon' (EDM's own sign of F) or 'v_prediction' (the opposite one).
        sigma_min: The lowest noise level.
        sigma_max: The highest noise level.
    """

    def __init__(
        self,
        inner_model: Any,
        sigma_data: float = 0.5,
        prediction: str = 'epsilon',
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
    ) -> None:
        check_network('inner_model', inner_model)
        if prediction not in ('epsilon', 'v_prediction'):
            raise ValueError(f"prediction must be 'epsilon' or 'v_prediction'; got {prediction!r}")
        super().__init__(inner_model, sigma_data)
        self.prediction, self.sigma_min, self.sigma_max = prediction, sigma_min, sigma_max

    def scalings(self, sigma: Tensor) -> Scalings:
        """Return (c_skip, c_out, c_in), each shaped like sigma.

        Args:
            sigma: Noise levels.
        """
        return (v if self.prediction == 'v_prediction' else karras)(sigma, self.sigma_data)

    def get_sigmas(self, n: int, device: Any = 'cpu') -> Tensor:
        """Return n Karras levels, then 0: [n + 1].

        Args:
            n: Number of steps.
            device: The device of the result.
        """
        return get_sigmas_karras(n, self.sigma_min, self.sigma_max, device=device)

    def network(self, x: Tensor, sigma: Tensor, **cond: Any) -> Tensor:
        """Return the prediction of the network at the levels sigma.

        Args:
            x: The scaled batch, [B, ...].
            sigma: The noise levels, [B].
            **cond: Conditions.
        """
        return self.inner_model(
            x, (sigma.log() / 4).to(torch.promote_types(x.dtype, torch.float32)), **cond
        )
