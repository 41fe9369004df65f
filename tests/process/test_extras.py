"""Whoever lacks a package is told which, what for, and the line that installs it."""

import ast
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
