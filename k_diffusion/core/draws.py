"""The random draws of training: functions of the seed, the purpose and the item's number.

There are two versions. A resumed run keeps the version of its first checkpoint.

1. Noise from one torch generator per item, of the device on which it is drawn. Dropout in the
   network differs between a process with several micro-batches and several processes.
2. Noise from a counter (`draw_normals`), for all items at once, and the same on every device.
   Dropout depends on the place of the micro-batch in the step.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .philox import draw_normals
from .random import derive_seed, generator, randn_items

NEWEST = 2
#: The words of 32 bits that one hash gives.
_WORDS = 16


@dataclass(frozen=True)
class Draws:
    """The draws of a run.

    Attributes:
        seed: Of the run.
        version: 1 or 2, see above.
    """

    seed: int
    version: int = NEWEST

    def __post_init__(self) -> None:
        if self.version not in (1, NEWEST):
            raise ValueError(
                f'the version of the draws must be 1 or {NEWEST}; got {self.version}: this run '
                'needs a newer k-diffusion'
            )

    def noise(
        self,
        items: Tensor,
        shape: Sequence[int],
        device: torch.device,
        on_device: Tensor | None = None,
    ) -> Tensor:
        """Draw Gaussian noise [B, *shape] of unit variance.

        Args:
            items: int64 [B], on the host.
            shape: Of one item.
            device: Where it is wanted.
            on_device: The items once more, where they are on the device already.
        """
        if self.version == 1:
            seeds = [derive_seed(self.seed, 'noise', item) for item in items.tolist()]
            return randn_items(shape, seeds, device)
        stream = derive_seed(self.seed, 'noise')
        return draw_normals(stream, items if on_device is None else on_device, shape, device)

    def share(self, items: Tensor, *keys: int | str) -> Tensor:
        """Draw a number from [0, 1) for each item, float64 [B] on the host.

        Args:
            items: int64 [B], on the host.
            keys: The purpose.
        """
        draws = [derive_seed(self.seed, *keys, item) / 2**63 for item in items.tolist()]
        return torch.tensor(draws, dtype=torch.float64)

    def uniform(self, items: Tensor, n: int, *keys: int | str) -> Tensor:
        """Draw n numbers from (0, 1) for each item, float64 [B, n] on the host.

        Version 2 takes 32 bits each of a hash of the item's number.

        Args:
            items: int64 [B], on the host.
            n: At most 16.
            keys: The purpose.
        """
        if n > _WORDS:
            raise ValueError(f'n must be at most {_WORDS}; got {n}')
        if self.version == 1:
            sources = [generator(self.seed, *keys, item) for item in items.tolist()]
            return torch.stack([torch.rand(n, generator=source) for source in sources]).double()
        digests = b''.join(
            hashlib.blake2b(repr((self.seed, *keys, item)).encode()).digest()
            for item in items.tolist()
        )
        words = torch.frombuffer(bytearray(digests), dtype=torch.int32).view(-1, _WORDS)
        return (words[:, :n].double() + (2**31 + 0.5)) / 2**32

    def quantiles(self, first: int, n: int) -> Tensor:
        """Draw a number in each of n equal parts of (0, 1), in random order.

        Args:
            first: The number of the first item.
            n: The number of items.

        Returns:
            float64 [n] on the host.
        """
        source = generator(self.seed, 'sigma', first)
        order = torch.randperm(n, generator=source)
        return (order + torch.rand(n, generator=source, dtype=torch.float64)) / n
