"""k-diffusion completion: print a shell script that completes commands, flags and choices."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Iterator, Sequence
from shlex import quote

from .entry import COMMANDS, Parser, parser_of, run_guarded

_EXAMPLE = """examples:
    eval "$(k-diffusion completion bash)"           for this session; in zsh with zsh
    k-diffusion completion fish | source
  To keep it, write the script to a file that the shell reads at start."""

_BASH = """_k_diffusion() {
    local word=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD-1]}
    local verb=${COMP_WORDS[1]} found=
    (( COMP_CWORD == 1 )) && verb=
%s
    COMPREPLY=($(compgen -W "$found" -- "$word"))
}
complete -o default -F _k_diffusion k-diffusion"""

_ZSH = """_k_diffusion() {
    local word=$words[CURRENT] previous=$words[CURRENT-1] verb=$words[2] found=
    (( CURRENT == 2 )) && verb=
%s
    if [[ -n $found ]]; then compadd -- ${=found}; else _files; fi
}
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit; }
compdef _k_diffusion k-diffusion"""


def _cases(parsers: dict[str, Parser]) -> Iterator[str]:
    """Yield the case block of bash and zsh: choices of a flag, else positional ones or flags."""
    yield '    case "$verb $previous" in'
    yield f'    " "*) found={quote(" ".join([*COMMANDS, "--help", "--version"]))};;'
    for command, parser in parsers.items():
        flags = {name: action for action in parser._actions for name in action.option_strings}
        for name, action in flags.items():
            if action.choices:
                yield f'    "{command} {name}") found={_choices(action)};;'
        places = next((a for a in parser._actions if a.choices and not a.option_strings), None)
        yield (
            f'    "{command} "*) found={_choices(places) if places else ""}; '
            f'[[ $word == -* ]] && found={quote(" ".join(flags))};;'
        )
    yield '    esac'


def _fish(parsers: dict[str, Parser]) -> Iterator[str]:
    first = 'complete -c k-diffusion -n __fish_use_subcommand'
    yield from (f'{first} -x -a {name} -d {quote(text)}' for name, (_, text) in COMMANDS.items())
    yield f'{first} -l help\n{first} -l version'
    for command, parser in parsers.items():
        for action in parser._actions:
            names = [
                f'{"-l" if name[1] == "-" else "-s" if len(name) == 2 else "-o"} {name.lstrip("-")}'
                for name in action.option_strings
            ]
            value = '' if action.nargs == 0 else '-r'
            value = f'-x -a {_choices(action)}' if action.choices else value
            words = textwrap.shorten(parser._get_formatter()._expand_help(action), 80)
            if names or action.choices:
                yield (
                    f"complete -c k-diffusion -n '__fish_seen_subcommand_from {command}' "
                    f'{" ".join(names)} {value} -d {quote(words)}'
                )


def _choices(action: argparse.Action) -> str:
    return quote(' '.join(map(str, action.choices or ())))


def main(argv: Sequence[str] | None = None, prog: str = 'k-diffusion completion') -> int:
    """Run the command.

    Args:
        argv: The arguments; sys.argv by default.
        prog: The name of the program in messages.
    """
    parser = Parser(prog=prog, description=__doc__, epilog=_EXAMPLE)
    parser.add_argument('shell', choices=('bash', 'zsh', 'fish'), help='the shell')
    shell = parser.parse_args(argv).shell

    def work() -> None:
        parsers = {command: parser_of(command) for command in COMMANDS}
        lines = '\n'.join((_fish if shell == 'fish' else _cases)(parsers))
        print(lines if shell == 'fish' else (_BASH if shell == 'bash' else _ZSH) % lines)

    return run_guarded(prog, work)
