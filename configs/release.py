"""What the released weights are trained by: photographs of hands, webcam frames, rendered hands and
pictures without a hand, in one stream.

    python -m handpose_jax.main --config configs/release.py:112 --workdir W \
        --config.data.parts.real.root=DIR --config.data.parts.webcam.root=DIR \
        --config.data.parts.no_hands.root=DIR --config.eval_data.root=DIR \
        --config.init_from=DIR/mobilenet_v2_1.0_224.npz

A part that is not at hand is left out by its share: --config.pipeline.balance.no_hands=0. Rendered
hands are made on first use, of what the package brings; where they lie as a folder of pictures,
give --config.data.parts.rendered.name=folder and its root. --config.minutes=7 trains for that long.

**What is to be released sees nothing whose licence is for research only**: records whose licence
is stated by who published them, the package's own rendered hands before procedural backgrounds, and
pictures without a hand from the same sources. That is up to whoever fills the folders.

Variants: `:112` (the default) and `:224` are the paper's network; `:mobile` keeps its encoder, for
which there are ImageNet weights, and has a decoder of a quarter of the channels: 130 million
multiply-adds and 2.06 million parameters at 112 px, where the paper's has 285 and 4.24. The recipe
is ours (confidence C).
"""

from ml_collections import ConfigDict

from handpose_jax import config as base

VARIANTS = ('', '112', '224', 'mobile')


def get_config(variant: str = '') -> ConfigDict:
    """See handpose_jax/config.py for the fields, and for the variants that all configs have."""
    config = base.improved()
    config.size = 224 if variant == '224' else 112
    config.num_steps = 20_000
    base.use_mixture(
        config,
        {'real': 0.5, 'webcam': 0.1, 'rendered': 0.3, 'no_hands': 0.1},
        real=base.part('folder'),
        webcam=base.part('folder'),
        rendered=base.part('synthetic_hands'),
        no_hands=base.part('folder'),
    )
    config.pipeline.balance_within = 0.5  # the largest source is half of the photographs
    config.eval_data = base.data('folder')
    config.eval_every = 1000
    config.checkpoint_every = 1000
    config.weights_every_seconds = 60.0
    if variant == 'mobile':
        config.model.decoder_widths = ConfigDict(
            {
                'reduce': 128,
                'separable': 128,
                'residual': 256,
                'squeeze': 64,
                'bottleneck': 32,
                'expand': 64,
                'upsample': 32,
                'refine': 32,
            }
        )
    return base.finish(config, variant, variants=VARIANTS)
