"""What every test starts from: a quiet JAX, Keras on JAX, no display; and two shared fixtures."""

import atexit
import collections
import os
import pathlib
import shutil
import sys
import tempfile

# Read at import, so they are set before any test module imports these libraries.
os.environ['KERAS_BACKEND'] = 'jax'
os.environ['MPLBACKEND'] = 'Agg'
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
# Most of the time of these tests is compilation: do it without optimization, and only once for each
# program, subprocesses included.
os.environ.setdefault('XLA_FLAGS', '--xla_backend_optimization_level=0')
if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
    _cache = tempfile.mkdtemp(prefix='handpose_jax_tests_')
    atexit.register(shutil.rmtree, _cache, ignore_errors=True)
    os.environ['JAX_COMPILATION_CACHE_DIR'] = _cache
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.3')

# The scripts of datasets/ are no package; appended, so that they hide nothing.
sys.path.append(str(pathlib.Path(__file__).parents[1] / 'datasets'))

import jaxtyping
import pytest

# The fast set: what needs neither a compiled network, nor a renderer, nor many processes.
_FAST = (
    *('test_geometry', 'test_hand', 'test_imports', 'test_predictor', 'test_sidecars'),
    'test_visualize',
    *('data/conversion/', 'data/test_images', 'data/test_sources', 'data/test_transforms'),
    'data/test_resampling',
    *('evaluation/test_metrics', 'evaluation/test_protocols', 'training/test_early_stopping'),
    *('training/test_provenance', 'training/test_writers', 'datasets/test_dataset_rhd'),
    'datasets/test_rhd_layout',
)


def pytest_collection_modifyitems(items):
    """Marks the fast set, see CONTRIBUTING.md, and lets files with slow tests begin.

    Several workers take a file each; one that took a long file last would be waited for.
    """
    folder = pathlib.Path(__file__).parent
    for item in items:
        place = item.path.relative_to(folder).as_posix()
        if place.startswith(_FAST) and 'slow' not in item.keywords:
            item.add_marker('fast')
    slow = collections.Counter(item.path for item in items if 'slow' in item.keywords)
    items.sort(key=lambda item: item.path not in slow)


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
