"""k-diffusion samplers: the samplers and schedules there are, as a table."""
from __future__ import annotations

from inspect import Parameter
from typing import Any

from ..sampling import Sampler, catalogue
from ..schedules.entries import Schedule


def describe_sampler(entry: Sampler) -> dict[str, Any]:
    """Return what a table shows of a sampler, as plain values."""
    return {'name': entry.name, 'family': entry.family, 'order': entry.order, 'calls': entry.nfe, 'noise': noise_of(entry),
            'needs_pair': entry.needs_pair, 'options': _options(entry.options), 'aliases': list(entry.aliases),
            'reference': entry.reference, 'summary': entry.summary}


def describe_schedule(entry: Schedule) -> dict[str, Any]:
    """Return what a table shows of a schedule, as plain values."""
    return {'name': entry.name, 'takes': entry.takes, 'options': _options(entry.options), 'reference': entry.reference,
            'summary': entry.summary}


def noise_of(entry: Sampler) -> str:
    """Return when a sampler draws noise: 'yes', 'with <option>', or nothing."""
    if entry.stochastic or entry.noise is None:
        return 'yes' if entry.stochastic else ''
    return 'with ' + next(name for name in ('s_churn', 'eta') if name in entry.options)


def _options(options: dict[str, Parameter]) -> dict[str, Any]:
    return {name: p.default if isinstance(p.default, (int, float, str, bool, type(None))) else str(p.default)
            for name, p in options.items() if name != 'noise_sampler'}


def sampler_table() -> str:
    """Return the table of docs/samplers.md."""
    rows = ['| name | family | order | calls | noise | | published |', '|---|---|---|---|---|---|---|']
    rows += [f'| `{entry.name}` | {entry.family} | {entry.order or "-"} | {entry.nfe} | {noise_of(entry)} | {entry.summary} '
             f'| {entry.reference or "ours"} |' for entry in catalogue()]
    return '\n'.join(rows)
