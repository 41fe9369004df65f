"""Milliseconds for one image: the network in every runtime, other networks beside it.

    python benchmarks/latency.py --backend tflite
    python benchmarks/latency.py --backend all --size 112 224 --threads 1 2 --precision all
    python benchmarks/latency.py --workdir W --model hand_landmark_full.tflite

Without --workdir the network is that of --config with random weights, which take as long. Each
network is in a process of its own, and they take turns of a few calls, so that a noisy machine does
not favour one; a large matrix product takes turns with them and says how fast the machine is.
Writes JSON, a table and a plot to benchmarks/results/. docs/latency.md explains every figure;
latency_parts/compare.py explains what --compare calls slower.
"""

import argparse
import concurrent.futures
import contextlib
import functools
import itertools
import json
import multiprocessing
import os
import pathlib
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import results_file
from latency_parts import android, artefacts, compare, report, turns
from latency_parts.artefacts import BACKENDS, PRECISIONS
from latency_parts.worker import MATMUL_CALLS, MATMUL_SIDE


def read_flags(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line; ValueError where flags do not go together."""
    parser = results_file.parser(__doc__)
    add = parser.add_argument
    add('--backend', nargs='+', choices=('all', *BACKENDS, 'android'), help='default: tflite')
    add('--model', action='append', default=[], type=pathlib.Path, metavar='FILE',
        help='a .tflite or .onnx file to measure too; may be repeated')  # fmt: skip
    add('--workdir', metavar='W', help='measure W/export; default: random weights')
    add('--config', default=str(artefacts.CONFIG), metavar='FILE[:VARIANT]',
        help='whose network gets random weights; default: configs/cmu.py')  # fmt: skip
    add('--size', nargs='+', type=int, metavar='PX', help="side of the images; default: config's")
    add('--threads', nargs='+', type=int, default=[1])
    add('--batch', nargs='+', type=int, default=[1], help='images in a call')
    add('--precision', nargs='+', choices=('all', *PRECISIONS), default=['f32'],
        help='of TFLite; the other backends are f32')  # fmt: skip
    add('--pin', action='store_true', help='keep to the last cores, as many as threads')
    add('--device', choices=('cpu', 'gpu'), default='cpu', help='gpu: for the backend jax')
    add('--rounds', type=int, default=15)
    add('--calls', type=int, default=8, help='of each network in a round')
    add('--output', type=results_file.output_file, help='default: benchmarks/results/latency*.json')
    add('--compare', type=pathlib.Path, metavar='OLD.json',
        help='exit with 1 if something is slower than in that run')  # fmt: skip
    add('--benchmark_model', type=pathlib.Path, metavar='FILE',
        help="LiteRT's benchmark_model for the phone (backend android)")  # fmt: skip
    add('--serial', metavar='ID', help='of the phone, where several are attached')
    flags = parser.parse_args(arguments)
    if flags.backend is None:
        flags.backend = [] if flags.model else ['tflite']
    flags.named = tuple(name for name in flags.backend if name != 'all')
    if 'all' in flags.backend:
        flags.backend = [*BACKENDS, *(['android'] if 'android' in flags.named else [])]
    if 'all' in flags.precision:
        flags.precision = list(PRECISIONS)
    for name in ('size', 'threads', 'batch', 'rounds', 'calls'):
        value = getattr(flags, name)
        if value is not None and min(value if isinstance(value, list) else [value]) < 1:
            raise ValueError(f'--{name}: expected 1 or more, got {value}')
    if flags.device == 'gpu' and (flags.backend != ['jax'] or flags.model):
        raise ValueError('--device gpu: only with --backend jax, and without --model')
    if flags.pin and not hasattr(os, 'sched_setaffinity'):
        raise ValueError('--pin: this system cannot keep a process to some cores')
    if flags.pin and max(flags.threads) > (cores := len(os.sched_getaffinity(0))):
        raise ValueError(
            f'--pin: expected at most {cores} threads, one a core, got {max(flags.threads)}'
        )
    if 'android' in flags.backend and flags.benchmark_model is None:
        raise ValueError('--backend android: needs --benchmark_model FILE, see docs/latency.md')
    if flags.output is None:
        # Runs of everything, of a part, and of other devices do not overwrite each other.
        parts = flags.backend or [path.stem for path in flags.model]
        parts = [] if set(flags.backend) >= set(BACKENDS) else parts
        name = '_'.join(['latency', *parts, *(['gpu'] * (flags.device == 'gpu'))])
        flags.output = results_file.RESULTS / f'{name}.json'
    return flags


def choose(flags: argparse.Namespace) -> tuple[list[tuple[str, str]], list[str]]:
    """What to measure of the network itself: backends and precisions; and why not the others.

    Raises:
        ValueError: if a backend that was asked for by name cannot be measured.
    """
    wanted: list[tuple[str, str]] = []
    skipped: list[str] = []
    for name in flags.backend:
        # What runs on the phone are TFLite's files, whether they are measured here or not.
        backend = 'tflite' if name == 'android' else name
        precisions = flags.precision if backend == 'tflite' else ['f32']
        chosen, reasons = [], [_unusable(backend, flags)]
        for precision in () if reasons[0] else precisions:
            if flags.workdir is None or artefacts.is_exported(flags.workdir, backend, precision):
                chosen.append((backend, precision))
            else:
                reasons.append(
                    f'{name}: {artefacts.file_name(backend, precision)} is not in '
                    'W/export; write it with handpose export --workdir W'
                )
        reasons = list(filter(None, reasons))
        if reasons and name in flags.named:
            raise ValueError(reasons[0])
        wanted += [row for row in chosen if row not in wanted]
        skipped += reasons
    return wanted, skipped


def _unusable(backend: str, flags: argparse.Namespace) -> str:
    """Why a backend cannot be measured; '' if it can."""
    missing = artefacts.missing_modules(backend, make=flags.workdir is None)
    if missing:
        return f'{backend}: not installed: {", ".join(missing)}; see docs/latency.md'
    if backend != 'tflite' and 'f32' not in flags.precision:
        return f'{backend}: only in f32'
    if backend == 'tflite' and 1 not in flags.batch:
        return 'tflite: the exported files take one image, --batch 1'
    return ''


def _keep_quiet() -> None:
    """What TensorFlow says on the way is about itself; errors come back as exceptions."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def in_fresh_process(function: Any, *arguments: Any, **keywords: Any) -> Any:
    """Calls a function in a process of its own: what it imports does not stay."""
    context = multiprocessing.get_context('spawn')
    with concurrent.futures.ProcessPoolExecutor(
        1, mp_context=context, initializer=_keep_quiet
    ) as pool:
        return pool.submit(function, *arguments, **keywords).result()


def prepare(
    flags: argparse.Namespace, wanted: list[tuple[str, str]], folder: pathlib.Path
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The contenders of all sizes, and what the results say about the network."""
    contenders: list[dict[str, Any]] = []
    about: dict[str, Any] = {'weights': 'none: only given files'}
    path, _, variant = flags.config.partition(':')
    for size in (flags.size or [None]) if wanted else ():
        print(f'preparing {len(wanted)} files of the network ...', file=sys.stderr)
        made, about = in_fresh_process(
            artefacts.prepare,
            config_path=pathlib.Path(path),
            variant=variant,
            workdir=flags.workdir,
            size=size,
            wanted=wanted,
            folder=folder / str(size),
        )
        contenders += made
    if wanted:
        del about['size']
    for file in flags.model:
        backends = ['tflite'] if file.suffix == '.tflite' else ['onnx']
        if file.suffix == '.onnx' and 'openvino' in flags.backend:
            backends.append('openvino')
        contenders += [artefacts.given_file(file, backend) for backend in backends]
    return contenders, about


@contextlib.contextmanager
def pinned(threads: int, pin: bool) -> Iterator[None]:
    """Keeps this process, and those that it starts meanwhile, to the last cores."""
    if not pin:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[-threads:])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _measure_group(
    contenders: Sequence[dict[str, Any]], flags: argparse.Namespace, threads: int, batch: int
) -> dict[str, Any]:
    """The contenders of one size, on so many threads, with so many images in a call."""
    workers: dict[str, turns.Worker] = {}
    shared = {'threads': threads, 'batch': batch, 'device': flags.device}
    cases = [{'name': 'matmul', 'backend': 'matmul', 'size': None, **shared}]
    for number, contender in enumerate(contenders):
        size = contender['size'] or (flags.size or [224])[0]
        cases.append({**contender, **shared, 'size': size, 'number': number})
    try:
        with pinned(threads, flags.pin):
            for case in cases:
                print(f'  opening {case["name"]}', file=sys.stderr)
                # Names may occur twice, as of files in two folders.
                workers[str(case.get('number', 'matmul'))] = turns.Worker(case)
        taken = turns.alternate(
            {
                name: functools.partial(
                    worker.turn, MATMUL_CALLS if name == 'matmul' else flags.calls
                )
                for name, worker in workers.items()
            },
            flags.rounds,
        )
    finally:
        for worker in workers.values():
            worker.close()
    side = MATMUL_SIDE[flags.device]
    gflops = [turns.matmul_gflops(turn, side) for turn in taken['matmul']]
    named = {str(number): contender for number, contender in enumerate(contenders)}
    reference = None
    for name, contender in named.items():
        if contender['own'] and (contender['backend'], contender['precision']) == turns.REFERENCE:
            reference = taken[name]
    others: dict[str, Any] = {'batch': batch, 'gflops': gflops, 'reference': reference}
    rows = [
        turns.summarise(contender, workers[name].facts, taken[name], **others)
        for name, contender in named.items()
    ]
    return {
        'size': contenders[0]['size'],
        **shared,
        'matmul_gflops': round(statistics.median(gflops), 1),
        'matmul_lowest': round(min(gflops), 1),
        'matmul_highest': round(max(gflops), 1),
        'matmul_side': side,
        'round_gflops': [round(value, 2) for value in gflops],
        'rows': rows,
    }


def measure(flags: argparse.Namespace, contenders: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All groups."""
    groups = []
    sizes = sorted({contender['size'] or 0 for contender in contenders})
    for size, threads, batch in itertools.product(sizes, flags.threads, flags.batch):
        chosen = [
            contender
            for contender in contenders
            if (contender['size'] or 0) == size and (contender['any_batch'] or batch == 1)
        ]
        if chosen:
            print(f'{size or "any"} px, {threads} threads, batch {batch}', file=sys.stderr)
            groups.append(_measure_group(chosen, flags, threads, batch))
    return groups


def run(arguments: Sequence[str]) -> int:
    """Measures, writes and prints; the exit code."""
    flags = read_flags(arguments)
    old = _read_old(flags.compare) if flags.compare else None
    wanted, skipped = choose(flags)
    phone = None
    if 'android' in flags.backend:
        # Before anything that takes long: whether there is one at all.
        phone = android.Phone(flags.serial)
        android.check_binary(flags.benchmark_model)
    if flags.device == 'cpu':
        os.environ['JAX_PLATFORMS'] = 'cpu'
    results: dict[str, Any] = {
        'rounds': flags.rounds,
        'calls_per_round': flags.calls,
        'pinned': flags.pin,
        'load_average': round(os.getloadavg()[0], 1),
    }
    with tempfile.TemporaryDirectory() as folder:
        contenders, about = prepare(flags, wanted, pathlib.Path(folder))
        results |= about
        if not contenders:
            raise ValueError(f'nothing to measure: {"; ".join(skipped)}')
        on_phone = [c for c in contenders if c['backend'] == 'tflite']
        if ('tflite' not in flags.backend) and phone is not None:
            contenders = [c for c in contenders if c['backend'] != 'tflite']
        results['groups'] = measure(flags, contenders)
        if phone is not None:
            results['phone'] = android.measure(
                phone, flags.benchmark_model, on_phone, flags.threads
            )
    results['skipped'] = skipped
    results['targets'] = report.targets(results)
    first = in_fresh_process(results_file.head, 'latency', list(arguments))
    results = results_file.write(flags.output, first, results)
    show(results, flags.output)
    if old is None:
        return 0
    compared = compare.compare(old, results)
    print(compare.table(compared))
    return int(any(row['slower'] for row in compared))


def _read_old(path: pathlib.Path) -> dict[str, Any]:
    """An earlier run's results; ValueError if it holds none."""
    try:
        found = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f'--compare {path}: cannot be read: {error}') from error
    if not isinstance(found, dict) or found.get('benchmark') != 'latency':
        raise ValueError(f'--compare {path}: expected results of benchmarks/latency.py')
    return found


def show(results: dict[str, Any], path: pathlib.Path) -> None:
    """Writes the table and the plot beside the results file, and prints the table."""
    table = report.markdown(results)
    path.with_suffix('.md').write_text(table)
    if results['groups']:
        report.plot(results, path.with_suffix('.svg'))
    print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    """Errors of the user are one line and exit code 2; 1 is something slower."""
    try:
        return run(sys.argv[1:] if arguments is None else arguments)
    except ValueError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2


if __name__ == '__main__':
    sys.exit(main())
