"""A config opened once."""

import copy
import json
import pickle

import pytest
import torch

import k_diffusion as K
from k_diffusion.config import Experiment, load, shipped_config
from k_diffusion.tasks.sample import sample as draw_samples


@pytest.fixture
def parses(monkeypatch):
    """The configs that were parsed so far."""
    configs, parse = [], load.read_sections
    monkeypatch.setattr(load, 'read_sections', lambda raw: (configs.append(raw), parse(raw))[1])
    return configs


@pytest.fixture
def source():
    config = json.loads(shipped_config('config_demo').read_text())
    config['training'] = {'batch_size': 4}
    return config


def test_a_run_parses_its_config_once(parses, source, tmp_path):
    K.train(
        source,
        name='m',
        run_dir=tmp_path,
        end_step=1,
        demo_every=1,
        sample_n=2,
        device='cpu',
        evaluate_n=0,
        show=False,
    )
    assert len(parses) == 1
    denoiser, _ = K.load_model(tmp_path)
    assert len(parses) == 2 and denoiser.experiment.sections.dataset.type == 'demo'


def test_the_dict_that_was_given_is_left_alone(source, tmp_path):
    before = copy.deepcopy(source)
    experiment = Experiment.open(source)
    experiment.dataset()
    experiment.update('model', sigma_data=0.25)
    experiment.as_dict()['model']['sigma_data'] = 3.0
    assert source == before and experiment.as_dict()['model']['sigma_data'] == 0.25


def test_what_is_built_is_kept_and_says_what_the_functions_of_before_say(source):
    experiment = Experiment.open(source)
    assert experiment.network is experiment.network
    assert experiment.denoiser.experiment is experiment
    assert experiment.dataset() is experiment.dataset()
    filled = K.config.load_config(source)
    assert Experiment.open(source).as_dict() == filled
    torch.manual_seed(0)
    network = K.config.make_model(filled)
    torch.manual_seed(0)
    own = Experiment.open(source).network.state_dict()
    assert all(torch.equal(own[key], value) for key, value in network.state_dict().items())


def test_a_denoiser_is_copied_and_pickled_without_its_data(source):
    experiment = Experiment.open(source)
    experiment.dataset()
    assert copy.deepcopy(experiment.denoiser).experiment is experiment
    again = pickle.loads(pickle.dumps(experiment))
    assert again.as_dict() == experiment.as_dict() and again._dataset is None


class Scaled(torch.nn.Module):
    """A network with one weight."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, x, sigma, class_cond=None):
        return self.weight * x


@pytest.fixture(scope='module')
def trained_demo(tmp_path_factory):
    """The folder of a run of one step on the shipped digits."""
    folder = tmp_path_factory.mktemp('demo')
    source = json.loads(shipped_config('config_demo').read_text())
    source['training'] = {'batch_size': 4}
    source['optimizer'] = {'type': 'adamw'}
    K.train(
        source,
        network=Scaled(),
        name='m',
        run_dir=folder,
        end_step=1,
        demo_every=0,
        device='cpu',
        evaluate_n=0,
        show=False,
    )
    return folder


def features(pictures):
    return pictures.flatten(1)[:, :4]


CALLS = {
    'sample': lambda **kwargs: draw_samples(n=2, steps=2, classes=[3], **kwargs),
    'evaluate': lambda **kwargs: K.evaluate(
        n=4, reference_n=8, steps=2, extractor=features, metrics=['fid'], **kwargs
    ),
    'evaluate with another data set': lambda **kwargs: K.evaluate(
        n=4, reference_n=8, steps=2, extractor=features, metrics=['fid'], dataset='demo:', **kwargs
    ),
    'likelihood': lambda **kwargs: K.likelihood(n=2, steps=1, **kwargs),
    'calibrate': lambda **kwargs: K.calibrate(steps=[2], noises=2, bases=['eab'], **kwargs),
}


def test_costs_and_lists_parse_each_config_once(parses, trained_demo):
    K.info('config_demo', rate=1e9, device='cpu')
    assert len(parses) == 1
    shipped = [c for c in K.extract_config(list=True) if not c.name.startswith('autoencoders/')]
    assert len(parses) == 1 + len(shipped)


@pytest.mark.parametrize('task', CALLS)
def test_a_task_parses_the_config_of_its_model_once(parses, trained_demo, tmp_path, task):
    out = tmp_path / ('calibrated.json' if task == 'calibrate' else 'out')
    CALLS[task](checkpoint=trained_demo, network=Scaled(), out=out, device='cpu', show=False)
    assert len(parses) == 1 and out.exists()
