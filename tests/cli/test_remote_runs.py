"""Runs whose folder lies at a URL: uploaded while they train, gone on with on another machine."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys

import pytest
import torch
from torch import nn

import k_diffusion as K
from k_diffusion.core import remote
from k_diffusion.core.extras import MissingExtra
from k_diffusion.core.weights import load_checkpoint
from k_diffusion.training.checkpoints.remote import RemoteFolder

fsspec = pytest.importorskip('fsspec', reason='fsspec is in the extra "remote"')
pytest.importorskip('accelerate', reason='accelerate is in the extra "train"')

SCHEDULE = {'lr_schedule': lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda step: 1.0)}
QUIET = {'device': 'cpu', 'demo_every': 0, 'evaluate_n': 0, 'report': False, 'show': False}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(2, 1)

    def forward(self, x, sigma):
        level = sigma.log().view(-1, 1, 1).expand_as(x)
        return self.mix(torch.stack([x, level], -1)).squeeze(-1)


def net():
    torch.manual_seed(1)
    return Net()


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    """An empty cache, no waits between tries, and nothing in the memory of fsspec."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    monkeypatch.setattr(remote, 'WAITS', (0.0, 0.0))
    yield
    store = fsspec.filesystem('memory')
    if store.exists('/bucket'):
        store.rm('/bucket', recursive=True)


@pytest.fixture
def memory():
    """The file system of memory:// URLs."""
    return fsspec.filesystem('memory')


def train(place, local, steps, **settings):
    """Train up to a step of 12, in a folder of this machine that is uploaded."""
    data = torch.randn(40, 1, 8, generator=torch.Generator().manual_seed(3))

    def stop(trainer):
        if trainer.step == steps:
            raise K.Stop

    return K.train(
        network=net(),
        dataset=data,
        name='own',
        run_dir=place,
        local_dir=local,
        end_step=12,
        batch_size=8,
        hooks=[stop] if steps < 12 else [],
        **{'save_every': 4, **SCHEDULE, **QUIET, **settings},
    )


def weights(path):
    state = load_checkpoint(path)
    return {key: state[key] for key in ('model', 'model_ema', 'opt', 'items', 'ema_stats', 'step')}


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def bytes_of(system, path):
    return system.cat_file(path)


def check_runs(system, place, path, tmp_path):
    """A run stopped at step 6 goes on on another machine and ends as one that was left alone."""
    first = train(place, tmp_path / 'a', 6)
    assert (first.status, first.step) == ('stopped', 6)
    manifest = json.loads(bytes_of(system, f'{path}/own_manifest.json'))['checkpoints']
    assert manifest.keys() == {'own_00000004.pth', 'own_00000006.pth'}
    for name, record in manifest.items():
        content = bytes_of(system, f'{path}/{name}')
        assert content == (tmp_path / 'a' / name).read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        assert record['files'] == {name: {'bytes': len(content), 'sha256': digest}}
    shutil.rmtree(tmp_path / 'a')
    second = train(place, tmp_path / 'b', 12, keep_last=1, keep_best=0)
    straight = train(tmp_path / 'c', None, 12)
    assert second.status == 'done'
    assert same(weights(second.checkpoint), weights(straight.checkpoint))
    steps = [
        [json.loads(line)['step'] for line in (tmp_path / run / 'own_log.jsonl').open()]
        for run in 'bc'
    ]
    assert steps[0] == steps[1] == [10, 12]
    manifest = json.loads(bytes_of(system, f'{path}/own_manifest.json'))['checkpoints']
    assert manifest.keys() == {'own_00000012.pth'}  # nothing keeps the others any more
    names = [name.rpartition('/')[2] for name in system.ls(path, detail=False)]
    assert [name for name in names if name.endswith('.pth')] == ['own_00000012.pth']
    x, sigma = torch.randn(2, 1, 8), torch.ones(2)
    for source in (place, f'{place}/own_00000012.pth'):
        denoiser, config = K.load_model(source, network=Net())
        assert torch.equal(denoiser(x, sigma), second.denoiser(x, sigma))
        assert config['model']['network'] == 'Net'


def test_a_run_goes_on_on_another_machine(memory, tmp_path):
    check_runs(memory, 'memory://bucket/own', '/bucket/own', tmp_path)


def test_a_run_on_a_mounted_disk(tmp_path):
    place = tmp_path / 'mounted'
    check_runs(fsspec.filesystem('file'), f'file://{place}', str(place), tmp_path)


@pytest.fixture
def s3(monkeypatch):
    """A server that speaks S3, with one bucket; its file system."""
    s3fs = pytest.importorskip('s3fs', reason='s3fs is in the extra "s3"')
    server = pytest.importorskip('moto.server', reason="a local server is moto's: moto[server]")
    running = server.ThreadedMotoServer(port=0, verbose=False)
    running.start()
    _, port = running.get_host_and_port()
    for key, value in (
        ('AWS_ENDPOINT_URL', f'http://127.0.0.1:{port}'),
        ('AWS_ACCESS_KEY_ID', 'key'),
        ('AWS_SECRET_ACCESS_KEY', 'secret'),
        ('AWS_DEFAULT_REGION', 'us-east-1'),
    ):
        monkeypatch.setenv(key, value)
    s3fs.S3FileSystem.clear_instance_cache()
    system = s3fs.S3FileSystem()
    system.mkdir('bucket')
    yield system
    s3fs.S3FileSystem.clear_instance_cache()
    running.stop()


def test_a_run_in_a_store_of_objects(s3, tmp_path):
    check_runs(s3, 's3://bucket/deep/own', 'bucket/deep/own', tmp_path)


def test_a_damaged_checkpoint_is_passed_over_and_never_loaded(memory, tmp_path, monkeypatch):
    train('memory://bucket/own', tmp_path / 'a', 6)
    content = bytearray(bytes_of(memory, '/bucket/own/own_00000006.pth'))
    content[len(content) // 2] ^= 1
    memory.pipe_file('/bucket/own/own_00000006.pth', bytes(content))
    opened = []
    plain = K.core.weights.read_torch_file
    monkeypatch.setattr(
        K.core.weights,
        'read_torch_file',
        lambda path, **k: opened.append(path.name) or plain(path, **k),
    )
    for source in ('memory://bucket/own', 'memory://bucket/own/own_00000006.pth'):
        with pytest.raises(ValueError, match=r'own_00000006\.pth is damaged: its SHA-256'):
            K.load_model(source, network=Net())
    assert opened == [] and not list((tmp_path / 'cache').rglob('*.pth'))
    with pytest.warns(UserWarning, match=r'own_00000006\.pth is skipped: .* is damaged'):
        done = train('memory://bucket/own', tmp_path / 'b', 12)
    assert done.step == 12 and 'own_00000006.pth' not in opened
    straight = train(tmp_path / 'c', None, 12)
    assert same(weights(done.checkpoint), weights(straight.checkpoint))
    for step in (4, 8, 12):
        memory.pipe_file(f'/bucket/own/own_{step:08}.pth', b'')
    with pytest.raises(ValueError, match='none of the checkpoints of .own. at memory://bucket/own'):
        train('memory://bucket/own', tmp_path / 'd', 12)


def test_a_damaged_checkpoint_is_taken_where_that_is_asked(memory, tmp_path):
    """The values of a float that was written are changed, not the form of the file."""
    done = train('memory://bucket/own', tmp_path / 'a', 4)
    value = load_checkpoint(done.checkpoint)['model_ema']['mix.bias'].numpy().tobytes()
    path = '/bucket/own/own_00000004.pth'
    memory.pipe_file(path, bytes_of(memory, path).replace(value, b'\0\0\0\0'))
    denoiser, _ = K.load_model('memory://bucket/own', network=Net(), verify=False)
    assert denoiser.inner_model.mix.bias.item() == 0


def test_what_training_does_not_write_is_not_fetched(memory, tmp_path):
    train('memory://bucket/own', tmp_path / 'a', 4)
    text = bytes_of(memory, '/bucket/own/own_manifest.json').decode()
    for name in ('../own_00000004.pth', 'own_00000004.pth/../../x.pth'):
        changed = text.replace('"own_00000004.pth": {', f'"{name}": {{')
        memory.pipe_file('/bucket/own/own_manifest.json', changed.encode())
        with pytest.raises(ValueError, match='has no checkpoint that its manifest names'):
            K.load_model('memory://bucket/own', network=Net())
    memory.pipe_file('/bucket/own/own_demo_00000001.png.py', b'raise SystemExit')
    memory.pipe_file('/bucket/own/own_manifest.json', text.encode())
    train('memory://bucket/own', tmp_path / 'b', 8)
    assert not list((tmp_path / 'b').glob('*.py'))


def test_what_the_manifest_does_not_name_is_not_taken(memory, tmp_path):
    """An upload that was cut leaves a file that has the name of a checkpoint."""
    train('memory://bucket/own', tmp_path / 'a', 4)
    content = bytes_of(memory, '/bucket/own/own_00000004.pth')
    memory.pipe_file('/bucket/own/own_00000009.pth', content[:100])
    with pytest.raises(ValueError, match='does not name own_00000009.pth; its upload may have'):
        K.load_model('memory://bucket/own/own_00000009.pth', network=Net())
    assert train('memory://bucket/own', tmp_path / 'b', 5).step == 5
    memory.pipe_file('/bucket/own/own_00000009.pth', content)
    K.load_model('memory://bucket/own/own_00000009.pth', network=Net(), verify=False)


def test_checkpoints_at_a_url_are_listed_and_verified(memory, tmp_path, capsys):
    from k_diffusion.cli.checkpoints import main

    train('memory://bucket/own', tmp_path / 'a', 8)
    here = K.checkpoints(tmp_path / 'a')
    there = K.checkpoints('memory://bucket/own')
    assert [entry.step for entry in there] == [8, 4] and there.exit_status == 0
    for a, b in zip(here, there):
        assert (a.step, a.bytes, a.saved, a.loss, a.notes) == (
            (b.step, b.bytes, b.saved, b.loss, b.notes)
        )
    memory.pipe_file('/bucket/own/own_00000004.pth', b'x')
    memory.rm_file('/bucket/own/own_00000008.pth')
    assert main(['memory://bucket/own']) == 1
    lines = capsys.readouterr().out.splitlines()
    assert 'own_00000008.pth cannot be read' in lines[0] and 'SHA-256' in lines[1]
    assert main(['memory://bucket/own', '--no-verify']) == 0
    assert main(['memory://bucket/none']) == 1
    with pytest.raises(ValueError, match='pin and unpin must be left out with a URL'):
        K.checkpoints('memory://bucket/own', pin=[4])


class Refusing:
    """Makes a file system refuse so many writes of checkpoints, and counts them."""

    def __init__(self, monkeypatch, system, times):
        self.tries, plain = 0, type(system).put_file

        def put_file(system, local, path, *args, **kwargs):
            self.tries += 1
            if self.tries <= times:
                raise ConnectionError('the network is gone')
            return plain(system, local, path, *args, **kwargs)

        monkeypatch.setattr(type(system), 'put_file', put_file)


def test_an_upload_that_fails_is_tried_again(memory, tmp_path, monkeypatch):
    refusing = Refusing(monkeypatch, memory, 2)
    train('memory://bucket/own', tmp_path / 'a', 5, save_every=100)
    assert refusing.tries == 3 and RemoteFolder('memory://bucket/own').read_pointer('own')


def test_uploads_that_keep_failing_do_not_end_the_run(memory, tmp_path, monkeypatch):
    Refusing(monkeypatch, memory, 10**9)
    with pytest.warns(UserWarning, match=r'could not be uploaded .*the network is gone; 3 tries'):
        done = train('memory://bucket/own', tmp_path / 'a', 12)
    assert done.status == 'done' and done.checkpoint.exists()
    assert RemoteFolder('memory://bucket/own').records('own') == {}
    monkeypatch.undo()
    again = train('memory://bucket/own', tmp_path / 'a', 12)
    assert again.status == 'already done'
    assert RemoteFolder('memory://bucket/own').read_pointer('own') == 'own_00000012.pth'


def test_what_arrives_changed_is_no_checkpoint(memory, tmp_path, monkeypatch):
    def put_file(system, local, path, *args, **kwargs):
        system.pipe_file(path, b'other')

    monkeypatch.setattr(type(memory), 'put_file', put_file)
    with pytest.warns(UserWarning, match='differs from what was written'):
        train('memory://bucket/own', tmp_path / 'a', 12)
    assert RemoteFolder('memory://bucket/own').records('own') == {}


def test_the_newer_of_two_checkpoints_is_gone_on_with(memory, tmp_path):
    train('memory://bucket/own', tmp_path / 'a', 6)
    train('memory://bucket/own', tmp_path / 'b', 8)
    shutil.copytree(tmp_path / 'a', tmp_path / 'alone')
    assert train(tmp_path / 'alone', None, 7).step == 7
    record = json.loads((tmp_path / 'a' / 'own_manifest.json').read_text())
    for entry in record['checkpoints'].values():  # (both runs took less than the clock's second)
        entry['saved'] = '2000-01-01T00:00:00Z'
    (tmp_path / 'a' / 'own_manifest.json').write_text(json.dumps(record))
    done = train('memory://bucket/own', tmp_path / 'a', 9)
    assert done.step == 9 and (tmp_path / 'a' / 'own_00000008.pth').exists()


def test_images_are_drawn_from_a_url(trained, memory, tmp_path, monkeypatch, capsys):
    from k_diffusion.cli.sample import main

    for path in trained.glob('tiny_*'):
        memory.pipe_file(f'/bucket/tiny/{path.name}', path.read_bytes())
    grids = []
    for number, source in enumerate(
        (str(trained), 'memory://bucket/tiny', 'memory://bucket/tiny/tiny_00000003.pth')
    ):
        out = tmp_path / str(number)
        words = ['--checkpoint', source, '-n', '2', '--steps', '2', '--out', str(out)]
        assert main([*words, '--device', 'cpu']) == 0, capsys.readouterr().err
        grids.append((out / 'grid.png').read_bytes())
    assert grids[0] == grids[1] == grids[2]
    path = '/bucket/tiny/tiny_00000003.pth'
    memory.pipe_file(path, bytes_of(memory, path) + b' ')
    words = ['--checkpoint', 'memory://bucket/tiny', '-n', '2', '--steps', '2', '--device', 'cpu']
    assert main([*words, '--out', str(tmp_path / '3')]) == 0  # (the copy in the cache is whole)
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'empty'))
    assert main([*words, '--out', str(tmp_path / '4')]) == 1
    assert 'is damaged: its SHA-256' in capsys.readouterr().err
    assert main([*words, '--out', str(tmp_path / '4'), '--no-verify']) == 0
    assert (tmp_path / '4' / 'grid.png').read_bytes() == grids[0]
    with pytest.raises(ValueError, match='out must be given with a URL'):
        K.convert('memory://bucket/tiny')
    assert main(['--checkpoint', 'memory://bucket/none/x.pth', '--device', 'cpu']) == 1
    assert 'no checkpoint at memory://bucket/none/x.pth' in capsys.readouterr().err
    assert main(['--checkpoint', 'reference://x/x.pth', '--device', 'cpu']) == 1
    assert 'must be a path or a URL of' in capsys.readouterr().err


def test_a_folder_of_pieces_travels_whole(memory, tmp_path):
    """A checkpoint in pieces is several files of one record."""
    from k_diffusion.core.files import FileDigest
    from k_diffusion.training import Record, RunFolder
    from k_diffusion.training.checkpoints.uploads import RunUploads

    folder = RunFolder(tmp_path / 'a', 'own')
    path = folder.path / 'own_00000004.shards'
    path.mkdir(parents=True)
    files = {}
    for rank in range(2):
        content = bytes([rank]) * 100
        (path / f'rank_{rank:05}.pth').write_bytes(content)
        digest = FileDigest(100, hashlib.sha256(content).hexdigest())
        files[f'{path.name}/rank_{rank:05}.pth'] = digest
    folder.record(path, 4, files, {})
    RunUploads('memory://bucket/own', folder).upload()
    other = RunFolder(tmp_path / 'b', 'own')
    path_here = RunUploads('memory://bucket/own', other).restore()
    assert path_here == other.path / path.name and other.is_whole(path_here)
    assert isinstance(other.manifest.read()[path.name], Record)
    assert (path_here / 'rank_00001.pth').read_bytes() == bytes([1]) * 100


def test_a_url_of_s3_names_the_extra_that_it_needs(monkeypatch):
    monkeypatch.setitem(sys.modules, 's3fs', None)  # as if it were not installed
    with pytest.raises(MissingExtra, match=r'k-diffusion\[s3\]'):
        remote.file_system('s3://bucket/run')
