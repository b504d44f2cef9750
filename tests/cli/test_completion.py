"""The scripts of `k-diffusion completion`, asked by the shells themselves."""

import shutil
import subprocess

import pytest

from k_diffusion.cli import entry

#: What has each shell complete the words of a command line; $1 is the script.
ASK = {
    'bash': """source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _k_diffusion
               printf '%s\\n' "${COMPREPLY[@]}"; complete -p k-diffusion >&2""",
    'zsh': """source "$1"; shift; words=("$@"); CURRENT=$#; _files() { print files; }
              compadd() { shift; print -l -- ${(M)@:#$words[CURRENT]*}; }; _k_diffusion
              print $_comps[k-diffusion] >&2""",
    'fish': """set words $argv[2..-1]; source $argv[1]
               complete -C (string join ' ' -- $words) | string replace -r '\\t.*' ""; true""",
}


@pytest.fixture(params=ASK)
def completed(request, tmp_path, capsys):
    """completed(*words): what a shell proposes for the last word."""
    shell = request.param
    if shutil.which(shell) is None:
        pytest.skip(f'{shell} is not installed')
    assert entry.main(['completion', shell]) == 0
    script = tmp_path / f'script.{shell}'
    script.write_text(capsys.readouterr().out)
    first = [] if shell == 'fish' else ['-']
    options = {'bash': ['--norc', '-c'], 'zsh': ['-f', '-c'], 'fish': ['--no-config', '-c']}[shell]

    def complete(*words):
        run = subprocess.run(
            [shell, *options, ASK[shell], *first, str(script), *words],
            text=True,
            cwd=tmp_path,
            capture_output=True,
            env={'HOME': str(tmp_path), 'PATH': '/usr/bin:/bin'},
            timeout=60,
        )
        assert run.returncode == 0, run.stderr
        if shell != 'fish':
            assert '_k_diffusion' in run.stderr, 'the function is bound to the command'
        return set(run.stdout.split())

    complete.shell = shell
    return complete


def test_shells_complete_commands_flags_and_choices(completed):
    assert completed('k-diffusion', 'che') == {'checkpoints'}
    assert completed('k-diffusion', '') >= {'demo', 'train', 'sample', 'config', 'completion'}
    assert completed('k-diffusion', 'convert', '--dt') == {'--dtype'}
    assert completed('k-diffusion', 'convert', '--dtype', '') == {'fp32', 'fp16', 'bf16'}
    assert completed('k-diffusion', 'train', '--mixed-precision', 'f') == {'fp16'}
    assert completed('k-diffusion', 'completion', '') >= {'bash', 'zsh', 'fish'}
    assert completed('k-diffusion', 'train', '--mix') == {'--mixed-precision'}
    assert '--batch-size' not in completed('k-diffusion', 'grid', '--')


def test_files_are_completed_where_nothing_else_is_known(completed, tmp_path):
    (tmp_path / 'weights.pth').touch()
    # bash proposes files by itself where the script has nothing; 'files' stands for _files.
    expected = {'bash': set(), 'zsh': {'files'}, 'fish': {'weights.pth'}}
    assert completed('k-diffusion', 'convert', 'wei') == expected[completed.shell]


def test_a_parser_is_made_without_running_its_command():
    for command in entry.COMMANDS:
        assert entry.parser_of(command).prog == f'k-diffusion {command}'
