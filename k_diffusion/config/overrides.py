"""Single values of a config, set from the shell or from Python."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any


def change_config(
    config: Mapping[str, Any], changes: Sequence[str] | Mapping[str, Any]
) -> dict[str, Any]:
    """Return a copy of a config with other values.

    Args:
        config: The config.
        changes: Texts 'model.channels=[64,128]', with the value as JSON or else as text; or values
            by such keys.

    Raises:
        ValueError: If a change has no key, or its path does not lead to a section.
    """
    result: dict[str, Any] = json.loads(json.dumps(config))
    pairs = changes.items() if isinstance(changes, Mapping) else [_split(text) for text in changes]
    for key, value in pairs:
        *parents, last = key.split('.')
        place: Any = result
        try:
            for name in parents:
                place = place[int(name)] if isinstance(place, list) else place.setdefault(name, {})
        except (AttributeError, IndexError, ValueError):
            place = None
        section = bool(parents) or isinstance(value, (Mapping, list))
        if not section or not isinstance(place, dict):
            raise ValueError(
                f'changes must have keys such as model.channels, or whole sections; got {key!r}'
            )
        place[last] = value
    return result


def _split(text: str) -> tuple[str, Any]:
    key, sign, value = text.partition('=')
    if not sign:
        raise ValueError(
            f"changes must be KEY=VALUE, such as model.channels='[64,128]'; got {text!r}"
        )
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value
