"""The paper's network on rendered hands alone, with the recipe of configs/real_hands.py.

    python -m handpose_jax.main --config configs/synthetic_hands.py \
        --config.init_from=DIR/mobilenet_v2_1.0_224.npz --workdir W

The first run renders the hands and keeps them in your cache; config.data is what
handpose_jax/data/synthetic_hands.py takes. The recipe is ours (confidence C).
"""

from ml_collections import ConfigDict

from handpose_jax import config as base


def get_config(variant: str = '') -> ConfigDict:
    """See handpose_jax/config.py for the fields, and for the variants that all configs have."""
    config = base.improved()
    config.data = base.data('synthetic_hands')
    return base.finish(config, variant)
