"""Decoding once: in memory, in a file, or not at all, always the same pictures."""

from __future__ import annotations

import os

import pytest
import torch

from k_diffusion.data import ImageFolderClassConfig, ImageFolderConfig, Images, open_dataset
from k_diffusion.data.folders import PictureFiles


@pytest.fixture
def folder(tmp_path, write_pictures):
    """Two classes of four pictures, one of them broken."""
    for i, name in enumerate('ab'):
        write_pictures(tmp_path / 'pictures' / name, 4, seed=i)
    (tmp_path / 'pictures' / 'a' / '0001.png').write_bytes(b'broken')
    return tmp_path / 'pictures'


def opened(folder, **keys):
    return open_dataset(ImageFolderClassConfig(location=str(folder)), (12, 12), **keys)


def test_memory_and_file_hold_the_same(folder, tmp_path):
    memory, mapped = opened(folder), opened(folder, memory_limit=100, cache_dir=tmp_path / 'cache')
    assert isinstance(memory, Images) and isinstance(mapped, Images) and len(memory) == 7
    assert torch.equal(memory.images, mapped.images) and memory.images.float().std() > 20
    assert memory.labels.tolist() == mapped.labels.tolist() == [0] * 3 + [1] * 4
    assert (
        memory.skipped == mapped.skipped
        and len(memory.skipped) == 1
        and memory.skipped[0][0].endswith('0001.png')
    )


def test_without_room_or_folder_pictures_are_decoded_as_they_are_read(folder):
    dataset = opened(folder, memory_limit=8 * 3 * 12 * 12 - 1)
    assert isinstance(dataset, PictureFiles) and len(dataset) == 8
    assert (
        torch.equal(dataset[0]['image'], opened(folder)[0]['image'])
        and dataset[7]['class_cond'] == 1
    )
    assert isinstance(opened(folder, memory_limit=8 * 3 * 12 * 12), Images)


def test_the_file_is_read_again_until_the_pictures_change(folder, tmp_path, monkeypatch):
    def mapped(size=(12, 12)):
        return open_dataset(
            ImageFolderConfig(location=str(folder)),
            size,
            memory_limit=0,
            cache_dir=tmp_path / 'cache',
        )

    first = mapped().images.clone()
    with monkeypatch.context() as patch:
        patch.setattr(PictureFiles, '__getitem__', lambda self, index: pytest.fail('decoded again'))
        again = mapped()
        assert torch.equal(again.images, first) and len(again.skipped) == 1
    assert len(list((tmp_path / 'cache').iterdir())) == 2
    assert mapped((6, 6)).image_shape == (3, 6, 6)
    os.utime(folder / 'b' / '0000.png', ns=(1, 1))
    assert len(mapped()) == 7 and len(list((tmp_path / 'cache').iterdir())) == 4
    (folder / 'b' / '0000.png').unlink()
    assert len(mapped()) == 6


def test_an_interrupted_cache_is_made_anew(folder, tmp_path):
    def stop(done, total):
        if done == 3:
            raise KeyboardInterrupt

    cache = tmp_path / 'cache'
    with pytest.raises(KeyboardInterrupt):
        opened(folder, memory_limit=0, cache_dir=cache, progress=stop)
    assert list(cache.iterdir()) == []
    whole = opened(folder, memory_limit=0, cache_dir=cache)
    facts = next(cache.glob('*.json'))
    facts.unlink()  # as if stopped between the two files
    assert torch.equal(opened(folder, memory_limit=0, cache_dir=cache).images, whole.images)
    pictures = next(cache.glob('*.uint8'))
    pictures.write_bytes(pictures.read_bytes()[:-1])
    assert torch.equal(opened(folder, memory_limit=0, cache_dir=cache).images, whole.images)


@pytest.mark.parametrize(
    'content',
    [b'', b'\0' * 40, b'\xff\xfe', b'[]', b'null', b'{}', b'[' * 9999, b'{"digest": 1e999}', None],
)
def test_damaged_facts_are_passed_over_with_one_note(folder, tmp_path, content):
    whole = opened(folder, memory_limit=0, cache_dir=tmp_path / 'cache')
    facts = next((tmp_path / 'cache').glob('*.json'))
    good = facts.read_bytes()
    facts.write_bytes(good.replace(b'"kept"', b'"keep"') if content is None else content)
    again = opened(folder, memory_limit=0, cache_dir=tmp_path / 'cache')
    assert torch.equal(again.images, whole.images) and again.skipped == whole.skipped
    assert sum(facts.name in note for note in again.notes) == 1
    assert facts.read_bytes() == good


def test_progress(folder):
    progress_calls = []
    opened(folder, progress=lambda done, total: progress_calls.append((done, total)))
    assert progress_calls == [(i, 8) for i in range(1, 9)]


def test_nothing_that_can_be_read_leaves_no_cache(tmp_path):
    (tmp_path / 'a').mkdir()
    (tmp_path / 'a' / 'a.png').write_bytes(b'broken')
    with pytest.raises(ValueError, match='none of the 1 images'):
        opened(tmp_path, memory_limit=0, cache_dir=tmp_path / 'cache')
    assert list((tmp_path / 'cache').iterdir()) == []
