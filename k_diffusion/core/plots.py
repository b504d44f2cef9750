"""Curves and histograms as SVG files, without a plotting library."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from html import escape

from .files import whole_file

WIDTH, HEIGHT = 640, 240  # of a panel, in pixels
LEFT, RIGHT, TOP, BOTTOM = 72, 16, 32, 40  # margins around its frame
_COLOURS = ('#1f6fb4', '#d1580f', '#2a8a3e', '#8a4bb0', '#7a5a3a', '#c2185b', '#00838f', '#8a8a00')

Points = Sequence[tuple[float, float]]


def plot_curves(
    path: str | os.PathLike[str], panels: Mapping[str, Mapping[str, Points]], x_label: str = 'step'
) -> None:
    """Write curves as SVG; points that are not finite are omitted.

    Args:
        path: The file.
        panels: The points (x, y) of each curve by name, for each panel by title.
        x_label: The label of the x axis.
    """
    pictures = [_curves(title, curves, x_label) for title, curves in panels.items()]
    _write(path, pictures)


def plot_histogram(
    path: str | os.PathLike[str], values: Sequence[float], title: str, x_label: str, bins: int = 40
) -> None:
    """Write a histogram of the finite values as SVG, with a line at their mean.

    Args:
        path: The file.
        values: The values.
        title: The title.
        x_label: The label of the x axis.
        bins: Number of bins.

    Raises:
        ValueError: If no value is finite.
    """
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        raise ValueError('values must hold at least one finite value; got none')
    low, high = _widen(min(finite), max(finite))
    counts = [0] * bins
    for value in finite:
        counts[min(bins - 1, int((value - low) / (high - low) * bins))] += 1
    frame = _Frame(low, high, 0.0, max(counts) * 1.05)
    width = (high - low) / bins
    bars = [
        _box(frame.x(low + i * width), frame.y(count), frame.x(low + (i + 1) * width), frame.y(0.0))
        for i, count in enumerate(counts)
    ]
    mean = frame.x(sum(finite) / len(finite))
    line = (
        f'<line x1="{mean:.1f}" x2="{mean:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" '
        f'stroke="{_COLOURS[1]}" stroke-dasharray="4 3"/>'
    )
    _write(path, ['\n'.join([*frame.axes(title, x_label), *bars, line])])


def _curves(title: str, curves: Mapping[str, Points], x_label: str) -> str:
    lines = {
        name: [point for point in points if all(map(math.isfinite, point))]
        for name, points in curves.items()
    }
    every = [point for points in lines.values() for point in points] or [(0.0, 0.0), (1.0, 1.0)]
    ranges = [_widen(min(values), max(values)) for values in zip(*every)]
    frame = _Frame(*ranges[0], *ranges[1])
    parts = list(frame.axes(title, x_label))
    for i, (name, points) in enumerate(lines.items()):
        colour = _COLOURS[i % len(_COLOURS)]
        places = [(frame.x(x), frame.y(y)) for x, y in points]
        line = ' '.join(f'{x:.1f},{y:.1f}' for x, y in places)
        parts.append(
            f'<polyline fill="none" stroke="{colour}" stroke-width="1.5" points="{line}"/>'
        )
        parts += [
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2" fill="{colour}"/>' for x, y in places[-400:]
        ]
        parts.append(_text(WIDTH - RIGHT - 4, TOP + 14 * (i + 1), name, 'end', colour))
    return '\n'.join(parts)


class _Frame:
    """The mapping of values to positions in a panel, and its axes."""

    def __init__(self, x_low: float, x_high: float, y_low: float, y_high: float) -> None:
        self.x_low, self.x_high, self.y_low, self.y_high = x_low, x_high, y_low, y_high

    def x(self, value: float) -> float:
        return LEFT + (value - self.x_low) / (self.x_high - self.x_low) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return (
            HEIGHT
            - BOTTOM
            - (value - self.y_low) / (self.y_high - self.y_low) * (HEIGHT - TOP - BOTTOM)
        )

    def axes(self, title: str, x_label: str) -> Iterator[str]:
        yield _text(LEFT, TOP - 12, title, 'start', '#222', 13)
        yield _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, x_label, 'middle')
        for value in _ticks(self.x_low, self.x_high, 6):
            yield _text(self.x(value), HEIGHT - BOTTOM + 16, f'{value:g}', 'middle')
        for value in _ticks(self.y_low, self.y_high, 5):
            y = self.y(value)
            yield (
                f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>'
            )
            yield _text(LEFT - 6, y + 4, f'{value:g}', 'end')
        yield (
            f'<rect x="{LEFT}" y="{TOP}" width="{WIDTH - LEFT - RIGHT}" '
            f'height="{HEIGHT - TOP - BOTTOM}" fill="none" stroke="#888"/>'
        )


def _ticks(low: float, high: float, most: int) -> list[float]:
    """Return round values between low and high, at most so many."""
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= raw)
    first = math.ceil(low / step)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _widen(low: float, high: float) -> tuple[float, float]:
    """Return a range that is not empty."""
    margin = 0.5 * max(abs(low), 1e-3) if low == high else 0.04 * (high - low)
    return low - margin, high + margin


def _box(left: float, top: float, right: float, bottom: float) -> str:
    width = max(0.5, right - left - 0.5)
    return (
        f'<rect x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{bottom - top:.1f}" '
        f'fill="{_COLOURS[0]}"/>'
    )


def _text(x: float, y: float, text: str, anchor: str, colour: str = '#444', size: int = 11) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}" font-size="{size}" '
        f'font-family="sans-serif">{escape(text)}</text>'
    )


def _write(path: str | os.PathLike[str], panels: Sequence[str]) -> None:
    height = HEIGHT * len(panels)
    body = [
        f'<g transform="translate(0 {HEIGHT * i})">\n{panel}\n</g>'
        for i, panel in enumerate(panels)
    ]
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 '
        f'0 {WIDTH} {height}">'
    )
    with whole_file(path, sync=False) as temporary:
        temporary.write_text(
            '\n'.join([head, '<rect width="100%" height="100%" fill="white"/>', *body, '</svg>'])
            + '\n'
        )
