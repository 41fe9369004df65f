"""What an accelerator does with this package: training, latency, and whether its tests pass there.

    python benchmarks/accelerator.py --seconds 200
    python benchmarks/accelerator.py --smoke          # the same on any CPU, tiny

Training rows are images per second of the very step and stream of a training (configs/real_hands.py
on drawn hands, written as JPEG files of 224 px), and the share that its matrix products have of
what a large matrix product reaches on the same device in the same number format. Latency rows are
milliseconds of a call with pictures from the host, keypoints back on it. The most valuable rows
come first, no row begins after --seconds, and the file is written after each, so that a killed run
leaves what it had. Rows that failed (too little memory, say) or are not possible say why. Writes
benchmarks/results/accelerator.json.
"""

import argparse
import functools
import itertools
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import results_file
from ml_collections import ConfigDict

from handpose_jax import inference, models, train
from handpose_jax.config import data, load
from handpose_jax.data import sources
from handpose_jax.models import complexity
from handpose_jax.process import allocator, command_line, compilation_cache, distributed
from handpose_jax.training import minutes

ROOT = pathlib.Path(__file__).parent.parent
TESTS = ['tests/models/test_layers.py', 'tests/test_heatmaps.py']
SMOKE_TESTS = ['tests/test_hand.py']
DTYPES = ('bfloat16', 'float32')
PLACES = ('host', 'device')

_IMAGES = 256

Row = tuple[str, Callable[[float], dict[str, Any]]]
"""The name of a row, and what measures it within some seconds."""


def training_rows(
    folder: pathlib.Path,
    flags: argparse.Namespace,
    peaks: dict[str, float],
    batches: Sequence[int],
) -> Iterator[Row]:
    """Rows of training, bfloat16 first."""

    def row(dtype: str, batch_size: int, size: int, place: str, left: float) -> dict[str, Any]:
        config = settings(folder, flags)
        config.size, config.batch_size, config.model.dtype = size, batch_size, dtype
        if place != 'host':
            if 'place' not in config.pipeline:
                return {'skipped': 'this version has no config.pipeline.place'}
            config.pipeline.place = place
        return train_row(config, min(flags.round, left), peaks[dtype])

    for dtype, batch_size, size, place in itertools.product(DTYPES, batches, flags.sizes, PLACES):
        name = f'train_{size}_{dtype}_{batch_size}_{place}'
        yield name, functools.partial(row, dtype, batch_size, size, place)


def settings(folder: pathlib.Path, flags: argparse.Namespace) -> ConfigDict:
    """configs/real_hands.py on a folder; for a rehearsal what compiles fastest."""
    config = load(ROOT / 'configs' / ('quickstart.py:smoke' if flags.smoke else 'real_hands.py'))
    config.data = data('folder', root=str(folder))
    config.train_split = ''
    config.pipeline.num_threads = len(os.sched_getaffinity(0))
    return config


def train_row(config: ConfigDict, seconds: float, peak: float) -> dict[str, Any]:
    """The rate of a training.

    Args:
        config: of it.
        seconds: that the longest round of steps takes about.
        peak: of the device, GFLOP/s.
    """
    mesh = distributed.data_mesh()
    run = train.prepare(config, mesh, init_from='')
    step, _ = minutes.step_seconds(run.advance, run.state, mesh, seconds)
    plain = models.build(**config.model.to_dict(), implementation='lax')
    # Backward takes twice the multiply-adds of forward.
    gflop = 3 * 2 * complexity.count_macs(plain, config.size) * config.batch_size / 1e9
    return {
        'images_per_s': round(config.batch_size / step, 1),
        'ms_per_step': round(1e3 * step, 2),
        'share_of_matmul': round(gflop / step / peak, 4),
    }


def latency_rows(
    folder: pathlib.Path, flags: argparse.Namespace, batches: Sequence[int]
) -> Iterator[Row]:
    """Rows of inference, float32."""

    def row(size: int, batch_size: int, left: float) -> dict[str, Any]:
        return latency_row(settings(folder, flags), size, batch_size, min(flags.round, left))

    for batch_size, size in itertools.product(batches, flags.sizes):
        yield f'latency_{size}_{batch_size}', functools.partial(row, size, batch_size)


def latency_row(config: ConfigDict, size: int, batch_size: int, seconds: float) -> dict[str, Any]:
    """Milliseconds of a call of the function that predicts, random weights."""
    model = models.build(**config.model.to_dict())
    predict = inference.make_predict_step(model, config.decode.to_dict())
    images: Any = np.random.default_rng(0).integers(0, 256, (batch_size, size, size, 3), np.uint8)
    variables = jax.jit(model.init)(jax.random.key(0), images[:1])
    times: list[float] = []
    jax.device_get(predict(variables, images))
    begin = time.perf_counter()
    while len(times) < 5 or time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        jax.device_get(predict(variables, images))
        times.append(time.perf_counter() - start)
    middle = statistics.median(times)
    return {
        'ms': round(1e3 * middle, 3),
        'lowest_ms': round(1e3 * min(times), 3),
        'images_per_s': round(batch_size / middle, 1),
        'calls': len(times),
    }


def tests_row(files: Sequence[str]) -> Row:
    """The row that runs tests in a process of its own, on the same device."""

    def row(left: float) -> dict[str, Any]:
        missing = [file for file in files if not (ROOT / file).exists()]
        if missing:
            return {'skipped': f'no {", ".join(missing)} here'}
        options = ('-q', '-p', 'no:cacheprovider', '-o', 'addopts=', '-m', 'not long')
        try:
            done = subprocess.run(
                [sys.executable, '-m', 'pytest', *options, *files],
                cwd=ROOT,
                capture_output=True,
                text=True,
                timeout=max(left, 1),
                check=False,
            )
        except subprocess.TimeoutExpired:
            return {'failed': f'not done after {left:.0f} s'}
        lines = done.stdout.splitlines() or done.stderr.splitlines() or ['']
        failed = [line for line in lines if line.startswith(('FAILED', 'ERROR'))]
        return {'files': files, 'passed': done.returncode == 0, 'said': lines[-1], 'wrong': failed}

    return 'tests', row


def matmul_gflops(dtype: str, side: int, seconds: float) -> float:
    """What a large matrix product reaches: the best round."""
    product = jax.jit(jnp.matmul)
    a = jnp.ones((side, side), dtype)
    product(a, a).block_until_ready()
    best, begin = float('inf'), time.perf_counter()
    while best == float('inf') or time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        product(a, a).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best / 1e9


def write_hands(folder: pathlib.Path, count: int) -> None:
    """Drawn hands as a folder data set, so that the host has files to read."""
    source = sources.load_source('sketch', count=count)
    records = []
    for index in range(count):
        sample = source[index]
        scale = 224 / sample['image'].shape[0]
        image = cv2.resize(sample['image'], (224, 224), interpolation=cv2.INTER_LINEAR)
        cv2.imwrite(str(folder / f'{index}.jpg'), image[..., ::-1])
        # The pixel-centre rule, see geometry.py.
        points = (sample['keypoints'] + 0.5) * scale - 0.5
        records.append({'file': f'{index}.jpg', 'keypoints': points.tolist()})
    (folder / 'annotations.json').write_text(json.dumps(records))


def main() -> None:
    """Measures row by row, and writes the results after each."""
    parser = results_file.parser(__doc__, 'accelerator')
    parser.add_argument('--seconds', type=float, default=300, help='no row begins after them')
    parser.add_argument('--round', type=float, default=1.0, help='seconds of a measured round')
    parser.add_argument('--only', default='', help='rows that match this regular expression')
    parser.add_argument('--smoke', action='store_true', help='tiny, to rehearse on a CPU')
    flags = parser.parse_args()
    begin = time.monotonic()
    # The tests run in a process of their own beside this one, whose memory they need.
    os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
    allocator.keep_freed_memory()
    compilation_cache.keep_compiled_programs()
    flags.sizes = (112, 224)
    batches = {'train': [[128], [256, 32, 512, 64]], 'latency': [[1, 16, 256], [4, 64]]}
    tests, side = TESTS, 8192
    if flags.smoke:
        flags.sizes, flags.round = (32,), 0.01
        batches = {'train': [[2], [4]], 'latency': [[1], [2]]}
        tests, side = SMOKE_TESTS, 64
    elif jax.default_backend() == 'cpu':
        side = 2048
    results = results_file.head('accelerator')
    device = jax.devices()[0]
    peaks = {dtype: matmul_gflops(dtype, side, flags.round) for dtype in DTYPES}
    figures: dict[str, Any] = {
        'card': device.device_kind,
        'devices': jax.device_count(),
        'matmul_gflop_per_s': {dtype: round(peak, 1) for dtype, peak in peaks.items()},
        'rows': {},
    }
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        write_hands(folder, 8 if flags.smoke else _IMAGES)
        rows = [
            *training_rows(folder, flags, peaks, batches['train'][0]),
            tests_row(tests),
            *latency_rows(folder, flags, batches['latency'][0]),
            *training_rows(folder, flags, peaks, batches['train'][1]),
            *latency_rows(folder, flags, batches['latency'][1]),
        ]
        for name, measure in rows:
            if not re.search(flags.only, name):
                continue
            left = flags.seconds - (time.monotonic() - begin)
            try:
                row = measure(left) if left > 0 else {'skipped': 'no time was left'}
            # A row that does not fit into memory must not cost those after it.
            except Exception as error:
                row = {'failed': (str(error).strip() or type(error).__name__).splitlines()[0][:200]}
            figures['rows'][name] = row
            results_file.write(flags.output, results, figures)
            print(name, json.dumps(row), flush=True)


if __name__ == '__main__':
    with command_line.told():
        main()
