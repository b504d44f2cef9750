"""k-diffusion completion: prints a script that completes commands, flags and choices in a shell."""
from __future__ import annotations

import argparse
import textwrap
from collections.abc import Iterator, Sequence
from shlex import quote

from .entry import COMMANDS, Parser, guarded, parser_of

_EXAMPLE = '''examples:
  eval "$(k-diffusion completion bash)"           for this session, in zsh with zsh
  k-diffusion completion fish | source
  k-diffusion completion bash > ~/.local/share/bash-completion/completions/k-diffusion

In zsh and fish, likewise write the script to a file and source that file when the shell starts.'''

_BASH = '''_k_diffusion() {
    local word=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD-1]}
    local verb=${COMP_WORDS[1]} found=
    (( COMP_CWORD == 1 )) && verb=
%s
    COMPREPLY=($(compgen -W "$found" -- "$word"))
}
complete -o default -F _k_diffusion k-diffusion'''

_ZSH = '''_k_diffusion() {
    local word=$words[CURRENT] previous=$words[CURRENT-1] verb=$words[2] found=
    (( CURRENT == 2 )) && verb=
%s
    if [[ -n $found ]]; then compadd -- ${=found}; else _files; fi
}
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit; }
compdef _k_diffusion k-diffusion'''


def _cases(parsers: dict[str, Parser]) -> str:
    """Return the case block of bash and zsh: choices of a flag, else positional ones or flags."""
    first = quote(' '.join([*COMMANDS, '--help', '--version']))
    rows = ['    case "$verb $previous" in', f'    " "*) found={first};;']
    for command, parser in parsers.items():
        flags = {name: action for action in parser._actions for name in action.option_strings}
        rows += [f'    "{command} {name}") found={quote(_choices(action))};;'
                 for name, action in flags.items() if action.choices]
        places = quote(' '.join(_choices(a) for a in parser._actions if not a.option_strings))
        rows.append(f'    "{command} "*) found={places}; '
                    f'[[ $word == -* ]] && found={quote(" ".join(flags))};;')
    return '\n'.join([*rows, '    esac'])


def _choices(action: argparse.Action) -> str:
    return ' '.join(map(str, action.choices or ()))


def _fish(parsers: dict[str, Parser]) -> Iterator[str]:
    for command, (_, text) in COMMANDS.items():
        yield (f'complete -c k-diffusion -n __fish_use_subcommand -x -a {command} '
               f'-d {_quote_fish(text)}')
    for name in ('help', 'version'):
        yield f'complete -c k-diffusion -n __fish_use_subcommand -l {name}'
    for command, parser in parsers.items():
        head = f"complete -c k-diffusion -n '__fish_seen_subcommand_from {command}'"
        for action in parser._actions:
            names = ' '.join(map(_fish_name, action.option_strings))
            value = '-r' if names and action.nargs != 0 else ''
            value = f'-x -a {quote(_choices(action))}' if action.choices else value
            if names or action.choices:
                words = textwrap.shorten(parser._get_formatter()._expand_help(action), 80)
                yield ' '.join(filter(None, (head, names, value, '-d', _quote_fish(words))))


def _fish_name(flag: str) -> str:
    kind = '-l' if flag.startswith('--') else '-s' if len(flag) == 2 else '-o'
    return f'{kind} {flag.lstrip("-")}'


def _quote_fish(text: str) -> str:
    return "'" + text.replace('\\', '\\\\').replace("'", "\\'") + "'"


def main(argv: Sequence[str] | None = None, prog: str = 'k-diffusion completion') -> int:
    """Run the command."""
    parser = Parser(prog=prog, description=__doc__, epilog=_EXAMPLE)
    parser.add_argument('shell', choices=('bash', 'zsh', 'fish'), help='the shell')
    shell = parser.parse_args(argv).shell

    def work() -> None:
        parsers = {command: parser_of(command) for command in COMMANDS}
        if shell == 'fish':
            print('\n'.join(_fish(parsers)))
        else:
            print((_BASH if shell == 'bash' else _ZSH) % _cases(parsers))
    return guarded(prog, work)
