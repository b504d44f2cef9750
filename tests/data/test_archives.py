from __future__ import annotations

import io
import pickle
import stat
import struct
import tarfile
import time
import zipfile

import pytest
import torch
from PIL import Image

from k_diffusion.core.images import to_bytes
from k_diffusion.data import (
    ImageFolderConfig,
    Loader,
    PictureArchive,
    UnreadablePicture,
    inspect_pictures,
    open_dataset,
)
from k_diffusion.data import archives as module
from k_diffusion.data import caching as module_of_caching


def png(colour, size=(8, 8)):
    buffer = io.BytesIO()
    Image.new('RGB', size, colour).save(buffer, 'PNG')
    return buffer.getvalue()


def tar_of(path, members):
    with tarfile.open(path, 'w') as file:
        for name, content, kind in members:
            info = tarfile.TarInfo(name)
            info.type, info.size = kind, len(content)
            if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
                info.linkname = '/etc/passwd'
            file.addfile(info, io.BytesIO(content))
    return path


def zip_of(path, members):
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as file:
        for name, content, mode in members:
            info = zipfile.ZipInfo(name)
            info.external_attr, info.compress_type = mode << 16, zipfile.ZIP_DEFLATED
            file.writestr(info, content)
    return path


def test_a_zip_and_a_tar_are_read_as_the_folder_is(tmp_path):
    files = {
        f'{kind}/{i}.png': png((20 * i, 7, 200 if kind == 'a' else 0))
        for kind in 'ab'
        for i in range(3)
    }
    for name, content in files.items():
        (tmp_path / 'folder' / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / 'folder' / name).write_bytes(content)
    zip_of(
        tmp_path / 'x.zip',
        [(name, content, stat.S_IFREG | 0o644) for name, content in files.items()],
    )
    tar_of(
        tmp_path / 'x.tar', [(name, content, tarfile.REGTYPE) for name, content in files.items()]
    )
    sets = [
        open_dataset(
            ImageFolderConfig(location=str(tmp_path / name), labels='folders', num_classes=2),
            (8, 8),
        )
        for name in ('folder', 'x.zip', 'x.tar')
    ]
    for other in sets[1:]:
        assert torch.equal(other.images, sets[0].images) and torch.equal(
            other.labels, sets[0].labels
        )
        assert other.class_names == ['a', 'b'] and len(other) == 6


def test_what_leads_out_of_an_archive_is_refused_and_nothing_is_written(tmp_path, monkeypatch):
    place = tmp_path / 'deep' / 'place'
    place.mkdir(parents=True)
    monkeypatch.chdir(place)
    good = ('good.png', png('red'), tarfile.REGTYPE)
    odd = [
        ('../out.png', png('blue'), tarfile.REGTYPE),
        ('/tmp/out.png', png('blue'), tarfile.REGTYPE),
        ('link.png', b'', tarfile.SYMTYPE),
        ('hard.png', b'', tarfile.LNKTYPE),
        ('device.png', b'', tarfile.CHRTYPE),
        ('pipe.png', b'', tarfile.FIFOTYPE),
    ]
    archive = PictureArchive(tar_of(tmp_path / 'x.tar', [good, *odd]), (8, 8), 3)
    assert [m.name for m in archive.files] == ['good.png'] and archive[0]['image'][0].eq(255).all()
    why = dict(archive.skipped)
    assert len(why) == 6 and sum('leads out' in reason for reason in why.values()) == 2
    assert sum('link or device' in reason for reason in why.values()) == 4
    members = [
        ('good.png', png('red'), stat.S_IFREG),
        ('..\\..\\out.png', png('blue'), stat.S_IFREG),
        ('../../out.png', png('blue'), stat.S_IFREG),
        ('link.png', b'/etc/passwd', stat.S_IFLNK | 0o777),
    ]
    archive = PictureArchive(zip_of(tmp_path / 'x.zip', members), (8, 8), 3)
    assert len(archive) == 1 and len(archive.skipped) == 3
    assert archive[0]['image'].shape == (3, 8, 8)
    assert sorted(p.name for p in tmp_path.rglob('*')) == ['deep', 'place', 'x.tar', 'x.zip']


def test_a_member_that_unpacks_to_more_than_the_limit_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(module, 'MEMBER_LIMIT', 10_000)
    path = zip_of(
        tmp_path / 'x.zip',
        [('bomb.png', b'\0' * 50_000_000, stat.S_IFREG), ('good.png', png('red'), stat.S_IFREG)],
    )
    archive = PictureArchive(path, (8, 8), 3)
    with pytest.raises(UnreadablePicture, match='50,000,000 bytes, more than 10,000'):
        archive[0]
    result = inspect_pictures(path, (8, 8))
    assert (result.files, result.readable, len(result.broken)) == (2, 1, 1)


def test_damaged_archives_are_told_in_a_sentence(tmp_path):
    path = zip_of(
        tmp_path / 'x.zip', [(f'{i}.png', png((i, 0, 0)), stat.S_IFREG) for i in range(5)]
    )
    data = bytearray(path.read_bytes())
    data[80] ^= 0xFF
    path.write_bytes(data)
    archive = PictureArchive(path, (8, 8), 3)
    with pytest.raises(UnreadablePicture, match='damaged'):
        archive[0]
    assert archive[1]['image'].shape == (3, 8, 8)
    path.write_bytes(data[:60])
    with pytest.raises(ValueError, match=r'x\.zip cannot be read as an archive'):
        PictureArchive(path, (8, 8), 3)
    with tarfile.open(tmp_path / 'x.tar.gz', 'w:gz') as file:
        file.add(path, 'a.png')
    with pytest.raises(ValueError, match=r'uncompressed \.tar'):
        PictureArchive(tmp_path / 'x.tar.gz', (8, 8), 3)


@pytest.mark.parametrize(
    'end', ['middle of a head', 'middle of a picture', 'between pictures', 'damaged head']
)
def test_a_tar_that_was_cut_is_refused(tmp_path, end):
    path = tar_of(
        tmp_path / 'x.tar', [(f'{i}.png', png((i, 0, 0)), tarfile.REGTYPE) for i in range(5)]
    )
    with tarfile.open(path) as file:
        third = file.getmembers()[2]
    data = bytearray(path.read_bytes())
    if end == 'damaged head':
        data[third.offset] ^= 0xFF
    path.write_bytes(
        data
        if end == 'damaged head'
        else data[
            : {
                'middle of a head': third.offset + 100,
                'between pictures': third.offset,
                'middle of a picture': third.offset_data + 20,
            }[end]
        ]
    )
    with pytest.raises(
        ValueError,
        match=r'x\.tar cannot be read as an archive \((it is cut or damaged at|unexpected end)',
    ) as error:
        PictureArchive(path, (8, 8), 3)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('kind', ['a head of zeros', 'a long name', 'many long names'])
def test_a_tar_that_ends_early_or_takes_memory_is_refused(tmp_path, kind):
    path = tar_of(
        tmp_path / 'x.tar', [(f'{i}.png', png((i, 0, 0)), tarfile.REGTYPE) for i in range(5)]
    )
    data = bytearray(path.read_bytes())
    with tarfile.open(path) as file:
        third = file.getmembers()[2].offset
    long = tarfile.TarInfo('././@LongLink')
    long.type, long.size = tarfile.GNUTYPE_LONGNAME, 2**20 + 1 if kind == 'a long name' else 1
    head = long.tobuf(tarfile.GNU_FORMAT)
    if kind == 'a head of zeros':
        data[third : third + 512] = bytes(512)
    else:
        data[third:third] = (
            head + b'a' * 2**20 + bytes(512)
            if kind == 'a long name'
            else (head + b'a'.ljust(512, b'\0')) * 2000
        )
    path.write_bytes(data)
    with pytest.raises(
        ValueError,
        match=r'x\.tar cannot be read as an archive \((it is cut or damaged at|the name '
        r'or|maximum recursion)',
    ):
        PictureArchive(path, (8, 8), 3)


def pax_tar(path, attributes, kind, pictures=1):
    """A .tar that begins with a head of attributes of its own kind."""
    head = tarfile.TarInfo('attributes')
    head.type, head.size = kind, len(attributes)
    rest = tar_of(
        path, [(f'{i}.png', png('red'), tarfile.REGTYPE) for i in range(pictures)]
    ).read_bytes()
    path.write_bytes(
        head.tobuf(tarfile.USTAR_FORMAT)
        + attributes.ljust(-(-len(attributes) // 512) * 512, b'\0')
        + rest
    )
    return path


def test_digits_in_the_head_of_a_tar_take_no_time(tmp_path):
    """With CVE-2024-6232 tarfile takes an hour and a half over this file of a megabyte."""
    began = time.process_time()
    with pytest.raises(
        ValueError, match=r'cannot be read as an archive \(the name or .* more than 255 digits'
    ):
        PictureArchive(
            pax_tar(tmp_path / 'x.tar', b'1' * (2**20 - 512), tarfile.XHDTYPE), (8, 8), 3
        )
    assert time.process_time() - began < 5
    long = tmp_path / 'long.tar'  # with a name of 255 characters, the most that systems allow
    with tarfile.open(long, 'w', format=tarfile.PAX_FORMAT) as file:
        info = tarfile.TarInfo('7' * 251 + '.png')
        info.size = len(png('red'))
        file.addfile(info, io.BytesIO(png('red')))
    assert PictureArchive(long, (8, 8), 3).names == ['7' * 251 + '.png']


def test_attributes_for_all_files_of_a_tar_are_not_copied_for_each(tmp_path):
    """tarfile does that: 1 MB took 1 GB of memory and 16 s."""
    attributes = b''.join(b'%d k%05d=v\n' % (12, i) for i in range(50_000))
    with pytest.raises(ValueError, match='more than 100 attributes for all of its files'):
        PictureArchive(pax_tar(tmp_path / 'x.tar', attributes, tarfile.XGLTYPE, 500), (8, 8), 3)
    few = pax_tar(
        tmp_path / 'y.tar', b'52 comment=%s\n' % (b'0' * 40), tarfile.XGLTYPE, 3
    )  # as git archive writes
    assert len(PictureArchive(few, (8, 8), 3)) == 3


def test_a_zip_whose_directory_is_shorter_than_it_states_is_refused(tmp_path):
    path = zip_of(
        tmp_path / 'x.zip', [(f'{i}.png', png((i, 0, 0)), stat.S_IFREG) for i in range(8)]
    )
    data = bytearray(path.read_bytes())
    end = data.rfind(b'PK\5\6')
    size, start = struct.unpack_from('<LL', data, end + 12)
    struct.pack_into('<LL', data, end + 12, size * 3 // 8, start + size * 5 // 8)
    path.write_bytes(data)
    with pytest.raises(ValueError, match='its directory names 3 files where its end states 8'):
        PictureArchive(path, (8, 8), 3)


def test_files_of_a_zip_that_share_their_bytes_are_refused(tmp_path):
    path = zip_of(
        tmp_path / 'x.zip',
        [(f'{i}.png', png((i, 0, 0)) + bytes(500), stat.S_IFREG) for i in range(9)],
    )
    data = bytearray(path.read_bytes())
    entry = data.find(b'PK\1\2')
    struct.pack_into('<L', data, entry + 20, len(data))  # so many packed bytes
    path.write_bytes(data)
    with pytest.raises(ValueError, match='its files have more bytes, packed, than the archive'):
        PictureArchive(path, (8, 8), 3)


def test_a_file_of_a_zip_that_unpacks_to_thousands_of_times_its_size_is_skipped(tmp_path):
    """bzip2 packs 64 MiB of zeros into 50 bytes, and takes seconds to unpack them."""
    path = tmp_path / 'x.zip'
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_BZIP2) as file:
        file.writestr('bomb.png', bytes(2**22))
        file.writestr('good.png', png('red'))
    archive = PictureArchive(path, (8, 8), 3)
    assert archive.names == ['good.png']
    assert archive.skipped == [
        (f'{path}: bomb.png', 'it unpacks to more than 2,000 times its size')
    ]


def test_an_archive_that_vanishes_before_its_fingerprint_is_a_sentence(tmp_path):
    path = zip_of(tmp_path / 'x.zip', [('a.png', png('lime'), stat.S_IFREG)])
    archive = PictureArchive(path, (8, 8), 3)
    path.unlink()
    assert archive.fingerprint() == archive.fingerprint()
    with pytest.raises(ValueError, match=r'none of the 1 images of the archive .*x\.zip'):
        module_of_caching.decode_once(archive)


def test_an_archive_travels_to_worker_processes(tmp_path):
    archive = PictureArchive(
        zip_of(tmp_path / 'x.zip', [('a.png', png('lime'), stat.S_IFREG)]), (8, 8), 3
    )
    archive[0]
    assert torch.equal(pickle.loads(pickle.dumps(archive))[0]['image'], archive[0]['image'])


def test_forked_workers_open_their_files_anew(tmp_path, monkeypatch):
    """They would share a file's position with the others, and move it under their reads."""
    colours = [(5 * i, 255 - 5 * i, 40) for i in range(8)]
    place = tar_of(
        tmp_path / 'x.tar',
        [(f'{i:02}.png', png(colour), tarfile.REGTYPE) for i, colour in enumerate(colours)],
    )
    dataset = open_dataset(ImageFolderConfig(location=str(place)), (8, 8), memory_limit=0)
    dataset[0]
    parents, plain = dataset._handle, PictureArchive._read

    def read(self, member):
        data = plain(self, member)
        assert self._handle is not parents, "the parent's"
        return data

    monkeypatch.setattr(PictureArchive, '_read', read)
    batch = next(Loader(dataset, 4, num_workers=2, start_method='fork').iterate())
    read_back = to_bytes(batch['image'][:, :, 0, 0]).tolist()
    assert [tuple(colour) for colour in read_back] == [colours[i] for i in batch['index'].tolist()]


def test_inspection_counts(tmp_path):
    red_one, black_one = Image.new('RGB', (20, 10), 'red'), Image.new('L', (8, 8), 0)
    for name, picture in {'a': red_one, 'b': red_one, 'c': black_one}.items():
        picture.save(tmp_path / f'{name}.png')
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new('RGB', (12, 8), 'blue').save(tmp_path / 'd.jpg', exif=exif)
    (tmp_path / 'e.png').write_bytes(b'')
    odd = tmp_path.joinpath('f \udcff\n.png')
    Image.new('RGB', (8, 8), 'white').save(tmp_path / 'x.png')
    (tmp_path / 'x.png').rename(odd)
    result = inspect_pictures(tmp_path, (8, 8))
    assert (result.files, result.readable, result.turns, result.channels) == (6, 5, 1, 3)
    assert result.modes == {'RGB': 4, 'L': 1} and result.formats == {'PNG': 4, 'JPEG': 1}
    assert result.sizes[(20, 10)] == 2 and [len(names) for names in result.duplicates] == [2]
    assert [name.endswith('e.png') for name, _ in result.broken] == [True]
    red, black, blue, white = ([1.0, -1.0, -1.0], [-1.0] * 3, [-1.0, -1.0, 1.0], [1.0] * 3)
    pixels = torch.tensor([red, red, black, blue, white])
    assert result.mean == pytest.approx(pixels.mean().item(), abs=0.02)
    assert result.sigma_data == pytest.approx(pixels.std(correction=0).item(), abs=0.02)


def test_a_folder_of_nothing_readable_is_refused(tmp_path):
    (tmp_path / 'e.png').write_bytes(b'no picture')
    with pytest.raises(ValueError, match='none of the 1 images'):
        inspect_pictures(tmp_path)
