"""Rules that hold for every sampler.

Inputs it accepts and refuses, precision, number of steps, and randomness per item.
"""

import copy
import inspect
import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from sampler_cases import suited, with_noise, without_noise

from k_diffusion import sampling

NAMES = list(sampling.SAMPLERS)
ON_SCHEDULE = [name for name in NAMES if sampling.SAMPLERS[name].takes == ('sigmas',)]
WITH_NOISE = [
    name
    for name in NAMES
    if 'noise_sampler' in inspect.signature(sampling.SAMPLERS[name].function).parameters
]
SIGMAS = torch.tensor([10.0, 4.0, 1.0, 0.3, 0.0])


def denoiser(x, sigma, **cond):
    s = sigma.reshape(-1, *[1] * (x.ndim - 1))
    return torch.tanh(3 * x / (1 + s**2)) / (1 + 0.2 * s)


def noise(*shape, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=dtype) * 10


def run(name, x, sigmas=SIGMAS, model=denoiser, **options):
    entry = sampling.SAMPLERS[name]
    arguments = {'sigmas': sigmas, 'sigma_min': 0.05, 'sigma_max': 10.0, 'n': 7}
    return entry.function(
        suited(name, model),
        x,
        disable=True,
        **{key: arguments[key] for key in entry.takes},
        **options,
    )


@pytest.mark.parametrize('name', ON_SCHEDULE)
@pytest.mark.parametrize(
    ('sigmas', 'sentence'),
    [
        ([], 'got shape (0,)'),
        ([[4.0, 1.0], [4.0, 1.0]], 'got shape (2, 2)'),
        ([1.0, 4.0], 'they rise from 1.0 to 4.0 at index 1'),
        ([4.0, math.nan, 0.0], 'got nan at index 1'),
        ([math.inf, 1.0, 0.0], 'got inf at index 0'),
        ([4.0, -1.0], 'got -1.0 at index 1'),
    ],
)
def test_refused_schedules(name, sigmas, sentence):
    for schedule in (sigmas, torch.tensor(sigmas)):
        with pytest.raises(ValueError) as refusal:
            run(name, noise(2, 3), schedule)
        assert sentence in str(refusal.value) and str(refusal.value).count('\n') == 0


@pytest.mark.parametrize('name', ON_SCHEDULE)
@pytest.mark.parametrize('sigmas', [None, 'karras', ['4', '1'], [4.0, None], [[4.0], [1.0, 0.0]]])
def test_what_is_no_list_of_numbers_is_no_schedule(name, sigmas):
    with pytest.raises(ValueError, match='sigmas must be one list of noise levels'):
        run(name, noise(2, 3), sigmas)


@pytest.mark.parametrize('name', NAMES)
def test_an_order_or_a_count_is_a_whole_number(name):
    for option in sorted(
        {'order', 'max_stage', 'predictor_order', 'corrector_order', 'n'}
        & {*sampling.SAMPLERS[name].options}
    ):
        for value in (2.5, -1, 'three'):
            arguments = {'sigmas': SIGMAS, 'sigma_min': 0.05, 'sigma_max': 10.0, 'n': 7}
            options = {
                **{key: arguments[key] for key in sampling.SAMPLERS[name].takes},
                option: value,
            }
            with pytest.raises(ValueError, match=str(value)) as refusal:
                sampling.SAMPLERS[name].function(denoiser, noise(2, 3), disable=True, **options)
            assert str(refusal.value).count('\n') == 0 and 'math domain' not in str(refusal.value)


@pytest.mark.parametrize('name', NAMES)
def test_what_is_no_model_no_x_and_no_strength(name):
    for answer, description in ((None, 'NoneType'), ((noise(2, 3),), 'tuple')):
        model = suited(name, lambda x, sigma, answer=answer: answer)
        with pytest.raises(
            ValueError, match=f'sample_{name}: the model must return .*; got {description}'
        ):
            run(name, noise(2, 3), model=model)
    for x, description in (
        ([1.0, 2.0], 'a list'),
        (None, 'a NoneType'),
        (torch.tensor(1.0), '0-d'),
    ):
        with pytest.raises(ValueError, match=f'x must be a batch of noise, .*; x is {description}'):
            run(name, x)
    for afs in ('yes', [1.0], math.nan):
        with pytest.raises(
            ValueError, match='afs must be True or the standard deviation of the data'
        ):
            run(name, noise(2, 3), afs=afs)
    for eta in (-0.5, math.nan):
        if 'eta' in sampling.SAMPLERS[name].options:
            with pytest.raises(ValueError, match='eta must be a finite number >= 0'):
                run(name, noise(2, 3), eta=eta)


@pytest.mark.parametrize('value', [0.0, -1.0, math.inf, math.nan])
def test_a_noise_scaler_is_positive(value):
    with pytest.raises(
        ValueError, match=rf'noise_scaler must return a positive .*; got {value} at'
    ):
        run('er_sde', noise(2, 3), noise_scaler=lambda sigma: value if sigma < 3 else sigma)


@pytest.mark.parametrize('name', ['dpm_fast', 'dpm_adaptive'])
@pytest.mark.parametrize(
    'bounds', [(0.0, 10.0), (-1.0, 10.0), (10.0, 0.05), (0.05, math.inf), (math.nan, 1.0)]
)
def test_refused_bounds(name, bounds):
    more = {'n': 5} if name == 'dpm_fast' else {}
    with pytest.raises(
        ValueError, match=r'0 < sigma_min < sigma_max|sigma_min must be a number; got nan'
    ):
        sampling.SAMPLERS[name].function(denoiser, noise(2, 3), *bounds, disable=True, **more)


def test_other_refusals():
    for function, options, words in [
        (sampling.sample_lms, {'order': 0}, 'order must be .*; got 0'),
        (sampling.sample_dpmpp_sde, {'r': 0.0}, r'r must be in \(0, 1\] .*; got 0'),
        (sampling.sample_dpmpp_2m_sde, {'solver_type': 'midpiont'}, "did you mean 'midpoint'"),
    ]:
        with pytest.raises(ValueError, match=words):
            function(denoiser, noise(2, 3), SIGMAS, disable=True, **options)
    with pytest.raises(ValueError, match='must be a positive integer; got 0'):
        sampling.sample_dpm_fast(denoiser, noise(2, 3), 0.05, 10.0, 0, disable=True)
    with pytest.raises(ValueError, match='order must be 2 .*; got 4'):
        sampling.sample_dpm_adaptive(denoiser, noise(2, 3), 0.05, 10.0, order=4, disable=True)
    with pytest.raises(ValueError, match=r'torch\.int64'):
        sampling.sample_euler(denoiser, torch.ones(2, 3, dtype=torch.int64), SIGMAS)
    with pytest.raises(ValueError, match="did you mean 'dpmpp_2m'"):
        sampling.find_sampler('dpmpp2m')
    with pytest.raises(ValueError, match=r'eta must be 0 .*; got 1\.0'):
        sampling.DPMSolver(denoiser).dpm_solver_fast(noise(2, 3), 3.0, -2.0, 6, eta=1.0)


def test_restart_says_where_its_interval_does_not_fit():
    for options, words in [
        (
            {'intervals': ((0.1, 200.0),)},
            r'which has the levels 10 to 0\.3 above 0; got \(0\.1, 200\.0\)',
        ),
        ({'intervals': ((0.1, 0.2),)}, 'must begin nearest to a level'),
        ({'intervals': (0.1, 2.0)}, 'must be pairs of noise levels'),
        ({'times': -1}, 'times must be .*; got -1'),
        ({'inner_steps': 0}, 'inner_steps an integer .* and 0'),
        ({'inner_steps': 2.5}, 'inner_steps an integer .* and 2.5'),
        ({'times': 1.5}, 'times must be .*; got 1.5'),
    ]:
        with pytest.raises(ValueError, match=words) as refusal:
            run('restart', noise(2, 3), **options)
        assert str(refusal.value).count('\n') == 0


@pytest.mark.parametrize(('high', 'end'), [(1.5, 1.5), (5.0, 2.0)])
def test_the_restart_of_a_low_schedule_begins_at_its_top(high, end):
    levels = []
    run(
        'restart',
        noise(2, 3),
        sampling.get_sigmas_karras(8, 0.01, high),
        callback=lambda info: levels.append(info['sigma'].item()),
    )
    assert [sigma for before, sigma in itertools.pairwise(levels) if sigma > before] == [
        pytest.approx(end)
    ] * 2


@pytest.mark.parametrize('name', NAMES)
def test_nan_stops_the_run(name):
    calls = 0

    def model(x, sigma):
        nonlocal calls
        calls += 1
        return denoiser(x, sigma) * (math.nan if sigma[0] < 0.5 else 1.0)

    with pytest.raises(
        ValueError,
        match=rf'sample_{name}: the model returned NaN or infinity in step \d+, at sigma 0\.\d+;',
    ):
        run(name, noise(2, 3), model=model)
    assert calls < 30 or calls < 6 * sampling.SAMPLERS[name].nfe


@pytest.mark.parametrize('name', NAMES)
def test_nan_is_not_blamed_on_the_model_where_it_was_given(name):
    with pytest.raises(
        ValueError,
        match=f'sample_{name}: x at the start must be finite; got NaN or infinity',
    ):
        run(name, torch.cat([noise(2, 3), torch.tensor([[0.0, 1.0, math.nan]])]))
    if name in WITH_NOISE:
        with pytest.raises(
            ValueError,
            match=rf'sample_{name}: x holds NaN or infinity in step \d+, at sigma [\d.]+, before '
            r'the model',
        ):
            run(
                name,
                noise(2, 3),
                noise_sampler=lambda sigma, sigma_next: torch.full([2, 3], math.nan),
                **with_noise(name),
            )


def test_nan_is_found_at_the_end_where_looking_would_wait():
    """Off the CPU answers are recorded, and `check` names the first bad one."""
    watch = sampling.watch.Watch(denoiser, torch.float32, 'sample_x')
    for i, value in enumerate([1.0, math.inf, math.nan]):
        watch._unchecked.append((i, torch.tensor([4.0 / (i + 1)]), torch.tensor(value)))
    with pytest.raises(
        ValueError, match='sample_x: the model returned NaN or infinity in step 1, at sigma 2;'
    ):
        watch.check()
    watch.check()
    watch = sampling.watch.Watch(
        denoiser, torch.float32, 'sample_x', start=torch.tensor([math.nan])
    )
    watch._unchecked.append((0, torch.tensor([4.0]), torch.tensor(math.nan)))
    with pytest.raises(ValueError, match='x at the start must be finite'):
        watch.check()


def test_dpm_adaptive_has_a_cap():
    with pytest.raises(
        ValueError,
        match=r'sample_dpm_adaptive: 5 attempts only reached sigma [\d.]+; raise rtol, atol',
    ):
        run('dpm_adaptive', noise(2, 3), rtol=1e-9, atol=1e-9, max_steps=5)


@pytest.mark.parametrize('per_item', [False, True])
def test_dpm_adaptive_at_the_edges(per_item):
    for options, words in [
        ({'rtol': 0.0, 'atol': 0.0}, 'one of atol and rtol must be > 0'),
        ({'rtol': -1.0}, r'rtol must be >= 0 .*; got -1\.0'),
        ({'atol': math.nan}, 'atol must be a number; got nan'),
        ({'h_init': 0.0}, r'h_init must be finite and not 0, .*; got 0\.0'),
    ]:
        with pytest.raises(ValueError, match=words):
            run('dpm_adaptive', noise(2, 3), per_item=per_item, **options)
    assert run('dpm_adaptive', noise(0, 3), per_item=per_item).shape == (0, 3)
    assert torch.equal(
        run('dpm_adaptive', noise(2, 3), per_item=per_item, h_init=-1.0),
        run('dpm_adaptive', noise(2, 3), per_item=per_item, h_init=1.0),
    )


@pytest.mark.parametrize('name', ON_SCHEDULE)
def test_one_step_schedules(name):
    x = noise(2, 3)
    torch.testing.assert_close(
        run(name, x, [10.0, 0.0]), denoiser(x, torch.full([2], 10.0, dtype=torch.float64))
    )
    ended_early = run(name, x, [10.0, 4.0])
    assert ended_early.isfinite().all() and 0 < (ended_early - x).abs().max() < 40
    assert torch.equal(run(name, x, [10.0]), x)  # no step at all, as with an img2img of strength 0


@pytest.mark.parametrize('name', ON_SCHEDULE)
def test_equal_neighbours_change_nothing(name):
    options = (
        {'noise_sampler': sampling.seeded_noise_sampler(noise(2, 3), [1, 2])}
        if name in WITH_NOISE
        else {}
    )
    plain = run(name, noise(2, 3), [10.0, 4.0, 1.0, 0.3, 0.0], **options)
    options = (
        {'noise_sampler': sampling.seeded_noise_sampler(noise(2, 3), [1, 2])}
        if name in WITH_NOISE
        else {}
    )
    assert torch.equal(
        run(name, noise(2, 3), [10.0, 10.0, 4.0, 4.0, 4.0, 1.0, 0.3, 0.0, 0.0], **options), plain
    )


@pytest.mark.parametrize('name', ON_SCHEDULE)
def test_nearly_equal_neighbours_are_one_level(name):
    """A multistep method would divide by the step between them, and a stochastic one by it
    without its noise: 10^4 and more.
    """
    calls = []

    def counted(x, sigma):
        calls.append(sigma[0].item())
        return denoiser(x, sigma)

    options = (
        {'noise_sampler': sampling.seeded_noise_sampler(noise(2, 3), [1, 2])}
        if name in WITH_NOISE
        else {}
    )
    plain = run(name, noise(2, 3), [20.0, 5.0, 1.0, 0.2, 0.0], model=counted, **options)
    n = len(calls)
    options = (
        {'noise_sampler': sampling.seeded_noise_sampler(noise(2, 3), [1, 2])}
        if name in WITH_NOISE
        else {}
    )
    assert torch.equal(
        run(name, noise(2, 3), [20.0, 5.0, 4.9999995, 1.0, 0.2, 0.0], model=counted, **options),
        plain,
    )
    assert len(calls) == 2 * n and plain.abs().max() < 5


def test_the_last_steps_of_heun_are_counted_by_their_levels():
    for order in (0, 1, 2, 99):
        plain = run('heun', noise(2, 3), lower_order_final=order)
        assert torch.equal(
            run('heun', noise(2, 3), SIGMAS[[0, 1, 1, 2, 2, 3, 3, 4, 4]], lower_order_final=order),
            plain,
        )
    with pytest.raises(ValueError, match=r'lower_order_final must be .*; got 1\.5'):
        run('heun', noise(2, 3), lower_order_final=1.5)


def test_close_levels_of_float64_are_kept():
    fine = torch.linspace(math.log(80.0), math.log(0.002), 10**5, dtype=torch.float64).exp()
    assert sampling.levels(fine) == fine.tolist()
    drift = [
        5.0 * (1 - 4e-7) ** i for i in range(10)
    ]  # never far from its neighbour, but from where it began
    assert len(set(sampling.levels(drift))) == 4


@pytest.mark.parametrize('name', ['euler', 'heun', 'dpm_2'])
def test_equal_neighbours_with_churn_are_steps(name):
    numbers = []
    out = run(
        name,
        noise(2, 3),
        [10.0, 4.0, 4.0, 1.0],
        s_churn=1.0,
        callback=lambda info: numbers.append(info['i']),
    )
    assert numbers == [0, 1, 2] and out.isfinite().all()


def test_a_schedule_need_not_end_in_zero_or_be_a_tensor():
    x = noise(2, 3)
    half_way = sampling.sample_dpm_2(denoiser, x, SIGMAS[:3], disable=True)
    out = sampling.sample_dpm_2(denoiser, half_way, SIGMAS[2:].tolist(), disable=True)
    assert torch.equal(out, sampling.sample_dpm_2(denoiser, x, SIGMAS, disable=True))


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision(name, dtype):
    """The model is fed the given dtype and answers in it; the state is kept in float32, so the
    error is the model's rounding.
    """
    dtypes = set()

    def model(x, sigma):
        dtypes.update([x.dtype, sigma.dtype])
        return denoiser(x.float(), sigma.float()).to(dtype)

    x = noise(4, 8).to(dtype)
    options = without_noise(name)
    out = run(name, x, model=model, **options)
    assert out.dtype == dtype and dtypes == {dtype}
    exact = run(name, x.double(), **options)
    assert (out.double() - exact).abs().max() < 40 * torch.finfo(dtype).eps


def test_half_precision_survives_many_steps():
    sigmas = sampling.get_sigmas_karras(100, 0.01, 80.0)
    x = noise(64).to(torch.bfloat16) * 8
    out = sampling.sample_dpmpp_2m(
        lambda x, s: torch.tanh(x.float() / s.float() ** 2).to(x.dtype), x, sigmas, disable=True
    )
    exact = sampling.sample_dpmpp_2m(
        lambda x, s: torch.tanh(x / s**2), x.double(), sigmas, disable=True
    )
    assert (out.double() - exact).abs().mean() < 0.02


@pytest.mark.parametrize('name', [name for name in WITH_NOISE if name != 'dpm_adaptive'])
def test_a_batch_of_one_is_the_item_of_a_batch(name):
    options = with_noise(name)
    x, seeds = noise(4, 2, 3), [11, 22, 33, 44]
    for make in (
        sampling.seeded_noise_sampler,
        lambda x, seeds: sampling.BrownianTreeNoiseSampler(x, 0.05, 10.0, seeds),
    ):
        batch = run(name, x, noise_sampler=make(x, seeds), **options)
        one = run(name, x[2:3], noise_sampler=make(x[2:3], seeds[2:3]), **options)
        assert torch.equal(batch[2:3], one)
        other = run(name, x[2:3], noise_sampler=make(x[2:3], [55]), **options)
        assert (other - one).abs().max() > 1e-3


@pytest.mark.parametrize('order', [2, 3])
def test_dpm_adaptive_by_item(order):
    """Each item takes its own steps: the same alone, in a batch, and as the plain sampler takes
    for one item.
    """
    x = noise(4, 2, 3) * torch.tensor([1.0, 0.1, 3.0, 0.01], dtype=torch.float64).reshape(4, 1, 1)
    batch, info = run('dpm_adaptive', x, order=order, per_item=True, return_info=True)
    assert len(set(info['n_accept'])) > 1 and info['steps'] >= max(info['n_accept'])
    for i in range(4):
        one = run('dpm_adaptive', x[i : i + 1], order=order, per_item=True)
        plain, plain_info = run('dpm_adaptive', x[i : i + 1], order=order, return_info=True)
        assert torch.equal(batch[i : i + 1], one) and plain_info['n_accept'] == info['n_accept'][i]
        torch.testing.assert_close(one, plain, rtol=1e-9, atol=1e-9)
    together = run('dpm_adaptive', x, order=order)
    assert (together - batch).abs().max() > 1e-6
    with pytest.raises(ValueError, match=r'got eta=1\.0'):
        run('dpm_adaptive', x, per_item=True, eta=1.0)


@pytest.mark.parametrize('per_item', [False, True])
def test_dpm_adaptive_makes_a_step_again_from_an_edited_estimate(per_item):
    def edit(info):
        info['denoised'].mul_(0.5)

    plain, edited = (
        run('dpm_adaptive', noise(2, 3), order=2, per_item=per_item, callback=callback)
        for callback in (None, edit)
    )
    assert (plain - edited).abs().max() > 0.01
    halved = run(
        'dpm_adaptive',
        noise(2, 3),
        order=2,
        per_item=per_item,
        h_init=99.0,
        rtol=1e9,
        callback=edit,
    )
    x, u = noise(2, 3), math.log(10.0 / 0.05)
    eps = (x - 0.5 * denoiser(x, x.new_full([2], 10.0))) / 10
    middle = 10.0 * math.exp(-u / 2)
    x_2 = x - middle * math.expm1(u / 2) * eps
    expected = x - 0.05 * math.expm1(u) * (x_2 - denoiser(x_2, x.new_full([2], middle))) / middle
    torch.testing.assert_close(halved, expected)


@pytest.mark.parametrize('name', ['euler', 'heun', 'dpm_2'])
def test_churn_draws_only_when_it_is_on(name):
    torch.manual_seed(0)
    run(name, noise(2, 3))
    assert torch.randn(()) == torch.randn((), generator=torch.Generator().manual_seed(0))
    draws = []

    def recorded(sigma, sigma_next):
        draws.append((float(sigma), float(sigma_next)))
        return torch.zeros(2, 3)

    run(name, noise(2, 3), s_churn=1.0, s_tmin=0.5, s_tmax=5.0, noise_sampler=recorded)
    assert draws == [(10.0, 10.0), (4.0, 5.0), (1.0, 1.25), (pytest.approx(0.3),) * 2]


def test_noise_samplers_from_outside_get_tensors_and_may_be_half():
    level_pairs = []

    def outside(sigma, sigma_next):
        level_pairs.append((sigma.log().item(), sigma_next.item()))
        return torch.ones(2, 3, dtype=torch.float16)

    out = sampling.sample_euler_ancestral(
        denoiser, noise(2, 3), SIGMAS, disable=True, noise_sampler=outside
    )
    assert (
        out.dtype == torch.float64
        and level_pairs[0] == (pytest.approx(math.log(10)), 4.0)
        and len(level_pairs) == 3
    )


@pytest.mark.parametrize('name', NAMES)
def test_callbacks_see_live_tensors(name):
    """An edit of denoised in the callback acts in every sampler; so does one of x."""

    def edit(info):
        info['denoised'].mul_(0.5)

    def edit_x(info):
        info['x'].mul_(0.5)

    quiet = without_noise(name)
    plain = run(name, noise(2, 3), callback=lambda info: None, **quiet)
    assert (run(name, noise(2, 3), callback=edit, **quiet) - plain).abs().max() > 0.01
    if name not in ('lcm', 'dpm_fast'):  # where x is forgotten, or is looked at before the step
        assert (run(name, noise(2, 3), callback=edit_x, **quiet) - plain).abs().max() > 1e-3


@pytest.mark.parametrize('name', ['euler', 'sa_solver', 'sa_solver_pece'])
def test_an_edited_estimate_is_the_end(name):
    """The estimate that a callback is shown is the one that the sampler goes on with, also where
    D is asked for again.
    """
    steps = []
    options = {'tau': 1.0, 'interval': (0.0, 1.0)} if name != 'euler' else {}
    walk = sampling.iterate(
        name,
        denoiser,
        noise(2, 3),
        SIGMAS,
        disable=True,
        **options,
        callback=lambda info: (
            steps.append((info['i'], info['sigma'].item())) or info['denoised'].fill_(7.0)
        ),
    )
    states = list(walk)
    assert steps == [(i, pytest.approx(sigma)) for i, sigma in enumerate(SIGMAS[:-1].tolist())]
    assert all((state.denoised == 7).all() for state in states) and (states[-1].x == 7).all()


@pytest.mark.parametrize('name', NAMES)
def test_iterate_is_the_sampler_step_by_step(name):
    entry = sampling.SAMPLERS[name]
    arguments = {'sigmas': SIGMAS, 'sigma_min': 0.05, 'sigma_max': 10.0, 'n': 7}
    options = {
        **{key: arguments[key] for key in entry.takes},
        **without_noise(name),
        'disable': True,
    }
    model = suited(name, denoiser)
    grad = torch.is_grad_enabled()
    states = []
    for state in sampling.iterate(name, model, noise(2, 3), **options):
        assert torch.is_grad_enabled() == grad and not state.x.requires_grad
        states.append(state)
    assert torch.equal(states[-1].x, entry.function(model, noise(2, 3), **options))
    assert states[-1].sigma == pytest.approx(0.0 if entry.takes == ('sigmas',) else 0.05, rel=1e-4)
    assert [state.i for state in states] == list(range(len(states)))
    assert {state.n for state in states} == {None if name == 'dpm_adaptive' else len(states)}
    assert all(state.nfe > before.nfe for before, state in itertools.pairwise(states))
    first = denoiser(noise(2, 3), torch.full([2], 10.0, dtype=torch.float64))
    torch.testing.assert_close(states[0].denoised, first)


def test_iterate_can_be_edited_left_and_taken_up_again():
    walk = sampling.iterate('euler', denoiser, noise(2, 3), SIGMAS, disable=True)
    state = next(walk)
    assert (state.i, state.sigma, state.nfe) == (0, 4.0, 1)
    state.x = torch.zeros(2, 3, dtype=torch.float64)
    rest = list(walk)
    assert len(rest) == 3 and rest[-1].x.abs().max() == 0
    for state in sampling.iterate(
        sampling.sample_euler, denoiser, noise(2, 3), SIGMAS, disable=True
    ):
        if state.i == 1:
            break
    torch.testing.assert_close(
        state.x, sampling.sample_euler(denoiser, noise(2, 3), SIGMAS[:3], disable=True)
    )


def test_plain_functions_serve_as_samplers():
    def sample_pasted(denoise, x, sigmas, extra_args=None):
        for sigma, sigma_next in itertools.pairwise(sigmas):
            x = x + (x - denoise(x, sigma * x.new_ones([len(x)]))) * (sigma_next / sigma - 1)
        return x

    (state,) = sampling.iterate(sample_pasted, denoiser, noise(2, 3), SIGMAS)
    torch.testing.assert_close(
        state.x, sampling.sample_euler(denoiser, noise(2, 3), SIGMAS, disable=True)
    )
    assert state.nfe == 4


def test_a_plain_function_sees_what_the_model_has():
    def sample_pasted(model, x, sigmas):
        return x * model.inner_model.gain * model.doubled(1)

    class Model:
        inner_model = SimpleNamespace(gain=3.0)

        def doubled(self, value):
            return 2 * value

    (state,) = sampling.iterate(sample_pasted, Model(), noise(2, 3), SIGMAS)
    assert torch.equal(state.x, noise(2, 3) * 6)
    watch = copy.copy(sampling.watch.Watch(denoiser, torch.float32))
    assert watch.model is denoiser and not hasattr(watch, 'inner_model')


def test_a_new_sampler_is_one_generator():
    try:

        @sampling.sampler(order=1)
        def sample_ddim_of_the_test(steps, x, *, gain: float = 1.0):
            for step in steps:
                x = yield torch.lerp(step.denoise(x) * gain, x, step.sigma_next / step.sigma)
            return x

        assert list(inspect.signature(sample_ddim_of_the_test).parameters)[-4:] == [
            'gain',
            'seed',
            'generator',
            'afs',
        ]
        assert sampling.SAMPLERS['ddim_of_the_test'].takes == ('sigmas',)
        torch.testing.assert_close(
            sample_ddim_of_the_test(denoiser, noise(2, 3), SIGMAS, disable=True),
            sampling.sample_euler(denoiser, noise(2, 3), SIGMAS, disable=True),
        )
    finally:
        sampling.SAMPLERS._entries.pop('ddim_of_the_test', None)


def test_samplers_leave_x_and_grad_mode_alone():
    x = noise(2, 3)
    before = x.clone()
    for name in NAMES:
        out = run(name, x)
        assert torch.equal(x, before) and torch.is_grad_enabled() and not out.requires_grad


@pytest.mark.parametrize('shape', [(2, 1, 4, 4), (1, 3, 4, 4), (2, 3, 1, 1)])
@pytest.mark.parametrize('name', ['euler', 'dpmpp_2m_sde'])
def test_an_answer_of_another_shape_is_refused(name, shape):
    x, sigmas = torch.randn(2, 3, 4, 4), sampling.get_sigmas_karras(3, 0.1, 10.0)
    with pytest.raises(ValueError, match='in the shape of x'):
        getattr(sampling, f'sample_{name}')(
            lambda x, sigma: torch.zeros(shape), x, sigmas, disable=True
        )


def test_a_wrong_call_says_what_the_sampler_takes():
    x = torch.randn(1, 1, 4, 4)
    with pytest.raises(
        TypeError, match='sample_dpm_fast must be called with .model, x, sigma_min, sigma_max, n'
    ):
        next(
            sampling.iterate(
                'dpm_fast', lambda x, sigma: x / 2, x, sampling.get_sigmas_karras(3, 0.1, 10.0)
            )
        )
