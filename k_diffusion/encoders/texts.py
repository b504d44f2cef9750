"""Encode texts as sequences of features, by a built-in encoder or one of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..core.devices import send
from ..core.pretrained import load_pretrained, load_tokenizer
from ..models import TextEncoder

#: The encoder that needs no files. Its weights are random and the same everywhere, which is enough
#: to distinguish short texts.
BUILT_IN = 'built-in'


class TextFeatures:
    """Encodes texts as features [N, T, D] and padding [N, T], which is 1 where there is no token.

    Nothing in it is trained.

    Args:
        name: 'built-in', a folder that save_pretrained wrote (CLIP, T5, BERT, ...), or a name on
            the hub.
        length: T, the number of tokens.
        device: The device to encode on.
    """

    def __init__(self, name: str = BUILT_IN, length: int = 16, device: Any = 'cpu') -> None:
        self.name, self.length, self.device = name, length, device
        self._model: Any = (
            _built_in(length).to(device) if name == BUILT_IN else _load_pretrained(name, device)
        )
        self._tokenizer: Any = (
            None if name == BUILT_IN else load_tokenizer(name, 'the words of a text encoder')
        )

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return the features and the padding of texts.

        Args:
            texts: N texts.
        """
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
        mask = send(words['attention_mask'], torch.device(self.device))
        features = self._model(
            input_ids=send(words['input_ids'], mask.device), attention_mask=mask
        ).last_hidden_state
        return features.float() * mask[..., None], 1 - mask.float()


def pooled(features: Tensor, padding: Tensor) -> Tensor:
    """Return the mean of the features of tokens, without the padding: [N, D].

    Args:
        features: [N, T, D].
        padding: [N, T], 1 where there is no token.
    """
    mask = 1 - padding
    return (features * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)


def _built_in(length: int) -> TextEncoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return TextEncoder(64, 1, 4, length).eval().requires_grad_(False)


def _load_pretrained(name: str, device: Any) -> Any:
    """Load the text part of a model: the text tower of CLIP, the encoder of T5, or all of it."""
    model = load_pretrained(name, 'AutoModel', 'a text encoder', device)
    if hasattr(model, 'text_model'):
        return model.text_model
    return model.get_encoder() if getattr(model.config, 'is_encoder_decoder', False) else model
