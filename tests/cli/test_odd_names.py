"""File and class names with escape codes, newlines and bytes that are not UTF-8, through the
commands.
"""

from __future__ import annotations

import json
import os
import tarfile

import pytest
import torch
from PIL import Image

from k_diffusion.cli.entry import main
from k_diffusion.data import ImageFolderConfig, open_dataset

ODD = [b'\xff.png', b'a\x1b[31m.png', b'new\nline.png', b'\xe2\x80\xaegnp.png']
ESCAPED_NAMES = [r'\xff.png', r'a\x1b[31m.png', r'new\nline.png', r'\u202egnp.png']


@pytest.fixture
def pictures(tmp_path):
    """A folder of two classes of odd names, each with 8 good pictures and as many broken as
    there are odd names.
    """
    root = tmp_path / 'pictures'
    for folder in (b'a\x1b]0;title\x07', b'b\xfe\n'):
        os.makedirs(os.fsencode(root) + b'/' + folder)
        for i in range(8):
            Image.new('L', (16, 16), 20 * i).save(
                os.fsencode(root) + b'/' + folder + b'/%d.png' % i, 'PNG'
            )
        for name in ODD:
            with open(os.fsencode(root) + b'/' + folder + b'/' + name, 'wb') as file:
                file.write(b'broken')
    return root


def check_text(text):
    """Nothing in a text but what prints, and line ends (and what the progress of a terminal is
    made of).
    """
    assert text.replace('\n', '').isprintable(), text
    return text


def test_training_names_broken_pictures_and_goes_on(pictures, tiny, tmp_path, capsys):
    config = tiny(
        ('dataset', 'type', 'imagefolder'),
        ('dataset', 'location', str(pictures)),
        ('dataset', 'labels', 'folders'),
        ('dataset', 'num_classes', 2),
    )
    for steps in ('1', '2'):
        assert (
            main(
                [
                    'train',
                    '--config',
                    config,
                    '--run-dir',
                    str(tmp_path / 'run'),
                    '--name',
                    'tiny',
                    '--demo-every',
                    '0',
                    '--evaluate-n',
                    '0',
                    '--device',
                    'cpu',
                    '--end-step',
                    steps,
                ]
            )
            == 0
        )
        text = check_text(capsys.readouterr().err)
        assert r'0 a\x1b]0;title\x07, 1 b\xfe\n' in text and all(
            name in text for name in ESCAPED_NAMES
        )
    text = check_text((tmp_path / 'run' / 'tiny_skipped.txt').read_text('utf-8'))
    assert len(text.splitlines()) == 8 and all(name in text for name in ESCAPED_NAMES)


@pytest.mark.parametrize('kind', ['folder', 'tar'])
def test_the_look_at_a_data_set(pictures, kind, tmp_path, capsys):
    place = pictures
    if kind == 'tar':
        place = tmp_path / 'x.tar'
        with tarfile.open(place, 'w') as file:
            file.add(pictures, '.')
    assert main(['dataset', str(place), '--size', '8', '--broken', str(tmp_path / 'list.txt')]) == 0
    text = check_text(capsys.readouterr().out)
    assert r'a\x1b]0;title\x07 8' in text and all(name in text for name in ESCAPED_NAMES)
    assert len(check_text((tmp_path / 'list.txt').read_text('utf-8')).splitlines()) == 8
    assert main(['dataset', str(place), '--size', '8', '--json']) == 0
    result = json.loads(capsys.readouterr().out)
    assert result['readable'] == 16 and len(result['broken']) == 8
    dataset = open_dataset(
        ImageFolderConfig(location=str(place), labels='folders', num_classes=2), (8, 8)
    )
    assert dataset.class_names == [r'a\x1b]0;title\x07', r'b\xfe\n'] and torch.equal(
        dataset.labels, torch.arange(2).repeat_interleave(8)
    )


def test_a_place_of_an_odd_name_that_is_not_there(tmp_path, capsys):
    assert main(['dataset', str(tmp_path / 'no\x1b[31m\udcff')]) == 1
    assert r'no\x1b[31m\xff' in check_text(capsys.readouterr().err)


def test_names_of_runs_and_checkpoints_and_wrong_options_are_shown_escaped(tiny, tmp_path, capsys):
    odd = 'a\x1b[31m\n\udcff'
    folder = str(tmp_path / f'run {odd}')
    assert (
        main(
            [
                'train',
                '--config',
                tiny(),
                '--run-dir',
                folder,
                '--name',
                odd,
                '--demo-every',
                '0',
                '--evaluate-n',
                '0',
                '--device',
                'cpu',
                '--end-step',
                '1',
            ]
        )
        == 0
    )
    lines = check_text(capsys.readouterr().err).splitlines()
    escaped_name = r'a\x1b[31m\n\xff'
    assert any(
        line.startswith(f'{escaped_name} done at step 1: ')
        and line.endswith(f'{escaped_name}_00000001.pth')
        for line in lines
    )
    with pytest.raises(SystemExit):
        main(['info', odd, odd])
    assert escaped_name in check_text(capsys.readouterr().err)
    output_file = tmp_path / f'{odd}.json'
    assert (
        main(['config', os.path.join(folder, f'{odd}_00000001.pth'), '--out', str(output_file)])
        == 0
    )
    assert output_file.is_file() and escaped_name in check_text(capsys.readouterr().out)
