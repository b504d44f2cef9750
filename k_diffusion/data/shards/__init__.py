"""Streamed data: tar shards in the WebDataset layout, local or by URL, and writing them."""

from .dataset import ShardedSamples, ShardsConfig
from .writing import PackResult, pack_shards

__all__ = ['PackResult', 'ShardedSamples', 'ShardsConfig', 'pack_shards']
