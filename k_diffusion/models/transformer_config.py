"""The "model" section that both transformers share."""

from __future__ import annotations

from dataclasses import dataclass

from .section import ModelSection, check_above


@dataclass(kw_only=True)
class TransformerSection(ModelSection):
    """The keys of both transformers: the patches, and two keys for image_v1 only."""

    patch_size: tuple[int, ...]  # pixels that make a token, along each of dims
    augment_wrapper: bool = False
    skip_stages: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.patch_size) != self.dims:
            raise ValueError(
                f'patch_size must hold {self.dims} side{"s" * (self.dims > 1)}, one for each of '
                f'dims; got {list(self.patch_size)}'
            )
        check_above(0, patch_size=min(self.patch_size))
        if self.has_variance:
            raise ValueError(
                'has_variance must be false for a transformer; got true: set it to false, or use '
                'image_v1'
            )
        if self.skip_stages:
            raise ValueError(
                f'skip_stages must be 0 for a transformer; got {self.skip_stages}: set it to 0, or '
                'use image_v1'
            )
        # These networks take aug_cond themselves; as in the original, they get no wrapper.
        self.augment_wrapper = False

    def check_sides(self, levels: int = 1) -> None:
        """Check that an image has whole tokens at every level.

        Args:
            levels: The number of levels.

        Raises:
            ValueError: If not.
        """
        units = [side * 2 ** (levels - 1) for side in self.patch_size]
        if any(side % unit for side, unit in zip(self.input_size, units)):
            halvings = f' and {levels} levels' if levels > 1 else ''
            raise ValueError(
                f'input_size must hold multiples of {" and ".join(map(str, units))} with '
                f'patch_size {list(self.patch_size)}{halvings}; got {list(self.input_size)}'
            )
