"""The networks, each in a file with its Config; MODELS names the configs by their "type"."""

from ..core.modules import checkpointing, get_checkpointing
from ..core.registry import Registry
from . import axial_rope, flags, flops
from .autoencoder import Autoencoder, AutoencoderConfig
from .image_transformer_v1 import ImageTransformerDenoiserModelV1, ImageTransformerV1Config
from .image_transformer_v2 import ImageTransformerDenoiserModelV2, ImageTransformerV2Config
from .image_v1 import ImageDenoiserModelV1, ImageV1Config
from .image_v2 import ImageDenoiserModelV2, ImageV2Config
from .image_v3 import ImageDenoiserModelV3, ImageV3Config
from .python import PythonNetworkConfig
from .text_encoder import TextEncoder

MODELS: Registry[type] = Registry('model type')
MODELS.register('image_v1')(ImageV1Config)
MODELS.register('image_v2')(ImageV2Config)
MODELS.register('image_v3')(ImageV3Config)
MODELS.register('image_transformer_v1')(ImageTransformerV1Config)
MODELS.register('image_transformer_v2')(ImageTransformerV2Config)
MODELS.register('python')(PythonNetworkConfig)

__all__ = [
    'MODELS',
    'Autoencoder',
    'AutoencoderConfig',
    'ImageDenoiserModelV1',
    'ImageDenoiserModelV2',
    'ImageDenoiserModelV3',
    'ImageTransformerDenoiserModelV1',
    'ImageTransformerDenoiserModelV2',
    'ImageTransformerV1Config',
    'ImageTransformerV2Config',
    'ImageV1Config',
    'ImageV2Config',
    'ImageV3Config',
    'PythonNetworkConfig',
    'TextEncoder',
    'axial_rope',
    'checkpointing',
    'flags',
    'flops',
    'get_checkpointing',
]
