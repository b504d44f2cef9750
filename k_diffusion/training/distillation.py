"""The config section "distillation": the training of a flow map of few model calls."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass
class DistillationConfig:
    """The method, the teacher and the distilled guidance; method null is ordinary training.

    `model.flow_map` must be true with a method.

    Attributes:
        method: ect (consistency tuning), cmt (regression on the paths of the teacher, then ect) or
            meanflow.
        teacher: A checkpoint that gives the first weights, the guidance and the paths; null trains
            from scratch.
        teacher_digest: The digest of its weights, which the run writes.
        guidance: The scale of the distilled guidance; 1 disables it.
        guidance_interval: The noise levels with guidance; null is all.
        guidance_max: Above 1, the scale is an input of the model, from 1 to this value.
        starts: The share of items that begin at sigma_max, as samples do.
        ends: The share of items whose second level is 0.
        stages: For ect, the number of times that the distance of its two levels is halved.
        paths: For cmt, the number of paths of the teacher.
        path_steps: For cmt, the model calls of a path.
        path_share: For cmt, the share of the run before ect; 1 trains on paths only.
    """

    method: Literal['ect', 'cmt', 'meanflow'] | None = None
    teacher: str | None = None
    teacher_digest: str | None = None
    guidance: float = 1.0
    guidance_interval: tuple[float, float] | None = None
    guidance_max: float | None = None
    starts: float = 0.25
    ends: float = 0.5
    stages: int = 8
    paths: int = 5000
    path_steps: int = 20
    path_share: float = 1.0

    def __post_init__(self) -> None:
        for key in ('starts', 'ends', 'path_share'):
            if not 0 <= getattr(self, key) <= 1:
                raise ValueError(f'{key} must be from 0 to 1; got {getattr(self, key)}')
        for key in ('stages', 'paths', 'path_steps'):
            if getattr(self, key) < 1:
                raise ValueError(f'{key} must be >= 1; got {getattr(self, key)}')
        low, high = self.guidance_interval or (0.0, math.inf)
        if not 0 <= low < high:
            raise ValueError(
                'guidance_interval must be two noise levels, the lower one first; got '
                f'{self.guidance_interval}'
            )
        if self.guidance_max is not None and not self.guidance_max > 1:
            raise ValueError(f'guidance_max must be > 1, or null; got {self.guidance_max}')
        if self.method == 'cmt' and self.teacher is None:
            raise ValueError('teacher must be a checkpoint for the method cmt; got null')
        if self.method == 'cmt' and self.guidance_max is not None:
            raise ValueError(
                f'guidance_max must be null for the method cmt; got {self.guidance_max}. Its paths '
                'have one scale: set guidance, or use the method meanflow or ect'
            )

    @property
    def guided(self) -> bool:
        """Return True if guidance is distilled into the model."""
        return self.guidance != 1 or self.guidance_max is not None
