"""The keys that the "model" section of every config shares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

#: The largest numbers that are accepted, since a typing error could take all memory, or hours to
#: build a network.
LIMITS = {
    'input_size': 16_384,
    'input_channels': 4_096,
    'patch_size': 4_096,
    **dict.fromkeys(('depth', 'depths', 'mapping_depth'), 1_000),
    **dict.fromkeys(
        (
            'channels',
            'width',
            'widths',
            'd_ff',
            'd_ffs',
            'mapping_out',
            'mapping_width',
            'mapping_d_ff',
            'mapping_cond_dim',
            'unet_cond_dim',
            'cross_cond_dim',
        ),
        131_072,
    ),
}
MOST_LEVELS = 16


@dataclass(kw_only=True)
class DenoiserSection:
    """The keys of the denoiser that a network becomes, and of its loss."""

    sigma_data: float = 1.0  # standard deviation of the data
    has_variance: bool = False
    loss_config: Literal['karras', 'simple'] = 'karras'
    loss_weighting: Literal['karras', 'soft-min-snr', 'snr', 'flow'] = 'karras'
    preconditioning: Literal['karras', 'v', 'eps', 'x0', 'flow'] = (
        'karras'  # what the network predicts
    )
    loss_scales: int = 1
    loss_contrast: float = 0.0  # contrastive flow matching
    flow_map: bool = False  # a map between two levels, M(x, sigma, sigma_next): few model calls
    guidance_input: bool = False  # a flow map that is given the guidance scale

    def __post_init__(self) -> None:
        check_above(0, sigma_data=self.sigma_data)
        check_at_least(0, loss_scales=self.loss_scales)
        check_share(loss_contrast=self.loss_contrast)
        if self.guidance_input and not self.flow_map:
            raise ValueError(
                'guidance_input must be false without flow_map; got true: set flow_map to true, or '
                'guidance_input to false'
            )


@dataclass(kw_only=True)
class ModelSection(DenoiserSection):
    """The shape of the data, the noise levels and the loss; each network adds its own keys."""

    #: The numbers of spatial dimensions that the network can be built for.
    DIMS: ClassVar[tuple[int, ...]] = (2,)

    dims: int = 2  # spatial dimensions: 1 sequences, 2 pictures, 3 volumes
    input_channels: int
    input_size: tuple[int, ...]  # L; H, W; or D, H, W
    augment_prob: float = 0.0  # of each of Karras's augmentations
    sigma_min: float  # noise levels of sampling
    sigma_max: float
    sigma_sample_density: dict[str, Any]  # noise levels of training: one of K.schedules.DENSITIES

    def __post_init__(self) -> None:
        self._check_limits()
        self._check_dims()
        super().__post_init__()
        check_above(
            0,
            input_channels=self.input_channels,
            input_size=min(self.input_size),
            sigma_min=self.sigma_min,
        )
        check_share(augment_prob=self.augment_prob)
        if self.sigma_max <= self.sigma_min:
            raise ValueError(
                f'sigma_max must be above sigma_min, {self.sigma_min}; got {self.sigma_max}'
            )

    def _check_dims(self) -> None:
        if self.dims not in self.DIMS:
            others = (
                '; image_v1, image_v3 and image_transformer_v2 take 1 and 3 too'
                if self.DIMS == (2,)
                else ''
            )
            raise ValueError(
                f'dims must be {" or ".join(map(str, self.DIMS))}; got {self.dims}{others}'
            )
        if len(self.input_size) != self.dims:
            raise ValueError(
                f'input_size must hold {self.dims} side{"s" * (self.dims > 1)}, one for each of '
                f'dims; got {list(self.input_size)}'
            )

    def _check_limits(self) -> None:
        for key, limit in LIMITS.items():
            value = getattr(self, key, None)
            numbers = value if isinstance(value, (list, tuple)) else [value or 0]
            if len(numbers) > MOST_LEVELS:
                raise ValueError(
                    f'{key} must have at most {MOST_LEVELS} entries; got {len(numbers)}'
                )
            if max(numbers, default=0) > limit:
                raise ValueError(f'{key} must be at most {limit:,}; got {value}')


def check_above(bound: float, **values: float) -> None:
    """Raise ValueError for a value that is not above a bound.

    Args:
        bound: The bound.
        **values: The values by their keys.
    """
    for key, value in values.items():
        if not value > bound:
            raise ValueError(f'{key} must be above {bound}; got {value}')


def check_at_least(bound: float, **values: float) -> None:
    """Raise ValueError for a value below a bound.

    Args:
        bound: The bound.
        **values: The values by their keys.
    """
    for key, value in values.items():
        if not value >= bound:
            raise ValueError(f'{key} must be at least {bound}; got {value}')


def check_share(**values: float) -> None:
    """Raise ValueError for a value outside [0, 1].

    Args:
        **values: The values by their keys.
    """
    for key, value in values.items():
        if not 0 <= value <= 1:
            raise ValueError(f'{key} must be from 0 to 1; got {value}')
