"""Wrong arguments of public functions: one sentence of our own for each, and no error of torch or of another library."""
import math
import traceback
from pathlib import Path

import pytest
import torch

import k_diffusion as K

PACKAGE = str(Path(K.__file__).parent)
S = K.sampling
X = torch.randn(2, 3, 4, 4)
LEVELS = [10., 3., 1., 0.]


def D(x, sigma, **cond):
    return x / (1 + sigma.view(-1, *[1] * (x.ndim - 1)) ** 2)


def sample(name, *where, **options):
    return lambda: S.SAMPLERS[name].function(D, X, *where or (LEVELS,), disable=True, **options)


SAMPLING = {
    'model is a number': lambda: S.sample_euler(3, X, LEVELS),
    'model is a string': lambda: S.sample_dpmpp_2m('unet', X, LEVELS),
    'model is None': lambda: S.sample_dpm_fast(None, X, 0.1, 10., 5),
    'x is a numpy array': lambda: S.sample_euler(D, X.numpy(), LEVELS),
    'x is whole numbers': lambda: S.sample_euler(D, X.long(), LEVELS),
    'sigmas is None': sample('euler', None),
    'sigmas is a number': sample('euler', 10),
    'sigmas rises': sample('euler', [1., 2.]),
    'sigmas is complex': sample('euler', torch.tensor([2 + 1j, 1])),
    's_churn is nan': sample('euler', s_churn=math.nan),
    's_churn is negative': sample('heun', s_churn=-1.),
    's_churn is a string': sample('dpm_2', s_churn='10'),
    's_tmin is nan': sample('euler', s_tmin=math.nan),
    's_tmax is None': sample('heun', s_tmax=None),
    's_noise is infinite': sample('euler_ancestral', s_noise=math.inf),
    's_noise is a list': sample('dpmpp_sde', s_noise=[1., 1.]),
    'eta is nan': sample('euler_ancestral', eta=math.nan),
    'eta is negative': sample('dpmpp_2m_sde', eta=-0.5),
    'eta is a string': sample('dpm_2_ancestral', eta='full'),
    'eta is per item': sample('euler_ancestral', eta=torch.ones(2)),
    'extra_args is a tensor': sample('euler', extra_args=X),
    'extra_args is a list': sample('dpmpp_2m', extra_args=['c', 3]),
    'callback is a list': sample('euler', callback=[print]),
    'noise_sampler is a tensor': sample('euler_ancestral', noise_sampler=X),
    'noise_sampler gives another shape': sample('euler_ancestral', noise_sampler=lambda s, t: torch.randn(5, 3, 4, 4)),
    'noise_sampler gives a number': sample('dpmpp_sde', noise_sampler=lambda s, t: 0.),
    'noise_sampler beside a seed': sample('euler_ancestral', noise_sampler=lambda s, t: X, seed=1),
    'generator is a seed': sample('euler_ancestral', generator=3),
    'generator is a list of seeds': sample('euler_ancestral', generator=[3, 4]),
    'seed is a fraction': sample('euler_ancestral', seed=1.5),
    'seed is a string': sample('euler_ancestral', seed='1'),
    'seeds are too few': sample('euler_ancestral', seed=[1]),
    'order is 0': sample('lms', order=0),
    'order is a fraction': sample('lms', order=2.5),
    'solver_type is unknown': sample('dpmpp_2m_sde', solver_type='midpiont'),
    'r is nan': sample('dpmpp_sde', r=math.nan),
    'tau is negative': sample('sa_solver', tau=-1.),
    'tau gives a string': sample('sa_solver', tau=lambda sigma: 'high'),
    'interval has one end': sample('sa_solver', interval=(0.2,)),
    'spectrum is a tensor': sample('sei', spectrum=X),
    'std is negative': sample('sei', std=-1.),
    'clock is one function': sample('tcd', clock=math.log),
    'option is unknown': sample('euler', s_chrun=1.),
    'sigma_min is a string': sample('dpm_fast', '0.1', 10., 5),
    'sigma_min is above sigma_max': sample('dpm_adaptive', 10., 1.),
    'n is 0': sample('dpm_fast', 0.1, 10., 0),
    'rtol is a string': sample('dpm_adaptive', 0.1, 10., rtol='low'),
    'max_steps is 0': sample('dpm_adaptive', 0.1, 10., max_steps=0),
    'h_init is nan': sample('dpm_adaptive', 0.1, 10., h_init=math.nan),
    'sampler is unknown': lambda: next(S.iterate('eular', D, X, LEVELS)),
    'to_d at 0': lambda: S.to_d(X, 0., X),
    'ancestral step upwards': lambda: S.get_ancestral_step(1., 2.),
    'ancestral step with nan': lambda: S.get_ancestral_step(2., 1., math.nan),
    'schedule of no steps': lambda: S.get_sigmas_karras(0, 0.1, 10.),
    'schedule of a fraction': lambda: S.get_sigmas_exponential(2.5, 0.1, 10.),
    'schedule from 0': lambda: S.get_sigmas_karras(5, 0., 10.),
    'schedule with nan': lambda: S.get_sigmas_polyexponential(5, 0.1, 10., math.nan),
    'path of a string': lambda: S.BrownianTreeNoiseSampler(X, 'low', 10.),
    'spectrum of a list': lambda: S.Spectrum.of([1., 2.]),
    'spectrum of one item': lambda: S.Spectrum.of(X[:1]),
    'likelihood of whole numbers': lambda: S.log_likelihood(D, X.long(), 0.1, 10.),
    'likelihood of no model': lambda: S.log_likelihood('net', X, 0.1, 10.),
    'likelihood over no range': lambda: S.log_likelihood(D, X, 10., 0.1),
    'likelihood with no probes': lambda: S.log_likelihood(D, X, 0.1, 10., probes=0),
    'likelihood with half a step': lambda: S.log_likelihood(D, X, 0.1, 10., steps=0.5),
    'likelihood with a mean of another shape': lambda: S.log_likelihood(D, X, 0.1, 10., steps=2, data_mean=torch.zeros(7)),
    'likelihood with a negative deviation': lambda: S.log_likelihood(D, X, 0.1, 10., steps=2, data_std=-1.),
    'invert with no steps': lambda: S.invert(D, X, 0.1, 10., steps=0),
}


def check_message(mistake):
    """The error is one sentence, raised by our own code, with what is wanted or what to do."""
    with pytest.raises((ValueError, TypeError)) as caught:
        mistake()
    message, frames = str(caught.value), traceback.extract_tb(caught.value.__traceback__)
    assert frames[-1].filename.startswith(PACKAGE), f'raised in {frames[-1].filename}: {message}'
    assert '\n' not in message and 20 < len(message) < 500 and ' object at 0x' not in message
    assert any(word in message for word in ('must', 'give', 'did you mean', 'needs', 'called with', 'check', 'so sort')), message


@pytest.mark.parametrize('mistake', SAMPLING.values(), ids=SAMPLING)
def test_a_mistake_in_sampling(mistake):
    check_message(mistake)
