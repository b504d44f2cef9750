"""Tensors that can be computed again: a flipped byte anywhere in their file is noticed."""

from __future__ import annotations

import warnings

import pytest
import torch

from k_diffusion.core.tensor_cache import load_cache, save_cache
from k_diffusion.core.weights import save_safetensors
from k_diffusion.encoders import LatentEncoder, cached_latents
from k_diffusion.evaluation import reference_features
from k_diffusion.tasks.processes import World, in_pieces

TENSORS = {
    'a': torch.arange(12.0).reshape(3, 4),
    'b': torch.tensor(2, dtype=torch.int64),
    'c': torch.empty(0, 2),
    'd': torch.ones(3, dtype=torch.bool),
    'e': torch.arange(4.0).bfloat16(),
}


def test_what_is_kept_comes_back(tmp_path):
    path = tmp_path / 'new' / 'x.safetensors'
    assert load_cache(path) is None
    save_cache(path, TENSORS, {'of': 'some \x1b name', 'n': 0.1})
    tensors, facts = load_cache(path)
    assert facts == {'of': 'some \x1b name', 'n': 0.1} and tensors.keys() == TENSORS.keys()
    assert all(
        torch.equal(tensors[name], value) and tensors[name].dtype == value.dtype
        for name, value in TENSORS.items()
    )


def test_every_flipped_byte_is_noticed(tmp_path):
    path = tmp_path / 'x.safetensors'
    save_cache(path, TENSORS, {'of': 'name', 'accuracy': 0.25})
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], 'little')
    for at in range(len(data)):
        path.write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
        with warnings.catch_warnings(record=True) as warning_list:
            warnings.simplefilter('always')
            entry = load_cache(path)
        if entry is None:
            assert len(warning_list) == 1 and 'x.safetensors is damaged' in str(
                warning_list[0].message
            )
        else:  # white space of the head
            assert at < start and entry[1] == {'of': 'name', 'accuracy': 0.25}
            assert all(torch.equal(entry[0][name], value) for name, value in TENSORS.items())
    path.write_bytes(data[:-1])
    with pytest.warns(UserWarning, match='is damaged'):
        assert load_cache(path) is None
    save_safetensors(path, TENSORS, {'of': 'name'})
    with pytest.warns(UserWarning, match='an older version'):
        assert load_cache(path) is None


def flip(folder, pattern):
    """Change one byte of the values in the only file of a name."""
    (path,) = folder.rglob(pattern)
    data = bytearray(path.read_bytes())
    data[-2] ^= 0x40
    path.write_bytes(data)


class Pictures(list):
    source, image_shape = 'pictures', (1, 4, 4)


class Doubling(torch.nn.Module):
    """An encoder of an invertible kind, with as many latents as pixels."""

    factor, latent_channels, input_channels = 1, 1, 1

    def encode(self, x):
        return 2 * x, torch.zeros_like(x)


def test_damaged_latents_features_and_pieces_are_computed_again(tmp_path):
    pictures = Pictures(
        {'image': torch.full((1, 4, 4), 20 * i, dtype=torch.uint8)} for i in range(6)
    )

    class Extractor:
        fingerprint = 'means'

        def __call__(self, x):
            return x.flatten(1)

    uses = {
        'latents-*': lambda: cached_latents(LatentEncoder(Doubling()), pictures, 'six', tmp_path),
        'features-*': lambda: reference_features(pictures, range(6), Extractor(), tmp_path),
        '0*': lambda: in_pieces(
            tmp_path / 'pieces-x', 6, lambda items: torch.tensor([float(i) for i in items]), World()
        ),
    }
    for pattern, use in uses.items():
        expected = use()
        flip(tmp_path, pattern)
        with pytest.warns(UserWarning, match='is damaged'):
            again = use()
        assert torch.equal(again, expected), pattern
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            assert torch.equal(use(), expected)


def test_latents_of_older_pictures_are_removed(tmp_path):
    pictures = Pictures(
        {'image': torch.full((1, 4, 4), 20 * i, dtype=torch.uint8)} for i in range(3)
    )
    other = Pictures(pictures)
    other.source = 'other pictures'
    save_safetensors(tmp_path / 'latents-mine.safetensors', TENSORS)
    (tmp_path / 'latents-damaged.safetensors').write_bytes(b'x')
    cached_latents(LatentEncoder(Doubling()), other, 'a', tmp_path)
    cached_latents(LatentEncoder(Doubling()), pictures, 'a changed', tmp_path)
    before = set(tmp_path.iterdir())
    assert len(before) == 4
    cached_latents(LatentEncoder(Doubling()), pictures, 'changed again', tmp_path)
    assert len(before - set(tmp_path.iterdir())) == 1 and len(list(tmp_path.iterdir())) == 4
