"""Nearest neighbours: against a slow reading of the definitions, and what they must say of
copies and of lost modes.
"""

from __future__ import annotations

import pytest
import torch

from k_diffusion import evaluation as E


def slow(x, y, k_pr, k_dc):
    """(precision, recall, density, coverage) by loops over pairs."""

    def radius(points, i, k):
        return sorted(
            (points[i] - other).norm().item() for j, other in enumerate(points) if j != i
        )[k - 1]

    def within(points, centres, k):
        return [
            [
                (point - centre).norm().item() <= radius(centres, i, k)
                for i, centre in enumerate(centres)
            ]
            for point in points
        ]

    precision, recall = within(x, y, k_pr), within(y, x, k_pr)
    balls = within(x, y, k_dc)
    return (
        sum(any(row) for row in precision) / len(x),
        sum(any(row) for row in recall) / len(y),
        sum(sum(row) for row in balls) / (k_dc * len(x)),
        sum(any(column) for column in zip(*balls)) / len(y),
    )


def test_the_definitions():
    x, y = (
        torch.randn(14, 3, dtype=torch.float64),
        torch.randn(17, 3, dtype=torch.float64) * 0.8 + 0.5,
    )
    expected = slow(x, y, 2, 3)
    actual = (*E.precision_recall(x, y, 2, chunk=5), *E.density_coverage(x, y, 3, chunk=5))
    assert (
        actual == pytest.approx(expected, abs=1e-12) and 0 < expected[0] < 1 and 0 < expected[3] < 1
    )


def test_lost_modes_cost_recall_and_stray_samples_precision():
    centres = torch.tensor([[0.0, 0.0], [20.0, 0.0], [0.0, 20.0], [20.0, 20.0]])
    y = centres[torch.arange(400) % 4] + torch.randn(400, 2)
    half = centres[torch.arange(400) % 2] + torch.randn(400, 2)
    stray = torch.cat([y + 0.3 * torch.randn(400, 2), torch.rand(400, 2) * 200 + 100])
    precision, recall = E.precision_recall(half, y)
    assert precision > 0.9 and recall == pytest.approx(0.5, abs=0.05)
    assert E.precision_recall(stray, y)[0] == pytest.approx(0.5, abs=0.06)
    density, coverage = E.density_coverage(half, y)
    assert density == pytest.approx(1.0, abs=0.25) and coverage == pytest.approx(0.5, abs=0.05)


def test_copies_are_found_and_shown():
    train = torch.rand(50, 1, 6, 6) * 2 - 1
    samples = torch.cat([train[[7, 31]] + 0.001, torch.rand(20, 1, 6, 6) * 2 - 1])
    neighbours = E.nearest_neighbours(samples, train, chunk=9)
    assert (
        neighbours.index[:2].tolist() == [7, 31]
        and neighbours.ratio[:2].max() < 0.05
        and neighbours.copies() == pytest.approx(2 / 22)
    )
    brute = torch.cdist(samples.double().flatten(1), train.double().flatten(1)).sort(1).values
    torch.testing.assert_close(neighbours.ratio, brute[:, 0] / brute[:, 1], rtol=1e-4, atol=1e-5)
    picture = E.neighbour_picture(samples, train, neighbours, pairs=4, columns=2)
    assert picture.shape == (1, 16, 28) and picture.max() == 1.0
    assert torch.equal(picture[:, :6, 6:12], train[neighbours.index[neighbours.ratio.argmin()]])


def test_bootstrap_intervals_cover():
    """Of the mean of an exponential variable, whose true value is 1."""
    inside, errors = 0, []
    for seed in range(200):
        x = torch.empty(100, dtype=torch.float64).exponential_(
            generator=torch.Generator().manual_seed(seed)
        )
        stderr, (low, high) = E.bootstrap(lambda rows: rows.mean().item(), x, 100, seed=seed)
        inside += low <= 1 <= high
        errors.append(stderr)
    assert 170 <= inside <= 197
    assert sum(errors) / 200 == pytest.approx(0.1, rel=0.1)
    with pytest.raises(ValueError, match='replicates must be >= 2; got 1'):
        E.bootstrap(lambda rows: 0.0, x, 1)
