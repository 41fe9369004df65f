"""Every config loads, accepts `smoke`, and its smoke run trains, evaluates and predicts."""

import importlib.util
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from handpose_jax import models, train
from handpose_jax.data import sources
from handpose_jax.data.transforms import Augmentation
from handpose_jax.evaluation import protocols
from handpose_jax.training import optimizers

CONFIGS = sorted((Path(__file__).parent.parent / 'configs').glob('*.py'))


def load(path: Path, variant: str = '') -> ConfigDict:
    spec = importlib.util.spec_from_file_location(f'config_{path.stem}', path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(variant)


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
@pytest.mark.parametrize('variant', ['', 'smoke'])
def test_every_section_is_accepted_by_its_reader(path, variant):
    config = load(path, variant)
    models.build(**config.model.to_dict())
    optimizers.build(num_steps=config.num_steps, **config.optimizer.to_dict())
    Augmentation(**config.augmentation.to_dict())
    protocols.get_protocol(config.protocol)
    assert config.loss in train.LOSSES
    if variant == 'smoke':
        assert len(sources.load_source(split=config.train_split, **config.data.to_dict()))
        assert 'eval_data' not in config


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_is_locked_and_refuses_unknown_variants(path):
    config = load(path)
    with pytest.raises(AttributeError, match='batch_size'):
        config.batch_sise = 3
    with pytest.raises(ValueError, match='smoke'):
        load(path, 'smokey')


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_docstring_gives_the_command(path):
    spec = importlib.util.spec_from_file_location('config', path)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    assert spec.loader is not None
    spec.loader.exec_module(module)
    assert f'--config configs/{path.name}' in (module.__doc__ or '')


# Each costs a compilation of the training step. test_end_to_end.py runs the smoke of real_hands, of
# which that of synthetic_hands is the same network, optimizer and data; test_paper_data.py those of
# the papers' configs on their own data sets.
SMOKE = [path for path in CONFIGS if path.stem == 'quickstart']


@pytest.mark.slow
@pytest.mark.parametrize('path', SMOKE, ids=lambda path: path.stem)
def test_smoke_run_trains_and_evaluates(path, tmp_path):
    config = load(path, 'smoke')
    state = train.train(config, str(tmp_path))
    assert int(state.step) == config.num_steps
    for name in ('config.json', 'metrics.json', 'metrics.jsonl', 'predictions.png'):
        assert (tmp_path / name).stat().st_size > 0, name
