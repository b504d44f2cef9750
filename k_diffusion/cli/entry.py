"""Run `k-diffusion COMMAND`: dispatch to the command, and turn errors into exit statuses."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from .. import __version__
from ..core.names import escape_name
from ..core.registry import nearest
from .streams import output_fault, safe_streams

#: command -> (its file, what it does)
COMMANDS = {
    'demo': ('demo', 'train on the shipped digits for a minute and draw a grid of samples'),
    'train': ('train', 'train a model, or go on with a run that was stopped'),
    'train-autoencoder': ('autoencoder', 'train the first stage of latent diffusion'),
    'distill': ('distill', 'turn a trained model into one of one to four model calls'),
    'sample': ('sample', 'draw images from a trained model'),
    'tune': ('tune', 'tune a model so that its samples are rewarded more'),
    'calibrate': ('calibrate', 'fit a sampler to a model, so that few steps give what many would'),
    'clip': ('clip', 'draw images towards texts and pictures, with a CLIP model'),
    'evaluate': ('evaluate', 'measure how good the samples of a model are'),
    'likelihood': ('likelihood', 'bits per dimension of pictures under a model'),
    'samplers': ('samplers', 'list the samplers and schedules'),
    'grid': ('grid', 'put pictures side by side'),
    'info': ('info', 'say what a model costs: parameters, arithmetic, memory, time'),
    'convert': ('convert', 'turn a training checkpoint into a file for inference'),
    'checkpoints': (
        'checkpoints',
        'list and verify the checkpoints of a run, pin those that are to stay',
    ),
    'ema': ('ema', 'put together averaged weights of any width from the snapshots of a run'),
    'dataset': (
        'dataset',
        'look through a folder of pictures: counts, broken ones, duplicates, a contact sheet, '
        'sigma_data',
    ),
    'config': ('config', 'write the config of an inference file, or list the shipped ones'),
    'completion': ('completion', 'print a script of completions for bash, zsh or fish'),
}


class Parser(argparse.ArgumentParser):
    """Parse arguments; an unknown option is answered with the nearest one."""

    def __init__(self, prog: str, description: str | None, epilog: str) -> None:
        super().__init__(
            prog,
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse `args` into `namespace`; a ParserRequest gets the parser and ends the command."""
        if isinstance(args, ParserRequest):
            args.parser = self
            raise SystemExit
        with safe_streams():
            return super().parse_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Print `message` and the nearest options, and exit with status 2."""
        words = (
            message.removeprefix('unrecognized arguments: ').split()
            if message.startswith('unrecognized')
            else []
        )
        hints = [
            (word, nearest(word.split('=')[0], self._option_string_actions))
            for word in words
            if word.startswith('-')
        ]
        suggestions = [f'{word}: did you mean {near}?' for word, near in hints if near]
        text = '\n'.join(
            escape_name(line)
            for line in [f'{self.prog}: {message}', *(f'  {line}' for line in suggestions)]
        )
        self.exit(2, f'{text}\n  {self.prog} --help lists the options\n')


class ParserRequest(list[str]):
    """A command line that requests the parser of a command: the command makes it and exits."""

    parser: Parser


def parser_of(command: str) -> Parser:
    """Return the parser of a command."""
    request = ParserRequest()
    with contextlib.suppress(SystemExit):
        importlib.import_module(f'.{COMMANDS[command][0]}', __package__).main(request)
    return request.parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run `k-diffusion COMMAND ...`.

    Args:
        argv: The words after `k-diffusion`; None: those of this process.

    Returns:
        The exit status: 0; 1 if the command failed, with one sentence of explanation; 2 for wrong
            usage.
    """
    with safe_streams():
        status = _run_command(list(sys.argv[1:] if argv is None else argv))
        return status or _check_output('k-diffusion')


def _run_command(argv: list[str]) -> int:
    if not argv or argv[0] in ('-h', '--help'):
        print(_help())
        return 0 if argv else 2
    if argv[0] == '--version':
        print(f'k-diffusion {__version__}')
        return 0
    if argv[0] not in COMMANDS:
        near = nearest(argv[0], COMMANDS)
        print(
            f'k-diffusion: no command {argv[0]!r}'
            + (f', did you mean {near!r}?' if near else '')
            + f'; the commands are {", ".join(COMMANDS)}',
            file=sys.stderr,
        )
        return 2
    try:
        command = importlib.import_module(f'.{COMMANDS[argv[0]][0]}', __package__)
        return int(command.main(argv[1:]))
    except KeyboardInterrupt:  # before the command has begun its work
        return 130


def run_guarded(
    prog: str, work: Callable[[], int | None], translate: Callable[[str], str] = str
) -> int:
    """Run the work of a command; an error ends in one sentence and status 1, without a traceback.

    K_DIFFUSION_TRACEBACK=1 in the environment shows the traceback, for a report.

    Args:
        prog: The name of the command.
        work: The work; it returns an exit status.
        translate: Translates the message of an error into names of options.

    Returns:
        The exit status.
    """
    warnings.showwarning = _show_warning
    with safe_streams(), _print_log():
        stream = getattr(sys.stdout, 'stream', None)
        if isinstance(stream, io.TextIOWrapper):  # (stderr does so by itself)
            stream.reconfigure(errors='backslashreplace')
        return _outcome(prog, work, translate) or _check_output(prog)


def _check_output(prog: str) -> int:
    """Return 1 with a message if standard output did not accept everything, else 0."""
    fault = output_fault()
    if fault is not None and not isinstance(fault, BrokenPipeError):
        print(
            f'{prog}: standard output cannot be written to ({fault.strerror}); all else is done',
            file=sys.stderr,
        )
    return 0 if fault is None else 1


def _outcome(prog: str, work: Callable[[], int | None], translate: Callable[[str], str]) -> int:
    try:
        return work() or 0
    except KeyboardInterrupt:
        print(f'\n{prog}: interrupted', file=sys.stderr)
        return 130
    except (
        Exception
    ) as error:  # whatever it is, nobody is helped by a traceback they did not ask for
        if os.environ.get('K_DIFFUSION_TRACEBACK') == '1':
            raise
        print(f'{prog}: {translate(_sentence(error))}', file=sys.stderr)
        return 1


def _sentence(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename:
        return escape_name(f'{error.strerror}: {error.filename2 or error.filename}')
    text = escape_name(' '.join(str(error).split()))
    if isinstance(error, (ValueError, OSError, ImportError)) and text:
        return text
    return (
        f'{type(error).__name__}: {text} (this looks like a fault of the program; '
        'K_DIFFUSION_TRACEBACK=1 shows where)'
    )


class _PrintHandler(logging.Handler):
    """Print the records of a log on the current standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record."""
        print(escape_name(record.getMessage()), file=sys.stderr, flush=True)


@contextlib.contextmanager
def _print_log() -> Iterator[None]:
    """Print the log of the package at level INFO and above inside the context."""
    log, handler = logging.getLogger(__name__.split('.')[0]), _PrintHandler()
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f'note: {escape_name(str(message))}', file=sys.stderr)


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f'  {name:<{width}}  {text}' for name, (_, text) in COMMANDS.items()]
    return '\n'.join(
        [
            'k-diffusion trains, samples and measures diffusion models.',
            '',
            'usage: k-diffusion COMMAND [OPTIONS]',
            '',
            *lines,
            '',
            'k-diffusion COMMAND --help says more; try: k-diffusion demo',
        ]
    )
