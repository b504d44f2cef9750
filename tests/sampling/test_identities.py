"""Methods that are the same under different names agree to rounding, and every parameterisation
is the same denoiser.
"""

import itertools
import math

import pytest
import torch
from mixture_runs import DRAWS, MODEL, SIGMAS, X, close, run
from stable_ids import stable_id

from k_diffusion import sampling
from k_diffusion.sampling import SAMPLERS


@pytest.mark.parametrize(
    ('first', 'second'),
    [
        (('ddim', {'eta': 1.0}), ('exp_ab', {'order': 1, 'eta': 1.0})),
        (
            ('ddim', {'eta': 1.0}),
            ('er_sde', {'max_stage': 1, 'noise_scaler': lambda sigma: sigma**2}),
        ),
        (('ddim', {'eta': 1.0}), ('ddpm', {})),
        (('ddim', {'eta': 0.6}), ('euler_ancestral', {'eta': 0.6})),
        (('ddim', {}), ('euler', {})),
        (('er_sde', {'max_stage': 1, 'noise_scaler': lambda sigma: sigma}), ('euler', {})),
        (('seeds_2', {'eta': 0.0}), ('res_2s', {})),
        (('seeds_3', {'eta': 0.0}), ('res_3s', {})),
        (('seeds_2', {'eta': 0.0, 'r': 1.0}), ('exp_heun_2_x0', {})),
        (('seeds_2', {'r': 1.0}), ('exp_heun_2_x0_sde', {})),
        (('seeds_2', {'eta': 0.0, 'solver_type': 'phi_1'}), ('dpmpp_2s_ancestral', {'eta': 0.0})),
        (('exp_heun_2_x0_sde', {'eta': 0.0}), ('exp_heun_2_x0', {})),
        (('dpmpp_2m_sde_heun', {}), ('exp_ab', {'order': 2, 'eta': 1.0})),
        (('res_multistep_ancestral', {'eta': 0.0}), ('res_multistep', {})),
        (('zeab', {'order': 1}), ('euler', {})),
        (('vab', {'order': 1}), ('euler', {})),
        (('euler_ancestral', {'eta': 0.0, 'down': 'flow'}), ('euler', {})),
        (('dpm_2_ancestral', {'eta': 0.0, 'down': 'flow'}), ('dpm_2', {})),
        (('dpmpp_2m', {}), ('uni_pc_bh2', {'order': 2, 'corrector': False})),
        (('res_multistep', {}), ('exp_ab', {'order': 2})),
        (('dpmpp_3m', {'lower_order_final': False}), ('exp_ab', {})),
        (('res_multistep', {}), ('dpmpp_2m_sde', {'eta': 0.0, 'solver_type': 'heun'})),
        (
            ('exp_ab', {'order': 2, 'eta': 0.4}),
            ('dpmpp_2m_sde', {'eta': 0.4, 'solver_type': 'heun'}),
        ),
        (('sa_solver', {'tau': 0.0, 'corrector_order': 0}), ('exp_ab', {})),
        (
            (
                'sa_solver',
                {'tau': lambda sigma: math.sqrt(0.5), 'corrector_order': 0, 'predictor_order': 2},
            ),
            ('exp_ab', {'order': 2, 'eta': 0.5}),
        ),
        (('sa_solver', {'pece': True}), ('sa_solver_pece', {})),
        (('uni_pc', {'variant': 'bh2'}), ('uni_pc_bh2', {})),
        (('uni_pc', {'order': 1, 'corrector': False}), ('euler', {})),
        (('dpmpp_3m', {}), ('exp_ab', {'lower_order_final': True})),
        (('gradient_estimation', {'ge_gamma': 1.5}), ('ipndm', {'order': 2})),
        (('ipndm_v', {'order': 2}), ('lms', {'order': 2})),
        (('deis', {'order': 1}), ('euler', {})),
        (('ipndm', {'order': 1}), ('euler', {})),
        (('lcm', {}), ('tcd', {'gamma': 1.0})),
        (('tcd', {'gamma': 0.0}), ('euler', {})),
        (('lcm', {}), ('flow_map', {'gamma': 1.0})),
        (('flow_map', {}), ('euler', {})),
        (('restart', {'intervals': ()}), ('heun', {})),
        (('heun', {'euler_below': 100.0}), ('euler', {})),
        (('heun', {'lower_order_final': 99}), ('euler', {})),
    ],
    ids=stable_id,
)
def test_equal_methods(first, second):
    close(run(first[0], **first[1]), run(second[0], **second[1]))


def test_exact_and_published_third_order_differ():
    """The equal ones above are not equal for want of what makes them differ."""
    assert (run('dpmpp_3m') - run('dpmpp_3m_sde', eta=0.0)).abs().max() > 1e-4
    assert (run('uni_pc') - run('uni_pc_bh2')).abs().max() > 1e-4
    assert (run('er_sde') - run('er_sde', exact=True)).abs().max() > 1e-4


def test_ddim_is_the_core_with_an_eta_of_its_own_in_each_step():
    eta = 0.6
    for sigma, sigma_next in itertools.pairwise(SIGMAS[:-1].tolist()):
        h = math.log(sigma / sigma_next)
        core = -math.log(1 - eta**2 * -math.expm1(-2 * h)) / (2 * h)
        noise = lambda *_: DRAWS[0]
        close(
            sampling.sample_ddim(
                MODEL, X, [sigma, sigma_next], eta=eta, noise_sampler=noise, disable=True
            ),
            sampling.sample_exp_ab(
                MODEL, X, [sigma, sigma_next], order=1, eta=core, noise_sampler=noise, disable=True
            ),
        )


def test_dpm_solver_2_is_dpm_2():
    solver = sampling.DPMSolver(MODEL)
    with torch.no_grad():
        step, _ = solver.dpm_solver_2_step(X, -math.log(5.0), -math.log(2.0))
    close(step, sampling.sample_dpm_2(MODEL, X, [5.0, 2.0], disable=True))


def test_euler_in_flow_time_is_euler_here():
    """z = (1 - t) x0 + t n, u = n - x0: z' = z + (t' - t) u, with x = z / (1 - t), sigma = t /
    (1 - t).
    """
    sigmas = SIGMAS.tolist()
    z = X / (1 + sigmas[0])
    for sigma, sigma_next in itertools.pairwise(sigmas):
        t, t_next = sigma / (1 + sigma), sigma_next / (1 + sigma_next)
        x0 = MODEL(z / (1 - t), torch.full([8], sigma, dtype=torch.float64))
        noise = (z - (1 - t) * x0) / t
        z = z + (t_next - t) * (noise - x0)
    close(z, run('euler'))


@pytest.mark.parametrize('name', ['dpmpp_2m', 'uni_pc', 'ipndm', 'exp_ab'])
def test_a_flow_model_is_a_denoiser(name):
    """Any sampler on the wrapped velocity equals the sampler on the denoiser that the velocity
    came from.
    """

    def velocity(z, t):
        x0 = MODEL(z / (1 - t[:, None]), t / (1 - t))
        return (z - x0) / t[:, None]

    def wrapped(x, sigma):
        t = sigma / (1 + sigma)
        z = x * (1 - t[:, None])
        return z - t[:, None] * velocity(z, t)

    close(SAMPLERS[name].function(wrapped, X, SIGMAS, disable=True), run(name))


def test_restart_goes_back_up():
    """At the knot nearest to the interval's end, twice, by a quarter of the schedule's steps."""
    levels = []
    run(
        'restart',
        intervals=((0.3, 2.0),),
        callback=lambda info: levels.append(info['sigma'].item()),
    )
    rises = [(a, b) for a, b in itertools.pairwise(levels) if b > a]
    knot = min(SIGMAS[:-1].tolist(), key=lambda sigma: abs(math.log(sigma / 0.3)))
    assert (
        len(rises) == 2
        and all(b == 2.0 for _, b in rises)
        and len(levels) == 9 + 2 * 2
        and levels.count(knot) == 1
    )
