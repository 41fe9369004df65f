"""Milliseconds for one image on one CPU thread: jitted JAX against LiteRT's XNNPACK.

    pip install tensorflow-cpu ai-edge-litert
    python benchmarks/inference.py

Both run the paper's network in float32 with the same random weights, in a process of their own on
the same core, and take turns of a few calls each, so that a noisy machine does not favour one.
Rows: `jax` is the folded network as jax.jit compiles it, `jax_tuned` has its weights compiled in
and the options of handpose_jax.process.compiler_options, as runtimes.load has it, `jax_unfolded`
keeps batch normalisation. Writes benchmarks/results/inference.json; exits with 1 if the outputs do
not agree.
"""

import argparse
import collections
import concurrent.futures
import datetime
import functools
import importlib.metadata
import importlib.util
import json
import multiprocessing
import os
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import machine
import numpy as np
from random_weights import random_variables

from handpose_jax import models
from handpose_jax.models import folding
from handpose_jax.process import compiler_options
from handpose_jax.process.threads import keep_to_one_thread

HERE = pathlib.Path(__file__).parent
SIZES = (224, 112)
MODEL: dict[str, Any] = {'name': 'mobilenet_v2', 'width': 1.0}
"""The network of configs/cmu.py."""
BAR = 1.1
"""The ratio at 224 that `jax` must not exceed."""
TOLERANCE = 1e-4
"""Of the largest heatmap value."""
WARM_UP_CALLS = 1
"""At the start of each turn: the other process has left its own data in the core's caches."""

Runner = Callable[[np.ndarray], np.ndarray]
CONTENDERS = ('jax', 'jax_tuned', 'jax_unfolded', 'litert')
JAX = CONTENDERS[:-1]

_runners: dict[tuple[str, int], Runner] = {}
"""Of a worker process: contender and size to what runs it."""


def photograph(size: int) -> np.ndarray:
    """One noisy image, f32[1 size size 3] of 0..255."""
    return np.random.default_rng(1).uniform(0, 255, (1, size, size, 3)).astype(np.float32)


def convert(size: int) -> tuple[bytes, str]:
    """The folded network as a .tflite file, and TensorFlow's version; for a process of its own."""
    import tensorflow as tf
    from jax.experimental import jax2tf

    variables = folding.fold(models.build(**MODEL), random_variables(models.build(**MODEL)))
    model = models.build(**MODEL, folded=True, implementation='lax')
    signature = [tf.TensorSpec((1, size, size, 3), tf.float32, name='images')]
    module = tf.Module()
    module.infer = tf.function(
        jax2tf.convert(lambda images: model.apply(variables, images), with_gradient=False),
        autograph=False,
        input_signature=signature,
    )
    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(module, folder, signatures=module.infer.get_concrete_function())
        return tf.lite.TFLiteConverter.from_saved_model(folder).convert(), tf.__version__


def start_worker(core: int) -> None:
    """Runs first in a worker process: everything it does from now on happens on one core."""
    os.sched_setaffinity(0, {core})
    keep_to_one_thread()


def prepare_jax(size: int) -> None:
    """Compiles the folded and the unfolded network."""
    unfolded = models.build(**MODEL)
    model = models.build(**MODEL, folded=True)
    variables = jax.device_put(random_variables(models.build(**MODEL)))
    values = jax.device_put(folding.fold(unfolded, variables))
    infer = jax.jit(model.apply)
    infer_unfolded = jax.jit(unfolded.apply)
    options = compiler_options.for_inference()
    tuned = jax.jit(functools.partial(model.apply, values), compiler_options=options)
    _runners['jax', size] = lambda images: np.asarray(infer(values, images))
    _runners['jax_tuned', size] = lambda images: np.asarray(tuned(images))
    _runners['jax_unfolded', size] = lambda images: np.asarray(infer_unfolded(variables, images))


def prepare_litert(size: int, content: bytes) -> dict[str, int]:
    """Loads the .tflite file; returns how often each operation is in it."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=content, num_threads=1)
    interpreter.allocate_tensors()
    given = interpreter.get_input_details()[0]['index']
    result = interpreter.get_output_details()[0]['index']

    def run(images: np.ndarray) -> np.ndarray:
        interpreter.set_tensor(given, images)
        interpreter.invoke()
        return interpreter.get_tensor(result)

    _runners['litert', size] = run
    return dict(collections.Counter(row['op_name'] for row in interpreter._get_ops_details()))


def infer_once(name: str, size: int) -> np.ndarray:
    return _runners[name, size](photograph(size))


def time_calls(name: str, size: int, calls: int) -> list[float]:
    """Milliseconds of each call, from NumPy image to NumPy heatmaps."""
    run, images = _runners[name, size], photograph(size)
    milliseconds = []
    for number in range(WARM_UP_CALLS + calls):
        begin = time.perf_counter()
        run(images)
        if number >= WARM_UP_CALLS:
            milliseconds.append(1e3 * (time.perf_counter() - begin))
    return milliseconds


def matmul_peak(calls: int) -> float:
    """GFLOP/s of a large float32 matrix product: what the core can do at best."""
    a = jnp.asarray(np.random.default_rng(2).normal(size=(1024, 1024)), jnp.float32)
    product = jax.jit(jnp.matmul)
    seconds = []
    for _ in range(calls):
        begin = time.perf_counter()
        product(a, a).block_until_ready()
        seconds.append(time.perf_counter() - begin)
    return 2 * 1024**3 / min(seconds) / 1e9


def summarise(rounds: dict[str, list[list[float]]]) -> dict[str, Any]:
    """Figures of one size from contender to rounds of milliseconds."""
    figures: dict[str, Any] = {}
    for name, turns in rounds.items():
        p10, median, p90 = np.percentile(np.concatenate(turns), (10, 50, 90))
        figures[name] = {
            'median_ms': round(float(median), 2),
            'p10_ms': round(float(p10), 2),
            'p90_ms': round(float(p90), 2),
        }
    for name in JAX:
        ratios = [
            statistics.median(a) / statistics.median(b)
            for a, b in zip(rounds[name], rounds['litert'], strict=True)
        ]
        low, median, high = np.percentile(ratios, (10, 50, 90))
        figures[name]['ratio_to_litert'] = round(float(median), 3)
        figures[name]['ratio_p10'] = round(float(low), 3)
        figures[name]['ratio_p90'] = round(float(high), 3)
        figures[name]['ratio_of_medians'] = round(
            figures[name]['median_ms'] / figures['litert']['median_ms'], 3
        )
    return figures


def main() -> int:
    """Converts, compares the outputs, takes the rounds, writes the results, prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--rounds', type=int, default=60)
    parser.add_argument('--calls', type=int, default=4, help='of each contender in a round')
    parser.add_argument(
        '--core', type=int, default=max(os.sched_getaffinity(0)), help='where everything runs'
    )
    parser.add_argument('--output', type=pathlib.Path, default=HERE / 'results' / 'inference.json')
    flags = parser.parse_args()
    if missing := [n for n in ('tensorflow', 'ai_edge_litert') if not importlib.util.find_spec(n)]:
        sys.exit(f'error: not installed: {missing}; pip install tensorflow-cpu ai-edge-litert')
    # For this process, and for the workers before they start.
    jax.config.update('jax_platforms', 'cpu')
    os.environ['JAX_PLATFORMS'] = 'cpu'
    flags_of_xla = os.environ.get('XLA_FLAGS', '')
    os.environ['XLA_FLAGS'] = f'{flags_of_xla} --xla_cpu_multi_thread_eigen=false'.strip()
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
    context = multiprocessing.get_context('spawn')
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as converter:
        converted = {size: converter.submit(convert, size).result() for size in SIZES}

    workers = {
        name: concurrent.futures.ProcessPoolExecutor(
            1, mp_context=context, initializer=start_worker, initargs=(flags.core,)
        )
        for name in ('jax', 'litert')
    }

    def on_worker(name: str, function: Callable, *arguments: Any) -> Any:
        return workers[name.partition('_')[0]].submit(function, *arguments).result()

    results: dict[str, Any] = {
        'benchmark': 'inference',
        'command': 'python benchmarks/inference.py',
        'date': datetime.date.today().isoformat(),
        'model': MODEL,
        'weights': 'random',
        'batch': 1,
        'threads': 1,
        'rounds': flags.rounds,
        'calls_per_round': flags.calls,
        'load_average': round(os.getloadavg()[1], 1),
        'matmul_gflops': round(on_worker('jax', matmul_peak, 20), 1),
    }
    agree = True
    for size in SIZES:
        on_worker('jax', prepare_jax, size)
        operations = on_worker('litert', prepare_litert, size, converted[size][0])
        maps = {name: on_worker(name, infer_once, name, size) for name in CONTENDERS}
        difference = {name: float(np.abs(maps[name] - maps['litert']).max()) for name in JAX}
        highest = float(np.abs(maps['litert']).max())
        agree = agree and max(difference.values()) <= TOLERANCE * highest
        rounds: dict[str, list[list[float]]] = {name: [] for name in CONTENDERS}
        for number in range(flags.rounds):
            # Who goes first changes too.
            for name in CONTENDERS if number % 2 else reversed(CONTENDERS):
                rounds[name].append(on_worker(name, time_calls, name, size, flags.calls))
        results[f'at_{size}'] = {
            **summarise(rounds),
            'max_abs_difference': {k: float(f'{v:.2g}') for k, v in difference.items()},
            'max_abs_heatmap': round(highest, 3),
            'litert_operations': operations,
        }
    for pool in workers.values():
        pool.shutdown()
    results |= {
        'bar': {'ratio_at_224': BAR, 'met': results['at_224']['jax']['ratio_to_litert'] <= BAR},
        'tuned_options': compiler_options.for_inference(),
        'versions': {
            'tensorflow': converted[SIZES[0]][1],
            'ai-edge-litert': importlib.metadata.version('ai-edge-litert'),
        },
        'machine': machine.describe(),
    }
    flags.output.parent.mkdir(parents=True, exist_ok=True)
    flags.output.write_text(json.dumps(results, indent=2) + '\n')
    print('| size | runtime | median ms | p10 | p90 | ratio to LiteRT |')
    print('|---|---|---|---|---|---|')
    for size in SIZES:
        for name in CONTENDERS:
            row = results[f'at_{size}'][name]
            ratio = f'{row["ratio_to_litert"]:.2f}' if 'ratio_to_litert' in row else ''
            print(
                f'| {size} | {name} | {row["median_ms"]:.1f} | {row["p10_ms"]:.1f} | '
                f'{row["p90_ms"]:.1f} | {ratio} |'
            )
    print(f'bar of {BAR} at 224: {"met" if results["bar"]["met"] else "NOT met"}')
    if not agree:
        print(f'NOT the same heatmaps: differences of more than {TOLERANCE} of the largest value')
    return 0 if agree else 1


if __name__ == '__main__':
    sys.exit(main())
