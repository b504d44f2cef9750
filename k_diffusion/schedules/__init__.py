"""Noise levels: descending schedules for sampling, and distributions for training."""

# ruff: noqa: F401
from .align_your_steps import (
    AYS_32_LEVELS,
    AYS_LEVELS,
    get_sigmas_ays,
    get_sigmas_ays_11,
    get_sigmas_ays_32,
)
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
from .discrete import (
    DISCRETE_SCHEDULES,
    get_sigmas_beta57_table,
    get_sigmas_beta_table,
    get_sigmas_ddim_uniform,
    get_sigmas_normal,
    get_sigmas_sgm_uniform,
    get_sigmas_simple,
)
from .draws import (
    rand_cosine_interpolated,
    rand_log_logistic,
    rand_log_normal,
    rand_log_uniform,
    rand_split_log_normal,
    rand_v_diffusion,
)
from .entries import BETWEEN, Schedule, catalogue
from .flow import (
    flow_table,
    flow_time_to_sigma,
    flux2_shift,
    flux_shift,
    get_sigmas_bong_tangent,
    get_sigmas_flow,
    get_sigmas_linear_quadratic,
    sigma_to_flow_time,
)
from .parts import SCHEDULES, append_zero
from .published_lists import GITS_LEVELS, OPTIMAL_TIMES, get_sigmas_gits, get_sigmas_optimal_steps
from .sigmas import (
    get_sigmas_exponential,
    get_sigmas_interval,
    get_sigmas_karras,
    get_sigmas_polyexponential,
    get_sigmas_vp,
)
from .spacings import get_sigmas_beta, get_sigmas_beta57, get_sigmas_kl_optimal, get_sigmas_laplace
from .stratified import (
    enable_stratified,
    enable_stratified_accelerate,
    stratified_uniform,
    stratified_with_settings,
)
from .transforms import (
    cap_sigmas,
    discard_penultimate_sigma,
    final_denoise,
    quantize_sigmas,
    shift_sigmas,
    sigmas_for_strength,
)
