"""Streams of rows, and Hugging Face sets: splits, saved folders, streaming."""

from __future__ import annotations

import itertools

import pytest
import torch

from k_diffusion.core.images import from_bytes
from k_diffusion.data import (
    HuggingFaceConfig,
    Loader,
    RowStream,
    UnreadablePicture,
    icons,
    measure_sigma_data,
    open_dataset,
)

IMAGES = icons(30, 12)


class Numbers(RowStream):
    """Rows 0 to n - 1 as pictures of that value, some of which cannot be read."""

    source = 'the numbers'

    def __init__(self, n, window, broken=()):
        super().__init__((1, 2, 2), (), window)
        self.n, self.broken, self.read = n, broken, 0

    def rows(self, seed, epoch):
        for i in range(self.n):
            self.read += 1
            yield i

    def decode(self, row, index):
        if row in self.broken:
            raise UnreadablePicture('broken')
        return {'image': torch.full((1, 2, 2), row, dtype=torch.uint8), 'text': str(row)}


def texts(stream, batches, start=0, size=3, **settings):
    loader = Loader(stream, size, seed=4, **settings)
    return [batch['text'] for batch in itertools.islice(loader.iterate(start), batches)]


@pytest.mark.parametrize(('n', 'window'), [(20, 1), (20, 6), (20, 20), (21, 50), (5, 4)])
def test_epochs_windows_and_resumes(n, window):
    batches = texts(Numbers(n, window), 20)
    flat = [int(text) for batch in batches for text in batch]
    for epoch in range(60 // n):
        part = flat[epoch * n : (epoch + 1) * n]
        assert sorted(part) == list(range(n))
        assert all(value // window == position // window for position, value in enumerate(part))
    assert flat == list(range(60)) or window > 1 or n < 60
    if window > 4:
        assert flat[:n] != sorted(flat[:n]) and flat[:n] != flat[n : 2 * n]
    for step in (0, 1, 5, 7, 13):
        assert texts(Numbers(n, window), 4, 3 * step) == batches[step : step + 4]


def test_processes_share_a_stream():
    whole = texts(Numbers(20, 6), 8, 6)
    ranks = [texts(Numbers(20, 6), 4, 6, rank=rank, world_size=2) for rank in range(2)]
    assert [batch for pair in zip(*ranks) for batch in pair] == whole


def test_broken_rows_are_replaced_within_their_window():
    stream = Numbers(12, 4, broken=(5, 9))
    flat = [int(text) for batch in texts(stream, 4) for text in batch]
    assert (
        all(flat[i] // 4 == i // 4 for i in range(12))
        and not {5, 9} & set(flat)
        and len(stream.skipped) == 2
    )
    with pytest.raises(ValueError, match='4 rows in a row that cannot be read'):
        texts(Numbers(12, 4, broken=range(12)), 1)
    with pytest.raises(ValueError, match='holds no rows'):
        texts(Numbers(0, 4), 1)


def test_rows_by_ascending_numbers_are_read_in_one_pass():
    stream = Numbers(20, 4)
    assert [stream[i]['text'] for i in (2, 2, 7, 19)] == ['2', '2', '7', '19'] and stream.read == 20
    assert stream[3]['text'] == '3'
    with pytest.raises(IndexError, match='no row 20'):
        stream[20]


# Hugging Face


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    """A folder with a data set of captioned icons saved in each of the formats."""
    datasets = pytest.importorskip('datasets', reason='datasets is in the extra "hf"')
    import io

    from k_diffusion.core.images import to_pil_image

    folder, files = tmp_path_factory.mktemp('hf'), []
    for image in IMAGES:
        buffer = io.BytesIO()
        to_pil_image(from_bytes(image)).save(buffer, 'png')
        files.append({'bytes': buffer.getvalue(), 'path': None})
    features = datasets.Features(
        {
            'image': datasets.Image(),
            'label': datasets.ClassLabel(names=['a', 'b', 'c']),
            'caption': datasets.Value('string'),
        }
    )
    rows = datasets.Dataset.from_dict(
        {
            'image': files,
            'label': [i % 3 for i in range(30)],
            'caption': [f'icon {i}' for i in range(30)],
        },
        features=features,
    )
    rows.save_to_disk(folder / 'one')
    datasets.DatasetDict({'train': rows, 'validation': rows.select(range(7))}).save_to_disk(
        folder / 'dict'
    )
    (folder / 'files').mkdir()
    for i in range(3):
        rows.select(range(10 * i, 10 * i + 10)).to_parquet(folder / 'files' / f'train-{i}.parquet')
    return folder


def opened(location, **keys):
    section = HuggingFaceConfig(
        location=str(location), image_key='image', class_key='label', num_classes=3, **keys
    )
    return open_dataset(section, (12, 12))


def check(batches):
    for batch in batches:
        for image, label, text in zip(batch['image'], batch['class_cond'].tolist(), batch['text']):
            i = int(text.split()[1])
            assert torch.equal(image, from_bytes(IMAGES[i])) and label == i % 3


def test_any_split_and_saved_folders(saved):
    assert len(opened(saved / 'one')) == len(opened(saved / 'dict')) == 30
    assert torch.equal(opened(saved / 'dict', split='validation').images, IMAGES[:7])
    assert len(opened(saved / 'files', split='train[:20%]')) == 6
    with pytest.raises(ValueError, match="no split 'test', only train, validation"):
        opened(saved / 'dict', split='test')
    dataset = opened(saved / 'one', text_key='caption')
    assert dataset.has_texts and dataset.class_names == ['a', 'b', 'c']
    check(itertools.islice(Loader(dataset, 4).iterate(), 8))


@pytest.mark.parametrize('place', ['one', 'files'])
def test_streaming(saved, place, monkeypatch):
    monkeypatch.setattr(
        'datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN', 0, raising=False
    )  # (5 s at the end of each epoch)
    keys = {'text_key': 'caption', 'streaming': True, 'window': 8}
    dataset = opened(saved / place, **keys)
    batches = list(itertools.islice(Loader(dataset, 5, seed=1).iterate(), 18))
    check(batches)
    flat = [text for batch in batches for text in batch['text']]
    for epoch in range(3):
        assert sorted(flat[30 * epoch : 30 * epoch + 30]) == sorted(f'icon {i}' for i in range(30))
    for step in (3, 6, 13):
        resumed = itertools.islice(
            Loader(opened(saved / place, **keys), 5, seed=1).iterate(5 * step), 5
        )
        assert [batch['text'] for batch in resumed] == [
            batch['text'] for batch in batches[step : step + 5]
        ]
    assert measure_sigma_data(
        opened(saved / place, **{**keys, 'text_key': None}), 30
    ) == pytest.approx(float(from_bytes(IMAGES).double().std(correction=0)), rel=1e-6)
