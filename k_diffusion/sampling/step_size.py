"""Step size control for adaptive solvers."""

from __future__ import annotations

import math

from ..core.arguments import check_number


def check_tolerances(atol: float, rtol: float) -> None:
    """Raise a ValueError unless the tolerances are finite, >= 0, and one of them is > 0.

    Args:
        atol: Absolute tolerance.
        rtol: Relative tolerance.
    """
    for name, tolerance in (('atol', atol), ('rtol', rtol)):
        if isinstance(tolerance, str) or not 0 <= tolerance < math.inf:
            raise ValueError(
                f'{name} must be >= 0 and finite (1e-4 is the usual value); got {tolerance}'
            )
    if not atol + rtol > 0:
        raise ValueError(
            'one of atol and rtol must be > 0 (1e-4 is the usual value); got 0 for both'
        )


class PIDStepSizeController:
    """A PID controller on log h that proposes the next step h from the last three errors.

    An error of 1 is exactly at the tolerance. The factor of h is prod (1 / error_k) ** b_k with a
    smooth limit. A step is accepted if the limited factor is at least accept_safety; h is
    multiplied by the factor in either case.

    Args:
        h: The first step, not 0.
        pcoeff: Proportional coefficient.
        icoeff: Integral coefficient.
        dcoeff: Derivative coefficient.
        order: Order of the solver.
        accept_safety: Least factor of an accepted step.
        eps: Added to errors before division.

    References:
        Soderlind (2003), doi:10.1145/641876.641877.
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
                'h_init must be finite and not 0, a length in log sigma (0.05 is the usual '
                'value); '
                f'got {h}'
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
        """Return 1 + atan(x - 1), which is near x around 1 and between 0.2 and 2.6.

        Args:
            x: A factor.
        """
        return 1 + math.atan(x - 1)

    def propose_step(self, error: float) -> bool:
        """Set h for the next step; return True if the step with this error is accepted.

        Args:
            error: The error in units of the tolerance.
        """
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
