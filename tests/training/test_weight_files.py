"""Weights as one file: what is saved is read, damage is named, and a training starts from it."""

import hashlib
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import handpose_jax
from handpose_jax import inference, models, save_weights
from handpose_jax.config import load
from handpose_jax.data.sources import SketchSource
from handpose_jax.process import shipped
from handpose_jax.training import checkpoints, state, weight_files
from handpose_jax.training.early_stopping import EarlyStopping

CONFIG = load('quickstart:smoke')


def variables_of(seed=0, **changes):
    model = models.build(**{**CONFIG.model.to_dict(), **changes})
    images = jnp.zeros((1, 64, 64, 3), jnp.uint8)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.uniform(0.1, 1, leaf.shape).astype(np.float32), shapes)


@pytest.fixture(scope='module')
def variables():
    return variables_of()


@pytest.fixture
def file(tmp_path, variables):
    path = tmp_path / 'hands.safetensors'
    weight_files.save(path, variables, CONFIG, 40)
    return path


def test_what_is_saved_is_read(file, variables):
    found = weight_files.load(file)
    assert found.step == 40
    assert found.config.model.to_dict() == CONFIG.model.to_dict()
    assert found.config.size == CONFIG.size
    pairs = zip(
        jax.tree_util.tree_leaves_with_path(variables),
        jax.tree_util.tree_leaves_with_path(found.variables),
        strict=True,
    )
    for (path, leaf), (same, other) in pairs:
        assert path == same
        assert other.dtype == np.float32
        np.testing.assert_allclose(other, leaf, rtol=2**-11 if leaf.ndim > 1 else 0)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) * 2.2 > file.stat().st_size
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_nothing_tells_where_the_data_lay(tmp_path, variables):
    config = CONFIG.copy_and_resolve_references()
    config.data.root, config.init_from = '/home/somebody/hands', '/home/somebody/start.npz'
    path = tmp_path / 'a.safetensors'
    weight_files.save(path, variables, config, 1)
    assert b'somebody' not in path.read_bytes()


def test_damage_is_named(file):
    whole = file.read_bytes()
    rng = np.random.default_rng(0)
    right = weight_files.load(file)
    header = 8 + int.from_bytes(whole[:8], 'little')
    refused = 0
    for end in (header, len(whole)) * 40:
        data = bytearray(whole)
        data[int(rng.integers(end))] ^= 1 << int(rng.integers(8))
        file.write_bytes(data)
        try:
            found = weight_files.load(file)
        except ValueError as error:
            refused += str(file) in str(error)
            continue
        # The header may hold a byte that means nothing, such as a space at its end.
        np.testing.assert_equal(found.variables, right.variables)
        assert found.config.to_dict() == right.config.to_dict()
        refused += 1
    assert refused == 80
    for cut in (0, 5, 100, len(whole) - 1):
        file.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=r'hands\.safetensors: expected weights'):
            weight_files.load(file)


def test_only_its_own_kind_of_file_is_replaced(tmp_path, variables):
    path = tmp_path / 'a.safetensors'
    path.write_bytes(b'mine')
    with pytest.raises(ValueError, match='is no file of weights'):
        weight_files.save(path, variables, CONFIG, 1)
    path.unlink()
    for step in (1, 2):
        weight_files.save(path, variables, CONFIG, step)
    assert weight_files.load(path).step == 2
    with pytest.raises(ValueError, match='ends in'):
        weight_files.save(tmp_path / 'a.npz', variables, CONFIG, 1)


def test_what_does_not_fit_is_listed(variables):
    with pytest.raises(ValueError, match=r'(?s)does not fit .*: expected \(.*\), got \('):
        weight_files.fit(variables_of(width=0.5), variables, 'a file')


def test_the_encoder_alone_where_only_that_fits():
    own = {'params': {'encoder': {'a': np.zeros(3)}, 'decoder': {'b': np.zeros(2)}}}
    other = {'params': {'encoder': {'a': np.ones(3)}, 'decoder': {'b': np.ones(5)}}}
    found = weight_files.fit(own, other, 'a file')
    np.testing.assert_array_equal(found['params']['encoder']['a'], 1)
    np.testing.assert_array_equal(found['params']['decoder']['b'], np.zeros(2))


def run_of(workdir, variables):
    """A workdir of one checkpoint of these variables."""
    config = CONFIG.copy_and_resolve_references()
    checkpoints.save_config(str(workdir), config)
    stream = iter(SketchStream())
    saved = state.TrainState(
        step=jnp.int32(3),
        params=variables['params'],
        batch_stats=variables['batch_stats'],
        opt_state=(),
        ema=variables['params'] if config.ema else None,
        skipped=jnp.int32(0),
        skipped_in_a_row=jnp.int32(0),
    )
    with checkpoints.Checkpoints(str(workdir), config) as saver:
        saver.save(saved, stream, EarlyStopping())


class SketchStream:
    """As little of a data iterator as a checkpoint needs."""

    def __new__(cls):
        import grain

        return grain.MapDataset.range(2).to_iter_dataset()


def test_the_command_writes_what_load_and_a_training_take(tmp_path, variables, capsys):
    run_of(tmp_path / 'w', variables)
    path = tmp_path / 'hands.safetensors'
    save_weights.main(['--workdir', str(tmp_path / 'w'), '--out', str(path)])
    assert capsys.readouterr().out.strip() == str(path)
    image = SketchSource(count=1)[0]['image']
    whole, small = handpose_jax.load(tmp_path / 'w')(image), handpose_jax.load(path)(image)
    np.testing.assert_allclose(small.confidence, whole.confidence, rtol=0.02)
    np.testing.assert_array_equal(small.crop_box, whole.crop_box)
    own = variables_of(seed=1)
    for start in (path, tmp_path / 'w'):
        found = state._start_from(str(start), own, 'small_unet')
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(variables), strict=True):
            np.testing.assert_allclose(a, b, rtol=2**-11)
    with pytest.raises(SystemExit, match='nothing was trained here'):
        save_weights.main(['--workdir', str(tmp_path / 'none'), '--out', str(path)])


def test_weights_of_the_package_have_names(file, monkeypatch, tmp_path):
    monkeypatch.setattr(shipped, '_PACKAGE', tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'weights').mkdir()
    named = file.rename(tmp_path / 'weights' / file.name)
    assert shipped.weights_names() == ['hands']
    assert inference.load_run('hands').workdir == str(named)
    found = state._start_from('hands', variables_of(seed=1), 'small_unet')
    assert jax.tree.leaves(found)[0].shape == jax.tree.leaves(variables_of())[0].shape
    with pytest.raises(ValueError, match=r'feet: no such file.*weights of the package \(hands\)'):
        state._start_from('feet', variables_of(), 'small_unet')
    # A run of the same name, where one stands, comes first.
    (tmp_path / 'hands').mkdir()
    with pytest.raises(ValueError, match=r'nothing was trained here.*\(hands\)'):
        inference.load_run('hands')


@pytest.mark.parametrize('name', shipped.weights_names())
def test_the_packages_own_weights_are_whole_and_small(name):
    file = Path(shipped.weights(name))
    assert file.stat().st_size < 10e6
    found = weight_files.load(file)
    model = models.build(**found.config.model.to_dict())
    images = jnp.zeros((1, found.config.size, found.config.size, 3), jnp.uint8)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images))
    assert jax.tree.map(jnp.shape, found.variables) == jax.tree.map(jnp.shape, shapes)
    card = (file.parent / 'README.md').read_text(encoding='utf-8')
    assert hashlib.sha256(file.read_bytes()).hexdigest() in card


def test_the_metadata_are_plain_json(file):
    data = file.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], 'little')])
    about = json.loads(header['__metadata__']['handpose_jax'])
    assert about['made_by'] == 'handpose_jax'
    assert len(about['sha256']) == 64
