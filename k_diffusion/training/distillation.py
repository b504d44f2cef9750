"""The config section "distillation": how a flow map of few model calls is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass
class DistillationConfig:
    """The method, the teacher and the guidance that becomes a part of the model; method null is
    ordinary training.

    `model.flow_map` must be true with a method.
    """

    #: ect: consistency tuning. cmt: regression on the paths of the teacher, then ect. meanflow.
    method: Literal['ect', 'cmt', 'meanflow'] | None = None
    teacher: str | None = None  # a checkpoint: first weights, guidance, paths; null: from scratch
    teacher_digest: str | None = None  # of its weights; written by the run
    guidance: float = 1.0  # the scale that is distilled in; 1: none
    guidance_interval: tuple[float, float] | None = None  # the noise levels it acts at; null: all
    guidance_max: float | None = None  # above 1: the scale is an input, from 1 to this
    starts: float = 0.25  # the share of items that begin at sigma_max, as samples do
    ends: float = 0.5  # the share of items whose second level is 0
    stages: int = 8  # of ect: how often the distance of its two levels is halved
    paths: int = 5000  # of cmt: how many paths of the teacher are drawn
    path_steps: int = 20  # of cmt: the model calls of a path
    path_share: float = 1.0  # of cmt: the share of the run before ect; 1: paths alone

    def __post_init__(self) -> None:
        for key in ('starts', 'ends', 'path_share'):
            if not 0 <= getattr(self, key) <= 1:
                raise ValueError(f'{key} is {getattr(self, key)}; it must be from 0 to 1')
        for key in ('stages', 'paths', 'path_steps'):
            if getattr(self, key) < 1:
                raise ValueError(f'{key} is {getattr(self, key)}; it must be at least 1')
        low, high = self.guidance_interval or (0.0, math.inf)
        if not 0 <= low < high:
            raise ValueError(
                'guidance_interval must be two noise levels, the lower one first; got '
                f'{self.guidance_interval}'
            )
        if self.guidance_max is not None and not self.guidance_max > 1:
            raise ValueError(f'guidance_max is {self.guidance_max}; it must be above 1, or null')
        if self.method == 'cmt' and self.teacher is None:
            raise ValueError('teacher is null; it must be a checkpoint for the method cmt')
        if self.method == 'cmt' and self.guidance_max is not None:
            raise ValueError(
                'guidance_max must be null for the method cmt, whose paths have one scale; take '
                'guidance, or the method meanflow or ect'
            )

    @property
    def guided(self) -> bool:
        """Whether guidance is distilled in."""
        return self.guidance != 1 or self.guidance_max is not None
