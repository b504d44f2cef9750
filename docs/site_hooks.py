"""Hooks of mkdocs: pages of the repository outside of docs/ become pages of the site."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]

#: A file of the repository -> its page in the site.
PAGES = {
    'benchmarks/RESULTS.md': 'results.md',
    'CHANGELOG.md': 'changelog.md',
    'CONTRIBUTING.md': 'contributing.md',
    'SECURITY.md': 'security.md',
}


def on_files(files: Files, config: Any) -> Files:
    """Add the pages of PAGES."""
    for source, page in PAGES.items():
        text = (ROOT / source).read_text(encoding='utf-8')
        files.append(File.generated(config, page, content=links_from_docs(text, source)))
    return files


def links_from_docs(text: str, source: str) -> str:
    """Rewrite the relative links of a file so that they hold in docs/."""
    folder = (ROOT / source).parent

    def rewrite(match: re.Match[str]) -> str:
        target, anchor = match['target'], match['anchor'] or ''
        path = (folder / target).resolve().relative_to(ROOT).as_posix()
        return f'](../{path}{anchor})'

    return re.sub(r'\]\((?!https?:|#)(?P<target>[^)#\s]+)(?P<anchor>#[^)]*)?\)', rewrite, text)


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Point links that leave docs/ to the pages that stand for their targets."""
    up = '../' * page.file.src_uri.count('/')
    for source, target in PAGES.items():
        markdown = markdown.replace(f']({up}../{source}', f']({up}{target}')
    return markdown.replace(f']({up}../docs/', f']({up or "./"}')
