"""The command line: one file per command, each a main(argv) beside the one Python call that does
the work.
"""

from .entry import main

__all__ = ['main']
