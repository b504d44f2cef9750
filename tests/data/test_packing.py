"""A folder written as shards: what goes in, and that the same goes in again."""

from __future__ import annotations

import json
import tarfile

import pytest
import torch

import k_diffusion as K
from k_diffusion.cli.dataset import main
from k_diffusion.data import ShardsConfig, open_dataset, pack_shards


@pytest.fixture
def folder(tmp_path, write_pictures):
    """Twelve pictures in the folders a and b, some with captions; returns the folder and {name:
    picture}.
    """
    images = {}
    for name, n, seed in (('a', 7, 1), ('b', 5, 2)):
        for i, image in enumerate(write_pictures(tmp_path / 'in' / name, n, seed=seed)):
            images[f'{name}/{i:04}'] = image
    (tmp_path / 'in' / 'a' / '0003.txt').write_text('three\n')
    (tmp_path / 'in' / 'b' / '0000.json').write_text('{"k": 1}')
    (tmp_path / 'in' / 'Thumbs.db').write_text('x')
    return tmp_path / 'in', images


def contents(out):
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())}


def test_what_is_packed_is_read(folder, tmp_path):
    place, images = folder
    result = pack_shards(place, tmp_path / 'out', by_folder=True, samples=5)
    assert (result.shards, result.samples, result.class_names, result.skipped) == (
        3,
        12,
        ['a', 'b'],
        [],
    )
    index = json.loads((tmp_path / 'out' / 'index.json').read_text())
    assert [(entry['url'], entry['nsamples']) for entry in index['shardlist']] == [
        ('000000.tar', 5),
        ('000001.tar', 5),
        ('000002.tar', 2),
    ]
    dataset = open_dataset(ShardsConfig(location=str(tmp_path / 'out'), num_classes=2), (12, 12))
    assert dataset.class_names == ['a', 'b'] and len(dataset) == 12
    items = {dataset.name(i).rpartition(': ')[2]: dataset[i] for i in range(12)}
    assert items.keys() == images.keys()
    for name, item in items.items():
        assert torch.equal(item['image'], images[name]) and item['class_cond'] == 'ab'.index(
            name[0]
        )
        assert item['text'] == ('three' if name == 'a/0003' else '')
    assert [dataset.name(i)[-6:] for i in range(12)] != sorted(
        name[-6:] for name in images
    )  # (mixed)


def test_the_same_bytes_again_and_others_by_another_seed(folder, tmp_path):
    place, _ = folder
    for out, settings in (('a', {}), ('b', {}), ('c', {'seed': 1}), ('d', {'shuffle': False})):
        pack_shards(place, tmp_path / out, samples=5, **settings)
    a, b, c, d = (contents(tmp_path / out) for out in 'abcd')
    assert a == b and a != c and a != d
    with tarfile.open(tmp_path / 'd' / '000000.tar') as archive:
        heads = archive.getmembers()
    assert [head.name for head in heads] == [f'a/{i:04}.png' for i in range(4)] + [
        'a/0003.txt',
        'a/0004.png',
    ]
    assert {(head.mtime, head.uid, head.uname, head.mode) for head in heads} == {(0, 0, '', 0o644)}


def test_names_with_dots_and_of_two_kinds_stay_apart(tmp_path, write_pictures):
    images = write_pictures(tmp_path / 'in', 3)
    (tmp_path / 'in' / '0000.png').rename(tmp_path / 'in' / 'a.b.PNG')
    (tmp_path / 'in' / '0001.png').rename(tmp_path / 'in' / 'a_b.png')
    (tmp_path / 'in' / '0002.png').rename(
        tmp_path / 'in' / 'a.b.jpg'
    )  # (a picture's ending need not be right)
    assert pack_shards(tmp_path / 'in', tmp_path / 'out', shuffle=False).samples == 3
    dataset = open_dataset(ShardsConfig(location=str(tmp_path / 'out')), (12, 12))
    assert [dataset.name(i).rpartition(': ')[2] for i in range(3)] == ['a_b', 'a_b_2', 'a_b_3']
    assert all(any(torch.equal(dataset[i]['image'], image) for image in images) for i in range(3))


def test_shards_have_about_the_size_asked_for(folder, tmp_path):
    result = pack_shards(folder[0], tmp_path / 'out', size=4096)
    sizes = [path.stat().st_size for path in sorted((tmp_path / 'out').glob('*.tar'))]
    assert result.shards == len(sizes) > 3 and sum(sizes) == result.bytes


def test_what_cannot_be_packed(folder, tmp_path, monkeypatch):
    place, _ = folder
    monkeypatch.setattr('k_diffusion.data.shards.writing.MEMBER_LIMIT', 10)
    with pytest.raises(FileNotFoundError, match='no folder'):
        pack_shards(tmp_path / 'none', tmp_path / 'out')
    result = pack_shards(place, tmp_path / 'out')
    assert (
        result.samples == 0
        and len(result.skipped) == 12
        and 'more than 10 bytes' in result.skipped[0][1]
    )
    with pytest.raises(FileExistsError, match=r'which has an index\.json'):
        pack_shards(place, tmp_path / 'out')
    (tmp_path / 'empty').mkdir()
    with pytest.raises(ValueError, match='place must be a folder with images'):
        pack_shards(tmp_path / 'empty', tmp_path / 'out2')


def test_the_command_and_the_call(folder, tmp_path, capsys):
    place, _ = folder
    assert (
        main(
            [
                'pack',
                str(place),
                '-o',
                str(tmp_path / 'out'),
                '--classes',
                'folders',
                '--samples',
                '5',
            ]
        )
        == 0
    )
    said = capsys.readouterr().out
    assert (
        '12 samples in 3 shards' in said
        and '"type": "shards"' in said
        and '"num_classes": 2' in said
    )
    K.pack_dataset(place, tmp_path / 'again', classes='folders', samples=5)
    assert contents(tmp_path / 'out') == contents(tmp_path / 'again')
    assert main(['pack', str(place), '-o', str(tmp_path / 'out')]) == 1
    assert (
        'k-diffusion dataset pack: --out must be a folder without shards' in capsys.readouterr().err
    )
    assert main(['pack', str(place), '-o', str(tmp_path / 'x'), '--samples', '0']) == 1
    assert '--samples must be at least 1; got 0' in capsys.readouterr().err
    assert main(['pack', str(place), '-o', str(tmp_path / 'json'), '--json']) == 0
    assert json.loads(capsys.readouterr().out)['samples'] == 12
