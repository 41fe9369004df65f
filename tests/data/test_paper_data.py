"""The papers' configs end to end: data sets in their authors' own layout, prepared, trained on.

The hands are made up; the files are as their authors publish them.
"""

import argparse
import json
from pathlib import Path

import pytest
from prepare import load_builder

from handpose_jax import train
from handpose_jax.config import evaluation_data, load
from handpose_jax.data.prepared import default_folder
from handpose_jax.data.sources import load_source
from handpose_jax.process import distributed

ROOT = Path(__file__).parents[2]
DATASETS = ROOT / 'datasets'

NEEDED = ('cmu', 'freihand', 'rhd', 'shp')

# One for each network, and the largest mixture; the others train the same by the same recipe.
TRAINED = ('cmu', 'cmu_resnet50', 'cmu_rhd_shp', 'freihand_unet')
OTHERS = ('cmu_112', 'cmu_rhd', 'rhd_shp')


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
    """A cache with the data sets where prepare.py puts them by default."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('XDG_CACHE_HOME', str(tmp_path_factory.mktemp('cache')))
        for name in NEEDED:
            download = tmp_path_factory.mktemp(name)
            folder = DATASETS / name
            load_builder(folder / f'{name}_dummy_data.py').write(download)
            builder = load_builder(folder / f'{name}_dataset_builder.py')
            parser = argparse.ArgumentParser()
            builder.add_arguments(parser)
            arguments = ['--manual_dir', str(download), '--workers', '1']
            builder.prepare(parser.parse_args(arguments))
            assert default_folder(name).is_dir()
        yield


def test_every_config_that_needs_a_data_set_is_here():
    configs = (ROOT / 'configs').glob('*.py')
    needing = {path.stem for path in configs if 'datasets/prepare.py' in path.read_text()}
    assert needing == {*TRAINED, *OTHERS}


@pytest.mark.slow
# Checked by beartype, the same network would be traced once more for each config.
@pytest.mark.usefixtures('cache', 'unchecked')
@pytest.mark.parametrize('name', TRAINED)
def test_prepared_trained_and_evaluated(name, tmp_path):
    config = load(ROOT / 'configs' / f'{name}.py:smoke_prepared')
    state = train.train(config, str(tmp_path))
    assert int(state.step) == config.num_steps
    summary = json.loads((tmp_path / 'metrics.json').read_text())
    assert summary['protocol'] == load(ROOT / 'configs' / f'{name}.py').protocol
    measured_on = load_source(split=config.eval_split, **evaluation_data(config))
    assert summary['hands'] == len(measured_on)


@pytest.mark.usefixtures('cache', 'unchecked')
@pytest.mark.parametrize('name', OTHERS)
def test_prepared_and_read(name):
    config = load(ROOT / 'configs' / f'{name}.py:smoke_prepared')
    run = train.prepare(config, distributed.data_mesh(), init_from='')
    batch = next(run.iterator)
    assert batch['image'].shape == (config.batch_size, config.size, config.size, 3)
    assert batch['visible'].any(axis=1).all()
    if config.data.name == 'mixture':
        assert set(run.source.groups) == set(config.data.parts)
    measured_on = load_source(split=config.eval_split, **evaluation_data(config))
    assert len(measured_on) > 0
