"""The stream of batches: each picture once an epoch, and the same whoever reads it and wherever
it is taken up again.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
import torch

from k_diffusion.augmentation import BatchedAugmentation
from k_diffusion.core.draws import Draws
from k_diffusion.core.images import from_bytes
from k_diffusion.core.random import derive_seed, generator
from k_diffusion.data import (
    Dataset,
    ImageFolderClassConfig,
    Images,
    Loader,
    icons,
    open_dataset,
    permutation,
    reading,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture
def dataset():
    return Images(icons(22, 8), torch.arange(22) % 3, 'abc')


def take(loader, n, items=0):
    with closing(loader.iterate(items)) as batches:
        return list(itertools.islice(batches, n))


def same(a, b):
    assert len(a) == len(b) and len(a) > 0
    for one, other in zip(a, b):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_permutation():
    assert torch.equal(
        permutation(3, 1, 50), torch.randperm(50, generator=generator(3, 'epoch', 1))
    )
    assert permutation(3, 1, 50) is permutation(3, 1, 50)
    orders = [permutation(3, 0, 50), permutation(3, 1, 50), permutation(4, 0, 50)]
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(orders, 2))


def test_a_batch(dataset):
    batch = take(Loader(dataset, 5, seed=7), 1)[0]
    order = permutation(7, 0, 22)[:5]
    assert batch.keys() == {'image', 'item', 'index', 'class_cond'} and torch.equal(
        batch['index'], order
    )
    assert (
        torch.equal(batch['image'], from_bytes(dataset.images[order]))
        and batch['image'].dtype == torch.float32
    )
    assert batch['item'].tolist() == [0, 1, 2, 3, 4] and torch.equal(batch['class_cond'], order % 3)
    augmentation = BatchedAugmentation(0.5)
    draws = Draws(7).uniform(torch.arange(5), 13, 'augment')
    seeds = [derive_seed(7, 'augment', p) for p in range(5)]
    for version, expected in (
        (1, augmentation(dataset.images[order], seeds)),
        (2, augmentation.apply(dataset.images[order], augmentation.numbers(draws))),
    ):
        loader = Loader(dataset, 5, seed=7, augmentation=augmentation, draws=Draws(7, version))
        augmented = take(loader, 1)[0]
        assert torch.equal(augmented['image'], expected[0])
        assert torch.equal(augmented['aug_cond'], expected[1])
    assert augmented['aug_cond'].shape == (5, 9) and augmented['aug_cond'].ne(0).any()
    assert 'class_cond' not in take(Loader(Images(icons(9, 8)), 2), 1)[0]


def test_every_picture_once_an_epoch(dataset):
    """Whatever the batch size, batches that reach into the next epoch included."""
    dataset.images[:, 0, 0, 0] = torch.arange(22, dtype=torch.uint8)  # a picture's number
    loader = Loader(dataset, 5)
    indices = (
        torch.cat([(batch['image'][:, 0, 0, 0] + 1) * 127.5 for batch in take(loader, 13)])
        .round()
        .int()
    )
    for epoch in range(2):
        assert sorted(indices[22 * epoch : 22 * epoch + 22].tolist()) == list(range(22))
    assert not torch.equal(indices[:22], indices[22:44])
    assert [loader.epoch(items) for items in (0, 21, 22, 44)] == [0, 0, 1, 2]


@pytest.mark.parametrize('items', [0, 5, 20, 23, 25 * 44])
def test_taken_up_anywhere(dataset, items):
    loader = Loader(dataset, 5, seed=1, augmentation=BatchedAugmentation(0.5))
    assert loader.items_per_step == 5
    straight = take(Loader(dataset, 1, seed=1, augmentation=BatchedAugmentation(0.5)), 10, items)
    resumed = take(loader, 2, items)
    for key in resumed[0]:
        assert torch.equal(
            torch.cat([b[key] for b in resumed]), torch.cat([b[key] for b in straight])
        )
    same(take(loader, 1, items + 5), resumed[1:])


@pytest.mark.parametrize(('world_size', 'grad_accum_steps'), [(1, 4), (2, 2), (4, 1)])
def test_ranks_and_accumulation_share_out_the_same_items(dataset, world_size, grad_accum_steps):
    augmentation = BatchedAugmentation(0.5)
    expected = take(Loader(dataset, 4, augmentation=augmentation), 8)
    parts = {}
    for rank in range(world_size):
        loader = Loader(
            dataset,
            4,
            rank=rank,
            world_size=world_size,
            grad_accum_steps=grad_accum_steps,
            augmentation=augmentation,
        )
        assert loader.items_per_step == 16
        for batch in take(loader, 2 * grad_accum_steps):
            parts[int(batch['item'][0])] = batch
    same([parts[position] for position in sorted(parts)], expected)


def test_observing_and_torch_s_seed_change_nothing(dataset):
    loader = Loader(dataset, 4, augmentation=BatchedAugmentation(0.5))
    torch.manual_seed(1)
    first = take(loader, 3)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    same(first, take(loader, 3))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ('keys', 'message'),
    [
        ({'batch_size': 0}, 'batch_size must be .*; got 0'),
        ({'world_size': 0}, 'world_size must be .*; got 0'),
        ({'grad_accum_steps': 0}, 'grad_accum_steps must be .*; got 0'),
        ({'num_workers': -1}, 'num_workers must be .*; got -1'),
        ({'rank': 2, 'world_size': 2}, 'rank must be .*; got 2'),
        (
            {'batch_size': 4, 'world_size': 3, 'grad_accum_steps': 2},
            r'has 22 images, fewer than the 24 of one step .*lower the batch size',
        ),
    ],
)
def test_errors(dataset, keys, message):
    with pytest.raises(ValueError, match=message):
        Loader(dataset, **{'batch_size': 1, **keys})


# Reading by workers


@pytest.fixture
def streamed(tmp_path, write_pictures):
    """A folder of two classes that is decoded as it is read; the second picture is broken."""
    write_pictures(tmp_path / 'a', 6)
    write_pictures(tmp_path / 'b', 6, seed=1)
    (tmp_path / 'a' / '0001.png').write_bytes(b'broken')
    return open_dataset(ImageFolderClassConfig(location=str(tmp_path)), (8, 8), memory_limit=0)


def test_broken_pictures_make_room_for_the_next(streamed):
    batch = take(Loader(streamed, 12), 1)[0]
    at = int((permutation(0, 0, 12) == 1).nonzero())
    assert (
        torch.equal(batch['image'][at], from_bytes(streamed[2]['image']))
        and batch['class_cond'].sum() == 6
    )
    # What belongs to a picture by its number, as a caption does, belongs to the one that is shown.
    assert batch['index'][at] == 2
    assert all(
        torch.equal(image, from_bytes(streamed[i]['image']))
        for image, i in zip(batch['image'], batch['index'].tolist())
    )
    assert len(streamed.skipped) == 1 and streamed.skipped[0][0].endswith('0001.png')
    take(Loader(streamed, 12), 2)
    assert len(streamed.skipped) == 1


def test_only_broken_pictures(streamed):
    for path in streamed.files:
        Path(path).write_bytes(b'broken')
    with pytest.raises(ValueError, match='many images in a row'):
        take(Loader(streamed, 2), 1)


@pytest.mark.parametrize(
    ('num_workers', 'start_method'),
    [
        (1, 'fork'),
        (2, 'fork'),
        pytest.param(2, 'spawn', marks=pytest.mark.slow),
        pytest.param(2, None, marks=pytest.mark.slow),
    ],
)
@pytest.mark.filterwarnings('ignore:.*fork')
def test_workers_change_nothing(streamed, num_workers, start_method):
    def loader(**keys):
        return Loader(streamed, 5, augmentation=BatchedAugmentation(0.5), **keys)

    same(
        take(loader(num_workers=num_workers, start_method=start_method), 8, items=3),
        take(loader(), 8, items=3),
    )
    assert len(streamed.skipped) == 1
    deadline = time.monotonic() + 20
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not multiprocessing.active_children()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != 'linux', reason='memory is read from /proc')
def test_workers_share_the_memory_of_torch(streamed):
    """A process that imports torch writes to over 100 MiB; one of the fork server to little."""
    with closing(Loader(streamed, 4, num_workers=2).iterate()) as batches:
        next(batches)
        for worker in multiprocessing.active_children():
            facts = Path(f'/proc/{worker.pid}/smaps_rollup').read_text().split()
            assert int(facts[facts.index('Private_Dirty:') + 1]) < 64 * 2**10


SCRIPT = """
import sys
from pathlib import Path
import torch
from k_diffusion.data import Dataset, Loader, open_dataset
from k_diffusion.data import ImageFolderClassConfig as Folder

with open('ran', 'a') as file:
    file.write('once;')


class Numbers(Dataset):
    source = 'numbers'

    def __len__(self):
        return 22

    def __getitem__(self, index):
        return {'image': torch.full((1, 8, 8), index, dtype=torch.uint8)}


def read(dataset):
    batches = Loader(dataset, 4, num_workers=2).iterate()
    print('read', len(next(batches)['image']))
    batches.close()

"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ('call', 'ran'),
    [
        (
            'read(open_dataset(Folder(location=sys.argv[1]), (8, 8), memory_limit=0))',
            1,
        ),
        ("if __name__ == '__main__':\n    read(Numbers((1, 8, 8)))", 3),
    ],
)
def test_workers_run_the_script_only_for_what_it_defines(streamed, tmp_path, call, ran):
    """Without the guard of a main module, a script would read in each of its workers."""
    (tmp_path / 'script.py').write_text(SCRIPT + call)
    done = subprocess.run(
        [sys.executable, 'script.py', str(streamed.place)],
        cwd=tmp_path,
        env={**os.environ, 'PYTHONPATH': os.pathsep.join([str(ROOT), *sys.path[1:]])},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, 'read 4\n'), done.stderr
    assert len((tmp_path / 'ran').read_text().split(';')) - 1 == ran


@pytest.mark.filterwarnings('ignore:.*fork')
def test_a_dead_worker_ends_the_stream_with_a_sentence(streamed):
    with closing(Loader(streamed, 4, num_workers=2, start_method='fork').iterate()) as batches:
        next(batches)
        os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
        with pytest.raises(
            ChildProcessError, match=r'died \((process \d+, by signal SIGKILL|killed, or)'
        ):
            for _ in range(1000):
                next(batches)


class Hanging(Dataset):
    """Grey pictures, of which reading the ninth never ends; the process that tries writes down
    its number.
    """

    source = 'the pictures'

    def __init__(self, image_shape, note=None):
        super().__init__(image_shape)
        self.note = note

    def __len__(self):
        return 24

    def __getitem__(self, index):
        if index == 9:
            if self.note is not None:
                self.note.write_text(str(os.getpid()))
            time.sleep(600)
        return {'image': torch.full((1, 4, 4), index, dtype=torch.uint8)}


@pytest.mark.filterwarnings('ignore:.*fork')
@pytest.mark.parametrize('workers', [1, 2])
def test_a_worker_that_hangs_is_noticed_in_time(workers, tmp_path):
    dataset = Hanging((1, 4, 4), tmp_path / 'hung')
    order = permutation(0, 0, 24).tolist()
    loader = Loader(dataset, 4, num_workers=workers, start_method='fork', worker_timeout=1.5)
    indices, begun = [], time.monotonic()
    with closing(loader.iterate()) as batches, pytest.raises(ChildProcessError) as fault:
        for batch in batches:
            indices.append(batch['index'].tolist())
            begun = time.monotonic()
    assert 1.5 <= time.monotonic() - begun < 30
    hung = order.index(9) // 4
    assert indices == [order[i : i + 4] for i in range(0, 4 * hung, 4)]
    assert 'the processes that read the pictures returned no batch for 1.5 s' in str(fault.value)
    assert dataset.name(order[4 * hung]) in str(fault.value)
    assert 'worker_timeout=' in str(fault.value)
    pid, end = int((tmp_path / 'hung').read_text()), time.monotonic() + 30
    while (
        pid in {process.pid for process in multiprocessing.active_children()}
        and time.monotonic() < end
    ):
        time.sleep(0.05)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.filterwarnings('ignore:.*fork')
def test_the_time_in_which_the_whole_program_is_stopped_does_not_count(monkeypatch):
    """Each turn of a wait ends late here, as after Ctrl-Z and fg; the worker needs three."""
    turns, late = [], []
    real = reading.wait

    def wait(futures, timeout):
        turns.append(timeout)
        if len(turns) == 1:
            late.append(time.sleep(0.6))
        return real(futures, timeout)

    monkeypatch.setattr(reading, 'wait', wait)
    monkeypatch.setattr(reading, '_TURN', 0.1)
    with ThreadPoolExecutor(1) as pool:
        assert reading._is_done_within(pool.submit(time.sleep, 0.75), 0.5)
    assert len(turns) > 1 and all(turn == pytest.approx(0.1) for turn in turns)
