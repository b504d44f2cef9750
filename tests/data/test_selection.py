"""Which files count as pictures: the same in folders and archives, for training and for a look
at the data.
"""

from __future__ import annotations

import io
import os
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image

from k_diffusion.cli.entry import main
from k_diffusion.core.images import to_pil_image
from k_diffusion.data import (
    EXTENSIONS,
    ImageFolderConfig,
    PictureArchive,
    UnreadablePicture,
    inspect_pictures,
    load_picture,
    open_dataset,
)
from k_diffusion.data.folders import PictureFiles
from k_diffusion.data.selection import ending_of

#: What systems and programs leave beside pictures; none of it is one.
LITTER = [
    '.DS_Store',
    '._a.png',
    '.ipynb_checkpoints/1-checkpoint.png',
    '__MACOSX/._x.png',
    '__MACOSX/cat/._0.png',
    'cat/@eaDir/0.png/thumb.jpg',
    'cat/Thumbs.db',
    'dog/.hidden.png',
    'dog/desktop.ini',
    '$RECYCLE.BIN/gone.png',
    '#recycle/gone.png',
    'lost+found/0.png',
    '@Recycle/0.png',
    '@tmp/0.png',
    'RECYCLER/0.png',
    'Network Trash Folder/0.png',
    '~snapshot/0.png',
    'System Volume Information/a.png',
    '.git/objects/a.png',
    'cat/notes.txt',
    'dog/README',
    'dog/a.heic',
    'dog/b.HEIC',
]


def png(value, kind='PNG'):
    buffer = io.BytesIO()
    Image.new('RGB', (8, 8), (value, 0, 255 - value)).save(buffer, kind)
    return buffer.getvalue()


def pictures():
    """Six pictures in two classes, by name."""
    return {
        f'{folder}/{i}.png': png(40 * i + (folder == 'dog'))
        for folder in ('cat', 'dog')
        for i in range(3)
    }


def write_folder(root, files):
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def write_zip(path, files):
    with zipfile.ZipFile(path, 'w') as file:
        for name, data in files.items():
            info = zipfile.ZipInfo('x')
            info.filename = name  # (the constructor would mend a backslash on Windows)
            file.writestr(info, data)
    return path


def write_tar(path, files):
    with tarfile.open(path, 'w') as file:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


WRITERS = {'folder': write_folder, 'x.zip': write_zip, 'x.tar': write_tar}


def opened(place, **keys):
    return open_dataset(ImageFolderConfig(location=str(place), labels='folders', **keys), (8, 8))


@pytest.mark.parametrize('kind', WRITERS)
def test_hidden_and_system_files_are_neither_pictures_nor_classes(tmp_path, kind):
    clean = opened(WRITERS[kind](tmp_path / f'clean {kind}', pictures()), num_classes=2)
    place = WRITERS[kind](tmp_path / kind, {**pictures(), **{name: png(0) for name in LITTER}})
    dataset = opened(place, num_classes=2)
    assert torch.equal(dataset.images, clean.images) and torch.equal(dataset.labels, clean.labels)
    assert dataset.class_names == ['cat', 'dog'] and dataset.skipped == [] and clean.notes == []
    assert dataset.item_names() == [
        f'{folder}/{i}.png' for folder in ('cat', 'dog') for i in range(3)
    ]
    result = inspect_pictures(place, (8, 8))
    # By hand: each hidden entry once, however much lies in it; other files by their endings.
    assert result.passed == {
        '.DS_Store': 1,
        '._*': 1,
        '.ipynb_checkpoints': 1,
        '__MACOSX': 1,
        '@eaDir': 1,
        'Thumbs.db': 1,
        '.hidden.png': 1,
        'desktop.ini': 1,
        '$RECYCLE.BIN': 1,
        '#recycle': 1,
        'lost+found': 1,
        'System Volume Information': 1,
        '.git': 1,
        '@Recycle': 1,
        '@tmp': 1,
        'RECYCLER': 1,
        'Network Trash Folder': 1,
        '~snapshot': 1,
        '*.txt': 1,
        'no ending': 1,
        '*.heic': 2,
    }
    assert (result.files, result.readable, result.classes) == (6, 6, {'cat': 3, 'dog': 3})
    assert '*.heic 2' in dataset.notes[0] and 'and 13 more kinds' in dataset.notes[0]


def test_training_and_the_look_say_what_is_passed_over(tmp_path, capsys):
    place = write_folder(tmp_path / 'x', {**pictures(), 'cat/a.heic': b'', 'Thumbs.db': b''})
    assert main(['dataset', str(place), '--size', '8']) == 0
    assert 'passed     2: *.heic 1, Thumbs.db 1' in capsys.readouterr().out.replace(
        'Thumbs.db 1, *.heic 1', '*.heic 1, Thumbs.db 1'
    )


@pytest.mark.parametrize(
    ('kind', 'wrap'),
    [('x.zip', 'photos/'), ('x.tar', 'photos/'), ('x.zip', 'a/b/'), ('x.tar', './a/')],
)
def test_a_folder_around_everything_in_an_archive_is_no_class(tmp_path, kind, wrap):
    clean = opened(write_folder(tmp_path / 'clean', pictures()))
    wrapped = {f'{wrap}{name}': data for name, data in pictures().items()}
    dataset = opened(
        WRITERS[kind](
            tmp_path / kind, {**wrapped, '__MACOSX/photos/._x.png': b'', f'{wrap}.DS_Store': b''}
        ),
        num_classes=2,
    )
    assert torch.equal(dataset.images, clean.images) and torch.equal(dataset.labels, clean.labels)
    assert dataset.class_names == ['cat', 'dog'] and dataset.item_names() == clean.item_names()


def test_one_class_in_an_archive_is_no_wrapper(tmp_path):
    only = {name: data for name, data in pictures().items() if name.startswith('cat')}
    assert opened(write_zip(tmp_path / 'x.zip', only)).class_names == ['cat']


def test_backslashes_in_a_zip_are_folders(tmp_path):
    clean = opened(write_folder(tmp_path / 'clean', pictures()))
    odd = {name.replace('/', '\\'): data for name, data in pictures().items()}
    dataset = opened(write_zip(tmp_path / 'x.zip', {'cat\\': b'', **odd}), num_classes=2)
    assert (
        torch.equal(dataset.images, clean.images)
        and dataset.class_names == ['cat', 'dog']
        and dataset.skipped == []
    )


def test_of_two_members_of_one_name_the_later_counts(tmp_path):
    with (
        zipfile.ZipFile(tmp_path / 'x.zip', 'w') as file,
        pytest.warns(UserWarning, match='Duplicate'),
    ):
        file.writestr('a.png', png(10))
        file.writestr('a.png', png(200))
    archive = PictureArchive(tmp_path / 'x.zip', (8, 8), 3)
    assert (
        len(archive) == 1
        and archive[0]['image'][0].eq(200).all()
        and 'the same name' in archive.skipped[0][1]
    )


def test_pictures_outside_of_class_folders_are_skipped_in_archives_too(tmp_path):
    for kind, write in WRITERS.items():
        dataset = opened(write(tmp_path / kind, {**pictures(), 'outside.png': png(3)}))
        assert len(dataset) == 6 and [why for _, why in dataset.skipped] == [
            'it lies in no class folder'
        ]


def test_the_order_is_that_of_the_names_as_text_folder_by_folder(tmp_path):
    names = ['1.png', '10.png', '2.png', 'a/1.png', 'a-b/1.png', 'B/1.png']
    expected = ['1.png', '10.png', '2.png', 'B/1.png', 'a/1.png', 'a-b/1.png']
    for kind, write in WRITERS.items():
        place = write(tmp_path / kind, {name: png(i) for i, name in enumerate(names)})
        assert open_dataset(ImageFolderConfig(location=str(place)), (8, 8)).item_names() == expected


def test_endings_are_those_of_the_formats_that_pillow_decodes_itself(tmp_path):
    Image.init()
    others = {
        'EPS',
        'MPEG',
        'WMF',
        'BUFR',
        'GRIB',
        'HDF5',
        'IPTC',
    }  # other programs, films, stubs, containers
    own = {
        ending
        for ending, kind in Image.registered_extensions().items()
        if kind in Image.OPEN and kind not in others
    }
    assert own <= EXTENSIONS and EXTENSIONS - own <= {'.mpo', '.avif', '.avifs', '.qoi'}
    files = {
        f'{i}{ending}': png(10 * i, kind)
        for i, (ending, kind) in enumerate(
            [
                ('.jfif', 'JPEG'),
                ('.JPE', 'JPEG'),
                ('.tga', 'TGA'),
                ('.jp2', 'JPEG2000'),
                ('.ico', 'ICO'),
                ('.dib', 'DIB'),
                ('.pcx', 'PCX'),
            ]
        )
    }
    assert len(
        opened(write_folder(tmp_path, {f'a/{name}': data for name, data in files.items()}))
    ) == len(files)


def test_a_format_that_would_start_another_program_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(
        'PIL.EpsImagePlugin.Ghostscript', lambda *_: pytest.fail('Ghostscript was started')
    )
    (tmp_path / 'a.png').write_bytes(
        b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n'
    )
    assert Image.open(tmp_path / 'a.png').format == 'EPS'
    with pytest.raises(UnreadablePicture, match='not a picture of a kind'):
        load_picture(tmp_path / 'a.png', (8, 8))


# Links and files that vanish


def test_links_and_folders_that_cannot_be_followed_are_skipped(tmp_path):
    write_folder(tmp_path, pictures())
    (tmp_path / 'self').symlink_to('self')
    (tmp_path / 'cat' / 'self.png').symlink_to('self.png')
    (tmp_path / 'dog' / 'above').symlink_to(tmp_path)
    (tmp_path / 'dog' / 'nothing.png').symlink_to('nowhere.png')
    os.mkfifo(tmp_path / 'dog' / 'pipe.png')
    dataset = opened(tmp_path, num_classes=2)
    assert len(dataset) == 6
    why = {os.path.relpath(name, tmp_path): reason for name, reason in dataset.skipped}
    assert set(why) == {'self', 'cat/self.png', 'dog/above', 'dog/nothing.png', 'dog/pipe.png'}
    assert (
        'levels of symbolic links' in why['self']
        and why['dog/nothing.png'] == 'it is a broken link'
    )


def test_a_folder_that_vanishes_or_cannot_be_read_is_skipped(tmp_path, monkeypatch):
    write_folder(tmp_path, {**pictures(), 'secret/0.png': png(0)})
    scandir = os.scandir

    def refusing(path):
        if os.fspath(path).endswith('secret'):
            raise PermissionError(13, 'Permission denied', os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, 'scandir', refusing)
    dataset = opened(tmp_path, num_classes=2)
    assert len(dataset) == 6 and dataset.skipped == [
        (str(tmp_path / 'secret'), 'Permission denied')
    ]


def test_a_file_that_vanishes_after_the_scan_is_skipped(tmp_path, monkeypatch):
    write_folder(tmp_path, pictures())
    fingerprint = PictureFiles.fingerprint

    def vanishing(self):
        (tmp_path / 'cat' / '1.png').unlink(missing_ok=True)
        return fingerprint(self)

    monkeypatch.setattr(PictureFiles, 'fingerprint', vanishing)
    dataset = opened(tmp_path, num_classes=2)
    assert len(dataset) == 5 and dataset.labels.tolist() == [0, 0, 1, 1, 1]
    assert [name for name, _ in dataset.skipped] == [str(tmp_path / 'cat' / '1.png')]


@pytest.fixture
def deep_folder(tmp_path, monkeypatch):
    """A folder with more levels than Python's stack; emptied afterwards, for pytest cannot
    remove it either.
    """
    monkeypatch.chdir(tmp_path)
    for _ in range(1200):
        os.mkdir('d')
        os.chdir('d')
    yield tmp_path
    for _ in range(1200):
        os.chdir('..')
        os.rmdir('d')


def test_folders_of_any_depth(deep_folder):
    (deep_folder / 'a.png').write_bytes(png(1))
    assert len(open_dataset(ImageFolderConfig(location=str(deep_folder)), (8, 8))) == 1


@pytest.mark.parametrize(
    'name', ['a.PNG', '.png', 'a', 'a.', 'a.tar.gz', '..png', 'a b.Jpg', '...']
)
def test_endings_are_those_of_pathlib(name):
    assert ending_of(name) == Path(name).suffix.lower()


def _picture(seed, height, width):
    return to_pil_image(torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed)))


def test_several_items_are_read_as_one_at_a_time(tmp_path):
    for i in range(5):
        _picture(i, 6, 9).save(tmp_path / f'{i}.png')
    (tmp_path / '2.png').write_bytes(b'no picture')
    files = PictureFiles(tmp_path, (8, 8), 3)
    several = files.read_several([4, 2, 0])
    assert isinstance(several[1], str) and 'not a picture' in several[1]
    assert torch.equal(several[0]['image'], files[4]['image'])
    assert torch.equal(several[2]['image'], files[0]['image'])


def test_pictures_that_were_inspected_are_not_decoded_again(tmp_path, monkeypatch):
    for i in range(6):
        folder = tmp_path / f'class{i % 2}'
        folder.mkdir(exist_ok=True)
        _picture(i, 8, 8).save(folder / f'{i}.png')
    (tmp_path / 'class1' / '9.png').write_bytes(b'no picture')
    config = ImageFolderConfig(location=str(tmp_path), labels='folders')
    plain = open_dataset(config, (8, 8))
    decoded = inspect_pictures(tmp_path, (8, 8), keep=True).decoded
    other = open_dataset(config, (4, 4), decoded=decoded)
    assert other.image_shape == (3, 4, 4)
    monkeypatch.setattr(PictureFiles, 'open', lambda self, index: pytest.fail('decoded again'))
    again = open_dataset(config, (8, 8), decoded=decoded)
    assert torch.equal(again.images, plain.images) and torch.equal(again.labels, plain.labels)
    assert again.skipped == plain.skipped and again.names == plain.names
    assert again.class_names == plain.class_names and len(again.skipped) == 1
