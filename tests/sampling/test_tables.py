"""Runge-Kutta tables: the order conditions of the papers, the order by slope, the cost, and the
names they go by.
"""

import dataclasses
import functools
import itertools
import math

import pytest
import torch
from scipy.integrate import quad

from k_diffusion import sampling
from k_diffusion.sampling import EXPONENTIAL_TABLES, RUNGE_KUTTA_TABLES, SAMPLERS
from k_diffusion.sampling.coefficients import phi
from k_diffusion.sampling.samplers.exponential_general_linear import lawson_rows
from k_diffusion.sampling.samplers.table_driven import exponential_rows
from tests.sampling.test_orders import HIGH, LOW, MODEL, converged, irregular, schedule, start

NAMES = [*EXPONENTIAL_TABLES, *RUNGE_KUTTA_TABLES]


@functools.cache
def trees(order):
    """The rooted trees of so many nodes, as sorted tuples of the subtrees at the root."""
    return sorted(set(forests(order - 1, order - 1)))


def forests(nodes, largest):
    if not nodes:
        yield ()
    for order in range(min(nodes, largest), 0, -1):
        for tree in trees(order):
            for rest in forests(nodes - order, order):
                yield tuple(sorted((tree, *rest)))


def count(tree):
    return 1 + sum(map(count, tree))


def density(tree):
    return count(tree) * math.prod(map(density, tree))


def elementary_weight(tree, rows, weights):
    """The sum over all stages of the tree's product of coefficients (Butcher 1963)."""

    def stages(tree):
        values = [1.0] * len(weights)
        for subtree in tree:
            inner = stages(subtree)
            values = [v * sum(a * u for a, u in zip(row, inner)) for v, row in zip(values, rows)]
        return values

    return sum(b * v for b, v in zip(weights, stages(tree)))


def satisfied(order, rows, weights):
    """Return whether the conditions of this order hold.

    The elementary weight of each tree with that many nodes is one over its density.
    """
    return all(
        math.isclose(
            elementary_weight(tree, rows, weights), 1 / density(tree), rel_tol=1e-11, abs_tol=1e-12
        )
        for tree in trees(order)
    )


def test_the_trees():
    assert [len(trees(order)) for order in range(1, 9)] == [1, 1, 2, 4, 9, 20, 48, 115]
    assert (
        elementary_weight(((),), [(), (1,)], (0.5, 0.5)) == 0.5
    )  # the trapezoid rule: order 2, and not 3
    assert satisfied(2, [(), (1,)], (0.5, 0.5)) and not satisfied(3, [(), (1,)], (0.5, 0.5))


@pytest.mark.parametrize('name', RUNGE_KUTTA_TABLES)
def test_order_conditions(name):
    table = RUNGE_KUTTA_TABLES[name]
    assert all(satisfied(order, table.rows, table.weights) for order in range(1, table.order + 1))
    assert not satisfied(table.order + 1, table.rows, table.weights)
    shares = [math.fsum(row) for row in table.rows]
    assert all(-1e-12 < c < 1 + 1e-12 for c in shares)
    assert table.sweeps or (
        not table.rows[0] and all(not any(row[i:]) for i, row in enumerate(table.rows))
    )


@pytest.mark.parametrize('name', EXPONENTIAL_TABLES)
def test_without_the_linear_part_they_are_runge_kutta_methods(name):
    """At h = 0, where phi_k = 1 / k!, the coefficients satisfy the classical conditions and rows
    sum to their shares.
    """
    table = EXPONENTIAL_TABLES[name]
    *rows, weights = exponential_rows(name, 0.0)
    assert all(satisfied(order, rows, weights) for order in range(1, table.order + 1))
    assert not satisfied(table.order + 1, rows, weights)
    assert [sum(row) for row in rows] == pytest.approx(list(table.shares), abs=1e-12)


#: Table -> powers of the share up to which its weights integrate exactly, sum_i b_i c_i^k = k!
#: phi_{k+1}, whatever the step.
EXACT_TO = {
    'lawson41_4s': 0,
    'res_2s_rkmk2e': 0,
    'res_4s_munthe_kaas': 0,
    'res_4s_cfree4': 0,
    'res_4s_minchev': 1,
    'etdrk3_3s': 2,
    'etdrk4_4s': 2,
    'res_4s_krogstad': 2,
    'res_4s_strehmel_weiner': 2,
    'res_4s_friedli': 2,
    'res_5s_hochbruck_ostermann': 2,
    'res_6s_luan': 2,
    'res_8s_luan_ostermann': 3,
    'res_10s_luan': 3,
    'res_3s_alt': 1,
    'res_3s_sunstar': 1,
    'etdrk3_a_3s': 1,
    'etdrk3_b_3s': 1,
    'res_3s_non_monotonic': 1,
    'res_3s_strehmel_weiner': 1,
    'res_3s_lie': 2,
    'res_15s_luan_alhsmy': 4,
    'res_16s_luan_alhsmy': 5,
}


def exact_phi(k, h):
    """phi_k(-h) from its integral, the mean of e^{-h (1 - s)} s^{k-1} / (k - 1)! over [0, 1], by
    Simpson's rule.
    """
    n = 2000
    values = [math.exp(-h * (1 - i / n)) * (i / n) ** (k - 1) for i in range(n + 1)]
    simpson = (values[0] + values[-1] + 4 * sum(values[1::2]) + 2 * sum(values[2:-1:2])) / (3 * n)
    return simpson / math.factorial(k - 1)


@pytest.mark.parametrize('name', EXACT_TO)
@pytest.mark.parametrize('h', [0.2, 3.0])
def test_stiff_conditions_of_the_weights(name, h):
    """Hochbruck & Ostermann (2005), section 4; and stages that keep a constant D."""
    shares, (*rows, weights) = EXPONENTIAL_TABLES[name].shares, exponential_rows(name, h)
    for k in range(EXACT_TO[name] + 1):
        moment = sum(b * c**k for b, c in zip(weights, shares))
        assert moment == pytest.approx(math.factorial(k) * exact_phi(k + 1, h), rel=1e-10)
    for c, row in zip(shares[1:], rows[1:]):
        assert sum(row) == pytest.approx(c * exact_phi(1, c * h), rel=1e-10)


def observed(name, levels, counts):
    function = SAMPLERS[name].function
    errors = [
        (function(MODEL, start(), levels(n), disable=True) - converged())
        .square()
        .mean()
        .sqrt()
        .item()
        for n in counts
    ]
    return math.log(errors[0] / errors[1]) / math.log(counts[1] / counts[0])


@pytest.mark.parametrize('levels', [schedule, irregular])
@pytest.mark.parametrize('name', NAMES)
def test_order_by_slope(name, levels):
    """Between the counts the error of a method of order 5 still falls faster where its own term
    is small (Dormand and Prince).
    """
    order = SAMPLERS[name].order
    counts = (32, 64) if order < 7 else (16, 32) if order < 8 else (12, 24)
    assert order - 0.45 < observed(name, levels, counts) < order + (1.3 if order >= 5 else 0.3)


@pytest.mark.parametrize('name', ['gauss_legendre_2s', 'gauss_legendre_3s'])
def test_each_sweep_of_an_implicit_method_gives_an_order(name, monkeypatch):
    for sweeps in 1, 2:
        monkeypatch.setitem(
            RUNGE_KUTTA_TABLES, name, dataclasses.replace(RUNGE_KUTTA_TABLES[name], sweeps=sweeps)
        )
        assert observed(name, schedule, (64, 128)) == pytest.approx(sweeps + 1, abs=0.3)


@pytest.mark.parametrize('name', NAMES)
def test_calls_and_levels_of_a_step(name):
    """As many calls as stated, at levels within the step; one for the step to 0, which answers
    D.
    """
    levels = []

    def model(x, sigma):
        levels.append(sigma[0].item())
        return MODEL(x, sigma)

    out = SAMPLERS[name].function(model, start(), [HIGH, 4.0, 1.0, 0.0], disable=True)
    nfe = SAMPLERS[name].nfe
    assert len(levels) == 2 * nfe + 1
    for i, (high, low) in enumerate([(HIGH, 4.0), (4.0, 1.0)]):
        step = levels[i * nfe : (i + 1) * nfe]
        assert step[0] == high and all(low <= sigma <= high for sigma in step)
    last = SAMPLERS[name].function(MODEL, start(), [HIGH, 4.0, 1.0], disable=True)
    torch.testing.assert_close(out, MODEL(last, torch.ones(16, dtype=torch.float64)))


@pytest.mark.parametrize('name', NAMES)
def test_a_table_by_its_own_name_and_by_the_option(name):
    family, other = ('exp_rk', 'rk') if name in EXPONENTIAL_TABLES else ('rk', 'exp_rk')
    entry, x, sigmas = SAMPLERS[name], start(), schedule(3)
    assert (
        (entry.of, entry.fixed) == (family, {'table': name})
        and not entry.options
        and not entry.stochastic
    )
    by_option = getattr(sampling, f'sample_{family}')(MODEL, x, sigmas, disable=True, table=name)
    assert torch.equal(by_option, entry.function(MODEL, x, sigmas, disable=True))
    with pytest.raises(ValueError, match=f"unknown table '{name}'"):
        getattr(sampling, f'sample_{other}')(MODEL, x, sigmas, disable=True, table=name)


@pytest.mark.parametrize(
    ('name', 'same'),
    [
        ('heun_2s', 'heun'),
        ('res_2s_rkmk2e', None),
        ('lawson2b_2s', None),
    ],
)
def test_what_else_they_are(name, same):
    """The trapezoid rule is heun; a denoiser that always gives one value is followed exactly but
    by Lawson's methods.
    """
    if same:
        torch.testing.assert_close(
            SAMPLERS[name].function(MODEL, start(), schedule(5), disable=True),
            SAMPLERS[same].function(MODEL, start(), schedule(5), disable=True),
            rtol=1e-12,
            atol=1e-12,
        )
    clean = torch.full_like(start(), 2.0)
    expected = clean + (start() - clean) * (LOW / HIGH)
    out = SAMPLERS[name].function(lambda x, sigma: clean, start(), schedule(5), disable=True)
    assert torch.allclose(out, expected, rtol=1e-10) == (not name.startswith('lawson2'))


#: The explicit families that image programs list -> the names in them that are found here, as they
#: write them.
FAMILIES = {
    'exponential multistep': [
        'res_2m',
        'res_3m',
        'dpmpp_2m',
        'dpmpp_3m',
        'abnorsett_2m',
        'abnorsett_3m',
        'abnorsett_4m',
        'deis_2m',
        'deis_3m',
        'deis_4m',
    ],
    'exponential Runge-Kutta': [
        'res_2s',
        'res_2s_stable',
        'res_2s_rkmk2e',
        'res_3s',
        'res_3s_non-monotonic',
        'res_3s_alt',
        'res_3s_cox_matthews',
        'res_3s_lie',
        'res_3s_sunstar',
        'res_3s_strehmel_weiner',
        'res_4s_krogstad',
        'res_4s_krogstad_alt',
        'res_4s_strehmel_weiner',
        'res_4s_strehmel_weiner_alt',
        'res_4s_cox_matthews',
        'res_4s_cfree4',
        'res_4s_friedli',
        'res_4s_minchev',
        'res_4s_munthe-kaas',
        'res_5s',
        'res_5s_hochbruck-ostermann',
        'res_6s',
        'res_8s',
        'res_8s_alt',
        'res_10s',
        'res_15s',
        'res_16s',
        'etdrk2_2s',
        'etdrk3_3s',
        'etdrk3_a_3s',
        'etdrk3_b_3s',
        'etdrk4',
        'etdrk4_4s',
        'etdrk4_4s_alt',
        'dpmpp_2s',
        'dpmpp_sde_2s',
        'dpmpp_3s',
        'ddim',
    ],
    'Lawson': [
        'lawson2a_2s',
        'lawson2b_2s',
        'lawson4_4s',
        'lawson41-gen_4s',
        'lawson41-gen-mod_4s',
    ],
    'hybrid': [
        'pec423_2h2s',
        'pec433_2h3s',
        'abnorsett2_1h2s',
        'abnorsett3_2h2s',
        'abnorsett4_3h2s',
        'lawson42-gen-mod_1h4s',
        'lawson43-gen-mod_2h4s',
        'lawson44-gen-mod_3h4s',
        'lawson45-gen-mod_4h4s',
    ],
    'linear': [
        'ralston_2s',
        'ralston_3s',
        'ralston_4s',
        'midpoint_2s',
        'heun_2s',
        'heun_3s',
        'houwen-wray_3s',
        'kutta_3s',
        'ssprk3_3s',
        'ssprk4_4s',
        'rk38_4s',
        'rk4_4s',
        'rk5_6s',
        'rk5_7s',
        'rk6_7s',
        'bogacki-shampine_3s',
        'bogacki-shampine_4s',
        'bogacki-shampine_7s',
        'dormand-prince_6s',
        'dormand-prince_13s',
        'tsi_7s',
    ],
    'implicit': ['gauss-legendre_2s', 'gauss-legendre_3s'],
}


@pytest.mark.parametrize('name', [*itertools.chain(*FAMILIES.values())])
def test_names_of_other_programs(name):
    entry = sampling.find_sampler(name)
    assert getattr(sampling, f'sample_{entry.name}') is entry.function
    stated = name.rpartition('_')[2]
    if (
        stated.endswith('s')
        and stated[:-1].isdigit()
        and name not in ('bogacki-shampine_4s', 'tsi_7s')
    ):  # whose last is the next first
        assert entry.nfe == int(stated[:-1]) or 'gauss' in name


@pytest.mark.parametrize('modified', [False, True])
def test_generalised_lawson_with_three_values_has_the_weights_of_the_paper(modified):
    """Ostermann, Thalhammer & Wright, section 5, for steps of one length."""
    h = 0.7
    p1, p2, p3, p4 = (phi(k, -h) for k in (1, 2, 3, 4))
    half = math.exp(-h / 2)
    if modified:
        paper = [
            p1 + p2 / 2 - 2 * p3 - 3 * p4 - 5 / 8 * half,
            -p2 + p3 + 3 * p4 + 5 / 24 * half,
            p2 / 6 - p4 - half / 24,
            half / 3,
            half / 3,
            p2 / 3 + p3 + p4 - 5 / 24 * half,
        ]
    else:
        paper = [
            p1 + 3 / 2 * p2 + p3 - 5 / 4 * half - 1 / 2,
            -2 * p2 - 2 * p3 + 5 / 6 * half + 1 / 2,
            p2 / 2 + p3 - half / 4 - 1 / 6,
            half / 3,
            half / 3,
            1 / 6,
        ]
    *_, end = lawson_rows(tuple(math.exp(j * h) for j in range(3)), math.exp(-h), modified)
    assert end == pytest.approx([h * b for b in paper], abs=1e-14)


def test_generalised_lawson_with_one_value_is_the_table():
    general = sampling.sample_exp_lawson(
        MODEL, start(), schedule(8), disable=True, values=1, modified=False
    )
    torch.testing.assert_close(
        general, sampling.sample_lawson41_4s(MODEL, start(), schedule(8), disable=True)
    )


def test_predict_evaluate_correct_by_hand():
    """Two steps, so that the second one has a value of the past: the corrector is exact for D
    quadratic in log sigma.
    """
    levels = [8.0, 4.0, 1.0]
    x, before = start(), None
    for sigma, sigma_next in itertools.pairwise(levels):
        h = math.log(sigma / sigma_next)
        d = MODEL(x, torch.full([len(x)], sigma, dtype=x.dtype))
        nodes = [0.0] if before is None else [0.0, -math.log(2.0) / h]
        values = [d] if before is None else [d, before]
        ahead = integrate_exactly(x, h, nodes, values)
        end = MODEL(ahead, torch.full([len(x)], sigma_next, dtype=x.dtype))
        x, before = integrate_exactly(x, h, [*nodes, 1.0], [*values, end]), d
    result = sampling.sample_exp_pec(MODEL, start(), levels, disable=True)
    torch.testing.assert_close(result, x, rtol=1e-9, atol=1e-9)


def integrate_exactly(x, h, nodes, values):
    """e^-h x + h times the integral of e^{-h (1 - s)} P(s), by quadrature."""
    x = x * math.exp(-h)
    for j, value in enumerate(values):

        def weighted(s, j=j):
            others = [node for i, node in enumerate(nodes) if i != j]
            basis = math.prod((s - node) / (nodes[j] - node) for node in others)
            return h * math.exp(-h * (1 - s)) * basis

        x = x + quad(weighted, 0.0, 1.0)[0] * value
    return x


@pytest.mark.parametrize(
    ('name', 'options'), [('exp_lawson', {'values': 3}), ('exp_pec', {'corrections': 2})]
)
def test_hybrids_skip_a_repeated_level(name, options):
    run = SAMPLERS[name].function
    plain = run(MODEL, start(), [8.0, 4.0, 2.0, 1.0, 0.5, 0.0], disable=True, **options)
    again = run(MODEL, start(), [8.0, 4.0, 2.0, 2.0, 1.0, 0.5, 0.0], disable=True, **options)
    torch.testing.assert_close(again, plain)
    with pytest.raises(ValueError, match='values must be an integer >= 1; got 0'):
        run(MODEL, start(), [1.0, 0.5], disable=True, values=0)


@pytest.mark.parametrize(
    ('name', 'other', 'options'),
    [
        ('dpmpp_2s', 'dpmpp_2s_ancestral', {'eta': 0.0}),
        ('res_3m', 'exp_ab', {'order': 3}),
        ('res_2m', 'exp_ab', {'order': 2}),
        ('abnorsett_4m', 'exp_ab', {'order': 4}),
        ('deis_2m', 'deis', {'order': 2}),
        ('deis_4m', 'deis', {'order': 4}),
        ('dpmpp_3s', 'seeds_3', {'eta': 0.0}),
    ],
)
def test_presets_of_other_samplers(name, other, options):
    out = sampling.find_sampler(name).function(MODEL, start(), schedule(8), disable=True)
    torch.testing.assert_close(
        out,
        SAMPLERS[other].function(MODEL, start(), schedule(8), disable=True, **options),
        rtol=1e-12,
        atol=1e-12,
    )
