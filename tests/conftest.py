"""What every test starts from: a quiet JAX, Keras on JAX, no display; and two shared fixtures."""

import os
import pathlib

# Read at import, so they are set before any test module imports these libraries.
os.environ['KERAS_BACKEND'] = 'jax'
os.environ['MPLBACKEND'] = 'Agg'
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

import jaxtyping
import pytest


@pytest.fixture(scope='session')
def assets():
    """The folder of data that cannot be published with the code; without it the test is skipped."""
    if 'HANDPOSE_ASSETS' not in os.environ:
        pytest.skip('HANDPOSE_ASSETS is not set to the folder of test data')
    folder = pathlib.Path(os.environ['HANDPOSE_ASSETS'])
    if not folder.is_dir():
        pytest.fail(f'HANDPOSE_ASSETS names no folder: {folder}')
    return folder


@pytest.fixture
def unchecked():
    """Turns the run-time type checks off: users have none, and see the package's own errors."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update('jaxtyping_disable', True)
    yield
    jaxtyping.config.update('jaxtyping_disable', before)
