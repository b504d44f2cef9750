"""Data sets from the Hugging Face Hub and from a Python file of one's own."""

from __future__ import annotations

import io
import pickle
import sys
import types

import pytest
import torch
from PIL import Image

from k_diffusion.core.images import from_bytes, to_pil_image
from k_diffusion.data import (
    CustomConfig,
    HuggingFaceConfig,
    Loader,
    UnreadablePicture,
    hf_datasets_augs_helper,
    icons,
    open_dataset,
)

# The Hugging Face Hub


class Rows(list):
    """The part of datasets.Dataset that this package uses."""

    def __init__(self, rows, features):
        super().__init__(rows)
        self.features, self.column_names, self._fingerprint = features, list(features), 'f00d'

    def cast_column(self, name, feature):
        assert not feature.decode
        return self


@pytest.fixture
def hub(monkeypatch):
    """A stand-in for the package datasets that holds one data set of three icons; returns those."""
    images = icons(3, 12)
    files = []
    for image in images:
        buffer = io.BytesIO()
        to_pil_image(from_bytes(image)).save(buffer, 'png')
        files.append({'bytes': buffer.getvalue(), 'path': None})
    module = types.ModuleType('datasets')
    module.Image = type(
        'Image', (), {'__init__': lambda self, decode=True: setattr(self, 'decode', decode)}
    )
    features = {'image': module.Image(), 'label': types.SimpleNamespace(names=['disc', 'box'])}

    def load_dataset(name, split):
        if name != 'some/icons':
            raise FileNotFoundError(f'no data set {name}')
        assert split == 'train'
        return Rows([{'image': file, 'label': i % 2} for i, file in enumerate(files)], features)

    module.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, 'datasets', module)
    return types.SimpleNamespace(images=images, files=files, module=module, features=features)


@pytest.mark.parametrize('keys', [{}, {'image_key': 'image', 'class_key': 'label'}])
def test_huggingface(hub, keys):
    section = HuggingFaceConfig(location='some/icons', num_classes=2, **keys)
    dataset = open_dataset(section, (12, 12))
    assert (
        torch.equal(dataset.images, hub.images)
        and dataset.labels.tolist() == [0, 1, 0]
        and dataset.class_names == ['disc', 'box']
    )
    assert open_dataset(HuggingFaceConfig(location='some/icons', **keys), (12, 12)).num_classes == 0
    streamed = open_dataset(section, (12, 12), memory_limit=0)
    assert torch.equal(streamed[2]['image'], hub.images[2]) and streamed[1]['class_cond'] == 1


def test_huggingface_with_pictures_decoded_elsewhere_or_broken(hub):
    hub.features['image'] = None  # a column of no declared kind
    hub.files[0] = to_pil_image(from_bytes(hub.images[0]))
    hub.files[1] = None
    dataset = open_dataset(HuggingFaceConfig(location='some/icons'), (12, 12))
    assert torch.equal(dataset.images, hub.images[[0, 2]]) and dataset.skipped == [
        ('row 1', 'the row holds no picture')
    ]


def test_huggingface_errors(hub, monkeypatch):
    with pytest.raises(
        ValueError, match="image_key must be one of the columns image, label; got 'img'"
    ):
        open_dataset(HuggingFaceConfig(location='some/icons', image_key='img'), (12, 12))
    with pytest.raises(ValueError, match="'some/other' cannot be loaded"):
        open_dataset(HuggingFaceConfig(location='some/other'), (12, 12))
    monkeypatch.setitem(sys.modules, 'datasets', None)
    with pytest.raises(ImportError, match=r'k-diffusion\[hf\]'):
        open_dataset(HuggingFaceConfig(location='some/icons'), (12, 12))


def test_helper_of_old():
    examples = {'image': [Image.new('L', (2, 2)), Image.new('RGBA', (2, 2))], 'label': [0, 1]}
    assert hf_datasets_augs_helper(examples, lambda picture: picture.mode, 'image') == {
        'image': ['RGB', 'RGB']
    }
    assert hf_datasets_augs_helper(examples, lambda picture: picture.mode, 'image', 'L') == {
        'image': ['L', 'L']
    }


# Code of one's own


CODE = """
from PIL import Image

def get_dataset(config, transform):
    pictures = [Image.new('RGB', (9, 9), (i, 0, 0)) for i in range(config['n'])]
    return [
        {'picture': transform(p), 'kind': i % 2, 'raw': p, 'wrong': [1]}
        for i, p in enumerate(pictures)
    ]
"""


@pytest.fixture
def custom(tmp_path):
    (tmp_path / 'mine.py').write_text(CODE)
    return lambda allow_code=True, **keys: open_dataset(
        CustomConfig(
            **{
                'location': 'mine.py',
                'image_key': 'picture',
                'class_key': 'kind',
                'config': {'n': 4},
                **keys,
            }
        ),
        (6, 6),
        base_dir=tmp_path,
        allow_code=allow_code,
    )


@pytest.mark.parametrize('image_key', ['picture', 'raw'])
def test_custom(custom, image_key):
    dataset = custom(num_classes=2, image_key=image_key)
    assert len(dataset) == 4 and dataset[3]['class_cond'] == 1
    assert torch.equal(
        dataset[3]['image'],
        torch.tensor([3, 0, 0], dtype=torch.uint8)[:, None, None].expand(3, 6, 6),
    )
    assert 'class_cond' not in custom()[0]
    again = pickle.loads(pickle.dumps(dataset))
    assert len(again) == 4 and torch.equal(again[2]['image'], dataset[2]['image'])


def test_custom_runs_only_where_it_is_let(custom, tmp_path):
    (tmp_path / 'mine.py').write_text(f'open({str(tmp_path / "ran")!r}, "w")\n' + CODE)
    with pytest.raises(ValueError, match='allow_code=True'):
        custom(allow_code=False)
    assert not (tmp_path / 'ran').exists()
    custom()
    assert (tmp_path / 'ran').exists()


def test_custom_errors(custom, tmp_path):
    with pytest.raises(FileNotFoundError, match=r'there is no file .*other\.py'):
        custom(location='other.py')
    with pytest.raises(ValueError, match="get_dataset must name a function of .*; got 'make'"):
        custom(get_dataset='make')
    with pytest.raises(ValueError, match=r'must be a uint8 tensor \[3, 6, 6\].*; got list'):
        custom(image_key='wrong')[0]
    (tmp_path / 'mine.py').write_text(
        'def get_dataset(config, transform):\n    class A(list):\n        def __getitem__(self, '
        'i):\n'
        "            raise OSError('cut')\n    return A([1])\n"
    )
    with pytest.raises(UnreadablePicture, match='cut') as error:
        custom()[0]
    assert error.value.__context__ is None  # (which would keep what was decoded)


BROKEN = """
class Missing(dict):
    def __getitem__(self, key):
        if key == 'kind' and self.n == 2:
            return 1 // 0
        return dict.__getitem__(self, key)

class Weird(Exception):
    def __init__(self, a, b):                   # (cannot be brought back from a pickle)
        super().__init__(a)

class Items(list):
    def __getitem__(self, i):
        if i == 5:
            raise Weird('of its own\\nkind', 2)
        item = Missing(picture=list.__getitem__(self, i), kind=0)
        item.n = i
        return item

def get_dataset(config, transform):
    from PIL import Image
    if config.get('fail'):
        return config['absent']
    return Items(transform(Image.new('RGB', (9, 9), (i, 0, 0))) for i in range(8))
"""


@pytest.fixture
def broken(custom, tmp_path):
    (tmp_path / 'mine.py').write_text(BROKEN)
    return custom


@pytest.mark.parametrize(
    ('index', 'message'),
    [
        (
            2,
            r'item 2 of the data set of .*mine\.py cannot be read: ZeroDivisionError: .* \(line 5 '
            r'of mine\.py\)',
        ),
        (
            5,
            r'(?s)item 5 of the data set of .*mine\.py cannot be read: Weird: of its own.*kind '
            r'\(line 15 of mine\.py\)',
        ),
        (8, r'item 8 of the data set of .*mine\.py cannot be read: IndexError: '),
    ],
)
def test_an_item_that_raises_is_named(broken, index, message):
    dataset = broken(num_classes=2)
    assert dataset[3]['class_cond'] == 0
    with pytest.raises(ValueError, match=message) as error:
        dataset[index]
    assert not isinstance(error.value, UnreadablePicture)


@pytest.mark.parametrize('workers', [0, 1])
def test_an_item_that_raises_is_named_by_loaders(broken, workers):
    loader = Loader(broken(), 2, num_workers=workers)
    with pytest.raises(
        ValueError, match=r'item 5 of the data set of .*mine\.py cannot be read: Weird: '
    ):
        for _ in zip(range(8), loader.iterate()):
            pass


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda code: code + 'x = 1 /', 'SyntaxError: '),
        (lambda code: 'import not_there\n' + code, "ModuleNotFoundError: .* 'not_there'"),
        (
            lambda code: code.replace('return Items', 'return iter'),
            'TypeError: object .* has no len',
        ),
    ],
)
def test_a_file_that_raises_is_named(broken, tmp_path, change, message):
    (tmp_path / 'mine.py').write_text(change(BROKEN))
    with pytest.raises(
        ValueError, match=r'the data set of .*mine\.py cannot be opened: ' + message
    ):
        broken()


@pytest.mark.parametrize(
    ('line', 'message'),
    [
        ('raise SystemExit(3)', r'SystemExit: 3 \(line 15 of mine\.py\)'),
        (
            "raise type('Mute', (Exception,), {'__str__': lambda self: 1 // 0})",
            r'Mute \(line 15 of mine\.py\)',
        ),
        ('raise MemoryError', r'MemoryError \(line 15 of mine\.py\)'),
    ],
)
def test_what_is_raised_may_be_anything(broken, tmp_path, line, message):
    code = BROKEN.replace("raise Weird('of its own\\nkind', 2)", line)
    assert code != BROKEN
    (tmp_path / 'mine.py').write_text(code)
    with pytest.raises(
        ValueError, match=r'item 5 of the data set of .*mine\.py cannot be read: ' + message
    ):
        broken()[5]
    (tmp_path / 'mine.py').write_text(
        code.replace('        if i == 5:', '        if 1:').replace(
            'return Items(', 'return Items([0])[0] if 1 else Items('
        )
    )
    with pytest.raises(ValueError, match=r'mine\.py cannot be opened: ' + message):
        broken()


def test_a_function_that_raises_is_named_with_its_line(broken):
    with pytest.raises(
        ValueError, match=r"mine\.py cannot be opened: KeyError: 'absent' \(line 23 of mine\.py\)"
    ):
        broken(config={'fail': 1})


def test_a_row_that_raises_is_named(hub, monkeypatch):
    dataset = open_dataset(HuggingFaceConfig(location='some/icons'), (12, 12), memory_limit=0)
    monkeypatch.setattr(Rows, '__getitem__', lambda self, index: {}[index])
    with pytest.raises(
        ValueError,
        match='row 1 of the Hugging Face data set some/icons cannot be read: KeyError: 1',
    ):
        dataset[1]
