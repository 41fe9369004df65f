"""The paper's network on rendered hands alone, with the recipe of configs/real_hands.py.

    python -m handpose_jax.main --config configs/synthetic_hands.py \
        --config.init_from=DIR/mobilenet_v2_1.0_224.npz --workdir W

The first run renders the hands and keeps them in your cache; config.data is what
handpose_jax/data/synthetic_hands.py takes. The recipe is ours (confidence C).
"""

import ml_collections
from ml_collections import ConfigDict


def get_config(variant: str = '') -> ConfigDict:
    """Variants: '' and 'smoke' (a few steps on generated data)."""
    config = ConfigDict()
    config.workdir = ''  # where --workdir is not given
    config.seed = 0
    config.size = 112  # side of the input, pixels
    config.batch_size = 32
    config.num_steps = 1000
    config.sigma = 7.0  # of the target peaks, pixels of a 224 crop
    config.loss = 'squared_error'
    config.ema = 0.998  # weight of the old average of the parameters; 0: none
    config.init_from = ''  # encoder weights, see handpose_jax/models/pretrained.py; '': random

    config.model = ConfigDict()
    config.model.name = 'mobilenet_v2'
    config.model.width = 1.0
    config.model.bn_momentum = 0.97
    config.model.dtype = 'float32'

    config.optimizer = ConfigDict()
    config.optimizer.name = 'adamw'
    config.optimizer.learning_rate = 1.5e-3
    config.optimizer.schedule_name = 'cosine'
    config.optimizer.warmup_steps = 100
    config.optimizer.weight_decay = 1e-4
    config.optimizer.clip_norm = 0.0  # largest norm of all gradients together; 0: any

    config.data = ConfigDict()
    config.data.name = 'synthetic_hands'
    config.data.count = 20_000  # pictures to train on; a tenth as many each to validate and test
    config.data.size = 224  # side of a picture, pixels
    config.data.seed = 0
    config.data.root = ''  # folder of the pictures; '': a place in your cache
    config.data.rigs = ()  # glTF hands instead of the bundled one
    config.data.textures = ml_collections.config_dict.placeholder(str)  # folder, for the rigs
    config.data.backgrounds = 'procedural'
    config.data.lighting = 'full'
    config.data.occlusion = True
    config.data.skin_variety = True
    config.data.crop_scale = 2.2  # side of the crop / longest side of the keypoints' box
    config.train_split = 'train'
    config.eval_split = 'val'

    config.pipeline = ConfigDict()
    config.pipeline.balance = 0.5  # groups of n records count like n ** 0.5
    config.pipeline.num_threads = 2

    config.augmentation = ConfigDict()
    config.augmentation.rotation = 180.0  # degrees, either way
    config.augmentation.translation = 20.0  # pixels of a 224 crop, either way
    config.augmentation.scale = (0.75, 1.25)
    config.augmentation.brightness = 0.2
    config.augmentation.contrast = 0.4
    config.augmentation.gamma = 0.3
    config.augmentation.white_balance = 0.2
    config.augmentation.grey = 0.1
    config.augmentation.blur = 0.15
    config.augmentation.noise = 0.2
    config.augmentation.low_resolution = 0.15
    config.augmentation.occlusion = 0.2

    config.decode = ConfigDict()
    config.decode.method = 'peak'
    config.decode.subpixel = True
    config.decode.fallback = True
    config.decode.threshold = 0.1

    config.max_skipped = 10  # steps in a row without finite numbers that end the training
    config.empty_after = 500  # steps with empty heatmaps before the alarm; 0: none

    config.early_stopping = ConfigDict()
    config.early_stopping.patience = 0  # evaluations in a row without a better one; 0: never
    config.early_stopping.metric = 'epe_mean_224'
    config.early_stopping.smallest = 0.0  # improvement that counts, pixels

    config.protocol = 'box'
    config.eval_batch_size = 32
    config.log_every = 10
    config.eval_every = 200
    config.checkpoint_every = 200

    if variant == 'smoke':
        _smoke(config)
    elif variant:
        raise ValueError(f"variant: expected '' or 'smoke', got {variant!r}")
    config.lock()
    return config


def _smoke(config: ConfigDict) -> None:
    """A few steps of the same recipe on drawn hands, smaller in every dimension."""
    config.size = 64
    config.batch_size = 4
    config.eval_batch_size = 4
    config.num_steps = 4
    config.log_every = 1
    config.eval_every = 2
    config.checkpoint_every = 2
    config.optimizer.warmup_steps = 1
    config.model.width = 0.35
    names = 'reduce separable residual squeeze bottleneck expand upsample refine'
    config.model.decoder_widths = ConfigDict(dict.fromkeys(names.split(), 16))
    config.data = ConfigDict({'name': 'sketch', 'count': 10, 'crop_scale': 2.2})
