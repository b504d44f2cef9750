"""Exceptions that several packages raise or catch."""

from __future__ import annotations


class Unsaved(OSError):
    """A checkpoint could not be written; the text is a whole sentence."""

    def __str__(self) -> str:
        return str(self.args[-1])


class Gone(Unsaved):
    """The folder of a run is no longer where it was."""


class Stop(Exception):
    """Raised by a hook or a loss, it ends the run as a stop does: saved, and ready to be gone on
    with.
    """


class StopAsked(Exception):
    """A stop was asked while a hook worked, which gives up what it makes."""
