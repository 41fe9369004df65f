"""Where a training step's time goes on a CPU, by kind of operation, beside the machine's peak.

    python benchmarks/training_profile.py

Traces steps of the paper's network (configs/real_hands.py, 112 px, batch 32) with JAX's profiler
and adds up what each operation of the compiled program took. Times are of threads: operations of
two threads overlap, and wait for one another's memory. Writes
benchmarks/results/training_profile.json.
"""

import collections
import glob
import gzip
import json
import re
import tempfile
import time

import jax
import jax.numpy as jnp
import results_file
import throughput

from handpose_jax import models
from handpose_jax.models import complexity
from handpose_jax.process import allocator, command_line, distributed

_INSTRUCTION = re.compile(r'\s*(?:ROOT )?%?([\w.\-]+) = \S+ ([\w\-]+)\(')
_OP_NAME = re.compile(r'op_name="([^"]*)"')

# They hold other operations, whose time is counted apart.
_CONTAINERS = ('while', 'conditional', 'call')


def kind(opcode: str, name: str) -> str:
    """What an instruction of the compiled step is for.

    Args:
        opcode: of HLO.
        name: of the JAX operation it came from, with the modules around it.
    """
    last = name.rsplit('/', 1)[-1]
    if '/while/body' in name and 'depthwise' in name:
        return 'kernel gradients of depthwise convolutions'
    if '/bn/' in name and last == 'reduce_sum':
        return 'sums of batch normalisation'
    if last == 'dot_general' or opcode == 'dot':
        return 'matrix products (1x1 and transposed convolutions)'
    if last == 'conv_general_dilated':
        return 'the first convolution'
    if opcode in ('copy', 'concatenate', 'transpose') or last in (
        'concatenate',
        'unstack',
        'stack',
    ):
        return 'copies and concatenations'
    if 'depthwise' in name and '/bn/' not in name and 'clip' not in name:
        return 'depthwise convolutions, forward and towards their input'
    if 'HeatmapNetwork' in name:
        return 'elementwise: batch normalisation, activations, sums'
    return 'loss, optimizer, average and other'


def instructions(hlo: str) -> dict[str, tuple[str, str]]:
    """From an instruction's name to its opcode and JAX operation."""
    found = {}
    for line in hlo.splitlines():
        if match := _INSTRUCTION.match(line):
            name = _OP_NAME.search(line)
            found[match.group(1)] = match.group(2), name.group(1) if name else ''
    return found


def _thread_milliseconds(folder: str, known: dict[str, tuple[str, str]]) -> dict[str, float]:
    """Adds up the profiler's events by kind."""
    (path,) = glob.glob(f'{folder}/**/*.trace.json.gz', recursive=True)
    with gzip.open(path) as file:
        events = json.load(file)['traceEvents']
    totals: dict[str, float] = collections.defaultdict(float)
    for event in events:
        if event.get('ph') == 'X' and event['name'] in known:
            opcode, name = known[event['name']]
            if opcode not in _CONTAINERS:
                totals[kind(opcode, name)] += event['dur'] / 1e3
    return totals


def matmul_gflops(side: int = 2048, rounds: int = 7) -> float:
    """The machine's peak, as JAX's own float32 matrix product reaches it."""
    product = jax.jit(jnp.matmul)
    a = jnp.ones((side, side))
    product(a, a).block_until_ready()
    best = float('inf')
    for _ in range(rounds):
        begin = time.perf_counter()
        product(a, a).block_until_ready()
        best = min(best, time.perf_counter() - begin)
    return 2 * side**3 / best / 1e9


def main() -> None:
    """Profiles and writes the results."""
    parser = results_file.parser(__doc__, 'training_profile')
    parser.add_argument('--size', type=int, default=112)
    parser.add_argument('--steps', type=int, default=3)
    flags = parser.parse_args()
    allocator.keep_freed_memory()
    settings = throughput.config()
    batch_size = settings.batch_size
    jitted, state, batches, mesh = throughput.training(flags.size, batch_size)
    spread = distributed.to_devices(batches[0], mesh)
    step = jitted.lower(state, spread).compile()

    def run(steps: int) -> float:
        nonlocal state
        begin = time.perf_counter()
        for _ in range(steps):
            state, metrics = step(state, spread)
        metrics['loss'].block_until_ready()
        return (time.perf_counter() - begin) / steps

    run(2)
    peak = matmul_gflops()
    wall = min(run(flags.steps) for _ in range(3))
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            run(flags.steps)
        totals = _thread_milliseconds(folder, instructions(step.as_text() or ''))
    # Backward takes twice the multiply-adds of forward.
    plain = models.build(**settings.model.to_dict(), implementation='lax')
    macs = complexity.count_macs(plain, flags.size)
    gflop = 3 * 2 * macs * batch_size / 1e9
    whole = sum(totals.values())
    kinds = {
        name: {
            'thread_ms_per_step': round(milliseconds / flags.steps, 1),
            'share': round(milliseconds / whole, 3),
        }
        for name, milliseconds in sorted(totals.items(), key=lambda item: -item[1])
    }
    figures = {
        'size': flags.size,
        'batch_size': batch_size,
        'wall_ms_per_step': round(1e3 * wall, 1),
        'gflop_per_step': round(gflop, 1),
        'gflop_per_s': round(gflop / wall, 1),
        'matmul_peak_gflop_per_s': round(peak, 1),
        'share_of_peak': round(gflop / wall / peak, 3),
        'kinds': kinds,
    }
    results_file.write(flags.output, results_file.head('training_profile'), figures)
    print(f'{1e3 * wall:.0f} ms a step, {gflop / wall:.0f} of {peak:.0f} GFLOP/s')
    for name, row in kinds.items():
        print(f'{row["thread_ms_per_step"]:9.1f} ms {100 * row["share"]:5.1f}%  {name}')


if __name__ == '__main__':
    with command_line.told():
        main()
