"""Streamed data: tar shards in the WebDataset layout, local or by URL, and writing them."""

from .dataset import ShardedSamples, ShardsConfig
from .writing import Packed, pack_shards

__all__ = ['Packed', 'ShardedSamples', 'ShardsConfig', 'pack_shards']
