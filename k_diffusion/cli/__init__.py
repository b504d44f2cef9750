"""The command line: one file per command, with a main(argv) that calls the task of its name."""

from .entry import main

__all__ = ['main']
