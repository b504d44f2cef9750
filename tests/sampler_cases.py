"""Calls of every sampler, with and without its noise, for the tests of all samplers."""

from __future__ import annotations

from k_diffusion import sampling

#: Options that leave no noise in a sampler.
WITHOUT_NOISE = {
    'restart': {'intervals': ()},
    'er_sde': {'noise_scaler': lambda sigma: sigma},
    'sa_solver': {'tau': 0.0},
    'sa_solver_pece': {'tau': 0.0},
    'lcm': {'s_noise': 0.0},
    'tcd': {'gamma': 0.0},
    'ddpm': {'s_noise': 0.0},
}
#: Options that leave most of it in.
WITH_NOISE = {
    'sa_solver': {'interval': (0.0, 1.0)},
    'sa_solver_pece': {'interval': (0.0, 1.0)},
    'flow_map': {'gamma': 0.5},
}


def without_noise(name):
    if name in WITHOUT_NOISE:
        return WITHOUT_NOISE[name]
    return {'eta': 0.0} if 'eta' in sampling.SAMPLERS[name].options else {}


def with_noise(name):
    options = sampling.SAMPLERS[name].options
    return WITH_NOISE.get(
        name, {'s_churn': 3.0} if 's_churn' in options else {'eta': 1.0} if 'eta' in options else {}
    )


class Pair:
    """A denoiser that shows two estimates, as the samplers of CFG++ want it; the second here is
    the first by default.
    """

    def __init__(self, model, other=None):
        self.model, self.other = model, other or model

    def __call__(self, x, sigma, **cond):
        return self.model(x, sigma, **cond)

    def pair(self, x, sigma, **cond):
        return self.model(x, sigma, **cond), self.other(x, sigma, **cond)


def suited(name, model):
    return Pair(model) if sampling.SAMPLERS[name].needs_pair else model


#: The samplers of ComfyUI 0.36.
COMFYUI = [
    'euler',
    'euler_cfg_pp',
    'euler_ancestral',
    'euler_ancestral_cfg_pp',
    'heun',
    'heunpp2',
    'exp_heun_2_x0',
    'exp_heun_2_x0_sde',
    'dpm_2',
    'dpm_2_ancestral',
    'lms',
    'dpm_fast',
    'dpm_adaptive',
    'dpmpp_2s_ancestral',
    'dpmpp_2s_ancestral_cfg_pp',
    'dpmpp_sde',
    'dpmpp_sde_gpu',
    'dpmpp_2m',
    'dpmpp_2m_cfg_pp',
    'dpmpp_2m_sde',
    'dpmpp_2m_sde_gpu',
    'dpmpp_2m_sde_heun',
    'dpmpp_2m_sde_heun_gpu',
    'dpmpp_3m_sde',
    'dpmpp_3m_sde_gpu',
    'ddpm',
    'lcm',
    'ipndm',
    'ipndm_v',
    'deis',
    'cfgpp_ud10_ab',
    'res_multistep',
    'res_multistep_cfg_pp',
    'res_multistep_ancestral',
    'res_multistep_ancestral_cfg_pp',
    'gradient_estimation',
    'gradient_estimation_cfg_pp',
    'er_sde',
    'seeds_2',
    'seeds_3',
    'sa_solver',
    'sa_solver_pece',
    'ddim',
    'uni_pc',
    'uni_pc_bh2',
]
