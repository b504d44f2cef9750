"""A network from Python: an instance of any module, without a config."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NoReturn

from .section import DenoiserSection, check_above


@dataclass(kw_only=True)
class PythonNetworkConfig(DenoiserSection):
    """The "model" section that training writes for a network passed to `K.train(network=...)`."""

    type: Literal['python'] = 'python'
    network: str = 'MyNet'  # the name of its class
    input_channels: int
    input_size: tuple[int, ...] = ()  # 0 to 3 spatial dimensions
    sigma_min: float
    sigma_max: float
    sigma_sample_density: dict[str, Any]

    augment_prob: ClassVar[float] = 0.0
    augment_wrapper: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_above(
            0,
            input_channels=self.input_channels,
            sigma_min=self.sigma_min,
            input_size=min(self.input_size, default=1),
        )
        check_above(self.sigma_min, sigma_max=self.sigma_max)

    def build(self, num_classes: int = 0) -> NoReturn:
        """Raise a ValueError that states how to pass the network.

        Args:
            num_classes: Not used.
        """
        in_file = ':' in self.network
        how = (
            f'network={self.network!r}'
            if in_file
            else f'an instance of it, network={self.network}(...)'
        )
        raise ValueError(
            f'network must be given, since {self.network} is not one of this package: '
            f'pass {how}' + (' and allow_code=True' if in_file else '')
        )
