"""Samplers: functions that turn noise into data with a denoiser.

Each is called as sample_<name>(model, x, sigmas, ...).

Programs also replace names of this module (`k_diffusion.sampling.torch = ...`) to change what the
samplers draw or show. A name set here is therefore set in every file of the package that holds the
same object under that name.
"""

# ruff: noqa: F401
from __future__ import annotations

import importlib
import math
import sys
from types import ModuleType
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm, trange

from ..schedules import (
    append_zero,
    cap_sigmas,
    discard_penultimate_sigma,
    final_denoise,
    flow_table,
    flux2_shift,
    flux_shift,
    get_sigmas_ays,
    get_sigmas_ays_11,
    get_sigmas_ays_32,
    get_sigmas_beta,
    get_sigmas_beta57,
    get_sigmas_beta57_table,
    get_sigmas_beta_table,
    get_sigmas_bong_tangent,
    get_sigmas_ddim_uniform,
    get_sigmas_exponential,
    get_sigmas_flow,
    get_sigmas_gits,
    get_sigmas_karras,
    get_sigmas_kl_optimal,
    get_sigmas_laplace,
    get_sigmas_linear_quadratic,
    get_sigmas_normal,
    get_sigmas_optimal_steps,
    get_sigmas_polyexponential,
    get_sigmas_sgm_uniform,
    get_sigmas_simple,
    get_sigmas_vp,
    quantize_sigmas,
    shift_sigmas,
    sigmas_for_strength,
)
from .calibration.bases import BASES
from .calibration.fitting import calibrate
from .calibration.solver import Calibration
from .coefficients import (
    adams_weights,
    exponential_weights,
    get_ancestral_step,
    linear_multistep_coeff,
    phi,
    to_d,
)
from .definition import make_sampler, preset, sampler
from .likelihood.log_likelihood import invert, log_likelihood
from .loop import Step, Steps, levels
from .noise import (
    BatchedBrownianTree,
    BrownianTreeNoiseSampler,
    default_noise_sampler,
    draw_seeds,
    generator_noise_sampler,
    make_noise_sampler,
    seeded_noise_sampler,
)
from .outside import requests
from .record import Record
from .registry import SAMPLERS, SampleFn, Sampler, catalogue, find_sampler
from .running import State, iterate
from .samplers import presets as _presets
from .samplers.cfg_pp import (
    sample_cfgpp_ud10_ab,
    sample_dpmpp_2m_cfg_pp,
    sample_dpmpp_2s_ancestral_cfg_pp,
    sample_euler_ancestral_cfg_pp,
    sample_euler_cfg_pp,
    sample_gradient_estimation_cfg_pp,
    sample_res_multistep_ancestral_cfg_pp,
    sample_res_multistep_cfg_pp,
)
from .samplers.ddim import sample_ddim, sample_ddpm
from .samplers.distilled import sample_flow_map, sample_lcm, sample_tcd
from .samplers.dpm import sample_dpm_2, sample_dpm_2_ancestral, sample_dpm_adaptive, sample_dpm_fast
from .samplers.dpm_solver import DPMSolver
from .samplers.dpmpp import (
    sample_dpmpp_2m,
    sample_dpmpp_2m_sde,
    sample_dpmpp_2m_sde_heun,
    sample_dpmpp_2s_ancestral,
    sample_dpmpp_3m_sde,
    sample_dpmpp_sde,
)
from .samplers.er_sde import sample_er_sde
from .samplers.euler import sample_euler, sample_euler_ancestral
from .samplers.exponential_general_linear import sample_exp_lawson, sample_exp_pec
from .samplers.exponential_multistep import (
    sample_dpmpp_3m,
    sample_exp_ab,
    sample_res_multistep,
    sample_res_multistep_ancestral,
)
from .samplers.exponential_runge_kutta import (
    sample_exp_heun_2_x0,
    sample_exp_heun_2_x0_sde,
    sample_res_2s,
    sample_res_3s,
    sample_seeds_2,
    sample_seeds_3,
)
from .samplers.exponential_tables import TABLES as EXPONENTIAL_TABLES
from .samplers.heun import sample_heun, sample_heunpp2
from .samplers.multistep import (
    sample_deis,
    sample_gradient_estimation,
    sample_ipndm,
    sample_ipndm_v,
    sample_lms,
    sample_rab,
    sample_vab,
    sample_zeab,
)
from .samplers.restart import sample_restart
from .samplers.runge_kutta_tables import TABLES as RUNGE_KUTTA_TABLES
from .samplers.sa_solver import sample_sa_solver, sample_sa_solver_pece, tau_between
from .samplers.spectral import sample_sei
from .samplers.table_driven import sample_exp_rk, sample_rk
from .samplers.unipc import sample_uni_pc, sample_uni_pc_bh2
from .spectrum import Spectrum
from .step_size import PIDStepSizeController
from .transitions import Transition, Transitions, transition
from .watch import Request

#: Samplers made in a loop, under names like the others.
globals().update({f'sample_{name}': entry.function for name, entry in SAMPLERS.items()})

# Names of the original, imported on access: (module, attribute).
_LAZY = {
    'utils': ('k_diffusion.utils', None),
    'integrate': ('scipy.integrate', None),
    'odeint': ('torchdiffeq', 'odeint'),
    'torchsde': ('torchsde', None),
}


def __getattr__(name: str) -> Any:
    """Import one of the lazy names."""
    if name not in _LAZY:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    module, attribute = _LAZY[name]
    try:
        target = importlib.import_module(module)
    except ImportError as error:
        raise AttributeError(
            f'{__name__}.{name} needs the package {module.split(".")[0]!r}, which cannot be '
            f'imported: {error}'
        ) from None
    return getattr(target, attribute) if attribute else target


class _Face(ModuleType):
    """A module that passes names set on it to the files of the package."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in vars(self):
            before = vars(self)[name]
            for path, module in list(sys.modules.items()):
                if path.startswith(f'{self.__name__}.') and vars(module).get(name) is before:
                    setattr(module, name, value)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Face
