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

ROOT = Path(__file__).parents[2]
DATASETS = ROOT / 'datasets'

NEEDED = ('cmu', 'freihand', 'rhd', 'shp')

PAPER_CONFIGS = (
    'cmu',
    'cmu_112',
    'cmu_resnet50',
    'cmu_rhd',
    'cmu_rhd_shp',
    'freihand_unet',
    'rhd_shp',
)


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
    assert needing == set(PAPER_CONFIGS)


@pytest.mark.slow
# Checked by beartype, the same network would be traced once more for each config.
@pytest.mark.usefixtures('cache', 'unchecked')
@pytest.mark.parametrize('name', PAPER_CONFIGS)
def test_prepared_trained_and_evaluated(name, tmp_path):
    config = load(ROOT / 'configs' / f'{name}.py:smoke_prepared')
    state = train.train(config, str(tmp_path))
    assert int(state.step) == config.num_steps
    summary = json.loads((tmp_path / 'metrics.json').read_text())
    assert summary['protocol'] == load(ROOT / 'configs' / f'{name}.py').protocol
    measured_on = load_source(split=config.eval_split, **evaluation_data(config))
    assert summary['hands'] == len(measured_on)
