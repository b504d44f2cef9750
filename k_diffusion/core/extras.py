"""Optional packages: imported where they are used, with an error that names the extra."""

from __future__ import annotations

import importlib
from typing import Any


class MissingExtra(ImportError):
    """A package of an optional extra is not installed."""


def require(module: str, extra: str, purpose: str) -> Any:
    """Import a module of an optional package.

    Args:
        module: Its name.
        extra: The extra of k-diffusion that installs it.
        purpose: The feature that needs it, for the message.

    Raises:
        MissingExtra: If it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        if error.name is None or error.name.split('.')[0] != module.split('.')[0]:
            raise
        raise MissingExtra(
            f'{purpose} needs the package {module.split(".")[0]!r}, which is not installed; '
            f"install it with: pip install 'k-diffusion[{extra}]'"
        ) from None
