"""Noise levels: the descending lists that samplers walk, and the distributions that training draws from."""
# ruff: noqa: F401
from .densities import (
    DENSITIES,
    CosineInterpolated,
    Density,
    LogLogistic,
    LogNormal,
    LogUniform,
    SplitLogNormal,
    VDiffusion,
)
from .draws import (
    rand_cosine_interpolated,
    rand_log_logistic,
    rand_log_normal,
    rand_log_uniform,
    rand_split_log_normal,
    rand_v_diffusion,
)
from .sigmas import (
    SCHEDULES,
    append_zero,
    get_sigmas_exponential,
    get_sigmas_karras,
    get_sigmas_polyexponential,
    get_sigmas_vp,
)
from .stratified import enable_stratified, enable_stratified_accelerate, stratified_uniform, stratified_with_settings
