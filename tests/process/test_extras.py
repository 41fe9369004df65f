"""Whoever lacks a package is told which, what for, and the line that installs it."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from handpose_jax.process import extras

ROOT = Path(__file__).parents[2]
# PyTorch's weights are read by whoever has PyTorch.
FOREIGN = {'torch', 'handpose_jax'}


def test_every_module_that_the_package_imports_is_known():
    imported = set()
    for path in (ROOT / 'handpose_jax').rglob('*.py'):
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition('.')[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                imported.add(node.module.partition('.')[0])
    assert imported - set(sys.stdlib_module_names) - FOREIGN <= set(extras._EXTRAS)


def test_the_extras_are_those_of_pyproject():
    project = tomllib.loads((ROOT / 'pyproject.toml').read_text(encoding='utf-8'))['project']
    assert set(extras._MODULES) - {''} <= set(project['optional-dependencies'])
    assert len(project['dependencies']) == len(extras._MODULES[''])


def test_the_line_is_that_of_the_checkout_or_of_the_wheel(monkeypatch, tmp_path):
    error = ModuleNotFoundError(name='orbax.checkpoint')
    assert extras.missing(error, 'handpose train') == (
        'handpose train needs the module orbax, which is not installed: '
        f'pip install -e ".[train]" in {ROOT}'
    )
    assert extras.how_to_install('onnx', 'numpy', 'jax').startswith(
        'pip install -e ".[export,train]" '
    )
    monkeypatch.setattr(extras, '__file__', str(tmp_path / 'a' / 'b' / 'c.py'))
    assert 'py3-none-any.whl[litert]", with the path' in extras.how_to_install('ai_edge_litert')


@pytest.mark.parametrize('name', ['handpose_jax.nowhere', 'somebody_elses', None])
def test_a_module_of_somebody_else_is_not_explained(name):
    assert extras.missing(ModuleNotFoundError(name=name), 'handpose train') is None


# Finds no module of the extra `train`, as an installation of the core alone.
CORE_ALONE = """
import runpy, sys
from handpose_jax.process import extras
class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in extras._MODULES['train']:
            raise ModuleNotFoundError(f'No module named {name!r}', name=name)
sys.meta_path.insert(0, Nothing())
kind, name, *sys.argv[1:] = sys.argv[1:]
sys.argv[0] = name
sys.path[0] = ''
run = runpy.run_module if kind == 'module' else runpy.run_path
run(name, run_name='__main__')
"""


@pytest.mark.parametrize(
    'command',
    [
        'module handpose_jax.main --config configs/quickstart.py',
        'module handpose_jax train --config configs/quickstart.py',
        'module handpose_jax evaluate --workdir W',
        'module handpose_jax export --workdir W',
        'module handpose_jax prepare synthetic_hands',
        'module handpose_jax browse D',
        'path datasets/prepare.py synthetic_hands',
        'path datasets/browse.py D',
    ],
)
def test_a_command_without_its_packages_ends_in_that_sentence(command):
    ended = subprocess.run(
        [sys.executable, '-c', CORE_ALONE, *command.split()],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 1
    assert 'needs the module' in ended.stderr
    assert 'pip install -e ".[' in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
