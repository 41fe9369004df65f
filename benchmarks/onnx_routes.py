"""Two ways to ONNX, compared in one run: our writer, and tf2onnx from the TFLite file.

    python benchmarks/onnx_routes.py --workdir W --out benchmarks/results/onnx_routes.json

Both files are made of the same trained network, its batch normalisation folded and its decoding
inside, and run in ONNX Runtime on one thread, in turns, so that a busy machine favours neither.
Times are processor time of the thread, which other programs disturb less than the clock.
"""

import argparse
import collections
import importlib.metadata
import json
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from handpose_jax import export
from handpose_jax.export import graph, onnx, tflite

_ROUNDS = 60
_WARM_UP = 5
_NUM_IMAGES = 16


def describe(path: Path) -> dict[str, Any]:
    """Nodes, bytes and the batch of an ONNX file."""
    import onnx as onnx_package

    model = onnx_package.load(path)
    counts = collections.Counter(node.op_type for node in model.graph.node)
    batch = model.graph.input[0].type.tensor_type.shape.dim[0]
    return {
        'nodes': sum(counts.values()),
        'transpositions': counts['Transpose'],
        'operations': dict(sorted(counts.items())),
        'batch': batch.dim_value or 'any',
        'bytes': path.stat().st_size,
    }


def write_both(made: graph.Graph, folder: Path) -> dict[str, tuple[Path, float]]:
    """Writes both files; returns each one's path and the seconds it took."""
    import tf2onnx

    direct, indirect, lite = (folder / n for n in ('direct.onnx', 'tf2onnx.onnx', 'm.tflite'))
    start = time.perf_counter()
    onnx.save(made, direct)
    middle = time.perf_counter()
    lite.write_bytes(tflite.convert(made, 'f32'))
    tf2onnx.convert.from_tflite(str(lite), output_path=str(indirect), opset=onnx.OPSET)
    end = time.perf_counter()
    return {'direct': (direct, middle - start), 'tf2onnx': (indirect, end - middle)}


def measure(paths: dict[str, Path], images: np.ndarray) -> dict[str, dict[str, Any]]:
    """Times both in turns, one image at a time, and keeps what they give."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    found: dict[str, dict[str, Any]] = {}
    sessions: dict[str, Any] = {}
    seconds: dict[str, list[float]] = {}
    for name, path in paths.items():
        session = onnxruntime.InferenceSession(
            str(path), options, providers=['CPUExecutionProvider']
        )
        key = session.get_inputs()[0].name
        # tf2onnx names the outputs as TFLite's tensors: they are told apart by their axes.
        outputs = [
            sorted(session.run(None, {key: image[None]}), key=lambda array: -array.ndim)
            for image in images
        ]
        maps, keypoints = (np.concatenate(arrays) for arrays in zip(*outputs, strict=True))
        found[name] = {'heatmaps': maps, 'keypoints': keypoints}
        found[name]['outputs'] = [output.name for output in session.get_outputs()]
        sessions[name], seconds[name] = (session, {key: images[:1]}), []
    for number in range(_ROUNDS + _WARM_UP):
        for name, (session, given) in sessions.items():
            start = time.thread_time()
            session.run(None, given)
            if number >= _WARM_UP:
                seconds[name].append(time.thread_time() - start)
    for name, values in seconds.items():
        found[name]['milliseconds'] = {
            f'p{p}': round(1e3 * float(np.percentile(values, p)), 2) for p in (10, 50, 90)
        }
    return found


def compare(workdir: str) -> dict[str, Any]:
    """Everything that the file of results holds."""
    trained = graph.load(workdir)
    made = graph.make_graph(trained.config, trained.variables)
    config = trained.config
    images = export.crops(config, config.eval_split, _NUM_IMAGES)['image'].astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        written = write_both(made, Path(folder))
        found = measure({name: path for name, (path, _) in written.items()}, images)
        routes = {
            name: {
                **describe(path),
                'outputs': found[name]['outputs'],
                'seconds_to_write': round(seconds, 2),
                'milliseconds': found[name]['milliseconds'],
            }
            for name, (path, seconds) in written.items()
        }
    difference = {
        name: float(np.abs(found['direct'][name] - found['tf2onnx'][name]).max())
        for name in graph.OUTPUTS
    }
    return {
        'network': trained.config.model.to_dict(),
        'size': made.size,
        'threads': 1,
        'rounds': _ROUNDS,
        'routes': routes,
        'largest_difference': difference,
        'machine': {'processor': platform.machine(), 'python': platform.python_version()},
        'versions': {
            name: importlib.metadata.version(name)
            for name in ('jax', 'onnx', 'onnxruntime', 'tf2onnx', 'tensorflow-cpu')
        },
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument('--workdir', required=True, metavar='W', help='of a training run')
    parser.add_argument('--out', type=Path, required=True, metavar='FILE.json')
    flags = parser.parse_args()
    result = compare(flags.workdir)
    flags.out.write_text(json.dumps(result, indent=2) + '\n')
    for name, route in result['routes'].items():
        print(name, {k: v for k, v in route.items() if k != 'operations'})
    print('largest difference', result['largest_difference'])


if __name__ == '__main__':
    main()
