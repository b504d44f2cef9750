"""Tar shards: which there are, in what order their samples are read, and what happens to broken
ones.
"""

from __future__ import annotations

import io
import json
import pickle
import tarfile

import pytest
import torch

from k_diffusion.core import remote
from k_diffusion.core.images import from_bytes, to_pil_image
from k_diffusion.data import Loader, ShardsConfig, UnreadablePicture, icons, open_dataset
from k_diffusion.data.shards.listing import expand_braces, list_shards
from k_diffusion.data.shards.order import ShardOrder
from k_diffusion.data.shards.samples import split_name

numpy = pytest.importorskip('numpy', reason='numpy is in the extra "train"')


def png(image):
    buffer = io.BytesIO()
    to_pil_image(from_bytes(image)).save(buffer, 'png')
    return buffer.getvalue()


def npy(array):
    buffer = io.BytesIO()
    numpy.save(buffer, array)
    return buffer.getvalue()


def write_tar(path, members):
    """A tar of (name, bytes), as any program would write it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, 'w') as archive:
        for name, data in members:
            head = tarfile.TarInfo(name)
            head.size = len(data)
            archive.addfile(head, io.BytesIO(data))


COUNTS = (5, 9, 1, 7)
IMAGES = icons(sum(COUNTS), 12)


@pytest.fixture
def folder(tmp_path):
    """Shards of 22 icons: picture i has the class i % 3 and the text 'icon i'."""
    first = 0
    for shard, count in enumerate(COUNTS):
        members = []
        for i in range(first, first + count):
            members += [
                (f'a/{i:03}.png', png(IMAGES[i])),
                (f'a/{i:03}.cls', str(i % 3).encode()),
                (f'a/{i:03}.txt', f'icon {i}'.encode()),
            ]
        write_tar(tmp_path / 'shards' / f'{shard:02}.tar', members)
        first += count
    return tmp_path / 'shards'


def opened(location, **keys):
    size = keys.pop('size', (12, 12))
    channels, cache = keys.pop('channels', 3), keys.pop('cache_dir', None)
    return open_dataset(
        ShardsConfig(location=str(location), **keys), size, channels, cache_dir=cache
    )


def take_batches(loader, batches, start=0):
    stream = loader.iterate(start)
    return [next(stream) for _ in range(batches)]


# The order


@pytest.mark.parametrize('window', [1, 4, 10, 22, 1000])
def test_an_epoch_takes_each_sample_once_and_any_position_by_itself(window):
    order = ShardOrder(COUNTS, window)
    for epoch in range(3):
        whole = order.indices(7, epoch, 0, 22)
        assert sorted(whole.tolist()) == list(range(22))
        again = pickle.loads(pickle.dumps(order))
        assert [int(again.indices(7, epoch, p, 1)) for p in reversed(range(22))] == whole.tolist()[
            ::-1
        ]
        assert torch.equal(order.indices(7, epoch, 3, 11), whole[3:14])
    assert (
        order.indices(7, 0, 0, 22).tolist()
        != order.indices(7, 1, 0, 22).tolist()
        != order.indices(8, 1, 0, 22).tolist()
    )


def test_shards_are_mixed_and_samples_move_within_a_window():
    """A window holds samples in a row of the shards as the epoch has them, which is read off
    window 1.
    """
    starts, orders = [0, 5, 14, 15, 22], set()
    for epoch in range(8):
        rows = ShardOrder(COUNTS, 1).indices(3, epoch, 0, 22).tolist()
        shards = [next(s for s in range(4) if starts[s] <= i < starts[s + 1]) for i in rows]
        orders.add(tuple(s for i, s in enumerate(shards) if i == 0 or shards[i - 1] != s))
        assert all(rows[i + 1] == rows[i] + 1 for i in range(21) if shards[i] == shards[i + 1])
        mixed = ShardOrder(COUNTS, 6).indices(3, epoch, 0, 22).tolist()
        moved = [abs(rows.index(sample) - position) for position, sample in enumerate(mixed)]
        assert 0 < max(moved) < 6
    assert len(orders) > 3 and all(sorted(order) == [0, 1, 2, 3] for order in orders)


def test_every_order_of_a_window_is_as_likely():
    """Of two samples in one window each stands first in half of 400 epochs (5 standard
    deviations).
    """
    first = sum(int(ShardOrder([2], 8).indices(0, epoch, 0, 1)) for epoch in range(400))
    assert abs(first - 200) < 50


def test_the_shards_ahead_are_those_of_two_windows():
    order = ShardOrder([10] * 8, 10)
    for position in (0, 25, 69):
        samples = order.indices(1, 0, position, min(11, 80 - position))
        assert {int(i) // 10 for i in samples} <= set(order.shards_ahead(1, 0, position))
        assert len(order.shards_ahead(1, 0, position)) <= 4


# Which shards there are


@pytest.mark.parametrize(
    ('pattern', 'texts'),
    [
        ('a{0..2}.tar', ['a0.tar', 'a1.tar', 'a2.tar']),
        ('{08..10}', ['08', '09', '10']),
        ('{x,yz}-{1..2}', ['x-1', 'x-2', 'yz-1', 'yz-2']),
        ('a.tar', ['a.tar']),
        ('a{b}.tar', ['a{b}.tar']),
    ],
)
def test_braces(pattern, texts):
    assert expand_braces(pattern) == texts


@pytest.mark.parametrize('pattern', ['{0..99999999}', '{0..9999}{0..9999}', '{5..1}'])
def test_braces_that_name_too_many(pattern):
    with pytest.raises(ValueError, match='1,048,576'):
        expand_braces(pattern)


def test_listing(folder):
    names = [str(folder / f'{i:02}.tar') for i in range(4)]
    for location in (
        str(folder),
        f'{folder}/*.tar',
        f'{folder}/{{00..03}}.tar',
        names,
        [names[0], f'{folder}/0[123].tar'],
    ):
        assert [shard.url for shard in list_shards(location).shards] == names
    (folder / 'index.json').write_text(
        json.dumps({'shardlist': [{'url': '02.tar', 'nsamples': 1}], 'class_names': ['disc']})
    )
    listing = list_shards(str(folder))
    assert listing.shards == [(names[2], 1)] and listing.class_names == ['disc']
    assert [shard.samples for shard in list_shards(names).shards] == [None, None, 1, None]
    with pytest.raises(FileNotFoundError, match='names no shards'):
        list_shards(str(folder / '*.tgz'))
    with pytest.raises(FileNotFoundError, match=r'index .*nothing\.json'):
        list_shards(str(folder / 'nothing.json'))


@pytest.mark.parametrize(
    'url',
    ['/etc/passwd', '../x.tar', 'a/../../x.tar', 'http://x/a.tar', 'C:/x.tar', '~/x.tar', 'a::b'],
)
def test_an_index_names_nothing_outside_its_folder(tmp_path, url):
    (tmp_path / 'index.json').write_text(json.dumps({'shardlist': [{'url': url, 'nsamples': 1}]}))
    with pytest.raises(ValueError, match='below its own folder'):
        list_shards(str(tmp_path))


@pytest.mark.parametrize(
    'content',
    [
        '[]',
        '{}',
        '{"shardlist": [{"url": "a"}]}',
        '{"shardlist": [{"url": "a", "nsamples": -1}]}',
        '{"shardlist": [{"url": 1, "nsamples": 1}]}',
        '{"shardlist": 3}',
    ],
)
def test_an_index_that_is_none(tmp_path, content):
    (tmp_path / 'index.json').write_text(content)
    with pytest.raises(ValueError, match='shardlist'):
        list_shards(str(tmp_path))


@pytest.mark.parametrize(
    'url', ['zip://a.tar::http://x/y.zip', 'reference://x', 'python://x', 'simplecache::memory://x']
)
def test_urls_that_do_more_than_fetch_bytes_are_refused(url):
    with pytest.raises(ValueError, match='must be a path or a URL of'):
        remote.file_system(url, 'dataset.location')


# Samples


@pytest.mark.parametrize(
    ('name', 'parts'),
    [
        ('a.png', ('a', 'png')),
        ('d.x/a.seg.PNG', ('d.x/a', 'seg.png')),
        ('a', ('a', '')),
        ('d/.png', ('d/', 'png')),
    ],
)
def test_names(name, parts):
    assert split_name(name) == parts


def test_pictures_classes_and_texts(folder):
    dataset = opened(folder, num_classes=3)
    assert len(dataset) == 22 and dataset.has_texts and dataset.class_names == ['0', '1', '2']
    for i in (0, 4, 5, 14, 21):
        item = dataset[i]
        assert (
            torch.equal(item['image'], IMAGES[i])
            and item['class_cond'] == i % 3
            and item['text'] == f'icon {i}'
        )
    assert 'class_cond' not in opened(folder)[3]


def test_arrays_json_and_chosen_endings(tmp_path):
    values = numpy.linspace(-1, 1, 5 * 4 * 6, dtype=numpy.float64).reshape(5, 4, 6)
    write_tar(
        tmp_path / 'a.tar',
        [
            ('0.depth.npy', npy(values[::-1])),
            ('0.npy', npy(numpy.asfortranarray(values))),
            ('0.json', b'{"label": 2, "caption": "two"}'),
            ('folder/', b''),
            ('README', b'x'),
            ('.hidden.npy', b''),
            ('1.npy', npy(values.astype(numpy.float16))),
            ('1.json', b'[]'),
        ],
    )
    keys = {
        'size': (4, 6),
        'channels': 5,
        'class_key': 'json.label',
        'text_key': 'json.caption',
        'num_classes': 3,
    }
    dataset = opened(tmp_path, image_key='npy', **keys)
    item = dataset[0]
    assert (
        len(dataset) == 2
        and item['class_cond'] == 2
        and item['text'] == 'two'
        and item['image'].dtype == torch.float32
    )
    assert torch.equal(item['image'], torch.from_numpy(values).float())
    assert torch.equal(
        opened(tmp_path, **keys)[0]['image'], torch.from_numpy(values[::-1].copy()).float()
    )
    with pytest.raises(ValueError, match='class of .*a.tar: 1 .* must be an integer .*; got None'):
        dataset[1]
    whole = opened(tmp_path, image_key='npy', size=(4, 6), channels=5)
    batch = take_batches(Loader(whole, 2), 1)[0]
    assert torch.equal(batch['image'][batch['index'].argmin()], torch.from_numpy(values).float())


def array_head(shape, dtype='<f4'):
    head = (
        repr({'descr': dtype, 'fortran_order': False, 'shape': shape}).encode().ljust(117) + b'\n'
    )
    return b'\x93NUMPY\x01\x00' + len(head).to_bytes(2, 'little') + head


@pytest.mark.parametrize(
    ('data', 'reason'),
    [
        (array_head((3, 12, 12)) + bytes(100), 'cut'),
        (array_head((3, 12, 12), '|O') + bytes(8), 'of object'),
        (array_head((2**40, 2**20)), 'must be'),
        (array_head((3, 12, 12), '<i8') + bytes(3456), 'of int64'),
        (b'\x93NUMPY', 'must be a .npy array'),
        (npy(numpy.full((3, 12, 12), numpy.nan, numpy.float32)), 'not finite'),
        (b'\x93NUMPY\x01\x00\xff\xff' + b'(' * 60000, 'must be a .npy array'),
    ],
)
def test_arrays_that_are_refused(tmp_path, data, reason):
    write_tar(tmp_path / 'a.tar', [('0.npy', data)])
    with pytest.raises(UnreadablePicture, match=reason):
        opened(tmp_path)[0]


def test_augmentation_of_arrays_is_refused(tmp_path):
    from k_diffusion.augmentation import BatchedAugmentation

    write_tar(tmp_path / 'a.tar', [('0.npy', npy(numpy.zeros((3, 12, 12), numpy.float32)))])
    with pytest.raises(ValueError, match='augment_prob must be 0'):
        take_batches(Loader(opened(tmp_path), 1, augmentation=BatchedAugmentation()), 1)


# The stream


def test_the_stream_is_that_of_any_workers_processes_and_resumes(folder):
    dataset = opened(folder, num_classes=3, window=6)
    straight = take_batches(Loader(dataset, 4, seed=5), 12)
    for batch in straight:
        for image, label, text, index in zip(
            batch['image'], batch['class_cond'], batch['text'], batch['index'].tolist()
        ):
            assert (
                torch.equal(image, from_bytes(IMAGES[index]))
                and label == index % 3
                and text == f'icon {index}'
            )

    def same(batches, expected):
        assert [b['text'] for b in batches] == [b['text'] for b in expected]
        assert all(
            torch.equal(a['image'], b['image']) and torch.equal(a['item'], b['item'])
            for a, b in zip(batches, expected)
        )

    same(take_batches(Loader(dataset, 4, seed=5), 7, 20), straight[5:])
    same(take_batches(Loader(dataset, 4, seed=5, num_workers=2, start_method='fork'), 12), straight)
    ranks = [
        take_batches(Loader(dataset, 4, seed=5, rank=rank, world_size=2), 6) for rank in range(2)
    ]
    same([batch for pair in zip(*ranks) for batch in pair], straight)


def test_broken_members_are_replaced_and_listed_once(tmp_path):
    """Of samples 0 to 9, number 3 is not a picture, 6 has no picture, and 9 has an invalid text."""
    members = []
    for i in range(10):
        picture = b'junk' if i == 3 else png(IMAGES[i])
        members += [] if i == 6 else [(f'{i}.png', picture)]
        members += [(f'{i}.txt', b'\xff' if i == 9 else str(i).encode())]
    write_tar(tmp_path / 'a.tar', members)
    dataset = opened(tmp_path)
    batches = take_batches(Loader(dataset, 5), 4)
    for batch in batches:
        for text, index in zip(batch['text'], batch['index'].tolist()):
            assert int(text) == index and index not in (3, 6, 9)
    assert sorted(name.rpartition(': ')[2] for name, _ in dataset.skipped) == ['3', '6', '9']
    again = opened(tmp_path)
    workers = take_batches(Loader(again, 5, num_workers=2, start_method='fork'), 4)
    assert all(torch.equal(a['image'], b['image']) for a, b in zip(batches, workers))
    assert sorted(again.skipped) == sorted(dataset.skipped)


def test_a_shard_that_is_cut(folder):
    """Its samples are replaced by those that are there; without an index they are not counted."""
    whole = (folder / '01.tar').read_bytes()
    (folder / '01.tar').write_bytes(
        whole[: 6 * 1536 + 700]
    )  # (each picture: a head and less than 1,024 bytes)
    (folder / 'index.json').write_text(
        json.dumps(
            {'shardlist': [{'url': f'{i:02}.tar', 'nsamples': n} for i, n in enumerate(COUNTS)]}
        )
    )
    dataset = opened(folder)
    batches = take_batches(Loader(dataset, 11), 2)
    there = len(dataset._table(1).samples)
    assert len(dataset) == 22 and 0 < there < 9
    read = [i for batch in batches for i in batch['index'].tolist()]
    assert [int(text.split()[1]) for batch in batches for text in batch['text']] == read
    assert sum(5 <= i < 5 + there for i in read) == 9 and not any(5 + there <= i < 14 for i in read)
    assert any(f'the shard has {there} of 9 samples' in why for _, why in dataset.skipped)
    (folder / 'index.json').unlink()
    counted = opened(folder)
    assert (
        len(counted) == 13 + there
        and counted.skipped[0][0].endswith('01.tar')
        and 'damaged' in counted.skipped[0][1]
    )


def test_a_member_that_claims_much_and_links_are_skipped(tmp_path):
    with tarfile.open(tmp_path / 'a.tar', 'w') as archive:
        link = tarfile.TarInfo('0.png')
        link.type, link.linkname = tarfile.SYMTYPE, '/etc/passwd'
        archive.addfile(link)
        head = tarfile.TarInfo('../1.png')
        data = png(IMAGES[1])
        head.size = len(data)
        archive.addfile(head, io.BytesIO(data))
    dataset = opened(tmp_path)
    assert len(dataset) == 1 and torch.equal(
        dataset[0]['image'], IMAGES[1]
    )  # (its name is shown, never used as a path)
    big = tarfile.TarInfo('0.png')
    big.size = 2**26 + 512
    with open(tmp_path / 'a.tar', 'wb') as file:
        file.write(big.tobuf())
        file.truncate(2**26 + 4096)  # (a hole)
    with pytest.raises(UnreadablePicture, match=r'67,109,376 bytes, more than'):
        opened(tmp_path)[0]


def test_a_compressed_shard_and_one_that_holds_nothing(tmp_path):
    with tarfile.open(tmp_path / 'a.tar', 'w:gz'):
        pass
    with pytest.raises(ValueError, match='hold no samples; they must be uncompressed'):
        opened(tmp_path)


def test_a_missing_shard_is_tried_again_and_named(folder, monkeypatch):
    waits = []
    monkeypatch.setattr(remote.time, 'sleep', waits.append)
    (folder / 'index.json').write_text(
        json.dumps(
            {'shardlist': [{'url': '00.tar', 'nsamples': 5}, {'url': '09.tar', 'nsamples': 5}]}
        )
    )
    dataset = opened(folder)
    with pytest.raises(
        FileNotFoundError, match=r'the shard .*09\.tar cannot be read \(No such file.*4 tries'
    ):
        dataset[7]
    assert waits == list(remote.WAITS)
    (folder / '01.tar').rename(folder / '09.tar')
    assert torch.equal(dataset[7]['image'], IMAGES[7])


def test_counts_are_kept(folder, tmp_path, monkeypatch):
    assert len(opened(folder, cache_dir=tmp_path / 'cache')) == 22
    monkeypatch.setattr(
        'k_diffusion.data.shards.counting.read_table', lambda *_: pytest.fail('read again')
    )
    assert len(opened(folder, cache_dir=tmp_path / 'cache')) == 22


# By URL


@pytest.fixture
def bucket(folder):
    """memory://bucket with the shards and their index; returns the file system."""
    fsspec = pytest.importorskip('fsspec', reason='fsspec is in the extra "shards"')
    memory = fsspec.filesystem('memory')
    for path in folder.iterdir():
        memory.pipe(f'/bucket/{path.name}', path.read_bytes())
    memory.pipe(
        '/bucket/index.json',
        json.dumps(
            {'shardlist': [{'url': f'{i:02}.tar', 'nsamples': n} for i, n in enumerate(COUNTS)]}
        ).encode(),
    )
    yield memory
    memory.rm('/bucket', recursive=True)


@pytest.mark.parametrize(
    'location',
    [
        'memory://bucket/',
        'memory://bucket/index.json',
        'memory://bucket/{00..03}.tar',
        'memory://bucket/*.tar',
    ],
)
def test_shards_of_a_url_are_those_of_the_folder(bucket, folder, location, tmp_path):
    ours = take_batches(Loader(opened(folder, window=6), 4), 7)
    theirs = take_batches(Loader(opened(location, window=6, cache_dir=tmp_path), 4), 7)
    assert all(
        torch.equal(a['image'], b['image']) and a['text'] == b['text'] for a, b in zip(ours, theirs)
    )


def test_copies_are_bounded(bucket, tmp_path):
    largest = max(bucket.info(f'/bucket/{i:02}.tar')['size'] for i in range(4))
    dataset = opened('memory://bucket/', window=1, cache_dir=tmp_path, copies=1.5 * largest / 2**30)
    take_batches(Loader(dataset, 2), 22)
    dataset.store.expect([])
    assert (
        0
        < sum(path.stat().st_size for path in (tmp_path / 'shards').glob('*.tar'))
        <= 1.5 * largest
    )


def test_a_transfer_that_is_cut_is_tried_again(bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(remote.time, 'sleep', lambda _: None)
    dataset, tries = opened('memory://bucket/', cache_dir=tmp_path), []
    plain = type(bucket).open

    def cut(self, path, *args, **kwargs):
        file = plain(self, path, *args, **kwargs)
        if path.endswith('.tar') and not tries:
            tries.append(path)
            return io.BytesIO(file.read()[:1000])
        return file

    monkeypatch.setattr(type(bucket), 'open', cut)
    assert torch.equal(dataset[0]['image'], IMAGES[0]) and tries == ['/bucket/00.tar']
    bucket.rm('/bucket/03.tar')
    with pytest.raises(FileNotFoundError, match=r'memory://bucket/03\.tar cannot be read'):
        dataset[21]
