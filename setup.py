"""The folders configs/ and datasets/ travel in the wheel, where process/shipped.py finds them.

Everything else is told in pyproject.toml.
"""

from setuptools import find_packages, setup

SHIPPED = {f'handpose_jax._shipped.{name}': name for name in ('configs', 'datasets')}

setup(
    packages=[*find_packages(include=['handpose_jax', 'handpose_jax.*']), *SHIPPED],
    package_dir=SHIPPED,
    package_data={
        'handpose_jax': ['py.typed', 'weights/*'],
        **{name: ['**/*.py', '**/*.md'] for name in SHIPPED},
    },
)
