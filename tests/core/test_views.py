"""Tensors as pictures: curves where the values are, the slices through the middle, the first
three channels.
"""

import pytest
import torch

from k_diffusion.core.views import LEAST, PLOT, draw_curves, show_tensors


@pytest.mark.parametrize('length', [1, 7, 128, 5000])
def test_a_curve_goes_through_its_values(length):
    height, width = PLOT
    x = (
        torch.linspace(-0.9, 0.9, length).view(1, 1, length)
        if length > 1
        else torch.full((1, 1, 1), 0.4)
    )
    image = draw_curves(x)
    assert image.shape == (1, 3, *PLOT)
    lit = (image[0] != 1).any(0)
    assert lit.any(0).all() and lit.sum() < 6 * width  # in every column, and thin
    for column in (0, width // 3, width - 1):
        value = (-0.9 + 1.8 * (column + 0.5) / width) if length > 1 else 0.4
        rows = lit[:, column].nonzero()[:, 0].float()
        assert abs(1 - 2 * (rows.mean() + 0.5) / height - value) < 3 / height


def test_a_step_is_drawn_without_a_gap_and_a_spike_is_not_lost():
    step = draw_curves(torch.tensor([-0.9] * 500 + [0.9] * 500).view(1, 1, -1))
    assert (step[0] != 1).any(0).sum(0).max() > 0.85 * PLOT[0]
    spike = torch.zeros(1, 1, 10_000)
    spike[..., 6_000] = 0.95
    assert (draw_curves(spike)[0, :, :4] != 1).any()


def test_channels_have_colours_of_their_own():
    image = draw_curves(torch.stack([torch.full((50,), value) for value in (-0.5, 0.0, 0.5)])[None])
    rows = [int((1 - value) / 2 * PLOT[0]) for value in (-0.5, 0.0, 0.5)]
    assert len({tuple(image[0, :, row, 9].tolist()) for row in rows}) == 3


def test_a_volume_is_shown_by_its_middle_slices_in_the_range_of_the_batch():
    x = torch.randn(2, 1, 40, 36, 34)
    picture = show_tensors(x)
    scaled = (x - x.min()) / (x.max() - x.min()) * 2 - 1
    assert picture.shape == (2, 1, 40, 34 + 1 + 34 + 1 + 36)
    torch.testing.assert_close(picture[:, :, :36, :34], scaled[:, :, 20])
    torch.testing.assert_close(picture[:, :, :, 35:69], scaled[:, :, :, 18])
    torch.testing.assert_close(picture[:, :, :, 70:], scaled[..., 17])


def test_small_pictures_are_enlarged_and_many_channels_give_three():
    assert show_tensors(torch.randn(2, 7, 10, 12)).shape == (2, 3, 40, 48) and LEAST == 32
    two = show_tensors(torch.randn(2, 2, 40, 40))
    assert two.shape == (2, 3, 40, 40) and (two[:, 2] == -1).all()
    assert show_tensors(torch.randn(5, 9)).shape == (5, 3, *PLOT)


def test_values_that_are_not_finite_and_constants_are_drawn():
    x = torch.zeros(1, 1, 40, 40)
    assert show_tensors(x).isfinite().all()
    x[0, 0, 0, 0] = torch.nan
    x[0, 0, 1, 1] = torch.inf
    assert show_tensors(x).isfinite().all()
    with pytest.raises(ValueError, match='0 to 3 spatial axes'):
        show_tensors(torch.zeros(1, 1, 2, 2, 2, 2))
