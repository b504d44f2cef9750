"""Hostile and damaged pictures take no more memory than one picture needs, measured in a process
of their own.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import zipfile

import pytest
from PIL import Image

_SCRIPT = """
import json, sys
from k_diffusion.data import ImageFolderConfig, inspect_pictures, open_dataset

def peak():
    line = next(line for line in open('/proc/self/status') if line.startswith('VmHWM'))
    return int(line.split()[1]) * 1024

small, *places = sys.argv[1:]
inspect_pictures(small, (8, 8))
open_dataset(ImageFolderConfig(location=small), (8, 8))
base, facts = peak(), []
for place in places:
    found = inspect_pictures(place, (8, 8))
    dataset = open_dataset(ImageFolderConfig(location=place), (8, 8))
    counts = [found.readable, len(found.broken), len(dataset), len(dataset.skipped)]
    facts.append([*counts, peak() - base])
print(json.dumps(facts))
"""


def peaks(*places):
    """For each place: pictures read and broken by the inspection, the same by training, and the
    peak above the base so far.
    """
    done = subprocess.run(
        [sys.executable, '-c', _SCRIPT, *map(str, places)],
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def write_zeros(path, members, size):
    """A .zip of a good picture and members of zeros."""
    good = io.BytesIO()
    Image.new('RGB', (8, 8), 'red').save(good, 'PNG')
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        file.writestr('good.png', good.getvalue())
        for i in range(members):
            with file.open(f'{i}.png', 'w') as member:
                for _ in range(size // 2**20):
                    member.write(bytes(2**20))


@pytest.mark.skipif(
    not os.path.exists('/proc/self/status'), reason='the peak of a process is read from /proc'
)
def test_what_cannot_be_read_is_not_kept(tmp_path):
    for name in ('small', 'photographs'):
        (tmp_path / name).mkdir()
        Image.new('RGB', (8, 8), 'red').save(tmp_path / name / 'good.png')
    write_zeros(tmp_path / 'zeros.zip', 4, 60 * 2**20)
    buffer = io.BytesIO()
    Image.linear_gradient('L').resize((4000, 2500)).convert('RGB').save(buffer, 'JPEG', quality=30)
    for i in range(8):
        (tmp_path / 'photographs' / f'{i}.jpg').write_bytes(
            buffer.getvalue()[: -len(buffer.getvalue()) // 10]
        )
    zeros, photographs = peaks(tmp_path / 'small', tmp_path / 'zeros.zip', tmp_path / 'photographs')
    assert zeros[:4] == [1, 4, 1, 4] and photographs[:4] == [1, 8, 1, 8]
    assert zeros[4] < 150e6 and photographs[4] < 150e6, (zeros, photographs)
