"""Images per second: of input, training step, rendering, and preparing data sets.

    python benchmarks/throughput.py                         # drawn hands, no download
    HANDPOSE_ASSETS=DIR python benchmarks/throughput.py     # photographs of DIR/real_hands too

Writes benchmarks/results/throughput.json. Rounds of the measurements alternate, so that a noisy
machine does not favour one of them; the median round counts and the spread is kept beside it.
"""

import concurrent.futures
import functools
import importlib.util
import itertools
import json
import multiprocessing
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import preparation
import results_file
import torch_peer
from ml_collections import ConfigDict

from handpose_jax import models, train
from handpose_jax.config import load
from handpose_jax.data import pipeline, resident, sources
from handpose_jax.data.transforms import Augmentation
from handpose_jax.process import allocator, command_line, compiler_options, distributed
from handpose_jax.process.threads import keep_to_one_thread
from handpose_jax.synthetic import generate
from handpose_jax.synthetic.render import mitsuba_renderer
from handpose_jax.training import optimizers
from handpose_jax.training.state import init_state
from handpose_jax.types import Sample, Source

HERE = pathlib.Path(__file__).parent
GEOMETRY = Augmentation()


def config() -> ConfigDict:
    """configs/real_hands.py, whose recipe is measured."""
    return load(HERE.parent / 'configs' / 'real_hands.py')


def _input_round(
    source: Source, size: int, augmentation: Augmentation, batches: int
) -> Callable[[], float]:
    """A function that reads some batches and returns images per second."""
    dataset = pipeline.train_dataset(
        source, size=size, batch_size=32, seed=0, augmentation=augmentation, num_threads=2
    )

    def measure() -> float:
        # A stream of its own for each round: those that wait would fill their buffers meanwhile.
        stream = iter(dataset)
        for _ in range(6):
            next(stream)
        begin = time.perf_counter()
        for _ in range(batches):
            next(stream)
        return 32 * batches / (time.perf_counter() - begin)

    return measure


def _device_round(
    source: Source, size: int, augmentation: Augmentation, batches: int
) -> Callable[[], float]:
    """As _input_round, of batches made in JAX from some of the records, kept in its memory."""
    some = _Some(source, _RESIDENT_RECORDS)
    stored = resident.load(some, size=size, augmentation=augmentation, mesh=distributed.data_mesh())
    make = jax.jit(
        functools.partial(resident.batch_of, seed=0, size=size, augmentation=augmentation),
        compiler_options=compiler_options.for_training(),
    )
    stream = iter(pipeline.train_positions(some, batch_size=32, seed=0))
    jax.block_until_ready(make(stored, next(stream)))

    def measure() -> float:
        begin = time.perf_counter()
        for _ in range(batches):
            made = make(stored, next(stream))
        jax.block_until_ready(made)
        return 32 * batches / (time.perf_counter() - begin)

    return measure


class _Some:
    """Every so many-th record of a source."""

    def __init__(self, source: Source, count: int) -> None:
        self._source = source
        self._indices = range(0, len(source), max(1, len(source) // count))
        self.groups = tuple(source.groups[index] for index in self._indices)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int, /) -> Sample:
        return self._source[self._indices[index]]

    def image_id(self, index: int, /) -> str:
        return self._source.image_id(self._indices[index])

    def fingerprint(self) -> str:
        return self._source.fingerprint()


_RESIDENT_RECORDS = 64


def _render_some(first: int, count: int) -> None:
    """Renders pictures with everything on, on one thread; runs in a worker process."""
    mitsuba_renderer.set_threads(1)
    for index in range(first, first + count):
        generate.generate(generate.SceneOptions(), 0, index)


_WARM_UP_PICTURES = 60
"""Each worker renders so many first: the first uses of skins and textures paint them."""

_pools: list[concurrent.futures.ProcessPoolExecutor] = []


def _start_workers(number: int, **keywords: Any) -> list[concurrent.futures.ProcessPoolExecutor]:
    """Pools of one process each, which stay until the end."""
    context = multiprocessing.get_context('spawn')
    pools = [
        concurrent.futures.ProcessPoolExecutor(1, mp_context=context, **keywords)
        for _ in range(number)
    ]
    _pools.extend(pools)
    return pools


def _render_round(pictures: int) -> Callable[[], float]:
    """A function that renders pictures at 224 px with a worker on each core; images per second."""
    workers = len(os.sched_getaffinity(0))
    pools = _start_workers(workers, initializer=keep_to_one_thread)

    def measure_with(first: int, count: int) -> float:
        begin = time.perf_counter()
        jobs = [
            pool.submit(_render_some, first + number * count, count)
            for number, pool in enumerate(pools)
        ]
        for job in jobs:
            job.result()
        return workers * count / (time.perf_counter() - begin)

    measure_with(1_000_000, _WARM_UP_PICTURES)
    starts = itertools.count(0, workers * pictures)
    return lambda: measure_with(next(starts), pictures)


def training(size: int, batch_size: int) -> tuple[Any, Any, list[Any], Any]:
    """The jitted training step, a state for it, two batches of drawn hands, and the devices."""
    settings = config()
    model = models.build(**settings.model.to_dict())
    tx, _ = optimizers.build(num_steps=settings.num_steps, **settings.optimizer.to_dict())
    mesh = distributed.data_mesh()
    state = distributed.replicate(init_state(model, tx, size=size, seed=0, use_ema=True), mesh)
    step = jax.jit(
        train.make_train_step(
            model, tx, train.LOSSES[settings.loss], sigma=settings.sigma, ema=settings.ema
        ),
        donate_argnums=0,
        out_shardings=distributed.replicated(mesh),
        compiler_options=compiler_options.for_training(),
    )
    source = sources.load_source('sketch', count=64)
    dataset = pipeline.train_dataset(
        source, size=size, batch_size=batch_size, seed=0, augmentation=GEOMETRY, num_threads=0
    )
    return step, state, list(itertools.islice(iter(dataset), 2)), mesh


def train_round(size: int, batch_size: int, steps: int) -> Callable[[], float]:
    """A function that takes some training steps and returns images per second."""
    step, state, batches, mesh = training(size, batch_size)
    for _ in range(2):
        state, metrics = step(state, distributed.to_devices(batches[0], mesh))

    def measure() -> float:
        nonlocal state, metrics
        metrics['loss'].block_until_ready()
        begin = time.perf_counter()
        for number in range(steps):
            state, metrics = step(state, distributed.to_devices(batches[number % 2], mesh))
        metrics['loss'].block_until_ready()
        return batch_size * steps / (time.perf_counter() - begin)

    return measure


_made = functools.cache(lambda make, *arguments: make(*arguments))
"""In a worker process: the round that it measures again and again."""


def _measure_made(make: Callable[..., Callable[[], float]], *arguments: Any) -> float:
    return _made(make, *arguments)()


def _worker_round(make: Callable[..., Callable[[], float]], *arguments: Any) -> Callable[[], float]:
    """A function that measures a round in a process of its own, which stays.

    The process has the C library's allocator as it is.
    """
    (pool,) = _start_workers(1)

    def measure() -> float:
        return pool.submit(_measure_made, make, *arguments).result()

    measure()
    return measure


def main() -> None:
    """Runs all measurements and writes the results."""
    parser = results_file.parser(__doc__, 'throughput')
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--only', default='', help='measure only names that contain this')
    flags = parser.parse_args()
    allocator.keep_freed_memory()
    photometric = Augmentation(**config().augmentation.to_dict())
    assets = os.environ.get('HANDPOSE_ASSETS')
    makers: dict[str, Callable[[], Callable[[], float]]] = {}
    if assets:
        photos = sources.load_source('folder', root=f'{assets}/real_hands', split='train')
        for size in (112, 224):
            for suffix, augmentation in (('', GEOMETRY), ('_photometric', photometric)):
                makers[f'input_{size}{suffix}'] = functools.partial(
                    _input_round, photos, size, augmentation, batches=30
                )
                makers[f'input_{size}{suffix}_device'] = functools.partial(
                    _device_round, photos, size, augmentation, batches=5
                )
    else:
        print('HANDPOSE_ASSETS is not set: the input pipeline on photographs is not measured')
    # The rounds of one size stand side by side: what else the machine does meets them alike.
    for size, batch_size, steps in ((112, 32, 3), (224, 32, 1)):
        makers[f'train_{size}'] = functools.partial(train_round, size, batch_size, steps)
        if importlib.util.find_spec('torch'):
            for suffix, channels_last in (('torch', True), ('torch_nchw', False)):
                makers[f'train_{size}_{suffix}'] = functools.partial(
                    _worker_round, torch_peer.train_round, size, batch_size, steps, channels_last
                )
    makers['train_112_default_malloc'] = functools.partial(_worker_round, train_round, 112, 32, 3)
    if not importlib.util.find_spec('torch'):
        print('PyTorch is not installed: its training step is not measured')
    scratch = tempfile.TemporaryDirectory()
    for name in preparation.MADE_UP:
        makers[f'prepare_{name}'] = functools.partial(
            preparation.preparation_round, name, pathlib.Path(scratch.name)
        )
    makers['render_224'] = functools.partial(_render_round, pictures=20)
    rounds = {name: make() for name, make in makers.items() if flags.only in name}
    rates: dict[str, list[float]] = {name: [] for name in rounds}
    for _ in range(flags.rounds):
        for name, measure in rounds.items():
            rates[name].append(measure())
    figures: dict[str, dict[str, float]] = {
        name: {
            'images_per_s': round(statistics.median(values), 1),
            'lowest': round(min(values), 1),
            'highest': round(max(values), 1),
        }
        for name, values in rates.items()
    }
    for name, row in figures.items():
        print(
            f'{name:26s} {row["images_per_s"]:8.1f} images/s ({row["lowest"]} .. {row["highest"]})'
        )
    for name, values in rates.items():
        # Ratios are taken of rounds that stood side by side.
        if peers := rates.get(f'{name}_torch'):
            ratios = [ours / theirs for ours, theirs in zip(values, peers, strict=True)]
            figures[name]['ratio_to_torch'] = round(statistics.median(ratios), 3)
    # A part that is measured again leaves the others as they were.
    old = json.loads(flags.output.read_text()) if flags.only and flags.output.exists() else {}
    kept = {
        name: row for name, row in old.items() if isinstance(row, dict) and 'images_per_s' in row
    }
    results_file.write(
        flags.output,
        results_file.head('throughput', assets=True),
        {'rounds': flags.rounds, 'batch_size': 32, **results_file.kept(old, kept), **figures},
    )
    for pool in _pools:
        pool.shutdown()
    scratch.cleanup()


if __name__ == '__main__':
    with command_line.told():
        main()
