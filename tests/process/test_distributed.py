"""Several devices and several processes compute what one device does, and stop together.

Processes talk through gloo on this machine; several devices are forced on the CPU.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from etils import epath
from jax.sharding import AbstractMesh
from ml_collections import ConfigDict

from handpose_jax import inference, main, train, visualize
from handpose_jax.config import load
from handpose_jax.data import pipeline
from handpose_jax.data.sources import SketchSource
from handpose_jax.data.transforms import Augmentation
from handpose_jax.process import distributed, interruption
from handpose_jax.training import checkpoints, workdirs
from handpose_jax.training.writers import MetricWriter, read_metrics

ROOT = Path(__file__).parents[2]
BATCH = 8
LONG = 5000

# In a file of its own, so that the command line gets a config made here.
CONFIG_MODULE = """
import json
import pathlib
from ml_collections import ConfigDict

def get_config():
    return ConfigDict(json.loads(pathlib.Path(__file__).with_suffix('.json').read_text()))
"""


def tiny_config():
    """A small network on drawn hands, by plain gradient descent, which amplifies no rounding."""
    config = load(ROOT / 'configs' / 'quickstart.py:smoke')
    with config.unlocked():
        config.optimizer = ConfigDict({'name': 'sgd', 'learning_rate': 1e-3})
        config.size = 32
        config.batch_size = config.eval_batch_size = BATCH
        config.num_steps = config.checkpoint_every = LONG
        config.log_every = 1
        config.eval_every = 2
        # More to evaluate than one batch, and the last one padded.
        config.data.count = 110
        config.pipeline.num_threads = 1
    return config


def start(workdir, *, processes=1, devices=1):
    """Starts `python -m handpose_jax.main` on tiny_config; one Popen for each process."""
    module = workdir.with_suffix('.py')
    module.write_text(CONFIG_MODULE)
    module.with_suffix('.json').write_text(tiny_config().to_json_best_effort())
    environment = dict(os.environ)
    environment['XLA_FLAGS'] += f' --xla_force_host_platform_device_count={devices}'
    command = [sys.executable, '-m', 'handpose_jax.main']
    command += ['--config', str(module), '--workdir', str(workdir)]
    if processes > 1:
        with socket.socket() as probe:
            probe.bind(('localhost', 0))
            environment['JAX_COORDINATOR_ADDRESS'] = f'localhost:{probe.getsockname()[1]}'
        command += ['--distributed', '--num_processes', str(processes)]
    return [
        subprocess.Popen(
            [*command, '--process_id', str(number)] if processes > 1 else command,
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(processes)
    ]


def stop(workdir, running, rows):
    """Tells the last process to stop after some rows; returns codes and what was printed."""
    log = workdir / 'metrics.jsonl'
    try:
        while all(process.poll() is None for process in running):
            if log.exists() and log.read_text().count('\n') >= rows:
                running[-1].send_signal(signal.SIGTERM)
                break
            time.sleep(0.05)
        printed = [process.communicate(timeout=60)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    return [process.returncode for process in running], printed


class Run(NamedTuple):
    workdir: Path
    rows: list
    last: int
    codes: tuple = ()
    printed: tuple = ()

    @classmethod
    def read(cls, workdir, codes=(), printed=()):
        rows = read_metrics(workdir / 'metrics.jsonl')
        return cls(workdir, rows, rows[-1]['step'], tuple(codes), tuple(printed))


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """One training on eight devices, by two processes, and on one device for a step more."""
    folder = tmp_path_factory.mktemp('runs')
    many = {'devices': {'devices': 8}, 'processes': {'processes': 2}}
    running = {name: start(folder / name, **options) for name, options in many.items()}
    done = {}
    for name, processes in running.items():
        # Four steps with an evaluation after the second and fourth.
        done[name] = Run.read(folder / name, *stop(folder / name, processes, rows=6))
    longest = max(run.last for run in done.values())
    train.train(tiny_config(), str(folder / 'one'), stop_at=longest + 1)
    return {**done, 'one': Run.read(folder / 'one')}


def assert_same_rows(rows, expected):
    assert [(row['step'], row['split']) for row in rows] == [
        (row['step'], row['split']) for row in expected
    ]
    for row, other in zip(rows, expected, strict=True):
        assert row.keys() == other.keys()
        for name in row.keys() - {'split'}:
            np.testing.assert_allclose(row[name], other[name], rtol=2e-5, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['devices', 'processes'])
def test_losses_and_evaluation_are_those_of_one_device(runs, name):
    assert [row['step'] for row in runs[name].rows if row['split'] == 'eval'][:2] == [2, 4]
    expected = [row for row in runs['one'].rows if row['step'] <= runs[name].last]
    assert_same_rows(runs[name].rows, expected)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['devices', 'processes'])
def test_a_run_on_many_goes_on_on_one_device(runs, tmp_path, name):
    """From the same parameters and statistics, with the next examples."""
    last = runs[name].last
    workdir = tmp_path / name
    shutil.copytree(runs[name].workdir, workdir)
    assert inference.load_run(str(workdir)).step == last
    train.train(tiny_config(), str(workdir), stop_at=runs['one'].last)
    assert_same_rows(read_metrics(workdir / 'metrics.jsonl'), runs['one'].rows)
    found, expected = (
        inference.load_run(str(folder)).variables for folder in (workdir, runs['one'].workdir)
    )
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_a_signal_to_one_of_two_processes_stops_both_at_the_same_step(runs):
    run = runs['processes']
    assert run.codes == (interruption.EXIT_CODE,) * 2, run.printed
    assert f'stopped at step {run.last} of {LONG}' in run.printed[0]
    folder = run.workdir / 'checkpoints'
    assert [path.name for path in folder.iterdir()] == [str(run.last)]
    places = sorted((folder / str(run.last) / 'data').glob('process_*.json'))
    assert [json.loads(path.read_text()) for path in places] == [{'next_index': run.last}] * 2


@pytest.mark.slow
def test_one_process_writes_and_talks_for_both(runs):
    def names(run):
        return sorted(path.name for path in run.workdir.iterdir())

    assert names(runs['processes']) == names(runs['one'])
    talks, silent = runs['processes'].printed
    assert 'EPE median' in talks
    assert 'images/s' in talks
    assert 'step' not in silent.replace('stopping after this step', '')


@pytest.mark.parametrize(('processes', 'balance'), [(2, 1.0), (4, 0.5)])
def test_the_parts_of_processes_are_the_batches_of_one(processes, balance):
    """Side by side, in the order of the mesh: the same examples at the same places."""

    def batches(index, count):
        dataset = pipeline.train_dataset(
            SketchSource(count=11),
            size=16,
            batch_size=BATCH // count,
            seed=3,
            augmentation=Augmentation(rotation=30.0),
            balance=balance,
            num_threads=1,
            shard_index=index,
            shard_count=count,
        )
        iterator = iter(dataset)
        return [next(iterator) for _ in range(4)]

    parts = [batches(index, processes) for index in range(processes)]
    for step, whole in enumerate(batches(0, 1)):
        for name, values in whole.items():
            joined = np.concatenate([part[step][name] for part in parts])
            np.testing.assert_array_equal(joined, values)


@pytest.mark.parametrize('field', ['batch_size', 'eval_batch_size'])
def test_a_batch_that_the_devices_cannot_share_is_refused(field, unchecked):
    mesh = AbstractMesh((8,), ('data',))
    with pytest.raises(ValueError, match=rf'^{field}: expected a multiple of the 8 devices.*12'):
        distributed.process_batch_size(12, mesh, field=field)


def test_a_single_process_shares_with_nobody():
    mesh = distributed.data_mesh()
    assert distributed.is_main_process()
    assert distributed.process_batch_size(7, mesh, field='batch_size') == 7
    batch = {'index': np.arange(6, dtype=np.int32), 'valid': np.arange(6) < 4}
    back = distributed.fetch(distributed.to_devices(batch, mesh), mesh)
    for name, values in batch.items():
        assert back[name].dtype == values.dtype
        np.testing.assert_array_equal(back[name], values)
    assert distributed.largest(2.5, mesh) == 2.5
    any_process = distributed.AnyProcess(mesh)
    assert not any_process(False)
    assert any_process(True)


def test_what_jax_cannot_find_out_is_asked_for(monkeypatch):
    def initialize(**arguments):
        raise ValueError('Number of processes must be defined.')

    monkeypatch.setattr(jax.distributed, 'initialize', initialize)
    monkeypatch.delenv('JAX_COORDINATOR_ADDRESS', raising=False)
    with pytest.raises(ValueError, match=r'JAX_COORDINATOR_ADDRESS.*--num_processes.*None'):
        distributed.initialise(process_id=0)


def test_processes_are_joined_only_when_asked(monkeypatch):
    def initialise(**arguments):
        raise AssertionError('called by itself')

    monkeypatch.setattr(distributed, 'initialise', initialise)
    flags.FLAGS(['main'])
    with (
        flagsaver.flagsaver(num_processes=2),
        pytest.raises(SystemExit, match='mean nothing without --distributed'),
    ):
        main.main(['main'])


@pytest.fixture
def bucket(monkeypatch):
    """gs:// kept in memory; no bucket is at hand."""
    memory = pytest.importorskip('fsspec.implementations.memory').MemoryFileSystem
    backend = epath.backend.fsspec_backend
    monkeypatch.setattr(type(backend), 'fs', lambda self, path: memory())
    monkeypatch.setattr(epath.gpath, '_is_tf_installed', lambda: False)
    yield 'gs://bucket/run'
    memory().rm('/', recursive=True)


def test_the_files_of_a_run_may_lie_in_a_bucket(bucket):
    """All but the checkpoints, which Orbax writes: config, metrics (gone on with), pictures."""
    config = tiny_config()
    checkpoints.save_config(bucket, config)
    assert workdirs.config_differences(workdirs.load_config(bucket), config) == []
    for resume_step, steps in ((0, [1, 2, 3]), (2, [3, 4])):
        with MetricWriter(bucket, resume_step=resume_step) as writer:
            for step in steps:
                writer.write(step, {'loss': step + resume_step})
    rows = read_metrics(f'{bucket}/metrics.jsonl')
    assert [(row['step'], row['loss']) for row in rows] == [(1, 1), (2, 2), (3, 5), (4, 6)]
    visualize.save_png(f'{bucket}/a.png', np.zeros((2, 3, 3), np.uint8))
    assert epath.Path(f'{bucket}/a.png').read_bytes().startswith(b'\x89PNG')


DEPTHWISE = """
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from handpose_jax.process import distributed
from handpose_jax.models.layers import depthwise_conv

mesh = distributed.data_mesh()
x, weights = (jax.random.normal(jax.random.key(n), (8, 9, 9, 4)) for n in (0, 1))
kernel = jax.random.normal(jax.random.key(2), (3, 3, 1, 4))

def gradient(implementation):
    def loss(kernel, x, weights):
        return jnp.sum(depthwise_conv(x, kernel, 1, implementation) * weights)
    return jax.grad(loss)

spread = NamedSharding(mesh, PartitionSpec('data'))
whole = distributed.replicated(mesh)
compiled = jax.jit(
    gradient('cpu'), in_shardings=(whole, spread, spread), out_shardings=whole
).lower(kernel, x, weights).compile()
found = compiled(*jax.device_put((kernel, x, weights), (whole, spread, spread)))
np.testing.assert_allclose(found, gradient('lax')(kernel, x, weights), rtol=1e-4, atol=1e-4)
print(mesh.size, *(compiled.as_text().count(f' {kind}(') for kind in ('all-reduce', 'all-gather')))
"""


def test_devices_keep_their_images_in_the_gradient_of_a_depthwise_kernel():
    environment = dict(os.environ)
    environment['XLA_FLAGS'] += ' --xla_force_host_platform_device_count=4'
    done = subprocess.run(
        [sys.executable, '-c', DEPTHWISE],
        capture_output=True,
        text=True,
        env=environment,
        cwd=ROOT,
        check=False,
    )
    assert done.stdout.split() == ['4', '1', '0'], done.stderr
