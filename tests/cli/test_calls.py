"""Every command is a call of the package, and shows its help without torch."""

import dataclasses
import inspect
import subprocess
import sys

import pytest

import k_diffusion as K
from k_diffusion.cli.entry import COMMANDS

#: Commands whose call has another name; None: there is none (the call is of another kind).
OTHERWISE = {
    'config': 'extract_config',
    'dataset': 'inspect_dataset',
    'train-autoencoder': 'train_autoencoder',
    'sample': None,  # K.sample takes a denoiser
    'samplers': None,  # K.sampling.catalogue
    'completion': None,
}
#: Those whose settings are still declared beside the function.
WITHOUT_SETTINGS = {'train', 'calibrate', 'clip', 'evaluate', 'likelihood'}
CALLS = {command: name for command in COMMANDS if (name := OTHERWISE.get(command, command))}


@pytest.mark.parametrize('command', CALLS)
def test_every_command_is_a_call(command):
    call = getattr(K, CALLS[command])
    assert callable(call) and CALLS[command] in dir(K)
    if command not in WITHOUT_SETTINGS:
        kind = call.settings
        fields = [field.name for field in dataclasses.fields(kind)]
        assert list(inspect.signature(call).parameters) == fields
        assert kind.__name__.endswith('Settings') and kind.__dataclass_params__.frozen
        with pytest.raises(TypeError, match='has no argument'):
            call(no_such_argument=1)


@pytest.mark.parametrize('words', [['--help'], ['--version'], ['smaple']])
def test_help_and_version_need_no_torch(words):
    script = (
        'import sys\nfrom k_diffusion.cli import main\n'
        'main(sys.argv[1:])\nassert "torch" not in sys.modules, "torch"'
    )
    run = subprocess.run([sys.executable, '-c', script, *words], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert 'k-diffusion' in run.stdout + run.stderr
