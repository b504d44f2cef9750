"""Write the report of a run: one HTML page with curves, grids, config and environment."""

from __future__ import annotations

import base64
import dataclasses
import html
import json
import math
import os
import platform
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ... import __version__
from ...core.files import whole_file
from ...core.names import escape_name
from ...core.plots import plot_curves
from ...training import Trainer, read_log

#: Names of settings that may hold what nobody else is to see, and addresses with a password in
#: them.
_SECRET = re.compile(r'(secret|token|passw|credential|api_?key|private)', re.I)
_ADDRESS = re.compile(r'(\w+://)[^/\s@]+@')
#: How many grids a report shows at most, spread over the run.
GRIDS = 12
_STYLE = """body{font:15px/1.5 sans-serif;max-width:960px;margin:2em auto;padding:0 1em;color:#222}
h1,h2{font-weight:600}
figure{display:inline-block;margin:0 1em 1em 0}figcaption{color:#666;font-size:13px}
img{image-rendering:pixelated;width:280px}
pre{background:#f6f6f6;padding:1em;overflow:auto}td{padding:.1em 1em .1em 0}svg{max-width:100%}"""


@dataclasses.dataclass
class ReportHook:
    """Write NAME_report.html every `every` steps and at the end, from the run's log and grids."""

    every: int
    folder: Path
    name: str
    config: Mapping[str, Any]
    noise_edges: Sequence[float] = ()
    at_end = optional = True

    def __call__(self, trainer: Trainer) -> None:
        if trainer.accelerator.is_main_process:
            facts = {
                'processes': trainer.accelerator.num_processes,
                'device': str(trainer.accelerator.device),
                'seed': trainer.seed,
                'steps': trainer.step,
                'seconds': round(trainer.elapsed),
            }
            write_report(self.folder, self.name, self.config, facts, self.noise_edges)


def write_report(
    folder: Path,
    name: str,
    config: Mapping[str, Any],
    facts: Mapping[str, Any] | None = None,
    noise_edges: Sequence[float] = (),
) -> Path:
    """Write the report of a run and return its path.

    Args:
        folder: The folder of the run.
        name: The run.
        config: Its config; values that look like secrets are omitted.
        facts: Further values of the table at the top.
        noise_edges: The noise levels between the ranges of the loss.
    """
    lines = thin_log(read_log(folder / f'{name}_log.jsonl'))
    last = lines[-1] if lines else {}
    held_out = [line['held_out_loss'] for line in lines if line.get('held_out_loss') is not None]
    summary = {
        **(facts or {}),
        'loss': last.get('smoothed_loss'),
        'held-out loss': held_out[-1] if held_out else None,
        'images per second': last.get('images_per_second'),
    }
    title = html.escape(escape_name(name))
    parts = [
        f'<h1>{title}</h1>',
        _table(summary),
        '<h2>Curves</h2>',
        curves(lines, noise_edges),
        '<h2>Samples over time</h2>',
        _grids(folder, name),
        '<h2>Config</h2>',
        f'<pre>{html.escape(json.dumps(redact(config), indent=2))}</pre>',
        '<h2>Environment</h2>',
        _table(environment()),
    ]
    path = folder / f'{name}_report.html'
    with whole_file(path, sync=False) as temporary:
        temporary.write_text(
            f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
            f'<style>{_STYLE}</style><body>\n' + '\n'.join(parts) + '\n</body></html>\n',
            encoding='utf-8',
        )
    return path


def curves(lines: Sequence[Mapping[str, Any]], noise_edges: Sequence[float] = ()) -> str:
    """Return the numbers of a log as one SVG with a panel for each kind.

    Args:
        lines: The lines of the log.
        noise_edges: The noise levels between the ranges of the loss.
    """

    def points(value: Any, at: str = 'step') -> list[tuple[float, float]]:
        pairs = [(line.get(at), value(line)) for line in lines]
        return [
            (float(step), float(y))
            for step, y in pairs
            if isinstance(y, (int, float)) and math.isfinite(y) and step is not None
        ]

    def by_noise(key: str, at: str = 'step') -> dict[str, list[tuple[float, float]]]:
        rows = [line[key] for line in lines if isinstance(line.get(key), list)]
        bins = max(map(len, rows), default=0)
        return {
            f'sigma {noise_edges[i]:.3g} to {noise_edges[i + 1]:.3g}'
            if len(noise_edges) > bins
            else f'range {i}': points(lambda line, i=i: _entry(line.get(key), i), at)
            for i in range(bins)
        }

    panels = {
        'loss': {
            'smoothed': points(lambda line: line.get('smoothed_loss')),
            'held out': points(lambda line: line.get('held_out_loss'), 'held_out_step'),
        },
        'loss by noise level': by_noise('loss_by_noise'),
        'held-out loss by noise level': by_noise('held_out_loss_by_noise', 'held_out_step'),
        'learning rate': {'lr': points(lambda line: line.get('lr'))},
        'images per second': {'rate': points(lambda line: line.get('images_per_second'))},
    }
    odd = {
        key
        for line in lines
        for key, value in line.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    } & {'gns', 'fid', 'kid'}
    panels.update({key: {key: points(lambda line, key=key: line.get(key))} for key in sorted(odd)})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, 'curves.svg')
        nonempty = {title: {k: v for k, v in panel.items() if v} for title, panel in panels.items()}
        plot_curves(path, {title: panel for title, panel in nonempty.items() if panel})
        return path.read_text()


def _entry(value: Any, i: int) -> Any:
    """Return entry i of a list of a log, or None."""
    return value[i] if isinstance(value, list) and i < len(value) else None


def thin_log(lines: Sequence[dict[str, Any]], most: int = 400) -> list[dict[str, Any]]:
    """Return at most `most` evenly spaced `lines`, the last one, and those with a held-out loss."""
    step, last = max(1, -(-len(lines) // most)), len(lines) - 1
    return [
        line
        for i, line in enumerate(lines)
        if (last - i) % step == 0 or line.get('held_out_step') is not None
    ]


def environment() -> dict[str, Any]:
    """Return the versions and the machine of a run, without environment variables."""
    device = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else platform.processor() or platform.machine()
    )
    return {
        'k-diffusion': __version__,
        'torch': torch.__version__,
        'Python': platform.python_version(),
        'system': platform.platform(),
        'device': device,
        'cores': os.cpu_count(),
        'threads': torch.get_num_threads(),
        'byte order': sys.byteorder,
    }


def redact(value: Any) -> Any:
    """Return a config `value` without entries that look like secrets."""
    if isinstance(value, Mapping):
        return {
            key: '(left out)' if _SECRET.search(str(key)) else redact(item)
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [redact(item) for item in value]
    return _ADDRESS.sub(r'\1(left out)@', value) if isinstance(value, str) else value


def _table(values: Mapping[str, Any]) -> str:
    rows = ''
    for key, value in values.items():
        if value is not None:
            text = f'{value:.6g}' if isinstance(value, float) else str(value)
            rows += f'<tr><td>{html.escape(str(key))}</td><td>{html.escape(text)}</td></tr>'
    return f'<table>{rows}</table>'


def _grids(folder: Path, name: str) -> str:
    files = sorted(
        path
        for path in folder.glob(f'{name}_demo_*.png')
        if re.fullmatch(r'\d+', path.stem.rpartition('_')[2])
    )
    indices = (
        sorted({round(i * (len(files) - 1) / max(1, GRIDS - 1)) for i in range(GRIDS)})
        if files
        else []
    )
    figures = [
        '<figure><img alt="samples" '
        f'src="data:image/png;base64,{base64.b64encode(files[i].read_bytes()).decode()}">'
        f'<figcaption>step {int(files[i].stem.rpartition("_")[2]):,}</figcaption></figure>'
        for i in indices
    ]
    return ''.join(figures) or '<p>none were drawn</p>'
