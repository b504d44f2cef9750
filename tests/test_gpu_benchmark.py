"""The run on a GPU, in its small form: it finds what is wrong, and writes what it measured."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from k_diffusion.layers.neighborhood_backends import BACKENDS
from k_diffusion.sampling import SAMPLERS

CPU = torch.device('cpu')


@pytest.fixture
def modules(monkeypatch):
    """The modules gpu and _correctness of the benchmarks."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / 'benchmarks'))
    import _correctness
    import gpu

    yield gpu, _correctness
    for name in ('gpu', '_correctness', '_timing', 'samplers'):
        sys.modules.pop(name, None)


def test_a_wrong_attention_and_a_wrong_sampler_are_found(modules, monkeypatch):
    _, correctness = modules
    assert all(row['ok'] for row in correctness.check_attention(CPU))
    right = BACKENDS['tiles']
    wrong = {'tiles': lambda q, k, v, *rest: right(q, k, 1.2 * v, *rest)}
    monkeypatch.setattr(correctness, 'BACKENDS', wrong)
    rows = list(correctness.check_attention(CPU))
    assert [row['dtype'] for row in rows] == ['fp32', 'bf16'] and not any(r['ok'] for r in rows)

    one = {'euler': SAMPLERS['euler']}
    monkeypatch.setattr(correctness.sampling, 'SAMPLERS', one)
    assert all(row['ok'] for row in correctness.check_samplers(CPU))
    calls = iter([1.0, 1.2, float('nan')])
    honest = correctness._sample
    monkeypatch.setattr(correctness, '_sample', lambda *a: honest(*a) * next(calls))
    assert [row['ok'] for row in correctness.check_samplers(CPU)] == [False, False]


def test_a_run_writes_its_figures_and_a_table(modules, tmp_path, monkeypatch, capsys):
    gpu, _ = modules
    few = {name: SAMPLERS[name] for name in ('euler', 'dpmpp_2m')}
    monkeypatch.setattr(gpu.samplers.sampling, 'SAMPLERS', few)
    out = tmp_path / 'gpu.json'
    arguments = ['--device', 'cpu', '--parts', 'data', 'overhead', '--out', str(out)]
    assert gpu.main(arguments) == 0
    result, printed = json.loads(out.read_text()), capsys.readouterr().out
    assert result['small'] and {row['sampler'] for row in result['overhead']} >= set(few)
    assert all(row['images_per_second'] > 0 for row in result['data'])
    assert printed.count('| sampler |') == len(result['overhead']) and '| data | plain' in printed
    assert gpu.main([*arguments, '--budget', '0']) == 0
    assert 'left out after 0 s: data' in capsys.readouterr().err


def test_a_failed_comparison_is_in_the_table_and_the_status(modules, tmp_path, monkeypatch, capsys):
    gpu, correctness = modules
    rows = [correctness.row('network', 'image_v1', 'bf16', error, 0.05) for error in (0.01, 0.3)]
    monkeypatch.setitem(gpu.PARTS, 'correctness', lambda args, device: rows)
    arguments = ['--device', 'cpu', '--parts', 'correctness', '--out', str(tmp_path / 'gpu.json')]
    assert gpu.main(arguments) == 1
    printed = capsys.readouterr().out
    assert (
        'largest relative error 3.0e-01' in printed and '| **failed** | image_v1, bf16' in printed
    )


def test_the_share_of_the_peak_and_the_profile_of_a_step(modules):
    gpu, _ = modules
    row = gpu.measure_training('config_demo', 2, CPU, compiled=False, rounds=1, peak=1e12)
    assert row['mfu'] == pytest.approx(6 * row['multiply_adds'] * row['samples_per_second'] / 1e12)
    shares = [entry['share'] for entry in row['profile']]
    assert len(shares) == 5 and shares == sorted(shares, reverse=True) and 0 < sum(shares) <= 1
