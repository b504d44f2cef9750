"""The language of docstrings, comments and messages: one imperative summary line, named arguments,
and none of the house dialect that readers stumbled over.

The package keeps to all rules; tests, benchmarks, tools and examples to those on the first word and
on dialect. `python tests/test_language.py` prints the figures of every package.
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

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / 'k_diffusion'
LONGEST_LINE = 100

#: a phrase that readers stumbled over -> its replacement.
DIALECT = {
    r'(?<![tT]here )\b(?:is|are|was|were|makes?) no\b(?! (?:longer|larger|wider|more)\b)': (
        'is not a ...'
    ),
    r', say\b|\bsay$': 'for example, e.g.',
}

#: Participles that say nothing as a name: found what, kept which? A noun says it.
PARTICIPLES = frozenset(
    ('told', 'chosen', 'found', 'kept', 'made', 'given', 'known', 'held', 'left', 'drawn', 'sent')
    + ('written', 'wanted', 'seen', 'asked', 'taken', 'gone', 'listed', 'noted', 'turned', 'got')
    + ('shown',)
)

#: Names of PARTICIPLES that stay -> the reason.
KEPT_NAMES = {
    'left': 'a side of a picture or of an interval',
    'kept': 'a field of the files of decoded pictures',
}


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


def is_autograd_function(node):
    """True of a class whose forward and backward have the arguments that torch prescribes."""
    return isinstance(node, ast.ClassDef) and any(
        ast.unparse(base) == 'torch.autograd.Function' for base in node.bases
    )


def find_undocumented_arguments(tree):
    """Yields the public functions with an argument that their docstring does not name."""
    skipped = {
        id(method)
        for node in ast.walk(tree)
        if is_autograd_function(node)
        for method in node.body
        if getattr(method, 'name', None) in ('forward', 'backward')
    }
    for name, node, public in definitions(tree):
        is_checked = public and not isinstance(node, ast.ClassDef) and id(node) not in skipped
        if is_checked and not documents_arguments(node):
            yield f'{name}: describe its arguments under Args'


def documents_arguments(function):
    docstring = ast.get_docstring(function) or ''
    names = argument_names(function)
    if is_sampler(function):
        names = [name for name in names if name not in ('steps', 'x')]
    return 'Args:' in docstring or all(re.search(rf'\b{name}\b', docstring) for name in names)


def find_unknown_arguments(tree):
    """Yields a complaint for each entry under Args that names no argument of its function."""
    for name, node, _ in definitions(tree):
        section = re.search(r'\nArgs:\n((?: {4}.*\n?|\n)+)', ast.get_docstring(node) or '')
        signatures = [
            method
            for method in (node.body if isinstance(node, ast.ClassDef) else [node])
            if not isinstance(node, ast.ClassDef) or getattr(method, 'name', '') == '__init__'
        ]
        if section is None or not signatures:
            continue  # a data class names its fields, a class without __init__ those of its base
        arguments = {argument.arg for argument in ast.walk(signatures[0].args) if is_arg(argument)}
        for entry in re.findall(r'^ {4}\*{0,2}(\w+)(?: \(.*?\))?: ', section[1], re.M):
            if entry not in arguments:
                yield f'{name}: {entry} under Args is not an argument'


def is_arg(node):
    return isinstance(node, ast.arg)


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
            count['with arguments'] += not isinstance(node, ast.ClassDef) and bool(
                argument_names(node)
            )
        count['arguments unnamed'] += len(list(find_undocumented_arguments(tree)))
        for _, docstring in docstrings(tree):
            lines = docstring.split('\n')
            count['long summaries'] += len(lines) > 1 and bool(lines[1].strip())
            count['What'] += re.match(r'(What|Whether)\b', docstring) is not None
        for pattern in DIALECT:
            count['dialect'] += sum(bool(re.search(pattern, text)) for _, text in comments(source))
    return count


FILES = sorted(PACKAGE.rglob('*.py'))
OTHERS = sorted(
    path
    for folder in ('benchmarks', 'examples', 'tests', 'tools')
    for path in (ROOT / folder).rglob('*.py')
    if path != Path(__file__).resolve()  # it holds the phrases as data
)


def find_first_words(tree):
    """Yields a complaint for each docstring that opens with What or Whether."""
    for name, docstring in docstrings(tree):
        if re.match(r'(What|Whether)\b', docstring):
            yield f'{name}: begin the docstring with a verb or a noun, not {docstring.split()[0]!r}'


def assigned_names(tree):
    """Yields (line, name) of everything that a module names: functions, classes, arguments,
    variables and attributes.
    """
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.attr
        elif isinstance(node, (ast.ExceptHandler, ast.MatchAs)) and node.name:
            yield node.lineno, node.name


def find_participles(tree):
    """Yields a complaint for each name that is nothing but a participle."""
    for line, name in assigned_names(tree):
        word = name.strip('_').lower()
        if word in PARTICIPLES - KEPT_NAMES.keys():
            yield f'{line}: {name}; name it by a noun that says what it is, or by a verb'


def find_dialect(source):
    """Yields a complaint for each phrase of DIALECT."""
    for number, text in comments(source):
        for pattern, better in DIALECT.items():
            for match in re.finditer(pattern, text):
                yield f'{number}: {match[0]!r}; write {better}'


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
    tree = ast.parse(source)
    for name, docstring in docstrings(tree):
        lines = docstring.split('\n')
        if len(lines) > 1 and lines[1].strip():
            wrong.append(f'{name}: the summary must be one line, then a blank line')
    wrong += [*find_undocumented_arguments(tree), *find_first_words(tree), *find_dialect(source)]
    wrong += [*find_unknown_arguments(tree), *find_participles(tree)]
    assert not wrong


@pytest.mark.parametrize('file', OTHERS, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_text_beside_the_package(file):
    source = file.read_text()
    tree = ast.parse(source)
    assert not [*find_first_words(tree), *find_dialect(source), *find_participles(tree)]


def test_participles_are_seen_wherever_a_name_is_given():
    source = """
def told(kept_items, *, given): pass
class Found: pass
def f(x):
    self._drawn, (asked, left) = x
    for seen in x:
        try: lambda known: known
        except ValueError as wanted: pass
    return [made for made in x if (noted := made)]
"""
    complaints = [line.split(';')[0] for line in find_participles(ast.parse(source))]
    assert sorted(complaints) == [
        '2: given', '2: told', '3: Found', '5: _drawn', '5: asked', '6: seen', '7: known',
        '8: wanted', '9: made', '9: noted',
    ]  # fmt: skip


def test_an_entry_of_args_is_an_argument():
    source = '''
def f(x, y):
    """Do.

    Args:
        x: Of a.
        z: Of b.
        **y: Of c.
    """
'''
    assert list(find_unknown_arguments(ast.parse(source))) == ['f: z under Args is not an argument']


def test_public_definitions_have_docstrings(counted):
    assert counted['documented'] >= 0.9 * counted['public'], counted


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
