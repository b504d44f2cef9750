"""Noise per item, and the Brownian path: variance of any increment, additivity, independence of
the number of steps.
"""

import inspect
import itertools
import math
import random

import pytest
import torch
from sampler_cases import suited, with_noise, without_noise

from k_diffusion import sampling
from k_diffusion.sampling.brownian import COARSEST, POINTS, BrownianPath

X = torch.zeros(2, 30_000)


@pytest.mark.parametrize(
    ('sigma', 'sigma_next'),
    [
        (10.0, 5.0),
        (499.0, 0.31),
        (0.31, 0.0),
        (600.0, 400.0),
        (0.2, 0.1),
        (0.1, 0.0),
        (1e-12, 0.0),
        (1e12, 1e11),  # inside and outside
        (5.0, 5.001),
        (5.0, 5.0 * (1 + 1e-6)),
        (2.0, 4.0),  # close, and rising
    ],
)
@pytest.mark.parametrize('seed', [3, [5, 6]])
def test_unit_variance(sigma, sigma_next, seed):
    noise = sampling.BrownianTreeNoiseSampler(X, 0.3, 500.0, seed=seed)(sigma, sigma_next)
    assert (
        noise.shape == X.shape
        and noise.std().item() == pytest.approx(1, abs=0.015)
        and abs(noise.mean().item()) < 0.02
    )
    assert abs((noise[0] * noise[1]).mean().item()) < 0.03


@pytest.mark.parametrize(
    'transform', [lambda s: s.log(), lambda s: -s.log(), lambda s: 1 / s, lambda s: 999 * s.atan()]
)
def test_any_clock(transform):
    noise = sampling.BrownianTreeNoiseSampler(X, 0.3, 500.0, seed=1, transform=transform)
    draws = torch.stack(
        [noise(a, b) for a, b in itertools.pairwise([400.0, 20.0, 3.0, 1.1, 0.9, 0.3])]
    ).flatten(1)
    short = (
        400 < transform(torch.tensor(400.0)) < 1600
    )  # the first step is one of 3 % there, which sees more detail
    torch.testing.assert_close(
        draws @ draws.T / draws.shape[1], torch.eye(5), rtol=0, atol=0.08 if short else 0.02
    )


def test_increments_of_a_walk_are_independent():
    noise = sampling.BrownianTreeNoiseSampler(X, 0.0292, 14.6146, seed=0)
    sigmas = sampling.get_sigmas_karras(12, 0.0292, 14.6146).tolist()
    draws = torch.stack([noise(a, b) for a, b in itertools.pairwise(sigmas)]).flatten(1)
    torch.testing.assert_close(draws @ draws.T / draws.shape[1], torch.eye(12), rtol=0, atol=0.025)


@pytest.mark.parametrize('seed', range(20))
def test_additive(seed):
    times = (
        torch.rand(3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        .mul(6)
        .sub(3)
        .exp()
        .tolist()
    )
    a, b, c = sorted(times)
    tree = sampling.BatchedBrownianTree(torch.zeros(1, 100), 0.1, 10.0, seed=seed)
    missed = tree(a, c) - tree(a, b) - tree(b, c)
    apart = min(c / b, b / a) > 2 ** (1 / 8)  # shorter steps follow the path in more detail
    assert missed.abs().max() < 1e-5 if apart else missed.std() < 0.2 * tree(a, c).std()
    torch.testing.assert_close(tree(c, a), -tree(a, c))


def test_the_sign_turns_with_the_range():
    up, down = (sampling.BatchedBrownianTree(X, *ends, seed=1) for ends in ((1.0, 9.0), (9.0, 1.0)))
    assert torch.equal(up(2.0, 3.0), -down(2.0, 3.0)) and up(2.0, 3.0).abs().max() > 0
    assert up(2.0, 2.0).abs().max() == 0


@pytest.mark.parametrize(('few', 'many'), [(5, 10), (10, 20), (10, 60)])
def test_the_same_path_for_any_number_of_steps(few, many):
    def walk(n):
        noise = sampling.BrownianTreeNoiseSampler(torch.zeros(2, 50), 0.05, 20.0, seed=[1, 2])
        sigmas = (
            torch.linspace(math.log(20.0), math.log(0.05), n + 1, dtype=torch.float64)
            .exp()
            .tolist()
        )
        return torch.stack([noise(a, b) * math.sqrt(a - b) for a, b in itertools.pairwise(sigmas)])

    torch.testing.assert_close(
        walk(many).unflatten(0, (few, many // few)).sum(1), walk(few), rtol=0, atol=1e-5
    )
    missed, whole = walk(400).unflatten(0, (few, 400 // few)).sum(1) - walk(few), walk(few)
    assert (
        0 < missed.square().mean() < 0.1 * whole.square().mean()
    )  # many short steps see more of the path's detail


def test_the_order_of_questions_does_not_matter():
    times = [8.0, 0.4, 3.0, 0.05, 20.0, 1.0, 7.0]
    values = []
    for order in (times, times[::-1], sorted(times)):
        path = BrownianPath(torch.zeros(1, 10), [7])
        path_values = {time: path(time) for time in order}
        values.append(torch.stack([path_values[time] for time in times]))
    torch.testing.assert_close(values[0], values[1])
    torch.testing.assert_close(values[0], values[2])


def test_any_questions_within_a_few_percent():
    times, pick = [1.0025, 1.0075, 1.0126, 1.0177, 1.0228, 1.0279, 1.6], random.Random(0)
    fresh = lambda: sampling.BrownianTreeNoiseSampler(
        torch.zeros(1, 40000, dtype=torch.float64), 0.002, 80.0, seed=0
    )
    noise, by_pair = fresh(), {}
    for _ in range(300):
        a, b = pick.sample(times, 2)
        value = noise(a, b)
        assert value.square().mean().item() == pytest.approx(1, abs=0.05)
        assert torch.equal(by_pair.setdefault((a, b), value), value)
    for a, b in itertools.combinations(times, 2):
        torch.testing.assert_close(fresh()(a, b), -noise(b, a), rtol=0, atol=1e-9)
    whole = noise(1.02, 1.01) * 0.01**0.5
    halves = (noise(1.02, 1.015) + noise(1.015, 1.01)) * 0.005**0.5
    assert (whole - halves).std() < 0.5 * whole.std()


def test_a_thousand_crowded_steps():
    """The original runs into RecursionError here: most levels differ by less than its tree
    resolves.
    """
    sigmas = sampling.get_sigmas_polyexponential(1000, 0.0292, 14.6146, rho=7.0)
    x = torch.zeros(1, 4000)
    noise = sampling.BrownianTreeNoiseSampler(x, 0.0292, 14.6146, seed=0)
    stds = torch.stack([noise(a, b).std() for a, b in itertools.pairwise(sigmas)])
    assert (
        stds.min() > 0.94 and stds.max() < 1.06 and stds.mean().item() == pytest.approx(1, abs=4e-3)
    )
    torch.manual_seed(0)
    model = lambda x, sigma: x / (1 + sigma[:, None] ** 2)
    start = torch.randn(1, 4000) * (1 + 14.6146**2) ** 0.5
    assert sampling.sample_dpmpp_2m_sde(
        model, start, sigmas[:-1], disable=True
    ).std().item() == pytest.approx(1, abs=0.05)


def test_a_few_draws_a_step_and_bounded_memory(monkeypatch):
    draws, original = [], BrownianPath.draw
    monkeypatch.setattr(
        BrownianPath,
        'draw',
        lambda self, key, std=1.0: draws.append(key) or original(self, key, std),
    )
    for n, limit in ((20, 4.5), (50, 3.0), (1000, 2.0)):
        draws.clear()
        path = BrownianPath(torch.zeros(1, 4), [0])
        for sigma in sampling.get_sigmas_karras(n, 0.0292, 14.6146)[:-1].tolist():
            path(sigma)
        assert len(draws) / n < limit
        assert len(path._nodes) + len(path._points) <= 11 + POINTS
    assert 2**2.0**-COARSEST < 1.1


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_the_dtype_of_x(dtype):
    x = torch.zeros(1, 2000, dtype=dtype)
    noise = sampling.BrownianTreeNoiseSampler(x, 0.1, 10.0, seed=0)
    assert noise(5.0, 4.999).dtype == dtype and noise(
        5.0, 4.999
    ).float().std().item() == pytest.approx(1, abs=0.07)


def test_seeds():
    torch.manual_seed(0)
    first = sampling.BrownianTreeNoiseSampler(X, 0.1, 10.0)(5.0, 4.0)
    after = torch.randn(())
    torch.manual_seed(0)
    torch.randint(0, 2**63 - 1, [])
    assert after == torch.randn(())  # one global draw, as in the original
    torch.manual_seed(0)
    assert torch.equal(sampling.BrownianTreeNoiseSampler(X, 0.1, 10.0)(5.0, 4.0), first)
    for kind in (
        sampling.seeded_noise_sampler,
        lambda x, seed: sampling.BrownianTreeNoiseSampler(x, 0.1, 10.0, seed),
    ):
        batch, one = (
            kind(torch.zeros(4, 9), [1, 2, 3, 4])(5.0, 4.0),
            kind(torch.zeros(1, 9), [3])(5.0, 4.0),
        )
        assert torch.equal(batch[2:3], one) and not torch.equal(batch[0], batch[1])
        assert torch.equal(
            kind(torch.zeros(4, 9), 7)(5.0, 4.0)[:2],
            kind(torch.zeros(2, 9), torch.tensor(7))(5.0, 4.0),
        )
        with pytest.raises(ValueError, match='each of the 2 items; got 3'):
            kind(torch.zeros(2, 9), [1, 2, 3])


def test_seeded_noise_changes_from_call_to_call():
    noise = sampling.seeded_noise_sampler(X, 0)
    first, second = noise(5.0, 4.0), noise(4.0, 3.0)
    assert abs((first * second).mean().item()) < 0.02 and second.std().item() == pytest.approx(
        1, abs=0.02
    )


def test_steps_of_no_length_and_times_without_value():
    noise = sampling.BrownianTreeNoiseSampler(X, 0.1, 10.0, seed=0)
    assert noise(5.0, 5.0).std().item() == pytest.approx(1, abs=0.02)
    with pytest.raises(ValueError, match='must be finite; got -inf'):
        sampling.BrownianTreeNoiseSampler(X, 0.1, 10.0, seed=0, transform=torch.log)(1.0, 0.0)


SIGMAS = sampling.get_sigmas_karras(6, 0.1, 10.0)


def toy(x, sigma):
    return torch.tanh(x / (1 + sigma[:, None, None]))


def run(name, x, **options):
    entry = sampling.SAMPLERS[name]
    arguments = {'sigmas': SIGMAS, 'sigma_min': 0.1, 'sigma_max': 10.0, 'n': 6}
    return entry.function(
        suited(name, toy),
        x,
        disable=True,
        **{key: arguments[key] for key in entry.takes},
        **with_noise(name),
        **options,
    )


def deterministic(name):
    """Return whether a sampler draws nothing even with the arguments of `with_noise`."""
    return (
        not sampling.SAMPLERS[name].stochastic
        and 's_churn' not in sampling.SAMPLERS[name].options
        and not with_noise(name)
    )


@pytest.mark.parametrize('name', [name for name in sampling.SAMPLERS if name != 'dpm_adaptive'])
def test_a_seed_for_every_sampler(name):
    """An item depends on its own seed alone; the global generator is neither used nor moved."""
    x = torch.randn(4, 2, 3) * 10
    before = torch.get_rng_state()
    batch, one = run(name, x, seed=[1, 2, 3, 4]), run(name, x[2:3], seed=[3])
    torch.testing.assert_close(batch[2:3], one, rtol=1e-5, atol=1e-6)
    assert torch.equal(batch, run(name, x, seed=[1, 2, 3, 4])) and torch.equal(
        torch.get_rng_state(), before
    )
    other = run(name, x, seed=[1, 2, 9, 4])
    assert torch.equal(other[[0, 1, 3]], batch[[0, 1, 3]])
    assert torch.equal(other[2], batch[2]) == deterministic(name)
    assert torch.equal(run(name, x, seed=5)[:2], run(name, x[:2], seed=5))


#: Those that draw; but for dpm_adaptive, whose steps follow the rounding of the errors.
NOISY = [
    name
    for name, entry in sampling.SAMPLERS.items()
    if entry.noise is not None and name != 'dpm_adaptive'
]


def draws_of(name, x, **source):
    """Return the draws of a sampler over its run."""
    record, entry = sampling.Record(), sampling.SAMPLERS[name]
    arguments = {'sigmas': SIGMAS, 'sigma_min': 0.1, 'sigma_max': 10.0, 'n': 6}
    options = {**{key: arguments[key] for key in entry.takes}, **with_noise(name), **source}
    for _ in sampling.iterate(name, suited(name, toy), x, record=record, disable=True, **options):
        pass
    return record.noises


@pytest.mark.parametrize(
    'source', ['seed', 'seeds', 'generator', 'generators', 'independent', 'path']
)
@pytest.mark.parametrize('name', NOISY)
def test_one_seed_is_one_noise_in_float32_and_float64(name, source):
    """float64 draws are those of float32; along a path they are added up in the precision of x."""
    single = torch.randn(2, 2, 3) * 10
    draws = []
    for x in (single, single.double()):
        sources = {
            'seed': lambda: {'seed': 4},
            'seeds': lambda: {'seed': [4, 9]},
            'generator': lambda: {'generator': torch.Generator().manual_seed(4)},
            'generators': lambda: {
                'generator': [torch.Generator().manual_seed(seed) for seed in (4, 9)]
            },
            'independent': lambda: {
                'noise_sampler': sampling.make_noise_sampler(x, 'independent', [4, 9])  # noqa: B023
            },
            'path': lambda: {
                'noise_sampler': sampling.make_noise_sampler(x, 'path', [4, 9])  # noqa: B023
            },
        }
        draws.append(draws_of(name, x, **sources[source]()))
    assert len(draws[0]) == len(draws[1]) > 0
    for a, b in zip(*draws):
        assert (a.dtype, b.dtype) == (torch.float32, torch.float64)
        torch.testing.assert_close(a, b.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ('make', 'expected'),
    [
        (
            lambda x: sampling.seeded_noise_sampler(x, [7]),
            [-0.06190171465, 2.01815700531, -1.28358006477],
        ),
        (
            lambda x: sampling.BrownianTreeNoiseSampler(x, 0.1, 10.0, [7]),
            [-0.36746346951, -0.90654838085, 1.85527372360],
        ),
        (
            lambda x: sampling.generator_noise_sampler(x, torch.Generator().manual_seed(7)),
            [-0.14679509401, 0.78614127636, 0.94682163000],
        ),
    ],
    ids=['independent', 'path', 'generator'],
)
def test_the_noise_of_a_seed_is_kept(make, expected):
    """The numbers that a seed has given in float32 since there are seeds; in float64 they are
    the same.
    """
    for dtype in (torch.float32, torch.float64):
        noise = make(torch.zeros(1, 3, dtype=dtype))(5.0, 4.0)[0]
        torch.testing.assert_close(noise, torch.tensor(expected, dtype=dtype), rtol=0, atol=1e-6)


@pytest.mark.parametrize('name', ['euler', 'euler_ancestral', 'dpmpp_2m_sde', 'restart', 'er_sde'])
def test_a_generator_for_every_sampler(name):
    x = torch.randn(3, 2, 3) * 10
    seeded = lambda *seeds: [torch.Generator().manual_seed(seed) for seed in seeds]
    before = torch.get_rng_state()
    first, again = (run(name, x, generator=torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, again) and not torch.equal(
        first, run(name, x, generator=torch.Generator().manual_seed(2))
    )
    batch = run(name, x, generator=seeded(1, 2, 3))
    torch.testing.assert_close(
        batch[1:2], run(name, x[1:2], generator=seeded(2)), rtol=1e-5, atol=1e-6
    )
    assert torch.equal(torch.get_rng_state(), before)


def test_seeds_follow_one_path_where_levels_are_passed_once():
    """Twice the steps by the same seed end near; by another seed they do not.

    Restart draws anew at each visit.
    """
    x = torch.randn(8, 2, 3) * 10
    few, many = (
        sampling.sample_dpmpp_2m_sde(
            toy, x, sampling.get_sigmas_karras(n, 0.1, 10.0), seed=1, disable=True
        )
        for n in (30, 60)
    )
    other = sampling.sample_dpmpp_2m_sde(
        toy, x, sampling.get_sigmas_karras(60, 0.1, 10.0), seed=2, disable=True
    )
    assert (few - many).square().mean() < 0.25 * (other - many).square().mean()


@pytest.mark.parametrize(
    'name', [name for name, entry in sampling.SAMPLERS.items() if not entry.stochastic]
)
def test_a_sampler_that_is_not_stochastic_draws_nothing_by_default(name):
    entry, refused = (
        sampling.SAMPLERS[name],
        lambda sigma, sigma_next: pytest.fail('noise was drawn'),
    )
    arguments = {'sigmas': SIGMAS, 'sigma_min': 0.1, 'sigma_max': 10.0, 'n': 6}
    options = {'noise_sampler': refused} if 'noise_sampler' in entry.options else {}
    entry.function(
        suited(name, toy),
        torch.randn(2, 2, 3) * 10,
        disable=True,
        **{key: arguments[key] for key in entry.takes},
        **options,
    )


@pytest.mark.parametrize(
    'name', [name for name, entry in sampling.SAMPLERS.items() if entry.stochastic]
)
def test_a_stochastic_sampler_draws_by_default(name):
    x, draws = torch.randn(2, 2, 3) * 10, []
    sampling.SAMPLERS[name].function(
        suited(name, toy),
        x,
        SIGMAS,
        disable=True,
        noise_sampler=lambda sigma, sigma_next: draws.append(sigma) or torch.randn_like(x),
    )
    assert draws


@pytest.mark.parametrize('name', sampling.SAMPLERS)
def test_one_source_of_noise(name):
    """Said by those without noise too, where it would not show."""
    x, both = torch.randn(2, 2, 3) * 10, {'seed': 1, 'generator': torch.Generator()}
    with pytest.raises(ValueError, match='seed must be None where a generator is given'):
        run(name, x, **both)
    with pytest.raises(ValueError, match='each of the 2 items; got 3'):
        run(name, x, seed=[1, 2, 3])
    with pytest.raises(ValueError, match='each of the 2 items; got 1'):
        run(name, x, generator=[torch.Generator()])
    if 'noise_sampler' in sampling.SAMPLERS[name].options:
        with pytest.raises(ValueError, match='pass one source of noise'):
            run(name, x, seed=1, noise_sampler=sampling.default_noise_sampler(x))
    else:
        generator = torch.Generator().manual_seed(1)
        before = generator.get_state()
        assert torch.equal(run(name, x, generator=generator), run(name, x)) and torch.equal(
            generator.get_state(), before
        )


@pytest.mark.parametrize('name', sampling.SAMPLERS)
def test_afs_saves_the_first_call(name):
    calls = []

    def counted(x, sigma):
        calls.append(sigma[0].item())
        return toy(x, sigma)

    x, entry = torch.randn(2, 2, 3) * 10, sampling.SAMPLERS[name]
    arguments = {'sigmas': SIGMAS, 'sigma_min': 0.1, 'sigma_max': 10.0, 'n': 6}
    options = {
        **{key: arguments[key] for key in entry.takes},
        **without_noise(name),
        'disable': True,
    }
    states = list(sampling.iterate(name, suited(name, counted), x, **options, afs=True))
    pairs = sampling.SAMPLERS[name].needs_pair  # the stand-in asks twice for a pair
    assert states[-1].nfe == len(calls) / (2 if pairs else 1) and calls[0] < 10
    torch.testing.assert_close(
        states[0].denoised, x * (1 - 10 / math.sqrt(101)), rtol=1e-4, atol=1e-4
    )
    spread = next(sampling.iterate(name, suited(name, toy), x, **options, afs=0.5)).denoised
    torch.testing.assert_close(spread, x * 0.25 / 100.25, rtol=1e-4, atol=1e-5)


def test_afs_is_exact_where_it_is_the_model():
    x, model = (
        torch.randn(2, 2, 3) * 10,
        lambda x, sigma: x * (0.25 / (0.25 + sigma[:, None, None] ** 2)),
    )
    for name in ('ipndm', 'heun', 'uni_pc'):
        torch.testing.assert_close(
            sampling.SAMPLERS[name].function(model, x, SIGMAS, afs=0.5, disable=True),
            sampling.SAMPLERS[name].function(model, x, SIGMAS, disable=True),
            rtol=1e-5,
            atol=1e-5,
        )
    with pytest.raises(ValueError, match='afs must be .*; got -1'):
        sampling.sample_euler(model, x, SIGMAS, afs=-1.0, disable=True)


def call_as_programs_do(sample, x, sigmas, noise_sampler, generator):
    """Pass noise_sampler and generator where the signature names them, as the k-diffusion
    pipelines of diffusers do.
    """
    named = inspect.signature(sample).parameters
    options = {'noise_sampler': noise_sampler, 'generator': generator}
    return sample(
        suited(sample.__name__[7:], toy),
        x,
        sigmas,
        **{name: value for name, value in options.items() if name in named},
    )


@pytest.mark.parametrize(
    'name', [name for name, entry in sampling.SAMPLERS.items() if 'sigmas' in entry.takes]
)
def test_a_noise_sampler_wins_over_the_generator_that_drew_x(name):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, 2, 3, generator=generator) * 10
    before = generator.get_state()
    sample, draw = (
        sampling.SAMPLERS[name].function,
        lambda sigma, sigma_next: torch.cos(x * (1 + sigma) + sigma_next),
    )
    actual = call_as_programs_do(sample, x, SIGMAS, draw, generator)
    alone = {'noise_sampler': draw} if 'noise_sampler' in sampling.SAMPLERS[name].options else {}
    assert torch.equal(actual, sample(suited(name, toy), x, SIGMAS, disable=True, **alone))
    assert torch.equal(generator.get_state(), before)
