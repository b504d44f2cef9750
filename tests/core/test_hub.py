"""The Hugging Face Hub, which may not answer."""

from __future__ import annotations

import socket
import sys
import threading
import time
import types
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from k_diffusion.core import hub
from k_diffusion.core.pretrained import load_pretrained, load_tokenizer
from k_diffusion.data import open_dataset
from k_diffusion.data.huggingface import HuggingFaceConfig
from k_diffusion.encoders.latents import diffusers_autoencoder
from k_diffusion.external.diffusers_folders import load_parts

constants = pytest.importorskip(
    'huggingface_hub.constants', reason='it comes with the extra "clip"'
)


@pytest.fixture
def endpoint(monkeypatch, tmp_path):
    """Have the hub at another address, with nothing kept of it; count its retries."""

    def move(address):
        monkeypatch.setattr(constants, 'ENDPOINT', address)
        monkeypatch.setattr(
            constants,
            'HUGGINGFACE_CO_URL_TEMPLATE',
            address + '/{repo_id}/resolve/{revision}/{filename}',
        )

    for name in ('http_proxy', 'HTTP_PROXY', 'all_proxy', 'ALL_PROXY'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path))
    monkeypatch.setattr(hub, '_reached', threading.Event())
    return move


@pytest.fixture
def silent_port():
    """A port that takes connections and never answers."""
    with socket.create_server(('127.0.0.1', 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def closed_port():
    with socket.create_server(('127.0.0.1', 0)) as server:
        return server.getsockname()[1]


def load_rows(monkeypatch):
    """A `datasets` that waits for the hub as the real one does, unless it is set to offline."""

    def load_dataset(name, split):
        if not constants.HF_HUB_OFFLINE:
            time.sleep(20)
        raise ConnectionError(f'no {name}')

    stub = types.SimpleNamespace(load_dataset=load_dataset)
    monkeypatch.setitem(sys.modules, 'datasets', stub)
    open_dataset(HuggingFaceConfig(location='some/rows'), (8, 8))


LOADERS = {
    'model': lambda patch: load_pretrained('some/model', 'CLIPModel', 'CLIP'),
    'tokenizer': lambda patch: load_tokenizer('some/model', 'words'),
    'pipeline': lambda patch: load_parts('some/model', None, None),
    'autoencoder': lambda patch: diffusers_autoencoder('some/model'),
    'rows': load_rows,
}


@pytest.mark.parametrize('kind', LOADERS)
def test_without_a_hub_the_sentence_comes_at_once(endpoint, closed_port, monkeypatch, kind):
    pytest.importorskip(
        'transformers' if kind in ('model', 'tokenizer') else 'diffusers',
        reason='it is in an extra',
    )
    endpoint(f'http://127.0.0.1:{closed_port}')
    waits = []
    monkeypatch.setattr(time, 'sleep', waits.append)
    with pytest.raises((FileNotFoundError, ValueError), match='some/'):
        LOADERS[kind](monkeypatch)
    assert sum(waits) < 1
    assert not constants.HF_HUB_OFFLINE


def test_the_sentence_says_why(endpoint, closed_port):
    pytest.importorskip('transformers', reason='transformers is in the extra "clip"')
    endpoint(f'http://127.0.0.1:{closed_port}')
    with pytest.raises(FileNotFoundError, match=r'no model of that name .* \(.*[Cc]onnection'):
        load_pretrained('some/model', 'CLIPModel', 'CLIP')


def test_a_hub_that_is_silent_is_waited_for_briefly(endpoint, silent_port, monkeypatch):
    monkeypatch.setattr(hub, 'PATIENCE', 0.5)
    endpoint(f'http://127.0.0.1:{silent_port}')
    begun = time.monotonic()
    assert hub.hub_fault('some/model')
    assert time.monotonic() - begun < 3


def test_a_hub_that_answers_is_asked_once(endpoint, tmp_path):
    request_paths = []

    class Answer(BaseHTTPRequestHandler):
        def do_HEAD(self):
            request_paths.append(self.path)
            self.send_error(404)

        def log_message(self, *_):
            pass

    server = HTTPServer(('127.0.0.1', 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        endpoint(f'http://127.0.0.1:{server.server_port}')
        assert hub.hub_fault(tmp_path) is None and request_paths == []
        assert hub.hub_fault('some/model') is None and hub.hub_fault('other/model') is None
        assert len(request_paths) == 1
    finally:
        server.shutdown()
        server.server_close()
