from types import SimpleNamespace

import pytest
import torch

from k_diffusion.core.draws import Draws
from k_diffusion.core.philox import draw_normals
from k_diffusion.core.random import derive_seed, randn_items
from k_diffusion.schedules import LogNormal
from k_diffusion.tasks.run.demo_grid import SkippedNotice
from k_diffusion.tasks.run.objective import Objective


class Spy:
    """A denoiser that notes what its loss is given."""

    def loss(self, input, noise, sigma, **cond):
        self.inputs = {'input': input, 'noise': noise, 'sigma': sigma, **cond}
        return sigma


def batch(items, **more):
    quantiles = torch.linspace(0.1, 0.9, len(items), dtype=torch.float64)
    return {
        'image': torch.zeros(len(items), 1, 2, 2),
        'item': torch.tensor(items),
        'u': quantiles,
        **more,
    }


@pytest.mark.parametrize('version', [1, 2])
def test_noise_is_named_by_the_item_and_sigma_by_the_quantile(version):
    spy = Spy()
    loss = Objective(spy, LogNormal(mean=0.0, std=1.0), Draws(5, version))
    sigma = loss(batch([7, 8, 9]))
    expected = {
        1: randn_items((1, 2, 2), [derive_seed(5, 'noise', 8)]),
        2: draw_normals(derive_seed(5, 'noise'), [8], (1, 2, 2)),
    }
    assert torch.equal(spy.inputs['noise'][1:2], expected[version])
    assert (
        sigma.dtype == torch.float32
        and torch.allclose(sigma[1], torch.tensor(1.0))
        and (sigma.diff() > 0).all()
    )
    assert spy.inputs.keys() == {'input', 'noise', 'sigma'}


def test_classes_are_dropped_item_by_item():
    spy, items = Spy(), list(range(2000))
    loss = Objective(
        spy, LogNormal(mean=0.0, std=1.0), Draws(0), num_classes=3, cond_dropout_rate=0.25
    )
    loss(batch(items, class_cond=torch.ones(2000, dtype=torch.long)))
    dropped = spy.inputs['class_cond'] == 3
    assert 0.2 < dropped.float().mean() < 0.3 and (spy.inputs['class_cond'][~dropped] == 1).all()
    loss(batch(items[500:], class_cond=torch.ones(1500, dtype=torch.long)))
    assert torch.equal(spy.inputs['class_cond'] == 3, dropped[500:])


def test_labels_of_a_model_without_classes_stay_out_and_augmentation_goes_in():
    spy = Spy()
    Objective(spy, LogNormal(mean=0.0, std=1.0), Draws(0))(
        batch([1], class_cond=torch.tensor([1]), aug_cond=torch.ones(1, 9))
    )
    assert 'class_cond' not in spy.inputs and torch.equal(spy.inputs['aug_cond'], torch.ones(1, 9))


def test_skipped_pictures_are_told_once_counted_and_listed(tmp_path):
    said, skipped = [], [(f'{i}.png', 'cut short') for i in range(12)]
    trainer = SimpleNamespace(accelerator=SimpleNamespace(is_main_process=True))
    notice = SkippedNotice(1, skipped, tmp_path / 'skipped.txt', said.append)
    notice(trainer)
    assert (
        len(said) == 11
        and said[0] == 'skipped 0.png: cut short'
        and 'skipped 12 pictures in all' in said[-1]
    )
    assert len((tmp_path / 'skipped.txt').read_text().splitlines()) == 12
    notice(trainer)
    assert len(said) == 11
