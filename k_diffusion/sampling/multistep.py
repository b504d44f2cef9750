"""Linear multistep methods in sigma: past derivatives, extrapolated."""
from __future__ import annotations

from collections import deque

import torch
from torch import Tensor

from ..core.protocols import DenoiseFn
from .catalogue import Run, sampler
from .coefficients import adams_weights, to_d
from .loop import Callback, ExtraArgs, Sigmas, steps


@sampler(order=4)
def sample_lms(model: DenoiseFn, x: Tensor, sigmas: Sigmas, extra_args: ExtraArgs = None, callback: Callback = None,
               disable: bool | None = None, order: int = 4) -> Run[Tensor]:
    """Variable-step Adams-Bashforth in sigma: the last `order` derivatives, exact weights. 1 NFE.

    The order rises 1, 2, .. over the first steps, and the error of the very first limits what is seen: about 3.4 at order 4.
    """
    if order < 1:
        raise ValueError(f'order={order} uses no derivative; give an order of at least 1')
    history: deque[tuple[float, Tensor]] = deque(maxlen=order)
    for step in steps(model, x, sigmas, extra_args, callback, disable):
        history.appendleft((step.sigma, to_d(x, step.sigma, step.denoise(x))))
        weights = adams_weights([sigma for sigma, _ in history], step.sigma, step.sigma_next)
        for weight, (_, d) in zip(weights, history):
            x = torch.add(x, d, alpha=weight)
        x = yield x
    return x
