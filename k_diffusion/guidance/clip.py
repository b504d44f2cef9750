"""CLIP guidance: guidance towards images that a CLIP model rates near to prompts."""

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
    """Guide by CLIP: D' = D - scale sigma^2 grad of the distances of the views of D to the targets.

    The distances are spherical, and the gradient is taken through the denoiser.

    Args:
        denoise: The denoiser.
        encode: Images [N, C, size, size] in [-1, 1] -> embeddings [N, E], such as the image encoder
            of k_diffusion.core.pretrained.ClipModel.
        targets: Embeddings of texts or images: [P, E], common to all items, or [B, P, E], one set
            for each item. The condition `clip_targets` of a call replaces them.
        weights: Weights of the targets, [P]; equal by default.
        scale: Guidance strength.
        size: Side of the images that encode takes.
        n_views: Number of cutouts (`views`).
        power: Exponent of the distribution of their sizes (`views`).
        seed: Seed of the cutouts.
        clamp: Range of D', as in `loss_guidance`. The default is the original's and limits strong
            guidance; None comes nearer to the prompts.
        spread: As in `loss_guidance`.
        through: As in `loss_guidance`.
        decode: From the space of the denoiser to images, for latent diffusion.

    Returns:
        The guided denoiser.

    Raises:
        ValueError: If targets and weights do not fit each other.

    References:
        Crowson (2021), CLIP guided diffusion.
    """
    check_function('encode', encode, 'from pictures [N, C, size, size] to embeddings [N, E]')
    if not isinstance(targets, Tensor) or targets.ndim < 2:
        raise ValueError(
            f'targets must be embeddings, [P, E] or [B, P, E]; got {show_value(targets)}'
        )
    weights = torch.ones(targets.shape[-2]) if weights is None else weights
    if weights.shape != targets.shape[-2:-1]:
        raise ValueError(
            'targets must be [P, E] or [B, P, E] and weights [P]; got '
            f'{list(targets.shape)} and {list(weights.shape)}'
        )
    distance = ClipDistance(encode, targets, weights, size, n_views, power, seed, decode)
    return loss_guidance(denoise, distance, scale, through, clamp, spread)


@dataclass(frozen=True)
class ClipDistance:
    """The loss [B] of CLIP guidance: weighted distances to the targets, averaged over views."""

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
        """Return the loss of some items of a batch, for targets of each item.

        Args:
            items: Their indices.
            shape: The shape of the batch.
        """
        if self.targets.ndim < 3 or len(self.targets) != shape[0] or shape[0] == 1:
            return self
        return replace(self, targets=self.targets[items.to(self.targets.device)])

    def __call__(
        self, denoised: Tensor, sigma: Tensor, clip_targets: Tensor | None = None
    ) -> Tensor:
        images = denoised if self.decode is None else self.decode(denoised)
        crops = views(images, self.size, sigma, self.n_views, self.power, self.seed)
        embeddings = self.encode(crops).unflatten(0, (self.n_views, len(images)))
        embeddings = embeddings[:, :, None]  # [views, B, 1, E]
        targets = (self.targets if clip_targets is None else clip_targets).to(embeddings)
        if targets.shape[-2] != len(self.weights):
            raise ValueError(
                f'clip_targets must hold {len(self.weights)} targets for each item, one for each '
                f'weight; got {targets.shape[-2]}'
            )
        distances = spherical_distance(embeddings, targets)
        return (distances * self.weights.to(embeddings)).sum(-1).mean(0)


def spherical_distance(a: Tensor, b: Tensor) -> Tensor:
    """Return half the squared angle between vectors, [..., E] -> [...].

    It is 2 arcsin(|a - b| / 2)^2 of the normalised vectors.

    Args:
        a: Vectors.
        b: Vectors, which broadcast against a.

    Raises:
        ValueError: If they have different lengths.
    """
    if a.shape[-1:] != b.shape[-1:]:
        raise ValueError(
            f'b must hold vectors of the length of those of a, {a.shape[-1]}; got shape '
            f'{list(b.shape)}'
        )
    chord = (F.normalize(a, dim=-1) - F.normalize(b, dim=-1)).norm(dim=-1)
    return 2 * (chord / 2).clamp(max=1).arcsin() ** 2
