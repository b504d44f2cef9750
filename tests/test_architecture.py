"""Who may import whom (the table of the house), what `import k_diffusion` loads, and how large
things may get.
"""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / 'k_diffusion'
ROOMS = sorted(
    {
        p.stem if p.is_file() else p.name
        for p in PACKAGE.iterdir()
        if (p.suffix == '.py' and p.stem != '__init__') or (p / '__init__.py').exists()
    }
)

#: room -> the other rooms it may import, anywhere in its files.
MAY_IMPORT = {
    'core': (),
    'gns': (),
    'schedules': ('core',),
    'guidance': ('core',),
    'augmentation': ('core',),
    'layers': ('core',),
    'sampling': ('core',),
    'denoisers': ('core', 'schedules'),
    'models': ('core', 'layers'),
    'data': ('core', 'augmentation'),
    'encoders': ('core', 'models'),
    'evaluation': ('core', 'sampling'),
    'recipes': ('core', 'schedules'),
    'generation': ('core', 'sampling', 'schedules', 'guidance', 'recipes'),
    'probing': ('core', 'generation', 'guidance', 'recipes'),
    'external': ('core', 'denoisers', 'schedules'),
    'training': ('core', 'gns', 'schedules'),
    'config': (
        'core',
        'schedules',
        'denoisers',
        'models',
        'augmentation',
        'data',
        'encoders',
        'generation',
        'training',
    ),
    'integrations': ('core', 'schedules', 'denoisers', 'sampling', 'external', 'generation'),
    'tasks': tuple(room for room in ROOMS if room not in ('cli', 'webui', 'utils', 'integrations')),
    'cli': ('core', 'tasks', 'config', 'data', 'evaluation', 'generation', 'sampling', 'schedules'),
    'webui': tuple(room for room in ROOMS if room != 'utils'),
    'utils': tuple(ROOMS),
}
#: room -> what its face (__init__.py) alone may import besides: old names that live elsewhere.
FACE_MAY_IMPORT = {'layers': ('denoisers',), 'sampling': ('schedules', 'utils')}

#: third parties at the top of a file; everything else is imported where it is used.
ANYWHERE = {'torch', 'tqdm', 'safetensors', *sys.stdlib_module_names}
PICTURES = {'data', 'tasks', 'core/images.py'}


def files():
    return sorted(p for p in PACKAGE.rglob('*.py') if p != PACKAGE / '__init__.py')


def room_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix('.py')


def imported_rooms(path):
    """The rooms that a file imports, wherever in it the import stands."""
    package = ('k_diffusion', *path.relative_to(PACKAGE).parent.parts)
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = (*base, *(node.module or '').split('.')) if node.module else base
            names = [module] if len(module) > 1 else [(*module, alias.name) for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [tuple(alias.name.split('.')) for alias in node.names]
        yield from (
            name[1]
            for name in names
            if name[0] == 'k_diffusion' and len(name) > 1 and name[1] in ROOMS
        )


def test_every_room_is_in_the_table():
    assert set(ROOMS) <= set(MAY_IMPORT)
    assert 'core' in ROOMS and 'sampling' in ROOMS


@pytest.mark.parametrize('path', files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_keep_to_the_table(path):
    room = room_of(path)
    allowed = {
        room,
        *MAY_IMPORT[room],
        *(FACE_MAY_IMPORT.get(room, ()) if path.name == '__init__.py' else ()),
    }
    assert set(imported_rooms(path)) - allowed == set()


def test_the_table_is_enforced(tmp_path):
    """The reader of imports sees relative, absolute and nested ones."""
    fake = PACKAGE / 'sampling' / 'never_written.py'
    source = (
        'def f():\n    from ..models import x\n    import k_diffusion.training.ema\n    from '
        '.. import data\n'
    )
    path = type(
        'P',
        (),
        {
            'read_text': lambda self: source,
            'relative_to': lambda self, base: fake.relative_to(base),
        },
    )()
    assert set(imported_rooms(path)) == {'models', 'training', 'data'}


@pytest.mark.parametrize('path', files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_third_parties_at_the_top_are_few(path):
    room = room_of(path)
    allowed = ANYWHERE | (
        {path.stem.removesuffix('_modular')} if room == 'integrations' else set()
    )  # the program that a file serves
    allowed |= (
        {'PIL', 'rich'} if room in PICTURES or str(path.relative_to(PACKAGE)) in PICTURES else set()
    )
    tree = ast.parse(path.read_text())
    tops = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    names = {
        alias.name.split('.')[0]
        for node in tops
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    names |= {
        node.module.split('.')[0]
        for node in tops
        if isinstance(node, ast.ImportFrom) and not node.level
    }
    assert names - allowed - {'k_diffusion', '__future__'} == set()


def test_files_and_functions_stay_small():
    """A function's signature and docstring are not counted: they grow with what it documents."""
    for path in files():
        text = path.read_text()
        assert text.count('\n') <= 500, f'{path.name} has {text.count(chr(10))} lines'
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                first = node.body[1 if ast.get_docstring(node) and len(node.body) > 1 else 0]
                assert node.end_lineno - first.lineno < 60, f'{path.name}: {node.name}'


@pytest.mark.parametrize(
    'path', [p for p in files() if room_of(p) != 'cli'], ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_the_library_does_not_speak_of_flags(path):
    """Texts and comments outside the command line name no flag; what a setting is called there
    is apart.
    """
    nodes = list(ast.walk(ast.parse(path.read_text())))
    declared = {
        id(leaf)
        for node in nodes
        if isinstance(node, ast.keyword) and node.arg == 'flags'
        for leaf in ast.walk(node)
    }
    texts = [
        node.value
        for node in nodes
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and id(node) not in declared
    ]
    comments = [
        token.string
        for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline)
        if token.type == tokenize.COMMENT
    ]
    assert re.findall(r'(?<![\w-])--[a-z][\w-]*', '\n'.join(texts + comments)) == []


def imported_modules(path, modules):
    """The modules of the package that a file imports, wherever in it the import stands."""
    package = ['k_diffusion', *path.relative_to(PACKAGE).parent.parts]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = '.'.join([*base, *(node.module or '').split('.')]).rstrip('.')
            names = [f'{module}.{alias.name}' for alias in node.names]
            yield from (
                name if name in modules else module
                for name in names
                if name in modules or module in modules
            )


def test_no_module_imports_itself_in_a_circle():
    dotted = {
        path: '.'.join(path.relative_to(PACKAGE.parent).with_suffix('').parts) for path in files()
    }
    paths = {name.removesuffix('.__init__'): path for path, name in dotted.items()}
    imports = {name: set(imported_modules(path, paths)) - {name} for name, path in paths.items()}
    assert {'k_diffusion.training.trainer'} <= imports['k_diffusion.training.hooks']
    while imports:  # take away what imports nothing that is left, until only circles are
        free = {name for name, others in imports.items() if not others & imports.keys()}
        assert free, f'circles among {sorted(imports)}'
        imports = {name: others for name, others in imports.items() if name not in free}


def test_small_files_are_not_of_one_module_alone():
    """A file of under 40 lines that one module alone uses is a part of that module.

    Commands, faces of packages and what a face alone shows (a sampler, a schedule, a guidance) are
    apart.
    """
    dotted = {
        path: '.'.join(path.relative_to(PACKAGE.parent).with_suffix('').parts) for path in files()
    }
    paths = {name.removesuffix('.__init__'): path for path, name in dotted.items()}
    imports = {path: set(imported_modules(path, paths)) for path in paths.values()}
    users = {name: {path for path, names in imports.items() if name in names} for name in paths}
    assert PACKAGE / 'tasks/train.py' in users['k_diffusion.tasks.run.assembly']
    for name, path in paths.items():
        alone = len(users[name]) == 1 and all(user.name != '__init__.py' for user in users[name])
        small = (
            path.read_text().count('\n') < 40
            and path.name != '__init__.py'
            and room_of(path) != 'cli'
        )
        assert not (small and alone), f'{name} is used by {users[name]} alone'


def modules_after(statement):
    script = f'{statement}\nimport sys; print(chr(10).join(sys.modules))'
    return set(
        subprocess.run(
            [sys.executable, '-c', script], capture_output=True, text=True, check=True
        ).stdout.split()
    )


def test_importing_the_package_loads_nothing_that_torch_does_not():
    extra = {
        name.split('.')[0]
        for name in modules_after('import k_diffusion, torch') - modules_after('import torch')
    }
    assert extra <= {'k_diffusion'}


def test_samplers_need_torch_and_tqdm_alone():
    loaded = modules_after('import k_diffusion as K; K.sampling.sample_euler') - modules_after(
        'import torch'
    )
    extra = {name.split('.')[0] for name in loaded}
    assert extra - set(sys.stdlib_module_names) <= {'k_diffusion', 'tqdm'}
    assert 'k_diffusion' in extra


def test_rooms_are_attributes_after_one_import():
    script = (
        'import k_diffusion as K\nfor room in K.ROOMS: assert getattr(K, room).__name__ == '
        '"k_diffusion." + room, room\n'
        'assert K.Denoiser is K.layers.Denoiser is K.denoisers.Denoiser and K.__version__ and '
        '"sampling" in dir(K)\nprint("fine")'
    )
    assert (
        subprocess.run(
            [sys.executable, '-c', script], capture_output=True, text=True, check=True
        ).stdout
        == 'fine\n'
    )


#: Functions that can run what a file says, by the last part of their names; file of the package ->
#: those that it may call.
RUNNING = {
    'eval',
    'exec',
    'compile',
    '__import__',
    'exec_module',
    'run_path',
    'Unpickler',
    'get_class_from_dynamic_module',
}
RUNNING_OF = {
    'pickle': {'load', 'loads'},
    'torch': {'load', 'package'},
    'jit': {'load'},
    'hub': {'load'},
    'yaml': {'load', 'unsafe_load'},
    'dill': {'load', 'loads'},
    'joblib': {'load'},
    'marshal': {'load', 'loads'},
    'shelve': {'open'},
}
MAY_RUN = {
    'core/python_files.py': {'spec.loader.exec_module'},  # both behind allow_code
    'evaluation/features.py': {'torch.jit.load'},
}


def calls_that_run(path):
    """The calls of a file that can run what another file says, and the arguments that let a
    library do so.
    """
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and not node.level:
            yield from (
                f'{node.module}.{alias.name}'
                for alias in node.names
                if alias.name in RUNNING_OF.get((node.module or '').rpartition('.')[2], ())
            )
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        owner, _, last = called.rpartition('.')
        of_library = owner != 'safetensors.torch' and last in RUNNING_OF.get(
            owner.rpartition('.')[2], ()
        )
        if of_library or last in (RUNNING - {'eval', 'compile'} if owner else RUNNING):
            yield called
        for key in node.keywords:
            value = getattr(key.value, 'value', None)
            if (key.arg, value) in (
                ('weights_only', False),
                ('trust_remote_code', True),
                ('allow_pickle', True),
            ):
                yield f'{called}({key.arg}={value})'


def test_nothing_runs_what_a_file_says_but_behind_allow_code():
    for path in files():
        name = str(path.relative_to(PACKAGE))
        assert set(calls_that_run(path)) == MAY_RUN.get(name, set()), name
        if name in MAY_RUN:
            assert 'allow_code' in path.read_text()


def test_calls_that_run_are_seen(tmp_path):
    path = tmp_path / 'x.py'
    path.write_text("""import pickle, torch, yaml, numpy
from pickle import loads
def f(model):
    eval('1'); exec('1'); torch.load('x', weights_only=False); pickle.load(1)
    torch.jit.load('x'); yaml.load('x')
    pickle.Unpickler(1).load(); numpy.load('x', allow_pickle=True)
    g(trust_remote_code=True); torch.load('x')
    model.eval(); torch.compile(model); safetensors.torch.load(b'')
""")
    assert sorted(set(calls_that_run(path))) == sorted(
        [
            'eval',
            'exec',
            'g(trust_remote_code=True)',
            'numpy.load(allow_pickle=True)',
            'pickle.Unpickler',
            'pickle.load',
            'pickle.loads',
            'torch.jit.load',
            'torch.load',
            'torch.load(weights_only=False)',
            'yaml.load',
        ]
    )
