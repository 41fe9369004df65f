"""Configs beside checkpoints, and the errors of workdirs that do not fit."""

import json
import logging
import os
from types import SimpleNamespace

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from handpose_jax.training import checkpoints, workdirs
from handpose_jax.training.early_stopping import EarlyStopping
from handpose_jax.training.state import TrainState


def make_config(**changes):
    values = {
        'seed': 0,
        'ema': 0.9,
        'log_every': 10,
        'scale': (0.5, 1.1),
        'model': {'name': 'mobilenet_v2', 'width': 1.0},
        'pipeline': {'num_threads': 2, 'balance': 1.0},
    }
    config = ConfigDict(values)
    config.update_from_flattened_dict(changes)
    return config


def test_config_round_trip(tmp_path):
    config = make_config()
    checkpoints.save_config(str(tmp_path), config)
    loaded = workdirs.load_config(str(tmp_path))
    assert checkpoints.config_differences(config, loaded) == []
    assert loaded.is_locked


def test_another_config_is_refused_with_every_key_that_differs(tmp_path):
    checkpoints.save_config(str(tmp_path), make_config())
    changed = make_config(**{'model.width': 0.5, 'seed': 3})
    changed.extra = 1
    with pytest.raises(ValueError, match='another config') as caught:
        checkpoints.save_config(str(tmp_path), changed)
    message = str(caught.value)
    for line in ('model.width: 1.0 -> 0.5', 'seed: 0 -> 3', "extra: '-' -> 1"):
        assert line in message
    # The old config is still there.
    assert workdirs.load_config(str(tmp_path)).seed == 0


def test_settings_that_move_no_parameter_may_change(tmp_path):
    checkpoints.save_config(str(tmp_path), make_config())
    checkpoints.save_config(
        str(tmp_path), make_config(**{'log_every': 1, 'pipeline.num_threads': 0})
    )
    assert workdirs.load_config(str(tmp_path)).log_every == 1


@pytest.mark.parametrize('text', ['{', '[1, 2]', ''])
def test_damaged_config_is_named(tmp_path, text):
    (tmp_path / 'config.json').write_text(text)
    with pytest.raises(ValueError, match=r'config\.json'):
        workdirs.load_config(str(tmp_path))


def test_empty_workdir_is_named(tmp_path):
    with pytest.raises(ValueError, match='nothing was trained here'):
        workdirs.load_config(str(tmp_path))
    with pytest.raises(ValueError, match='train there first'):
        workdirs.load_variables(str(tmp_path), {})
    (tmp_path / 'checkpoints').mkdir()
    with pytest.raises(ValueError, match='no complete checkpoint'):
        workdirs.load_variables(str(tmp_path), {})


def test_workdir_that_cannot_be_made_is_named(tmp_path):
    # A file in the way fails for every user; a read-only folder would not stop root.
    (tmp_path / 'file').write_text('')
    with pytest.raises(ValueError, match='cannot write'):
        checkpoints.save_config(str(tmp_path / 'file' / 'w'), make_config())
    with pytest.raises(ValueError, match='cannot write'):
        checkpoints.Checkpoints(str(tmp_path / 'file'), make_config())


@pytest.mark.skipif(os.geteuid() == 0, reason='root may write anywhere')
def test_read_only_workdir_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ValueError, match='cannot write'):
        checkpoints.save_config(str(tmp_path), make_config())
    with pytest.raises(ValueError, match='cannot write'):
        checkpoints.Checkpoints(str(tmp_path), make_config())


def test_config_file_is_plain_json(tmp_path):
    checkpoints.save_config(str(tmp_path), make_config())
    values = json.loads((tmp_path / 'config.json').read_text())
    assert values['model'] == {'name': 'mobilenet_v2', 'width': 1.0}
    assert np.allclose(values['scale'], (0.5, 1.1))
    assert jax.tree.leaves(values)


def save_states(workdir, steps, use_ema=True):
    """Checkpoints of a tiny state that knows its step, with the config beside them."""
    config = make_config(ema=0.9 if use_ema else 0.0)
    checkpoints.save_config(str(workdir), config)
    iterator = iter(grain.MapDataset.range(8).to_iter_dataset())
    with checkpoints.Checkpoints(str(workdir), config) as saver:
        for step in steps:
            params = {'conv': {'kernel': jnp.full((2, 3), float(step))}}
            state = TrainState(
                step=jnp.int32(step),
                params=params,
                batch_stats={'mean': jnp.full(3, step + 0.5)},
                opt_state=(),
                ema=jax.tree.map(lambda leaf: leaf + 100, params) if use_ema else None,
                skipped=jnp.int32(0),
                skipped_in_a_row=jnp.int32(0),
            )
            saver.save(state, iterator, EarlyStopping())
    return {'params': state.params, 'batch_stats': state.batch_stats}


def every_file(folder):
    return {
        path: (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else None)
        for path in [folder, *folder.rglob('*')]
    }


@pytest.mark.parametrize('use_ema', [True, False])
def test_loading_reads_the_newest_complete_step_and_writes_and_warns_nothing(
    tmp_path, caplog, use_ema
):
    template = save_states(tmp_path, [3, 20], use_ema)
    # What a killed process leaves behind.
    (tmp_path / 'checkpoints' / '30.orbax-checkpoint-tmp').mkdir()
    before = every_file(tmp_path)
    absl_logger = logging.getLogger('absl')
    absl_logger.addHandler(caplog.handler)
    try:
        caplog.clear()
        step, variables = workdirs.load_variables(str(tmp_path), template)
    finally:
        absl_logger.removeHandler(caplog.handler)
    assert step == 20
    np.testing.assert_array_equal(
        variables['params']['conv']['kernel'], np.full((2, 3), 120 if use_ema else 20)
    )
    np.testing.assert_array_equal(variables['batch_stats']['mean'], np.full(3, 20.5))
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING] == []
    assert every_file(tmp_path) == before


@pytest.mark.skipif(os.geteuid() == 0, reason='root may write anywhere')
def test_a_read_only_workdir_is_read(tmp_path):
    template = save_states(tmp_path, [3])
    for path in [tmp_path, *tmp_path.rglob('*')]:
        path.chmod(0o500 if path.is_dir() else 0o400)
    step, _ = workdirs.load_variables(str(tmp_path), template)
    assert step == 3


def test_too_little_room_is_told_before_anything_is_written(tmp_path, monkeypatch):
    save_states(tmp_path, [3])
    before = every_file(tmp_path / 'checkpoints')
    usage = SimpleNamespace(free=20)
    monkeypatch.setattr(checkpoints.shutil, 'disk_usage', lambda folder: usage)
    with pytest.raises(ValueError, match=r'0\.0 MB free, .* step 3 is complete'):
        save_states(tmp_path, [4])
    assert every_file(tmp_path / 'checkpoints') == before


def test_what_a_killed_save_left_is_cleared_when_the_run_goes_on(tmp_path):
    save_states(tmp_path, [3])
    left = tmp_path / 'checkpoints' / '4.orbax-checkpoint-tmp'
    (left / 'variables').mkdir(parents=True)
    save_states(tmp_path, [5])
    assert not left.exists()
    assert sorted(p.name for p in (tmp_path / 'checkpoints').iterdir()) == ['3', '5']
