"""Exceptions that several packages raise or catch."""

from __future__ import annotations


class Unsaved(OSError):
    """A checkpoint could not be written; the text is a whole sentence."""

    def __str__(self) -> str:
        return str(self.args[-1])


class FolderMissing(Unsaved):
    """The folder of a run has disappeared."""


class Stop(Exception):
    """Raised by a hook or a loss to end a run after a save, so that it can be resumed."""


class StopAsked(Exception):
    """Raised in a hook when a stop is requested while it works."""
