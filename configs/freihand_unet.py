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

from handpose_jax import config as base


def get_config(variant: str = '') -> ConfigDict:
    """See handpose_jax/config.py for the fields, and for the variants that all configs have."""
    config = base.paper()
    config.size = 128
    config.batch_size = 48
    config.num_steps = 10_000  # 200 epochs of 50 batches
    config.sigma = 5.25  # 3 px at 128
    config.loss = 'iou'
    config.model.name = 'unet'
    del config.model.decoder_widths  # it has no such decoder
    config.model.bn_momentum = 0.9
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
    config.optimizer.clip_norm = 0.0
    config.data = base.data('prepared', dataset='freihand', crop='image')
    config.eval_split = 'val'
    config.augmentation.rotation = 0.0
    config.augmentation.translation = 0.0
    config.augmentation.scale = (1.0, 1.0)
    config.decode = ConfigDict({'method': 'weighted_average'})
    config.decode.half_pixel_bias = False  # True: the tutorial's numbers as its code gives them
    config.early_stopping.patience = 5
    config.protocol = 'freihand_tutorial'
    config.eval_batch_size = 48
    config.eval_every = 500
    config.checkpoint_every = 500
    if variant == 'short':  # ours: a quarter of the pixels, and an optimizer that learns soon
        config.size = 64
        config.num_steps = 900
        config.optimizer = base.adamw(5e-3, warmup_steps=50)
        del config.optimizer.weight_decay
        config.early_stopping.patience = 0
        config.eval_every = 300
        config.checkpoint_every = 300
    return base.finish(config, variant, variants=('', 'short'))
