"""Step size control for adaptive solvers."""

from __future__ import annotations

import math

from ..core.arguments import check_number


def check_tolerances(atol: float, rtol: float) -> None:
    """Refuses tolerances that no step could meet."""
    for name, tolerance in (('atol', atol), ('rtol', rtol)):
        if isinstance(tolerance, str) or not 0 <= tolerance < math.inf:
            raise ValueError(
                f'{name} is {tolerance}; tolerances must be at least 0 and finite, one of them '
                'above 0 (1e-4 is usual)'
            )
    if not atol + rtol > 0:
        raise ValueError(
            'atol and rtol are 0, which no step meets; tolerances must be at least 0, one of them '
            'above it (1e-4 is usual)'
        )


class PIDStepSizeController:
    """Proposes the next step h from the last three errors, by a PID controller on log h, with a
    smooth limit on its change.

    An error of 1 is just at the tolerance. factor = prod (1 / error_k) ** b_k; a step is accepted
    where the limited factor is at least accept_safety, and h takes the factor either way (Soderlind
    2003, doi:10.1145/641876.641877).
    """

    def __init__(
        self,
        h: float,
        pcoeff: float,
        icoeff: float,
        dcoeff: float,
        order: float = 1,
        accept_safety: float = 0.81,
        eps: float = 1e-8,
    ) -> None:
        if not 0 < abs(h) < math.inf:
            raise ValueError(
                f'h_init, the first step, is {h}; give a finite length in log sigma, other than 0 '
                '(0.05 is usual)'
            )
        for name, value in {
            'pcoeff': pcoeff,
            'icoeff': icoeff,
            'dcoeff': dcoeff,
            'accept_safety': accept_safety,
        }.items():
            check_number(name, value)
        if not order > 0:
            raise ValueError(f'order must be > 0, the order of the solver; got {order}')
        self.h = h
        self.b1 = (pcoeff + icoeff + dcoeff) / order
        self.b2 = -(pcoeff + 2 * dcoeff) / order
        self.b3 = dcoeff / order
        self.accept_safety = accept_safety
        self.eps = eps
        self.errs: list[float] = []

    def limiter(self, x: float) -> float:
        """1 + atan(x - 1): x near 1, and never below 0.2 or above 2.6."""
        return 1 + math.atan(x - 1)

    def propose_step(self, error: float) -> bool:
        """Whether the step with this error is accepted; changes h for the next one."""
        inverse = 1 / (float(error) + self.eps)
        self.errs = [inverse, *self.errs[1:]] if self.errs else [inverse] * 3
        factor = self.limiter(
            self.errs[0] ** self.b1 * self.errs[1] ** self.b2 * self.errs[2] ** self.b3
        )
        accept = factor >= self.accept_safety
        if accept:
            self.errs = [inverse, inverse, self.errs[1]]
        self.h *= factor
        return accept
