"""From noise to samples: `sample`, and the functions that commands, demo grids and metrics use."""

from __future__ import annotations

from ..schedules import BETWEEN
from .arguments import as_condition, batch_shape, device_of, make_seeds, refuse_unwrapped
from .drawing import (
    apply_guidance,
    generate,
    list_calls,
    request_batch,
    resume_calls,
    sample,
    sample_batch,
)
from .planning import Plan, choose_plan, explain_plan, plan, round_levels, stops_at
from .settings import SamplingConfig, choose_sampling, split_title

__all__ = [
    'BETWEEN',
    'Plan',
    'SamplingConfig',
    'apply_guidance',
    'as_condition',
    'batch_shape',
    'choose_plan',
    'choose_sampling',
    'device_of',
    'explain_plan',
    'generate',
    'list_calls',
    'make_seeds',
    'plan',
    'refuse_unwrapped',
    'request_batch',
    'resume_calls',
    'round_levels',
    'sample',
    'sample_batch',
    'split_title',
    'stops_at',
]
