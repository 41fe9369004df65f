"""The paper's network on a folder of real photographs, with an improved recipe.

What differs from Gouidis et al. 2019, all of it our choice (confidence C): AdamW with warm-up and
cosine instead of ADADELTA, averaged parameters, any rotation (hands come in every orientation),
photometric changes, groups of records balanced. The network, its targets and its loss are the
paper's.

    python -m handpose_jax.main --config configs/real_hands.py --config.data.root=DIR \
        --config.init_from=DIR/mobilenet_v2_1.0_224.npz --workdir W

DIR holds annotations.json and images, see handpose_jax/data/folder.py.
"""

from ml_collections import ConfigDict

from handpose_jax import config as base


def get_config(variant: str = '') -> ConfigDict:
    """See handpose_jax/config.py for the fields, and for the variants that all configs have."""
    return base.finish(base.improved(), variant)
