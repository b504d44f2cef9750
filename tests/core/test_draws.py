"""The random draws of training for an item, in both versions."""

from __future__ import annotations

import math

import pytest
import scipy.stats
import torch

from k_diffusion.augmentation import BatchedAugmentation
from k_diffusion.core.draws import Draws
from k_diffusion.core.random import derive_seed, generator, randn_items

CPU = torch.device('cpu')
ITEMS = torch.arange(4000)


def test_the_first_version_draws_what_runs_of_before_drew():
    draws, items = Draws(5, 1), torch.tensor([8, 3])
    seeds = [derive_seed(5, 'noise', i) for i in (8, 3)]
    assert torch.equal(draws.noise(items, [2, 3], CPU), randn_items([2, 3], seeds))
    boxes = [torch.rand(4, generator=generator(5, 'box', i)) for i in (8, 3)]
    assert torch.equal(draws.uniform(items, 4, 'box'), torch.stack(boxes).double())


@pytest.mark.parametrize('version', [1, 2])
def test_draws_are_uniform(version):
    draws = Draws(0, version)
    for sample in (draws.share(ITEMS, 'x')[:, None], draws.uniform(ITEMS[:1000], 4, 'x')):
        assert sample.min() >= 0 and sample.max() < 1
        for column in sample.unbind(1):
            assert scipy.stats.kstest(column.numpy(), 'uniform').pvalue > 1e-3
    columns = draws.uniform(ITEMS[:1000], 4, 'x').T
    assert (torch.corrcoef(columns) - torch.eye(4)).abs().max() < 4.5 / math.sqrt(1000)


@pytest.mark.parametrize('version', [1, 2])
def test_an_item_depends_on_seed_purpose_and_number_alone(version):
    draws, items, some = Draws(7, version), ITEMS[:20] + 2**40, slice(3, 9)
    for draw in (
        lambda draws, items: draws.noise(items, [5], CPU),
        lambda draws, items: draws.share(items, 'x', 'y'),
        lambda draws, items: draws.uniform(items, 13, 'x'),
    ):
        whole = draw(draws, items)
        assert torch.equal(draw(draws, items[some]), whole[some])
        assert not (draw(Draws(8, version), items) == whole).any()
    assert not (draws.share(items, 'x') == draws.share(items, 'z')).any()


def test_quantiles_lie_one_in_each_part():
    quantiles = Draws(0).quantiles(640, 64)
    assert sorted((quantiles * 64).long().tolist()) == list(range(64))
    assert quantiles.tolist() != quantiles.sort().values.tolist()
    assert not torch.equal(Draws(0).quantiles(704, 64), quantiles)


def test_a_version_of_the_future_is_refused():
    with pytest.raises(ValueError, match='must be 1 or 2; got 3'):
        Draws(0, 3)
    with pytest.raises(ValueError, match='n must be at most 16; got 17'):
        Draws(0).uniform(ITEMS, 17, 'x')


def test_augmentation_drawn_for_a_batch_has_the_law_of_that_drawn_one_by_one():
    augmentation = BatchedAugmentation(0.3)
    many = augmentation.numbers(Draws(0).uniform(ITEMS, 13, 'augment'))
    source = torch.Generator().manual_seed(0)
    one_by_one = torch.tensor([augmentation.draw(source) for _ in ITEMS], dtype=torch.float64)
    for a, b in zip(many.T, one_by_one.T):
        assert scipy.stats.ks_2samp(a.numpy(), b.numpy()).pvalue > 1e-3
    # One gate for both numbers of the stretch, and one for both shifts.
    for gated in (many[:, 4:6], many[:, 6:8]):
        assert torch.equal(gated[:, 0] == 0, gated[:, 1] == 0)
        assert abs(float((gated[:, 0] != 0).double().mean()) - 0.3) < 0.03
    with_none = BatchedAugmentation(0.0).numbers(Draws(0).uniform(ITEMS, 13, 'augment'))
    assert not with_none[:, 1:].any() and 0 < with_none[:, 0].mean() < 1
