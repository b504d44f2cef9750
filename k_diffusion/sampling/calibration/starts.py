"""Noise levels at which fits start."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .candidates import Students


def schedules(students: Students) -> list[list[float]]:
    """Return levels to start from: those of Karras, exponential ones, and knots where D bends.

    Args:
        students: The solvers to fit.

    Returns:
        Lists of n + 1 levels, sigma_max first.
    """
    high, std, n = students.teacher.sigma_max, students.teacher.std, students.n
    ramp = torch.linspace(0, 1, n + 1, dtype=torch.float64)
    lists = []
    for low in (min(share * std, high / 4) for share in (0.04, 0.1)):
        for rho in (5.0, 7.0, 10.0, 50.0):
            lists.append((high ** (1 / rho) + ramp * (low ** (1 / rho) - high ** (1 / rho))) ** rho)
    lists.append(_where_it_bends(students, ramp))
    return [levels.tolist() for levels in lists]


def _where_it_bends(students: Students, ramp: Tensor) -> Tensor:
    """Return levels at equal shares of (P |D''|)^(1/3), down to 0.02 of the spread.

    D'' is the second derivative in log sigma along the paths; P = s / sqrt(s^2 + sigma^2).
    """
    teacher = students.teacher
    t, d = teacher.log_snr, teacher.denoised.flatten(2)
    slopes = (d[1:] - d[:-1]) / (t[1:] - t[:-1]).to(d)[:, None, None]
    bends = (slopes[1:] - slopes[:-1]) / ((t[2:] - t[:-2]) / 2).to(d)[:, None, None]
    size = bends.square().mean((1, 2), dtype=torch.float64).sqrt().cpu()
    middle = t[1:-1]
    density = (size * teacher.std / (teacher.std**2 + (-2 * middle).exp()).sqrt()) ** (1 / 3) + 1e-3
    cells = (density[1:] + density[:-1]) / 2 * (middle[1:] - middle[:-1])
    integral = torch.cat(
        [
            torch.zeros(1, dtype=torch.float64),
            (cells * ((-middle[1:]).exp() > 0.02 * teacher.std)).cumsum(0),
        ]
    )
    integral = integral / integral[-1]
    cell = (torch.searchsorted(integral, ramp[1:-1]) - 1).clamp(0, len(cells) - 1)
    inside = (ramp[1:-1] - integral[cell]) / (integral[cell + 1] - integral[cell]).clamp_min(1e-12)
    knots = middle[cell] + inside * (middle[cell + 1] - middle[cell])
    low = torch.tensor(
        [-math.log(min(0.02 * teacher.std, teacher.sigma_max / 4))], dtype=torch.float64
    )
    return (
        torch.cat([torch.tensor([-math.log(teacher.sigma_max)], dtype=torch.float64), knots, low])
        .neg()
        .exp()
    )
