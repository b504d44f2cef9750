"""Greys of any depth, their transparency and their range: files written byte by byte, values 255
(v - black) / (white - black).
"""

import json
import re
import struct
import zlib

import pytest
import torch
from PIL import Image

import k_diffusion as K
from k_diffusion.cli.entry import main
from k_diffusion.data import (
    ImageFolderConfig,
    UnreadablePicture,
    inspect_pictures,
    load_picture,
    open_dataset,
)


def write_png(path, bits, values, clear=None, channels=1):
    """One row of samples repeated to a square; clear: the grey that stands for transparent
    pixels (the chunk tRNS).
    """

    def chunk(name, data):
        return (
            struct.pack('>L', len(data)) + name + data + struct.pack('>L', zlib.crc32(name + data))
        )

    side = len(values) // channels
    row = b'\0' + struct.pack(f'>{len(values)}{"H" if bits == 16 else "B"}', *values)
    head = struct.pack('>LLBBBBB', side, side, bits, {1: 0, 2: 4, 3: 2}[channels], 0, 0, 0)
    path.write_bytes(
        b'\x89PNG\r\n\x1a\n'
        + chunk(b'IHDR', head)
        + (b'' if clear is None else chunk(b'tRNS', struct.pack('>H', clear)))
        + chunk(b'IDAT', zlib.compress(row * side))
        + chunk(b'IEND', b'')
    )
    return path


def write_tiff(path, kind, values, zero_is_white=False, orientation=1, packed=None):
    """One row of samples repeated to a square, uncompressed, little-endian; kind: B, H, h, I or
    f of the module struct, or 12 bits.
    """
    bits, sample = {
        'B': (8, 1),
        'H': (16, 1),
        'h': (16, 2),
        'I': (32, 1),
        'f': (32, 3),
        '12': (12, 1),
    }[kind]
    side = len(values)
    data = (struct.pack(f'<{side}{kind}', *values) if packed is None else packed) * side
    tags = [
        (256, 4, side),
        (257, 4, side),
        (258, 3, bits),
        (259, 3, 1),
        (262, 3, 0 if zero_is_white else 1),
        (273, 4, 8),
        (274, 3, orientation),
        (277, 3, 1),
        (278, 4, side),
        (279, 4, len(data)),
        (339, 3, sample),
    ]
    entries = b''.join(struct.pack('<HHLL', tag, size, 1, value) for tag, size, value in tags)
    path.write_bytes(
        b'II*\0'
        + struct.pack('<L', 8 + len(data))
        + data
        + struct.pack('<H', len(tags))
        + entries
        + b'\0' * 4
    )
    return path


def row(path, channels=1, size=4, **keys):
    """The first row of a picture: a list for one channel, else a list of pixels."""
    pixels = load_picture(path, (size, size), channels, **keys)[:, 0].T.tolist()
    return [pixel[0] for pixel in pixels] if channels == 1 else pixels


def near(actual, expected):
    """Return whether levels are those expected (halves may be rounded either way)."""
    return len(actual) == len(expected) and all(abs(f - e) <= 1 for f, e in zip(actual, expected))


@pytest.mark.parametrize(
    ('kind', 'values', 'expected'),
    [
        ('B', [0, 10, 100, 255], [0, 10, 100, 255]),
        ('H', [0, 1000, 32768, 65535], [0, 4, 128, 255]),  # 255 / 65535 v = 3.89, 127.5
        ('f', [0.0, 0.25, 0.5, 1.0], [0, 64, 128, 255]),  # 63.75, 127.5
        ('f', [0.0, 63.75, 127.5, 255.0], [0, 64, 128, 255]),
        ('f', [0.0, 4.0, 8.0, 16.0], [0, 4, 8, 16]),  # (dark, of 0 to 255)
        ('f', [float('nan'), 0.0, float('inf'), 1.0], [0, 0, 255, 255]),
    ],
)
@pytest.mark.parametrize('zero_is_white', [False, True])
def test_the_kind_of_file_implies_black_and_white(tmp_path, kind, values, expected, zero_is_white):
    actual = row(write_tiff(tmp_path / 'x.tif', kind, values, zero_is_white))
    inverted = [e if v != v else 255 - e for v, e in zip(values, expected)]
    assert near(actual, inverted if zero_is_white else expected)


def test_twelve_bits_of_a_tiff_and_a_turned_one_whose_zero_is_white(tmp_path):
    packed = int(''.join(f'{v:012b}' for v in (0, 1000, 2048, 4095)), 2).to_bytes(6, 'big')
    assert row(write_tiff(tmp_path / 'x.tif', '12', [0] * 4, packed=packed)) == [
        0,
        62,
        128,
        255,
    ]  # 255 / 4095 v = 62.3, 127.5
    values = [0, 13107, 39321, 65535]  # 0, 51, 153, 255
    assert row(write_tiff(tmp_path / 'y.tif', 'H', values, True, orientation=3)) == [
        0,
        102,
        204,
        255,
    ]


@pytest.mark.parametrize(
    ('kind', 'values'),
    [
        ('f', [0.0, 0.5, 1.0, 1.2]),
        ('f', [0.0, 1.0, 2.0, 15.0]),
        ('f', [0.0, 1.0, 2.0, 300.0]),
        ('f', [-1.0, 0.0, 0.5, 1.0]),
        ('h', [-100, 0, 1, 2]),
        ('I', [0, 1, 2, 70000]),
    ],
)
def test_values_of_unknown_meaning_are_refused_and_grey_range_gives_it(tmp_path, kind, values):
    path = write_tiff(tmp_path / 'x.tif', kind, values)
    with pytest.raises(
        UnreadablePicture, match=r'its greys go from .*; set dataset.grey_range to \[black, white\]'
    ):
        load_picture(path, (4, 4))
    low, high = min(values), max(values)
    assert near(row(path, grey_range=(low, high)), [255 * (v - low) / (high - low) for v in values])
    assert set(row(path, grey_range=(high, high + 1))) == {0} and set(
        row(path, grey_range=(low - 2, low - 1))
    ) == {255}


@pytest.mark.parametrize(('kind', 'white'), [('B', 200), ('H', 4095)])
def test_grey_range_counts_in_the_values_of_the_file_also_where_zero_is_white(
    tmp_path, kind, white
):
    values = [0, white // 5, white // 2, white]
    for zero_is_white, expected in (False, [0, 51, 127, 255]), (True, [255, 204, 128, 0]):
        actual = row(
            write_tiff(tmp_path / 'x.tif', kind, values, zero_is_white), grey_range=(0, white)
        )
        assert near(actual, expected)


@pytest.mark.parametrize(
    ('bits', 'values', 'clear', 'grey_range'),
    [
        (16, [0, 1000, 32896, 65535], 1000, None),
        (16, [0, 1000, 2056, 4095], 1000, (0, 4095)),
        (8, [0, 10, 128, 255], 10, None),
        (8, [0, 10, 64, 127], 10, (0, 127)),
    ],
)
def test_a_transparent_grey_of_any_depth_lies_over_white(tmp_path, bits, values, clear, grey_range):
    path = write_png(tmp_path / 'x.png', bits, values, clear)
    assert near(row(path, grey_range=grey_range), [0, 255, 128, 255])
    assert all(
        near(pixel, [grey] * 3)
        for pixel, grey in zip(row(path, 3, grey_range=grey_range), [0, 255, 128, 255])
    )
    assert [pixel[3] for pixel in row(path, 4, grey_range=grey_range)] == [255, 0, 255, 255]


def test_the_transparency_of_a_palette_lies_over_white(tmp_path):
    colours = [
        (255, 0, 0, 255),
        (0, 0, 255, 0),
        (0, 255, 0, 128),
        (9, 9, 9, 255),
    ]  # red, hidden blue, half of green
    head = struct.pack('<BBBHHBHHHHBB', 0, 1, 1, 0, 4, 32, 0, 0, 4, 4, 8, 0x20)
    palette = b''.join(bytes((b, g, r, a)) for r, g, b, a in colours)
    (tmp_path / 'x.tga').write_bytes(head + palette + bytes(range(4)) * 4)
    assert row(tmp_path / 'x.tga', 3) == [[255, 0, 0], [255] * 3, [127, 255, 127], [9] * 3]
    assert [pixel[3] for pixel in row(tmp_path / 'x.tga', 4)] == [255, 0, 128, 255]


def test_sixteen_bits_a_channel(tmp_path):
    values = [0, 0, 0, 65535, 32768, 16384, 257, 514, 65278, 4369, 8738, 17476]
    expected = [[0, 0, 0], [255, 128, 64], [1, 2, 254], [17, 34, 68]]
    actual = row(write_png(tmp_path / 'x.png', 16, values, channels=3), 3)
    assert all(near(a, b) for a, b in zip(actual, expected))


@pytest.mark.parametrize('kind', ['TIFF', 'PNG', 'JPEG', 'WEBP'])
def test_turned_pictures_are_counted_whatever_their_format(tmp_path, kind):
    for orientation in 1, 6, 9:  # (9 means nothing)
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.new('RGB', (8, 4), (orientation, 0, 0)).save(
            tmp_path / f'{orientation}.{kind.lower()}', kind, exif=exif
        )
    assert inspect_pictures(tmp_path, (8, 8)).turns == 1


def write_set(folder, twelve, eight=0):
    """Pictures of 12 bits in 16-bit PNGs, and of 8 bits, of uniform greys."""
    folder.mkdir()
    source = torch.Generator().manual_seed(0)
    for i in range(twelve + eight):
        values = torch.randint(0, 4096 if i < twelve else 256, [16], generator=source)
        values[:2] = torch.tensor([0, 4095 if i < twelve else 255])
        write_png(folder / f'{i:02}.png', 16 if i < twelve else 8, values.tolist())
    return folder


@pytest.mark.parametrize(
    ('twelve', 'eight', 'message'),
    [
        (8, 0, 'the pictures of .* use only the values 0 to 16 of'),
        (4, 8, '4 of the 12 pictures looked at of .* use only the values 0 to 16 of'),
        (1, 11, None),
        (0, 8, None),
    ],
)
def test_a_set_that_uses_a_sliver_of_black_to_white_is_told_of(
    tmp_path, capsys, twelve, eight, message
):
    folder = write_set(tmp_path / 'set', twelve, eight)
    assert main(['dataset', str(folder), '--size', '16']) == 0
    out = capsys.readouterr().out
    notes = open_dataset(ImageFolderConfig(location=str(folder)), (16, 16), 1).notes
    if message is None:
        assert 'use only' not in out and not notes
    else:
        (note,) = notes
        assert note in out and re.match(message, note) and 'set dataset.grey_range' in note


def test_grey_range_set_on_the_command_line_counts_when_a_config_is_picked(tmp_path, capsys):
    folder = write_set(tmp_path / 'set', 8)
    K.train(
        data=folder,
        name='r',
        run_dir=tmp_path / 'run',
        size=16,
        device='cpu',
        dry_run=True,
        changes=['dataset.grey_range=[0, 4095]'],
    )
    err = capsys.readouterr().err
    config = json.loads((tmp_path / 'run' / 'r_config.json').read_text())
    values = torch.stack(
        [load_picture(path, (16, 16), 1, grey_range=(0, 4095)) for path in sorted(folder.iterdir())]
    )
    assert config['dataset']['grey_range'] == [0, 4095] and 'use only' not in err
    assert config['model']['sigma_data'] == pytest.approx(
        (values.double() / 127.5).std(correction=0).item(), abs=1e-3
    )
    assert values.min() == 0 and values.max() == 255
    with pytest.raises(ValueError, match=r"dataset.grey_range is \[0, 'x'\]"):
        K.train(
            data=folder,
            name='s',
            run_dir=tmp_path / 's',
            dry_run=True,
            changes=['dataset.grey_range=[0, "x"]'],
        )


def test_the_range_of_a_set_is_that_of_all_its_pictures(tmp_path, capsys):
    folder = write_set(tmp_path / 'set', 2, 2)
    assert main(['dataset', str(folder), '--size', '16', '--json']) == 0
    assert (
        json.loads(capsys.readouterr().out)['range']
        == [0, 255]
        == list(inspect_pictures(folder, (16, 16)).range)
    )
