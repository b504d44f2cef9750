"""Small folders of pictures."""

from __future__ import annotations

import urllib.error
import urllib.request

import pytest

from k_diffusion.core.images import from_bytes, save_image
from k_diffusion.data import icons


@pytest.fixture
def write_pictures():
    """write_pictures(folder, n, size=12) -> the n pictures written there as 0000.png and so on,
    uint8 [n, 3, size, size].
    """

    def write(folder, n, size=12, seed=0):
        folder.mkdir(parents=True, exist_ok=True)
        images = icons(n, size, seed=seed)
        for i, image in enumerate(images):
            save_image(folder / f'{i:04}.png', from_bytes(image))
        return images

    return write


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Each attempt to reach the network fails at once, and is listed."""
    urls = []

    def fail(url, **_):
        urls.append(url)
        raise urllib.error.URLError('Name or service not known')

    monkeypatch.setattr(urllib.request, 'urlopen', fail)
    return urls
