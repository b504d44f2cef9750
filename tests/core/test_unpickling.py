"""Files that attack their reader: none runs code, changes the process, or takes more memory or
time than its size allows.
"""

from __future__ import annotations

import collections
import copyreg
import json
import os
import pickle
import struct
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from k_diffusion.core import weights
from k_diffusion.core.pickles import Record, read_pickle, tensors_of
from k_diffusion.core.weights import load_checkpoint
from k_diffusion.data.cifar import read_arrays
from k_diffusion.external import load_published

ROOT = Path(__file__).parents[2]


def text(value):
    return b'X' + struct.pack('<I', len(value)) + value.encode()


def name(module, attribute):
    return f'c{module}\n{attribute}\n'.encode()


def whole(number):
    return b'\x8a\x09' + number.to_bytes(9, 'little', signed=True)


def dict_of(item):
    """A pickle of {"w": item}."""
    return b'\x80\x02}' + text('w') + item + b's.'


STORAGE = (
    b'(' + text('storage') + name('torch', 'FloatStorage') + text('0') + text('cpu') + b'K\x04tQ'
)


def tensor(offset=b'K\x00', size=b'K\x04\x85', stride=b'K\x01\x85', storage=STORAGE):
    return (
        name('torch._utils', '_rebuild_tensor_v2')
        + b'('
        + storage
        + offset
        + size
        + stride
        + b'\x89'
        + name('collections', 'OrderedDict')
        + b')RtR'
    )


def write_zip(path, pickled, data=b'\0\0\x80?' * 4, method=zipfile.ZIP_STORED, more=()):
    with zipfile.ZipFile(path, 'w', method) as archive:
        for key, value in {
            'a/data.pkl': pickled,
            'a/data/0': data,
            'a/version': b'3\n',
            **dict(more),
        }.items():
            archive.writestr(key, value)
    return path


@pytest.fixture
def path(tmp_path):
    return tmp_path / 'x.pt'


def test_the_zip_of_these_tests_is_read(path):
    write_zip(path, dict_of(tensor()))
    expected = torch.load(path, weights_only=True)['w']
    assert expected.tolist() == [1, 1, 1, 1]
    assert torch.equal(load_checkpoint(path)['w'], expected) and torch.equal(
        read_pickle(path)['w'], expected
    )


# Nothing is run


class Script(nn.Module):
    def forward(self, x):
        return x + 1


@pytest.mark.filterwarnings('ignore:.*torch.jit.*:DeprecationWarning')
def test_torchscript_is_refused_by_name(path, monkeypatch):
    torch.jit.save(torch.jit.script(Script()), str(path))
    monkeypatch.setattr(torch.jit, 'load', lambda *a, **k: pytest.fail('torch.jit.load was called'))
    for reader in (load_published, read_pickle, load_checkpoint):
        with pytest.raises(ValueError, match='TorchScript archive, which is a program'):
            reader(path)


def test_an_archive_between_torchscript_and_weights_is_refused(path):
    """torch takes a zip with constants.pkl for TorchScript, whatever else it holds."""
    write_zip(
        path,
        dict_of(tensor()),
        more={'a/constants.pkl': b'\x80\x02).', 'a/code/__torch__.py': b'1'},
    )
    with pytest.raises(ValueError, match='TorchScript'):
        load_published(path)


DEFAULTS = b'}' + text('__defaults__') + b'NN\x86s'  # {"__defaults__": (None, None)}


@pytest.mark.parametrize(
    'program',
    [
        name('torch._utils', '_rebuild_tensor_v2') + b'N' + DEFAULTS + b'\x86b',
        name('torch._utils', '_rebuild_tensor_v2') + DEFAULTS + b'b',
        name('collections', 'OrderedDict') + b'N}' + text('__init__') + b'Ns\x86b',
        name('collections', 'OrderedDict') + b')RN}' + text('update') + b'Ns\x86b',
        name('torch', 'Size') + b')RN' + DEFAULTS + b'\x86b',
        name('torch', 'float32') + b'N' + DEFAULTS + b'\x86b',
        name('torch', 'FloatStorage') + b'N' + DEFAULTS + b'\x86b',
        b'(' + b'K\x01tN' + DEFAULTS + b'\x86b',
        b'\x8f' + DEFAULTS + b'b',
        b']' + DEFAULTS + b'b',
    ],
    ids=[
        'slots of a function',
        'state of a function',
        'slots of a class',
        'slots of an object',
        'shape',
        'dtype',
        'type',
        'tuple',
        'set',
        'list',
    ],
)
def test_no_state_is_given_to_what_is_not_ours(path, program):
    functions = torch._utils._rebuild_tensor_v2, torch._utils._rebuild_parameter
    before = [(f.__defaults__, f.__kwdefaults__, vars(f).copy()) for f in functions]
    init = collections.OrderedDict.__init__
    for content in (
        b'\x80\x02' + program + b'.',
        b'\x80\x02' + program.replace(b'b', b'b', 1) + b'0N.',
    ):
        path.write_bytes(content)
        for reader in (read_pickle, load_checkpoint):
            with pytest.raises(ValueError, match='cannot be read safely|damaged'):
                reader(path)
    assert collections.OrderedDict.__init__ is init
    assert before == [
        (f.__defaults__, f.__kwdefaults__, vars(f).copy())
        for f in (torch._utils._rebuild_tensor_v2, torch._utils._rebuild_parameter)
    ]


def test_the_loads_after_a_hostile_one_are_right(tmp_path):
    """The slot state of item 2 of the advisory: gradients, hooks and metadata that negate every
    tensor loaded after it.
    """
    metadata = b'}' + text('neg') + b'\x88s'
    hostile = (
        name('torch._utils', '_rebuild_tensor_v2')
        + b'N}'
        + text('__defaults__')
        + metadata
        + b'\x85s\x86b'
    )
    (tmp_path / 'hostile.pkl').write_bytes(b'\x80\x02' + hostile + b'.')
    with pytest.raises(ValueError, match='cannot be read safely'):
        read_pickle(tmp_path / 'hostile.pkl')
    torch.save({'w': torch.ones(2)}, tmp_path / 'w.pt')
    assert torch.load(tmp_path / 'w.pt', weights_only=True)['w'].tolist() == [1, 1]


@pytest.mark.parametrize(
    'program, expected',
    [
        (name('os', 'system') + text('touch x') + b'\x85R', ('os', 'system')),
        (b'(ios\nsystem\n', ('os', 'system')),
        (b'(' + name('os', 'system') + b'o', ('os', 'system')),
        (name('os', 'system') + b')\x81', ('os', 'system')),
        (text('os') + text('system') + b'\x93)R', ('os', 'system')),
        (name('os', 'system') + b')}\x92', ('os', 'system')),
    ],
    ids=['REDUCE', 'INST', 'OBJ', 'NEWOBJ', 'STACK_GLOBAL', 'NEWOBJ_EX'],
)
def test_every_way_to_call_gives_a_record(path, program, expected):
    path.write_bytes(b'\x80\x04' + program + b'.')
    record = read_pickle(path)
    assert type(record) is Record and (record.module, record.name) == expected
    with pytest.raises(ValueError, match=r'could run code'):
        load_checkpoint(path)


def test_what_a_call_gives_is_not_called_again(path):
    for program in (
        name('builtins', 'getattr') + b')R)R',
        b'N)R',
        text('x') + b')R',
        name('torch', 'float32') + b')R',
    ):
        path.write_bytes(b'\x80\x02' + program + b'.')
        with pytest.raises(ValueError, match='it calls what is not a name'):
            read_pickle(path)


def test_extension_codes_are_not_looked_up(path):
    copyreg.add_extension('os', 'getpid', 77)
    try:
        path.write_bytes(b'\x80\x02\x82\x4d)R.')
        assert pickle.loads(path.read_bytes()) == os.getpid()
        with pytest.raises(ValueError, match='cannot be read safely'):
            read_pickle(path)
    finally:
        copyreg.remove_extension('os', 'getpid', 77)


def test_no_module_is_imported(path):
    path.write_bytes(b'\x80\x02' + name('this', 's') + b'.')
    sys.modules.pop('this', None)
    read_pickle(path)
    assert 'this' not in sys.modules


# Bounds


def bombs():
    deep = b'\x80\x02' + b']' * 300_000 + b'a' * 299_999 + b'.'
    laughs = (
        b'\x80\x02'
        + text('x')
        + b''.join(b'q%c' % i + b'h%ch%c\x86' % (i, i) for i in range(60))
        + b'.'
    )
    collisions = (
        b'\x80\x02}('
        + b''.join(
            b'\x8a\x0a' + (i * ((1 << 61) - 1)).to_bytes(10, 'little') + b'N' for i in range(90_000)
        )
        + b'u.'
    )
    compared = (
        b'\x80\x02}'
        + b''.join(
            b'X' + struct.pack('<I', 2_000_000) + b'a' * 2_000_000 + b'q' + bytes([i])
            for i in (0, 1)
        )
        + b'00h\x00Ns'
        + b'h\x01Ns' * 200_000
        + b'.'
    )
    return {
        'bytearray': b'\x80\x02' + name('builtins', 'bytearray') + whole(1 << 32) + b'\x85R.',
        'bytes of a length': b'\x80\x05\x8e' + struct.pack('<Q', 1 << 40) + b'.',
        'array of a length': b'\x80\x05\x96' + struct.pack('<Q', 1 << 33) + b'.',
        'negative length': b'\x80\x02T' + struct.pack('<i', -1) + b'.',
        'number': b'\x80\x02\x8b' + struct.pack('<i', 1 << 20) + b'1' * (1 << 20) + b'.',
        'number in text': b'I' + b'1' * 3_000_000 + b'\n.',
        'memo': b'\x80\x02Nr' + struct.pack('<I', (1 << 31) - 1) + b'.',
        'shape': b'\x80\x02' + name('torch', 'Size') + b'(' + whole(1 << 62) * 30 + b't\x85R.',
        'set': b'\x80\x02'
        + name('builtins', 'set')
        + name('builtins', 'range')
        + whole(1 << 40)
        + b'\x85R\x85R.',
        'complex': b'\x80\x02' + name('builtins', 'complex') + text('1' * 100) + b'\x85R.',
        'operations': b'\x80\x02' + b'N0' * 1_500_000 + b'N.',
        'sets': b'\x80\x04' + b'\x8f' * 1_000_000 + b'.',
        'dicts': b'\x80\x02' + b'}' * 1_000_000 + b'.',
        'records': b'\x80\x02' + name('a', 'b') + b'q\x00' + b'h\x00)R' * 600_000 + b'.',
        'names': b'\x80\x02' + b''.join(name('a', f'{i}') for i in range(500_000)) + b'.',
        'keys that collide': collisions,
        'keys that compare slowly': compared,
        'deep key': b'\x80\x02}' + laughs[2:-1] + b'Ns.',
        'marks': b'\x80\x02' + b'(' * 3_000_000 + b'.',
        'deep in deep': deep,
        'laughs': laughs,
        'old file of tensors that are not there': pickle.dumps(0x1950A86A20F9469CFC6C, 2)
        + pickle.dumps(1001, 2)
        + pickle.dumps({}, 2)
        + b'\x80\x02('
        + text('storage')
        + name('torch', 'FloatStorage')
        + text('0')
        + text('cpu')
        + whole(1 << 33)
        + b'NtQ.',
    }


#: These are read, since they are small; only who walks them would not return.
HARMLESS = ('deep in deep', 'laughs', 'memo', 'set')
MEASURE = """
import resource, sys, time
from k_diffusion.core.pickles import read_pickle
from k_diffusion.core.weights import load_checkpoint
small = sys.argv[1] + '/small'
open(small, 'wb').write(b'\\x80\\x02N.')
read_pickle(small)
began = time.process_time()
sum(range(10**7))
unit = time.process_time() - began  # 0.1 to 0.2 s: the bound follows the processor's speed
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[2:]:
    for reader in (read_pickle, load_checkpoint):
        began = time.process_time()
        try:
            reader(path)
            outcome = 'read'
        except ValueError:
            outcome = 'refused'
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
        took = round((time.process_time() - began) / unit, 2)
        print(path.rpartition('/')[2], reader.__name__, outcome, took, grown, sep='|', flush=True)
"""


def measure(folder, paths):
    done = subprocess.run(
        [sys.executable, '-c', MEASURE, str(folder), *map(str, paths)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'},
    )
    assert done.returncode == 0, done.stderr[-500:]
    return [line.split('|') for line in done.stdout.splitlines()]


@pytest.mark.parametrize('few', [True, pytest.param(False, marks=pytest.mark.faults)])
def test_bombs_cost_little(tmp_path, few):
    files = {key: data for key, data in bombs().items() if not few or len(data) < 100}
    assert len(files) > 3
    for key, data in files.items():
        (tmp_path / key).write_bytes(data)
    rows = measure(tmp_path, [tmp_path / key for key in files])
    assert len(rows) == 2 * len(files)
    for key, reader, outcome, units, grown in rows:
        assert float(units) < 25 and int(grown) < 200, (key, reader, units, grown)
        assert outcome == 'refused' or key in HARMLESS, (key, reader, outcome)


@pytest.mark.faults
def test_packed_zeros_cost_little(tmp_path):
    """A deflated storage of 256 MB of zeros, and 400 members that are one and the same."""
    count = 64 << 20
    storage = STORAGE.replace(b'K\x04', whole(count))
    size = whole(count) + b'\x85'
    deflated = write_zip(
        tmp_path / 'deflated.pt',
        dict_of(tensor(size=size, storage=storage)),
        bytes(4 * count),
        zipfile.ZIP_DEFLATED,
    )
    pickled = write_zip(
        tmp_path / 'pickled.pt',
        b'\x80\x02' + b'N0' * 30_000_000 + b'N.',
        method=zipfile.ZIP_DEFLATED,
    )
    keys = [f'{i}'.zfill(3) for i in range(400)]
    parts = [b'\x80\x02}']
    for key in keys:
        storage = STORAGE.replace(text('0'), text(key)).replace(b'K\x04', b'J\0\0\x04\0')
        parts += [text(key), tensor(size=b'J\0\0\x04\0\x85', storage=storage), b's']
    overlapping = tmp_path / 'overlapping.pt'
    overlapping.write_bytes(make_overlapping(b''.join(parts) + b'.', keys, bytes(1 << 20)))
    rows = measure(tmp_path, [deflated, pickled, overlapping])
    assert [outcome for _, _, outcome, _, _ in rows] == ['refused'] * 6
    assert all(float(units) < 25 and int(grown) < 200 for *_, units, grown in rows), rows


def make_overlapping(pickled, keys, data):
    """A zip file whose members `keys` all lie at the same place."""
    local = struct.pack('<4s5H3L2H', b'PK\3\4', 20, 0, 0, 0, 0, 0, 0, 0, 0, 0)
    body = local + pickled + local + data
    entries = [('a/data.pkl', 0, len(pickled))] + [
        (f'a/data/{key}', 30 + len(pickled), len(data)) for key in keys
    ]
    layout = '<4s6H3L5H2L'
    directory = b''.join(
        struct.pack(
            layout, b'PK\1\2', 20, 20, 0, 0, 0, 0, 0, size, size, len(key), 0, 0, 0, 0, 0, at
        )
        + key.encode()
        for key, at, size in entries
    )
    return (
        body
        + directory
        + struct.pack(
            '<4s4H2LH', b'PK\5\6', 0, 0, len(entries), len(entries), len(directory), len(body), 0
        )
    )


def test_a_zip_that_a_program_has_packed_is_read(path):
    """Someone has packed a file of torch anew; weights shrink by little."""
    value = torch.randn(1000)
    torch.save({'w': value}, path)
    with zipfile.ZipFile(path) as archive:
        members = {member: archive.read(member) for member in archive.namelist()}
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
        for member, data in members.items():
            archive.writestr(member, data)
    assert torch.equal(load_checkpoint(path)['w'], value)


def make_member(extra, header=0xFFFFFFFF):
    """A zip file with one member `a/data.pkl` whose directory entry has 32-bit fields that refer
    to `extra`.
    """
    local = struct.pack('<4s5H3L2H', b'PK\3\4', *[0] * 10) + b'\x80\x02N.'
    key = b'a/data.pkl'
    entry = struct.pack(
        '<4s6H3L5H2L',
        b'PK\1\2',
        45,
        45,
        0,
        0,
        0,
        0,
        0,
        header,
        header,
        len(key),
        len(extra),
        0,
        0,
        0,
        0,
        header,
    )
    directory = entry + key + extra
    return (
        local
        + directory
        + struct.pack('<4s4H2LH', b'PK\5\6', 0, 0, 1, 1, len(directory), len(local), 0)
    )


@pytest.mark.parametrize('reader', [read_pickle, load_checkpoint, load_published])
@pytest.mark.parametrize(
    'extra',
    [
        struct.pack('<HHQQQ', 1, 24, 4, 4, 2**64 - 1),
        struct.pack('<HHQQQ', 1, 24, 4, 4, 2**63 - 1),
        struct.pack('<HHQQQ', 1, 24, 2**63, 2**63, 0),
        struct.pack('<HHQQQ', 1, 24, 2**50, 2**50, 0),
        struct.pack('<HH', 1, 24) + bytes(8),
        struct.pack('<HH', 1, 65535),
        struct.pack('<HH', 7, 65535),
        b'\1',
    ],
    ids=[
        'header beyond 64 bits',
        'header beyond the file',
        'size beyond 64 bits',
        'size',
        'field cut',
        'field empty',
        'other',
        'byte',
    ],
)
def test_64_bit_fields_that_lie_are_a_sentence(path, extra, reader):
    path.write_bytes(make_member(extra))
    with pytest.raises(ValueError, match=r'x\.pt (cannot be read safely|is damaged)'):
        reader(path)


@pytest.mark.parametrize('reader', [read_pickle, load_checkpoint, load_published])
def test_a_packed_member_that_is_damaged_is_a_sentence(path, reader):
    write_zip(path, dict_of(tensor()), method=zipfile.ZIP_DEFLATED)
    data = bytearray(path.read_bytes())
    at = data.index(b'a/data.pkl') + len('a/data.pkl')
    data[at : at + 8] = b'\xff' * 8
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r'a packed member of it is damaged'):
        reader(path)


def test_a_network_of_shared_modules_is_bounded(path):
    """Levels of modules that each hold the next one twice, under names of 200 letters: 2^40
    parts out of 18 kB.
    """
    new_module, memo = name('torch.nn.modules.module', 'Module') + b')\x81}', b'q%c0'
    program = b'\x80\x02' + new_module + text('_parameters') + b'}' + text('w') + b'Nssb' + memo % 0
    for i in range(40):
        twice = b''.join(text(letter * 200) + b'h%c' % i for letter in 'ab')
        program += new_module + text('_modules') + b'}(' + twice + b'usb' + memo % (i + 1)
    path.write_bytes(program + b'}' + text('ema') + b'h%cs.' % 40)
    began = time.process_time()
    with pytest.raises(
        ValueError, match='at most 100,000 parts, 100 levels and 8,388,608 characters'
    ):
        load_published(path)
    assert time.process_time() - began < 2


@pytest.mark.parametrize(
    'fields, message',
    [
        ({'size': b'K\x05\x85'}, 'beyond its data'),
        ({'offset': b'K\x01'}, 'beyond its data'),
        ({'stride': b'K\x02\x85'}, 'beyond its data'),
        ({'stride': b'J\xff\xff\xff\xff\x85'}, 'is damaged'),
        ({'offset': b'J\xff\xff\xff\xff'}, 'is damaged'),
        ({'size': b'K\x02K\x02\x86'}, 'is damaged'),
        ({'size': text('x') + b'\x85'}, 'is damaged'),
        ({'size': b'\x88\x85'}, 'is damaged'),
        ({'size': whole(1 << 40) + b'\x85', 'stride': b'K\x00\x85'}, '16 times the size'),
        (
            {'size': whole(1 << 47) * 2 + b'K\x00\x87', 'stride': b'K\x00K\x00K\x00\x87'},
            'beyond its data',
        ),
        ({'storage': b'N'}, 'is damaged'),
        ({'storage': STORAGE.replace(b'K\x04', b'K\x05')}, 'bytes of data; its type'),
        (
            {'storage': STORAGE.replace(b'FloatStorage', b'QInt8Storage')},
            'unknown type|it names torch.QInt8Storage',
        ),
        ({'storage': STORAGE.replace(text('0'), text('../version'))}, 'has no data|bytes of data'),
    ],
    ids=str,
)
def test_tensors_lie_within_their_storage(path, fields, message):
    write_zip(path, dict_of(tensor(**fields)))
    for reader in (read_pickle, load_checkpoint):
        with pytest.raises(ValueError, match=message):
            reader(path)


def test_containers_that_hold_themselves(path):
    itself = b'\x80\x02}q\x00' + text('a') + b'h\x00s.'
    path.write_bytes(itself)
    with pytest.raises(ValueError, match='a container holds itself'):
        load_checkpoint(path)
    module = (
        name('torch.nn.modules.module', 'Module')
        + b')\x81q\x00}'
        + text('_modules')
        + b'}'
        + text('a')
        + b'h\x00ssb'
    )
    path.write_bytes(b'\x80\x02}' + text('ema') + module + b's.')
    with pytest.raises(ValueError, match='must not hold itself'):
        load_published(path)
    assert list(tensors_of(Record('a', 'b'))) == []


def test_a_header_of_safetensors_is_bounded(tmp_path):
    path = tmp_path / 'x.safetensors'
    path.write_bytes(struct.pack('<Q', 90 << 20) + b' ' * (90 << 20))
    with pytest.raises(ValueError, match='header'):
        weights.load_safetensors(path)


def test_numbers_that_torch_has_not_are_a_sentence(tmp_path):
    path = tmp_path / 'x.safetensors'
    header = json.dumps({'w': {'dtype': 'F6_E2M3', 'shape': [4], 'data_offsets': [0, 3]}}).encode()
    path.write_bytes(struct.pack('<Q', len(header)) + header + bytes(3))
    for reader in (weights.load_safetensors, load_published):
        with pytest.raises(
            ValueError,
            match=r'x\.safetensors must hold tensors of dtypes that torch has \(.*F6_E2M3',
        ):
            reader(path)


def test_an_object_with_many_keys_is_read_in_time(tmp_path):
    from k_diffusion.core.files import read_json

    began = time.process_time()
    value = {f'{i}': 0 for i in range(100_000)}
    assert read_json(json.dumps(value), 'x.json') == value
    assert time.process_time() - began < 2


def test_arrays_of_cifar_are_read_by_the_same_machine(path):
    from k_diffusion.data import cifar

    hostile = b'\x80\x02' + name('_codecs', 'encode') + b'N' + DEFAULTS + b'\x86b.'
    assert (
        read_arrays('x', b'\x80\x02Nr' + struct.pack('<I', (1 << 31) - 1) + b'0}.') == {}
    )  # a distant memo costs nothing
    for data in (hostile, b'\x80\x02}K\x01h\x00s.'):
        with pytest.raises(ValueError, match=r'x (is refused|is cut short or damaged|holds)'):
            read_arrays('x', data)
    assert not hasattr(cifar, '_ArrayUnpickler')


# What is read


def states():
    base = torch.arange(24.0).reshape(4, 6)
    parts = {
        'whole': base,
        'part': base[1:, ::2],
        'turned': base.T,
        'empty': torch.empty(0, 3),
        'scalar': torch.tensor(3),
    }
    types = {
        str(dtype): torch.arange(4).to(dtype)
        for dtype in (
            torch.float64,
            torch.float16,
            torch.bfloat16,
            torch.int64,
            torch.int32,
            torch.int16,
            torch.int8,
            torch.uint8,
            torch.bool,
            torch.complex64,
            torch.complex128,
        )
    }
    values = {
        'list': [1, 2.5, 'x', None, True, b'bytes', (1, (2,))],
        'set': {1, 'a'},
        'number': 1 << 80,
        'complex': 1 + 2j,
        'size': torch.Size([2, 3]),
        'dtype': torch.float16,
        'device': torch.device('cpu'),
        'array': bytearray(b'12'),
        'counter': collections.Counter('aab'),
        'ordered': collections.OrderedDict(b=1, a=2),
        'parameter': nn.Parameter(base),
    }
    return {**parts, **types, **values, 'new types': torch.arange(3).to(torch.uint16)}


@pytest.mark.parametrize('zipped', [True, False])
def test_everything_that_torch_reads_of_data_is_read(path, zipped):
    value = states()
    if not zipped:
        del value['new types']  # torch itself cannot read them from a file of the old layout
    torch.save(value, path, _use_new_zipfile_serialization=zipped)
    theirs, ours = torch.load(path, weights_only=True), load_checkpoint(path)
    for key, expected in theirs.items():
        assert type(ours[key]) is type(expected), key
        if isinstance(expected, torch.Tensor):
            assert (
                torch.equal(ours[key], expected)
                and ours[key].dtype == expected.dtype
                and ours[key].stride() == expected.stride()
            )
            assert ours[key].requires_grad == expected.requires_grad
        else:
            assert ours[key] == expected
    assert ours['part'].untyped_storage().data_ptr() == ours['whole'].untyped_storage().data_ptr()


def test_versions_of_a_state_dict_are_kept(path):
    network = nn.Sequential(nn.BatchNorm2d(2))
    torch.save(network.state_dict(), path)
    state = load_checkpoint(path)
    assert state._metadata == network.state_dict()._metadata and state._metadata['0'] == {
        'version': 2
    }
    network.load_state_dict(state)


@pytest.mark.parametrize('protocol', range(6))
def test_plain_values_of_every_protocol(path, protocol):
    value = {
        'a': [
            1,
            -1,
            255,
            65536,
            1 << 40,
            -(1 << 40),
            1 << 70,
            1.5,
            float('inf'),
            True,
            False,
            None,
        ],
        'é\n\\': 'ü\0\ud800',
        'b': b'\x00\xff',
        'c': (),
        'd': ((1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)),
        'e': [],
        'f': {},
        1: {2: 3},
        (1, 'x'): 2,
    }
    value['again'] = value['a']
    path.write_bytes(pickle.dumps(value, protocol))
    read = read_pickle(path)
    assert read == value and read['again'] is read['a']


def test_a_big_endian_file_is_turned_round(path):
    data = struct.pack('>4f', 1, 2, 3, 4)
    write_zip(path, dict_of(tensor()), data, more={'a/byteorder': b'big'})
    assert (
        load_checkpoint(path)['w'].tolist()
        == torch.load(path, weights_only=True)['w'].tolist()
        == [1, 2, 3, 4]
    )


def test_a_flipped_length_is_a_sentence(path):
    torch.save({'w': torch.ones(300)}, path)
    data = path.read_bytes()
    for at in range(0, len(data), 7):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x40]) + data[at + 1 :])
        try:
            load_checkpoint(path)
        except ValueError as error:
            assert str(path) in str(error)


# Fuzzing


def fuzz(count, folder):
    command = [sys.executable, str(ROOT / 'tests' / 'fuzz_loading.py'), str(count), str(folder)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env={**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'},
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) < 200


def test_two_hundred_mutations(tmp_path):
    fuzz(200, tmp_path)


@pytest.mark.faults
def test_twenty_thousand_mutations(tmp_path):
    fuzz(20_000, tmp_path)
