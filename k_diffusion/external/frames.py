"""The coordinates in which another program keeps x: clean + sigma noise, or those of a flow."""

from __future__ import annotations

from typing import TypeVar

from torch import Tensor

from ..core.tensors import append_dims
from ..schedules import sigma_to_flow_time

Level = TypeVar('Level', float, Tensor)


class Frame:
    """The coordinates in which a program keeps x and names its noise levels.

    Flow models have x_t = (1 - t) clean + t noise at the level t. Then x = x_t / (1 - t) and sigma
    = t / (1 - t), at most sigma_max. All other models have x and sigma already.

    Args:
        flow: True for a flow model.
        sigma_max: The level in place of time 1 of a flow, as in FlowDenoiser.
    """

    def __init__(self, flow: bool, sigma_max: float = 1e4) -> None:
        self.flow, self.sigma_max = flow, sigma_max

    def to_sigma(self, level: float) -> float:
        """Convert a level of the program to sigma.

        Args:
            level: The level.
        """
        if not self.flow:
            return level
        # in float32 the time of sigma_max is off by some 1e-3 of its distance to 1
        end = (1 - level) * self.sigma_max < 1.001
        return self.sigma_max if end else level / (1 - level)

    def to_level(self, sigma: Tensor) -> Tensor:
        """Convert sigmas to levels of the program.

        Args:
            sigma: The noise levels.
        """
        return sigma_to_flow_time(sigma) if self.flow else sigma

    def factor(self, sigma: Level) -> Level | float:
        """Return the factor that turns x at sigma into the x of the program.

        Args:
            sigma: The noise level, or levels.
        """
        return 1 / (1 + sigma) if self.flow else 1.0

    def from_x(self, x: Tensor, sigma: Level) -> Tensor:
        """Convert x at sigma to the x of the program.

        Args:
            x: The noisy batch, [B, ...].
            sigma: The noise level, a number or [B].
        """
        if not self.flow:
            return x
        return x / (1 + (append_dims(sigma, x.ndim) if isinstance(sigma, Tensor) else sigma))

    def to_x(self, x: Tensor, sigma: float) -> Tensor:
        """Convert the x of the program at sigma; at sigma_max it is treated as noise only.

        Args:
            x: The batch of the program, [B, ...].
            sigma: The noise level.
        """
        return x * (sigma if sigma == self.sigma_max else 1 + sigma) if self.flow else x
