"""Gouidis et al. 2019, table 1, row "ResNet/CMU": configs/cmu.py with ResNet-50 as the encoder.

Not known and chosen by us (confidence C): the ranges of the augmentation, batch size, number of
steps, and that all parts of the data set are trained on. Published score on manual_test: AUC .917,
mean EPE 11.14, median 6.54 px in the 224 crop. Not run here: the data must be asked for from its
authors.

    python datasets/prepare.py cmu --manual_dir DIR
    python -m handpose_jax.main --config configs/cmu_resnet50.py \
        --config.init_from=resnet50.h5 --workdir W
"""

from ml_collections import ConfigDict

from handpose_jax import config as base


def get_config(variant: str = '') -> ConfigDict:
    """See handpose_jax/config.py for the fields, and for the variants that all configs have."""
    config = base.paper()
    config.model.name = 'resnet50'
    del config.model.width  # it has none
    config.train_split = 'train+panoptic+synth'  # without the parts you do not have
    return base.finish(config, variant)
