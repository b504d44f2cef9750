"""Registries of named objects, with suggestions for unknown names."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Generic, TypeVar

T = TypeVar('T')


def nearest(name: str, names: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Return the known name most similar to a name; None if none is similar.

    Args:
        name: The name.
        names: The known names.
        cutoff: Least similarity, in [0, 1].
    """
    matches = difflib.get_close_matches(name, list(names), 1, cutoff)
    return matches[0] if matches else None


#: Largest number of names in a message; of more names it lists a few that are similar.
MOST_NAMES, FEW_NAMES = 40, 12


def unknown(kind: str, name: object, names: Iterable[str]) -> str:
    """Return the message for an unknown name, with the known names and a suggestion.

    Args:
        kind: The kind of thing.
        name: The unknown name.
        names: The known names.
    """
    names = sorted(names)
    near = nearest(str(name), names)
    shortlist, more = names, ''
    if len(names) > MOST_NAMES:
        shortlist = sorted(difflib.get_close_matches(str(name), names, FEW_NAMES, cutoff=0.0))
        more = f' and {len(names) - len(shortlist)} more'
    return (
        f'unknown {kind} {name!r}'
        + (f', did you mean {near!r}?' if near else ';')
        + f' known: {", ".join(shortlist)}{more}'
    )


def _origin(thing: object) -> object:
    """Return where a function, a class or an entry is defined, or the object itself."""
    function = getattr(thing, 'function', thing)
    name = getattr(function, '__qualname__', None)
    return thing if name is None else (getattr(function, '__module__', None), name)


class Registry(Mapping[str, T], Generic[T]):
    """A mapping from names to objects of one kind, with a suggestion for an unknown name.

    An unknown name raises a ValueError.

    Args:
        kind: The kind of object, for messages.
        aliases: Names by other names; they are found, but not listed.
        plain: Converts a name that is not found into the form of names and aliases.
    """

    def __init__(
        self,
        kind: str,
        aliases: Mapping[str, str] | None = None,
        plain: Callable[[str], str] | None = None,
    ) -> None:
        self.kind = kind
        self.aliases = dict(aliases or {})
        self._plain = plain
        self._entries: dict[str, T] = {}

    def register(self, *names: str) -> Callable[[T], T]:
        """Return a decorator that registers an object under these names.

        A definition that is run again, in a notebook or a file, replaces the one before.

        Args:
            *names: The names.
        """

        def enter(thing: T) -> T:
            for name in names:
                if name in self._entries and _origin(self._entries[name]) != _origin(thing):
                    raise ValueError(
                        f'{self.kind} {name!r} is registered already; choose another name'
                    )
                self._entries[name] = thing
            return thing

        return enter

    def find_name(self, name: object) -> str | None:
        """Return the listed name for a name or an alias, or None.

        Args:
            name: The name.
        """
        if not isinstance(name, str):
            return None
        plain = name if self._plain is None else self._plain(name)
        for candidate in (name, plain, self.aliases.get(plain)):
            if candidate in self._entries:
                return candidate
        return None

    def __getitem__(self, name: str) -> T:
        key = self.find_name(name)
        if key is None:
            raise ValueError(unknown(self.kind, name, self._entries))
        return self._entries[key]

    def __contains__(self, name: object) -> bool:
        return self.find_name(name) is not None

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)
