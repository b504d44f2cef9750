"""The list of schedules, with all that a menu or a table shows."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from inspect import Parameter

from torch import Tensor

from .discrete import DISCRETE_SCHEDULES
from .parts import SCHEDULES

#: The publication of each schedule.
_REFERENCES = {
    'karras': 'Karras et al. 2022, arXiv:2206.00364, eq. 5',
    'vp': 'Song et al. 2021, arXiv:2011.13456',
    'ays': 'Sabour et al. 2024, arXiv:2404.14507',
    'kl_optimal': 'Sabour et al. 2024, arXiv:2404.14507, section 3.1',
    'laplace': 'Hang et al. 2024, arXiv:2407.03297',
    'flow': 'Esser et al. 2024, arXiv:2403.03206, section 5.3.2',
    'ddim_uniform': 'Song et al. 2021, arXiv:2010.02502',
    'beta': 'Lee et al. 2024, arXiv:2407.12173',
    'beta57': 'Lee et al. 2024, arXiv:2407.12173',
    'ays_11': 'Sabour et al. 2024, arXiv:2404.14507',
    'ays_32': 'Sabour et al. 2024, arXiv:2404.14507',
    'optimal_steps': 'Pei et al. 2025, arXiv:2503.21774',
    'gits': 'Chen et al. 2024, arXiv:2405.11326',
}
_COMMON = ('n', 'sigma_min', 'sigma_max', 'table', 'device')


@dataclass(frozen=True)
class Schedule:
    """The entry of a schedule: its function and its properties.

    Attributes:
        name: The <name> of get_sigmas_<name>.
        function: The function.
        takes: What the levels are made from, besides their number: 'range' (sigma_min, sigma_max),
            'table' (the levels at which the denoiser was trained) or 'nothing' (levels of its own).
        reference: Its publication, or empty.
    """

    name: str
    function: Callable[..., Tensor]
    takes: str
    reference: str = ''

    @property
    def summary(self) -> str:
        """Return the first line of its docstring."""
        return (self.function.__doc__ or '').strip().partition('\n')[0]

    @property
    def options(self) -> dict[str, Parameter]:
        """Return its own options by name, with types and defaults."""
        return {
            name: p
            for name, p in inspect.signature(self.function).parameters.items()
            if name not in _COMMON
        }


class BetweenLevels(Mapping[str, Callable[..., Tensor]]):
    """The schedules of SCHEDULES that go from one noise level to another, by name.

    It follows SCHEDULES, so that it also has what a program registers later.
    """

    def __getitem__(self, name: str) -> Callable[..., Tensor]:
        function = SCHEDULES[name]
        if not takes_range(function):
            raise KeyError(name)
        return function

    def __iter__(self) -> Iterator[str]:
        return (name for name, function in SCHEDULES.items() if takes_range(function))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, name: object) -> bool:
        return name in SCHEDULES and takes_range(SCHEDULES[str(name)])


def takes_range(schedule: Callable[..., Tensor]) -> bool:
    """Return True for a schedule between sigma_min and sigma_max."""
    return 'sigma_max' in inspect.signature(schedule).parameters


#: Schedules between two noise levels by name (that of `vp` has levels of its own).
BETWEEN = BetweenLevels()


def catalogue() -> tuple[Schedule, ...]:
    """Return the entries of all schedules, those that take a table of levels last."""
    entries = []
    for name, function in SCHEDULES.items():
        takes = 'range' if takes_range(function) else 'nothing'
        entries.append(
            Schedule(
                name,
                function,
                takes,
                '' if name in ('beta', 'beta57') else _REFERENCES.get(name, ''),
            )
        )
    entries += [
        Schedule(name, function, 'table', _REFERENCES.get(name, ''))
        for name, function in DISCRETE_SCHEDULES.items()
    ]
    return tuple(entries)
