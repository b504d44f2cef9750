"""Methods that are the same under different names agree to rounding, and every parameterisation is the same denoiser."""
import itertools
import math

import pytest
import torch
from stable_ids import stable_id

from k_diffusion import sampling
from k_diffusion.denoisers.analytic import Mixture
from k_diffusion.guidance import classifier_free
from k_diffusion.sampling import SAMPLERS

MODEL = Mixture(torch.tensor([[1., 0.], [-1., 0.7], [0.2, -1.2]], dtype=torch.float64), torch.tensor([0.3, 0.4, 0.5], dtype=torch.float64))
SIGMAS = sampling.get_sigmas_karras(9, 0.05, 20.).double()
X = torch.randn(8, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 20
DRAWS = torch.randn(20, 8, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def run(name, **options):
    if 'noise_sampler' in SAMPLERS[name].options:
        draws = iter(DRAWS)
        options['noise_sampler'] = lambda sigma, sigma_next: next(draws)
    return SAMPLERS[name].function(MODEL, X, SIGMAS, disable=True, **options)


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)
    assert a.std() > 0.3


@pytest.mark.parametrize(('first', 'second'), [
    (('ddim', {'eta': 1.}), ('exp_ab', {'order': 1, 'eta': 1.})),
    (('ddim', {'eta': 1.}), ('er_sde', {'max_stage': 1, 'noise_scaler': lambda sigma: sigma ** 2})),
    (('ddim', {'eta': 1.}), ('ddpm', {})), (('ddim', {'eta': 0.6}), ('euler_ancestral', {'eta': 0.6})), (('ddim', {}), ('euler', {})),
    (('er_sde', {'max_stage': 1, 'noise_scaler': lambda sigma: sigma}), ('euler', {})),
    (('seeds_2', {'eta': 0.}), ('res_2s', {})), (('seeds_3', {'eta': 0.}), ('res_3s', {})),
    (('seeds_2', {'eta': 0., 'r': 1.}), ('exp_heun_2_x0', {})),
    (('dpmpp_2m', {}), ('uni_pc_bh2', {'order': 2, 'corrector': False})),
    (('res_multistep', {}), ('exp_ab', {'order': 2})), (('dpmpp_3m', {'lower_order_final': False}), ('exp_ab', {})),
    (('res_multistep', {}), ('dpmpp_2m_sde', {'eta': 0., 'solver_type': 'heun'})),
    (('exp_ab', {'order': 2, 'eta': 0.4}), ('dpmpp_2m_sde', {'eta': 0.4, 'solver_type': 'heun'})),
    (('sa_solver', {'tau': 0., 'corrector_order': 0}), ('exp_ab', {})),
    (('sa_solver', {'tau': lambda sigma: math.sqrt(0.5), 'corrector_order': 0, 'predictor_order': 2}),
     ('exp_ab', {'order': 2, 'eta': 0.5})),
    (('sa_solver', {'pece': True}), ('sa_solver_pece', {})),
    (('uni_pc', {'variant': 'bh2'}), ('uni_pc_bh2', {})), (('uni_pc', {'order': 1, 'corrector': False}), ('euler', {})),
    (('dpmpp_3m', {}), ('exp_ab', {'lower_order_final': True})),
    (('gradient_estimation', {'ge_gamma': 1.5}), ('ipndm', {'order': 2})), (('ipndm_v', {'order': 2}), ('lms', {'order': 2})),
    (('deis', {'order': 1}), ('euler', {})), (('ipndm', {'order': 1}), ('euler', {})),
    (('lcm', {}), ('tcd', {'gamma': 1.})), (('tcd', {'gamma': 0.}), ('euler', {})), (('restart', {'intervals': ()}), ('heun', {})),
    (('heun', {'euler_below': 100.}), ('euler', {})), (('heun', {'lower_order_final': 99}), ('euler', {})),
], ids=stable_id)
def test_equal_methods(first, second):
    close(run(first[0], **first[1]), run(second[0], **second[1]))


def test_exact_and_published_third_order_differ():
    """The equal ones above are not equal for want of what makes them differ."""
    assert (run('dpmpp_3m') - run('dpmpp_3m_sde', eta=0.)).abs().max() > 1e-4
    assert (run('uni_pc') - run('uni_pc_bh2')).abs().max() > 1e-4
    assert (run('er_sde') - run('er_sde', exact=True)).abs().max() > 1e-4


def test_ddim_is_the_core_with_an_eta_of_its_own_in_each_step():
    eta = 0.6
    for sigma, sigma_next in itertools.pairwise(SIGMAS[:-1].tolist()):
        h = math.log(sigma / sigma_next)
        core = -math.log(1 - eta ** 2 * -math.expm1(-2 * h)) / (2 * h)
        noise = lambda *_: DRAWS[0]
        close(sampling.sample_ddim(MODEL, X, [sigma, sigma_next], eta=eta, noise_sampler=noise, disable=True),
              sampling.sample_exp_ab(MODEL, X, [sigma, sigma_next], order=1, eta=core, noise_sampler=noise, disable=True))


def test_dpm_solver_2_is_dpm_2():
    solver = sampling.DPMSolver(MODEL)
    with torch.no_grad():
        step, _ = solver.dpm_solver_2_step(X, -math.log(5.), -math.log(2.))
    close(step, sampling.sample_dpm_2(MODEL, X, [5., 2.], disable=True))


def test_euler_in_flow_time_is_euler_here():
    """z = (1 - t) x0 + t n, u = n - x0: z' = z + (t' - t) u, with x = z / (1 - t), sigma = t / (1 - t)."""
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
    """Any sampler on the wrapped velocity equals the sampler on the denoiser that the velocity came from."""
    def velocity(z, t):
        x0 = MODEL(z / (1 - t[:, None]), t / (1 - t))
        return (z - x0) / t[:, None]

    def wrapped(x, sigma):
        t = sigma / (1 + sigma)
        z = x * (1 - t[:, None])
        return z - t[:, None] * velocity(z, t)

    close(SAMPLERS[name].function(wrapped, X, SIGMAS, disable=True), run(name))


class Conditional:
    def __call__(self, x, sigma, shift):
        return MODEL(x - shift, sigma) + shift


def test_cfg_pp_is_guidance_whose_scale_grows_as_steps_shrink():
    lam, shift = 0.4, torch.ones(8, 1, dtype=torch.float64)
    out = sampling.sample_euler_cfg_pp(classifier_free(Conditional(), {'shift': 0.}, lam), X, SIGMAS, {'shift': shift}, disable=True)
    x = X
    for sigma, sigma_next in itertools.pairwise(SIGMAS.tolist()):
        plain = classifier_free(Conditional(), {'shift': 0.}, lam / (1 - sigma_next / sigma))
        x = sampling.sample_euler(plain, x, [sigma, sigma_next], {'shift': shift}, disable=True)
    close(out, x)


def test_cfg_pp_of_two_equal_estimates_is_the_plain_sampler():
    same = classifier_free(lambda x, sigma, dummy: MODEL(x, sigma), {'dummy': 0.}, 0.7)
    extra = {'dummy': torch.zeros(8)}
    noise = lambda: (lambda draws: lambda *_: next(draws))(iter(DRAWS))
    close(sampling.sample_euler_cfg_pp(same, X, SIGMAS, extra, disable=True), run('euler'))
    close(sampling.sample_dpmpp_2m_cfg_pp(same, X, SIGMAS, extra, disable=True), run('dpmpp_2m'))
    close(sampling.sample_euler_ancestral_cfg_pp(same, X, SIGMAS, extra, disable=True, noise_sampler=noise()), run('euler_ancestral'))


def test_cfg_pp_needs_a_pair():
    with pytest.raises(ValueError, match=r'sample_euler_cfg_pp needs the unconditional estimate.*classifier_free'):
        sampling.sample_euler_cfg_pp(MODEL, X, SIGMAS, disable=True)


def test_restart_goes_back_up():
    """At the knot nearest to the interval's end, twice, by a quarter of the schedule's steps."""
    seen = []
    run('restart', intervals=((0.3, 2.),), callback=lambda info: seen.append(info['sigma'].item()))
    rises = [(a, b) for a, b in itertools.pairwise(seen) if b > a]
    knot = min(SIGMAS[:-1].tolist(), key=lambda sigma: abs(math.log(sigma / 0.3)))
    assert len(rises) == 2 and all(b == 2. for _, b in rises) and len(seen) == 9 + 2 * 2 and seen.count(knot) == 1
