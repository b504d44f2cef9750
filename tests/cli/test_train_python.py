"""Training networks and data given from Python."""

import random
import threading
import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import IterableDataset, TensorDataset

import k_diffusion as K
from k_diffusion.core.weights import load_checkpoint
from k_diffusion.data import as_dataset, measure_sigma_data

QUIET = {'device': 'cpu', 'demo_every': 0, 'show': False, 'batch_size': 8}


class Net(nn.Module):
    """A plain module for items of any number of dimensions."""

    def __init__(self, channels=1, classes=0):
        super().__init__()
        self.mix = nn.Linear(channels + 1, channels)
        self.classes = nn.Embedding(classes + 1, channels) if classes else None
        self.calls = []

    def forward(self, x, sigma, class_cond=None, **cond):
        self.calls.append((class_cond, cond))
        level = sigma.log().view(-1, *[1] * (x.ndim - 1)).expand(-1, 1, *x.shape[2:])
        h = self.mix(torch.cat([x, level], 1).movedim(1, -1)).movedim(-1, 1)
        if self.classes is not None:
            h = h + self.classes(class_cond).view(*h.shape[:2], *[1] * (x.ndim - 2))
        return h


def fresh(*arguments):
    torch.manual_seed(1)
    return Net(*arguments)


def data(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


def run(folder, dataset, steps=2, network=None, **settings):
    return K.train(
        network=network or fresh(),
        dataset=dataset,
        name='own',
        run_dir=folder,
        end_step=steps,
        **{**QUIET, **settings},
    )


def same_weights(done, network):
    weights = load_checkpoint(done.checkpoint)['model']
    return all(torch.equal(weights[key], value) for key, value in network.state_dict().items())


def same(a, b):
    a, b = (load_checkpoint(r.checkpoint) for r in (a, b))
    for key in ('model', 'model_ema'):
        assert all(torch.equal(a[key][name], b[key][name]) for name in a[key]), key
    assert a['items'] == b['items'] and a['ema_stats'] == b['ema_stats']


@pytest.mark.parametrize('shape', [(3,), (2, 16), (1, 8, 8), (3, 8, 8), (2, 4, 4, 4)])
def test_any_shape_is_trained_loaded_and_sampled(tmp_path, shape):
    done = run(tmp_path, data(20, *shape), network=fresh(shape[0]), demo_every=1, sample_n=2)
    assert (done.step, done.status) == (2, 'done')
    samples = K.sample(done.denoiser, [3, *shape], steps=3, seeds=0)
    assert samples.shape == (3, *shape) and samples.isfinite().all()
    denoiser, config = K.load_model(tmp_path, network=Net(shape[0]))
    x = data(3, *shape)
    assert torch.equal(denoiser(x, torch.ones(3)), done.denoiser(x, torch.ones(3)))
    assert config['model']['network'] == 'Net'
    assert len(list(tmp_path.glob('own_demo_*.png'))) == 2  # curves, pictures or slices
    assert (tmp_path / 'own_report.html').exists() and (tmp_path / 'own_log.jsonl').exists()


def test_bytes_are_pictures_from_minus_one_to_one(tmp_path):
    batches = []

    def loss(denoiser, x, noise, sigma, **cond):
        batches.append(x)
        return K.Denoiser.loss(denoiser, x, noise, sigma, **cond)

    images = torch.tensor([0, 51, 255], dtype=torch.uint8).view(3, 1, 1, 1)
    run(tmp_path, images, 1, batch_size=3, loss=loss)
    assert sorted(batches[0].flatten().tolist()) == pytest.approx([-1, 51 / 127.5 - 1, 1])


def test_sigma_data_is_measured_or_given(tmp_path):
    x = 3 * data(64, 2, 5) + 7
    expected = float(x.double().pow(2).mean() - x.double().mean() ** 2) ** 0.5
    assert run(tmp_path / 'a', x, network=fresh(2)).denoiser.sigma_data == pytest.approx(expected)
    assert measure_sigma_data(as_dataset(list(x))) == pytest.approx(expected)
    done = run(tmp_path / 'b', x, network=fresh(2), sigma_data=0.5)
    assert done.denoiser.sigma_data == 0.5 and done.denoiser.sigma_max == pytest.approx(80)
    with pytest.raises(ValueError, match='sigma_data must be a number'):
        run(tmp_path / 'c', torch.zeros(10, 1, 2))


class Draws:
    """A map-style data set that draws at random and counts nothing."""

    def __len__(self):
        return 20

    def __getitem__(self, index):
        return torch.full((1, 4), float(index)) + torch.randn(1, 4) + random.random()


@pytest.mark.parametrize('dataset', [data(21, 1, 4), Draws()], ids=['tensor', 'map-style'])
def test_a_pause_changes_no_bit(tmp_path, dataset):
    same_rate = {'lr_schedule': lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 2)}
    straight = run(tmp_path / 's', dataset, 6, **same_rate)
    run(tmp_path / 'p', dataset, 3, **same_rate)
    parted = run(tmp_path / 'p', dataset, 6, **same_rate)
    assert parted.step == 6 and not same_weights(parted, fresh())
    same(straight, parted)


class Stream(IterableDataset):
    """One, two, three, ... ten, as tensors [1, 2]."""

    def __init__(self):
        self.first = 0

    def __iter__(self):
        first, self.first = self.first, 0
        return iter([torch.full((1, 2), float(i)) for i in range(first, 10)])


class Seekable(Stream):
    """The same, from any item on."""

    def seek(self, n):
        self.first = n % 10


def test_a_stream_is_read_in_order_and_goes_on_only_where_it_can(tmp_path):
    batches = []

    def loss(denoiser, x, noise, sigma, **cond):
        batches.append(x[:, 0, 0].tolist())
        return denoiser.loss(x, noise, sigma, **cond)

    run(tmp_path / 'a', Stream(), 3, batch_size=4, loss=loss)
    assert batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 0, 1]]
    with pytest.raises(ValueError, match=r'dataset must be map-style .*method seek.*12 items'):
        run(tmp_path / 'a', Stream(), 5, batch_size=4)
    run(tmp_path / 'b', Seekable(), 3, batch_size=4)
    batches.clear()
    run(tmp_path / 'b', Seekable(), 5, batch_size=4, loss=loss)
    assert batches == [[2, 3, 4, 5], [6, 7, 8, 9]]
    with pytest.raises(TypeError, match='iterated repeatedly'):
        run(tmp_path / 'c', (x for x in data(10, 1, 2)))


def test_labels_are_conditions_and_classes_are_left_out_for_guidance(tmp_path):
    labels = torch.arange(40) % 3
    network = fresh(1, 3)
    run(tmp_path / 'a', TensorDataset(data(40, 1, 4), labels), 20, network=network, num_classes=3)
    classes = torch.cat([class_cond for class_cond, _ in network.calls])
    assert set(classes.tolist()) == {0, 1, 2, 3} and (classes == 3).float().mean() < 0.3
    network = fresh(1, 3)
    run(tmp_path / 'b', list(zip(data(40, 1, 4), labels)), 20, network=network)
    assert {int(c) for class_cond, _ in network.calls for c in class_cond} == {0, 1, 2}
    network = fresh()
    items = [{'x': x, 'angle': float(i)} for i, x in enumerate(data(9, 1, 4))]
    run(tmp_path / 'c', items, 1, network=network)
    assert network.calls[0][1]['angle'].shape == (8,)
    with pytest.raises(ValueError, match='num_classes must be above all labels'):
        run(tmp_path / 'd', TensorDataset(data(40, 1, 4), labels), num_classes=2)


def test_own_optimizer_rate_density_weighting_and_hooks(tmp_path):
    steps, sigmas = [], []

    def weighting(sigma):
        sigmas.append(sigma)
        return torch.ones_like(sigma)

    done = run(
        tmp_path / 'a',
        data(16, 1, 4),
        3,
        weighting=weighting,
        density=K.schedules.LogUniform(min_value=2.0, max_value=3.0),
        optimizer=lambda params: torch.optim.SGD(params, lr=1.0),
        lr_schedule=lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda step: 0.5**step),
        hooks=[lambda trainer: steps.append((trainer.step, trainer.lr))],
    )
    assert steps == [(1, 1.0), (2, 0.5), (3, 0.25)]
    every = torch.cat(sigmas)
    assert 2 <= every.min() < 2.2 and 2.8 < every.max() <= 3
    state = load_checkpoint(done.checkpoint)
    assert state['config']['model']['sigma_sample_density'] == {
        'type': 'loguniform',
        'min_value': 2.0,
        'max_value': 3.0,
    }
    network = fresh()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.1)
    assert run(tmp_path / 'b', data(16, 1, 4), network=network, optimizer=optimizer).step == 2
    with pytest.raises(ValueError, match='optimizer must hold parameters of the trained network'):
        run(tmp_path / 'c', data(16, 1, 4), optimizer=optimizer)

    class Fixed:
        def quantile(self, u):
            return torch.full_like(u, 2.5)

    sigmas.clear()
    run(tmp_path / 'd', data(16, 1, 4), 1, weighting=weighting, density=Fixed())
    assert torch.cat(sigmas).unique().tolist() == [2.5]
    assert K.load_model(tmp_path / 'd', network=Net())[0].experiment.sections.model.type == 'python'


def test_what_is_wrong_is_said_in_terms_of_arguments(tmp_path):
    x = data(10, 1, 4)
    with pytest.raises(ValueError, match='dataset must be given with a network and no config'):
        K.train(network=Net())
    with pytest.raises(ValueError, match='network must be a torch.nn.Module, an instance'):
        run(tmp_path / 'a', x, network=Net)
    with pytest.raises(ValueError, match=r'loss must return a value for each of the 8 items.*\[\]'):
        run(tmp_path / 'b', x, loss=lambda d, x, noise, sigma: d.loss(x, noise, sigma).mean())
    with pytest.raises(TypeError, match='density must have a method quantile'):
        run(tmp_path / 'c', x, density=lambda shape: torch.ones(shape))
    with pytest.raises(TypeError, match=r"dataset must hold tensors, .*got 'a'"):
        run(tmp_path / 'd', ['a', 'b'])
    with pytest.raises(ValueError, match='dataset must hold uint8 or floating-point'):
        run(tmp_path / 'e', torch.ones(10, 1, 4, dtype=torch.long))
    with pytest.raises(ValueError, match='dataset must hold items of one shape'):
        run(tmp_path / 'f', [torch.ones(1, 4 + i) for i in range(8)], sigma_data=1.0)
    run(tmp_path / 'g', x)
    with pytest.raises(
        ValueError, match=r'Net is not one of this package: .*network=Net\(\.\.\.\)'
    ):
        K.load_model(tmp_path / 'g')


def test_a_stop_from_a_hook_an_event_and_another_thread(tmp_path):
    x, event = data(16, 1, 4), threading.Event()

    def stop_at_two(trainer):
        if trainer.step == 2:
            raise K.Stop

    done = run(tmp_path / 'a', x, 9, hooks=[stop_at_two])
    assert (done.step, done.status, done.exit_status) == (2, 'stopped', 0)
    assert load_checkpoint(done.checkpoint)['step'] == 2
    assert run(tmp_path / 'a', x, 4).status == 'done'
    done = run(
        tmp_path / 'b',
        x,
        10**6,
        stop=event,
        hooks=[lambda trainer: threading.Thread(target=event.set).start()],
    )
    assert done.status == 'stopped' and 1 <= done.step < 10**6 and done.checkpoint.exists()
    done = run(tmp_path / 'c', x, 9, stop=lambda: True)
    assert (done.step, done.status) == (1, 'stopped')
    calls = []

    def loss(denoiser, x, noise, sigma):
        calls.append(0)
        if len(calls) == 4:
            raise K.Stop
        return denoiser.loss(x, noise, sigma)

    done = run(tmp_path / 'd', x, 9, loss=loss)
    assert (done.step, done.status) == (3, 'stopped') and done.checkpoint.exists()


def test_a_call_leaves_the_process_as_it_was(tmp_path, capsys):
    network = fresh()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    flags = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    run(tmp_path, data(16, 1, 4), network=network)
    assert torch.equal(torch.get_rng_state(), before)
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == flags
    output = capsys.readouterr()
    assert output.out == output.err == ''
    assert run(tmp_path / 'b', data(16, 1, 4), 1, mixed_precision='bf16').status == 'done'


def test_an_accelerator_of_ones_own_stays_what_it_was(tmp_path):
    from accelerate import Accelerator

    own = Accelerator(cpu=True, gradient_accumulation_steps=3)
    assert run(tmp_path, data(16, 1, 4), 1, mixed_precision='bf16').status == 'done'
    assert own.mixed_precision == 'no' and own.gradient_accumulation_steps == 3
    assert Accelerator(cpu=True).mixed_precision == 'no'


@pytest.mark.parametrize(('native', 'notes'), [(False, 1), (True, 0)])
def test_bf16_without_instructions_for_it_warns(tmp_path, monkeypatch, native, notes):
    monkeypatch.setattr(torch.backends.mkldnn, 'is_available', lambda: True)
    monkeypatch.setattr(torch.ops.mkldnn, '_is_mkldnn_bf16_supported', lambda: native)
    with warnings.catch_warnings(record=True) as messages:
        warnings.simplefilter('always')
        run(tmp_path / 'half', data(16, 1, 4), 1, mixed_precision='bf16')
        run(tmp_path / 'full', data(16, 1, 4), 1)
    assert sum('no bf16 instructions' in str(note.message) for note in messages) == notes
