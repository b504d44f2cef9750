"""Code of the user: a function or class in a Python file, which runs only where that is allowed."""
from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any


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
        raise ValueError(f'{path} must not be run unless you trust it; read it, and pass '
                         'allow_code=True if you do')
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ValueError(f'{path} is not a Python file; give the path of a .py file')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, name):
        raise LookupError(f'{path} has nothing called {name!r}')
    return getattr(module, name)


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
        raise ValueError(f'{argument} must name a function or class of the file; {error.args[0]}') from None
