"""Recipes of K.sample by traits of the model, probes, explanations, and guidance intervals."""

import itertools
import math

import pytest
import torch

import k_diffusion as K
from k_diffusion.denoisers.analytic import Gaussian, Mixture
from k_diffusion.generation import plan
from k_diffusion.guidance import classifier_free
from k_diffusion.recipes import Probe, Traits, recommend
from k_diffusion.schedules import get_sigmas_interval, get_sigmas_karras

MEANS = torch.tensor([[1.0, 0.0], [-1.0, 0.7], [0.2, -1.2]])
MODEL = Mixture(MEANS, torch.tensor([0.3, 0.4, 0.5]))


class Conditional:
    """A mixture, or its first component where `towards` is 1; levels from 0.05 to 20."""

    sigma_min, sigma_max = 0.05, 20.0
    alone = Gaussian(MEANS[0], torch.tensor(0.3))

    def __call__(self, x, sigma, towards):
        model = Mixture(MEANS.to(x), torch.tensor([0.3, 0.4, 0.5]).to(x))
        alone = Gaussian(MEANS[0].to(x), torch.tensor(0.3).to(x))
        return torch.where(towards[:, None] == 1, alone(x, sigma), model(x, sigma))


GUIDED = classifier_free(Conditional(), {'towards': 0}, 3.0, (0.3, 2.0))
TOWARDS = {'towards': torch.ones(64, dtype=torch.long)}


def start(n=64, high=20.0):
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * high


def converged(x, levels):
    """The end of the flow of GUIDED by the classical Runge-Kutta method in log sigma, each part
    of the interval apart.
    """
    for high, low in itertools.pairwise(levels):
        n, inside = 150, low >= 0.3 and high <= 2.0
        h = math.log(low / high) / n

        def slope(x, u, inside=inside):
            sigma = torch.full([len(x)], math.exp(u), dtype=torch.float64)
            d, added = GUIDED.parts(x, sigma, **TOWARDS)
            return x - (d + added if inside else d)

        for i in range(n):
            u = math.log(high) + i * h
            k1 = slope(x, u)
            k2 = slope(x + h / 2 * k1, u + h / 2)
            k3 = slope(x + h / 2 * k2, u + h / 2)
            x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + slope(x + h * k3, u + h))
    return x


TRUTH = converged(start(), [20.0, 2.0, 0.3, 0.05])


def error(sampler, sigmas, model=GUIDED, **options):
    end = getattr(K.sampling, f'sample_{sampler}')(
        model, start(), sigmas, TOWARDS, disable=True, **options
    )
    return (end - TRUTH).square().mean().sqrt().item()


@pytest.mark.parametrize(
    ('sampler', 'options'),
    [('lms', {'order': 2}), ('ipndm', {'order': 2}), ('deis', {'order': 2}), ('rab', {})],
)
def test_the_share_of_guidance_in_an_interval_is_integrated_to_second_order(sampler, options):
    """Wherever the levels fall: with the guided estimate alone, the jump at the edges leaves
    order 1 and errors that scatter.
    """
    counts = [30, 60, 120]
    sigmas = {
        n: [get_sigmas_karras(n + shift, 0.05, 20.0)[:-1] for shift in range(4)] for n in counts
    }
    errors = {n: [error(sampler, levels, **options) for levels in sigmas[n]] for n in counts}
    plain = [
        error(sampler, levels, lambda x, sigma, **cond: GUIDED(x, sigma, **cond), **options)
        for levels in sigmas[120]
    ]
    order = math.log2(sum(errors[30]) / sum(errors[120])) / 2
    assert order > 1.7, (order, errors)
    assert max(errors[120]) < 2 * min(errors[120]) and max(errors[120]) < 0.2 * max(plain)


def test_a_callback_sees_the_guided_estimate_and_its_edit_acts():
    levels, infos = [3.0, 1.5, 1.0, 0.5], []
    GUIDED_at = GUIDED(start(high=3.0).float(), torch.full([64], 1.5), **TOWARDS)
    assert GUIDED_at.shape == (64, 2)

    def show(info):
        infos.append((info['x'].clone(), float(info['sigma']), info['denoised'].clone()))
        if info['i'] == 2:
            info['denoised'].zero_()

    x = K.sampling.sample_ipndm(
        GUIDED, start(high=3.0), levels, TOWARDS, show, disable=True, order=1
    )
    for at, sigma, denoised in infos[1:]:
        torch.testing.assert_close(
            denoised, GUIDED(at, torch.full([64], sigma, dtype=torch.float64), **TOWARDS)
        )
    at, sigma, _ = infos[2]
    torch.testing.assert_close(x, at * (0.5 / sigma))  # Euler with the estimate 0


@pytest.mark.parametrize('n', [4, 5, 10, 30])
def test_levels_lie_on_the_edges_of_an_interval(n):
    levels = get_sigmas_interval(n, 0.02, 80.0, (0.3, 1.2))
    assert (
        len(levels) == n + 1
        and (levels[1:] < levels[:-1]).all()
        and levels[0] == 80.0
        and levels[-1] == 0
    )
    assert levels[-2] == pytest.approx(0.02)
    places = [(levels - edge).abs().argmin().item() for edge in (1.2, 0.3)]
    for place, edge in zip(places, (1.2, 0.3)):
        assert levels[place] < edge and levels[place].item() == pytest.approx(edge, rel=1e-6)
    assert places[1] - places[0] == max(1, round(0.4 * (n - 1)))  # steps inside


def test_an_interval_that_holds_all_levels_changes_none():
    torch.testing.assert_close(
        get_sigmas_interval(9, 0.02, 80.0, (0.01, 100.0)), get_sigmas_karras(9, 0.02, 80.0)
    )
    assert [len(get_sigmas_interval(n, 0.02, 80.0, (0.3, 1.2))) for n in (1, 2, 3)] == [2, 3, 4]
    assert get_sigmas_interval(3, 0.02, 80.0, (0.3, 1.2))[1].item() == pytest.approx(1.2, rel=1e-6)
    with pytest.raises(ValueError, match='share must be'):
        get_sigmas_interval(9, 0.02, 80.0, (0.3, 1.2), share=1.0)


def test_traits_are_read_off_the_denoiser():
    assert Traits.of(MODEL) == Traits(0.002, 80.0)
    assert Traits.of(GUIDED) == Traits(0.05, 20.0, 3.0, (0.3, 2.0))
    assert Traits.of(Conditional(), scale=3.0, interval=(0.0, math.inf)) == Traits(0.05, 20.0, 3.0)
    assert Traits.of(MODEL, 0.1, 5.0, 1.0, (0.3, 2.0)) == Traits(0.1, 5.0)
    assert not Traits.of(classifier_free(Conditional(), {'towards': 0}, 1.0)).guided


@pytest.mark.parametrize('steps', [1, 2, 5, 8, 10, 15, 20, 50])
@pytest.mark.parametrize(
    'traits',
    [
        Traits(0.002, 80.0),
        Traits(0.03, 14.6),
        Traits(0.02, 40.0, 4.5, (0.3, 1.2), 0.5),
        Traits(0.002, 80.0, 4.0),
    ],
)
def test_a_recipe_spends_the_calls_and_ends_below_what_its_error_hides(steps, traits):
    recipe = recommend(steps, traits)
    levels = recipe.levels(steps, traits, recipe.options).tolist()
    assert len(levels) == steps + 1 + recipe.options.get('backward_start', False)
    assert levels[0] == pytest.approx(traits.sigma_max) and levels[-1] == 0
    assert all(high > low for high, low in itertools.pairwise(levels))
    if len(levels) > 2:
        if steps >= 15:
            expected = traits.sigma_min
        elif steps <= 5:
            expected = max(0.08 * traits.std, traits.sigma_min)
        else:
            expected = max({8: 0.0122, 10: 0.005}[steps] * traits.std, traits.sigma_min)
        assert levels[-2] == pytest.approx(expected, rel=1e-2)
    if traits.interval and steps >= 5:
        assert min(abs(level / traits.interval[1] - 1) for level in levels) < 1e-6
    assert recommend(steps, traits) == recipe


def test_explain_says_what_was_taken_and_why(capsys):
    K.sample(
        GUIDED, [2, 2], 8, seeds=0, cond={'towards': torch.ones(2, dtype=torch.long)}, explain=True
    )
    said = capsys.readouterr().out
    sigmas, sampler, _, why = plan(GUIDED, 8, None, None, None, None, {})
    assert sampler in said and why in said and 'interval' in why and f'{sigmas[1]:.4g}' in said
    K.sample(MODEL, [2, 2], 8, 'heun', seeds=0, explain=True)
    assert 'heun' in capsys.readouterr().out
    K.sample(MODEL, [2, 2], 8, seeds=0)
    assert capsys.readouterr().out == ''


class Probed(Conditional):
    """A denoiser that attributes can be set on."""


def test_a_probe_is_kept_and_taken(tmp_path):
    model, cond = Probed(), {'towards': torch.zeros(6, dtype=torch.long)}
    probe = K.probe(model, [6, 2], [4, 6], cond)
    assert probe == K.probe(model, [6, 2], [4, 6], cond) and set(probe.recipes) == {4, 6}
    for n, recipe in probe.recipes.items():
        rms, median = probe.distances[n][str(recipe)]
        others = probe.distances[n].values()
        assert not any(r < rms and m < median for r, m in others), (
            'another recipe was nearer by both'
        )
    probe.save(tmp_path / 'probe.json')
    assert Probe.load(tmp_path / 'probe.json') == probe
    model.probe = Probe.load(tmp_path / 'probe.json')
    assert plan(model, 5, None, None, None, None, {}).why == probe.recipe(5, Traits.of(model)).why
    assert probe.recipe(5, Traits.of(model)) in probe.recipes.values()
    assert probe.recipe(5, Traits.of(model, scale=2.0)) is None  # made without guidance
    assert plan(model, 5, 'heun', None, None, None, {}).sampler == 'heun'


@pytest.mark.parametrize(
    'guided',
    [
        K.guidance.frequency_decoupled(Conditional(), {'towards': 0}, (3.0, 2.0), (0.3, math.inf)),
        K.guidance.composed(
            Conditional(), {'towards': 0}, [{'towards': torch.ones(4, dtype=torch.long)}], [2.0]
        ),
        classifier_free(Conditional(), {'towards': 0}, 3.0, (0.0, 2.0)),
    ],
)
def test_a_probe_of_any_guidance_is_read_as_it_was_written(guided, tmp_path):
    traits = Traits.of(guided)
    probe = Probe(traits, {5: recommend(5, traits)})
    probe.save(tmp_path / 'probe.json')
    again = Probe.load(tmp_path / 'probe.json')
    assert again.recipe(5, Traits.of(guided)) == probe.recipe(5, traits) == recommend(5, traits)
    assert again.recipe(5, Traits(0.05, 20.0)) is None


def test_sample_a_denoiser_with_a_scale_for_each_band():
    guided = K.guidance.frequency_decoupled(Conditional(), {'towards': 0}, (1.0, 3.0))
    assert Traits.of(guided).scale == 3.0 and Traits.of(guided).guided


@pytest.mark.parametrize(
    'call, words',
    [
        (
            lambda: get_sigmas_interval(8, 0.02, 40.0, (1.2, 0.3)),
            'interval must hold two noise levels, the lower one first',
        ),
        (lambda: get_sigmas_interval(8, 0.02, 40.0, 3), 'interval must hold two noise levels'),
        (
            lambda: get_sigmas_interval(8, 0.02, 40.0, (0.3, 1.2), share='half'),
            "share must be .*; got 'half'",
        ),
        (
            lambda: K.sample(MODEL, [2, 2], guidance=3.0, null={}, guidance_interval=3),
            'guidance_interval must hold two noise levels',
        ),
        (
            lambda: K.sample(MODEL, [2, 2], guidance='much', null={}),
            "guidance must be .*; got 'much'",
        ),
        (lambda: K.probe(MODEL, [2, 2], steps=5), 'steps must be numbers of model calls'),
        (
            lambda: K.probe(MODEL, [2, 2], steps=[0]),
            'each of steps must be an integer >= 1; got 0',
        ),
        (lambda: K.probe(MODEL, [2, 2], fine=0), 'fine must be an integer >= 1; got 0'),
        (lambda: K.probe(MODEL, [0, 2]), 'shape must hold at least one noise'),
    ],
)
def test_refused_arguments(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_another_file_is_refused_as_a_probe(tmp_path):
    (tmp_path / 'other.json').write_text('{"traits": {}}')
    with pytest.raises(ValueError, match='path must be a file that Probe.save wrote'):
        Probe.load(tmp_path / 'other.json')


@pytest.mark.parametrize('name', ['zeab', 'ipndm'])
def test_a_callback_that_looks_on_changes_no_bit(name):
    levels = [20.0, 5.0, 1.5, 0.5, 0.1, 0.0]
    x, towards = start(3).float(), {'towards': torch.ones(3, dtype=torch.long)}
    run = getattr(K.sampling, f'sample_{name}')
    plain = run(GUIDED, x, levels, towards, disable=True)
    assert torch.equal(run(GUIDED, x, levels, towards, lambda info: None, disable=True), plain)
