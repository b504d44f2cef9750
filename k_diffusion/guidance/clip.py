"""CLIP guidance: towards pictures that a picture-and-text model finds near to prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.arguments import check_function, show_value
from ..core.protocols import DenoiseFn
from .gradients import loss_guidance
from .views import views


def clip_guidance(
    denoise: DenoiseFn,
    encode: Callable[[Tensor], Tensor],
    targets: Tensor,
    weights: Tensor | None = None,
    scale: float = 500.0,
    size: int = 224,
    n_views: int = 1,
    power: float = 1.0,
    seed: int = 0,
    clamp: tuple[float, float] | None = (-1.0, 1.0),
    spread: float | None = None,
    through: bool = True,
    decode: Callable[[Tensor], Tensor] | None = None,
) -> DenoiseFn:
    """D' = D - scale sigma^2 grad of the spherical distances of D's views to the targets, the
    gradient through the denoiser.

    encode: pictures [N, C, size, size] in [-1, 1] -> embeddings [N, E], as
    k_diffusion.core.pretrained.ClipModel has it. targets: embeddings of texts or pictures, [P, E],
    pursued together with their weights [P]; or [B, P, E], where each item has its own, as the
    condition `clip_targets` then says in their place. n_views, power: the cutouts (`views`).
    decode: from the denoiser's space to pictures (latent diffusion). clamp, spread and through are
    those of `loss_guidance`: the clamp is the original's, and holds strong guidance back; None
    reaches the prompts more often. After Crowson (2021).
    """
    check_function('encode', encode, 'from pictures [N, C, size, size] to embeddings [N, E]')
    if not isinstance(targets, Tensor) or targets.ndim < 2:
        raise ValueError(
            f'targets must be embeddings [P, E] or [B, P, E]; got {show_value(targets)}'
        )
    weights = torch.ones(targets.shape[-2]) if weights is None else weights
    if weights.shape != targets.shape[-2:-1]:
        raise ValueError(
            f'targets of shape {list(targets.shape)} and weights of shape {list(weights.shape)} '
            'do not fit; '
            'give embeddings [P, E] or [B, P, E], and a weight for each of the P'
        )
    distance = ClipDistance(encode, targets, weights, size, n_views, power, seed, decode)
    return loss_guidance(denoise, distance, scale, through, clamp, spread)


@dataclass(frozen=True)
class ClipDistance:
    """The loss [B] of CLIP guidance: the mean over the views of the weighted distances to the
    targets.
    """

    encode: Callable[[Tensor], Tensor]
    targets: Tensor
    weights: Tensor
    size: int
    n_views: int
    power: float
    seed: int
    decode: Callable[[Tensor], Tensor] | None = None
    takes = ('clip_targets',)

    def select_items(self, items: Tensor, shape: Sequence[int]) -> ClipDistance:
        """The loss of some items of a batch, where each has targets of its own."""
        if self.targets.ndim < 3 or len(self.targets) != shape[0] or shape[0] == 1:
            return self
        return replace(self, targets=self.targets[items.to(self.targets.device)])

    def __call__(
        self, denoised: Tensor, sigma: Tensor, clip_targets: Tensor | None = None
    ) -> Tensor:
        images = denoised if self.decode is None else self.decode(denoised)
        found = self.encode(views(images, self.size, sigma, self.n_views, self.power, self.seed))
        found = found.unflatten(0, (self.n_views, len(images)))[:, :, None]  # [views, B, 1, E]
        targets = (self.targets if clip_targets is None else clip_targets).to(found)
        if targets.shape[-2] != len(self.weights):
            raise ValueError(
                f'clip_targets has {targets.shape[-2]} targets for each item and there are '
                f'{len(self.weights)} weights; '
                'give as many'
            )
        return (spherical_distance(found, targets) * self.weights.to(found)).sum(-1).mean(0)


def spherical_distance(a: Tensor, b: Tensor) -> Tensor:
    """Half the squared angle between vectors, [..., E] -> [...]: 2 arcsin(|a - b| / 2)^2 of them
    brought to length 1.
    """
    if a.shape[-1:] != b.shape[-1:]:
        raise ValueError(
            f'b must hold vectors as long as those of a, {a.shape[-1]}; got shape {list(b.shape)}'
        )
    chord = (F.normalize(a, dim=-1) - F.normalize(b, dim=-1)).norm(dim=-1)
    return 2 * (chord / 2).clamp(max=1).arcsin() ** 2
