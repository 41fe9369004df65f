"""Where samples come from: the folder source, drawn hands, and every source by its name.

To train on your own hands, make a folder of images and one `annotations.json` as FolderSource
describes; to read another format, write a class with the five members of types.Source and add it
to SOURCES.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from handpose_jax import geometry, hand
from handpose_jax.data.folder import FolderSource
from handpose_jax.data.mixture import MixtureSource
from handpose_jax.data.prepared import PreparedSource
from handpose_jax.data.synthetic_hands import SyntheticSource
from handpose_jax.synthetic.drawing import flat
from handpose_jax.types import Sample, Source


class SketchSource:
    """Drawn hands that need no files, for smoke runs and tests; each is drawn when asked for.

    Args:
        count: how many the split 'train' holds; any other split holds a tenth, at least one.
        split: other names give other hands.
        crop_scale: side of the crop over the longest side of the keypoints' box.
        size: side of the drawn images, pixels.

    Raises:
        ValueError: for a count below one.
    """

    def __init__(
        self, *, count: int, split: str = 'train', crop_scale: float = 2.2, size: int = 128
    ):
        if count < 1:
            raise ValueError(f'data.count must be at least 1, got {count}')
        self._count = count if split == 'train' else max(1, count // 10)
        self._split = split
        self._crop_scale = crop_scale
        self._size = size

    @property
    def groups(self) -> Sequence[str]:
        """One group for all."""
        return ('sketch',) * self._count

    def __len__(self) -> int:
        return self._count

    def fingerprint(self) -> str:
        """Names what the drawings are made from, which decides every pixel."""
        return f'sketch/{self._split}/{self._count}/{self._size}'

    def image_id(self, index: int, /) -> str:
        """Split and number."""
        return f'sketch/{self._split}/{index}'

    def __getitem__(self, index: int, /) -> Sample:
        if not 0 <= index < self._count:
            raise IndexError(f'record {index} of {self._count}')
        split_seed = list(self._split.encode())
        image, keypoints = flat.draw(np.random.default_rng([index, *split_seed]), self._size)
        tight = geometry.keypoint_box(keypoints, np.ones(hand.NUM_KEYPOINTS, bool))
        return {
            'image': image,
            'keypoints': keypoints.astype(np.float32),
            'visible': np.ones(hand.NUM_KEYPOINTS, bool),
            'box': geometry.square_box(tight, self._crop_scale).astype(np.float32),
            'is_left': False,
            'norm_size': geometry.longest_side(tight),
            'image_id': self.image_id(index),
        }


def mixture(*, parts: Mapping[str, Mapping[str, Any]], split: str = '') -> MixtureSource:
    """Several sources as one; config.data.name = 'mixture' makes it.

    Args:
        parts: by a name of the part, what load_source takes: {'name': .., 'split': .., ..}.
        split: of the parts that name none themselves.

    Raises:
        ValueError: naming the part, for what its source refuses.
    """
    loaded: dict[str, Source] = {}
    for name, part in parts.items():
        if 'name' not in part:
            raise ValueError(f'data.parts.{name}.name: expected one of {sorted(SOURCES)}, got none')
        try:
            loaded[name] = load_source(**{'split': split, **part})
        except ValueError as error:
            raise ValueError(f'data.parts.{name}: {error}') from error
    return MixtureSource(loaded)


SOURCES: dict[str, Callable[..., Source]] = {
    'folder': FolderSource,
    'mixture': mixture,
    'prepared': PreparedSource,
    'sketch': SketchSource,
    'synthetic_hands': SyntheticSource,
}


def load_source(name: str, **kwargs: Any) -> Source:
    """Makes the source of the given name; its class documents the keyword arguments.

    Raises:
        ValueError: for an unknown name, or arguments that the source does not take.
    """
    if name not in SOURCES:
        raise ValueError(f'unknown source {name!r}; known are {", ".join(sorted(SOURCES))}')
    try:
        inspect.signature(SOURCES[name]).bind(**kwargs)
    except TypeError as error:
        raise ValueError(f'source {name!r}: {error}; see config.data') from error
    return SOURCES[name](**kwargs)


def check_images(source: Source) -> None:
    """Looks at the images of folders, where damage would be met in the middle of a training.

    Args:
        source: of any kind; only folders, also as parts of a mixture, hold images of strangers.

    Raises:
        ValueError: see FolderSource.check_images.
    """
    for part in source.parts.values() if isinstance(source, MixtureSource) else [source]:
        if isinstance(part, FolderSource):
            part.check_images()
