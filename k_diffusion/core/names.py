"""Names of files and classes are data: they are shown and written escaped."""

from __future__ import annotations

import os


def escape_name(name: str | os.PathLike[str], keep: str = '') -> str:
    r"""Escape every character of a name that does not print: \n, \x1b, \u202e, ...

    Bytes that are not UTF-8 become \xff. Printing characters are unchanged, backslashes included,
    so that an escaped name does not change.

    Args:
        name: A name, or a text that holds names.
        keep: Characters to leave unchanged.
    """
    text = os.fspath(name)
    if text.isprintable():
        return text
    return ''.join(c if c.isprintable() or c in keep else _escape(c) for c in text)


def _escape(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is not UTF-8, as Python keeps it in names
        return f'\\x{code - 0xDC00:02x}'
    return character.encode('unicode_escape').decode('ascii')
