"""The data set in the package: 10,000 MNIST digits at 16x16.

MNIST is by LeCun, Cortes and Burges, licensed CC BY-SA 3.0.
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from importlib.resources import files
from typing import Literal

import safetensors.torch

from .datasets import Dataset, Images
from .opening import DATASETS, DatasetConfig, Request
from .published import MNIST


@DATASETS.register('demo')
@dataclass(kw_only=True)
class DemoConfig(DatasetConfig):
    """The shipped digits, which need neither a location nor a network."""

    type: Literal['demo'] = 'demo'

    def open(self, request: Request) -> Dataset:
        """Open the digits.

        Args:
            request: The size and channels of the items.
        """
        content = files(__package__).joinpath('mnist16.safetensors.gz').read_bytes()
        tensors = safetensors.torch.load(gzip.decompress(content))
        images = Images(
            tensors['images'], tensors['labels'].long(), MNIST.class_names, 'the shipped digits'
        )
        return images.reframe(request.size, request.channels)
