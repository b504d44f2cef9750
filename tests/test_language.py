"""The language of docstrings, comments and messages: one imperative summary line, named arguments,
and none of the house dialect that readers stumbled over.

Rules are checked per package, so that a package joins `DONE` once all of it is rewritten.
`python tests/test_language.py` prints the figures of every package.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections import Counter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / 'k_diffusion'
LONGEST_LINE = 100

#: packages, and modules beside them, whose text is rewritten.
DONE = (
    'augmentation.py',
    'cli',
    'config',
    'core',
    'data',
    'denoisers',
    'encoders',
    'evaluation',
    'external',
    'generation',
    'gns.py',
    'guidance',
    'integrations',
    'layers',
    'models',
    'probing.py',
    'recipes.py',
    'sampling',
    'schedules',
    'tasks',
    'training',
    'utils.py',
)
#: files of these packages that are not rewritten yet.
OPEN: tuple[str, ...] = ()

#: house dialect -> what to write instead.
DIALECT = {
    r'(?<![tT]here )\b(?:is|are|was|were|makes?) no\b(?! (?:longer|larger|wider|more)\b)': (
        'is not a ...'
    ),
    r', say\b|\bsay$': 'for example, e.g.',
}


def rewritten_files():
    for entry in DONE:
        path = PACKAGE / entry
        for file in [path] if path.is_file() else sorted(path.rglob('*.py')):
            if file.relative_to(PACKAGE).as_posix() not in OPEN:
                yield file


def definitions(tree):
    """Yields (name, node, public) of the functions and classes of a module, methods included."""
    waiting = [('', node, True) for node in tree.body]
    while waiting:
        prefix, node, public = waiting.pop()
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            continue
        public = public and not node.name.startswith('_')
        yield prefix + node.name, node, public
        if isinstance(node, ast.ClassDef):
            waiting += [(f'{prefix}{node.name}.', child, public) for child in node.body]


def docstrings(tree):
    """Yields (name, docstring) of a module and of everything in it that has one."""
    for name, node in [
        ('<module>', tree),
        *((name, node) for name, node, _ in definitions(tree)),
    ]:
        docstring = ast.get_docstring(node)
        if docstring:
            yield name, docstring


def argument_names(function):
    arguments = function.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return [argument.arg for argument in every if argument.arg not in ('self', 'cls')]


def is_sampler(function):
    """True of functions that the registry calls: all of them take (steps, x), documented once."""
    return any('sampler' in ast.unparse(decorator) for decorator in function.decorator_list)


def documents_arguments(function):
    docstring = ast.get_docstring(function) or ''
    names = argument_names(function)
    if is_sampler(function):
        names = [name for name in names if name not in ('steps', 'x')]
    return 'Args:' in docstring or all(re.search(rf'\b{name}\b', docstring) for name in names)


def comments(source):
    """Yields (line, text) of the comments and the string literals of a module."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


def figures(files):
    """Counts what the rules are about over files."""
    count = Counter()
    for file in files:
        source = file.read_text()
        tree = ast.parse(source)
        count['lines'] += source.count('\n')
        count['long'] += sum(len(line) > LONGEST_LINE for line in source.splitlines())
        for _, node, public in definitions(tree):
            if not public:
                continue
            count['public'] += 1
            count['documented'] += ast.get_docstring(node) is not None
            if not isinstance(node, ast.ClassDef) and argument_names(node):
                count['with arguments'] += 1
                count['arguments named'] += documents_arguments(node)
        for _, docstring in docstrings(tree):
            lines = docstring.split('\n')
            count['long summaries'] += len(lines) > 1 and bool(lines[1].strip())
            count['What'] += re.match(r'(What|Whether)\b', docstring) is not None
        for pattern in DIALECT:
            count['dialect'] += sum(bool(re.search(pattern, text)) for _, text in comments(source))
    return count


FILES = list(rewritten_files())


@pytest.fixture(scope='module')
def counted():
    return figures(FILES)


@pytest.mark.parametrize('file', FILES, ids=lambda file: file.relative_to(PACKAGE).as_posix())
def test_text_keeps_to_the_rules(file):
    source = file.read_text()
    wrong = [
        f'{number}: longer than {LONGEST_LINE} columns'
        for number, line in enumerate(source.splitlines(), 1)
        if len(line) > LONGEST_LINE
    ]
    for name, docstring in docstrings(ast.parse(source)):
        lines = docstring.split('\n')
        if re.match(r'(What|Whether)\b', docstring):
            wrong.append(f'{name}: begin the docstring with a verb, not {lines[0].split()[0]!r}')
        if len(lines) > 1 and lines[1].strip():
            wrong.append(f'{name}: the summary must be one line, then a blank line')
    for number, text in comments(source):
        for pattern, better in DIALECT.items():
            for found in re.finditer(pattern, text):
                wrong.append(f'{number}: {found[0]!r}; write {better}')
    assert not wrong


def test_public_definitions_have_docstrings(counted):
    assert counted['documented'] >= 0.9 * counted['public'], counted


def test_public_functions_document_their_arguments(counted):
    assert counted['arguments named'] >= 0.9 * counted['with arguments'], counted


def main():
    packages = sorted({file.relative_to(PACKAGE).parts[0] for file in PACKAGE.rglob('*.py')})
    total = Counter()
    for name in packages:
        path = PACKAGE / name
        count = figures([path] if path.is_file() else sorted(path.rglob('*.py')))
        total += count
        print(f'{name:16}', *(f'{key} {number},' for key, number in count.items() if number))
    print(f'{"all":16}', *(f'{key} {number},' for key, number in total.items()))


if __name__ == '__main__':
    sys.exit(main())
