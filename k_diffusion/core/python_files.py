"""Functions and classes in the user's Python files, run only with permission."""

from __future__ import annotations

import importlib.util
import inspect
import os
import uuid
from pathlib import Path
from typing import Any

from .files import digest_of


def load_name(path: str | os.PathLike[str], name: str, allow_code: bool) -> Any:
    """Run a Python file and return its object of a name.

    Args:
        path: The file.
        name: The name.
        allow_code: Permission to run it.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If running it is not permitted, or it is not a Python file.
        LookupError: If it has no such name.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'there is no file {path}; path must be a .py file')
    if not allow_code:
        raise ValueError(
            f'{path} runs only with allow_code=True; read it, and pass that if you trust it'
        )
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ValueError(f'path must be a .py file; got {path}')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, name):
        raise LookupError(f'{path} does not define {name!r}')
    return getattr(module, name)


def is_reference(value: Any) -> bool:
    """Return True for a text of the form 'FILE.py:NAME'.

    Args:
        value: The value.
    """
    return isinstance(value, str) and value.rpartition(':')[0].endswith('.py')


def digest_code(value: Any) -> str:
    """Return a digest of the code behind a value, for cached results.

    Args:
        value: 'FILE.py:NAME', a function or an object; other texts and None have no code.

    Returns:
        The digest of the whole file. Without a file, as in a notebook, a different one each time.
    """
    if is_reference(value):
        return digest_of(value.rpartition(':')[0])
    if value is None or isinstance(value, str):
        return ''
    function = (
        value
        if inspect.isfunction(value)
        else getattr(type(value), 'forward', type(value).__call__)
    )
    code = getattr(inspect.unwrap(function), '__code__', None)
    return (
        digest_of(code.co_filename)
        if code and Path(code.co_filename).is_file()
        else uuid.uuid4().hex
    )


def load_reference(text: str, argument: str, allow_code: bool) -> Any:
    """Return the object named by 'FILE.py:NAME'.

    Args:
        text: The reference.
        argument: The name of the argument, for messages.
        allow_code: Permission to run the file.

    Raises:
        ValueError: If the text is not such a reference, or the name does not exist.
    """
    path, _, name = text.rpartition(':')
    if not path or not name.isidentifier():
        raise ValueError(f'{argument} must be FILE.py:NAME; got {text!r}')
    try:
        return load_name(path, name, allow_code)
    except LookupError as error:
        raise ValueError(
            f'{argument} must name a function or class of the file: {error.args[0]}'
        ) from None
