"""Conditions of every type under guidance, compared with the formula evaluated item by item."""

import copy
import pickle

import pytest
import torch

import k_diffusion as K
from k_diffusion.guidance import classifier_free, composed

B, SCALE = 3, 3.0
X, SIGMA = (
    torch.randn(B, 1, 2, 2, dtype=torch.float64),
    torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64),
)


def number_of(tree):
    """A number that tells a condition of one item: every leaf counts, each by its own weight."""
    if tree is None:
        return -0.7
    if isinstance(tree, str):
        return len(tree) / 3
    if isinstance(tree, dict):
        return sum((i + 1) * number_of(tree[key]) for i, key in enumerate(sorted(tree)))
    if isinstance(tree, (list, tuple)):
        return sum((i + 2) * number_of(value) for i, value in enumerate(tree))
    if isinstance(tree, torch.Tensor):
        flat = tree.flatten().double()
        return float((flat * torch.arange(1, len(flat) + 1)).mean()) if len(flat) else 0.0
    return float(tree)


def item(tree, i, n):
    """Return the part of a condition for item i of n; a leading dimension of n counts items."""
    if isinstance(tree, dict):
        return {key: item(value, i, n) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        if len(tree) == n and all(isinstance(value, str) for value in tree):
            return tree[i]
        return type(tree)(item(value, i, n) for value in tree)
    if isinstance(tree, torch.Tensor) and tree.ndim and len(tree) in (1, n):
        return tree[i % len(tree)]
    return tree


def denoise(x, sigma, **cond):
    """D that tells the conditions of each item; it looks at them item by item."""
    shift = [number_of(item(cond, i, len(x))) for i in range(len(x))]
    return x / (1 + sigma.view(-1, 1, 1, 1)) + x.new_tensor(shift).view(-1, 1, 1, 1)


TEXT = torch.randn(B, 4, 5, dtype=torch.float64)
CASES = {
    'numbers': ({'c': 3}, {'c': 10}, [{'c': 10}] * B),
    'floats': ({'c': 3.5}, {'c': 0.0}, [{'c': 0.0}] * B),
    '0-d tensors': ({'c': torch.tensor(3.0)}, {'c': torch.tensor(10.0)}, [{'c': 10.0}] * B),
    'a number for labels': ({'c': torch.tensor([1, 2, 4])}, {'c': 7}, [{'c': 7}] * B),
    'strings': ({'c': 'a prompt'}, {'c': ''}, [{'c': ''}] * B),
    'a string for each': ({'c': ['a', 'bcd', 'ef']}, {'c': ''}, [{'c': ''}] * B),
    'None': ({'c': torch.tensor([1, 2, 4])}, {'c': None}, [{'c': None}] * B),
    'embeddings, null of one item': ({'c': TEXT}, {'c': TEXT[0] * 0.1}, [{'c': TEXT[0] * 0.1}] * B),
    'embeddings, null [1, T, E]': ({'c': TEXT}, {'c': TEXT[:1] * 0.1}, [{'c': TEXT[0] * 0.1}] * B),
    'pooled embeddings, null [1, E]': (
        {'c': TEXT[:, 0]},
        {'c': TEXT[:1, 0] * 0.1},
        [{'c': TEXT[0, 0] * 0.1}] * B,
    ),
    'nested, null [1, E]': (
        {'added': {'text': TEXT[:, 0], 'ids': torch.ones(B, 6)}},
        {'added': {'text': TEXT[:1, 0] * 0.1}},
        [{'added': {'text': TEXT[0, 0] * 0.1, 'ids': torch.ones(6)}}] * B,
    ),
    'one embedding for all': ({'c': TEXT[:1]}, {'c': TEXT[1:2]}, [{'c': TEXT[1]}] * B),
    'null of another length': ({'c': TEXT}, {'c': TEXT[:1, :2]}, [{'c': TEXT[0, :2]}] * B),
    'null for each item': ({'c': TEXT}, {'c': -TEXT}, [{'c': -TEXT[i]} for i in range(B)]),
    'nested dict': (
        {'added': {'text': TEXT, 'ids': torch.ones(B, 6)}},
        {'added': {'text': 0.0, 'ids': 2}},
        [{'added': {'text': TEXT[0] * 0, 'ids': torch.full((6,), 2.0)}}] * B,
    ),
    'a part of a dict': (
        {'added': {'text': TEXT, 'ids': torch.ones(B, 6)}},
        {'added': {'text': 0.0}},
        [{'added': {'text': TEXT[0] * 0, 'ids': torch.ones(6)}}] * B,
    ),
    'tuple of residuals': (
        {'r': (TEXT, TEXT[:, 0])},
        {'r': 0.0},
        [{'r': (TEXT[0] * 0, TEXT[0, 0] * 0)}] * B,
    ),
}


@pytest.mark.parametrize(
    'extra',
    [{}, {'strength': 0.8, 'ids': torch.randn(16, 3)}, {'style': torch.tensor([1, 5, 2])}],
    ids=['alone', 'shared extras', 'another per item'],
)
@pytest.mark.parametrize('joined', [True, False])
@pytest.mark.parametrize('name', CASES)
def test_guidance_is_its_formula_item_by_item(name, joined, extra):
    cond, null, nulls = CASES[name]
    actual = classifier_free(denoise, null, SCALE, joined=joined)(X, SIGMA, **cond, **extra)
    for i in range(B):
        base = X[i] / (1 + SIGMA[i])
        more = item(extra, i, B)
        with_, without = (number_of({**c, **more}) for c in (item(cond, i, B), nulls[i]))
        torch.testing.assert_close(actual[i], base + without + SCALE * (with_ - without))


def test_the_model_gets_the_type_that_was_passed():
    types = []

    def ask(x, sigma, c, d):
        types.append((type(c), type(d)))
        return x * c

    actual = classifier_free(ask, {'c': 10}, 3.0)(torch.ones(2, 1), torch.ones(2), c=3, d=('a', 1))
    assert types == [(int, tuple)] * 2 and torch.equal(actual, torch.full((2, 1), -11.0))


def test_batched_conditions_are_one_call():
    calls = []

    def ask(x, sigma, c, added):
        calls.append((len(x), tuple(c.shape), tuple(added['text'].shape), added['scale']))
        return x

    classifier_free(ask, {'c': 9, 'added': {'text': 0.0}}, 2.0)(
        X, SIGMA, c=torch.tensor([1, 2, 3]), added={'text': TEXT, 'scale': 0.5}
    )
    assert calls == [(6, (6,), (6, 4, 5), 0.5)]


@pytest.mark.parametrize('lead', [[], [1]], ids=['of one item', 'as an encoder gives it'])
@pytest.mark.parametrize('joined', [True, False])
def test_prompts_alone_are_one_embedding_for_each_item(joined, lead):
    null, prompt = TEXT[0], TEXT[1]
    shapes = []

    def ask(x, sigma, c):
        shapes.append(tuple(c.shape[1:]))
        return denoise(x, sigma, c=c)

    guided = composed(
        ask, {'c': null.view(*lead, 4, 5)}, [{'c': prompt.view(*lead, 4, 5)}], [2.0], joined
    )
    expected = number_of({'c': null}) + 2.0 * (number_of({'c': prompt}) - number_of({'c': null}))
    torch.testing.assert_close(guided(X, SIGMA), X / (1 + SIGMA.view(-1, 1, 1, 1)) + expected)
    assert set(shapes) == {(4, 5)}


def test_a_shared_tensor_stays_shared_when_guidance_takes_it_away_twice():
    shapes = []

    def ask(x, sigma, ids):
        shapes.append(tuple(ids.shape))
        return torch.zeros_like(x) + ids.sum()

    guided = classifier_free(classifier_free(ask, {'ids': 0.0}, 2.0), {'ids': 0.0}, 3.0)
    actual = guided(X, SIGMA, ids=K.share(torch.ones(B, 2, dtype=X.dtype)))
    assert set(shapes) == {(B, 2)}
    torch.testing.assert_close(actual, torch.full_like(X, 3.0 * 2.0 * 2 * B))


@pytest.mark.parametrize(
    ('null', 'cond', 'message'),
    [
        (
            -1,
            torch.tensor([1, 2, 3], dtype=torch.uint8),
            r"null\['c'\] must be a value that the dtype .*uint8.* got -1",
        ),
        (0.5, torch.tensor([1, 2, 3]), 'int64, can hold; got 0.5'),
        (300, torch.tensor([1, 2, 3], dtype=torch.uint8), 'got 300'),
        (torch.zeros(2), torch.zeros(3, 5), r'\[5\].* got \[2\]'),
        ({'text': 0.0}, {'prompt': TEXT}, "got 'text'"),
    ],
)
def test_a_null_that_does_not_fit_is_refused(null, cond, message):
    with pytest.raises(ValueError, match=message):
        classifier_free(denoise, {'c': null}, 2.0)(X, SIGMA, c=cond)


@pytest.mark.parametrize('batch_size', [1, 2, 5, 64])
def test_sample_splits_trees_and_shares_the_rest(batch_size):
    n = 5
    cond = {
        'c': torch.arange(n),
        'added': {'text': torch.randn(n, 2, 3), 'one': torch.randn(1, 4)},
        'pair': (torch.randn(n, 2), 'word'),
        'strength': 0.8,
        'ids': torch.randn(16, 3),
        'prompts': ['a', 'bb', 'ccc', 'dddd', ''],
        'none': None,
    }
    start = torch.randn(n, 1, 2, 2)
    actual = K.sample(
        denoise,
        start * 3,
        schedule=[3.0, 1.0, 0.0],
        sampler='euler',
        cond=cond,
        guidance=2.0,
        null={'c': 7},
        batch_size=batch_size,
    )
    for i in range(n):
        x = start[i].double() * 3
        for sigma, sigma_next in ((3.0, 1.0), (1.0, 0.0)):
            base = x / (1 + sigma)
            with_, without = (number_of({**item(cond, i, n), 'c': c}) for c in (i, 7))
            denoised = base + without + 2 * (with_ - without)
            x = x + (x - denoised) / sigma * (sigma_next - sigma)
        torch.testing.assert_close(actual[i].double(), x, atol=1e-4, rtol=1e-5)


def test_shared_tensors_are_not_split():
    """A tensor of 16 rows beside 16 items is shared where it is marked."""
    shapes = []

    def ask(x, sigma, ids, c):
        shapes.append(tuple(ids.shape))
        return x

    marked = K.share(torch.randn(16, 3))
    K.sample(
        ask,
        [16, 1, 2, 2],
        2,
        'euler',
        seeds=0,
        batch_size=4,
        guidance=2.0,
        null={'c': 0},
        cond={'ids': marked, 'c': torch.ones(16)},
    )
    assert set(shapes) == {(16, 3)}


def test_all_leaves_are_cast_to_the_networks_dtype():
    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1, dtype=torch.bfloat16))

        def forward(self, x, sigma, added, residuals, label):
            assert {t.dtype for t in (added['text'], *residuals)} == {
                torch.bfloat16
            } and label.dtype == torch.int64
            return x * self.weight

    cond = {
        'added': {'text': torch.ones(2, 3)},
        'residuals': (torch.ones(2), [torch.ones(2)][0]),
        'label': torch.tensor([1, 2]),
    }
    K.Denoiser(Network(), 0.5)(torch.ones(2, 1, 2, 2), torch.ones(2), **cond)


class AnyGaussian:
    """The exact denoiser of N(0, 0.5^2), with a table of levels."""

    sigma_min, sigma_max, sigmas = 0.03, 14.6, torch.tensor([0.03, 14.6])

    def __call__(self, x, sigma, **cond):
        return x * (0.25 / (0.25 + sigma.view(-1, 1, 1, 1) ** 2))


def wrappers():
    image, mask = (
        torch.randn(1, 2, 2, dtype=torch.float64),
        torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64),
    )
    guidance, base = K.guidance, AnyGaussian()
    return base, {
        'classifier_free': guidance.classifier_free(base, {}, 3.0),
        'adaptive_projected': guidance.adaptive_projected(base, {}, 3.0),
        'autoguidance': guidance.autoguidance(base, base, 3.0),
        'static': guidance.static_thresholding(base),
        'dynamic': guidance.dynamic_thresholding(base),
        'inpainting': guidance.inpainting(base, image, mask, spread=0.5),
        'pseudo_inverse': guidance.pseudo_inverse(base, torch.neg, image),
        'posterior': guidance.posterior_sampling(base, torch.neg, image),
        'classifier': guidance.classifier_guidance(base, log_prob),
        'loss': guidance.loss_guidance(base, loss, 1.0),
        'composed': guidance.composed(base, {}, [{}], [2.0]),
    }


def log_prob(x, sigma, y):
    return -x.flatten(1).square().sum(1) * y


def loss(denoised, sigma):
    return denoised.flatten(1).square().sum(1)


@pytest.mark.parametrize('name', wrappers()[1])
def test_a_wrapper_has_what_the_model_has_and_can_be_pickled(name):
    base, by_name = wrappers()
    cond = {'class_cond': torch.tensor([1.0, 2.0, 3.0])} if name == 'classifier' else {}
    wrapper = by_name[name]
    assert (wrapper.sigma_min, wrapper.sigma_max) == (0.03, 14.6) and torch.equal(
        wrapper.sigmas, base.sigmas
    )
    assert not hasattr(wrapper, 'not_there')
    assert hasattr(wrapper, 'pair') == (
        name
        not in (
            'inpainting',
            'pseudo_inverse',
            'posterior',
            'classifier',
            'loss',
            'static',
            'dynamic',
        )
    )
    expected = wrapper(X, SIGMA, **cond)
    for other in (pickle.loads(pickle.dumps(wrapper)), copy.deepcopy(wrapper)):
        assert torch.equal(other(X, SIGMA, **cond), expected)


def test_sample_walks_the_range_of_the_model_inside():
    levels = []
    for name in ('static', 'autoguidance', 'inpainting'):
        K.sample(
            wrappers()[1][name],
            torch.randn(2, 1, 2, 2),
            4,
            'euler',
            schedule='karras',
            seeds=0,
            callback=lambda done, info: levels.append(float(info['sigma'])),
        )
    assert levels[::4] == pytest.approx([14.6] * 3) and levels[3::4] == pytest.approx([0.03] * 3)


@pytest.mark.parametrize(
    ('name', 'make'),
    [
        ('classifier_free', lambda f, **k: K.guidance.classifier_free(f, {'c': 0.0}, 4.0, **k)),
        (
            'adaptive_projected',
            lambda f, **k: K.guidance.adaptive_projected(f, {'c': 0.0}, 4.0, **k),
        ),
        (
            'autoguidance',
            lambda f, **k: K.guidance.autoguidance(f, lambda x, s, c: x * 0, 4.0, **k),
        ),
    ],
)
def test_outside_the_interval_both_estimates_are_the_conditional_one(name, make):
    label = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)

    def ask(x, sigma, c):
        return x * 0.5 + c.view(-1, 1, 1, 1)

    plain = ask(X, SIGMA, label)
    guided, unconditional = make(ask, interval=(0.7, 1.5)).pair(X, SIGMA, c=label)
    for estimate in (guided, unconditional):
        assert torch.equal(estimate[[0, 2]], plain[[0, 2]]) and not torch.allclose(
            estimate[1], plain[1]
        )
    both = make(ask, interval=(5.0, 9.0)).pair(X, SIGMA, c=label)
    assert torch.equal(both[0], plain) and torch.equal(both[1], plain)


def test_cfg_pp_in_an_interval_lies_between_none_and_everywhere():
    """Two Gaussians of deviation 0.5 around 0 (unconditional) and 2: the closed form of D is
    linear in x.
    """

    def exact(x, sigma, c):
        s2 = sigma.view(-1, 1) ** 2
        return (0.25 * x + s2 * 2 * c.view(-1, 1)) / (0.25 + s2)

    torch.manual_seed(0)
    start, sigmas = (
        torch.randn(4000, 1, dtype=torch.float64) * 40,
        K.schedules.get_sigmas_karras(40, 0.01, 40.0),
    )
    cond = {'c': torch.ones(4000, dtype=torch.float64)}

    def mean(scale, interval):
        model = classifier_free(exact, {'c': 0.0}, scale, interval)
        return (
            K.sampling.sample_euler_cfg_pp(model, start, sigmas, cond, disable=True).mean().item()
        )

    nowhere, everywhere, part = (
        mean(0.6, (1e4, 2e4)),
        mean(0.6, (0.0, float('inf'))),
        mean(0.6, (0.3, 3.0)),
    )
    assert nowhere == pytest.approx(2.0, abs=0.05)
    assert min(nowhere, everywhere) < part < max(nowhere, everywhere)
