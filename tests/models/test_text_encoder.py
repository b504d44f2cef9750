"""The tiny text encoder: the same words everywhere, and padding that changes nothing."""

import pytest
import torch

from k_diffusion.models import TextEncoder


def test_words_are_told_apart_and_padding_is_not_seen():
    short, long = (TextEncoder(32, 2, 4, length) for length in (8, 12))
    long.load_state_dict(
        {**short.state_dict(), 'places': torch.cat([short.places, torch.randn(4, 32)])}
    )
    texts = ['a red apple', 'A red, apple!', 'an apple', '']
    tokens = short.tokenise(texts)
    assert (
        tokens.shape == (4, 8)
        and (tokens != 0).sum(1).tolist() == [3, 5, 2, 0]
        and tokens[0, 2] == tokens[2, 1]
    )
    (sequence, mean), (longer, longer_mean) = short(tokens), long(long.tokenise(texts))
    torch.testing.assert_close(longer[:, :8], sequence, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(longer_mean, mean, atol=1e-5, rtol=1e-4)
    assert (
        (longer[:, 8:] == 0).all()
        and mean.isfinite().all()
        and not torch.allclose(mean[0], mean[2])
    )
    torch.testing.assert_close(mean[0], sequence[0, :3].mean(0))


def test_the_order_of_words_counts():
    encoder = TextEncoder()
    one, other = encoder(encoder.tokenise(['dog bites man', 'man bites dog']))[1]
    assert not torch.allclose(one, other)


def test_a_width_that_heads_cannot_share():
    with pytest.raises(ValueError, match='multiple of heads'):
        TextEncoder(width=30, heads=4)
