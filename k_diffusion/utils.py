"""The names of the original's utils, imported from the packages they belong to."""

from .core.files import download_file
from .core.images import from_pil_image, to_pil_image
from .core.modules import eval_mode, n_params, tf32_mode, train_mode
from .core.tensors import append_dims
from .core.weights import get_safetensors_metadata
from .data import FolderOfImages, hf_datasets_augs_helper
from .schedules import (
    enable_stratified,
    enable_stratified_accelerate,
    rand_cosine_interpolated,
    rand_log_logistic,
    rand_log_normal,
    rand_log_uniform,
    rand_split_log_normal,
    rand_v_diffusion,
    stratified_uniform,
    stratified_with_settings,
)
from .training import (
    ConstantLRWithWarmup,
    CSVLogger,
    EMAWarmup,
    ExponentialLR,
    InverseLR,
    ema_update,
    ema_update_dict,
)

__all__ = [
    'CSVLogger',
    'ConstantLRWithWarmup',
    'EMAWarmup',
    'ExponentialLR',
    'FolderOfImages',
    'InverseLR',
    'append_dims',
    'download_file',
    'ema_update',
    'ema_update_dict',
    'enable_stratified',
    'enable_stratified_accelerate',
    'eval_mode',
    'from_pil_image',
    'get_safetensors_metadata',
    'hf_datasets_augs_helper',
    'n_params',
    'rand_cosine_interpolated',
    'rand_log_logistic',
    'rand_log_normal',
    'rand_log_uniform',
    'rand_split_log_normal',
    'rand_v_diffusion',
    'stratified_uniform',
    'stratified_with_settings',
    'tf32_mode',
    'to_pil_image',
    'train_mode',
]
