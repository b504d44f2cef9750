"""Every type of data set, on files made here; what is missing or damaged is said in one
sentence, and nothing hostile runs.
"""

from __future__ import annotations

import gzip
import importlib
import io
import os
import pickle
import shutil
import struct
import tarfile
import tracemalloc
import urllib.error
import urllib.request
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from k_diffusion.core.images import from_bytes, raw_bytes, to_pil_image
from k_diffusion.data import (
    DATASETS,
    CIFAR10Config,
    DemoConfig,
    FolderOfImages,
    ImageFolderClassConfig,
    ImageFolderConfig,
    Images,
    MNISTConfig,
    icons,
    open_dataset,
)
from k_diffusion.data import cifar as module_of_cifar


def test_the_types():
    assert set(DATASETS) == {
        'imagefolder',
        'imagefolder-class',
        'mnist',
        'fashion-mnist',
        'cifar10',
        'demo',
        'huggingface',
        'custom',
        'python',
        'shards',
        'synthetic',
        'tensors',
    }
    for name, section in DATASETS.items():
        assert section(type=name).cond_dropout_rate == 0.1 and section().num_classes == 0
    with pytest.raises(ValueError, match="did you mean 'imagefolder'"):
        DATASETS['imagefoldr']


@pytest.mark.parametrize(
    ('keys', 'message'),
    [
        ({'num_classes': -1}, 'num_classes is -1'),
        ({'cond_dropout_rate': 2.0}, 'cond_dropout_rate is 2'),
    ],
)
def test_values_that_no_data_set_takes(keys, message):
    with pytest.raises(ValueError, match=f'^{message}'):
        DemoConfig(**keys)


# Folders


def test_a_folder_is_read_whole_and_in_order(tmp_path, write_pictures):
    first, second = (
        write_pictures(tmp_path / 'b', 3),
        write_pictures(tmp_path / 'a' / 'deep', 2, seed=1),
    )
    (tmp_path / 'a' / 'notes.txt').write_text('not a picture')
    shutil.copy(tmp_path / 'b' / '0000.png', tmp_path / 'Z.PNG')
    dataset = open_dataset(ImageFolderConfig(location=str(tmp_path)), (12, 12))
    assert isinstance(dataset, Images) and dataset.num_classes == 0 and dataset.labels is None
    assert torch.equal(
        dataset.images, torch.cat([first[:1], second, first])
    )  # Z before a before b, as paths sort
    assert 'class_cond' not in dataset[0]


@pytest.mark.parametrize('section', [ImageFolderClassConfig, ImageFolderConfig])
def test_folders_as_classes(tmp_path, write_pictures, section):
    for i, name in enumerate(('dog', 'ant', 'cat')):
        write_pictures(tmp_path / name / 'x', 2 + i)
    write_pictures(tmp_path, 1)
    keys = {'labels': 'folders'} if section is ImageFolderConfig else {}
    dataset = open_dataset(section(location=str(tmp_path), num_classes=3, **keys), (12, 12))
    assert dataset.class_names == ['ant', 'cat', 'dog'] and dataset.num_classes == 3
    assert [dataset[i]['class_cond'] for i in range(len(dataset))] == [0] * 3 + [1] * 4 + [2] * 2
    assert dataset.skipped == [(str(tmp_path / '0000.png'), 'it lies in no class folder')]


def test_links_in_a_circle_and_odd_names(tmp_path, write_pictures):
    write_pictures(tmp_path / 'a', 2)
    (tmp_path / 'a' / 'again').symlink_to(tmp_path)
    (tmp_path / 'a' / 'dangling.png').symlink_to(tmp_path / 'nothing.png')
    odd = os.fsdecode(b'caf\xe9 \n.png')
    shutil.copy(tmp_path / 'a' / '0001.png', tmp_path / odd)
    assert len(open_dataset(ImageFolderConfig(location=str(tmp_path)), (12, 12))) == 3


def test_unreadable_pictures_are_skipped_counted_and_listed(tmp_path, write_pictures):
    images = write_pictures(tmp_path, 6)
    whole = (tmp_path / '0002.png').read_bytes()
    (tmp_path / '0002.png').write_bytes(whole[: len(whole) // 2])
    (tmp_path / '0004.png').write_bytes(b'')
    dataset = open_dataset(ImageFolderConfig(location=str(tmp_path)), (12, 12))
    assert torch.equal(dataset.images, images[[0, 1, 3, 5]])
    assert [Path(name).name for name, _ in dataset.skipped] == ['0002.png', '0004.png']
    assert all(reason for _, reason in dataset.skipped)


def test_folders_without_pictures(tmp_path, write_pictures):
    with pytest.raises(ValueError, match=r'dataset\.location is missing'):
        open_dataset(ImageFolderConfig(), (8, 8))
    with pytest.raises(FileNotFoundError, match='there is no folder'):
        open_dataset(ImageFolderConfig(location=str(tmp_path / 'absent')), (8, 8))
    with pytest.raises(ValueError, match='holds no pictures'):
        open_dataset(ImageFolderConfig(location=str(tmp_path)), (8, 8))
    for name in 'ab':
        (tmp_path / f'{name}.png').write_bytes(b'nothing')
    with pytest.raises(ValueError, match='none of the 2 images of the folder'):
        open_dataset(ImageFolderConfig(location=str(tmp_path)), (8, 8))
    with pytest.raises(ValueError, match='each a class'):
        open_dataset(ImageFolderClassConfig(location=str(tmp_path)), (8, 8))


def test_classes_that_do_not_fit_the_config(tmp_path, write_pictures):
    write_pictures(tmp_path / 'a', 1)
    write_pictures(tmp_path / 'b', 1)
    with pytest.raises(ValueError, match=r'has no classes.*"folders"'):
        open_dataset(ImageFolderConfig(location=str(tmp_path), num_classes=2), (8, 8))
    with pytest.raises(ValueError, match=r'num_classes is 1, but .* has 2 classes; set it to 2'):
        open_dataset(ImageFolderClassConfig(location=str(tmp_path), num_classes=1), (8, 8))


def test_folder_of_images_of_old(tmp_path, write_pictures):
    images = write_pictures(tmp_path / 'a', 2)
    Image.new('L', (5, 4), 7).save(tmp_path / 'grey.png')
    dataset = FolderOfImages(tmp_path)
    assert len(dataset) == 3 and dataset[2][0].mode == 'RGB' and dataset[2][0].size == (5, 4)
    assert FolderOfImages(str(tmp_path), transform=lambda picture: picture.getpixel((0, 0)))[0] == (
        tuple(images[0, :, 0, 0].tolist()),
    )


# The shipped digits


def test_demo():
    dataset = open_dataset(DemoConfig(num_classes=10), (16, 16), 1)
    assert len(dataset) == 10_000 and dataset.class_names == list('0123456789')
    digits = from_bytes(dataset.images)
    assert abs(digits.mean() + 0.799) < 1e-3 and abs(digits.std() - 0.504) < 1e-3
    assert [dataset[i]['class_cond'] for i in range(6)] == [5, 0, 4, 1, 9, 2]
    assert dataset.labels.bincount().min() > 800


def test_pictures_in_memory_take_another_frame():
    dataset = Images(icons(3, 16), torch.tensor([0, 1, 1]), 'ab')
    framed = dataset.reframe((8, 12), 1)
    assert (
        framed.image_shape == (1, 8, 12)
        and framed.class_names == ['a', 'b']
        and framed.labels.tolist() == [0, 1, 1]
    )
    picture = (
        to_pil_image(from_bytes(dataset.images[1]))
        .convert('L')
        .resize((12, 12), Image.Resampling.BICUBIC)
    )
    assert (
        framed.images[1, 0].int() - torch.tensor(list(picture.tobytes())).view(12, 12)[2:10]
    ).abs().max() <= 1
    assert dataset.reframe((16, 16), 3) is dataset
    with pytest.raises(ValueError, match='for each of 3 images; got 2 labels'):
        Images(icons(3, 4), torch.tensor([0, 1]), 'ab')
    with pytest.raises(ValueError, match='from 0 to 1'):
        Images(icons(3, 4), torch.tensor([0, 1, 2]), 'ab')


# MNIST


def idx(x):
    return bytes([0, 0, 8, x.ndim]) + b''.join(struct.pack('>I', n) for n in x.shape) + raw_bytes(x)


@pytest.fixture
def digits():
    return icons(5, 28, 1)[:, 0], torch.tensor([3, 1, 4, 1, 9], dtype=torch.uint8)


def write_mnist(folder, digits, zipped):
    folder.mkdir(parents=True, exist_ok=True)
    for name, values in zip(('train-images-idx3-ubyte', 'train-labels-idx1-ubyte'), digits):
        (folder / (name + '.gz' * zipped)).write_bytes(
            gzip.compress(idx(values)) if zipped else idx(values)
        )


@pytest.mark.parametrize('zipped', [False, True])
@pytest.mark.parametrize(
    ('kind', 'below'),
    [('mnist', ''), ('mnist', 'MNIST/raw'), ('fashion-mnist', 'FashionMNIST/raw')],
)
def test_mnist(tmp_path, digits, zipped, kind, below, no_network):
    write_mnist(tmp_path / below, digits, zipped)
    dataset = open_dataset(
        MNISTConfig(type=kind, location=str(tmp_path), num_classes=10), (28, 28), 1
    )
    assert torch.equal(dataset.images[:, 0], digits[0]) and dataset.labels.tolist() == [
        3,
        1,
        4,
        1,
        9,
    ]
    assert dataset.class_names[9] == ('9' if kind == 'mnist' else 'ankle boot')
    assert open_dataset(
        MNISTConfig(type=kind, location=str(tmp_path)), (32, 32), 3
    ).image_shape == (3, 32, 32)
    assert no_network == []


@pytest.mark.parametrize('download', [False, True])
def test_mnist_that_is_not_there(tmp_path, download, no_network):
    with pytest.raises(FileNotFoundError) as error:
        open_dataset(MNISTConfig(location=str(tmp_path), download=download), (28, 28), 1)
    message = str(error.value)
    assert '\n' not in message
    names = 'train-images-idx3-ubyte.gz and train-labels-idx1-ubyte.gz'
    for part in (names, 'https://ossci-datasets.s3', str(tmp_path / 'MNIST' / 'raw')):
        assert part in message
    assert (
        len(no_network) == (2 if download else 0)
        and ('Name or service not known' in message) == download
    )
    assert not [path for path in tmp_path.rglob('*') if path.is_file()]


def serve(monkeypatch, files):
    """The network holds these files, by the ends of their addresses."""

    def urlopen(url, **_):
        name = url.rpartition('/')[2]
        if name not in files:
            raise urllib.error.HTTPError(url, 404, 'Not Found', None, None)
        return io.BytesIO(files[name])

    monkeypatch.setattr(urllib.request, 'urlopen', urlopen)


def test_mnist_is_downloaded_and_checked(tmp_path, digits, monkeypatch):
    from hashlib import md5, sha256

    names = ('train-images-idx3-ubyte.gz', 'train-labels-idx1-ubyte.gz')
    files = {name: gzip.compress(idx(values)) for name, values in zip(names, digits)}
    serve(monkeypatch, files)
    with pytest.raises(FileNotFoundError, match='as published; got'):
        open_dataset(MNISTConfig(location=str(tmp_path)), (28, 28), 1)
    assert not [path for path in tmp_path.rglob('*') if path.is_file()]

    mnist, published = (
        importlib.import_module(f'k_diffusion.data.{name}') for name in ('mnist', 'published')
    )
    facts = tuple(
        published.PublishedFile(name, md5(files[name]).hexdigest(), sha256(idx(values)).hexdigest())
        for name, values in zip(names, digits)
    )
    monkeypatch.setattr(mnist, 'MNIST', published.MNIST._replace(files=facts))
    assert open_dataset(MNISTConfig(location=str(tmp_path)), (28, 28), 1).labels.tolist() == [
        3,
        1,
        4,
        1,
        9,
    ]
    assert sorted(path.name for path in (tmp_path / 'MNIST' / 'raw').iterdir()) == sorted(names)

    other = (facts[0]._replace(content='0' * 64), facts[1])
    monkeypatch.setattr(mnist, 'MNIST', published.MNIST._replace(files=other))
    with pytest.raises(ValueError, match='does not hold what was published'):
        open_dataset(MNISTConfig(location=str(tmp_path / 'anew')), (28, 28), 1)


def test_the_test_pictures_are_other_files(tmp_path, digits):
    write_mnist(tmp_path, digits, False)
    for name in ('images-idx3', 'labels-idx1'):
        content = idx(digits[0].flip(1) if name.startswith('images') else digits[1].flip(0))
        (tmp_path / f't10k-{name}-ubyte').write_bytes(content)
    train, test = (
        open_dataset(MNISTConfig(location=str(tmp_path), split=split), (28, 28), 1)
        for split in ('train', 'test')
    )
    assert test.labels.tolist() == [9, 1, 4, 1, 3] and train.labels.tolist() == [3, 1, 4, 1, 9]
    assert torch.equal(test.images, train.images.flip(2)) and not torch.equal(
        test.images, train.images
    )


@pytest.mark.parametrize(
    ('damage', 'message'),
    [
        (lambda data: data[:-1], 'fewer than'),
        (lambda data: data + b'x', 'more than'),
        (lambda data: b'\0\0\x0d' + data[3:], 'not an IDX file'),
        (lambda data: data[:7], 'cut short'),
        (lambda data: b'', 'not an IDX file'),
        (lambda data: data[:4] + b'\xff' * 12 + data[16:], 'more than'),
    ],
)
@pytest.mark.parametrize('zipped', [False, True])
def test_damaged_idx(tmp_path, digits, damage, message, zipped):
    write_mnist(tmp_path, digits, zipped)
    name = tmp_path / ('train-images-idx3-ubyte' + '.gz' * zipped)
    name.write_bytes(gzip.compress(damage(idx(digits[0]))) if zipped else damage(idx(digits[0])))
    with pytest.raises(ValueError, match=message) as error:
        open_dataset(MNISTConfig(location=str(tmp_path)), (28, 28), 1)
    assert str(name) in str(error.value)


def test_damaged_gz_and_labels_of_another_number(tmp_path, digits):
    write_mnist(tmp_path, digits, True)
    path = tmp_path / 'train-images-idx3-ubyte.gz'
    whole = path.read_bytes()
    for data in (whole[:-20], b'not gz', whole[:30] + b'\xff' * 20 + whole[50:]):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r'damaged|not an IDX|claims'):
            open_dataset(MNISTConfig(location=str(tmp_path)), (28, 28), 1)
    path.write_bytes(gzip.compress(idx(digits[0][:4])))
    with pytest.raises(ValueError, match='for each of 4 images; got 5 labels'):
        open_dataset(MNISTConfig(location=str(tmp_path)), (28, 28), 1)


def test_a_gz_that_unpacks_to_far_more_than_its_size_is_refused(tmp_path, digits):
    """80 MB of zeros in 80 kB; MNIST itself shrinks to a fifth."""
    write_mnist(tmp_path, digits, True)
    path = tmp_path / 'train-images-idx3-ubyte.gz'
    path.write_bytes(
        gzip.compress(b'\0\0\x08\x03' + struct.pack('>3I', 2000, 200, 200) + bytes(80_000_000), 1)
    )
    tracemalloc.start()
    with pytest.raises(
        ValueError,
        match=r'\[2000, 200, 200\], which is empty, cut short or more than 67108864 bytes',
    ):
        open_dataset(MNISTConfig(location=str(tmp_path)), (28, 28), 1)
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


# CIFAR-10


def python_batch(images, labels):
    """As Python 2 wrote them: byte strings, and numpy's reconstructor under its old name."""
    data = bytes(raw_bytes(images.flatten(1)))

    def text(s):
        return b'U' + bytes([len(s)]) + s

    array = (
        b'cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\nt'
        + text(b'b')
        + b'tR'
        + b'(I1\n(I%d\nI3072\ntcnumpy\ndtype\n(' % len(images)
        + text(b'u1')
        + b'I0\nI1\ntR(I3\n'
        + text(b'|')
        + b'NNNI-1\nI-1\nI0\ntb'
        + b'I00\nT'
        + struct.pack('<I', len(data))
        + data
        + b'tb'
    )
    labels = b'(lp1\n' + b''.join(b'I%d\na' % label for label in labels)
    return (
        b'\x80\x02}('
        + text(b'batch_label')
        + text(b'one')
        + text(b'labels')
        + labels
        + text(b'data')
        + array
        + b'u.'
    )


def binary_batch(images, labels):
    return bytes(raw_bytes(torch.cat([labels[:, None].to(torch.uint8), images.flatten(1)], 1)))


@pytest.fixture
def cifar():
    return icons(20, 32), torch.arange(20) % 10


def write_cifar(folder, cifar, kind):
    """The five batches of a kind, in their folder; returns that."""
    batches = folder / f'cifar-10-batches-{"py" if kind == "python" else "bin"}'
    batches.mkdir(parents=True)
    for i, (images, labels) in enumerate(zip(*(part.split(4) for part in cifar)), 1):
        make, name = (
            (python_batch, f'data_batch_{i}')
            if kind == 'python'
            else (binary_batch, f'data_batch_{i}.bin')
        )
        (batches / name).write_bytes(make(images, labels))
    return batches


@pytest.mark.parametrize('kind', ['python', 'binary'])
@pytest.mark.parametrize('where', ['parent', 'folder', 'archive', 'archive itself'])
def test_cifar(tmp_path, cifar, kind, where, no_network):
    batches = write_cifar(tmp_path, cifar, kind)
    location = {'folder': batches, 'archive itself': tmp_path / f'cifar-10-{kind}.tar.gz'}.get(
        where, tmp_path
    )
    if 'archive' in where:
        with tarfile.open(tmp_path / f'cifar-10-{kind}.tar.gz', 'w:gz') as archive:
            archive.add(batches, batches.name)
        shutil.rmtree(batches)
    dataset = open_dataset(CIFAR10Config(location=str(location), num_classes=10), (32, 32))
    assert torch.equal(dataset.images, cifar[0]) and torch.equal(dataset.labels, cifar[1])
    assert (
        dataset.class_names[0] == 'airplane'
        and dataset[9].keys() == {'image', 'class_cond'}
        and no_network == []
    )
    assert len(list(tmp_path.rglob('*'))) == (
        1 if 'archive' in where else 6
    )  # nothing was unpacked


def test_an_archive_of_cifar_is_not_unpacked_without_end(tmp_path, cifar, monkeypatch):
    """Bytes between the batches must be unpacked too."""
    monkeypatch.setattr(module_of_cifar, 'ARCHIVE_LIMIT', 2**20)
    batches, path = write_cifar(tmp_path, cifar, 'binary'), tmp_path / 'x.tar.gz'
    for size, refused in ((2**18, False), (2**22, True)):
        with tarfile.open(path, 'w:gz') as archive:
            other = tarfile.TarInfo('other')
            other.size = size
            archive.addfile(other, io.BytesIO(bytes(size)))
            archive.add(batches, batches.name)
        with pytest.raises(ValueError, match='unpacks to more than') if refused else nullcontext():
            assert len(open_dataset(CIFAR10Config(location=str(path)), (32, 32))) == 20


def test_an_archive_of_cifar_cut_behind_a_picture_is_refused(tmp_path, cifar):
    batches, path = write_cifar(tmp_path, cifar, 'binary'), tmp_path / 'x.tar'
    with tarfile.open(path, 'w') as archive:
        archive.add(batches, batches.name)
        last = max(member.offset_data for member in archive.getmembers())
    path.write_bytes(path.read_bytes()[: last + 3073])
    with pytest.raises(ValueError, match='is cut short'):
        open_dataset(CIFAR10Config(location=str(path)), (32, 32))


def test_cifar_pickled_anew(tmp_path, cifar):
    """By today's numpy and Python, in the old protocol."""
    numpy = pytest.importorskip('numpy', reason='numpy (extra train) makes the pickles here')
    batches = write_cifar(tmp_path, cifar, 'python')
    for i, images in enumerate(cifar[0].split(4), 1):
        batch = {b'data': numpy.asarray(images.flatten(1)), b'labels': [0, 1, 2, 3]}
        (batches / f'data_batch_{i}').write_bytes(pickle.dumps(batch, protocol=2))
    assert torch.equal(
        open_dataset(CIFAR10Config(location=str(tmp_path)), (32, 32)).images, cifar[0]
    )


class MakesFolder:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


HOSTILE = {
    'inside': lambda path: pickle.dumps({b'data': MakesFolder(path), b'labels': []}),
    'bare': lambda path: f"cos\nmkdir\n(S'{path}'\ntR.".encode(),
    'by a dotted name': lambda path: (
        b'\x80\x04\x8c\x16numpy._core.multiarray\x8c\x18_reconstruct.__globals__\x93.'
    ),
    'a class': lambda path: pickle.dumps({b'data': [1], b'labels': torch.nn.Linear}),
}


@pytest.mark.parametrize('kind', HOSTILE)
def test_hostile_pickles_do_not_run(tmp_path, cifar, kind):
    path = tmp_path / 'ran'
    data = HOSTILE[kind](str(path))
    batches = write_cifar(tmp_path, cifar, 'python')
    (batches / 'data_batch_3').write_bytes(data)
    with pytest.raises(ValueError, match='data_batch_3 is refused: it names'):
        open_dataset(CIFAR10Config(location=str(tmp_path)), (32, 32))
    assert not path.exists()
    if kind in ('inside', 'bare'):
        pickle.loads(data)
        assert path.exists()  # it would have


@pytest.mark.parametrize(
    ('kind', 'data', 'message'),
    [
        ('python', b'', 'cut short or damaged'),
        ('python', b'\x80\x02}(', 'cut short or damaged'),
        ('python', b'\x80\x02K\x01.', 'not a dict'),
        ('python', pickle.dumps({b'data': 3, b'labels': []}), 'is not a batch of CIFAR-10'),
        *(
            (
                'python',
                pickle.dumps({b'data': np.zeros((1, 3072), np.uint8), b'labels': [label]}),
                'data_batch_2 is not a batch of CIFAR-10',
            )
            for label in ('a', 1 << 70, [1], -1, 10, None, 1.5)
        ),
        ('binary', bytes(3000), 'a multiple of 3073'),
        ('binary', b'', 'a multiple of 3073'),
        ('binary', b'\x0a' + bytes(3072), 'from 0 to 9'),
    ],
)
def test_damaged_cifar(tmp_path, cifar, kind, data, message):
    batches = write_cifar(tmp_path, cifar, kind)
    (batches / f'data_batch_2{".bin" * (kind == "binary")}').write_bytes(data)
    with pytest.raises(ValueError, match=message):
        open_dataset(CIFAR10Config(location=str(tmp_path)), (32, 32))


def test_cifar_with_a_missing_batch_and_none_at_all(tmp_path, cifar, no_network):
    (write_cifar(tmp_path, cifar, 'binary') / 'data_batch_4.bin').unlink()
    with pytest.raises(FileNotFoundError, match=r'data_batch_4\.bin is missing'):
        open_dataset(CIFAR10Config(location=str(tmp_path)), (32, 32))
    with pytest.raises(
        FileNotFoundError, match=r'cifar-10-python\.tar\.gz from https://www\.cs\.toronto'
    ) as error:
        open_dataset(CIFAR10Config(location=str(tmp_path / 'x')), (32, 32))
    assert '\n' not in str(error.value) and len(no_network) == 1


def test_hostile_and_damaged_archives(tmp_path, cifar):
    """Links and other members are passed over; a cut archive says so."""
    batches = write_cifar(tmp_path / 'source', cifar, 'binary')
    path = tmp_path / 'cifar-10-binary.tar.gz'
    with tarfile.open(path, 'w:gz') as archive:
        archive.add(batches, '../../escaped')
        link = tarfile.TarInfo('data_batch_1.bin')
        link.type, link.linkname = tarfile.SYMTYPE, '/etc/passwd'
        archive.addfile(link)
    assert torch.equal(
        open_dataset(CIFAR10Config(location=str(tmp_path)), (32, 32)).images, cifar[0]
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ['cifar-10-binary.tar.gz', 'source']
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match='cut short, damaged'):
        open_dataset(CIFAR10Config(location=str(tmp_path)), (32, 32))
    long = tarfile.TarInfo('x')
    long.type, long.size = tarfile.XHDTYPE, 2**30
    for data in (
        long.tobuf(tarfile.GNU_FORMAT) + bytes(2**20),
        link.tobuf().replace(b'2', b'L') * 3000,
    ):
        path.write_bytes(gzip.compress(data))
        with pytest.raises(ValueError, match=r'cifar-10-binary\.tar\.gz is cut short, damaged'):
            open_dataset(CIFAR10Config(location=str(tmp_path)), (32, 32))
    with tarfile.open(path, 'w:gz') as archive:
        archive.add(batches / 'data_batch_1.bin', 'data_batch_1.bin')
    with pytest.raises(ValueError, match='must hold the five files'):
        open_dataset(CIFAR10Config(location=str(tmp_path)), (32, 32))
