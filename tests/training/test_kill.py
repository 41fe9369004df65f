"""A training that is killed, or that meets a full disk, loses nothing but its last steps."""

import multiprocessing
import os
import resource
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

from handpose_jax import train
from handpose_jax.config import load
from handpose_jax.training import checkpoints

ROOT = Path(__file__).parents[2]


def make_config(**changes):
    config = load(ROOT / 'configs' / 'quickstart.py:smoke')
    config.update_from_flattened_dict(
        {
            'model.width': 0.25,
            'log_every': 1,
            'eval_every': 4,
            'checkpoint_every': 1,
            'early_stopping.patience': 1000,
            **changes,
        }
    )
    return config


def run(workdir, changes, largest_file=resource.RLIM_INFINITY):
    """What the child does; a process of its own, that only the parent's kill ends early."""
    # A log would reach the limit too, and printing would fail.
    limited = largest_file != resource.RLIM_INFINITY
    with open(os.devnull if limited else f'{workdir}.log', 'a') as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, resource.RLIM_INFINITY))
    try:
        train.train(make_config(**changes), workdir)
    except ValueError as error:
        Path(f'{workdir}.error').write_text(str(error))
        raise


def start(workdir, *arguments):
    """Forked from a server that has imported everything: a real process, without its imports."""
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['handpose_jax.train', 'test_kill'])
    process = context.Process(target=run, args=(str(workdir), *arguments))
    process.start()
    return process


def log_of(workdir):
    return Path(f'{workdir}.log').read_text()


def lines(workdir):
    path = Path(workdir) / 'metrics.jsonl'
    return path.read_bytes().count(b'\n') if path.exists() else 0


def checkpoint_arrays(workdir, step):
    """Every file of a checkpoint that holds arrays, read through Orbax without a template."""
    import orbax.checkpoint as ocp

    folder = Path(workdir) / 'checkpoints' / str(step)
    with ocp.PyTreeCheckpointer() as reader, warnings.catch_warnings():
        warnings.filterwarnings('ignore', 'Sharding info not provided')
        trees = [reader.restore(folder / item) for item in ('variables', 'optimizer')]
    import jax

    return {
        jax.tree_util.keystr(path): np.asarray(leaf)
        for tree in trees
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def assert_same_run(one, other, step):
    arrays, others = checkpoint_arrays(one, step), checkpoint_arrays(other, step)
    assert arrays.keys() == others.keys()
    assert len(arrays) > 50
    for name, values in arrays.items():
        np.testing.assert_array_equal(values, others[name], err_msg=name)
    for name in ('metrics.jsonl', 'metrics.json', 'predictions.json', 'config.json'):
        assert (Path(one) / name).read_bytes() == (Path(other) / name).read_bytes(), name


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """An uninterrupted run of the shorter length, in this process."""
    workdir = tmp_path_factory.mktemp('whole') / 'w'
    train.train(make_config(num_steps=12), str(workdir))
    return workdir


@pytest.mark.slow
@pytest.mark.parametrize(
    ('kills', 'num_steps'), [(3, 12), pytest.param(100, 300, marks=pytest.mark.long)]
)
def test_killed_at_random_moments_it_ends_as_if_it_had_not_been(tmp_path, whole, kills, num_steps):
    changes = {'num_steps': num_steps}
    if num_steps != 12:
        whole = tmp_path / 'whole'
        train.train(make_config(**changes), str(whole))
    workdir = tmp_path / 'killed'
    rng = np.random.default_rng(0)
    died_at = []
    for _ in range(kills):
        process = start(workdir, changes)
        # Some die while they start or restore, some in the middle of a step, some in a save.
        before = lines(workdir)
        for_lines, seconds = int(rng.integers(0, 5)), rng.uniform(0, 2.0)
        while process.is_alive() and lines(workdir) < before + for_lines:
            time.sleep(0.002)
        time.sleep(seconds if for_lines == 0 else seconds / 5)
        process.kill()
        process.join()
        assert process.exitcode == -9, log_of(workdir)
        died_at.append(lines(workdir))
    process = start(workdir, changes)
    process.join()
    assert process.exitcode == 0, log_of(workdir)
    assert_same_run(workdir, whole, num_steps)
    # It was interrupted in the middle indeed, and what the kills left half-done is gone.
    assert any(0 < count < num_steps for count in died_at)
    left = [p.name for p in workdir.rglob('*') if 'tmp' in p.name or p.name.endswith('.new')]
    assert left == []


@pytest.mark.slow
def test_a_full_disk_ends_the_run_with_the_last_good_checkpoint(tmp_path, whole):
    """No file may grow beyond a few bytes: to the writer the same as a disk without room."""
    workdir = tmp_path / 'full'
    changes = {'num_steps': 12}
    train.train(make_config(**changes), str(workdir), stop_at=5)
    # Enough for metrics and configs, not for the arrays.
    process = start(workdir, changes, 60_000)
    process.join()
    assert process.exitcode == 1
    told = Path(f'{workdir}.error').read_text()
    assert 'cannot write a checkpoint' in told
    assert 'step 5 is complete' in told
    train.train(make_config(**changes), str(workdir))
    assert_same_run(workdir, whole, 12)
    assert not [p for p in workdir.rglob('*') if 'tmp' in p.name]


def test_a_checkpoint_of_another_config_is_refused_even_beside_the_right_one(tmp_path, whole):
    """config.json may be lost or edited; the checkpoint has its own."""
    import shutil

    workdir = tmp_path / 'w'
    shutil.copytree(whole, workdir)
    (workdir / checkpoints.CONFIG_FILE).unlink()
    with pytest.raises(ValueError, match=r'optimizer\.learning_rate: 0\.002 -> 0\.5'):
        train.train(make_config(**{'num_steps': 12, 'optimizer.learning_rate': 0.5}), str(workdir))
