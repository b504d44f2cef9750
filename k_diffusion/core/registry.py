"""Names for factories, and a suggestion where a name is not known."""
from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Generic, TypeVar

T = TypeVar('T')


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known name most like the one given, or None where none is near."""
    found = difflib.get_close_matches(name, list(known), 1, cutoff)
    return found[0] if found else None


def unknown(kind: str, name: object, known: Iterable[str]) -> str:
    """One sentence that says a name is unknown, what is known, and what was probably meant."""
    known = sorted(known)
    near = nearest(str(name), known)
    return f'unknown {kind} {name!r}' + (f', did you mean {near!r}?' if near else ';') + f' known: {", ".join(known)}'


class Registry(Mapping[str, T], Generic[T]):
    """A mapping from names to things of one kind; asking for an unknown name raises a ValueError that suggests the nearest."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, *names: str) -> Callable[[T], T]:
        """A decorator that enters a thing under these names."""
        def enter(thing: T) -> T:
            for name in names:
                if name in self._entries:
                    raise ValueError(f'{self.kind} {name!r} is registered already; choose another name')
                self._entries[name] = thing
            return thing
        return enter

    def __getitem__(self, name: str) -> T:
        try:
            return self._entries[name]
        except (KeyError, TypeError):
            raise ValueError(unknown(self.kind, name, self._entries)) from None

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)
