"""Measure the time of `import k_diffusion` relative to `import torch`.

The minimum over interleaved fresh processes, and the packages that the import loads.

python benchmarks/imports.py [--runs 7]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time


def seconds(statement: str) -> float:
    """The wall time of a fresh interpreter that runs one statement."""
    start = time.perf_counter()
    subprocess.run([sys.executable, '-c', statement], check=True)
    return time.perf_counter() - start


def packages(statement: str) -> set[str]:
    """The top-level packages that one statement loads."""
    script = f'{statement}\nimport sys; print(*{{name.split(".")[0] for name in sys.modules}})'
    return set(
        subprocess.run(
            [sys.executable, '-c', script], check=True, capture_output=True, text=True
        ).stdout.split()
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--runs', type=int, default=7)
    runs = parser.parse_args().runs
    statements = [
        'import torch',
        'import k_diffusion',
        'import torch, k_diffusion; k_diffusion.sampling',
    ]
    times: dict[str, list[float]] = {statement: [] for statement in statements}
    for _ in range(runs):
        for statement in statements:
            times[statement].append(seconds(statement))
    floor = min(times['import torch'])
    for statement in statements:
        extra = sorted(packages(statement) - packages('import torch') - {'k_diffusion'})
        best = min(times[statement])
        print(
            f'{statement:52} {best:6.3f} s   {best / floor:5.2f} x   new packages: '
            f'{", ".join(extra) or "none"}'
        )


if __name__ == '__main__':
    main()
