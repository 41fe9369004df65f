"""An estimate, not a measurement: training on 8, 64 and 512 devices, and what limits it.

    python benchmarks/scaling.py

Writes benchmarks/results/scaling.json. Measured or counted here: the network's multiply-adds,
activations and parameters; the all-reduces of a step, counted in the program that XLA makes of it
for two devices; images per second and core of the input pipeline (results/throughput.json).
Declared: the figures of SYSTEMS that name a source. Assumed: everything in ASSUMPTIONS, and the
figures of SYSTEMS that say so.
"""

import datetime
import json
import math
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any

# Read when JAX starts: two devices, so that a step has something to reduce.
os.environ['XLA_FLAGS'] = (
    '--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0'
)

import jax
import jax.numpy as jnp
import machine
import numpy as np
from jax.extend import core as jax_core

from handpose_jax import models, train
from handpose_jax.models.complexity import count_macs, count_parameters
from handpose_jax.process import distributed
from handpose_jax.training import optimizers
from handpose_jax.training.state import init_state

RESULTS = pathlib.Path(__file__).parent / 'results'
DEVICES = (8, 64, 512)
SIZES = (112, 224)
# Any size that the network takes: the all-reduces of a step do not depend on it.
COUNTED_AT = 32

SYSTEMS: dict[str, dict[str, Any]] = {
    'tpu_v5e': {
        'name': 'TPU v5e',
        'peak_flops': 197e12,
        'memory_bytes_per_s': 819e9,
        # 1600 Gbit/s of links per chip, so 200 GB/s out; half without wrap-around.
        'island_bytes_per_s': 100e9,
        'island': 256,
        # 6.4 Tbit/s of data centre network per pod of 256 chips.
        'outside_bytes_per_s': 6.4e12 / 8 / 256,
        'per_host': 8,
        'source': 'Google Cloud documentation, "TPU v5e": 197 TFLOPs bf16, 819 GB/s, 1600 Gbit/s '
        'interconnect per chip, pods of 256 chips with 6.4 Tbit/s between them, 8 chips per host',
        'latency_s': {8: 5e-6, 64: 10e-6, 512: 100e-6},
        'assumed': 'latency_s of one small all-reduce; half of the one-way bandwidth',
    },
    'h100': {
        'name': 'H100',
        'peak_flops': 989e12,
        'memory_bytes_per_s': 3.35e12,
        # 900 GB/s of NVLink, both directions together.
        'island_bytes_per_s': 450e9,
        'island': 8,
        # One 400 Gbit/s network adapter for each GPU.
        'outside_bytes_per_s': 50e9,
        'per_host': 8,
        'source': 'NVIDIA data sheets, H100 SXM: 989 TFLOPS bf16 dense, 3.35 TB/s, NVLink 900 GB/s;'
        ' DGX H100: 8 GPUs, 8 adapters of 400 Gbit/s',
        'latency_s': {8: 12e-6, 64: 30e-6, 512: 50e-6},
        'assumed': 'latency_s of one small all-reduce',
    },
}

ASSUMPTIONS: dict[str, Any] = {
    'images_per_device': 32,
    # Forward and backward of a convolution, with its batch normalisation and activation.
    'passes_over_activations': 12,
    'activation_bytes': 2,
    'flops_forward_and_backward': 3,
    'share_of_peak_flops': 0.3,
    'share_of_memory_bandwidth': 0.6,
    'overlap': 'none: compute, gradients and statistics follow one another',
}


def count_network(size: int) -> dict[str, int]:
    """Multiply-adds and numbers in the outputs of all convolutions, for one image."""
    model = models.build('mobilenet_v2', implementation='lax')
    images = jnp.zeros((1, size, size, 3), jnp.uint8)
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), images))
    jaxpr = jax.make_jaxpr(lambda v: model.apply(v, images))(variables)
    return {
        'macs': count_macs(model, size),
        'activations': sum(_convolution_outputs(jaxpr.jaxpr)),
    }


def _convolution_outputs(jaxpr: jax_core.Jaxpr) -> Iterator[int]:
    for equation in jaxpr.eqns:
        if equation.primitive.name in ('conv_general_dilated', 'dot_general'):
            aval: Any = equation.outvars[0].aval
            yield math.prod(aval.shape)
        for value in equation.params.values():
            inner = getattr(value, 'jaxpr', value)
            if isinstance(inner, jax_core.Jaxpr):
                yield from _convolution_outputs(inner)


def count_collectives() -> dict[str, Any]:
    """What the devices of a training step say to one another, from XLA's program for two."""
    mesh = distributed.data_mesh()
    model = models.build('mobilenet_v2')
    tx, _ = optimizers.build('adadelta', learning_rate=1.0, num_steps=1)
    state = init_state(model, tx, size=COUNTED_AT, seed=0, use_ema=False)
    batch = {
        'image': np.zeros((4, COUNTED_AT, COUNTED_AT, 3), np.uint8),
        'keypoints': np.zeros((4, 21, 2), np.float32),
        'visible': np.ones((4, 21), bool),
    }
    step = jax.jit(
        train.make_train_step(model, tx, train.LOSSES['squared_error'], sigma=7.0),
        donate_argnums=0,
        out_shardings=distributed.replicated(mesh),
    )
    program = step.lower(distributed.replicate(state, mesh), distributed.to_devices(batch, mesh))
    counts = dict.fromkeys(('all-reduce', 'all-gather', 'all-to-all', 'collective-permute'), 0)
    numbers = 0
    pattern = re.compile(rf'= (.*?) ({"|".join(counts)})(?:-start)?\(')
    for result, kind in pattern.findall(program.compile().as_text() or ''):
        counts[kind] += 1
        for shape in re.findall(r'\w+\[([\d,]*)\]', result):
            numbers += math.prod(int(side) for side in shape.split(',') if side)
    paths = jax.tree_util.tree_leaves_with_path(state.batch_stats)
    return {
        'parameters': count_parameters(state.params),
        'statistics': count_parameters(state.batch_stats),
        'batch_norms': sum(jax.tree_util.keystr(path).endswith("['mean']") for path, _ in paths),
        'operations': {kind.replace('-', '_'): count for kind, count in counts.items()},
        'bytes': 4 * numbers,
    }


def all_reduce_seconds(system: dict[str, Any], devices: int, size: int) -> float:
    """Rings within islands, then between them, each device with its share; without latency.

    Args:
        system: an entry of SYSTEMS.
        devices: taking part.
        size: bytes that each holds.
    """
    inside = min(devices, system['island'])
    islands = devices // inside
    within = 2 * (inside - 1) / inside * size / system['island_bytes_per_s']
    between = 2 * (islands - 1) / islands * size / inside / system['outside_bytes_per_s']
    return within + between


def estimate(
    system: dict[str, Any],
    devices: int,
    size: int,
    network: dict[str, int],
    collectives: dict[str, Any],
    images_per_s_and_core: float,
) -> dict[str, float]:
    """One row: a training step of bfloat16 compute on a number of devices."""
    images = ASSUMPTIONS['images_per_device']
    flops = 2 * ASSUMPTIONS['flops_forward_and_backward'] * network['macs']
    traffic = (
        ASSUMPTIONS['passes_over_activations']
        * ASSUMPTIONS['activation_bytes']
        * network['activations']
    )
    compute = images * max(
        flops / (ASSUMPTIONS['share_of_peak_flops'] * system['peak_flops']),
        traffic / (ASSUMPTIONS['share_of_memory_bandwidth'] * system['memory_bytes_per_s']),
    )
    latency = system['latency_s'][devices]
    gradients = latency + all_reduce_seconds(system, devices, 4 * collectives['parameters'])
    # Sums of a layer's outputs forward, of its gradients backward; each waits for the one before.
    # The bytes of those backward are gradients of scale and offset, counted above.
    statistics = 2 * collectives['batch_norms'] * latency
    statistics += all_reduce_seconds(system, devices, 4 * collectives['statistics'])
    step = compute + gradients + statistics
    rate = devices * images / step
    image_bytes = 3 * size * size
    hosts = max(1, devices // system['per_host'])
    return {
        'images_per_s': round(rate),
        'step_ms': round(1e3 * step, 2),
        'compute_ms': round(1e3 * compute, 2),
        'gradient_all_reduce_ms': round(1e3 * gradients, 3),
        'statistics_all_reduce_ms': round(1e3 * statistics, 3),
        'efficiency': round(compute / step, 3),
        'input_mb_per_s': round(rate * image_bytes / 1e6, 1),
        'input_mb_per_s_and_host': round(rate * image_bytes / 1e6 / hosts, 1),
        'input_cores_per_host': math.ceil(rate / hosts / images_per_s_and_core),
    }


def table(rows: dict[str, dict[str, float]]) -> str:
    """The table of docs/scaling.md."""
    columns = {
        'images/s': ('images_per_s', ',.0f'),
        'step, ms': ('step_ms', '.1f'),
        'compute': ('compute_ms', '.1f'),
        'gradients': ('gradient_all_reduce_ms', '.2f'),
        'statistics': ('statistics_all_reduce_ms', '.1f'),
        'efficiency': ('efficiency', '.2f'),
        'input, MB/s': ('input_mb_per_s', ',.0f'),
        'cores per host': ('input_cores_per_host', '.0f'),
    }
    lines = [' | '.join(['devices', 'size', *columns]), '|'.join(['---'] * (len(columns) + 2))]
    for key, row in rows.items():
        name, size, devices = key.rsplit('_', 2)
        values = [format(row[column], form) for column, form in columns.values()]
        lines.append(' | '.join([f'{devices} {SYSTEMS[name]["name"]}', size, *values]))
    return '\n'.join(f'| {line} |' for line in lines)


def main() -> None:
    """Counts, estimates, writes the results file and prints a Markdown table."""
    measured = json.loads((RESULTS / 'throughput.json').read_text())
    cores = measured['machine']['cores']
    per_core = {size: measured[f'input_{size}']['images_per_s'] / cores for size in SIZES}
    network = {size: count_network(size) for size in SIZES}
    collectives = count_collectives()
    rows = {
        f'{name}_{size}_{devices}': estimate(
            system, devices, size, network[size], collectives, per_core[size]
        )
        for name, system in SYSTEMS.items()
        for size in SIZES
        for devices in DEVICES
    }
    results = {
        'benchmark': 'scaling',
        'command': 'python benchmarks/scaling.py',
        'date': datetime.date.today().isoformat(),
        'what': 'an estimate from counts, declared figures and assumptions; nothing was run on '
        'the devices it speaks of',
        'counted': {
            'network': network,
            'collectives_per_step': collectives,
            'image_bytes': {size: 3 * size * size for size in SIZES},
        },
        'measured': {
            'input_images_per_s_and_core': {k: round(v, 1) for k, v in per_core.items()},
            'from': 'results/throughput.json, input_112 and input_224',
        },
        'declared': SYSTEMS,
        'assumed': ASSUMPTIONS,
        'estimated': rows,
        'machine': machine.describe(),
    }
    (RESULTS / 'scaling.json').write_text(json.dumps(results, indent=2) + '\n')
    print(table(rows))


if __name__ == '__main__':
    main()
