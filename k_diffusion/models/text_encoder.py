"""A small text encoder for demonstrations and little data: words hashed to embeddings, a
transformer, their mean.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.devices import send
from ..layers.attention import attend, join_heads, split_heads


class TextEncoder(nn.Module):
    """Word tokens [B, N] -> (a sequence [B, N, D], their mean [B, D]); `tokenise` makes the tokens,
    0 is padding.

    It has no list of words: a word is one of `vocabulary` embeddings by its hash, so that two may
    rarely share one.
    """

    def __init__(
        self,
        width: int = 64,
        depth: int = 1,
        heads: int = 4,
        length: int = 16,
        vocabulary: int = 4096,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f'width is {width}; it must be a multiple of heads, {heads}')
        self.width, self.length, self.vocabulary = width, length, vocabulary
        self.words = nn.Embedding(vocabulary, width, padding_idx=0)
        self.places = nn.Parameter(torch.randn(length, width) * 0.02)
        self.blocks = nn.ModuleList(TextBlock(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def tokenise(self, texts: Sequence[str]) -> Tensor:
        """Texts -> int64 [B, length]: words and single signs, cut at `length`, padded with 0."""
        out = torch.zeros(len(texts), self.length, dtype=torch.long)
        for row, text in zip(out, texts):
            for i, word in enumerate(re.findall(r'\w+|[^\w\s]', text.lower())[: self.length]):
                row[i] = 1 + int.from_bytes(
                    hashlib.blake2b(word.encode(), digest_size=8).digest(), 'little'
                ) % (self.vocabulary - 1)
        return send(out, self.places.device)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        there = tokens != 0
        mask = torch.zeros_like(there, dtype=self.places.dtype).masked_fill(~there, -1e4)[
            :, None, None
        ]
        x = self.words(tokens) + self.places[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x, mask)
        x = self.norm(x) * there[..., None]
        return x, x.sum(1) / there.sum(1, keepdim=True).clamp(min=1)


class TextBlock(nn.Module):
    """Attention among the words and a feed-forward layer, each behind a norm and beside a skip."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention, self.norm_feed = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (
            split_heads(t, self.heads) for t in self.qkv(self.norm_attention(x)).chunk(3, -1)
        )
        x = x + self.out(join_heads(attend(q, k, v, mask)))
        return x + self.down(F.gelu(self.up(self.norm_feed(x))))
