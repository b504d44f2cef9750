"""Code of the user: a function or class in a Python file, which runs only where that is allowed."""

from __future__ import annotations

import importlib.util
import inspect
import os
import uuid
from pathlib import Path
from typing import Any

from .files import digest_of


def load_name(path: str | os.PathLike[str], name: str, allow_code: bool) -> Any:
    """Run a Python file and return what it calls `name`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Running it is not allowed, or it is not a Python file.
        LookupError: It has nothing of that name.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'there is no file {path}; give the path of a .py file')
    if not allow_code:
        raise ValueError(
            f'{path} must not be run unless you trust it; read it, and pass '
            'allow_code=True if you do'
        )
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ValueError(f'{path} is not a Python file; give the path of a .py file')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, name):
        raise LookupError(f'{path} has nothing called {name!r}')
    return getattr(module, name)


def is_reference(value: Any) -> bool:
    """Return True for a text that names a file of Python and something in it, 'FILE.py:NAME'."""
    return isinstance(value, str) and value.rpartition(':')[0].endswith('.py')


def digest_code(value: Any) -> str:
    """Return a digest of the code behind a value, for results that are kept.

    Args:
        value: 'FILE.py:NAME', a function or an object; other texts and None have no code.

    Returns:
        That of the whole file; where none is known, as in a notebook, another one each time.
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
    """Return what 'FILE.py:NAME' names.

    Args:
        text: The reference.
        argument: The name of the argument, for messages.
        allow_code: The file may be run.
    """
    path, _, name = text.rpartition(':')
    if not path or not name.isidentifier():
        raise ValueError(f'{argument} must be FILE.py:NAME; got {text!r}')
    try:
        return load_name(path, name, allow_code)
    except LookupError as error:
        raise ValueError(
            f'{argument} must name a function or class of the file; {error.args[0]}'
        ) from None
