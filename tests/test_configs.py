"""Every config loads in every variant, says what its readers take, and runs small."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from handpose_jax import config as configs
from handpose_jax import models, train
from handpose_jax.data import sources
from handpose_jax.data.transforms import Augmentation
from handpose_jax.evaluation import protocols
from handpose_jax.models import complexity
from handpose_jax.training import optimizers

CONFIGS = sorted((Path(__file__).parents[1] / 'configs').glob('*.py'))
VARIANTS = [
    (path, variant)
    for path in CONFIGS
    for variant in (
        *('', 'smoke'),
        *{
            'freihand_unet': ('short',),
            'table1_small': ('112', '224', 'two_sets', 'resnet50'),
            'release': ('112', '224', 'mobile'),
        }.get(path.stem, ()),
    )
]
every_config = pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)


@pytest.mark.parametrize(
    ('path', 'variant'), VARIANTS, ids=[f'{path.stem}:{variant}' for path, variant in VARIANTS]
)
def test_every_section_is_accepted_by_its_reader(path, variant):
    config = configs.load(f'{path}:{variant}')
    models.build(**config.model.to_dict())
    optimizers.build(num_steps=config.num_steps, **config.optimizer.to_dict())
    Augmentation(**config.augmentation.to_dict())
    protocols.get_protocol(config.protocol)
    assert config.loss in train.LOSSES
    # A box is enlarged as the crops were that the network is measured on.
    assert configs.crop_scale(config) == (
        1.0 if path.stem == 'freihand_unet' and variant != 'smoke' else 2.2
    )
    if variant == 'smoke':
        for split in (config.train_split, config.eval_split):
            assert len(sources.load_source(split=split, **configs.source_settings(config.data)))
        assert configs.evaluation_data(config) == configs.source_settings(config.data)


@every_config
@pytest.mark.parametrize('variant', ['', ':smoke'])
def test_any_config_can_be_pointed_at_any_data(path, variant):
    """As `--config.data.name=folder --config.data.root=DIR` does on the command line."""
    config = configs.load(f'{path}{variant}')
    config.eval_data.name = ''
    for name, taken in (
        ('folder', {'root': 'DIR', 'crop_scale': 2.2}),
        ('sketch', {'count': 5, 'crop_scale': 2.2}),
        ('prepared', {'root': 'DIR', 'dataset': 'cmu', 'crop': 'box', 'crop_scale': 2.2}),
    ):
        config.data.update(
            {'name': name, 'root': 'DIR', 'count': 5, 'dataset': 'cmu', 'crop': 'box'}
        )
        assert configs.evaluation_data(config) == {'name': name, **taken}
        assert isinstance(configs.balance(config), float)


def test_a_part_without_a_share_is_left_out():
    config = configs.load('release')
    names = set(config.data.parts)
    assert set(configs.training_data(config)['parts']) == set(configs.balance(config)) == names
    config.pipeline.balance.webcam = 0.0
    config.pipeline.balance.no_hands = 0.0
    rest = {'real', 'rendered'}
    assert set(configs.training_data(config)['parts']) == set(configs.balance(config)) == rest
    assert set(configs.training_data(configs.load('table1_small:two_sets'))['parts']) == {
        'photographs',
        'rendered',
    }


def test_the_mobile_network_is_as_small_as_its_config_says():
    config = configs.load('release:mobile')
    model = models.build(**config.model.to_dict(), implementation='lax')
    assert round(complexity.count_macs(model, config.size) / 1e6) == 130
    images = jnp.zeros((1, config.size, config.size, 3), jnp.uint8)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images))
    assert round(complexity.count_parameters(shapes['params']) / 1e6, 2) == 2.06


def test_what_no_source_knows_is_not_dropped():
    block = configs.data('folder', where={'licence': 'MIT'}, rootfolder='DIR')
    with pytest.raises(ValueError, match='rootfolder'):
        sources.load_source(**configs.source_settings(block))


@every_config
def test_is_locked_and_refuses_unknown_variants(path):
    config = configs.load(path)
    with pytest.raises(AttributeError, match='batch_size'):
        config.batch_sise = 3
    with pytest.raises(ValueError, match='smoke'):
        configs.load(f'{path}:smokey')


@every_config
def test_says_little_more_than_what_differs_and_gives_the_command(path):
    text = path.read_text()
    assert f'--config configs/{path.name}' in text.split('"""')[1]
    assert len(text.splitlines()) <= 75


def test_a_missing_config_is_one_sentence():
    with pytest.raises(ValueError, match=r'nowhere\.py: no such config'):
        configs.load('nowhere.py:smoke')


@pytest.mark.slow
def test_the_quick_start_trains_and_evaluates(tmp_path):
    # Each smoke costs a compilation of the training step: test_paper_data.py runs the papers'
    # configs on their own data sets, the overfitting test the recipe of real_hands.
    (path,) = (path for path in CONFIGS if path.stem == 'quickstart')
    config = configs.load(f'{path}:smoke')
    state = train.train(config, str(tmp_path))
    assert int(state.step) == config.num_steps
    for name in ('config.json', 'metrics.json', 'metrics.jsonl', 'predictions.png'):
        assert (tmp_path / name).stat().st_size > 0, name
