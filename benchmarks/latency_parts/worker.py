"""One network in one runtime, in a process of its own: what benchmarks/latency.py starts.

It reads one JSON object a line and answers each with one: first what to open, then turns of calls.
Nothing is imported before it is needed: a runtime's memory and its time to load are its own.
"""

import functools
import importlib
import json
import os
import pathlib
import re
import resource
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from handpose_jax import sessions

Call = Callable[[], Any]
Variants = dict[str, Call]
"""'whole', with the decoding; 'network', without, where it can be had apart; 'resident', on a GPU:
images and results stay there."""

WARM_UP_CALLS = 3
"""After the first call, before the first turn."""

MATMUL_SIDE = {'cpu': 1024, 'gpu': 8192}
MATMUL_CALLS = 5


def _peak_memory() -> float:
    """The most memory this process has held, MB."""
    status = pathlib.Path('/proc/self/status')
    if status.exists():
        # This counts the process alone: what getrusage says begins with its parent's.
        found = re.search(r'VmHWM:\s*(\d+) kB', status.read_text())
        if found:
            return int(found[1]) / 1024
    unit = 2**20 if sys.platform == 'darwin' else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def _make_images(case: dict[str, Any], dtype: Any, shape: Iterable = (0, 0, 0, 3)) -> np.ndarray:
    """Noise of 0..255; of a shape's unknown sides the first is the batch, others the image's."""
    fixed = [
        side if isinstance(side, int) and side > 0 else case['batch'] if axis == 0 else case['size']
        for axis, side in enumerate(shape)
    ]
    return np.random.default_rng(1).uniform(0, 255, fixed).astype(dtype)


def _open_tflite(case: dict[str, Any]) -> Variants:
    def call_of(path: str) -> Call:
        interpreter = sessions.tflite(path, case['threads'])
        given = [
            (row['index'], _make_images(case, row['dtype'], map(int, row['shape'])))
            for row in interpreter.get_input_details()
        ]
        results = [row['index'] for row in interpreter.get_output_details()]

        def call() -> list[np.ndarray]:
            for index, array in given:
                interpreter.set_tensor(index, array)
            interpreter.invoke()
            return [interpreter.get_tensor(index) for index in results]

        return call

    return _of_files(case, call_of)


def _open_onnx(case: dict[str, Any]) -> Variants:
    def call_of(path: str) -> Call:
        session = sessions.onnx(path, case['threads'])
        types = {'tensor(float)': np.float32, 'tensor(uint8)': np.uint8}
        given = {
            row.name: _make_images(case, types.get(row.type, np.float32), row.shape)
            for row in session.get_inputs()
        }
        return lambda: session.run(None, given)

    return _of_files(case, call_of)


def _open_openvino(case: dict[str, Any]) -> Variants:
    def call_of(path: str) -> Call:
        compiled = sessions.openvino(path, case['threads'])
        given = [
            _make_images(
                case,
                row.element_type.to_dtype(),
                [side.get_length() if side.is_static else 0 for side in row.partial_shape],
            )
            for row in compiled.inputs
        ]
        return lambda: [np.asarray(array) for array in compiled(given).values()]

    return _of_files(case, call_of)


def _of_files(case: dict[str, Any], call_of: Callable[[str], Call]) -> Variants:
    calls = {'whole': call_of(case['path'])}
    if case.get('network_path'):
        # Only when it is asked for: the memory of the first is measured before.
        opened = functools.cache(call_of)
        calls['network'] = lambda: opened(case['network_path'])()
    return calls


def _open_saved_model(case: dict[str, Any]) -> Variants:
    import tensorflow as tf

    loaded, given = sessions.saved_model(case['path'], case['threads'])
    images = _make_images(case, np.float32, given.shape.as_list())

    def call() -> list[np.ndarray]:
        found = loaded.signatures['serving_default'](**{given.name: tf.constant(images)})
        return [array.numpy() for array in found.values()]

    return {'whole': call}


def _open_stablehlo(case: dict[str, Any]) -> Variants:
    import jax

    from handpose_jax.process import compiler_options

    program = sessions.stablehlo(case['path'])
    images = _make_images(case, np.float32)
    # XLA leaves out what does not lead to a result.
    calls = {'whole': program.call, 'network': lambda x: program.call(x)[0]}
    options = compiler_options.for_inference()
    return {
        name: _to_numpy(jax.jit(infer, compiler_options=options), images)
        for name, infer in calls.items()
    }


def _open_jax(case: dict[str, Any]) -> Variants:
    import jax
    from flax import traverse_util

    from handpose_jax import inference, models
    from handpose_jax.process import compiler_options

    folder = pathlib.Path(case['path'])
    settings = json.loads((folder / 'network.json').read_text())
    with np.load(folder / 'variables.npz') as arrays:
        variables = jax.device_put(traverse_util.unflatten_dict(dict(arrays), sep='/'))
    model = models.build(**settings['model'])
    images = _make_images(case, np.uint8)
    whole = inference.make_infer(model, settings['decode'], variables)
    network = jax.jit(
        lambda x: model.apply(variables, x, train=False),
        compiler_options=compiler_options.for_inference(),
    )
    calls = {'whole': _to_numpy(whole, images), 'network': _to_numpy(network, images)}
    if case['device'] == 'gpu':
        there = jax.device_put(images)
        calls['resident'] = lambda: jax.block_until_ready(whole(there))
    return calls


def _to_numpy(infer: Callable[[Any], Any], images: np.ndarray) -> Call:
    import jax

    return lambda: jax.tree.map(np.asarray, infer(images))


def open_matmul(case: dict[str, Any]) -> Variants:
    """A large product of float32 matrices: what the machine can do at best, if XLA can."""
    import jax
    import jax.numpy as jnp

    side = MATMUL_SIDE[case['device']]
    matrix = jnp.asarray(np.random.default_rng(2).normal(size=(side, side)), jnp.float32)
    product = jax.jit(jnp.matmul)
    return {'whole': lambda: product(matrix, matrix).block_until_ready()}


OPENERS: dict[str, tuple[str, Callable[[dict[str, Any]], Variants]]] = {
    'tflite': ('ai_edge_litert.interpreter', _open_tflite),
    'onnx': ('onnxruntime', _open_onnx),
    'openvino': ('openvino', _open_openvino),
    'saved_model': ('tensorflow', _open_saved_model),
    'stablehlo': ('jax.export', _open_stablehlo),
    'jax': ('handpose_jax.runtimes', _open_jax),
    'matmul': ('jax', open_matmul),
}
"""Runtime to the module whose import is timed apart, and what opens a file in it."""


def open_case(case: dict[str, Any]) -> tuple[Variants, dict[str, Any]]:
    """Opens a network, runs it for the first time, and says what that took.

    Args:
        case: 'backend', 'path', 'network_path' or None, 'threads', 'batch', 'size', 'device'.
    """
    module, opener = OPENERS[case['backend']]
    before = _peak_memory()
    begin = time.perf_counter()
    importlib.import_module(module)
    imported = time.perf_counter()
    if case['device'] == 'gpu':
        import jax

        found = jax.devices()[0].platform
        if found != 'gpu':
            raise ValueError(f'--device gpu: JAX finds no GPU here, only {found}')
    variants = opener(case)
    loaded = time.perf_counter()
    variants['whole']()
    first = time.perf_counter()
    for _ in range(WARM_UP_CALLS):
        variants['whole']()
    facts: dict[str, Any] = {
        'import_s': round(imported - begin, 3),
        'load_s': round(loaded - imported, 3),
        'first_call_ms': round(1e3 * (first - loaded), 2),
        'peak_memory_mb': round(_peak_memory(), 1),
        'memory_before_mb': round(before, 1),
    }
    if case['device'] == 'gpu':
        statistics = jax.devices()[0].memory_stats() or {}
        facts['device_peak_memory_mb'] = round(statistics.get('peak_bytes_in_use', 0) / 2**20, 1)
    for name in variants:
        variants[name]()
    facts['variants'] = list(variants)
    return variants, facts


def take_turn(variants: Variants, calls: int, backwards: bool) -> dict[str, Any]:
    """Times some calls of each variant, from NumPy arrays to NumPy arrays.

    Args:
        variants: what to call.
        calls: of the whole, one after the other; after one that does not count, for the processes
            before have left their own data in the caches. The network is timed half as often, and
            the whole beside it in turns: their difference is small, and a machine that does other
            things changes from one tenth of a second to the next.
        backwards: whether the network comes before the whole.

    Returns:
        'milliseconds' of the calls of each variant; 'beside', of the whole's calls that stood
        beside those of the network; 'cores_used', processor time for each second.
    """
    milliseconds: dict[str, list[float]] = {name: [] for name in variants}
    beside: list[float] = []
    busy = wall = 0.0
    for name in list(variants)[:: -1 if backwards else 1]:
        paired = name == 'network'
        plan = [name, 'whole'] * max(1, calls // 2) if paired else [name] * calls
        for warm_up in plan[:2] if paired else plan[:1]:
            variants[warm_up]()
        cpu_begin, wall_begin = time.process_time(), time.perf_counter()
        for called in plan:
            begin = time.perf_counter()
            variants[called]()
            times = beside if paired and called == 'whole' else milliseconds[called]
            times.append(1e3 * (time.perf_counter() - begin))
        busy += time.process_time() - cpu_begin
        wall += time.perf_counter() - wall_begin
    return {'milliseconds': milliseconds, 'beside': beside, 'cores_used': busy / wall}


def main() -> None:
    """Answers until there is nothing more to read."""
    # Runtimes print what they like: the answers have a descriptor of their own.
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)
    variants: Variants = {}
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            if 'open' in asked:
                variants, answer = open_case(asked['open'])
            else:
                answer = take_turn(variants, asked['calls'], asked['backwards'])
        except Exception as error:  # of any runtime; the other process reports it
            answer = {'error': f'{type(error).__name__}: {error}'}
        answers.write(json.dumps(answer) + '\n')
        answers.flush()


if __name__ == '__main__':
    main()
