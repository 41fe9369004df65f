"""Chernytska 2021, "Gentle introduction to 2D Hand Pose Estimation": the tutorial's U-Net, as it
was published.

Whole images at 128 px, maps of 0..1, IoU loss, SGD with a rate that is halved when the training
loss stalls, weighted average of each map. Ours: the target is a Gaussian at the keypoint itself
(there: at its whole pixel), coordinates without the tutorial's half-pixel bias, and early stopping
looks at the mean error on the validation split every ten epochs (there: at the loss after each).
Published on its own test split: a mean error of 4.5% of the side, 10 px in the 224 frame; `--mode
evaluate --config.eval_split=test` measures it. Not run here: the data must be asked for from its
authors.

    python datasets/prepare.py freihand --manual_dir DIR --versions raw
    python -m handpose_jax.main --config configs/freihand_unet.py --workdir W

With :short the same network and loss learn in half an hour on two cores: 64 px, and AdamW in place
of SGD, which stays on its first plateau for that long. On rendered hands:

    python datasets/prepare.py synthetic_hands --count 3000 --size 112 --data_dir DIR
    python -m handpose_jax.main --config configs/freihand_unet.py:short --config.data.root=DIR \
        --config.data.dataset=synthetic_hands --workdir W
"""

from ml_collections import ConfigDict


def get_config(variant: str = '') -> ConfigDict:
    """Variants: '', 'short', 'smoke' (a few steps on drawn hands), 'smoke_prepared' (data set)."""
    config = ConfigDict()
    config.workdir = ''  # where --workdir is not given
    config.seed = 0
    config.size = 128  # side of the input, pixels
    config.batch_size = 48
    config.num_steps = 10_000  # 200 epochs of 50 batches
    config.sigma = 5.25  # of the target peaks, pixels of a 224 crop: 3 px at 128
    config.loss = 'iou'
    config.ema = 0.0  # weight of the old average of the parameters; 0: none
    config.init_from = (
        ''  # the tutorial's weights, see handpose_jax/models/torch_unet.py; '': random
    )

    config.model = ConfigDict()
    config.model.name = 'unet'
    config.model.width = 1.0
    config.model.bn_momentum = 0.9
    config.model.dtype = 'float32'

    config.optimizer = ConfigDict()
    config.optimizer.name = 'sgd'
    config.optimizer.learning_rate = 0.1
    config.optimizer.momentum = 0.0
    config.optimizer.schedule_name = 'plateau'
    config.optimizer.plateau_steps = 50  # an epoch
    config.optimizer.plateau_patience = 20  # epochs
    config.optimizer.plateau_factor = 0.5
    config.optimizer.plateau_threshold = 1e-4
    config.optimizer.warmup_steps = 0
    config.optimizer.clip_norm = 0.0  # largest norm of all gradients together; 0: any

    config.data = ConfigDict()
    config.data.name = 'prepared'
    config.data.dataset = 'freihand'  # from datasets/prepare.py
    config.data.root = ''  # where it is; '': in your cache, where prepare.py puts it
    config.data.crop = 'image'
    config.train_split = 'train'
    config.eval_split = 'val'

    config.pipeline = ConfigDict()
    config.pipeline.balance = 1.0  # every record once in an epoch
    config.pipeline.num_threads = 2

    config.augmentation = ConfigDict()  # none
    config.augmentation.rotation = 0.0
    config.augmentation.translation = 0.0
    config.augmentation.scale = (1.0, 1.0)

    config.decode = ConfigDict()
    config.decode.method = 'weighted_average'
    config.decode.half_pixel_bias = False  # True: the tutorial's numbers as its code gives them

    config.max_skipped = 10  # steps in a row without finite numbers that end the training
    config.empty_after = 500  # steps with empty heatmaps before the alarm; 0: none

    config.early_stopping = ConfigDict()
    config.early_stopping.patience = 5  # evaluations in a row without a better one; 0: never
    config.early_stopping.metric = 'epe_mean_224'
    config.early_stopping.smallest = 0.0  # improvement that counts, pixels

    config.protocol = 'freihand_tutorial'
    config.eval_batch_size = 48
    config.log_every = 50
    config.eval_every = 500
    config.checkpoint_every = 500

    if variant in ('smoke', 'smoke_prepared'):
        _smoke(config)
        if variant == 'smoke':
            _draw(config)
    elif variant == 'short':
        _shorten(config)
    elif variant:
        raise ValueError(
            f"variant: expected '', 'short', 'smoke' or 'smoke_prepared', got {variant!r}"
        )
    config.lock()
    return config


def _shorten(config: ConfigDict) -> None:
    """Ours: a quarter of the pixels, and an optimizer that leaves the first plateau soon."""
    config.size = 64
    config.num_steps = 900
    config.optimizer = ConfigDict()
    config.optimizer.name = 'adamw'
    config.optimizer.learning_rate = 5e-3
    config.optimizer.schedule_name = 'cosine'
    config.optimizer.warmup_steps = 50
    config.optimizer.clip_norm = 0.0
    config.early_stopping.patience = 0
    config.eval_every = 300
    config.checkpoint_every = 300


def _smoke(config: ConfigDict) -> None:
    """A few steps of the same recipe, smaller in every dimension."""
    config.size = 64
    config.batch_size = 4
    config.eval_batch_size = 4
    config.num_steps = 4
    config.log_every = 1
    config.eval_every = 2
    config.checkpoint_every = 2
    config.model.width = 0.25


def _draw(config: ConfigDict) -> None:
    """Drawn hands instead of the data set, so that no file is needed."""
    config.data = ConfigDict({'name': 'sketch', 'count': 10, 'crop_scale': 2.2})
    config.train_split = 'train'
    config.protocol = 'box'  # drawn hands are cut out by their box
