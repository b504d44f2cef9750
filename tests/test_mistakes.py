"""Wrong arguments of public functions: one sentence of our own for each, and no error of torch
or of another library.
"""

import math
import traceback
import types
from pathlib import Path

import pytest
import torch

import k_diffusion as K

PACKAGE = str(Path(K.__file__).parent)
S = K.sampling
X = torch.randn(2, 3, 4, 4)
LEVELS = [10.0, 3.0, 1.0, 0.0]


def D(x, sigma, **cond):
    return x / (1 + sigma.view(-1, *[1] * (x.ndim - 1)) ** 2)


def sample(name, *where, **options):
    return lambda: S.SAMPLERS[name].function(D, X, *where or (LEVELS,), disable=True, **options)


SAMPLING = {
    'model is a number': lambda: S.sample_euler(3, X, LEVELS),
    'model is a string': lambda: S.sample_dpmpp_2m('unet', X, LEVELS),
    'model is None': lambda: S.sample_dpm_fast(None, X, 0.1, 10.0, 5),
    'x is a numpy array': lambda: S.sample_euler(D, X.numpy(), LEVELS),
    'x is whole numbers': lambda: S.sample_euler(D, X.long(), LEVELS),
    'sigmas is None': sample('euler', None),
    'sigmas is a number': sample('euler', 10),
    'sigmas rises': sample('euler', [1.0, 2.0]),
    'sigmas is complex': sample('euler', torch.tensor([2 + 1j, 1])),
    's_churn is nan': sample('euler', s_churn=math.nan),
    's_churn is negative': sample('heun', s_churn=-1.0),
    's_churn is a string': sample('dpm_2', s_churn='10'),
    's_tmin is nan': sample('euler', s_tmin=math.nan),
    's_tmax is None': sample('heun', s_tmax=None),
    's_noise is infinite': sample('euler_ancestral', s_noise=math.inf),
    's_noise is a list': sample('dpmpp_sde', s_noise=[1.0, 1.0]),
    'eta is nan': sample('euler_ancestral', eta=math.nan),
    'eta is negative': sample('dpmpp_2m_sde', eta=-0.5),
    'eta is a string': sample('dpm_2_ancestral', eta='full'),
    'eta is per item': sample('euler_ancestral', eta=torch.ones(2)),
    'extra_args is a tensor': sample('euler', extra_args=X),
    'extra_args is a list': sample('dpmpp_2m', extra_args=['c', 3]),
    'callback is a list': sample('euler', callback=[print]),
    'noise_sampler is a tensor': sample('euler_ancestral', noise_sampler=X),
    'noise_sampler gives another shape': sample(
        'euler_ancestral', noise_sampler=lambda s, t: torch.randn(5, 3, 4, 4)
    ),
    'noise_sampler gives a number': sample('dpmpp_sde', noise_sampler=lambda s, t: 0.0),
    'noise_sampler beside a seed': sample('euler_ancestral', noise_sampler=lambda s, t: X, seed=1),
    'generator is a seed': sample('euler_ancestral', generator=3),
    'generator is a list of seeds': sample('euler_ancestral', generator=[3, 4]),
    'seed is a fraction': sample('euler_ancestral', seed=1.5),
    'seed is a string': sample('euler_ancestral', seed='1'),
    'seeds are too few': sample('euler_ancestral', seed=[1]),
    'order is 0': sample('lms', order=0),
    'order is a fraction': sample('lms', order=2.5),
    'order is a truth value': sample('lms', order=True),
    'eta is a truth value': sample('euler_ancestral', eta=True),
    'solver_type is unknown': sample('dpmpp_2m_sde', solver_type='midpiont'),
    'r is nan': sample('dpmpp_sde', r=math.nan),
    'tau is negative': sample('sa_solver', tau=-1.0),
    'tau gives a string': sample('sa_solver', tau=lambda sigma: 'high'),
    'interval has one end': sample('sa_solver', interval=(0.2,)),
    'spectrum is a tensor': sample('sei', spectrum=X),
    'std is negative': sample('sei', std=-1.0),
    'clock is one function': sample('tcd', clock=math.log),
    'option is unknown': sample('euler', s_chrun=1.0),
    'sigma_min is a string': sample('dpm_fast', '0.1', 10.0, 5),
    'sigma_min is above sigma_max': sample('dpm_adaptive', 10.0, 1.0),
    'n is 0': sample('dpm_fast', 0.1, 10.0, 0),
    'rtol is a string': sample('dpm_adaptive', 0.1, 10.0, rtol='low'),
    'max_steps is 0': sample('dpm_adaptive', 0.1, 10.0, max_steps=0),
    'h_init is nan': sample('dpm_adaptive', 0.1, 10.0, h_init=math.nan),
    'sampler is unknown': lambda: next(S.iterate('eular', D, X, LEVELS)),
    'to_d at 0': lambda: S.to_d(X, 0.0, X),
    'ancestral step upwards': lambda: S.get_ancestral_step(1.0, 2.0),
    'ancestral step with nan': lambda: S.get_ancestral_step(2.0, 1.0, math.nan),
    'schedule of no steps': lambda: S.get_sigmas_karras(0, 0.1, 10.0),
    'schedule of a fraction': lambda: S.get_sigmas_exponential(2.5, 0.1, 10.0),
    'schedule from 0': lambda: S.get_sigmas_karras(5, 0.0, 10.0),
    'schedule with nan': lambda: S.get_sigmas_polyexponential(5, 0.1, 10.0, math.nan),
    'path of a string': lambda: S.BrownianTreeNoiseSampler(X, 'low', 10.0),
    'spectrum of a list': lambda: S.Spectrum.of([1.0, 2.0]),
    'spectrum of one item': lambda: S.Spectrum.of(X[:1]),
    'likelihood of whole numbers': lambda: S.log_likelihood(D, X.long(), 0.1, 10.0),
    'likelihood of no model': lambda: S.log_likelihood('net', X, 0.1, 10.0),
    'likelihood over no range': lambda: S.log_likelihood(D, X, 10.0, 0.1),
    'likelihood with no probes': lambda: S.log_likelihood(D, X, 0.1, 10.0, probes=0),
    'likelihood with half a step': lambda: S.log_likelihood(D, X, 0.1, 10.0, steps=0.5),
    'likelihood with a mean of another shape': lambda: S.log_likelihood(
        D, X, 0.1, 10.0, steps=2, data_mean=torch.zeros(7)
    ),
    'likelihood with a negative deviation': lambda: S.log_likelihood(
        D, X, 0.1, 10.0, steps=2, data_std=-1.0
    ),
    'invert with no steps': lambda: S.invert(D, X, 0.1, 10.0, steps=0),
}


GUIDED = {'c': torch.tensor([1, 2])}


def guided(wrap, x=X, sigma=None, **cond):
    """Make a guided denoiser and ask it once."""
    sigma = torch.ones(len(X)) if sigma is None else sigma
    return lambda: wrap()(x, sigma, **(cond or GUIDED))


G = K.guidance
DIRAC = lambda x: x[:, :, :2]
GUIDANCE = {
    'cfg of a string': lambda: G.classifier_free('unet', {'c': 0}, 2.0),
    'null is a number': lambda: G.classifier_free(D, 0, 2.0),
    'null names another condition': guided(lambda: G.classifier_free(D, {'label': 0}, 2.0)),
    'null does not fit the dtype': guided(
        lambda: G.classifier_free(D, {'c': -1}, 2.0), c=torch.tensor([1, 2], dtype=torch.uint8)
    ),
    'null has another shape': guided(
        lambda: G.classifier_free(D, {'c': torch.zeros(3, 7)}, 2.0), c=torch.zeros(2, 4, 5)
    ),
    'scale is nan': lambda: G.classifier_free(D, {'c': 0}, math.nan),
    'scale is a string': lambda: G.classifier_free(D, {'c': 0}, '7'),
    'scale is None': lambda: G.classifier_free(D, {'c': 0}, None),
    'scale is per item': lambda: G.classifier_free(D, {'c': 0}, torch.tensor([1.0, 2.0])),
    'interval has one level': lambda: G.classifier_free(D, {'c': 0}, 2.0, (0.3,)),
    'interval is reversed': lambda: G.classifier_free(D, {'c': 0}, 2.0, (3.0, 0.3)),
    'interval is a number': lambda: G.classifier_free(D, {'c': 0}, 2.0, 0.3),
    'rescale is above 1': lambda: G.classifier_free(D, {'c': 0}, 2.0, rescale=7.0),
    'rescale is a string': lambda: G.classifier_free(D, {'c': 0}, 2.0, rescale='0.7'),
    'apg of no denoiser': lambda: G.adaptive_projected(None, {'c': 0}, 2.0),
    'apg with a negative norm': lambda: G.adaptive_projected(D, {'c': 0}, 2.0, norm=-1.0),
    'apg with nan momentum': lambda: G.adaptive_projected(D, {'c': 0}, 2.0, momentum=math.nan),
    'cfg_zero_star of a number as null': lambda: G.cfg_zero_star(D, 0, 2.0),
    'cfg_zero_star with zero_above text': lambda: G.cfg_zero_star(
        D, {'c': 0}, 2.0, zero_above='all'
    ),
    'tangential_damping of no denoiser': lambda: G.tangential_damping(None, {'c': 0}, 2.0),
    'frequency_decoupled with one number': lambda: G.frequency_decoupled(D, {'c': 0}, 2.0),
    'frequency_decoupled with a string': lambda: G.frequency_decoupled(D, {'c': 0}, '10, 5'),
    'epsilon_scaling by nothing': lambda: G.epsilon_scaling(D, 0.0),
    'epsilon_scaling of no denoiser': lambda: G.epsilon_scaling('net', 1.1),
    'detail of the whole level': lambda: G.detail(D, 1.0),
    'detail in half an interval': lambda: G.detail(D, 0.1, (0.3,)),
    'first steps of a number': lambda: G.interval_of_first_steps(3.0, 0.5),
    'first steps of a share above 1': lambda: G.interval_of_first_steps([1.0, 0.0], 60.0),
    'autoguidance by a string': lambda: G.autoguidance(D, 'worse', 2.0),
    'autoguidance with an infinite scale': lambda: G.autoguidance(D, D, math.inf),
    'composed of nothing': lambda: G.composed(D, {'c': 0}, [], []),
    'composed with a weight missing': lambda: G.composed(D, {'c': 0}, [{'c': 1}, {'c': 2}], [1.0]),
    'composed of other conditions': lambda: G.composed(D, {'c': 0}, [{'label': 1}], [1.0]),
    'composed of a number': lambda: G.composed(D, {'c': 0}, [3], [1.0]),
    'inpainting a numpy image': lambda: G.inpainting(D, X[0].numpy(), torch.ones(1, 4, 4)),
    'inpainting with a mask of text': lambda: G.inpainting(D, X[0], 'a'),
    'inpainting with no mask': lambda: G.inpainting(D, X[0], None),
    'inpainting with a complex mask': lambda: G.inpainting(D, X[0], torch.ones(1, 4, 4) + 0j),
    'inpainting with a mask of 7': lambda: G.inpainting(D, X[0], torch.full((1, 4, 4), 7)),
    'inpainting with a mask of another size': lambda: G.inpainting(D, X[0], torch.ones(1, 5, 5)),
    'inpainting of three images for two': guided(
        lambda: G.inpainting(D, torch.randn(3, 3, 4, 4), torch.ones(1, 4, 4))
    ),
    'inpainting of another size': guided(
        lambda: G.inpainting(D, torch.randn(3, 8, 8), torch.ones(1, 8, 8))
    ),
    'inpainting with spread 0': lambda: G.inpainting(D, X[0], torch.ones(1, 4, 4), spread=0.0),
    'pseudo_inverse by a matrix': lambda: G.pseudo_inverse(D, torch.eye(4), X),
    'pseudo_inverse of another shape': guided(
        lambda: G.pseudo_inverse(D, DIRAC, torch.zeros(2, 3, 3, 4))
    ),
    'pseudo_inverse of a number': guided(lambda: G.pseudo_inverse(D, DIRAC, 3.0)),
    'pseudo_inverse without iterations': lambda: G.pseudo_inverse(D, DIRAC, X, iterations=0),
    'posterior_sampling with negative noise': lambda: G.posterior_sampling(D, DIRAC, X, noise=-1.0),
    'posterior_sampling of another shape': guided(
        lambda: G.posterior_sampling(D, DIRAC, torch.zeros(2, 3, 3, 4))
    ),
    'loss_guidance by a number': lambda: G.loss_guidance(D, 3.0, 1.0),
    'loss_guidance by one loss for all': guided(
        lambda: G.loss_guidance(D, lambda x, sigma, **cond: x.square().mean(), 1.0)
    ),
    'loss_guidance by a loss without a gradient': guided(
        lambda: G.loss_guidance(D, lambda x, sigma, **cond: torch.zeros(2), 1.0)
    ),
    'loss_guidance by a loss that is a number': guided(
        lambda: G.loss_guidance(D, lambda x, sigma, **cond: 1.0, 1.0)
    ),
    'classifier_guidance without the label': guided(
        lambda: G.classifier_guidance(D, lambda x, sigma, y: x.sum((1, 2, 3)))
    ),
    'thresholds reversed': lambda: G.static_thresholding(D, 1.0, -1.0),
    'threshold is nan': lambda: G.static_thresholding(D, math.nan, 1.0),
    'quantile is 2': lambda: G.dynamic_thresholding(D, 2.0),
    'quantile is a string': lambda: G.dynamic_thresholding(D, 'most'),
    'thresholding no denoiser': lambda: G.static_thresholding(3),
    'clip towards a vector': lambda: G.clip_guidance(D, lambda x: x, torch.zeros(3)),
    'partial noise of another shape': lambda: G.partial_noise(
        X[0], torch.tensor([3.0, 1.0, 0.0]), torch.zeros(7)
    ),
    'partial noise from no level': lambda: G.partial_noise(X[0], torch.tensor([]), X),
    'blended noise of nothing': lambda: G.blended_noise([3], [4], 2.0),
    'time travel of no sampler': lambda: G.time_travel('euler'),
    'time travel 0 times': lambda: G.time_travel(S.sample_euler, 0),
    'views of a number': lambda: G.views(3, 32, torch.ones(2)),
    'spherical distance of unlike widths': lambda: G.spherical_distance(
        torch.zeros(2, 3), torch.zeros(2, 4)
    ),
    'the batch has another length than sigma': guided(
        lambda: G.classifier_free(D, {'c': 0}, 2.0), sigma=torch.ones(3)
    ),
}

E_ = K.external
NET = torch.nn.Identity()
BETAS = torch.linspace(0.9, 0.1, 10)
EXTERNAL = {
    'VDenoiser of a string': lambda: E_.VDenoiser('net'),
    'VDenoiser of a class': lambda: E_.VDenoiser(torch.nn.Identity),
    'wrap of a number': lambda: E_.wrap(3),
    'wrap of an unknown network': lambda: E_.wrap(torch.nn.Linear(3, 3)),
    'wrap of None': lambda: E_.wrap(None),
    'alphas is a list of words': lambda: E_.DiscreteEpsDDPMDenoiser(NET, ['a', 'b'], False),
    'alphas is empty': lambda: E_.DiscreteEpsDDPMDenoiser(NET, torch.tensor([]), False),
    'alphas above 1': lambda: E_.DiscreteEpsDDPMDenoiser(NET, torch.tensor([2.0, 1.5]), False),
    'alphas rise': lambda: E_.DiscreteVDDPMDenoiser(NET, BETAS.flip(0), False),
    'alphas is a table': lambda: E_.DiscreteX0DDPMDenoiser(NET, torch.ones(2, 2) * 0.5, False),
    'sigmas fall': lambda: E_.DiscreteSchedule(torch.tensor([3.0, 2.0, 1.0]), False),
    'sigmas hold 0': lambda: E_.DiscreteSchedule(torch.tensor([0.0, 1.0, 2.0]), False),
    'sigmas hold nan': lambda: E_.DiscreteSchedule(torch.tensor([math.nan, 1.0, 2.0]), False),
    'get_sigmas of no steps': lambda: E_.DiscreteSchedule(
        torch.tensor([1.0, 2.0, 3.0]), False
    ).get_sigmas(0),
    'alphas hold nan': lambda: E_.DiscreteEpsDDPMDenoiser(
        NET, torch.tensor([0.9, math.nan]), False
    ),
    'a string for a network with a table': lambda: E_.DiscreteVDDPMDenoiser('net', BETAS, False),
    'OpenAI with alphas of words': lambda: E_.OpenAIDenoiser(
        NET, types.SimpleNamespace(alphas_cumprod='abc')
    ),
    'OpenAI without a diffusion': lambda: E_.OpenAIDenoiser(NET, None),
    'CompVis without a table': lambda: E_.CompVisDenoiser(NET),
    'flow of a number': lambda: E_.FlowDenoiser(3),
    'EDM of a number': lambda: E_.EDMDenoiser(3),
    'scheduler_sigmas of a list': lambda: E_.scheduler_sigmas([1.0, 2.0]),
    'from_diffusers of a missing folder': lambda: E_.from_diffusers('/nowhere/at/all'),
    'from_diffusers of a plain network': lambda: E_.from_diffusers(NET),
    'from_diffusers of a class': lambda: E_.from_diffusers(torch.nn.Identity),
    'load_published of a missing file': lambda: E_.load_published('/nowhere/net.pkl'),
    'load_published of a number': lambda: E_.load_published(3),
    'load_published of a folder': lambda: E_.load_published('/'),
    'load_published of a text': lambda: E_.load_published(__file__),
    'openai_classifier of no diffusion': lambda: E_.openai_classifier(NET, None),
}

C = K.sample
TOP = {
    'sample of a string': lambda: C('unet', [2, 3, 4, 4], 3),
    'sample of a shape of words': lambda: C(D, ['a', 3], 3, sigma_min=0.1, sigma_max=10.0),
    'sample with no steps': lambda: C(D, [2, 3, 4, 4], 0),
    'sample with an unknown sampler': lambda: C(D, [2, 3, 4, 4], 3, 'eular'),
    'sample with guidance and no null': lambda: C(
        D, [2, 3, 4, 4], 3, cond={'c': torch.ones(2)}, guidance=2.0
    ),
    'sample with a cond of another length': lambda: C(D, [2, 3, 4, 4], 3, cond='a prompt'),
    'sample with a batch size of 0': lambda: C(D, [2, 3, 4, 4], 3, batch_size=0),
}


def check_message(mistake):
    """The error is one sentence, raised by our own code, with what is wanted or what to do."""
    with pytest.raises((ValueError, TypeError, OSError)) as caught:
        mistake()
    message, frames = str(caught.value), traceback.extract_tb(caught.value.__traceback__)
    assert frames[-1].filename.startswith(PACKAGE), f'raised in {frames[-1].filename}: {message}'
    assert '\n' not in message and 20 < len(message) < 500 and ' object at 0x' not in message
    assert any(
        word in message
        for word in ('must', 'give', 'did you mean', 'needs', 'called with', 'check', 'so sort')
    ), message


MISTAKES = {
    f'{part}: {name}': mistake
    for part, table in {
        'sampling': SAMPLING,
        'guidance': GUIDANCE,
        'external': EXTERNAL,
        'sample': TOP,
    }.items()
    for name, mistake in table.items()
}


@pytest.mark.parametrize('mistake', MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_sentence_of_our_own(mistake):
    check_message(mistake)
