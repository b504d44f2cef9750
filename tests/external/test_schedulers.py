"""Every scheduler class of the installed diffusers: its levels and its steps, or a refusal by
name.
"""

import inspect
import itertools
import math

import numpy as np
import pytest
import torch
from stable_ids import stable_id
from torch import nn

import k_diffusion as K

diffusers = pytest.importorskip('diffusers', reason='diffusers is in the extra "diffusers"')

STEPS = 8
BETAS = {'beta_start': 0.00085, 'beta_end': 0.012, 'beta_schedule': 'scaled_linear'}
FLOW = {'use_flow_sigmas': True, 'prediction_type': 'flow_prediction'}
SOLVERS = {
    'DPMSolverMultistepScheduler': {'solver_order': 1},
    'DPMSolverSinglestepScheduler': {'solver_order': 1},
    'UniPCMultistepScheduler': {'solver_order': 1, 'disable_corrector': list(range(20))},
    'DEISMultistepScheduler': {'solver_order': 1},
    'SASolverScheduler': {'predictor_order': 1, 'corrector_order': 1, 'tau_func': lambda t: 0},
}
#: Classes whose levels are read, which the levels' test covers.
EXPECTED_ERRORS = {
    'EulerDiscreteScheduler',
    'EulerAncestralDiscreteScheduler',
    'HeunDiscreteScheduler',
    'KDPM2DiscreteScheduler',
    'KDPM2AncestralDiscreteScheduler',
    'LMSDiscreteScheduler',
    'EDMEulerScheduler',
    'EDMDPMSolverMultistepScheduler',
    'CMStochasticIterativeScheduler',
    'DDIMScheduler',
    'DDIMParallelScheduler',
    'DDPMScheduler',
    'DDPMParallelScheduler',
    'LCMScheduler',
    'TCDScheduler',
    'PNDMScheduler',
    'CogVideoXDDIMScheduler',
    'CogVideoXDPMScheduler',
    'UnCLIPScheduler',
    'FlowMatchEulerDiscreteScheduler',
    'FlowMatchHeunDiscreteScheduler',
    'FlowMatchLCMScheduler',
    'LTXEulerAncestralRFScheduler',
    'DPMSolverSDEScheduler',
    'CosineDPMSolverMultistepScheduler',
    *SOLVERS,
}


def classes():
    """The scheduler classes of the installed diffusers that can be made (others lack a package)."""
    members = (
        getattr(diffusers, name)
        for name in dir(diffusers)
        if name.endswith('Scheduler') and 'Flax' not in name
    )
    return {
        thing.__name__: thing
        for thing in members
        if isinstance(thing, type)
        and '.dummy_' not in thing.__module__
        and issubclass(thing, diffusers.SchedulerMixin)
    }


def make(name, n=STEPS, mu=None, **options):
    kind = classes()[name]
    takes = inspect.signature(kind.__init__).parameters
    betas = BETAS if 'beta_start' in takes else {}
    defaults = {'clip_sample': False, 'skip_prk_steps': True, 'lower_order_final': True}
    scheduler = kind(
        **{
            **betas,
            **{k: v for k, v in defaults.items() if k in takes},
            **SOLVERS.get(name, {}),
            **options,
        }
    )
    scheduler.set_timesteps(n, **({} if mu is None else {'mu': mu}))
    return scheduler


def levels_of(scheduler):
    """The level of each timestep, as the scheduler adds noise there: the noise's share over the
    data's.
    """
    data, noise = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    if isinstance(scheduler, diffusers.LTXEulerAncestralRFScheduler):  # it adds none itself
        scheduler = make('FlowMatchEulerDiscreteScheduler')
    add = (
        scheduler.scale_noise
        if hasattr(scheduler, 'scale_noise')
        else lambda x, t, e: scheduler.add_noise(x, e, t)
    )
    levels = []
    for t in scheduler.timesteps:
        t, scheduler._step_index = t.reshape(1), None
        signal, spread = add(data, t, noise).item(), add(noise, t, data).item()
        levels.append(math.inf if signal == 0 else spread / signal)
    return [level for level, _ in itertools.groupby(levels)]


class Network(nn.Module):
    """An answer that hangs on x alone, so that a scheduler's rounding of the time does not
    count.
    """

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(
            torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) / 2
        )
        self.times = []

    def forward(self, sample, timestep, return_dict=True):
        self.times.append(timestep)
        return (torch.tanh(sample @ self.weight) + 0.3,)


@torch.no_grad()
def their_walk(scheduler, network, x):
    for t in scheduler.timesteps:
        if isinstance(scheduler, diffusers.SASolverScheduler):
            scheduler.last_sample = None  # without its corrector it is Euler's step, too
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, 'scale_model_input') else x
        x = scheduler.step(network(scaled, t)[0], t, x, return_dict=False)[0]
    return x


@torch.no_grad()
def largest_difference(scheduler, frame):
    """Between their walk and our Euler, in the largest value of theirs; frame: (x here) -> (x
    there), by level.
    """
    network, noise = (
        Network(),
        torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3)),
    )
    sigmas = K.external.scheduler_sigmas(scheduler, sigma_max=1e7)
    denoiser = K.external.from_diffusers(network, scheduler)
    ours = K.sampling.sample_euler(denoiser, noise * sigmas[0], sigmas, disable=True) * frame(
        sigmas[-1]
    )
    theirs = their_walk(scheduler, network, noise * sigmas[0] * frame(sigmas[0]))
    assert theirs.std() > 0.01
    return (ours - theirs).abs().max() / theirs.abs().max()


def exploding(sigma):
    return 1.0


def preserving(sigma):
    return (1 + sigma**2) ** -0.5


def flowing(sigma):
    return 1 / (1 + sigma)


# Levels


@pytest.mark.parametrize('name', sorted(classes()))
def test_every_scheduler_gives_its_levels_or_is_refused_by_name(name):
    if name not in EXPECTED_ERRORS:
        scheduler = object.__new__(classes()[name])
        scheduler._internal_dict = diffusers.configuration_utils.FrozenDict({})
        with pytest.raises(ValueError, match=f'got {name}. Known are Euler'):
            K.external.scheduler_sigmas(scheduler)
        return
    scheduler = make(name)
    sigmas = K.external.scheduler_sigmas(scheduler, sigma_max=1e7)
    expected = torch.tensor(levels_of(scheduler), dtype=torch.float64).clamp(max=1e7)
    first_of_the_table = name in ('PNDMScheduler', 'DEISMultistepScheduler', 'SASolverScheduler')
    assert sigmas.dtype == torch.float64 and (sigmas[:-1].diff() < 0).all()
    assert sigmas[-1].item() == pytest.approx(
        0.002 if name.startswith('CM') else 0.02917 * first_of_the_table, rel=1e-3
    )
    torch.testing.assert_close(sigmas[:-1], expected, rtol=1e-5, atol=0)


def test_of_the_solvers_all_have_flow_sigmas():
    takes = {
        name
        for name, kind in classes().items()
        if 'use_flow_sigmas' in inspect.signature(kind.__init__).parameters
    }
    assert takes - set(SOLVERS) == {
        'DPMSolverMultistepInverseScheduler',
        'HeliosScheduler',
        'HeliosDMDScheduler',
    }


FLOWS = [
    {},
    {'flow_shift': 3.0},
    {'flow_shift': 5.0, 'final_sigmas_type': 'sigma_min'},
    {'use_dynamic_shifting': True, 'mu': 0.9},
    {'shift_terminal': 0.1},
]


@pytest.mark.parametrize(
    'name, options',
    [
        (name, options)
        for name in SOLVERS
        for options in FLOWS
        if options.keys() - {'mu'} <= inspect.signature(classes()[name].__init__).parameters.keys()
    ],
    ids=str,
)
def test_flow_times_become_levels(name, options):
    scheduler = make(name, **FLOW, **options)
    times = scheduler.sigmas.double()
    sigmas = K.external.scheduler_sigmas(scheduler, sigma_max=1e7)
    torch.testing.assert_close(sigmas / (1 + sigmas), times, rtol=1e-5, atol=0)
    if name != 'SASolverScheduler':  # which adds the noise of its table also to a flow
        expected = torch.tensor(levels_of(scheduler), dtype=torch.float64)
        torch.testing.assert_close(sigmas[:-1], expected, rtol=1e-3, atol=0)
    assert largest_difference(scheduler, flowing) < 1e-4


@pytest.mark.parametrize('prediction', ['flow_prediction', 'epsilon', 'v_prediction', 'sample'])
@pytest.mark.parametrize('name', SOLVERS)
def test_every_prediction_under_a_flow(name, prediction):
    scheduler = make(name, use_flow_sigmas=True, prediction_type=prediction, flow_shift=2.0)
    assert largest_difference(scheduler, flowing) < 1e-4


@pytest.mark.parametrize(
    'options',
    [
        {'shift': 3.0},
        {'use_dynamic_shifting': True, 'mu': 0.7},
        {'shift_terminal': 0.1},
        {'use_karras_sigmas': True},
        {'use_exponential_sigmas': True},
        {'num_train_timesteps': 500},
    ],
    ids=str,
)
def test_flow_matching(options):
    assert largest_difference(make('FlowMatchEulerDiscreteScheduler', **options), flowing) < 1e-5


@pytest.mark.parametrize('kind', ['exponential', 'linear'])
def test_a_flow_knows_its_shift_by_tokens(kind):
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    scheduler = classes()['FlowMatchEulerDiscreteScheduler'](
        use_dynamic_shifting=True, base_shift=0.4, max_shift=1.3, time_shift_type=kind
    )
    scheduler.set_timesteps(
        sigmas=[1 - i / 8 for i in range(8)], mu=calculate_shift(900, base_shift=0.4, max_shift=1.3)
    )
    denoiser = K.external.from_diffusers(Network(), scheduler)
    times = denoiser.sigma_to_t(denoiser.get_sigmas(8, tokens=900))
    torch.testing.assert_close(times[1:], scheduler.sigmas[1:], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    'spacing', [{}, {'use_karras_sigmas': True}, {'use_exponential_sigmas': True}]
)
@pytest.mark.parametrize('prediction', ['epsilon', 'v_prediction', 'sample'])
@pytest.mark.parametrize('name', SOLVERS)
def test_solvers_of_diffusions(name, prediction, spacing):
    assert largest_difference(make(name, prediction_type=prediction, **spacing), preserving) < 1e-5


@pytest.mark.parametrize(
    'options',
    [
        {'final_sigmas_type': 'sigma_min'},
        {'rescale_betas_zero_snr': True, 'timestep_spacing': 'trailing'},
        {'use_karras_sigmas': True, 'final_sigmas_type': 'sigma_min'},
    ],
    ids=str,
)
@pytest.mark.parametrize('name', ['DPMSolverMultistepScheduler', 'UniPCMultistepScheduler'])
def test_ends_of_the_solvers(name, options):
    scheduler = make(name, prediction_type='v_prediction', **options)
    assert (K.external.scheduler_sigmas(scheduler)[-1] > 0) == ('final_sigmas_type' in options)
    assert largest_difference(scheduler, preserving) < 1e-5


@pytest.mark.parametrize(
    'options',
    [
        {},
        {'interpolation_type': 'log_linear', 'timestep_spacing': 'leading'},
        {'use_karras_sigmas': True},
        {'final_sigmas_type': 'sigma_min'},
        {'rescale_betas_zero_snr': True, 'timestep_spacing': 'trailing'},
        {'use_exponential_sigmas': True, 'sigma_min': 0.1, 'sigma_max': 9.0},
    ],
    ids=str,
)
def test_euler(options):
    scheduler = make('EulerDiscreteScheduler', prediction_type='v_prediction', **options)
    assert largest_difference(scheduler, exploding) < 1e-5


@pytest.mark.parametrize(
    'options',
    [
        {},
        {'timestep_spacing': 'trailing', 'rescale_betas_zero_snr': True},
        {'set_alpha_to_one': False, 'steps_offset': 1},
    ],
    ids=str,
)
@pytest.mark.parametrize(
    'name', ['DDIMScheduler', 'DDIMParallelScheduler', 'CogVideoXDDIMScheduler']
)
def test_ddim(name, options):
    scheduler = make(name, prediction_type='v_prediction', **options)
    # An infinite level (zero terminal SNR) stands at 1e4 here, where a data share of 1e-4
    # remains.
    assert largest_difference(scheduler, preserving) < (
        2e-3 if 'rescale_betas_zero_snr' in options else 1e-5
    )


@pytest.mark.parametrize(
    'options', [{}, {'sigma_schedule': 'exponential'}, {'final_sigmas_type': 'sigma_min'}], ids=str
)
@pytest.mark.parametrize('prediction', ['epsilon', 'v_prediction'])
@pytest.mark.parametrize('name', ['EDMEulerScheduler', 'EDMDPMSolverMultistepScheduler'])
def test_edm(name, prediction, options):
    extra = {'solver_order': 1} if 'DPM' in name else {}
    assert (
        largest_difference(make(name, prediction_type=prediction, **extra, **options), exploding)
        < 1e-5
    )


@torch.no_grad()
def test_heun_lists_each_level_once():
    scheduler, network = make('HeunDiscreteScheduler'), Network()
    sigmas = K.external.scheduler_sigmas(scheduler)
    assert len(sigmas) == STEPS + 1 and len(scheduler.sigmas) > len(sigmas)
    x = torch.randn(4, 3, dtype=torch.float64) * sigmas[0]
    ours = K.sampling.sample_heun(
        K.external.from_diffusers(network, scheduler), x, sigmas, disable=True
    )
    torch.testing.assert_close(ours, their_walk(scheduler, network, x), rtol=1e-5, atol=1e-5)


# Stable Video Diffusion's continuous Euler

SVD = {
    'timestep_type': 'continuous',
    'prediction_type': 'v_prediction',
    'sigma_min': 0.002,
    'sigma_max': 700.0,
    'use_karras_sigmas': True,
    'timestep_spacing': 'leading',
    'steps_offset': 1,
}


def test_continuous_v_prediction_is_asked_in_log_sigma():
    scheduler, network = make('EulerDiscreteScheduler', **SVD), Network()
    denoiser = K.external.from_diffusers(network, scheduler)
    sigma = torch.tensor([700.0, 104.0, 1.0, 0.002], dtype=torch.float64)
    denoiser(torch.randn(4, 3, dtype=torch.float64), sigma)
    expected = np.log([700.0, 104.0, 1.0, 0.002]) / 4
    np.testing.assert_allclose(network.times[-1].numpy(), expected, rtol=1e-6)
    assert (float(denoiser.sigma_min), float(denoiser.sigma_max)) == (0.002, 700.0)
    assert largest_difference(scheduler, exploding) < 1e-5


def test_continuous_without_a_range_has_the_tables():
    options = {key: value for key, value in SVD.items() if not key.startswith('sigma')}
    denoiser = K.external.from_diffusers(Network(), make('EulerDiscreteScheduler', **options))
    assert denoiser.sigma_min == pytest.approx(
        0.02917, 1e-3
    ) and denoiser.sigma_max == pytest.approx(14.6146, 1e-4)


def test_continuous_with_the_noise_predicted_is_discrete():
    """Their Euler takes places of the table then, whatever timestep_type says."""
    scheduler, network = (
        make('EulerDiscreteScheduler', **{**SVD, 'prediction_type': 'epsilon'}),
        Network(),
    )
    K.external.from_diffusers(network, scheduler)(torch.randn(1, 3), torch.tensor([14.6146]))
    assert network.times[-1].item() == pytest.approx(999, abs=1e-2)


# Refusals


class Derived(diffusers.UniPCMultistepScheduler):
    pass


def test_a_derived_class_is_known_by_its_base():
    scheduler = Derived(flow_shift=3.0, **FLOW)
    scheduler.set_timesteps(5)
    sigmas = K.external.scheduler_sigmas(scheduler)
    assert sigmas[1] == pytest.approx(
        float(scheduler.sigmas[1] / (1 - scheduler.sigmas[1])), rel=1e-6
    )


def scheduler_case(name, **options):
    return lambda: (make(name, **options),)


def scheduler_without_steps():
    return (diffusers.UniPCMultistepScheduler(**FLOW),)


@pytest.mark.parametrize(
    'arguments, error, message',
    [
        (lambda: (None,), TypeError, 'must be a diffusers scheduler.*got NoneType'),
        (lambda: (diffusers.DDIMScheduler,), TypeError, 'got the class DDIMScheduler'),
        (lambda: (Network(),), TypeError, 'got Network'),
        (lambda: ({'prediction_type': 'epsilon'},), TypeError, 'got dict'),
        (scheduler_without_steps, ValueError, 'set_timesteps'),
        (
            scheduler_case('FlowMatchEulerDiscreteScheduler', invert_sigmas=True),
            ValueError,
            'invert_sigmas',
        ),
        (
            scheduler_case('DPMSolverMultistepScheduler', use_karras_sigmas=True, **FLOW),
            ValueError,
            'flow times between 0 and 1',
        ),
        (scheduler_case('PNDMScheduler', n=20, skip_prk_steps=False), ValueError, 'skip_prk_steps'),
        (lambda: (*scheduler_case('DDIMScheduler')(), -1.0), ValueError, 'sigma_max must be > 0'),
    ],
    ids=stable_id,
)
def test_levels_that_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        K.external.scheduler_sigmas(*arguments())


@pytest.mark.parametrize(
    'name, options, message',
    [
        (
            'UniPCMultistepScheduler',
            {'prediction_type': 'flow_prediction'},
            "got UniPCMultistepScheduler with prediction_type 'flow_prediction'",
        ),
        (
            'UniPCMultistepScheduler',
            {'use_flow_sigmas': True, 'prediction_type': 'x'},
            "got 'x' in UniPCMultistepScheduler",
        ),
        ('EDMEulerScheduler', {'prediction_type': 'sample'}, 'prediction must be'),
        ('CMStochasticIterativeScheduler', {}, 'CMStochasticIterativeScheduler with'),
        ('FlowMatchEulerDiscreteScheduler', {'invert_sigmas': True}, 'invert_sigmas'),
    ],
)
def test_meanings_that_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        K.external.from_diffusers(Network(), make(name, **options))


@pytest.mark.parametrize(
    'name, options',
    [
        ('FlowMatchEulerDiscreteScheduler', {}),
        ('EDMEulerScheduler', {}),
        ('EulerDiscreteScheduler', SVD),
    ],
)
def test_quantize_needs_a_table(name, options):
    with pytest.raises(ValueError, match='quantize must be False'):
        K.external.from_diffusers(Network(), make(name, **options), quantize=True)
