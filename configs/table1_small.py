"""The layout of Gouidis et al. 2019, table 1, on data that anybody can have, small.

In 4,800 examples a row, for two cores: the small and the large input, a second data set, and the
other encoder; photographs (a folder, see handpose_jax/data/folder.py) stand for CMU, rendered
hands for RHD. The recipe is that of configs/real_hands.py. The numbers are no reproduction of the
paper's.

    python -m handpose_jax.main --config configs/table1_small.py:112 --workdir W \
        --config.data.parts.photographs.root=DIR --config.eval_data.root=DIR \
        --config.init_from=DIR/mobilenet_v2_1.0_224.npz

and so with :224, :two_sets and :resnet50 (which has weights of its own to begin with, or none).
"""

from ml_collections import ConfigDict

from handpose_jax import config as base

ROWS = ('', '112', '224', 'two_sets', 'resnet50')


def get_config(variant: str = '') -> ConfigDict:
    """See handpose_jax/config.py for the fields, and for the variants that all configs have."""
    config = base.improved()
    config.size = 224 if variant == '224' else 112
    config.batch_size = 16
    config.num_steps = 300
    config.ema = 0.99
    config.optimizer.warmup_steps = 30
    if variant == 'resnet50':
        config.model.name = 'resnet50'
        del config.model.width  # it has none
    parts = {'photographs': base.part('folder')}
    if variant == 'two_sets':
        parts['rendered'] = base.part('synthetic_hands', count=3000, size=112)
    base.use_mixture(config, 0.5, **parts)
    config.eval_data = base.data('folder')
    config.eval_every = 100
    config.checkpoint_every = 100
    return base.finish(config, variant, variants=ROWS)
