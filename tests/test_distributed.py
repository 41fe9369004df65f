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

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from jax.sharding import AbstractMesh
from ml_collections import ConfigDict
from test_configs import load

from handpose_jax import checkpoints, distributed, interruption, main, models, runtimes, train
from handpose_jax.data import pipeline
from handpose_jax.data.sources import SketchSource
from handpose_jax.data.transforms import Augmentation
from handpose_jax.writers import read_metrics

ROOT = Path(__file__).parent.parent
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


def tiny_config(num_steps=4, every=2):
    """A small network on drawn hands, by plain gradient descent, which amplifies no rounding."""
    config = load(ROOT / 'configs' / 'quickstart.py', 'smoke')
    with config.unlocked():
        config.optimizer = ConfigDict({'name': 'sgd', 'learning_rate': 1e-3})
        config.size = 32
        config.batch_size = config.eval_batch_size = BATCH
        config.num_steps = num_steps
        config.log_every = 1
        config.eval_every = config.checkpoint_every = every
        # More to evaluate than one batch, and the last one padded.
        config.data.count = 110
        config.eval_split = 'val'
        config.pipeline.num_threads = 1
    return config


def start(tmp_path, config, workdir, *, processes=1, devices=1):
    """Starts `python -m handpose_jax.main` on the config; one Popen for each process."""
    module = tmp_path / f'{workdir.name}.py'
    module.write_text(CONFIG_MODULE)
    module.with_suffix('.json').write_text(config.to_json_best_effort())
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


def wait(running):
    """Exit codes and what was printed."""
    try:
        printed = [process.communicate(timeout=120)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    return [process.returncode for process in running], printed


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """The same training on one device, on eight, and by two processes: name -> workdir."""
    folder = tmp_path_factory.mktemp('runs')
    running = start(folder, tiny_config(), folder / 'devices', devices=8)
    train.train(tiny_config(), str(folder / 'one'))
    codes, printed = wait(running)
    assert codes == [0], printed
    codes, printed = wait(start(folder, tiny_config(), folder / 'processes', processes=2))
    assert codes == [0, 0], printed
    # Only the first one talks.
    assert 'EPE median' in printed[0]
    assert 'EPE' not in printed[1]
    assert 'images/s' not in printed[1]
    return {name: folder / name for name in ('one', 'devices', 'processes')}


def assert_same_rows(rows, expected, rtol=1e-5):
    assert [row['step'] for row in rows] == [row['step'] for row in expected]
    for row, other in zip(rows, expected, strict=True):
        assert row.keys() == other.keys()
        assert row['split'] == other['split']
        for name in row.keys() - {'split'}:
            np.testing.assert_allclose(row[name], other[name], rtol=rtol, err_msg=name)


def variables(workdir):
    """What inference on this one device reads from a run on others."""
    config = checkpoints.load_config(str(workdir))
    return runtimes.load_variables(str(workdir), config, models.build(**config.model.to_dict()))


@pytest.mark.slow
@pytest.mark.parametrize('name', ['devices', 'processes'])
def test_losses_statistics_and_evaluation_are_those_of_one_device(runs, name):
    rows = read_metrics(runs[name] / 'metrics.jsonl')
    assert [row['step'] for row in rows if row['split'] == 'train'] == [1, 2, 3, 4]
    assert [row['step'] for row in rows if row['split'] == 'eval'] == [2, 4]
    assert_same_rows(rows, read_metrics(runs['one'] / 'metrics.jsonl'))
    step, found = variables(runs[name])
    assert step == 4
    expected = variables(runs['one'])[1]
    # Statistics of a part of the batch would differ by far more: see the test of the tolerance.
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_the_tolerance_would_notice_statistics_of_half_a_batch(runs):
    """A seeded fault: batch normalisation over this process's part alone."""
    config = tiny_config(num_steps=1)
    model = models.build(**config.model.to_dict())
    dataset = train._train_dataset(config, SketchSource(count=110), config.batch_size)
    images = jnp.asarray(next(iter(dataset))['image'])
    start_values = model.init(jax.random.key(0), images)
    means = []
    for part in (images, images[: BATCH // 2]):
        _, updated = model.apply(start_values, part, train=True, mutable=['batch_stats'])
        means.append(np.concatenate(jax.tree.leaves(updated)))
    assert not np.allclose(*means, rtol=1e-2, atol=1e-3)


@pytest.mark.slow
def test_two_processes_write_the_evaluation_of_one(runs):
    one, two = (
        json.loads((runs[name] / 'predictions.json').read_text()) for name in ('one', 'processes')
    )
    assert len(one) == 11
    assert [row['id'] for row in two] == [row['id'] for row in one]
    for row, other in zip(two, one, strict=True):
        # Written with two and four decimals.
        np.testing.assert_allclose(row['keypoints'], other['keypoints'], atol=0.011)
        np.testing.assert_allclose(row['confidence'], other['confidence'], atol=1.1e-4)
    assert sorted(path.name for path in runs['one'].iterdir()) == sorted(
        path.name for path in runs['processes'].iterdir()
    )


@pytest.mark.slow
@pytest.mark.parametrize('name', ['devices', 'processes'])
def test_a_run_on_many_goes_on_on_one_device(runs, tmp_path, name):
    workdir = tmp_path / name
    shutil.copytree(runs[name], workdir)
    shutil.rmtree(workdir / 'checkpoints' / '4')
    train.train(tiny_config(), str(workdir))
    rows = read_metrics(workdir / 'metrics.jsonl')
    assert_same_rows(rows, read_metrics(runs['one'] / 'metrics.jsonl'))


@pytest.mark.slow
def test_a_signal_to_one_of_two_processes_stops_both_at_the_same_step(runs, tmp_path):
    """They go on, besides, from a checkpoint of one process, with the next examples."""
    workdir = tmp_path / 'stopped'
    config = tiny_config(num_steps=LONG, every=LONG)
    train.train(config, str(workdir), stop_at=1)
    log = workdir / 'metrics.jsonl'
    running = start(tmp_path, config, workdir, processes=2)
    while all(p.poll() is None for p in running) and log.read_text().count('\n') < 4:
        time.sleep(0.05)
    running[1].send_signal(signal.SIGTERM)
    codes, printed = wait(running)
    assert codes == [interruption.EXIT_CODE] * 2, printed
    rows = read_metrics(log)
    last = rows[-1]['step']
    assert 4 <= last < LONG
    assert f'stopped at step {last} of {LONG}' in printed[0]
    assert checkpoints.load_variables(str(workdir), variables(workdir)[1])[0] == last
    places = sorted((workdir / 'checkpoints' / str(last) / 'data').glob('process_*.json'))
    assert [json.loads(path.read_text()) for path in places] == [{'next_index': last}] * 2
    whole = [row for row in read_metrics(runs['one'] / 'metrics.jsonl') if row['split'] == 'train']
    assert_same_rows(rows[:4], whole)


@pytest.mark.parametrize('balance', [1.0, 0.5])
@pytest.mark.parametrize('processes', [2, 4])
def test_the_parts_of_processes_are_the_batches_of_one(balance, processes):
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
