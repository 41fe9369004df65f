"""Gouidis et al. 2019: configs/cmu.py, trained on RHD and SHP, for evaluations on other data than
CMU.

Not known and chosen by us (confidence C): the ranges of the augmentation, batch size, number of
steps, the shares of the data sets, and that RHD is what training is followed on. Its published
figures are lost. Not run here: the data must be asked for from their authors.

    python datasets/prepare.py rhd --manual_dir DIR
    python datasets/prepare.py shp --manual_dir DIR
    python -m handpose_jax.main --config configs/rhd_shp.py \
        --config.init_from=mobilenet_v2_1.0_224.npz --workdir W
"""

from ml_collections import ConfigDict

from handpose_jax import config as base


def get_config(variant: str = '') -> ConfigDict:
    """See handpose_jax/config.py for the fields, and for the variants that all configs have."""
    config = base.paper()
    base.use_mixture(
        config,
        # Shares of the stream: the records in thousands, so that each is shown once an epoch.
        {'rhd': 41.3, 'shp': 30.0},
        rhd=base.part('prepared', dataset='rhd', split='train'),
        shp=base.part('prepared', dataset='shp', split='train'),
    )
    config.eval_data = base.data('prepared', dataset='rhd')
    config.protocol = 'rhd'
    return base.finish(config, variant)
