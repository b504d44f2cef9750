"""The networks, each in a file with its Config; MODELS names the configs by their "type"."""
from ..core.modules import checkpointing, get_checkpointing
from ..core.registry import Registry
from . import flops
from .image_v1 import ImageDenoiserModelV1, ImageV1Config

MODELS: Registry[type] = Registry('model type')
MODELS.register('image_v1')(ImageV1Config)

__all__ = ['MODELS', 'ImageDenoiserModelV1', 'ImageV1Config', 'checkpointing', 'flops', 'get_checkpointing']
