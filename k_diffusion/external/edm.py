"""The networks of EDM and EDM2, which are denoisers already, and networks in the preconditioning of diffusers' EDM schedulers."""
from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..denoisers.base import PreconditionedDenoiser
from ..denoisers.scalings import Scalings, karras, v
from ..schedules import append_zero, get_sigmas_karras
from .unwrapping import check_network


class EDMDenoiser(nn.Module):
    """A preconditioned network of EDM or EDM2 (EDMPrecond, VPPrecond, VEPrecond, iDDPMPrecond, Precond): D as it gives it.

    class_cond [B] takes the place of their one-hot class_labels; the class `label_dim` stands for none. Networks that know a
    list of noise levels alone (iDDPM) are asked at the nearest one.
    """

    def __init__(self, inner_model: Any) -> None:
        super().__init__()
        self.inner_model = inner_model
        self.label_dim = int(getattr(inner_model, 'label_dim', 0) or 0)

    @property
    def sigma_min(self) -> float:
        """The least noise level it was trained at, 0.002 where it knows no least (EDM's way of sampling)."""
        return max(float(getattr(self.inner_model, 'sigma_min', 0.)), 0.002)

    @property
    def sigma_max(self) -> float:
        """The largest, 80 where it knows none."""
        largest = float(getattr(self.inner_model, 'sigma_max', math.inf))
        return largest if math.isfinite(largest) else 80.

    def get_sigmas(self, n: int, device: Any = 'cpu') -> Tensor:
        """Karras et al.'s n levels between them, each brought to one the network knows, then 0: [n + 1]."""
        return append_zero(self.round_sigma(get_sigmas_karras(n, self.sigma_min, self.sigma_max, device=device)[:-1]))

    def round_sigma(self, sigma: Tensor) -> Tensor:
        """The nearest noise levels that the network knows."""
        theirs = getattr(self.inner_model, 'round_sigma', None)
        return sigma if theirs is None else torch.as_tensor(theirs(sigma)).to(sigma)

    def forward(self, x: Tensor, sigma: Tensor, class_cond: Tensor | None = None, **cond: Any) -> Tensor:
        sigma = torch.as_tensor(sigma, device=x.device).to(torch.float32).expand(len(x))
        if class_cond is not None:
            cond['class_labels'] = F.one_hot(class_cond.long(), self.label_dim + 1)[:, :-1].to(torch.float32)
        return self.inner_model(x.to(torch.float32), self.round_sigma(sigma), **cond).to(x.dtype)


class KarrasTimeDenoiser(PreconditionedDenoiser):
    """EDM's preconditioning round a bare network F(c_in x, ln(sigma) / 4), as diffusers' EDM schedulers have it.

    prediction: 'epsilon' (EDM's own sign of F) or 'v_prediction' (the other one).
    """

    def __init__(self, inner_model: Any, sigma_data: float = 0.5, prediction: str = 'epsilon', sigma_min: float = 0.002,
                 sigma_max: float = 80.) -> None:
        check_network('inner_model', inner_model)
        if prediction not in ('epsilon', 'v_prediction'):
            raise ValueError(f"prediction must be 'epsilon' or 'v_prediction'; got {prediction!r}")
        super().__init__(inner_model, sigma_data)
        self.prediction, self.sigma_min, self.sigma_max = prediction, sigma_min, sigma_max

    def scalings(self, sigma: Tensor) -> Scalings:
        return (v if self.prediction == 'v_prediction' else karras)(sigma, self.sigma_data)

    def get_sigmas(self, n: int, device: Any = 'cpu') -> Tensor:
        """Karras et al.'s n levels, then 0: [n + 1]."""
        return get_sigmas_karras(n, self.sigma_min, self.sigma_max, device=device)

    def network(self, x: Tensor, sigma: Tensor, **cond: Any) -> Tensor:
        return self.inner_model(x, (sigma.log() / 4).to(torch.promote_types(x.dtype, torch.float32)), **cond)
