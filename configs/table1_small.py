"""The layout of Gouidis et al. 2019, table 1, on data that anybody can have, small.

In 4,800 examples a row, for two cores: the small and the large input, a second data set, and the
other encoder; photographs (a folder, see handpose_jax/data/sources.py) stand for CMU, rendered
hands for RHD. The recipe is that of configs/real_hands.py. The numbers are no reproduction of the
paper's.

    python -m handpose_jax.main --config configs/table1_small.py:112 --workdir W \
        --config.data.parts.photographs.root=DIR --config.eval_data.root=DIR \
        --config.init_from=DIR/mobilenet_v2_1.0_224.npz

and so with :224, :two_sets and :resnet50 (which has weights of its own to begin with, or none).
"""

from ml_collections import ConfigDict

ROWS = ('112', '224', 'two_sets', 'resnet50')


def get_config(variant: str = '') -> ConfigDict:
    """Variants: a row of the table, '' for the first, or 'smoke' (a few steps on drawn hands)."""
    row = ROWS[0] if variant in ('', 'smoke') else variant
    if row not in ROWS:
        raise ValueError(f"variant: expected one of {ROWS}, '' or 'smoke', got {variant!r}")
    config = ConfigDict()
    config.workdir = ''  # where --workdir is not given
    config.seed = 0
    config.size = 224 if row == '224' else 112  # side of the input, pixels
    config.batch_size = 16
    config.num_steps = 300
    config.sigma = 7.0  # of the target peaks, pixels of a 224 crop
    config.loss = 'squared_error'
    config.ema = 0.99  # weight of the old average of the parameters; 0: none
    config.init_from = ''  # encoder weights, see handpose_jax/models/pretrained.py; '': random

    config.model = ConfigDict()
    config.model.name = 'resnet50' if row == 'resnet50' else 'mobilenet_v2'
    config.model.bn_momentum = 0.97
    config.model.dtype = 'float32'

    config.optimizer = ConfigDict()
    config.optimizer.name = 'adamw'
    config.optimizer.learning_rate = 1.5e-3
    config.optimizer.schedule_name = 'cosine'
    config.optimizer.warmup_steps = 30
    config.optimizer.weight_decay = 1e-4
    config.optimizer.clip_norm = 0.0  # largest norm of all gradients together; 0: any

    photographs = {'name': 'folder', 'root': '', 'crop_scale': 2.2, 'split': 'train'}
    rendered = {'name': 'synthetic_hands', 'count': 3000, 'size': 112, 'root': '', 'split': 'train'}
    config.data = ConfigDict()
    config.data.name = 'mixture'
    config.data.parts = ConfigDict({'photographs': photographs})
    if row == 'two_sets':
        config.data.parts.rendered = ConfigDict(rendered)
    config.eval_data = ConfigDict({'name': 'folder', 'root': '', 'crop_scale': 2.2})
    config.train_split = 'train'  # of parts that name none
    config.eval_split = 'val'

    config.pipeline = ConfigDict()
    config.pipeline.balance = 0.5  # parts of n records count like n ** 0.5
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
    config.eval_every = 100
    config.checkpoint_every = 100

    if variant == 'smoke':
        _smoke(config)
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
    del config.eval_data
