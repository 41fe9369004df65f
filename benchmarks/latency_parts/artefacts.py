"""The networks that benchmarks/latency.py measures, as files: exported, or of random weights.

Random weights take as long as trained ones. Everything is described by plain dicts ("contenders"),
which go to other processes and into the results:

    name, backend, precision, size, path, network_path (None: the decoding is not to be had apart),
    any_batch (False: the file takes one image), macs, bytes, own (False: a file given by --model)
"""

import importlib.util
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from latency_parts import model_files

HERE = pathlib.Path(__file__).parent
CONFIG = HERE.parents[1] / 'configs' / 'cmu.py'
"""The paper's network."""

BACKENDS = ('jax', 'tflite', 'onnx', 'openvino', 'saved_model', 'stablehlo')
PRECISIONS = ('f32', 'f16', 'dynamic_int8', 'int8')

TO_RUN = {
    'jax': (),
    'tflite': ('ai_edge_litert',),
    'onnx': ('onnxruntime', 'onnx'),
    'openvino': ('openvino', 'onnx'),
    'saved_model': ('tensorflow',),
    'stablehlo': (),
}
TO_MAKE = {'tflite': ('tensorflow',)}
"""Modules beside those of TO_RUN, where there is no exported file."""

EXPORTED = {
    'onnx': 'handpose.onnx',
    'openvino': 'handpose.onnx',
    'saved_model': 'saved_model',
    'stablehlo': 'handpose.stablehlo',
}
"""Names of the files of handpose_jax.export; those of TFLite have the precision in them."""

CALIBRATION_IMAGES = 16


def missing_modules(backend: str, make: bool) -> list[str]:
    """Modules that a backend needs and that are not installed."""
    needed = (*TO_RUN[backend], *(TO_MAKE.get(backend, ()) if make else ()))
    return [name for name in needed if importlib.util.find_spec(name) is None]


def file_name(backend: str, precision: str) -> str:
    """Names the file that an export writes for a backend."""
    return f'handpose_{precision}.tflite' if backend == 'tflite' else EXPORTED[backend]


def is_exported(workdir: str, backend: str, precision: str) -> bool:
    """Whether a workdir has what a backend runs; JAX runs the checkpoint."""
    return backend == 'jax' or (
        pathlib.Path(workdir, 'export', file_name(backend, precision)).exists()
    )


def _file_bytes(path: pathlib.Path) -> int:
    """Adds up the bytes of a file, or of all files in a folder."""
    files = path.rglob('*') if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _save_for_jax(config: Any, variables: Any, folder: pathlib.Path) -> None:
    """Writes what the worker needs to run a network in JAX, batch normalisation folded.

    Args:
        config: of the run.
        variables: {'params', 'batch_stats'}.
        folder: receives network.json and variables.npz.
    """
    import numpy as np
    from flax import traverse_util

    from handpose_jax import models
    from handpose_jax.models import folding

    settings = {**config.model.to_dict(), 'dtype': 'float32'}
    if settings['name'] in models.FOLDABLE:
        variables = folding.fold(models.build(**settings), variables)
        settings['folded'] = True
    folder.mkdir(parents=True)
    flat = traverse_util.flatten_dict(dict(variables), sep='/')
    arrays: dict[str, Any] = {name: np.asarray(leaf) for name, leaf in flat.items()}
    np.savez(folder / 'variables.npz', **arrays)
    (folder / 'network.json').write_text(
        json.dumps({'model': settings, 'decode': config.decode.to_dict()})
    )


def _calibration_crops(size: int) -> Any:
    """Crops of drawn hands, u8[n size size 3]."""
    from handpose_jax.data import pipeline, sources

    source = sources.load_source('sketch', count=CALIBRATION_IMAGES)
    batches = pipeline.eval_batches(source, size=size, batch_size=CALIBRATION_IMAGES, num_threads=0)
    return next(iter(batches))['image']


def prepare(
    *,
    config_path: pathlib.Path,
    variant: str,
    workdir: str | None,
    size: int | None,
    wanted: Sequence[tuple[str, str]],
    folder: pathlib.Path,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Finds or makes the files of one network at one size; for a process of its own.

    Args:
        config_path: names the network where there is no workdir.
        variant: of the config.
        workdir: whose W/export is measured, which must be there; None for random weights.
        size: of the images, px; None: the config's.
        wanted: backends and precisions.
        folder: receives what is made.

    Returns:
        The contenders, and what the results say about the network.

    Raises:
        ValueError: if something cannot be found or made.
    """
    import random_weights

    from handpose_jax import models
    from handpose_jax.export import graph, onnx, stablehlo, tflite
    from handpose_jax.models import complexity

    folder.mkdir(parents=True, exist_ok=True)
    about: dict[str, Any] = {'weights': 'random'}
    if workdir is None:
        from handpose_jax.config import load

        config = load(f'{config_path}:{variant}')
        about['config'] = config_path.name
        with config.unlocked():
            config.size = size or config.size
        variables = random_weights.random_variables(models.build(**config.model.to_dict()))
    else:
        trained = graph.load(workdir)
        config, variables = trained.config, trained.variables
        about |= {'weights': f'of checkpoint {trained.step}', 'checksum': trained.checksum}
        if size not in (None, config.size):
            raise ValueError(
                f'--size {size}: the artefacts of {workdir} are for {config.size} px; leave it out'
            )
    about |= {'model': config.model.to_dict(), 'size': config.size}
    if any(precision == 'int8' for _, precision in wanted) and workdir is None:
        about['int8'] = f'calibrated on {CALIBRATION_IMAGES} drawn hands'
    graphs = {
        name: graph.make_graph(config, variables, implementation=name) for name in ('lax', 'auto')
    }
    for_jax = graph.make_graph(config, variables, implementation='auto', portable=False)
    plain = models.build(**{**config.model.to_dict(), 'implementation': 'lax'})
    macs = complexity.count_macs(plain, config.size)

    def path_of(backend: str, precision: str) -> pathlib.Path:
        if backend == 'jax':
            path = folder / 'jax'
            if not path.exists():
                _save_for_jax(config, variables, path)
            return path
        name = file_name(backend, precision)
        if workdir is not None:
            return pathlib.Path(workdir) / 'export' / name
        path = folder / name
        if path.exists():
            return path
        if backend == 'tflite':
            crops = _calibration_crops(config.size) if precision == 'int8' else None
            path.write_bytes(tflite.convert(graphs['lax'], precision, crops))
        elif backend == 'saved_model':
            tflite.save_saved_model(graphs['auto'], path)
        elif backend == 'stablehlo':
            stablehlo.save(for_jax, path)
        else:
            onnx.save(graphs['lax'], path)
        return path

    contenders = []
    for backend, precision in wanted:
        path = path_of(backend, precision)
        network: pathlib.Path | None = None
        if path.suffix in ('.tflite', '.onnx'):
            network = folder / f'network_{path.name}'
            if not network.exists() and not model_files.network_only(path, network):
                network = None
        contenders.append(
            {
                'name': backend if precision == 'f32' else f'{backend} {precision}',
                'backend': backend,
                'precision': precision,
                'size': config.size,
                'path': str(path),
                'network_path': str(network) if network else None,
                'any_batch': backend != 'tflite',
                'macs': macs,
                'bytes': _file_bytes(path),
                'own': True,
            }
        )
    return contenders, about


def given_file(path: pathlib.Path, backend: str) -> dict[str, Any]:
    """The contender that is a file given by --model.

    Raises:
        ValueError: if it is no .tflite or .onnx file, or cannot be run here.
    """
    if path.suffix not in ('.tflite', '.onnx') or not path.is_file():
        raise ValueError(f'--model {path}: expected a .tflite or .onnx file that exists')
    if missing := missing_modules(backend, make=False):
        raise ValueError(f'--model {path}: needs the module {missing[0]}, which is not installed')
    try:
        side = model_files.input_side(path)
    except Exception as error:  # each format has errors of its own
        reason = ' '.join(str(error).split())
        raise ValueError(
            f'--model {path}: is damaged, or no {path.suffix} file ({reason})'
        ) from error
    return {
        'name': f'{path.stem}, openvino' if backend == 'openvino' else path.stem,
        'backend': backend,
        'precision': '',
        'size': side,
        'path': str(path),
        'network_path': None,
        'any_batch': backend != 'tflite',
        # Without a size the file does not say how much it computes.
        'macs': model_files.count_macs(path) if side else None,
        'bytes': _file_bytes(path),
        'own': False,
    }
