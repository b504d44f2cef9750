"""The samplers of CFG++ against their formulas, on two estimates that differ."""

import functools
import itertools
import math

import pytest
import torch
from mixture_runs import DRAWS, MODEL, SIGMAS, X, close, run
from sampler_cases import Pair
from scipy.integrate import quad

from k_diffusion import sampling
from k_diffusion.denoisers.analytic import Mixture
from k_diffusion.guidance import classifier_free

OTHER = Mixture(
    torch.tensor([[1.0, 0.0], [-1.0, 0.7]], dtype=torch.float64),
    torch.tensor([0.3, 0.4], dtype=torch.float64),
)
STEPS = list(itertools.pairwise(SIGMAS.tolist()))


class Conditional:
    def __call__(self, x, sigma, shift):
        return MODEL(x - shift, sigma) + shift


def pair(x, sigma):
    """The guided and the unconditional estimate at one level."""
    level = torch.full([len(x)], float(sigma), dtype=x.dtype)
    unconditional = OTHER(x, level)
    return unconditional + 0.6 * (MODEL(x, level) - unconditional), unconditional


def run_pair(name, sigmas=SIGMAS, **options):
    class Model:
        def pair(self, x, sigma):
            return pair(x, sigma[0])

    entry = sampling.SAMPLERS[name]
    if 'noise_sampler' in entry.options:
        draws = iter(DRAWS)
        options['noise_sampler'] = lambda sigma, sigma_next: next(draws)
    return entry.function(Model(), X, sigmas, disable=True, **options)


def split(sigma, sigma_next, eta):
    up = min(sigma_next, eta * sigma_next * math.sqrt(1 - (sigma_next / sigma) ** 2))
    return math.sqrt(sigma_next**2 - up**2), up


def test_cfg_pp_is_guidance_whose_scale_grows_as_steps_shrink():
    lam, shift = 0.4, torch.ones(8, 1, dtype=torch.float64)
    out = sampling.sample_euler_cfg_pp(
        classifier_free(Conditional(), {'shift': 0.0}, lam),
        X,
        SIGMAS,
        {'shift': shift},
        disable=True,
    )
    x = X
    for sigma, sigma_next in STEPS:
        plain = classifier_free(Conditional(), {'shift': 0.0}, lam / (1 - sigma_next / sigma))
        x = sampling.sample_euler(plain, x, [sigma, sigma_next], {'shift': shift}, disable=True)
    close(out, x)


#: Each with the sampler that it is where both estimates are the same.
PLAIN = {
    'euler_cfg_pp': ('euler', {}),
    'dpmpp_2m_cfg_pp': ('dpmpp_2m', {}),
    'euler_ancestral_cfg_pp': ('euler_ancestral', {}),
    'dpmpp_2s_ancestral_cfg_pp': ('dpmpp_2s_ancestral', {}),
    'res_multistep_cfg_pp': ('res_multistep', {}),
    'res_multistep_ancestral_cfg_pp': ('res_multistep_ancestral', {}),
    'gradient_estimation_cfg_pp': ('gradient_estimation', {'euler_to_zero': True}),
}


@pytest.mark.parametrize('name', PLAIN)
def test_cfg_pp_of_two_equal_estimates_is_the_plain_sampler(name):
    entry = sampling.SAMPLERS[name]
    draws = iter(DRAWS)
    options = {'noise_sampler': lambda *_: next(draws)} if 'noise_sampler' in entry.options else {}
    plain, plain_options = PLAIN[name]
    close(
        entry.function(Pair(MODEL), X, SIGMAS, disable=True, **options), run(plain, **plain_options)
    )


def test_the_table_above_is_complete():
    assert {name for name, entry in sampling.SAMPLERS.items() if entry.needs_pair} == {
        *PLAIN,
        'cfgpp_ud10_ab',
    }


def test_cfg_pp_needs_a_pair():
    with pytest.raises(
        ValueError, match=r'sample_euler_cfg_pp needs the unconditional estimate.*classifier_free'
    ):
        sampling.sample_euler_cfg_pp(MODEL, X, SIGMAS, disable=True)


@pytest.mark.parametrize('uncond_from', ['start', 'middle'])
@pytest.mark.parametrize('eta', [0.0, 1.0])
def test_dpmpp_2s_ancestral(eta, uncond_from):
    x, draws = X, iter(DRAWS)
    for sigma, sigma_next in STEPS:
        down, up = split(sigma, sigma_next, eta)
        guided, unconditional = pair(x, sigma)
        if down:
            middle = math.sqrt(sigma * down)
            second, unconditional_2 = pair(guided + middle * (x - unconditional) / sigma, middle)
            pushed = x + guided - (unconditional if uncond_from == 'start' else unconditional_2)
            x = down / sigma * pushed + (1 - down / sigma) * second
        else:
            x = guided
        x = x + up * next(draws) if up else x
    close(run_pair('dpmpp_2s_ancestral_cfg_pp', eta=eta, uncond_from=uncond_from), x)


@pytest.mark.parametrize('eta', [None, 0.5, 1.0])
def test_res_multistep(eta):
    """The weights by quadrature of e^{-(h - t)} times the two Lagrange polynomials, the value
    before being h_before away.
    """
    x, draws, before, h_before = X, iter(DRAWS), None, None
    for sigma, sigma_next in STEPS:
        down, up = split(sigma, sigma_next, eta or 0.0)
        guided, unconditional = pair(x, sigma)
        h = math.log(sigma / down) if down else math.inf
        if before is None or not down:
            x = guided + down * (x - unconditional) / sigma
        else:
            now = quad(lambda t, h, r: math.exp(t - h) * (1 + t / r), 0, h, (h, h_before))[0]
            then = quad(lambda t, h, r: math.exp(t - h) * -t / r, 0, h, (h, h_before))[0]
            x = math.exp(-h) * (x + guided - unconditional) + now * unconditional + then * before
        before, h_before = unconditional, h
        x = x + up * next(draws) if up else x
    close(
        run_pair('res_multistep_cfg_pp')
        if eta is None
        else run_pair('res_multistep_ancestral_cfg_pp', eta=eta),
        x,
    )


@pytest.mark.parametrize('gamma', [1.3, 2.0])
def test_gradient_estimation(gamma):
    x, before = X, None
    for sigma, sigma_next in STEPS:
        guided, unconditional = pair(x, sigma)
        slope = (x - unconditional) / sigma
        change = 0.0 if before is None or not sigma_next else slope - before
        x, before = guided + sigma_next * slope + (gamma - 1) * (sigma_next - sigma) * change, slope
    close(run_pair('gradient_estimation_cfg_pp', ge_gamma=gamma), x)


@pytest.mark.parametrize(('ud', 'ab'), [(0.1, 0.25), (0.0, 1.0), (0.4, 0.0)])
def test_ud10_ab(ud, ab):
    x, past = X, None
    for sigma, sigma_next in STEPS:
        guided, unconditional = pair(x, sigma)
        h, slope = sigma_next - sigma, (x - unconditional) / sigma
        ahead = slope if past is None else slope + ud * h / (sigma - past[0]) * (slope - past[1])
        whole = (guided + sigma_next * ahead - x) / h
        share = 0.0 if past is None else h / (2 * (sigma - past[0]))
        multistep = whole if past is None else whole + share * (whole - past[2])
        end = x + h * ((1 - ab) * whole + ab * multistep)
        if sigma_next == 0:  # the line through the last two estimates, at 0
            end = guided + (guided - past[3]) * (0 - sigma) / (sigma - past[0])
        x, past = end, (sigma, slope, whole, guided)
    close(run_pair('cfgpp_ud10_ab', ud=ud, ab=ab), x)


def test_ud10_ab_without_its_additions_is_euler_and_all_multistep_is_lms():
    above = SIGMAS[:-1]
    plain = functools.partial(
        sampling.sample_cfgpp_ud10_ab, Pair(MODEL), X, above, disable=True, ud=0.0
    )
    close(plain(ab=0.0), sampling.sample_euler(MODEL, X, above, disable=True))
    close(plain(ab=1.0), sampling.sample_lms(MODEL, X, above, order=2, disable=True))
    one = sampling.sample_cfgpp_ud10_ab(Pair(MODEL), X, [5.0, 0.0], disable=True)
    close(one, MODEL(X, torch.full([8], 5.0, dtype=torch.float64)))
