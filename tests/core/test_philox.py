"""The counter-based generator: words against the authors' vectors, numbers against their law."""

from __future__ import annotations

import math
import time

import pytest
import scipy.stats
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from k_diffusion.core import philox
from k_diffusion.core.philox import draw_normals, fill, fill_in_place, mix_in_place
from k_diffusion.core.random import draw_items

#: The known answers of Random123 1.09 (kat_vectors, philox4x32 10): counter, key, words.
PUBLISHED_WORDS = [
    ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([2**32 - 1] * 4, [2**32 - 1] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


def as_bits(words):
    """Numbers of 32 bits as the int32 of the same bits."""
    return torch.tensor(words).sub(torch.tensor(words) >> 31 << 32).to(torch.int32)


@pytest.mark.parametrize(('counter', 'key', 'words'), PUBLISHED_WORDS)
def test_words_are_those_of_the_authors(counter, key, words):
    values = philox.philox([torch.tensor([c]) for c in counter], [torch.tensor(k) for k in key])
    assert [int(word) for word in values] == words


@pytest.mark.parametrize(('counter', 'key', 'words'), PUBLISHED_WORDS)
def test_words_mixed_in_place_are_those_of_the_authors(counter, key, words):
    even = torch.tensor(counter[::2])[:, None, None].expand(2, 3, 5).contiguous()
    odd = as_bits(counter[1::2])[:, None, None]
    steps = (0x9E3779B9, 0xBB67AE85)
    keys = [[(k + i * s) % 2**32 for k, s in zip(key, steps)] for i in range(10)]
    even, odd = mix_in_place(even, odd, as_bits(keys)[..., None, None].expand(10, 2, 3, 1))
    for j in range(2):
        assert even[j].unique().tolist() == [words[2 * j]]
        assert odd[j].unique().tolist() == [as_bits(words)[2 * j + 1]]


def philox_of_ints(counter, key):
    """Philox 4x32-10 in Python's integers, from equations of the paper."""
    c, k = list(counter), list(key)
    for _ in range(10):
        high_0, low_0 = divmod(0xD2511F53 * c[0], 2**32)
        high_1, low_1 = divmod(0xCD9E8D57 * c[2], 2**32)
        c = [high_1 ^ c[1] ^ k[0], low_1, high_0 ^ c[3] ^ k[1], low_0]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return c


def test_elements_are_named_by_stream_item_and_block():
    """The whole way to four numbers, by hand: counter (block, 0, stream), key the item."""
    stream, item, block = 0x0123456789ABCDEF, 0x7EDCBA9876543210, 2
    words = philox_of_ints([block, 0, 0x89ABCDEF, 0x01234567], [0x76543210, 0x7EDCBA98])
    expected = []
    for first, second in (words[:2], words[2:]):
        radius = math.sqrt(-2 * math.log((first + 0.5) / 2**32))
        angle = 2 * math.pi * second / 2**32
        expected += [radius * math.cos(angle), radius * math.sin(angle)]
    values = draw_normals(stream, [5, item], [16])
    torch.testing.assert_close(values[1, 8:12], torch.tensor(expected), atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize('shape', [(3, 5, 7), (16,), (1,), (2, 2)])
def test_both_ways_to_fill_agree(shape):
    items, blocks = torch.tensor([0, 1, 2**32 - 1, 2**32, 2**62 + 12345]), math.prod(shape) // 4 + 1
    name = torch.tensor([77, 2**31 + 5])
    plain = fill(items, name, blocks)
    torch.testing.assert_close(
        fill_in_place(items, 77 + (2**31 + 5 << 32), blocks), plain, atol=2e-6, rtol=2e-6
    )
    values = draw_normals(77 + (2**31 + 5 << 32), items, shape)
    assert values.shape == (5, *shape) and values.is_contiguous()
    torch.testing.assert_close(
        values.flatten(1), plain[:, : math.prod(shape)], atol=2e-6, rtol=2e-6
    )


def test_an_item_depends_on_neither_its_batch_nor_its_size(monkeypatch):
    whole = draw_normals(3, range(100, 140), [3, 6, 6])
    assert torch.equal(draw_normals(3, [117], [3, 6, 6])[0], whole[17])
    assert torch.equal(draw_normals(3, [117], [50])[0], whole[17].flatten()[:50])
    monkeypatch.setattr(philox, '_AT_ONCE', 64)
    assert torch.equal(draw_normals(3, range(100, 140), [3, 6, 6]), whole)
    assert draw_normals(3, [], [3, 6, 6]).shape == (0, 3, 6, 6)


def normals_of_ints(stream, item, count):
    """The numbers of an item by Python's integers and floats, in blocks of four."""
    numbers = []
    for block in range(-(-count // 4)):
        words = philox_of_ints(
            [block, 0, stream % 2**32, stream >> 32], [item % 2**32, item >> 32 & 0xFFFFFFFF]
        )
        for first, second in (words[:2], words[2:]):
            radius = math.sqrt(-2 * math.log((first + 0.5) / 2**32))
            angle = 2 * math.pi * second / 2**32
            numbers += [radius * math.cos(angle), radius * math.sin(angle)]
    return numbers[:count]


@pytest.mark.parametrize('at_once', [2**20, 2])
def test_draws_of_one_item_change_no_later_ones(monkeypatch, at_once):
    """Neither a batch of one, nor items so large that they are drawn one by one."""
    monkeypatch.setattr(philox, '_AT_ONCE', at_once)
    stream, items = 0x0123456789ABCDEF, [5, 2**40 + 3, -1, -(2**62)]
    expected = torch.tensor([normals_of_ints(stream, item, 10) for item in items])
    for batch in ([0], [0], [0, 1, 2, 3], [3], [1, 2]):
        values = draw_normals(stream, [items[i] for i in batch], [2, 5]).flatten(1)
        torch.testing.assert_close(values, expected[batch], atol=2e-6, rtol=2e-6)


def test_items_are_integers_of_any_type():
    expected = draw_normals(8, [3, 4], [5])
    for dtype in (torch.uint8, torch.int16, torch.int32, torch.int64):
        assert torch.equal(draw_normals(8, torch.tensor([3, 4], dtype=dtype), [5]), expected)
    with pytest.raises(TypeError, match=r'items must be integers, \[B\]; got a tensor'):
        draw_normals(8, torch.tensor([3.0, 4.0]), [5])


def test_seeds_beyond_64_bits_draw_apart():
    seeds = [2**63, 2**64, 2**64 + 1, -(2**63) - 1, 0, 1, -1]
    values = draw_items([64], seeds, ['start'], counter=True)
    assert len({tuple(row) for row in values.tolist()}) == len(seeds)
    assert torch.equal(values[4:], draw_items([64], [0, 1, -1], ['start'], counter=True))


def test_other_precisions_are_the_same_noise():
    single = draw_normals(9, [1, 2], [33])
    assert torch.equal(draw_normals(9, [1, 2], [33], dtype=torch.float64), single.double())
    assert torch.equal(draw_normals(9, [1, 2], [33], dtype=torch.bfloat16), single.bfloat16())


def test_numbers_are_normal():
    z = draw_normals(11, range(200), [10_000]).double().flatten()
    n = len(z)
    # Of a normal sample the k-th moment has the variance (E z^2k - (E z^k)^2) / n.
    for power, mean, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96), (6, 15, 10170)):
        assert abs(float((z**power).mean()) - mean) < 4.5 * math.sqrt(variance / n)
    assert scipy.stats.kstest(z[:500_000].numpy(), 'norm').pvalue > 1e-3
    beyond = int((z.abs() > 4).sum())  # 2 (1 - Phi(4)) = 6.33e-5
    assert abs(beyond - 6.334e-5 * n) < 4.5 * math.sqrt(6.334e-5 * n)
    assert z.abs().max() > 4.8


def test_neighbours_are_uncorrelated():
    z = draw_normals(12, range(64), [4096])
    pairs = {
        'elements': (z[:, :-1], z[:, 1:]),
        'words of a block': (z[:, 0::4], z[:, 2::4]),
        'blocks': (z[:, :-4], z[:, 4:]),
        'items': (z[:-1], z[1:]),
        'far items': (z, draw_normals(12, range(2**32, 2**32 + 64), [4096])),
        'streams': (z, draw_normals(13, range(64), [4096])),
        'far streams': (z, draw_normals(12 + 2**32, range(64), [4096])),
    }
    for name, (a, b) in pairs.items():
        for f in (lambda x: x, torch.square):
            both = torch.stack([f(a).flatten(), f(b).flatten()]).double()
            correlation = float(torch.corrcoef(both)[0, 1])
            assert abs(correlation) < 4.5 / math.sqrt(both.shape[1]), name


class Counter(TorchDispatchMode):
    """Counts the operators of torch that run, views among them."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.slow
def test_the_share_of_a_training_step():
    """Of config_64_unet at batch 256: at most 2 % of the operators, and of the time."""
    from k_diffusion.config import Experiment

    experiment = Experiment.open('configs/config_64_unet.json')
    denoiser = experiment.wrap(experiment.network)
    optimizer = experiment.sections.optimizer.make(experiment.network)
    x = torch.zeros(1, 3, 64, 64)

    def step():
        denoiser.loss(x, torch.ones_like(x), torch.ones(1), aug_cond=torch.zeros(1, 9)).backward()
        torch.nn.utils.clip_grad_norm_(experiment.network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    def draw():
        draw_normals(0, torch.arange(256), [3, 64, 64])

    counts, times = [], []
    for part in (step, draw):
        part()
        with Counter() as counter:
            start = time.process_time()
            part()
            times.append(time.process_time() - start)
        counts.append(counter.count)
    print(f'operators {counts}, CPU seconds {times} (the step with one item)')
    assert counts[1] <= 0.02 * counts[0]
    assert times[1] <= 0.02 * 64 * times[0]  # 256 items take more than 64 times as long as one


@pytest.mark.slow
def test_a_compiler_makes_one_kernel_of_it():
    from torch._inductor import metrics

    metrics.reset()
    for items, blocks in ((16, 48), (7, 196)):
        numbers = torch.arange(items) + 2**40
        values = philox.compile_fill()(numbers, torch.tensor([5, 6]), blocks)
        torch.testing.assert_close(
            values, fill(numbers, torch.tensor([5, 6]), blocks), atol=2e-6, rtol=2e-6
        )
    assert metrics.generated_kernel_count == 1
