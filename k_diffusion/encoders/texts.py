"""Texts as sequences of features: by a tiny built-in encoder, or by any text encoder of
transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..core.devices import send
from ..core.pretrained import load_pretrained, load_tokenizer
from ..models import TextEncoder

#: The name of the encoder that needs nothing: random, the same everywhere, and enough to tell short
#: texts apart.
BUILT_IN = 'built-in'


class TextFeatures:
    """texts -> (features [N, T, D], padding [N, T] with 1 where there is no token); nothing in it
    is trained.

    name: 'built-in', a folder that save_pretrained wrote (CLIP, T5, BERT, ...), or a name on the
    hub. length: T.
    """

    def __init__(self, name: str = BUILT_IN, length: int = 16, device: Any = 'cpu') -> None:
        self.name, self.length, self.device = name, length, device
        self._model: Any = (
            _built_in(length).to(device) if name == BUILT_IN else _pretrained(name, device)
        )
        self._tokenizer: Any = (
            None if name == BUILT_IN else load_tokenizer(name, 'the words of a text encoder')
        )

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        if self.name == BUILT_IN:
            tokens = self._model.tokenise(texts)
            return self._model(tokens)[0], (tokens == 0).float()
        words = self._tokenizer(
            list(texts),
            padding='max_length',
            truncation=True,
            max_length=self.length,
            return_tensors='pt',
        )
        there = send(words['attention_mask'], torch.device(self.device))
        found = self._model(
            input_ids=send(words['input_ids'], there.device), attention_mask=there
        ).last_hidden_state
        return found.float() * there[..., None], 1 - there.float()


def pooled(features: Tensor, padding: Tensor) -> Tensor:
    """The mean [N, D] of the features that are there."""
    there = 1 - padding
    return (features * there[..., None]).sum(1) / there.sum(1, keepdim=True).clamp(min=1)


def _built_in(length: int) -> TextEncoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return TextEncoder(64, 1, 4, length).eval().requires_grad_(False)


def _pretrained(name: str, device: Any) -> Any:
    """The text part of a model: CLIP's text tower, the encoder of T5, or all of it."""
    model = load_pretrained(name, 'AutoModel', 'a text encoder', device)
    if hasattr(model, 'text_model'):
        return model.text_model
    return model.get_encoder() if getattr(model.config, 'is_encoder_decoder', False) else model
