"""What is installed only on request, for what, and the line that installs it.

pyproject.toml has the lists. The core of the package finds hands with exported files.
"""

import contextlib
import importlib.metadata
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

# Each extra with the modules that the package imports from it; '' is the core.
_MODULES = {
    '': ('PIL', 'jaxtyping', 'numpy', 'onnxruntime'),
    'train': (
        *('absl', 'array_record', 'cv2', 'drjit', 'etils', 'flax', 'grain', 'h5py', 'ijson'),
        *('imagehash', 'jax', 'jaxlib', 'matplotlib', 'mitsuba', 'ml_collections', 'optax'),
        *(
            'orbax',
            'safetensors',
            'scipy',
            'tensorboardX',
            'tensorflow_datasets',
            'threadpoolctl',
            'tqdm',
        ),
    ),
    'litert': ('ai_edge_litert',),
    'openvino': ('openvino',),
    'tensorflow': ('tensorflow',),
    'export': ('flatbuffers', 'onnx'),
}
_EXTRAS = {module: extra for extra, modules in _MODULES.items() for module in modules}


def missing(error: ModuleNotFoundError, purpose: str) -> str | None:
    """The sentence for a module that could not be imported.

    Args:
        error: of the import.
        purpose: what needs the module, the subject of the sentence: 'handpose train'.

    Returns:
        None if the module is none that the package brings: the error is then about something else.
    """
    module = (error.name or '').partition('.')[0]
    if module not in _EXTRAS:
        return None
    return f'{purpose} needs the module {module}, which is not installed: {how_to_install(module)}'


@contextlib.contextmanager
def needed_by(purpose: str) -> Iterator[None]:
    """Ends the process with the sentence of `missing` and exit code 1 where a module is not there.

    Args:
        purpose: what needs the modules that are imported inside, as for missing.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        told = missing(error, purpose)
        if told is None:
            raise
        sys.exit(f'error: {told}')


def how_to_install(*modules: str) -> str:
    """The command that installs modules with this package.

    Args:
        modules: each of those that pyproject.toml's lists bring.
    """
    extras = ','.join(sorted({_EXTRAS[module] for module in modules} - {''}))
    wanted = f'[{extras}]' if extras else ''
    checkout = Path(__file__).parents[2]
    if (checkout / 'pyproject.toml').is_file():
        return f'pip install -e ".{wanted}" in {shlex.quote(str(checkout))}'
    # The package is in no index, so the name alone would install somebody else's.
    wheel = f'handpose_jax-{importlib.metadata.version("handpose_jax")}-py3-none-any.whl'
    return f'pip install "{wheel}{wanted}", with the path of the wheel that was installed'
