"""Every kind of picture becomes the right bytes, or says why not."""

from __future__ import annotations

import io
import struct
import zlib

import pytest
import torch
from PIL import Image

from k_diffusion.core.images import pil_bytes
from k_diffusion.data import UnreadablePicture, load_picture, picture_bytes, pictures


def near(actual, expected, tolerance=1):
    expected = torch.as_tensor(expected)
    assert actual.dtype == torch.uint8 and actual.shape == expected.shape
    assert (actual.int() - expected.int()).abs().max() <= tolerance


def colours():
    """A picture whose every pixel is another colour."""
    picture = Image.new('RGB', (8, 6))
    picture.putdata([(30 * x, 40 * y, 255 - 20 * (x + y)) for y in range(6) for x in range(8)])
    return picture


@pytest.mark.parametrize('mode', ['RGB', 'RGBA', 'CMYK', 'YCbCr', 'HSV', 'LAB'])
def test_colour_modes(mode):
    if mode == 'LAB':
        from PIL import ImageCms

        srgb, lab = ImageCms.createProfile('sRGB'), ImageCms.createProfile('LAB')
        picture = ImageCms.profileToProfile(colours(), srgb, lab, outputMode='LAB')
    else:
        picture = colours().convert(mode)
    near(picture_bytes(picture, (6, 8)), pil_bytes(picture.convert('RGB')), 0)
    if mode != 'LAB':
        near(picture_bytes(picture, (6, 8)), pil_bytes(colours()), 12 if mode == 'HSV' else 3)


def test_grey_palette_and_one_bit(tmp_path):
    palette = colours().quantize(48)
    palette.save(tmp_path / 'p.png')
    near(load_picture(tmp_path / 'p.png', (6, 8)), pil_bytes(palette.convert('RGB')), 0)
    grey = colours().convert('L')
    near(picture_bytes(grey, (6, 8), 3), pil_bytes(grey).expand(3, -1, -1), 0)
    near(picture_bytes(colours(), (6, 8), 1), pil_bytes(grey), 0)
    bits = Image.new('1', (2, 1))
    bits.putpixel((1, 0), 1)
    assert picture_bytes(bits, (1, 2), 1).tolist() == [[[0, 255]]]


@pytest.mark.parametrize(
    ('mode', 'suffix'), [('I;16', 'png'), ('I;16', 'tif'), ('I;16B', 'tif'), ('I', 'tif')]
)
def test_sixteen_bits_are_scaled(tmp_path, mode, suffix):
    values = [0, 128, 129, 257, 1000, 32767, 32768, 65535]
    form = ('>' if mode.endswith('B') else '<') + '8' + ('i' if mode == 'I' else 'H')
    picture = Image.frombytes(mode, (8, 1), struct.pack(form, *values))
    picture.save(tmp_path / f'a.{suffix}')
    near(load_picture(tmp_path / f'a.{suffix}', (1, 8), 1), [[[round(v / 257) for v in values]]], 0)


def test_sixteen_bit_pgm_and_float(tmp_path):
    (tmp_path / 'a.pgm').write_bytes(b'P5 2 1 65535\n' + struct.pack('>2H', 65535, 25700))
    near(load_picture(tmp_path / 'a.pgm', (1, 2), 1), [[[255, 100]]], 0)
    Image.frombytes('F', (4, 1), struct.pack('4f', 0.0, 0.5, 1.0, float('nan'))).save(
        tmp_path / 'a.tif'
    )
    near(load_picture(tmp_path / 'a.tif', (1, 4), 1), [[[0, 128, 255, 0]]], 1)


def test_transparent_pictures_lie_over_white():
    picture = Image.new('RGBA', (4, 4), (255, 0, 0, 128))
    near(
        picture_bytes(picture, (4, 4)), torch.tensor([255, 127, 127])[:, None, None].expand(3, 4, 4)
    )
    near(picture_bytes(Image.new('LA', (4, 4), (0, 0)), (4, 4), 1), torch.full((1, 4, 4), 255), 0)


def test_transparency_of_palettes_and_of_one_colour(tmp_path):
    palette = Image.new('P', (2, 1))
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putpixel((1, 0), 1)
    palette.save(tmp_path / 'p.png', transparency=0)
    assert load_picture(tmp_path / 'p.png', (1, 2)).tolist() == [
        [[255, 0]],
        [[255, 0]],
        [[255, 255]],
    ]
    Image.new('RGB', (1, 1), (1, 2, 3)).save(tmp_path / 'c.png', transparency=(1, 2, 3))
    assert load_picture(tmp_path / 'c.png', (1, 1)).tolist() == [[[255]], [[255]], [[255]]]


@pytest.mark.parametrize('channels', [3, 4])
def test_hidden_colours_do_not_bleed_when_resized(channels):
    picture = Image.new('RGBA', (64, 64), (0, 0, 0, 0))  # black, but nobody sees it
    picture.paste((255, 0, 0, 255), (0, 0, 32, 64))
    pixels = picture_bytes(picture, (16, 16), channels)
    if channels == 3:
        assert pixels[0].min() >= 254  # red and white alike are full of red
        assert pixels[1, 0, 0] == 0 and pixels[1, 0, -1] == 255
    else:
        is_opaque = pixels[3] > 8
        assert pixels[0][is_opaque].min() >= 250 and 0 < is_opaque.sum() < is_opaque.numel()


def test_orientation(tmp_path):
    picture = colours()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    picture.save(tmp_path / 'a.png', exif=exif)
    near(
        load_picture(tmp_path / 'a.png', (8, 6)),
        pil_bytes(picture.transpose(Image.Transpose.ROTATE_270)),
        0,
    )


def test_cmyk_jpeg(tmp_path):
    Image.new('RGB', (16, 16), (200, 60, 20)).convert('CMYK').save(tmp_path / 'a.jpg', quality=100)
    near(
        load_picture(tmp_path / 'a.jpg', (16, 16)),
        torch.tensor([200, 60, 20])[:, None, None].expand(3, 16, 16),
        3,
    )


@pytest.mark.parametrize(
    ('side', 'size'),
    [
        ((31, 17), (8, 8)),
        ((17, 31), (8, 8)),
        ((20, 20), (8, 8)),
        ((13, 9), (9, 13)),
        ((40, 30), (10, 20)),
        ((5, 4), (16, 16)),
        ((21, 8), (8, 8)),
        ((8, 11), (8, 8)),
    ],
)
def test_resized_to_cover_and_cropped_about_the_centre(side, size):
    """The original's rule where the frame is square: short side to the frame, the long one
    rounded down, then the centre.
    """
    picture = colours().resize(side)
    h, w = size
    if h == w:
        short = min(side)
        scaled = tuple(h if s == short else int(h * s / short) for s in side)
    else:
        factor = max(w / side[0], h / side[1])
        scaled = tuple(int(s * factor + 1e-9) for s in side)
    expected = picture if scaled == side else picture.resize(scaled, Image.Resampling.BICUBIC)
    left, top = round((scaled[0] - w) / 2.0), round((scaled[1] - h) / 2.0)
    near(picture_bytes(picture, size), pil_bytes(expected.crop((left, top, left + w, top + h))), 0)


def test_damaged_files_say_why(tmp_path):
    whole = {}
    for kind in ('png', 'jpeg', 'webp'):
        buffer = io.BytesIO()
        Image.effect_noise((64, 64), 50).convert('RGB').save(buffer, kind)
        whole[kind] = buffer.getvalue()
    files = {
        'cut.png': whole['png'][: len(whole['png']) // 2],
        'cut.jpg': whole['jpeg'][: len(whole['jpeg']) // 2],
        'cut.webp': whole['webp'][:60],
        'text.png': b'not a picture',
        'empty.png': b'',
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UnreadablePicture) as error:
            load_picture(tmp_path / name, (8, 8))
        assert str(error.value)
    with pytest.raises(UnreadablePicture, match='No such file'):
        load_picture(tmp_path / 'absent.png', (8, 8))


def png_claiming(width, height):
    def chunk(kind, data):
        return (
            struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
        )

    return (
        b'\x89PNG\r\n\x1a\n'
        + chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0))
        + chunk(b'IDAT', zlib.compress(bytes(1000)))
        + chunk(b'IEND', b'')
    )


@pytest.mark.filterwarnings('ignore:Image size')
@pytest.mark.parametrize('side', [9_000, 12_000, 20_000])
def test_bombs_are_refused_by_their_header(tmp_path, side, monkeypatch):
    (tmp_path / 'bomb.png').write_bytes(png_claiming(side, side))
    monkeypatch.setattr('PIL.ImageFile.ImageFile.load', lambda self: pytest.fail('it was decoded'))
    with pytest.raises(UnreadablePicture, match='pixels'):
        load_picture(tmp_path / 'bomb.png', (8, 8))


@pytest.mark.parametrize(
    ('width', 'height'), [(1, 67_000_000), (67_000_000, 1), (2, 30_000_000), (30, 2_000_000)]
)
def test_thin_pictures_are_refused_by_their_header(tmp_path, width, height, monkeypatch):
    (tmp_path / 'thin.png').write_bytes(png_claiming(width, height))
    monkeypatch.setattr('PIL.ImageFile.ImageFile.load', lambda self: pytest.fail('it was decoded'))
    with pytest.raises(
        UnreadablePicture, match=f'{width} x {height} is so thin .* more than 67108864 pixels'
    ):
        load_picture(tmp_path / 'thin.png', (64, 64))


def test_an_error_keeps_nothing_of_the_picture(tmp_path):
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(buffer, 'png')
    with pytest.raises(UnreadablePicture) as error:
        load_picture(io.BytesIO(buffer.getvalue()[:2000]), (8, 8))
    assert error.value.__cause__ is None and error.value.__context__ is None


def test_a_thin_line_does_not_become_a_bomb():
    with pytest.raises(UnreadablePicture, match='more than 10000 pixels'):
        picture_bytes(Image.new('L', (900, 1)), (64, 64), 1, pixel_limit=10_000)


def test_what_no_picture_has(tmp_path):
    colours().save(tmp_path / 'a.png')
    with pytest.raises(ValueError, match='channels must be 1 .*; got 2'):
        load_picture(tmp_path / 'a.png', (8, 8), 2)
    with pytest.raises(ValueError, match=r'each >= 1; got \[0, 8\]'):
        load_picture(tmp_path / 'a.png', (0, 8))


def test_icons_hold_pictures_of_icons_alone(tmp_path):
    inner = png_claiming(3000, 3000)
    icon = (
        struct.pack('<HHH', 0, 1, 1)
        + struct.pack('<4B2H2I', 16, 16, 0, 0, 1, 32, len(inner), 22)
        + inner
    )
    apple = (
        b'icns'
        + struct.pack('>I', 16 + len(inner))
        + b'ic07'
        + struct.pack('>I', 8 + len(inner))
        + inner
    )
    for name, data in {'a.ico': icon, 'a.icns': apple}.items():
        (tmp_path / name).write_bytes(data)
        for source in (tmp_path / name, io.BytesIO(data)):
            with pytest.raises(
                UnreadablePicture, match='an icon that holds an image of 3000 x 3000'
            ):
                load_picture(source, (8, 8))
    colours().resize((32, 32)).save(tmp_path / 'b.ico')
    assert load_picture(tmp_path / 'b.ico', (8, 8)).shape == (3, 8, 8)


def test_a_jpeg_of_many_scans_is_refused(tmp_path):
    buffer = io.BytesIO()
    colours().save(buffer, 'JPEG', progressive=True)
    data = buffer.getvalue()
    scan = data[data.rindex(b'\xff\xda') : -2]
    assert load_picture(io.BytesIO(data[:-2] + 5 * scan + data[-2:]), (6, 8)).shape == (3, 6, 8)
    with pytest.raises(UnreadablePicture, match='more than 100 scans'):
        load_picture(io.BytesIO(data[:-2] + 100 * scan + data[-2:]), (6, 8))


@pytest.mark.parametrize(
    'kind, most',
    [
        (('L', 'PNG', {}), 4),
        (('RGB', 'JPEG', {}), 4),
        (('RGB', 'JPEG', {'progressive': True}), 10),
        (('CMYK', 'JPEG', {}), 10),
        (('RGBA', 'PNG', {}), 16),
        (('RGB', 'WEBP', {}), 16),
        (('RGB', 'JPEG2000', {}), 24),
    ],
    ids=str,
)
def test_what_a_picture_takes_is_held_while_it_is_decoded(kind, most, monkeypatch):
    mode, form, options = kind
    buffer = io.BytesIO()
    colours().convert(mode).save(buffer, form, **options)
    with monkeypatch.context() as patch:
        patch.setattr(pictures, 'PICTURE_BYTES', 48 * most)
        load_picture(buffer, (6, 8))
        patch.setattr(pictures, 'PICTURE_BYTES', 48 * most - 1)
        with pytest.raises(UnreadablePicture, match=f'8 x 6 as {form} takes more than'):
            load_picture(buffer, (6, 8))
