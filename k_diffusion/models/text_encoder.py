"""A small text encoder for demonstrations and little data, without a list of words."""

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
    """A transformer over words: tokens [B, N] -> a sequence [B, N, D], and its mean [B, D].

    `tokenise` makes the tokens; 0 is padding. It has no list of words: the hash of a word selects
    one of `vocabulary` embeddings, so that two words rarely share one. It is k-diffusion's own.

    Args:
        width: D, the features.
        depth: The number of blocks.
        heads: The number of attention heads.
        length: The largest number of tokens.
        vocabulary: The number of embeddings, including that of the padding.

    Raises:
        ValueError: If heads does not divide width.
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
            raise ValueError(f'width must be a multiple of heads, {heads}; got {width}')
        self.width, self.length, self.vocabulary = width, length, vocabulary
        self.words = nn.Embedding(vocabulary, width, padding_idx=0)
        self.places = nn.Parameter(torch.randn(length, width) * 0.02)
        self.blocks = nn.ModuleList(TextBlock(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def tokenise(self, texts: Sequence[str]) -> Tensor:
        """Return the tokens of texts, int64 [B, length]: their words and single signs.

        Longer texts are cut, shorter ones are padded with 0.

        Args:
            texts: B texts.
        """
        out = torch.zeros(len(texts), self.length, dtype=torch.long)
        for row, text in zip(out, texts):
            for i, word in enumerate(re.findall(r'\w+|[^\w\s]', text.lower())[: self.length]):
                row[i] = 1 + int.from_bytes(
                    hashlib.blake2b(word.encode(), digest_size=8).digest(), 'little'
                ) % (self.vocabulary - 1)
        return send(out, self.places.device)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sequence and its mean over the tokens that are not padding.

        Args:
            tokens: [B, N].
        """
        is_token = tokens != 0
        mask = torch.zeros_like(is_token, dtype=self.places.dtype).masked_fill(~is_token, -1e4)[
            :, None, None
        ]
        x = self.words(tokens) + self.places[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x, mask)
        x = self.norm(x) * is_token[..., None]
        return x, x.sum(1) / is_token.sum(1, keepdim=True).clamp(min=1)


class TextBlock(nn.Module):
    """Attention among the words and a feed-forward layer, each after a norm and beside a skip.

    Args:
        width: The features.
        heads: The number of attention heads.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention, self.norm_feed = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return the features, [B, N, D].

        Args:
            x: Features, [B, N, D].
            mask: Added to the attention scores, [B, 1, 1, N].
        """
        q, k, v = (
            split_heads(t, self.heads) for t in self.qkv(self.norm_attention(x)).chunk(3, -1)
        )
        x = x + self.out(join_heads(attend(q, k, v, mask)))
        return x + self.down(F.gelu(self.up(self.norm_feed(x))))
