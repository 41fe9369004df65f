"""Your own photographs in minutes: a trained network goes on learning, carefully, on a few of them.

    python -m handpose_jax.main --config configs/finetune.py --config.data.root=DIR \
        --config.init_from=START --workdir W

START is the workdir of a run, or a file that `handpose weights` wrote; a network with other
settings than the paper's wants them here too (config.model). DIR holds annotations.json and images,
see handpose_jax/data/folder.py; records with "split": "val" are measured on.

The statistics of batch normalisation stay as the start has them: a few photographs of one kind
would replace those of all it knows. The rate is a fifth of a training's. What photographs of one
kind bring, and what the network forgets of others, is in docs/results.md. The recipe is ours
(confidence C).
"""

from ml_collections import ConfigDict

from handpose_jax import config as base


def get_config(variant: str = '') -> ConfigDict:
    """See handpose_jax/config.py for the fields, and for the variants that all configs have."""
    config = base.improved()
    config.batch_size = 16
    config.num_steps = 100
    config.freeze_batch_stats = True
    config.ema = 0.95
    config.optimizer = base.adamw(3e-4, warmup_steps=10)
    return base.finish(config, variant)
