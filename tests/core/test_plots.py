"""Curves and histograms: what is drawn is where it belongs."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import pytest

from k_diffusion.core.plots import LEFT, WIDTH, plot_curves, plot_histogram


def test_curves_are_drawn_where_their_points_are(tmp_path):
    points = [(0.0, 1.0), (10.0, 3.0), (20.0, math.nan), (30.0, 2.0)]
    plot_curves(
        tmp_path / 'a.svg',
        {'loss & more': {'train': points, 'test': [(5.0, 2.0)]}, 'fid': {'fid': []}},
    )
    drawing = ElementTree.parse(tmp_path / 'a.svg')
    circles = [(float(c.get('cx')), float(c.get('cy'))) for c in drawing.findall('.//{*}circle')]
    assert len(circles) == 4
    (x0, y0), (x1, y1), (x2, y2), (x3, y3) = circles
    assert x0 < x3 < x1 < x2 and y1 < y2 < y0 and y3 == y2
    assert (x2 - x0) / (x1 - x0) == pytest.approx(3, abs=0.02) and x0 > LEFT and x2 < WIDTH
    texts = [t.text for t in drawing.findall('.//{*}text')]
    assert 'loss & more' in texts and 'train' in texts and 'step' in texts and '10' in texts


def test_a_histogram_counts(tmp_path):
    plot_histogram(tmp_path / 'h.svg', [0.0, 0.0, 0.0, 1.0, 4.0, math.inf], 'five', 'bits', bins=4)
    heights = [
        float(b.get('height'))
        for b in ElementTree.parse(tmp_path / 'h.svg').findall('.//{*}rect')[2:]
    ]
    assert [height / heights[3] for height in heights] == pytest.approx([3, 1, 0, 1], abs=0.01)
    plot_histogram(tmp_path / 'h.svg', [3.0], 'one', 'bits')
    with pytest.raises(ValueError, match='at least one finite value'):
        plot_histogram(tmp_path / 'h.svg', [math.nan], 'none', 'bits')
