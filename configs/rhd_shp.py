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


def get_config(variant: str = '') -> ConfigDict:
    """Variants: '', 'smoke' (a few steps on drawn hands) and 'smoke_prepared' (on the data set)."""
    config = ConfigDict()
    config.workdir = ''  # where --workdir is not given
    config.seed = 0
    config.size = 224  # side of the input, pixels
    config.batch_size = 32
    config.num_steps = 60_000
    config.sigma = 7.0  # of the target peaks, pixels of a 224 crop
    config.loss = 'squared_error'
    config.ema = 0.0  # weight of the old average of the parameters; 0: none
    config.init_from = ''  # encoder weights, see handpose_jax/models/pretrained.py; '': random

    config.model = ConfigDict()
    config.model.name = 'mobilenet_v2'
    config.model.width = 1.0
    config.model.bn_momentum = 0.99
    config.model.dtype = 'float32'

    config.optimizer = ConfigDict()
    config.optimizer.name = 'adadelta'
    config.optimizer.learning_rate = 1.0  # Keras's defaults, which optax does not share
    config.optimizer.rho = 0.95
    config.optimizer.eps = 1e-7
    config.optimizer.schedule_name = 'constant'
    config.optimizer.warmup_steps = 0
    config.optimizer.clip_norm = 0.0  # largest norm of all gradients together; 0: any

    config.data = ConfigDict()
    config.data.name = 'mixture'
    config.data.parts = ConfigDict()
    config.data.parts.rhd = ConfigDict()
    config.data.parts.rhd.name = 'prepared'
    config.data.parts.rhd.dataset = 'rhd'  # from datasets/prepare.py
    config.data.parts.rhd.root = ''  # where it is; '': in your cache
    config.data.parts.rhd.split = 'train'
    config.data.parts.rhd.crop_scale = 2.2
    config.data.parts.shp = ConfigDict()
    config.data.parts.shp.name = 'prepared'
    config.data.parts.shp.dataset = 'shp'  # from datasets/prepare.py
    config.data.parts.shp.root = ''  # where it is; '': in your cache
    config.data.parts.shp.split = 'train'
    config.data.parts.shp.crop_scale = 2.2
    config.eval_data = ConfigDict()
    config.eval_data.name = 'prepared'
    config.eval_data.dataset = 'rhd'
    config.eval_data.root = ''
    config.eval_data.crop_scale = 2.2
    config.train_split = 'train'  # of parts that name none
    config.eval_split = 'test'

    config.pipeline = ConfigDict()
    # Shares of the stream. These are the numbers of records in thousands: each once an epoch.
    config.pipeline.balance = ConfigDict()
    config.pipeline.balance.rhd = 41.3
    config.pipeline.balance.shp = 30.0
    config.pipeline.num_threads = 2

    config.augmentation = ConfigDict()
    config.augmentation.rotation = 40.0  # degrees, either way
    config.augmentation.translation = 40.0  # pixels of a 224 crop, either way
    config.augmentation.scale = (0.5, 1.1)

    config.decode = ConfigDict()
    config.decode.method = 'peak'
    config.decode.subpixel = False  # the paper takes the pixel
    config.decode.fallback = True
    config.decode.threshold = 0.1

    config.max_skipped = 10  # steps in a row without finite numbers that end the training
    config.empty_after = 500  # steps with empty heatmaps before the alarm; 0: none

    config.early_stopping = ConfigDict()
    config.early_stopping.patience = 0  # evaluations in a row without a better one; 0: never
    config.early_stopping.metric = 'epe_mean_224'
    config.early_stopping.smallest = 0.0  # improvement that counts, pixels

    config.protocol = 'rhd'
    config.eval_batch_size = 32
    config.log_every = 50
    config.eval_every = 1000
    config.checkpoint_every = 1000

    if variant in ('smoke', 'smoke_prepared'):
        _smoke(config)
        if variant == 'smoke':
            _draw(config)
    elif variant:
        raise ValueError(f"variant: expected '', 'smoke' or 'smoke_prepared', got {variant!r}")
    config.lock()
    return config


def _smoke(config: ConfigDict) -> None:
    """A few steps of the same recipe, smaller in every dimension."""
    config.size = 64
    config.batch_size = 4
    config.eval_batch_size = 4
    config.num_steps = 4
    config.log_every = 1
    config.eval_every = 2
    config.checkpoint_every = 2
    config.model.width = 0.35
    names = 'reduce separable residual squeeze bottleneck expand upsample refine'
    config.model.decoder_widths = ConfigDict(dict.fromkeys(names.split(), 16))


def _draw(config: ConfigDict) -> None:
    """Drawn hands instead of the data set, so that no file is needed."""
    config.data = ConfigDict({'name': 'sketch', 'count': 10, 'crop_scale': 2.2})
    del config.eval_data
    config.pipeline = ConfigDict({'balance': 1.0, 'num_threads': 2})
    config.train_split = 'train'
    config.protocol = 'box'  # drawn hands are no RHD
