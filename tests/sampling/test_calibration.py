"""Calibrated solvers: better than what they start from on noises they have not seen, the same
wherever and however they are run.
"""

import dataclasses
import json
import warnings

import numpy as np
import pytest
import torch

from k_diffusion import sampling
from k_diffusion.denoisers.analytic import Gaussian, Mixture
from k_diffusion.generation import generate
from k_diffusion.sampling.calibration import least_squares
from k_diffusion.sampling.calibration.bases import BASES, CORRECTIONS, base_rows
from k_diffusion.sampling.calibration.candidates import Students
from k_diffusion.sampling.calibration.files import from_json, to_json
from k_diffusion.sampling.calibration.judging import Verdict, choose_fit
from k_diffusion.sampling.calibration.least_squares import Loss, fit
from k_diffusion.sampling.calibration.reference_runs import Teacher

HIGH, N = 40.0, 6
MODEL = Mixture(
    torch.tensor([[1.0, 0.0, 0.5], [-1.0, 0.7, 0.0], [0.2, -1.2, -0.5]], dtype=torch.float64),
    torch.tensor([0.15, 0.3, 0.4], dtype=torch.float64),
)


def noise(n, seed, *shape):
    return (
        torch.randn(
            n, *(shape or (3,)), generator=torch.Generator().manual_seed(seed), dtype=torch.float64
        )
        * HIGH
    )


@pytest.fixture(scope='module')
def teacher():
    return Teacher(MODEL, noise(64, 1), 0.002, HIGH)


@pytest.fixture(scope='module')
def held_out_runs():
    return Teacher(MODEL, noise(128, 2), 0.002, HIGH, tolerance=1e-5)


@pytest.fixture(scope='module')
def calibration(teacher):
    return sampling.calibrate(
        MODEL,
        teacher.x,
        HIGH,
        steps=N,
        teacher=teacher,
        model='abc',
        guidance=2.0,
        guidance_interval=(0.5, 3.0),
    )


def distance(out, runs):
    return (out - runs.ends).square().mean().sqrt().item()


def best_start(teacher, runs):
    """The least distance of any base with any of the levels that the fits start from."""
    distances = []
    spectrum = sampling.Spectrum.of(teacher.ends)
    for base in BASES:
        students = Students(MODEL, runs, spectrum, base, N, 256)
        from k_diffusion.sampling.calibration.starts import schedules

        starts = [
            students.start(levels)
            for levels in schedules(Students(MODEL, teacher, spectrum, base, N, 256))
        ]
        distances += [distance(end, runs) for end in students.ends(starts)]
    return min(distances)


def test_the_teacher_has_converged(held_out_runs):
    sigmas = sampling.get_sigmas_karras(2000, 0.002, HIGH).double()
    fine = sampling.sample_exp_ab(MODEL, held_out_runs.x, sigmas, startup='res_2s', disable=True)
    assert distance(fine, held_out_runs) < 1e-4 and held_out_runs.change < 1e-5
    sigmas = torch.tensor([7.3, 0.4], dtype=torch.float64)
    for sigma, estimate in zip(sigmas, held_out_runs.estimates(sigmas)):
        path = [*sampling.get_sigmas_karras(400, sigma.item(), HIGH).double().tolist()[:-1]]
        x = sampling.sample_exp_ab(MODEL, held_out_runs.x, path, startup='res_2s', disable=True)
        assert (estimate - MODEL(x, sigma.expand(len(x)))).square().mean().sqrt() < 2e-3


def test_twice_as_near_as_the_best_start_on_other_noises(calibration, teacher, held_out_runs):
    calls = 0

    def model(x, sigma):
        nonlocal calls
        calls += 1
        return MODEL(x, sigma)

    ours = distance(calibration.sampler()(model, held_out_runs.x, disable=True), held_out_runs)
    assert calls == calibration.steps == N
    assert 0 < ours < best_start(teacher, held_out_runs) / 2
    assert calibration.scores['rms'] < calibration.scores['published_rms'] / 2
    assert calibration.scores['median'] < calibration.scores['published_median'] / 2


def two_kinds(x, sigma, kind):
    """One Gaussian where kind is 0; where it is 1, two narrow ones far apart."""
    wide = Gaussian(torch.zeros(3, dtype=torch.float64), torch.full([3], 5.0, dtype=torch.float64))
    apart = Mixture(
        torch.tensor([[2.0, 2.0, 2.0], [-2.0, -2.0, -2.0]], dtype=torch.float64),
        torch.full([2], 0.01, dtype=torch.float64),
    )
    return torch.where(kind[:, None] == 0, wide(x, sigma), apart(x, sigma))


def test_a_fit_that_loses_gives_way_to_a_published_recipe():
    """Noises are fitted to under one condition and held out under another, whose flow is of
    another kind.
    """
    x, kind = noise(48, 11), (torch.arange(48) >= 16).long()
    result = sampling.calibrate(two_kinds, x, HIGH, steps=8, extra_args={'kind': kind}, held_out=32)
    assert result.base == 'published' and result.steps == 8 and not result.corrections
    lost = [
        result.scores[f'fitted_{name}'] >= result.scores[f'published_{name}']
        for name in ('rms', 'median', 'astray')
    ]
    assert any(lost) and result.scores['rms'] == result.scores['published_rms']
    function = sampling.find_sampler(result.published).function
    straight = function(
        two_kinds,
        x,
        list(result.sigmas),
        {'kind': kind},
        disable=True,
        **result.options,
    )
    assert torch.equal(result.sampler()(two_kinds, x, None, {'kind': kind}, disable=True), straight)
    assert dataclasses.replace(from_json(to_json(result)), spectrum=result.spectrum) == result


def verdict(*rows):
    return Verdict(*(torch.tensor(column) for column in zip(*rows)))


@pytest.mark.parametrize(
    ('rows', 'best', 'nearer'),
    [
        ([(0.09, 0.04, 1), (0.05, 0.03, 1), (0.05, 0.06, 0)], 1, True),  # nearest by both
        ([(0.11, 0.001, 1), (0.099, 0.049, 1)], 1, True),  # the nearer median has a larger rms
        ([(0.11, 0.001, 1), (0.05, 0.051, 1)], 1, False),  # each is worse by one of the two
        ([(0.09, 0.04, 3)], 0, False),  # nearer, and more items end as something else
        ([(float('inf'), float('inf'), 9), (0.2, 0.1, 1)], 1, False),
    ],
)
def test_a_fit_must_be_nearer_by_both(rows, best, nearer):
    bar = {'rms': 0.1, 'median': 0.05, 'astray': 2}
    assert choose_fit(verdict(*rows), bar, 1e-9) == (best, nearer)


def test_what_is_below_the_floor_counts_as_nearer():
    assert choose_fit(verdict((0.05, 2e-4, 0)), {'rms': 0.1, 'median': 1e-4, 'astray': 0}, 1.0) == (
        0,
        True,
    )


@pytest.mark.parametrize(
    ('first', 'levels'),
    [
        ({}, (HIGH, 3.0, 0.4, 0.0)),
        ({'afs': True}, (HIGH, 9.0, 2.0, 0.3, 0.0)),
        ({'backward_start': True}, (HIGH, 9.0, 2.0, 0.3, 0.0)),
    ],
)
def test_a_kept_recipe_is_its_sampler(first, levels):
    spectrum = sampling.Spectrum(
        torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    )
    result = sampling.Calibration(
        'published', levels, (), spectrum, published='ipndm', options={'order': 2, **first}
    )
    x, calls = noise(4, 12), []

    def model(x, sigma):
        calls.append(sigma[0].item())
        return MODEL(x, sigma)

    straight = sampling.sample_ipndm(MODEL, x, list(levels), disable=True, order=2, **first)
    assert torch.equal(from_json(to_json(result)).sampler()(model, x, disable=True), straight)
    assert len(calls) == result.steps == 3
    run = sampling.requests(result.sampler(), x, disable=True)
    request = next(run)
    for _ in range(2):
        request = run.send(MODEL(request.x, request.sigma))
    with pytest.raises(StopIteration) as end:
        run.send(MODEL(request.x, request.sigma))
    assert torch.equal(end.value.value, straight)
    import k_diffusion

    samples = k_diffusion.sample(MODEL, x, steps=3, sampler=result.sampler())
    torch.testing.assert_close(samples, straight.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({'published': 'ipndn'}, "did you mean 'ipndm'"),
        ({'published': 'euler_ancestral'}, 'deterministic'),
        ({'published': 'heun'}, 'one model call per step'),
        ({'options': {'orders': 2}}, 'orders'),
        ({'corrections': ((0.0,),)}, 'corrections'),
    ],
)
def test_recipes_that_cannot_be_kept(changes, words):
    spectrum = sampling.Spectrum(
        torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    )
    with pytest.raises(ValueError, match=words):
        sampling.Calibration(
            **{
                'base': 'published',
                'sigmas': (9.0, 1.0, 0.0),
                'corrections': (),
                'spectrum': spectrum,
                'published': 'ipndm',
                **changes,
            }
        )


def test_files_of_version_1_are_read(calibration):
    old = json.loads(to_json(calibration))
    for key in ('published', 'options', 'quality'):
        del old[key]
    again = from_json(json.dumps({**old, 'version': 1}))
    assert dataclasses.replace(again, spectrum=calibration.spectrum) == calibration
    with pytest.raises(ValueError, match='version 1 or 2'):
        from_json(json.dumps(old))


def test_rounding_is_not_magnified_at_the_last_step():
    """From a least level far from 0, a model that errs by a millionth has converged runs that
    err as little.
    """

    def rounded(x, sigma):
        return MODEL(x, sigma) + 1e-6 * torch.sin(3e5 * x)

    x = noise(16, 13)
    runs = Teacher(rounded, x, 0.02, HIGH)
    fine = sampling.sample_heun(
        MODEL, x, sampling.get_sigmas_karras(800, 0.02, HIGH).double(), disable=True
    )
    assert runs.change < 1e-3 and (runs.ends - fine).square().mean().sqrt() < 1e-3


def test_it_is_the_same_again(calibration, teacher):
    again = sampling.calibrate(
        MODEL, teacher.x, HIGH, steps=N, model='abc', guidance=2.0, guidance_interval=(0.5, 3.0)
    )
    assert again.base == calibration.base and again.sigmas == pytest.approx(
        calibration.sigmas, rel=1e-4
    )
    x = noise(8, 3)
    ends = [each.sampler()(MODEL, x, disable=True) for each in (again, calibration)]
    torch.testing.assert_close(
        *ends, rtol=1e-4, atol=1e-4
    )  # a matrix product may round otherwise elsewhere in memory


@pytest.mark.parametrize('base', BASES)
def test_a_student_is_the_sampler_it_becomes(base, teacher):
    """Run side by side with others or alone, from the step where it differs or from the first:
    the same numbers.
    """
    spectrum = sampling.Spectrum.of(teacher.ends)
    students = Students(MODEL, teacher, spectrum, base, 4, 100)
    theta = students.start([HIGH, 5.0, 1.0, 0.3, 0.05])
    thetas = [theta, *(theta.clone() for _ in students.free)]
    for k, other in enumerate(thetas[1:]):
        other[k] += 0.05
    order = sorted(range(len(students.first)), key=lambda k: students.first[k])
    grouped = students.run(
        [theta, *(thetas[1 + k] for k in order)], [-1, *(students.first[k] for k in order)]
    )
    *_, (_, ends) = grouped
    for k, end in zip(order[::3], ends[1::3]):
        plain = sampling.Calibration(
            base,
            tuple(students.levels(thetas[1 + k])),
            tuple(map(tuple, students.corrections(thetas[1 + k]))),
            spectrum,
        )
        torch.testing.assert_close(
            plain.sampler()(MODEL, teacher.x, disable=True), end, rtol=1e-9, atol=1e-9
        )


def test_exact_on_a_gaussian():
    """Where the data is the spectrum's Gaussian, sei without corrections leaves nothing to fit."""
    model = Gaussian(
        torch.tensor([1.0, -2.0], dtype=torch.float64),
        torch.tensor([0.3, 2.0], dtype=torch.float64),
    )
    nothing = ((0.0,) * CORRECTIONS['sei'],) * 2
    plain = sampling.Calibration(
        'sei', (HIGH, 3.0, 0.2, 0.0), nothing, sampling.Spectrum(model.mean, model.std**2)
    )
    x = noise(4, 3, 2)
    torch.testing.assert_close(
        plain.sampler()(model, x, disable=True), model.flow(x, HIGH, 0.0), rtol=1e-12, atol=1e-12
    )


def test_corrections_of_sei_follow_the_share_of_the_signal():
    variances, row = torch.tensor([0.0, 1.0, 1e12], dtype=torch.float64), [0.0] * CORRECTIONS['sei']
    row[1], row[7] = 0.3, 0.2
    plain, corrected = (
        base_rows('sei', variances, [9.0, 1.0, 0.5], [values])[0]
        for values in ([0.0] * len(row), row)
    )
    added = (corrected.weights[0] - plain.weights[0]) / (1 - plain.a)
    torch.testing.assert_close(added[:2], torch.tensor([0.3, 0.4], dtype=torch.float64))
    assert added[2].item() == pytest.approx(0.5, rel=1e-3) and torch.equal(plain.a, corrected.a)


def test_json_keeps_every_bit(calibration):
    again = from_json(to_json(calibration))
    assert dataclasses.replace(again, spectrum=calibration.spectrum) == calibration
    x = noise(4, 4)
    assert torch.equal(
        again.sampler()(MODEL, x, disable=True), calibration.sampler()(MODEL, x, disable=True)
    )


@pytest.mark.parametrize('shape', [(2, 7), (3, 20, 18), (5,), (2, 2, 2, 2, 2)])
def test_json_of_any_spectrum(shape):
    spectrum = sampling.Spectrum.of(torch.randn(40, *shape, dtype=torch.float64) + 0.3)
    one = sampling.Calibration(
        'sei',
        (HIGH, 2.0, 0.0),
        ((0.0, 0.1, 0.0, 0.0, 0.0, 0.0, 0.02, -0.1, 0.0, 0.0, 0.0, 0.0),),
        spectrum,
    )
    two = from_json(to_json(one))
    assert to_json(two) == to_json(one)
    x = noise(2, 5, *shape)
    a, b = (
        each.sampler()(lambda x, sigma: 0.3 * x / (1 + sigma[0]), x, disable=True)
        for each in (one, two)
    )
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


def damaged(calibration):
    good = json.loads(to_json(calibration))
    for key, value in {
        'version': 3,
        'base': 'xyz',
        'sigmas': [1.0, 2.0, 0.0],
        'corrections': [[0.0, 0.0]],
        'spectrum': {},
        'model': 3,
        'scores': [1],
        'guidance': 'much',
        'conditions': [1],
    }.items():
        yield {**good, key: value}
    yield {**good, 'more': 1}
    yield {key: value for key, value in good.items() if key != 'sigmas'}
    yield {**good, 'spectrum': {**good['spectrum'], 'variance': {'shape': [3], 'values': '-1 1 1'}}}
    yield {**good, 'spectrum': {**good['spectrum'], 'shape': [4]}}
    yield {**good, 'corrections': [[True, *row[1:]] for row in good['corrections']]}
    yield [good]


def test_foreign_json_is_refused(calibration):
    for value in damaged(calibration):
        with pytest.raises(ValueError, match='file.json') as refusal:
            from_json(json.dumps(value), 'file.json')
        assert 'calibrate' in str(refusal.value)
    for text in (
        '',
        '{',
        'null',
        to_json(calibration)[:-40],
        to_json(calibration).replace('2.0', 'NaN'),
    ):
        with pytest.raises(ValueError, match='file.json'):
            from_json(text, 'file.json')


def test_taken_wherever_a_sampler_is(calibration):
    function, x = calibration.sampler(), noise(5, 6)
    entry = sampling.find_sampler(function)
    assert (entry.name, entry.stochastic, entry.takes) == ('calibrated', False, ('sigmas',))
    states = list(sampling.iterate(function, MODEL, x, disable=True))
    assert torch.equal(states[-1].x, function(MODEL, x, disable=True)) and [
        s.nfe for s in states
    ] == [*range(N + 1)]
    infos = []
    out = generate(
        MODEL,
        [3],
        calibration.levels,
        function,
        seeds=[1, 2, 3],
        batch_size=2,
        callback=lambda done, info: infos.append(info['i']),
    )
    alone = generate(MODEL, [3], calibration.levels, entry, seeds=[3])
    torch.testing.assert_close(out[2:], alone, rtol=1e-4, atol=1e-5)
    assert len(infos) == 2 * (N + 1) and out.std() > 0.1
    torch.testing.assert_close(
        function(MODEL, x, disable=True)[3:4],
        function(MODEL, x[3:4], disable=True),
        rtol=1e-10,
        atol=1e-10,
    )


def test_half_precision_and_callbacks(calibration):
    x, infos = noise(2, 7).to(torch.bfloat16), []
    function = calibration.sampler()
    out = function(
        lambda x, sigma: MODEL(x.double(), sigma.double()).to(x.dtype),
        x,
        calibration.levels,
        None,
        infos.append,
        True,
    )
    assert out.dtype == torch.bfloat16 and [info['i'] for info in infos] == [*range(N + 1)]


def test_refusals(calibration, teacher):
    x = noise(16, 8)
    with pytest.raises(ValueError, match='must be None or the levels of the sampler calibrated'):
        calibration.sampler()(MODEL, x, sampling.get_sigmas_karras(6, 0.1, HIGH), disable=True)
    with pytest.raises(ValueError, match='steps must be >= 1, .*; got 0'):
        sampling.calibrate(MODEL, x, HIGH, steps=0)
    with pytest.raises(ValueError, match='at least 16 items'):
        sampling.calibrate(MODEL, x[:2], HIGH)
    with pytest.raises(ValueError, match="unknown base 'eib'"):
        sampling.calibrate(MODEL, x, HIGH, bases=['eib'])
    with pytest.raises(ValueError, match='0 < sigma_min < sigma_max'):
        Teacher(MODEL, x, 1.0, 1.0)


def test_a_teacher_that_does_not_converge_says_so():
    def rough(x, sigma):
        return MODEL(x, sigma) + torch.sin(3e5 * x)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        Teacher(rough, noise(4, 9), 0.002, HIGH)
    assert 'still moved' in str(caught[0].message)


def test_the_robust_fit_finds_a_line_among_outliers():
    """Levenberg-Marquardt on y = a + b t: items that are far off do not pull."""
    t = torch.linspace(-1, 1, 41, dtype=torch.float64)
    y = 2 - 0.7 * t + 0.01 * torch.sin(40 * t)
    y[::8] += 5

    def blocks(thetas, first):
        yield torch.stack([(theta[0] + theta[1] * t - y)[:, None] for theta in thetas])

    theta, value = fit(
        blocks, Loss([1.0], [0.02]), torch.zeros(2, dtype=torch.float64), [0, 1], [0, 0], 60, 1e-6
    )
    torch.testing.assert_close(
        theta, torch.tensor([2.0, -0.7], dtype=torch.float64), atol=0.01, rtol=0
    )
    assert value < Loss([1.0], [0.02])([y.square()[None]]).item()


def test_a_step_is_the_same_whatever_is_left_in_memory():
    """The same equations, solved again and again between other allocations; and their solution."""
    slopes = torch.randn(12, 200, dtype=torch.float64)
    hessian, gradient = slopes @ slopes.mT, slopes @ torch.randn(200, dtype=torch.float64)
    theta, order = torch.zeros(12, dtype=torch.float64), list(range(12))
    blocks, moved = [], []
    for i in range(100):
        blocks.append(torch.full((37 * i % 1001 + 1,), i, dtype=torch.float64))
        moved.append(least_squares._take_step(theta, order, hessian.clone(), gradient.clone(), 0.1))
    assert all(torch.equal(again, moved[0]) for again in moved)
    damped = hessian.numpy() + 0.1 * np.diag(np.diag(hessian.numpy()))
    np.testing.assert_allclose(
        moved[0].numpy(), np.linalg.solve(damped, -gradient.numpy()), rtol=1e-6
    )
