#!/usr/bin/env python3
"""Build sdist and wheel from the committed files, and test the wheel in a clean environment.

    python tools/release.py [--url https://HOST/OWNER/k-diffusion] [--out dist] [--no-test]

The environment of the test has the wheel and what it requires, and nothing else. With a URL the
relative links and pictures of the README become absolute and the package metadata names the
project's pages; the repository is not changed.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tarfile
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

CHECK = """
import sys
import torch, k_diffusion as K

samples = K.sample(lambda x, sigma: x / (1 + sigma[:, None] ** 2), [1000, 2], steps=10, seeds=0)
assert abs(samples.std().item() - 1) < 0.1, samples.std()
assert 'site-packages' in K.__file__, K.__file__
assert K.config.load_config('config_demo')['model']['type'] == 'image_v1'
print('k-diffusion', K.__version__, 'torch', torch.__version__, 'python', sys.version.split()[0])
"""


def main() -> None:
    """Build, then test."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--url', help='the public address of the repository')
    parser.add_argument('--branch', default='main', help='the branch that links point to')
    parser.add_argument('--out', type=Path, default=ROOT / 'dist')
    parser.add_argument('--no-test', action='store_true', help='build only')
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tree = export(Path(folder) / 'tree')
        if options.url:
            set_url(tree, options.url.rstrip('/'), options.branch)
        wheel, sdist = build(tree, options.out.resolve())
        check_sdist(sdist)
        if not options.no_test:
            check_wheel(wheel, Path(folder) / 'environment')
    print(wheel, sdist, sep='\n')


def export(target: Path) -> Path:
    """Copy the committed files into a folder."""
    target.mkdir()
    archive = subprocess.run(
        ['git', 'archive', 'HEAD'], cwd=ROOT, check=True, stdout=subprocess.PIPE
    ).stdout
    subprocess.run(['tar', '-x', '-C', str(target)], input=archive, check=True)
    return target


def set_url(tree: Path, url: str, branch: str) -> None:
    """Make the links of the README absolute, and name the project's pages in the metadata."""
    readme = tree / 'README.md'
    readme.write_text(absolute_links(readme.read_text(), url, branch))
    project = tree / 'pyproject.toml'
    pages = {
        'Homepage': url,
        'Documentation': f'{url}/blob/{branch}/docs/index.md',
        'Changelog': f'{url}/blob/{branch}/CHANGELOG.md',
        'Issues': f'{url}/issues',
    }
    lines = ''.join(f'{name} = "{address}"\n' for name, address in pages.items())
    text = project.read_text().replace('[project.urls]\n', f'[project.urls]\n{lines}')
    project.write_text(text)


def absolute_links(text: str, url: str, branch: str) -> str:
    """Return Markdown whose relative links point into the repository at an address."""

    def rewrite(match: re.Match[str]) -> str:
        kind = 'raw' if match['picture'] else 'blob'
        return f'{match["picture"]}[{match["text"]}]({url}/{kind}/{branch}/{match["target"]})'

    pattern = r'(?P<picture>!?)\[(?P<text>[^\]]*)\]\((?!https?:|#)(?P<target>[^)\s]+)\)'
    return re.sub(pattern, rewrite, text)


def build(tree: Path, out: Path) -> tuple[Path, Path]:
    """Build the wheel and the sdist of a tree."""
    out.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, '-m', 'build', '--outdir', str(out), str(tree)], check=True)
    newest = max(out.glob('*.whl'), key=lambda path: path.stat().st_mtime)
    sdist = max(out.glob('*.tar.gz'), key=lambda path: path.stat().st_mtime)
    return newest, sdist


def check_sdist(sdist: Path) -> None:
    """Raise an error if the sdist lacks docs, examples, benchmarks or a picture of the README."""
    with tarfile.open(sdist) as archive:
        names = {name.partition('/')[2] for name in archive.getnames()}
    targets = re.findall(r'\]\((?!https?:|#)([^)\s#]+)', (ROOT / 'README.md').read_text())
    expected = {'docs/index.md', 'examples/digit_grids.py', 'benchmarks/RESULTS.md', *targets}
    missing = sorted(expected - names)
    if missing:
        raise SystemExit(
            f'the sdist must hold {", ".join(missing)}; extend tool.hatch in pyproject'
        )


def check_wheel(wheel: Path, environment: Path) -> None:
    """Install a wheel into a new environment and run CHECK and the command there."""
    venv.create(environment, with_pip=True)
    python = environment / ('Scripts' if sys.platform == 'win32' else 'bin') / 'python'
    pins = ['-c', str(ROOT / 'constraints.txt')]
    subprocess.run([python, '-m', 'pip', 'install', '-q', *pins, str(wheel)], check=True)
    for arguments in (['-c', CHECK], ['-m', 'k_diffusion.cli', 'samplers', '--json']):
        subprocess.run([python, *arguments], cwd=environment, check=True, stdout=subprocess.DEVNULL)


if __name__ == '__main__':
    main()
