"""Gives damaged and hostile files to the readers of weights, in a process of its own: python
fuzz_loading.py COUNT FOLDER.

Ends with an error where a reader raises anything but ValueError, computes for more than 2 s,
changes torch, imports a module or gives a tensor that reaches beyond its storage. Prints how many
MB the largest resident size grew by.
"""

from __future__ import annotations

import io
import os
import pickle
import resource
import struct
import sys
import time
import zipfile
from pathlib import Path

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from k_diffusion.core.pickles import read_pickle
from k_diffusion.core.weights import load_checkpoint
from k_diffusion.external import load_published

SECONDS = 2


def make_bases():
    """Files as torch and others write them, by what they are."""
    shared = torch.arange(12.0).reshape(3, 4)
    state = {
        'model': {
            'a.weight': shared,
            'a.part': shared[1:, ::2],
            'b': torch.ones(2, dtype=torch.bfloat16),
        },
        'step': 3,
        'opt': {
            'state': {0: {'exp_avg': torch.zeros(3)}},
            'param_groups': [{'lr': 1e-3, 'betas': (0.9, 0.999), 'params': [0]}],
        },
        'config': {'model': {'type': 'x', 'sizes': [1, 2]}},
        'more': [None, True, 1 << 40, b'bytes', {1, 2}, 1 + 2j],
    }
    bases = {}
    for name, zipped in (('zip', True), ('old', False)):
        file = io.BytesIO()
        torch.save(state, file, _use_new_zipfile_serialization=zipped)
        bases[name] = file.getvalue()
    packed = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(bases['zip'])) as base,
        zipfile.ZipFile(packed, 'w', zipfile.ZIP_DEFLATED) as archive,
    ):
        for name in base.namelist():
            with archive.open(name, 'w', force_zip64=True) as member:
                member.write(base.read(name))
    bases['deflated'] = packed.getvalue()
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
    bases['module'] = pickle.dumps({'ema': network, 'kwargs': {'x': range(3)}}, protocol=2)
    bases['plain'] = pickle.dumps(
        {'a': torch.ones(2), 'b': [{'c': (1, 2.0, 'x')}, frozenset({1}), bytearray(b'12')]},
        protocol=5,
    )
    bases['text'] = pickle.dumps(state['config'], protocol=0)
    return bases


BASES = make_bases()
NUMBERS = [
    0,
    1,
    2,
    3,
    4,
    255,
    256,
    65535,
    1 << 20,
    (1 << 31) - 1,
    1 << 31,
    (1 << 32) - 1,
    1 << 40,
    (1 << 63) - 1,
    1 << 63,
    (1 << 64) - 1,
]
NAMES = [
    'torch._utils _rebuild_tensor_v2',
    'torch._utils _rebuild_tensor',
    'torch._utils _rebuild_parameter',
    'torch FloatStorage',
    'torch.storage _load_from_bytes',
    'collections OrderedDict',
    'torch Size',
    'builtins set',
    'builtins bytearray',
    'torch float32',
    'builtins exec',
    'os system',
    'builtins getattr',
    'copyreg _reconstructor',
    'collections Counter',
    '_codecs encode',
    'torch._tensor _rebuild_from_type_v2',
    'torch.jit load',
    'torch load',
    'torch device',
    'a b',
]


def number(width):
    return st.sampled_from(NUMBERS).map(
        lambda value: (value & ((1 << 8 * width) - 1)).to_bytes(width, 'little')
    )


def sized(code, width):
    """An opcode with a length and data, where the length is mostly that of the data."""
    data = st.sampled_from(
        [b'', b'a', b'0', b'storage', b'cpu', b'_metadata', b'\xff\xfe', b'latin-1', b'x' * 300]
    )
    honest = data.map(lambda data: code + len(data).to_bytes(8, 'little')[:width] + data)
    return honest | st.tuples(number(width), data).map(lambda pair: code + pair[0] + pair[1])


def make_operations():
    bare = st.sampled_from(
        [
            bytes([code])
            for code in b'(0122]})\x8fltd\x85\x86\x87\x91aesu\x90R\x81\x92obQ\x94NN\x88\x89.'
        ]
    )
    names = st.sampled_from(NAMES).map(lambda name: b'c' + name.replace(' ', '\n').encode() + b'\n')
    numbers = st.one_of(
        number(1).map(lambda n: b'K' + n),
        number(2).map(lambda n: b'M' + n),
        number(4).map(lambda n: b'J' + n),
        number(8).map(lambda n: b'\x8a\x08' + n),
        st.floats().map(lambda x: b'G' + struct.pack('>d', x)),
        st.sampled_from(NUMBERS).map(lambda n: b'I%d\n' % n),
    )
    memo = st.one_of(
        *(st.integers(0, 3).map(lambda i, code=code: code + bytes([i])) for code in (b'q', b'h')),
        number(4).map(lambda n: b'r' + n),
        number(4).map(lambda n: b'j' + n),
    )
    texts = st.one_of(
        *(
            sized(code, width)
            for code, width in (
                (b'X', 4),
                (b'\x8c', 1),
                (b'\x8d', 8),
                (b'B', 4),
                (b'C', 1),
                (b'\x8e', 8),
                (b'\x96', 8),
                (b'T', 4),
                (b'U', 1),
                (b'\x8b', 4),
            )
        )
    )
    storage = st.builds(
        lambda kind, count: (
            b'(\x8c\x07storagectorch\n' + kind + b'\n\x8c\x010\x8c\x03cpu\x8a\x08' + count + b'tQ'
        ),
        st.sampled_from([b'FloatStorage', b'ByteStorage']),
        number(8),
    )
    tensor = st.builds(
        lambda storage, offset, size, stride, build: (
            b'ctorch._utils\n_rebuild_tensor_v2\n('
            + storage
            + b'\x8a\x08'
            + offset
            + b'\x8a\x08'
            + size
            + b'\x85\x8a\x08'
            + stride
            + b'\x85\x89}tR'
            + build
        ),
        storage,
        number(8),
        number(8),
        number(8),
        st.sampled_from([b'', b'Nb', b'}b']),
    )
    repeated = st.builds(
        lambda operation, count: operation * count, bare | names, st.integers(1, 3000)
    )
    return st.one_of(bare, bare, names, numbers, memo, texts, storage, tensor, repeated)


def mutated(data, changes):
    data = bytearray(data)
    for kind, where, more in changes:
        at = int(where * len(data))
        if kind == 'flip':
            data[at : at + 1] = bytes([data[at] ^ more[0] | 1]) if at < len(data) else b''
        elif kind == 'cut':
            del data[at : at + more[0]]
        elif kind == 'end':
            del data[at:]
        elif kind == 'insert':
            data[at:at] = more
        elif kind == 'replace':
            data[at : at + len(more)] = more
        else:
            data[at:at] = data[at : at + 8 * more[0]]
    return bytes(data)


CHANGES = st.lists(
    st.tuples(
        st.sampled_from(['flip', 'cut', 'end', 'insert', 'replace', 'double']),
        st.floats(0, 1),
        st.binary(min_size=1, max_size=8) | number(4) | number(8),
    ),
    min_size=1,
    max_size=4,
)
PROGRAMS = st.lists(make_operations(), max_size=40).map(
    lambda parts: b'\x80\x02' + b''.join(parts) + b'.'
)


def packed(program, method=zipfile.ZIP_STORED):
    """A zip file as torch writes it, with another pickle."""
    out = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(BASES['zip'])) as base,
        zipfile.ZipFile(out, 'w', method) as archive,
    ):
        for name in base.namelist():
            archive.writestr(
                name, program(base.read(name)) if name.endswith('data.pkl') else base.read(name)
            )
    return out.getvalue()


FILES = st.one_of(
    st.builds(mutated, st.sampled_from(list(BASES.values())), CHANGES),
    st.builds(
        lambda changes, method: packed(lambda pickle: mutated(pickle, changes), method),
        CHANGES,
        st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]),
    ),
    PROGRAMS,
    PROGRAMS.map(lambda program: packed(lambda _: program)),
)


def fingerprint():
    """Return the state of the process that a pickle could have changed."""
    functions = [
        torch._utils._rebuild_tensor_v2,
        torch._utils._rebuild_parameter,
        torch.load,
        torch.storage._load_from_bytes,
    ]
    return (
        [(f.__defaults__, f.__kwdefaults__, f.__code__) for f in functions],
        set(sys.modules),
        os.environ.copy(),
    )


def check_extents(value, depth=0):
    if isinstance(value, torch.Tensor):
        last = value.storage_offset() + sum(
            (n - 1) * s for n, s in zip(value.shape, value.stride())
        )
        assert (
            not value.numel()
            or (last + 1) * value.element_size() <= value.untyped_storage().nbytes()
        )
        value.double().sum() if not value.is_complex() else value.sum()
    elif isinstance(value, (dict, list, tuple)) and depth < 5:
        for item in value.values() if isinstance(value, dict) else value:
            check_extents(item, depth + 1)


def check(path, data):
    path.write_bytes(data)
    for reader in (read_pickle, load_checkpoint, load_published):
        began = time.process_time()  # (processor time: waiting on a busy machine is not counted)
        try:
            content = reader(path)
        except ValueError as error:
            str(error).encode('ascii')
        else:
            if reader is not load_published:
                check_extents(content)
        took = time.process_time() - began
        assert took < SECONDS, f'{reader.__name__} took {took:.1f} s'


def main(count, folder):
    path = Path(folder) / 'input.pth'
    for name, data in BASES.items():  # what is not damaged is read
        path.write_bytes(data)
        read_pickle(path)
        assert name in ('module', 'text') or load_checkpoint(path)
    check(path, b'')
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    @given(FILES)
    def run(data):
        before = fingerprint()
        check(path, data)
        assert fingerprint() == before

    run()
    print(f'{(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start) / 1024:.0f}')


if __name__ == '__main__':
    main(int(sys.argv[1]), sys.argv[2])
