"""Who may import whom, read from the source; and what an import really loads.

The order is docs/architecture.md's: a module imports only from tiers below its own.
"""

import ast
import dataclasses
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = 'handpose_jax'

TIERS = (
    {'config', 'process', 'hand', 'types', 'sessions', 'sidecars'},
    {'geometry'},
    {'heatmaps', 'models', 'evaluation', 'synthetic', 'visualize'},
    {'data'},
    {'training'},
    {'inference'},
    {'runtimes'},
    {'predictor'},
    {'train', 'evaluate', 'export', 'predict', 'save_weights', 'evaluation.report'},
    {'main'},
    {'cli'},
    {'__main__'},
)
TOP = 8
# A report is pictures and pages of what other rooms measured, so it stands above them.
UPSTAIRS = 'evaluation.report'
SIDEWAYS_IN_THE_TOP = {('train', 'evaluate')}

# What is fenced in -> where it may be imported: files and folders of the package.
FENCES = {
    'flax.linen': ('models/',),
    'orbax': ('training/checkpoints.py', 'training/workdirs.py'),
    'tensorflow_datasets': ('data/prepared.py',),
    'tensorflow': ('export/', 'runtimes.py', 'sessions.py'),
    # It imports TensorFlow itself.
    'jax.experimental.jax2tf': ('export/', 'runtimes.py'),
    'pickletools': ('data/conversion/safe_pickle.py',),
}
ONLY_IN_FUNCTIONS = ('tensorflow', 'jax.experimental.jax2tf')
# Loading a pickle runs what it says; data/conversion/safe_pickle.py reads them without that.
NEVER_IN_THE_PACKAGE = ('datasets', 'configs', 'benchmarks', 'pickle')
ALLOWED_IN_DATASETS = tuple(
    f'{PACKAGE}.{name}'
    for name in ('config', 'hand', 'types', 'geometry', 'synthetic', 'data', 'visualize', 'process')
)


@dataclasses.dataclass(frozen=True)
class Import:
    """One import found in a file; `from a import b` may mean a.b, so both names are kept."""

    names: tuple[str, ...]
    line: int
    in_function: bool

    def is_of(self, module: str) -> bool:
        return any(within(name, module) for name in self.names)


def within(name: str, module: str) -> bool:
    return name == module or name.startswith(module + '.')


def find_imports(path: Path, module: str) -> list[Import]:
    """All imports of a file: statements, importlib calls and `flax.linen` reached as an attribute.

    Args:
        path: the file.
        module: its dotted name, to resolve relative imports; ends in .__init__ for a package.
    """
    found: list[Import] = []

    def visit(node: ast.AST, in_function: bool) -> None:
        for names in names_imported(node, module):
            found.append(Import(names, getattr(node, 'lineno', 0), in_function))
        inside = in_function or isinstance(
            node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
        )
        for child in ast.iter_child_nodes(node):
            visit(child, inside)

    visit(ast.parse(path.read_text(encoding='utf-8'), str(path)), False)
    return found


def names_imported(node: ast.AST, module: str) -> Iterator[tuple[str, ...]]:
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield (alias.name,)
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ''
        if node.level:
            parent = module.split('.')[: -node.level]
            base = '.'.join([*parent, *([base] if base else [])])
        for alias in node.names:
            yield (base, f'{base}.{alias.name}')
    elif isinstance(node, ast.Call):
        called = ast.unparse(node.func)
        first = node.args[0] if node.args else None
        if called in ('importlib.import_module', 'import_module', '__import__') and (
            isinstance(first, ast.Constant) and isinstance(first.value, str)
        ):
            yield (first.value,)
    elif isinstance(node, ast.Attribute) and ast.unparse(node) in FENCES:
        yield (ast.unparse(node),)


def source_files(root: Path) -> dict[str, Path]:
    """Dotted name to file of every module of the package under root."""
    return {
        '.'.join(path.relative_to(root).with_suffix('').parts): path
        for path in sorted((root / PACKAGE).rglob('*.py'))
    }


def room_of(module: str) -> str:
    """The folder or file of the package that a module stands in."""
    name = module.removeprefix(f'{PACKAGE}.')
    return UPSTAIRS if within(name, UPSTAIRS) else name.split('.')[0]


def tier_of(part: str) -> int | None:
    return next((number for number, tier in enumerate(TIERS) if part in tier), None)


def targets(found: Import, modules: dict[str, Path]) -> set[str]:
    """The modules of the package that an import loads: the most specific that exist."""
    for name in reversed(found.names):
        for candidate in (name, f'{name}.__init__'):
            if candidate in modules:
                return {candidate}
    return set()


def breaches(root: Path) -> list[str]:
    """Every breach of the rules in the tree under root, one sentence each."""
    modules = source_files(root)
    wrong: list[str] = []
    graph: dict[str, set[str]] = {}
    for module, path in modules.items():
        inside = path.relative_to(root / PACKAGE).as_posix()
        part = room_of(module)
        tier = tier_of(part)
        if part != '__init__' and tier is None:
            wrong.append(f'{inside}: is in no tier; add it to TIERS')
        for found in find_imports(path, module):
            where = f'{inside}:{found.line}'
            for fenced, allowed in FENCES.items():
                if found.is_of(fenced):
                    if not any(inside.startswith(place) for place in allowed):
                        wrong.append(f'{where}: {fenced} is only for {", ".join(allowed)}')
                    elif fenced in ONLY_IN_FUNCTIONS and not found.in_function:
                        wrong.append(f'{where}: {fenced} is only for the inside of functions')
            for outside in NEVER_IN_THE_PACKAGE:
                if found.is_of(outside):
                    wrong.append(f'{where}: the package never imports {outside}')
            for target in targets(found, modules):
                graph.setdefault(module, set()).add(target)
                other = room_of(target)
                if tier is None or other in ('__init__', part):
                    continue
                other_tier = tier_of(other)
                sideways = tier == other_tier == TOP
                if other_tier is not None and other_tier > tier:
                    wrong.append(f'{where}: {part} is below {other} and may not import it')
                if sideways and (part, other) not in SIDEWAYS_IN_THE_TOP:
                    wrong.append(f'{where}: {part} may not import {other} beside it')
    wrong += [f'cycle: {" -> ".join(cycle)}' for cycle in find_cycles(graph)]
    return wrong + breaches_outside(root)


def breaches_outside(root: Path) -> list[str]:
    wrong = []
    for folder in ('datasets', 'configs', 'benchmarks'):
        for path in sorted((root / folder).rglob('*.py')):
            where = path.relative_to(root).as_posix()
            # A script's own folder comes first on the import path and would hide the module.
            for part in path.relative_to(root / folder).with_suffix('').parts:
                if folder != 'configs' and part in sys.stdlib_module_names:
                    wrong.append(f'{where}: bears the name of the standard module {part}')
            for found in find_imports(path, path.stem):
                if found.is_of('datasets'):
                    wrong.append(f'{where}:{found.line}: datasets is another package of that name')
                if (
                    folder == 'datasets'
                    and found.is_of(PACKAGE)
                    and not any(found.is_of(allowed) for allowed in ALLOWED_IN_DATASETS)
                ):
                    wrong.append(f'{where}:{found.line}: datasets may not import this')
                if folder == 'configs' and not (
                    found.is_of('ml_collections') or found.is_of(f'{PACKAGE}.config')
                ):
                    wrong.append(
                        f'{where}:{found.line}: configs import only ml_collections and the recipes'
                    )
    return wrong


def find_cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """One cycle for each way back found by depth-first search."""
    cycles: list[list[str]] = []
    done: set[str] = set()

    def walk(module: str, trail: list[str]) -> None:
        if module in trail:
            cycles.append([*trail[trail.index(module) :], module])
        elif module not in done:
            for target in sorted(graph.get(module, ())):
                walk(target, [*trail, module])
            done.add(module)

    for module in sorted(graph):
        walk(module, [])
    return cycles


def test_the_project_keeps_the_rules():
    assert breaches(ROOT) == []


def test_the_project_is_really_read():
    modules = source_files(ROOT)
    assert f'{PACKAGE}.geometry' in modules
    found = find_imports(modules[f'{PACKAGE}.evaluation.metrics'], f'{PACKAGE}.evaluation.metrics')
    assert any(item.is_of(f'{PACKAGE}.evaluation.protocols') for item in found)


def plant(root, files):
    for name in ('__init__.py', 'hand.py', 'geometry.py', 'models/__init__.py', 'data/__init__.py'):
        path = root / PACKAGE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('')
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


P = PACKAGE
SEEDED_BREACHES = {
    'upwards': ({f'{P}/hand.py': f'from {P} import geometry'}, 'hand is below geometry'),
    'upwards, by its full name': (
        {f'{P}/geometry.py': f'import {P}.data.sources', f'{P}/data/sources.py': ''},
        'geometry is below data',
    ),
    'upwards, relative': ({f'{P}/geometry.py': 'from . import data'}, 'geometry is below data'),
    'upwards, relative, from a folder': (
        {f'{P}/models/unet.py': 'from ..data import x'},
        'models is below data',
    ),
    'upwards, inside a function': (
        {f'{P}/geometry.py': f'def f():\n  from {P}.train import x', f'{P}/train.py': ''},
        'geometry is below train',
    ),
    'sideways in the top tier': (
        {f'{P}/evaluate.py': f'import {P}.train', f'{P}/train.py': ''},
        'evaluate may not import train',
    ),
    'a report in what it reports on': (
        {
            f'{P}/evaluation/metrics.py': f'import {P}.evaluation.report',
            f'{P}/evaluation/report/__init__.py': '',
        },
        'evaluation is below evaluation.report',
    ),
    'a cycle within a tier': (
        {
            f'{P}/models/losses.py': f'from {P} import heatmaps',
            f'{P}/heatmaps.py': f'from {P}.models.losses import x',
        },
        f'cycle: {P}.heatmaps -> {P}.models.losses -> {P}.heatmaps',
    ),
    'a module without a tier': ({f'{P}/drawer.py': ''}, 'drawer.py: is in no tier'),
    'linen outside models': (
        {f'{P}/training/losses.py': 'from flax import linen as nn'},
        'flax.linen',
    ),
    'linen as an attribute': (
        {f'{P}/training/losses.py': 'import flax\nx = flax.linen.Module'},
        'losses.py:2: flax.linen',
    ),
    'orbax outside checkpoints': (
        {f'{P}/training/state.py': 'import orbax.checkpoint'},
        'orbax is only',
    ),
    'TFDS outside sources': (
        {f'{P}/data/pipeline.py': 'import tensorflow_datasets as tfds'},
        'tensorflow_datasets is only',
    ),
    'TensorFlow in training': (
        {f'{P}/train.py': 'def f():\n  import tensorflow as tf'},
        'tensorflow is only for export/',
    ),
    'TensorFlow at the top': ({f'{P}/export/x.py': 'import tensorflow'}, 'inside of functions'),
    'jax2tf at the top': (
        {f'{P}/export/x.py': 'from jax.experimental import jax2tf'},
        'jax2tf is only for the inside',
    ),
    'TensorFlow through importlib': (
        {f'{P}/train.py': "import importlib\nimportlib.import_module('tensorflow.lite')"},
        'train.py:2: tensorflow',
    ),
    'pickle': ({f'{P}/data/sources.py': 'import pickle'}, 'the package never imports pickle'),
    'pickle in its safe reader': (
        {f'{P}/data/conversion/safe_pickle.py': 'from pickle import loads'},
        'the package never imports pickle',
    ),
    'pickletools outside the safe reader': (
        {f'{P}/data/sources.py': 'import pickletools'},
        'pickletools is only for data/conversion/safe_pickle.py',
    ),
    'the configs': ({f'{P}/train.py': 'from configs import cmu'}, 'never imports configs'),
    'datasets importing the training': (
        {'datasets/rhd/rhd_dataset_builder.py': f'from {P} import train'},
        'datasets may not import this',
    ),
    'import datasets': ({'benchmarks/speed.py': 'import datasets'}, 'another package'),
    'a config importing jax': ({'configs/cmu.py': 'import jax'}, 'only ml_collections and'),
    'a script that hides a module': ({'benchmarks/profile.py': ''}, 'standard module profile'),
}


@pytest.mark.parametrize('name', SEEDED_BREACHES)
def test_a_seeded_breach_is_caught(tmp_path, name):
    files, message = SEEDED_BREACHES[name]
    plant(tmp_path, files)
    (breach,) = breaches(tmp_path)
    assert message in breach


def test_what_is_allowed_is_not_a_breach(tmp_path):
    plant(
        tmp_path,
        {
            f'{P}/train.py': f'from {P} import evaluate, hand\nfrom {P}.data import sources',
            f'{P}/evaluate.py': f'from {P}.models import build',
            f'{P}/data/prepared.py': 'import tensorflow_datasets',
            f'{P}/data/conversion/safe_pickle.py': 'import pickletools',
            'datasets/rhd/rhd_layout.py': f'import pickle\nfrom {P}.data import sources',
            f'{P}/data/pipeline.py': 'from . import sources\nfrom ..hand import NUM_KEYPOINTS',
            f'{P}/models/unet.py': 'from flax import linen as nn\nfrom .layers import x',
            f'{P}/models/layers.py': 'import flax.linen as nn',
            f'{P}/models/__init__.py': f'from {P}.models import unet',
            f'{P}/training/checkpoints.py': 'import orbax.checkpoint\nimport grain.checkpoint',
            f'{P}/export/x.py': (
                'def f():\n import tensorflow\n from jax.experimental import jax2tf'
            ),
            f'{P}/main.py': f'from {P} import train',
            'datasets/prepare.py': f'import tensorflow\nfrom {P} import hand',
            'configs/cmu.py': 'import ml_collections\nfrom ml_collections import config_dict',
            'benchmarks/latency.py': f'from {P} import runtimes',
        },
    )
    assert breaches(tmp_path) == []


def loaded_by(statement: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after a statement."""
    code = f'import sys; {statement}; print(*{{name.split(".")[0] for name in sys.modules}})'
    result = subprocess.run(
        [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(result.stdout.split())


def test_importing_the_package_imports_nothing_heavy():
    loaded = loaded_by(f'import {PACKAGE}; {PACKAGE}.__version__')
    assert PACKAGE in loaded
    assert not loaded & {'jax', 'jaxlib', 'numpy', 'cv2', 'flax', 'tensorflow', 'jaxtyping'}


@pytest.mark.parametrize('module', ['main', 'train', 'evaluate', 'predict'])
def test_training_and_prediction_import_no_tensorflow(module):
    if importlib.util.find_spec(f'{PACKAGE}.{module}') is None:
        pytest.skip(f'{PACKAGE}.{module} does not exist')
    loaded = loaded_by(f'import {PACKAGE}.{module}')
    assert PACKAGE in loaded
    assert not loaded & {'tensorflow', 'tensorflow_datasets', 'tf_keras', 'keras'}


def test_writing_metrics_imports_no_tensorflow():
    assert 'tensorflow' not in loaded_by(f'import {PACKAGE}.training.writers')


def test_opening_an_exported_file_needs_its_runtime_alone():
    loaded = loaded_by(f'from {PACKAGE} import sessions')
    assert PACKAGE in loaded
    assert not loaded & {'numpy', 'jaxtyping', 'jax', 'tensorflow'}


def test_predicting_with_an_exported_file_needs_no_jax():
    loaded = loaded_by(f'import {PACKAGE}.predictor, {PACKAGE}.visualize')
    assert 'PIL' in loaded
    assert not loaded & {'jax', 'flax', 'orbax', 'grain', 'mitsuba', 'tensorflow', 'matplotlib'}
    # The core is installed without these too: tests/test_wheel.py.
    assert not loaded & {'scipy', 'etils', 'ml_collections', 'absl', 'tqdm', 'threadpoolctl'}
