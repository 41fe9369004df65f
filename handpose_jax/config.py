"""Every field of a config, once, with what it means; and the recipes that configs/*.py start from.

A file of configs/ takes `paper()` or `improved()`, sets what differs, and ends with `finish`. Every
block holds every field that any choice of its `name` reads, so that the command line can change the
choice: `--config.data.name=folder --config.data.root=DIR` works on every config.
"""

import runpy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from handpose_jax.process import shipped

CROP_SCALE = 2.2
"""Side of the crop over the longest side of the hand's box. Source: Simon et al. 2017."""

LOSSES = ('squared_error', 'iou')
DTYPES = ('float32', 'bfloat16')
DECODINGS = ('peak', 'weighted_average')
PLACES = ('host', 'device')

_SMOKES = ('smoke', 'smoke_prepared')

# The fields of a data block that each source reads; the others are the other sources'.
_DATA_FIELDS: dict[str, tuple[str, ...]] = {
    'prepared': ('root', 'dataset', 'crop', 'crop_scale'),
    'folder': ('root', 'crop_scale'),
    'synthetic_hands': (
        *('root', 'crop_scale', 'count', 'size', 'seed', 'rigs', 'textures', 'backgrounds'),
        *('lighting', 'occlusion', 'skin_variety'),
    ),
    'mixture': ('parts',),
    'sketch': ('count', 'crop_scale'),
}


def data(name: str, **values: Any) -> ConfigDict:
    """A data block: which hands, and how they are cut out.

    Args:
        name: 'prepared' (from datasets/prepare.py), 'folder' (your own), 'synthetic_hands'
            (rendered on first use), 'mixture' (several, see parts) or 'sketch' (drawn).
        **values: fields that differ from those below.
    """
    block = ConfigDict()
    block.name = name
    block.root = ''  # folder of the data set; '': its place in your cache
    block.crop_scale = CROP_SCALE  # side of the crop / longest side of the hand's box
    block.crop = 'box'  # prepared: what is cut out; 'image' for the whole image
    block.dataset = ''  # prepared: its name, not needed with a root
    block.count = 20_000  # rendered, drawn: hands to train on; a tenth as many each to val and test
    block.size = 224  # rendered: side of a picture, pixels
    block.seed = 0  # rendered: the same seed gives the same pictures
    block.rigs = ()  # rendered: glTF hands instead of the bundled one
    block.textures = placeholder(str)  # rendered: folder of textures, for the rigs
    block.backgrounds = 'procedural'
    block.lighting = 'full'
    block.occlusion = True  # rendered: things held and in front, and other hands
    block.skin_variety = True
    block.parts = ConfigDict()  # mixture: data blocks by a name of the part, each with its split
    block.update(values)
    return block


def adadelta() -> ConfigDict:
    """The paper's optimizer, with the defaults of Keras, which optax does not share."""
    return _optimizer(name='adadelta', learning_rate=1.0, rho=0.95, eps=1e-7)


def adamw(learning_rate: float, *, warmup_steps: int) -> ConfigDict:
    """AdamW with a warm-up and a cosine."""
    return _optimizer(
        name='adamw',
        learning_rate=learning_rate,
        schedule_name='cosine',
        warmup_steps=warmup_steps,
        weight_decay=1e-4,
    )


def _optimizer(**values: Any) -> ConfigDict:
    block = ConfigDict()
    block.schedule_name = 'constant'
    block.warmup_steps = 0
    block.clip_norm = 0.0  # largest norm of all gradients together; 0: any
    block.update(values)
    return block


def paper() -> ConfigDict:
    """The network, targets, loss, optimizer and decoding of Gouidis et al. 2019, on CMU.

    Not known and chosen by us (confidence C): the ranges of the augmentation, batch size and number
    of steps.
    """
    config = ConfigDict()
    config.workdir = ''  # where --workdir is not given
    config.seed = 0
    config.size = 224  # side of the input, pixels
    config.batch_size = 32
    config.num_steps = 60_000
    config.minutes = 0.0  # of training, which then decide num_steps, see training/minutes.py
    config.sigma = 7.0  # of the target peaks, pixels of a 224 crop
    config.loss = 'squared_error'  # or 'iou'
    config.ema = 0.0  # weight of the old average of the parameters; 0: none
    config.freeze_batch_stats = False  # keep the statistics of batch normalisation as they begin
    config.init_from = ''  # weights to start from, see training/state.py; '': random

    config.model = ConfigDict()
    config.model.name = 'mobilenet_v2'
    config.model.width = 1.0  # multiplier on the channels
    config.model.decoder_widths = ConfigDict()  # fields of DecoderWidths that differ
    config.model.bn_momentum = 0.99
    config.model.dtype = 'float32'  # of the computation; or 'bfloat16'

    config.optimizer = adadelta()

    config.data = data('prepared', dataset='cmu')
    config.train_split = 'train'
    config.eval_data = data('')  # what is measured on, with a name; without one, config.data
    config.eval_split = 'test'

    config.pipeline = ConfigDict()
    # Groups of n records (parts of a mixture) count like n ** balance; or a share for each part.
    config.pipeline.balance = 1.0
    # A mixture's parts have groups too: the same exponent for these.
    config.pipeline.balance_within = 1.0
    config.pipeline.num_threads = 2
    # 'device': the records wait in the device's memory and are augmented there, see data/resident.
    config.pipeline.place = 'host'
    config.pipeline.stored_side = 0  # of the squares kept there, pixels; 0: as many as crops need

    config.augmentation = ConfigDict()
    config.augmentation.rotation = 40.0  # degrees, either way
    config.augmentation.translation = 40.0  # pixels of a 224 crop, either way
    config.augmentation.scale = (0.5, 1.1)
    # The meaning of these is told in handpose_jax/data/transforms.py.
    config.augmentation.brightness = 0.0
    config.augmentation.contrast = 0.0
    config.augmentation.gamma = 0.0
    config.augmentation.white_balance = 0.0
    config.augmentation.grey = 0.0
    config.augmentation.blur = 0.0
    config.augmentation.noise = 0.0
    config.augmentation.low_resolution = 0.0
    config.augmentation.occlusion = 0.0

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
    config.early_stopping.min_delta = 0.0  # improvement that counts, pixels

    config.protocol = 'cmu'
    config.eval_batch_size = 32
    config.log_every = 50
    config.eval_every = 1000
    config.checkpoint_every = 1000
    config.weights_every_seconds = 0.0  # W/weights.safetensors is written anew; 0: never
    return config


def improved() -> ConfigDict:
    """The paper's network, targets and loss by a recipe of ours (confidence C), on your own folder.

    AdamW with warm-up and cosine instead of ADADELTA, averaged parameters, any rotation (hands come
    in every orientation), photometric changes, groups of records balanced.
    """
    config = paper()
    config.size = 112
    config.num_steps = 1000
    config.ema = 0.998
    config.model.bn_momentum = 0.97
    config.optimizer = adamw(1.5e-3, warmup_steps=100)
    config.data = data('folder')
    config.eval_split = 'val'
    config.pipeline.balance = 0.5
    config.augmentation.rotation = 180.0
    config.augmentation.translation = 20.0
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
    config.decode.subpixel = True
    config.protocol = 'box'
    config.log_every = 10
    config.eval_every = 200
    config.checkpoint_every = 200
    return config


def use_mixture(config: ConfigDict, shares: dict[str, float] | float, **parts: ConfigDict) -> None:
    """Makes a config train on several data sets.

    Args:
        config: changed in place.
        shares: of the parts in the stream of examples, or an exponent, see pipeline.balance.
        **parts: data blocks by name; each may hold a split of its own.
    """
    config.data = data('mixture', parts=ConfigDict(parts))
    with config.pipeline.ignore_type():
        config.pipeline.balance = ConfigDict(shares) if isinstance(shares, dict) else shares


def part(name: str, *, split: str = 'train', **values: Any) -> ConfigDict:
    """A data block with the split that a mixture takes of it."""
    block = data(name, **values)
    block.split = split
    return block


def finish(config: ConfigDict, variant: str, *, variants: Sequence[str] = ('',)) -> ConfigDict:
    """Ends a file of configs/: makes it small for a smoke run if that is asked for, and locks it.

    Args:
        config: complete.
        variant: what was asked for behind the colon of --config.
        variants: what the file knows itself. All know 'smoke' (a few steps on drawn hands), and
            those on prepared data sets 'smoke_prepared' (a few steps on these).

    Raises:
        ValueError: for a variant that is not known.
    """
    blocks = [config.data, *config.data.parts.values()]
    prepared = any(block.name == 'prepared' for block in blocks)
    known = (*variants, *(_SMOKES if prepared else _SMOKES[:1]))
    if variant not in known:
        raise ValueError(f'variant: expected one of {known}, got {variant!r}')
    if variant in _SMOKES:
        _make_smoke(config, drawn=variant == 'smoke')
    config.lock()
    return config


def _make_smoke(config: ConfigDict, *, drawn: bool) -> None:
    config.size = 64
    config.batch_size = 4
    config.eval_batch_size = 4
    config.num_steps = 4
    config.log_every = 1
    config.eval_every = 2
    config.checkpoint_every = 2
    config.optimizer.warmup_steps = min(1, config.optimizer.warmup_steps)
    if 'width' in config.model:
        config.model.width = 0.35
    if 'decoder_widths' in config.model:
        names = 'reduce separable residual squeeze bottleneck expand upsample refine'
        config.model.decoder_widths = ConfigDict(dict.fromkeys(names.split(), 16))
    if drawn:
        config.data = data('sketch', count=10)
        config.eval_data = data('')
        config.train_split = 'train'
        config.protocol = 'box'  # drawn hands have no head, and are cut out by their box
        with config.pipeline.ignore_type():
            config.pipeline.balance = 1.0


def load(name: str | Path) -> ConfigDict:
    """Loads a config file.

    Args:
        name: see find.

    Raises:
        ValueError: for a file that is not there, or an unknown variant.
    """
    file, variant = find(name)
    config: ConfigDict = runpy.run_path(str(file))['get_config'](
        # A config of one's own may know no variants.
        *([variant] if variant else [])
    )
    return config


def find(name: str | Path) -> tuple[Path, str]:
    """Finds a config file.

    Args:
        name: its path, or the bare name of one that comes with the package, and a variant behind a
            colon if one is wanted: 'configs/cmu.py:smoke', 'cmu:smoke'.

    Returns:
        The file, and the variant, '' for none.

    Raises:
        ValueError: for a file that is not there.
    """
    path, _, variant = str(name).rpartition(':')
    # The colon of a drive of Windows is followed by a folder.
    if not path or '/' in variant or '\\' in variant:
        path, variant = str(name), ''
    ours = shipped.folder('configs')
    file = Path(path) if path.endswith('.py') else ours / f'{path}.py'
    if not file.is_file():
        names = ', '.join(sorted(one.stem for one in ours.glob('*.py')))
        raise ValueError(f'{path}: no such config; give the path of a .py file, or one of {names}')
    return file, variant


def check(config: ConfigDict) -> None:
    """Refuses values that no run could use, before anything is opened.

    Raises:
        ValueError: naming the field, its value and what is expected.
    """

    def demand(field: str, good: Callable[[Any], bool], expected: str) -> None:
        value: Any = config
        for name in field.split('.'):
            value = value[name]
        if not good(value):
            shown = tuple(value) if isinstance(value, list | tuple) else value
            raise ValueError(f'config.{field}: expected {expected}, got {shown!r}')

    for field in (
        *('size', 'batch_size', 'eval_batch_size', 'num_steps'),
        *('log_every', 'eval_every', 'checkpoint_every'),
    ):
        demand(field, lambda value: value >= 1, 'a number of at least 1')
    for field in ('seed', 'max_skipped', 'empty_after', 'early_stopping.patience'):
        demand(field, lambda value: value >= 0, 'a number of at least 0')
    demand('minutes', lambda value: value >= 0, 'minutes above 0, or 0 where num_steps decides')
    demand('weights_every_seconds', lambda value: value >= 0, 'a number of seconds, or 0 for never')
    demand('sigma', lambda value: value > 0, 'a number of pixels above 0')
    demand('ema', lambda value: 0 <= value < 1, 'a weight of at least 0 and below 1')
    demand('loss', LOSSES.__contains__, f'one of {", ".join(LOSSES)}')
    demand('model.dtype', DTYPES.__contains__, f'one of {", ".join(DTYPES)}')
    if 'width' in config.model:
        demand('model.width', lambda value: value > 0, 'a factor above 0')
    demand('decode.method', DECODINGS.__contains__, f'one of {", ".join(DECODINGS)}')
    demand('pipeline.place', PLACES.__contains__, f'one of {", ".join(PLACES)}')
    demand(
        'pipeline.stored_side',
        lambda value: value == 0 or value >= config.size,
        f'0 or a number of pixels of at least config.size, {config.size}',
    )
    demand(
        'augmentation.scale',
        lambda value: len(value) == 2 and 0 < value[0] <= value[1],
        'two factors above 0, the smaller first',
    )


def source_settings(block: ConfigDict) -> dict[str, Any]:
    """A data block as the keyword arguments of data.sources.load_source.

    Fields of other sources are left out; what no source knows stays, to be refused by name.
    """
    values = block.to_dict()
    taken = ('name', 'split', *_DATA_FIELDS.get(block.name, ()))
    others = {field for fields in _DATA_FIELDS.values() for field in fields}.difference(taken)
    if block.name == 'mixture':
        values['parts'] = {name: source_settings(one) for name, one in block.parts.items()}
    return {key: value for key, value in values.items() if key not in others}


def training_data(config: ConfigDict) -> dict[str, Any]:
    """The data set that a run learns from, as keyword arguments of data.sources.load_source.

    A part of a mixture whose share in config.pipeline.balance is 0 is left out, and never opened.
    """
    settings = source_settings(config.data)
    shares = balance(config)
    if config.data.name == 'mixture' and isinstance(shares, dict):
        left_out = config.pipeline.balance.keys() - shares.keys()
        settings['parts'] = {
            name: part for name, part in settings['parts'].items() if name not in left_out
        }
    return settings


def evaluation_data(config: ConfigDict) -> dict[str, Any]:
    """The data set that a run is measured on, as keyword arguments of data.sources.load_source.

    A network trained on a mixture is measured on one data set, config.eval_data; every other on
    what it is trained on. The split is not among them: config.eval_split says it.
    """
    own = config.get('eval_data')
    return source_settings(own if own is not None and own.name else config.data)


def crop_scale(config: ConfigDict) -> float:
    """Side of the crops that a run is measured on, over the longest side of the hand's box.

    Returns:
        1.0 for networks that are shown whole images (data.crop = 'image').
    """
    settings = evaluation_data(config)
    if settings['name'] == 'mixture':
        settings = next(iter(settings['parts'].values()))
    return 1.0 if settings.get('crop') == 'image' else float(settings.get('crop_scale', CROP_SCALE))


def balance(config: ConfigDict) -> float | dict[str, float]:
    """How often each group of records is shown, see data.pipeline.train_dataset.

    Shares by name are of the parts of a mixture, and mean nothing for another data set, which is
    then shown record by record. Those of 0 are left out, see training_data.
    """
    value = config.pipeline.balance
    if not isinstance(value, ConfigDict):
        return value
    shares = {name: share for name, share in value.to_dict().items() if share}
    return shares if config.data.name == 'mixture' else 1.0
