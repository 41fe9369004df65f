"""The quick start: hands that the product renders itself, and a small network that learns them.

    python -m handpose_jax.main --config configs/quickstart.py

Nothing is downloaded. The first run renders the hands and keeps them in your cache (config.data is
what handpose_jax/data/synthetic_hands.py takes). The recipe is ours (confidence C), made for random
weights, two CPU cores and a few minutes: a shallow network, a small input, wide target peaks.
"""

from ml_collections import ConfigDict

from handpose_jax import config as base


def get_config(variant: str = '') -> ConfigDict:
    """See handpose_jax/config.py for the fields, and for the variants that all configs have."""
    config = base.improved()
    config.workdir = 'workdirs/quickstart'
    config.size = 64
    config.num_steps = 1200
    config.sigma = 16.0
    config.ema = 0.99
    config.model.name = 'small_unet'
    del config.model.decoder_widths  # it has no such decoder
    config.model.bn_momentum = 0.9
    config.optimizer = base.adamw(2e-3, warmup_steps=100)
    config.data = base.data('synthetic_hands', count=2000, size=112, occlusion=False)
    config.augmentation = base.paper().augmentation
    config.augmentation.rotation = 30.0
    config.augmentation.translation = 8.0
    config.augmentation.scale = (0.85, 1.15)
    config.augmentation.brightness = 0.1
    config.augmentation.contrast = 0.2
    config.augmentation.white_balance = 0.1
    config.eval_every = 400
    config.checkpoint_every = 400
    return base.finish(config, variant)
