"""Denoisers put together at random, compared with a plain reference that is evaluated item by
item.
"""

import itertools
import math
import random

import numpy as np
import pytest
import torch

import k_diffusion as K
from k_diffusion.core.conditions import select_entries
from k_diffusion.core.wrapping import select_items

N, SHAPE = 5, (2, 3, 3)
CASES, CHUNK = 500, 25

#: Kinds of guidance that `wrap_variant` makes.
VARIANTS = ('zero star', 'tangential', 'frequency', 'epsilon', 'detail')


def number_of(tree):
    """A number that tells the condition of one item: every leaf counts."""
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
        return float((flat * torch.arange(1, len(flat) + 1)).mean())
    return float(tree)


def of_item(tree, i, n):
    """Return the condition of item i as a network receives it in a batch of n."""
    if isinstance(tree, dict):
        return {key: of_item(value, i, n) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        if len(tree) == n and all(isinstance(value, str) for value in tree):
            return tree[i]
        return type(tree)(of_item(value, i, n) for value in tree)
    if isinstance(tree, torch.Tensor) and tree.ndim and len(tree) in (1, n):
        return tree[i % len(tree)]
    return tree


def network(x, t, **cond):
    """A network that looks at the conditions of each item."""
    n = len(x)
    shift = [math.tanh(number_of(of_item(cond, i, n))) for i in range(n)]
    return torch.sin(x) + x.new_tensor(shift).view(-1, 1, 1, 1) * t.view(-1, 1, 1, 1)


def network_of_item(x, t, cond):
    return np.sin(x) + math.tanh(number_of(cond)) * t


def resized(n, m):
    """The matrix [m, n] of linear interpolation of n samples at the centres of m cells, clamped
    at the ends.
    """
    out = np.zeros((m, n))
    for i in range(m):
        at = min(max((i + 0.5) * n / m - 0.5, 0), n - 1)
        low = min(int(at), max(n - 2, 0))
        out[i, low] += 1 - (at - low)
        out[i, min(low + 1, n - 1)] += at - low
    return out


def blurring(n):
    """The matrix of the filter (1, 4, 6, 4, 1) / 16 whose taps beyond an end are on its last
    sample.
    """
    out = np.zeros((n, n))
    for i in range(n):
        for tap, weight in enumerate([1, 4, 6, 4, 1]):
            out[i, min(max(i + tap - 2, 0), n - 1)] += weight / 16
    return out


def pyramid_bands(picture, n):
    """The n bands of a picture [..., H, W], the finest first, each at full size."""
    small, back, states = np.eye(picture.shape[-1]), np.eye(picture.shape[-1]), [picture]
    for _ in range(n - 1):  # square pictures: one matrix for both axes
        size = len(small)
        down, up = (
            resized(size, (size + 1) // 2) @ blurring(size),
            blurring(size) @ resized((size + 1) // 2, size),
        )
        small, back = down @ small, back @ up
        both = back @ small
        states.append(both @ picture @ both.T)
    return [a - b for a, b in itertools.pairwise(states)] + states[-1:]


class Maker:
    """Makes a denoiser for a batch and the function (x, sigma, cond, i) -> D of one item that it
    must agree with.
    """

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.draws = torch.Generator().manual_seed(seed)

    def normal(self, *shape):
        return torch.randn(*shape, generator=self.draws, dtype=torch.float64)

    def yes(self, share=0.5):
        return self.random.random() < share

    def condition(self):
        """(for the batch, for each item, null for the batch, null for each item)."""
        kind = self.random.choice(
            [
                'number',
                '0-d',
                'labels',
                'text',
                'one text',
                'string',
                'strings',
                'dict',
                'tuple',
                'null of each',
                'null of another length',
                'none',
            ]
        )
        labels = torch.tensor([self.random.randrange(9) for _ in range(N)])
        text = self.normal(N, 4, 3)
        if kind == 'number':
            return 3.5, [3.5] * N, 9, [9] * N
        if kind == '0-d':
            return torch.tensor(2.0), [2.0] * N, torch.tensor(8.0), [8.0] * N
        if kind == 'labels':
            return labels, [*labels], 9, [9] * N
        if kind == 'text':
            null = self.normal(4, 3)
            return text, [*text], null[None] if self.yes() else null, [null] * N
        if kind == 'one text':
            null = self.normal(1, 4, 3)
            return text[:1], [text[0]] * N, null, [null[0]] * N
        if kind == 'string':
            return 'a prompt', ['a prompt'] * N, '', [''] * N
        if kind == 'strings':
            words = ['a' * (i + 1) for i in range(N)]
            return words, words, '', [''] * N
        if kind == 'dict':
            return (
                {'text': text, 'ids': labels},
                [{'text': text[i], 'ids': labels[i]} for i in range(N)],
                {'text': 0.0},
                [{'text': text[i] * 0, 'ids': labels[i]} for i in range(N)],
            )
        if kind == 'tuple':
            return (
                (text, text[:, 0]),
                [(text[i], text[i, 0]) for i in range(N)],
                0.0,
                [(text[i] * 0, text[i, 0] * 0) for i in range(N)],
            )
        if kind == 'null of each':
            null = self.normal(N, 4, 3)
            return text, [*text], null, [*null]
        if kind == 'null of another length':
            null = self.normal(1, 2, 3)
            return text, [*text], null, [null[0]] * N
        return text, [*text], None, [None] * N

    def base(self):
        if self.yes():

            def plain(x, sigma, **cond):
                return network(x, sigma, **cond) / (1 + sigma.view(-1, 1, 1, 1))

            return plain, lambda x, s, cond, i: network_of_item(x, s, cond) / (1 + s)

        def foreign(x, s, cond, i):
            scale = math.sqrt(s * s + 1)
            return x / scale**2 - s / scale * network_of_item(
                x / scale, math.atan(s) * 2 / math.pi, cond
            )

        return K.external.VDenoiser(network), foreign

    def interval(self):
        return (0.4, 2.0) if self.yes() else (0.0, math.inf)

    def wrap(self, model, item, null, nulls, joined):
        kind = self.random.choice(
            ['cfg', 'apg', 'autoguidance', 'composed', 'inpainting', 'static', 'dynamic', *VARIANTS]
        )
        interval, scale = self.interval(), self.random.choice([0.0, 1.0, 2.5, 7.0])
        low, high = interval
        absent = {i: {'c': nulls[i]} for i in range(N)}

        def by_two(guide, active=scale != 1):
            """A guidance by the conditional and the unconditional estimate of an item."""

            def guided(x, s, cond, i):
                with_ = item(x, s, cond, i)
                if not active or not low < s <= high:
                    return with_
                return guide(x, s, with_, item(x, s, {**cond, **absent[i]}, i))

            return guided

        if kind == 'cfg':
            rescale = self.random.choice([0.0, 0.7])

            def cfg(x, s, cond, i):
                with_ = item(x, s, cond, i)
                if scale == 1 or not low < s <= high:
                    return with_
                without = item(x, s, {**cond, **absent[i]}, i)
                out = without + scale * (with_ - without)
                ratio = with_.std(ddof=1) / out.std(ddof=1)
                return out * (1 - rescale + rescale * ratio)

            return K.guidance.classifier_free(model, null, scale, interval, rescale, joined), cfg
        if kind == 'apg':
            eta, norm = self.random.choice([0.0, 0.3]), self.random.choice([None, 0.2])

            def apg(x, s, cond, i):
                with_ = item(x, s, cond, i)
                if scale == 1 or not low < s <= high:
                    return with_
                push = with_ - item(x, s, {**cond, **absent[i]}, i)
                if norm is not None:
                    push = push * min(1.0, norm / max(1e-12, math.sqrt((push**2).mean())))
                along = with_ * (push * with_).sum() / (with_**2).sum()
                return with_ + (scale - 1) * (push - along + eta * along)

            return K.guidance.adaptive_projected(
                model, null, scale, interval, eta, norm, joined=joined
            ), apg
        if kind == 'autoguidance':
            worse, worse_item = self.base()

            def auto(x, s, cond, i):
                good = item(x, s, cond, i)
                bad = worse_item(x, s, cond, i)
                return bad + scale * (good - bad) if scale != 1 and low < s <= high else good

            return K.guidance.autoguidance(model, worse, scale, interval), auto
        if kind == 'composed':
            weight = self.normal(N, 1, 1, 1) if self.yes() else self.random.choice([1.0, 2.0])

            def composed(x, s, cond, i):
                prompt, without = (
                    item(x, s, {**cond, 'c': own[i]}, i) for own in (self.conds, nulls)
                )
                return without + (weight[i].numpy() if torch.is_tensor(weight) else weight) * (
                    prompt - without
                )

            return K.guidance.composed(model, null, [self.batch_cond], [weight], joined), composed
        if kind in VARIANTS:
            return self.wrap_variant(kind, model, item, null, scale, interval, by_two, joined)
        if kind == 'inpainting':
            each = self.yes()
            image = self.normal(N, *SHAPE) if each else self.normal(*SHAPE)
            mask = torch.rand(
                *([N] if each else []), 1, 3, 3, generator=self.draws, dtype=torch.float64
            )
            mask = mask if self.yes() else (mask > 0.5)

            def inpainted(x, s, cond, i):
                pixels, where = (value[i] if each else value for value in (image, mask.double()))
                return (where * pixels).numpy() + (1 - where).numpy() * item(x, s, cond, i)

            return K.guidance.inpainting(model, image, mask), inpainted
        if kind == 'static':
            return K.guidance.static_thresholding(model, -0.6, 0.9), lambda x, s, cond, i: np.clip(
                item(x, s, cond, i), -0.6, 0.9
            )

        def dynamic(x, s, cond, i):
            out = item(x, s, cond, i)
            size = max(0.5, np.quantile(np.abs(out), 0.9))
            return np.clip(out, -size, size) * 0.5 / size

        return K.guidance.dynamic_thresholding(model, 0.9, 0.5), dynamic

    def wrap_variant(self, kind, model, item, null, scale, interval, by_two, joined):
        """One of VARIANTS over a model, and over its plain reference; by_two: a guidance by an
        item's two estimates.
        """
        low, high = interval
        if kind == 'zero star':
            zero_above = self.random.choice([1.5, math.inf])

            def velocities(x, s, with_, without):
                t = s / (1 + s)  # on the straight path, where the state is x / (1 + s)
                with_, without = ((x / (1 + s) - each) / t for each in (with_, without))
                square = (without**2).sum()
                best = (with_ * without).sum() / square if square > 1e-20 else 0.0
                return x / (1 + s) - t * ((1 - scale) * best * without + scale * with_)

            guided = by_two(velocities)
            return (
                K.guidance.cfg_zero_star(model, null, scale, interval, zero_above, joined),
                lambda x, s, cond, i: guided(x, s, cond, i) if s <= zero_above else x / (1 + s),
            )
        if kind == 'tangential':

            def damped(x, s, with_, without):
                scores = [((each - x) / s**2).ravel() for each in (without, with_)]
                first = np.linalg.svd(np.stack(scores))[2][0]
                score = (scores[0] @ first) * first
                return x + s**2 * (score + scale * (scores[1] - score)).reshape(x.shape)

            return K.guidance.tangential_damping(model, null, scale, interval, joined), by_two(
                damped
            )
        if kind == 'frequency':
            scales = [self.random.choice([0.0, 1.0, 4.0]) for _ in range(self.random.randint(1, 3))]

            def banded(x, s, with_, without):
                bands = pyramid_bands(with_ - without, len(scales))
                return without + sum(weight * band for weight, band in zip(scales, bands))

            return K.guidance.frequency_decoupled(model, null, scales, interval, joined), by_two(
                banded, True
            )
        if kind == 'epsilon':
            factor = 1.2 if self.yes() else lambda s: 1 + s / 9
            return (
                K.guidance.epsilon_scaling(model, factor),
                lambda x, s, cond, i: (
                    x - (x - item(x, s, cond, i)) / (1.2 if factor == 1.2 else 1 + s / 9)
                ),
            )
        amount = 0.15 if self.yes() else lambda s: s / (1 + s**2) / 3

        def shifted(x, s, cond, i):
            a = (0.15 if amount == 0.15 else s / (1 + s**2) / 3) if low < s <= high else 0.0
            return item(x, s * (1 - a), cond, i)

        return K.guidance.detail(model, amount, interval), shifted

    def make(self):
        cond, conds, null, nulls = self.condition()
        self.batch_cond, self.conds = {'c': cond}, conds
        model, item = self.base()
        for _ in range(self.random.randint(1, 3)):
            model, item = self.wrap(model, item, {'c': null}, nulls, self.yes(0.7))
        extra = {'shared': self.normal(17, 3)} if self.yes() else {}
        return model, item, {'c': cond, **extra}, [{'c': conds[i], **extra} for i in range(N)]


@pytest.mark.parametrize('chunk', range(CASES // CHUNK))
def test_a_composition_is_its_reference_item_by_item(chunk):
    for seed in range(chunk * CHUNK, (chunk + 1) * CHUNK):
        maker = Maker(seed)
        model, item, cond, conds = maker.make()
        x, sigma = (
            maker.normal(N, *SHAPE) * 2,
            torch.tensor([0.2, 0.5, 1.0, 2.0, 3.0], dtype=torch.float64),
        )
        expected = [item(x[i].numpy(), float(sigma[i]), conds[i], i) for i in range(N)]
        rows = torch.tensor(maker.random.sample(range(N), maker.random.randint(1, N)))
        whole = model(x, sigma, **cond)
        part = select_items(model, rows, x.shape)(
            x[rows], sigma[rows], **select_entries(cond, rows, N)
        )
        for answer, items in (whole, range(N)), (part, rows.tolist()):
            for row, i in enumerate(items):
                np.testing.assert_allclose(
                    answer[row].numpy(),
                    expected[i],
                    atol=1e-6,
                    rtol=0,
                    err_msg=f'seed {seed}, item {i}: {model}',
                )
