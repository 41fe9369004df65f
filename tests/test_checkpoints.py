"""Configs beside checkpoints, and the errors of workdirs that do not fit."""

import json
import os

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from handpose_jax import checkpoints


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
    loaded = checkpoints.load_config(str(tmp_path))
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
    assert checkpoints.load_config(str(tmp_path)).seed == 0


def test_settings_that_move_no_parameter_may_change(tmp_path):
    checkpoints.save_config(str(tmp_path), make_config())
    checkpoints.save_config(
        str(tmp_path), make_config(**{'log_every': 1, 'pipeline.num_threads': 0})
    )
    assert checkpoints.load_config(str(tmp_path)).log_every == 1


@pytest.mark.parametrize('text', ['{', '[1, 2]', ''])
def test_damaged_config_is_named(tmp_path, text):
    (tmp_path / 'config.json').write_text(text)
    with pytest.raises(ValueError, match=r'config\.json'):
        checkpoints.load_config(str(tmp_path))


def test_empty_workdir_is_named(tmp_path):
    with pytest.raises(ValueError, match='nothing was trained here'):
        checkpoints.load_config(str(tmp_path))
    with pytest.raises(ValueError, match='train there first'):
        checkpoints.load_variables(str(tmp_path), {})
    (tmp_path / 'checkpoints').mkdir()
    with pytest.raises(ValueError, match='no complete checkpoint'):
        checkpoints.load_variables(str(tmp_path), {})


def test_workdir_that_cannot_be_made_is_named(tmp_path):
    # A file in the way fails for every user; a read-only folder would not stop root.
    (tmp_path / 'file').write_text('')
    with pytest.raises(ValueError, match='cannot write'):
        checkpoints.save_config(str(tmp_path / 'file' / 'w'), make_config())
    with pytest.raises(ValueError, match='cannot write'):
        checkpoints.Checkpoints(str(tmp_path / 'file'))


@pytest.mark.skipif(os.geteuid() == 0, reason='root may write anywhere')
def test_read_only_workdir_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ValueError, match='cannot write'):
        checkpoints.save_config(str(tmp_path), make_config())
    with pytest.raises(ValueError, match='cannot write'):
        checkpoints.Checkpoints(str(tmp_path))


def test_config_file_is_plain_json(tmp_path):
    checkpoints.save_config(str(tmp_path), make_config())
    values = json.loads((tmp_path / 'config.json').read_text())
    assert values['model'] == {'name': 'mobilenet_v2', 'width': 1.0}
    assert np.allclose(values['scale'], (0.5, 1.1))
    assert jax.tree.leaves(values)
