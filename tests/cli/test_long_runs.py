"""Long runs: a trace, a time budget, events, and the batches of bad losses."""

from __future__ import annotations

import gzip
import http.server
import json
import math
import signal
import sys
import threading
import time

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

import k_diffusion as K
from k_diffusion.cli.train import main
from k_diffusion.core.weights import load_checkpoint
from k_diffusion.tasks.run.events import Events, find_target_problem

pytest.importorskip('accelerate', reason='accelerate is in the extra "train"')
QUIET = {'device': 'cpu', 'demo_every': 0, 'evaluate_n': 0, 'report': False, 'show': False}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(2, 1)

    def forward(self, x, sigma, **cond):
        level = sigma.log().view(-1, 1, 1).expand_as(x)
        return self.mix(torch.stack([x, level], -1)).squeeze(-1)


def net():
    torch.manual_seed(1)
    return Net()


def data(n=40):
    return torch.randn(n, 1, 8, generator=torch.Generator().manual_seed(3))


def train(folder, steps=12, **settings):
    own = {'network': net(), 'dataset': data(), 'batch_size': 8, **QUIET, **settings}
    return K.train(name='own', run_dir=folder, end_step=steps, **own)


def model_of(run):
    return load_checkpoint(run.checkpoint)['model']


def same(a, b):
    return all(torch.equal(a[key], b[key]) for key in a)


# A trace


def test_a_trace_of_a_few_steps_is_written_and_changes_nothing(tmp_path):
    plain = train(tmp_path / 'a')
    traced = train(tmp_path / 'b', profile=3)
    assert same(model_of(plain), model_of(traced))
    (path,) = (tmp_path / 'b').glob('own_trace_*.json.gz')
    assert path.name == 'own_trace_00000009.json.gz'  # (5 and 1 of warm-up, then 3)
    events = json.loads(gzip.decompress(path.read_bytes()))['traceEvents']
    steps = {e['name'] for e in events if e.get('name', '').startswith('ProfilerStep#')}
    assert steps == {'ProfilerStep#1', 'ProfilerStep#2', 'ProfilerStep#3'}
    products = [e for e in events if e.get('name') == 'aten::addmm' and e.get('ph') == 'X']
    assert len(products) == 3  # one product of the one layer a step
    assert 'aten::' in (tmp_path / 'b' / 'own_trace_00000009.txt').read_text()


def test_a_run_that_is_too_short_for_a_trace_says_so(tmp_path):
    with pytest.warns(UserWarning, match='no step was traced'):
        assert train(tmp_path, 4, profile=3).status == 'done'
    short = train(tmp_path / 'b', 8, profile=30)  # ends within the trace, which is written
    assert short.step == 8 and (tmp_path / 'b' / 'own_trace_00000008.json.gz').exists()


# A budget of time


def test_a_run_stops_when_its_time_is_up_and_goes_on(tiny, tmp_path, monkeypatch, capsys):
    words = ['--config', tiny(), '--name', 'a', '--device', 'cpu', '--demo-every', '0']
    words += ['--evaluate-n', '0', '--end-step', '5']
    clock = [0.0]
    plain = K.training.Trainer.train_step

    def train_step(self, batches):
        plain(self, batches)
        clock[0] += 1.0

    monkeypatch.setattr(K.training.Trainer, 'train_step', train_step)
    monkeypatch.setattr('k_diffusion.tasks.run.watch.time.monotonic', lambda: clock[0])
    assert main([*words, '--run-dir', str(tmp_path / 'a'), '--max-seconds', '3']) == 0
    error = capsys.readouterr().err
    assert 'max_seconds (3 s) is reached' in error and 'a stopped at step 3' in error
    assert (tmp_path / 'a' / 'a_00000003.pth').exists()
    assert main([*words, '--run-dir', str(tmp_path / 'a'), '--max-seconds', '90']) == 0
    assert main([*words, '--run-dir', str(tmp_path / 'b')]) == 0
    one, two = (load_checkpoint(tmp_path / run / 'a_00000005.pth') for run in 'ab')
    assert same(one['model'], two['model']) and same(one['model_ema'], two['model_ema'])


def test_a_budget_and_a_stop_of_ones_own_go_together(tmp_path):
    event = threading.Event()
    event.set()
    assert train(tmp_path, stop=event, max_seconds=1e6).step == 1
    with pytest.raises(ValueError, match='max_seconds must be above 0; got 0'):
        train(tmp_path, max_seconds=0)


# Events


@pytest.fixture
def command(tmp_path):
    """A command that appends its input to a file, and a reader of that file."""
    path = tmp_path / 'told.jsonl'
    script = tmp_path / 'tell it.py'
    script.write_text(
        f'import sys\nopen({str(path)!r}, "a").write(sys.stdin.read() + "\\n")\nprint("noise")\n'
    )
    read_events = lambda: [json.loads(line) for line in path.read_text().splitlines()]
    return f"{sys.executable} '{script}'", read_events


def test_a_command_is_told_what_happens(tmp_path, command, capfd):
    words, read_events = command
    done = train(tmp_path / 'run', save_every=5, on_event=words)
    events = [(entry['event'], entry['step']) for entry in read_events()]
    assert events == [('start', 0), ('checkpoint', 5), ('checkpoint', 10), ('checkpoint', 12)] + [
        ('end', 12)
    ]
    last = read_events()[-1]
    assert last['run'] == 'own' and last['folder'] == str(tmp_path / 'run')
    assert last['loss'] == done.loss and last['end_step'] == 12
    assert read_events()[3]['checkpoint'] == str(done.checkpoint)
    assert last['text'] == 'own is done at step 12'
    assert 'noise' not in capfd.readouterr().out


def test_stops_failures_and_bad_losses_are_told(tmp_path, command):
    words, read_events = command

    def loss(denoiser, x, noise, sigma):
        each = K.Denoiser.loss(denoiser, x, noise, sigma)
        return each * math.nan if bad(len(calls)) else each

    def stop(trainer):
        calls.append(1)
        if trainer.step == 4:
            raise K.Stop

    calls, bad = [], lambda n: n == 1
    with pytest.warns(UserWarning, match='the loss is nan at step 2'):
        train(tmp_path / 'a', loss=loss, hooks=[stop], on_event=[words])
    assert [(e['event'], e['step']) for e in read_events()] == [
        ('start', 0),
        ('nan', 2),
        ('checkpoint', 4),
        ('stop', 4),
    ]
    assert read_events()[1]['loss'] == 'nan' and read_events()[-1]['signal'] is None

    def fail(trainer):
        raise RuntimeError('of the test')

    with pytest.raises(RuntimeError):
        train(tmp_path / 'b', hooks=[fail], on_event=[words])
    assert read_events()[-1]['event'] == 'failure' and read_events()[-1]['reason'] == 'of the test'
    assert read_events()[-1]['error'] == 'RuntimeError'


def test_the_signal_of_a_stop_is_told(tmp_path, command):
    words, read_events = command

    def ask(trainer):
        if trainer.step == 1:
            signal.raise_signal(signal.SIGTERM)

    run = train(tmp_path / 'a', hooks=[ask], on_event=words)
    assert run.exit_status == 143 and read_events()[-1]['event'] == 'stop'
    assert read_events()[-1]['signal'] == int(signal.SIGTERM)


def test_a_spike_is_told(tmp_path, command):
    words, read_events = command
    calls = []

    def loss(denoiser, x, noise, sigma):
        calls.append(1)
        return K.Denoiser.loss(denoiser, x, noise, sigma) * (1e3 if len(calls) > 24 else 1.0)

    with pytest.warns(UserWarning, match='spikes from step 25 on'):
        train(tmp_path / 'a', 30, loss=loss, save_every=8, rewinds=1, on_event=words)
    spikes = [entry for entry in read_events() if entry['event'] == 'spike']
    assert (spikes[0]['spike'], spikes[0]['noticed'], spikes[0]['goes_back_to']) == (25, 30, 24)
    checkpoints = [entry['step'] for entry in read_events() if entry['event'] == 'checkpoint']
    assert checkpoints == [8, 16, 24, 30]


def test_a_command_that_fails_hangs_or_is_missing_holds_nothing_up(tmp_path):
    plain = train(tmp_path / 'a')
    hangs = f'{sys.executable} -c "import time; time.sleep(1000)"'
    fails = f'{sys.executable} -c "raise SystemExit(3)"'
    targets = [hangs, fails, '/nonexistent/command', 'http://127.0.0.1:9/hook?token=secret']
    began = time.monotonic()
    with pytest.MonkeyPatch.context() as patch, pytest.warns(UserWarning) as caught:
        patch.setattr('k_diffusion.tasks.run.events.TIMEOUT', 2.0)
        run = train(tmp_path / 'b', save_every=2, on_event=targets)
    assert run.status == 'done' and same(model_of(plain), model_of(run))
    assert time.monotonic() - began < 60
    texts = [str(one.message) for one in caught if 'on_event' in str(one.message)]
    assert len(texts) == 4, texts  # each once, though there were eight events
    for part in (
        'timed out after 2 s',
        'exit status 3',
        '/nonexistent/command failed',
        'http://127.0.0.1 failed',
    ):
        assert sum(part in text for text in texts) == 1, (part, texts)
    assert not any('secret' in text for text in texts)


def test_no_shell_reads_a_command(tmp_path, command):
    words, read_events = command
    events = Events([f'{words} ; touch {tmp_path / "made"} $(touch {tmp_path / "too"})'], {})
    events.send('start', step=0)
    events.close()
    assert [entry['event'] for entry in read_events()] == ['start']
    assert not (tmp_path / 'made').exists() and not (tmp_path / 'too').exists()


def test_a_webhook_is_sent_json():
    requests = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers['Content-Length']))
            requests.append((self.path, self.headers['Content-Type'], json.loads(body)))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(('127.0.0.1', 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    events = Events([f'http://127.0.0.1:{server.server_port}/hook?key=1'], {'run': 'a'})
    events.send('nan', step=7, loss=math.inf)
    events.close()
    server.shutdown()
    server.server_close()
    ((path, kind, event),) = requests
    assert (path, kind) == ('/hook?key=1', 'application/json')
    assert (event['event'], event['step'], event['loss']) == ('nan', 7, 'inf')
    assert event['text'] == 'a has a loss that is not a number at step 7'


def test_targets_that_are_none():
    for text in ('', '  ', "echo 'open", 3, 'http://', 'http:///x', 'https://[bad'):
        assert 'on_event must be a command or a URL' in find_target_problem(text)
    for text in ("echo 'a b'", 'http://localhost:8000/x', 'https://[::1]/x'):
        assert find_target_problem(text) is None
    with pytest.raises(ValueError, match='on_event must be a command'):
        K.train('c.json', on_event='"')


# The batches of losses that are not numbers


def test_the_batch_of_a_bad_loss_is_kept(tmp_path):
    """The file holds the inputs of step 3 in two portions; no other file is written."""
    calls = []

    def loss(denoiser, x, noise, sigma, class_cond):
        calls.append((x, noise, sigma, class_cond))
        each = K.Denoiser.loss(denoiser, x, noise, sigma, class_cond=class_cond)
        return each * (math.nan if len(calls) in (5, 7, 9) else 1.0)

    dataset = torch.utils.data.TensorDataset(data(), torch.arange(40) % 5)
    with pytest.warns(UserWarning, match='the loss is nan at step 3'):
        train(
            tmp_path,
            6,
            dataset=dataset,
            num_classes=5,
            loss=loss,
            grad_accum_steps=2,
            batch_size=4,
            nan_batches=2,
        )
    paths = sorted(path.name for path in tmp_path.glob('own_nan_*'))
    assert paths == ['own_nan_00000003.safetensors', 'own_nan_00000004.safetensors']
    batch = load_file(tmp_path / paths[0])
    for key, place in (('image', 0), ('noise', 1), ('sigma', 2), ('cond.class_cond', 3)):
        expected = torch.cat([calls[4][place], calls[5][place]])
        assert torch.equal(batch[key], expected), key
    assert batch['item'].tolist() == list(range(16, 24))
    assert torch.equal(batch['image'], data()[batch['index']])
    with safe_open(tmp_path / paths[0], 'pt') as file:
        assert file.metadata() == {'step': '3', 'loss': 'nan', 'seed': '0', 'draws': '2'}


def test_keeping_a_batch_changes_nothing(tmp_path):
    def run(place, most):
        calls = []

        def loss(denoiser, x, noise, sigma):
            calls.append(1)
            each = K.Denoiser.loss(denoiser, x, noise, sigma)
            return each * (math.inf if len(calls) == 3 else 1.0)

        with pytest.warns(UserWarning, match='the loss is .* at step 3'):
            return train(tmp_path / place, 12, loss=loss, nan_batches=most)

    one, two = run('a', 0), run('b', 3)
    assert same(model_of(one), model_of(two)) and not list((tmp_path / 'a').glob('own_nan_*'))
    assert [path.name for path in (tmp_path / 'b').glob('own_nan_*')] == [
        'own_nan_00000003.safetensors'
    ]


def test_of_a_stream_the_positions_are_kept(tmp_path):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            yield from iter(data(400))

    calls = []

    def loss(denoiser, x, noise, sigma):
        calls.append(x)
        each = K.Denoiser.loss(denoiser, x, noise, sigma)
        return each * (math.nan if len(calls) == 2 else 1.0)

    with pytest.warns(UserWarning, match='the loss is nan at step 2'):
        train(tmp_path, 12, dataset=Stream(), loss=loss, sigma_data=1.0)
    batch = load_file(tmp_path / 'own_nan_00000002.safetensors')
    assert batch.keys() == {'item', 'u'} and batch['item'].tolist() == list(range(8, 16))
    assert torch.equal(torch.cat(calls), data(400)[:96])
