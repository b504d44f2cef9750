"""The guidance scale of a flow map: an input of the model, or a part of it already."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..core.protocols import DenoiseFn
from ..core.wrapping import DenoiserWrapper


def guide_flow_map(flow_map: DenoiseFn, scale: float) -> DenoiseFn:
    """Return a flow map at a guidance scale, if the scale is one of its inputs.

    M' = M(x, sigma, sigma_next, scale). Other flow maps have their guidance distilled in and are
    returned unchanged.

    Args:
        flow_map: The flow map.
        scale: The scale; 1 disables guidance.

    Raises:
        ValueError: If there is a scale, and the flow map has no such input, or it is outside the
            range that the input was trained on.

    References:
        Geng et al. (2025), "Improved mean flows", arXiv:2512.02012, for the scale as an input.
    """
    sections = getattr(getattr(flow_map, 'experiment', None), 'sections', None)
    if sections is not None and sections.model.guidance_input:
        largest = sections.distillation.guidance_max if sections.distillation else None
        if not 1 <= scale <= (math.inf if largest is None else largest):
            limit = 'at least 1' if largest is None else f'from 1 to {largest:g}'
            raise ValueError(
                f'guidance must be {limit} for this flow map, which was trained for such scales; '
                f'got {scale}'
            )
        return _AtScale(flow_map, scale)
    if scale != 1:
        raise ValueError(
            f'guidance must be left out for a flow map, which has its own distilled in; got {scale}'
        )
    return flow_map


@dataclass(frozen=True)
class _AtScale(DenoiserWrapper):
    denoise: DenoiseFn
    scale: float

    def __call__(self, x: Tensor, sigma: Tensor, **cond: Any) -> Tensor:
        return self.denoise(x, sigma, guidance_scale=x.new_full((len(x),), self.scale), **cond)
