"""Gouidis et al. 2019, table 1, row "CMU 224": their network, targets, loss and ADADELTA, as
published.

Not known and chosen by us (confidence C): the ranges of the augmentation, batch size, number of
steps, and that all parts of the data set are trained on. Published score on manual_test: AUC .919,
mean EPE 10.88, median 6.95 px in the 224 crop. Not run here: the data must be asked for from its
authors.

    python datasets/prepare.py cmu --manual_dir DIR
    python -m handpose_jax.main --config configs/cmu.py \
        --config.init_from=mobilenet_v2_1.0_224.npz --workdir W
"""

from ml_collections import ConfigDict

from handpose_jax import config as base


def get_config(variant: str = '') -> ConfigDict:
    """See handpose_jax/config.py for the fields, and for the variants that all configs have."""
    config = base.paper()
    config.train_split = 'train+panoptic+synth'  # without the parts you do not have
    return base.finish(config, variant)
