"""Names are shown escaped, and escaping twice is escaping once."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from k_diffusion.core.names import escape_name


@pytest.mark.parametrize(
    ('name', 'escaped'),
    [
        ('plain name.png', 'plain name.png'),
        ('größe 図.png', 'größe 図.png'),
        ('back\\slash', 'back\\slash'),
        ('a\x1b[31mb', r'a\x1b[31mb'),
        ('a\nb\r\tc', r'a\nb\r\tc'),
        ('\udcff.png', r'\xff.png'),
        ('\ud800', r'\ud800'),
        ('exe\u202egnp.', r'exe\u202egnp.'),
        ('\x00\x7f\x9b', r'\x00\x7f\x9b'),
        (Path('a/b'), 'a/b'),
        ('\U000e0001', r'\U000e0001'),
    ],
)
def test_names_as_they_are_shown(name, escaped):
    assert escape_name(name) == escaped


@given(st.text(st.characters(exclude_categories=[])))
def test_what_is_escaped_can_be_written_on_one_line_and_stays(name):
    escaped = escape_name(name)
    assert escaped.isprintable() and escaped.encode('utf-8').decode() == escaped == escape_name(
        escaped
    )


def test_what_is_to_stay_stays():
    assert escape_name('a\nb\x1b', keep='\n') == 'a\nb\\x1b'
