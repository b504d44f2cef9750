"""Packages that are not always there: imported where they are used, with an error that names the
extra to install.
"""

from __future__ import annotations

import importlib
from typing import Any


class MissingExtra(ImportError):
    """A package of an optional extra is needed and absent."""


def require(module: str, extra: str, purpose: str) -> Any:
    """The module, or an error that says what needs it and how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        if error.name is None or error.name.split('.')[0] != module.split('.')[0]:
            raise
        raise MissingExtra(
            f'{purpose} needs the package {module.split(".")[0]!r}, which is not installed; '
            f"install it with: pip install 'k-diffusion[{extra}]'"
        ) from None
