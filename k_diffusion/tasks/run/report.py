"""The report of a run: one HTML page that holds all it shows - curves, grids over time, config,
environment.
"""

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
    """Writes NAME_report.html every `every` steps and at the end, from the run's log and grids."""

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
    """Writes the report of the run `name` that lives in a folder; returns its path."""
    lines = thinned(read_log(folder / f'{name}_log.jsonl'))
    last = lines[-1] if lines else {}
    shown = {
        **(facts or {}),
        'loss': last.get('smoothed_loss'),
        'images per second': last.get('images_per_second'),
    }
    title = html.escape(escape_name(name))
    parts = [
        f'<h1>{title}</h1>',
        _table(shown),
        '<h2>Curves</h2>',
        curves(lines, noise_edges),
        '<h2>Samples over time</h2>',
        _grids(folder, name),
        '<h2>Config</h2>',
        f'<pre>{html.escape(json.dumps(redacted(config), indent=2))}</pre>',
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
    """The log's numbers as one SVG: loss, loss by noise level, learning rate, images per second."""

    def points(value: Any) -> list[tuple[float, float]]:
        found = [(line['step'], value(line)) for line in lines]
        return [
            (float(step), float(y))
            for step, y in found
            if isinstance(y, (int, float)) and math.isfinite(y)
        ]

    def by_noise(line: Mapping[str, Any]) -> list[Any]:
        value = line.get('loss_by_noise')
        return value if isinstance(value, list) else []

    bins = max((len(by_noise(line)) for line in lines), default=0)
    names = [
        f'sigma {noise_edges[i]:.3g} to {noise_edges[i + 1]:.3g}'
        if len(noise_edges) > bins
        else f'range {i}'
        for i in range(bins)
    ]
    at_noise = {
        name: points(lambda line, i=i: (by_noise(line) + [None] * bins)[i])
        for i, name in enumerate(names)
    }
    panels = {
        'loss': {'smoothed': points(lambda line: line.get('smoothed_loss'))},
        'loss by noise level': at_noise,
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
        plot_curves(path, {title: kept for title, kept in panels.items() if any(kept.values())})
        return path.read_text()


def thinned(lines: Sequence[dict[str, Any]], most: int = 400) -> list[dict[str, Any]]:
    """At most so many lines, spread evenly, the last one among them."""
    step = max(1, -(-len(lines) // most))
    return list(lines[::-1][::step])[::-1]


def environment() -> dict[str, Any]:
    """What the run ran on; of the variables of the environment nothing."""
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


def redacted(value: Any) -> Any:
    """A config without what looks like a secret."""
    if isinstance(value, Mapping):
        return {
            key: '(left out)' if _SECRET.search(str(key)) else redacted(item)
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [redacted(item) for item in value]
    return _ADDRESS.sub(r'\1(left out)@', value) if isinstance(value, str) else value


def _table(values: Mapping[str, Any]) -> str:
    rows = ''
    for key, value in values.items():
        if value is not None:
            text = f'{value:.6g}' if isinstance(value, float) else str(value)
            rows += f'<tr><td>{html.escape(str(key))}</td><td>{html.escape(text)}</td></tr>'
    return f'<table>{rows}</table>'


def _grids(folder: Path, name: str) -> str:
    found = sorted(
        path
        for path in folder.glob(f'{name}_demo_*.png')
        if re.fullmatch(r'\d+', path.stem.rpartition('_')[2])
    )
    chosen = (
        sorted({round(i * (len(found) - 1) / max(1, GRIDS - 1)) for i in range(GRIDS)})
        if found
        else []
    )
    figures = [
        '<figure><img alt="samples" '
        f'src="data:image/png;base64,{base64.b64encode(found[i].read_bytes()).decode()}">'
        f'<figcaption>step {int(found[i].stem.rpartition("_")[2]):,}</figcaption></figure>'
        for i in chosen
    ]
    return ''.join(figures) or '<p>none were drawn</p>'
