"""The synthetic hands as a data set: rendered once, kept, and read like any other prepared one."""

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from handpose_jax import geometry
from handpose_jax.config import CROP_SCALE
from handpose_jax.data import prepared
from handpose_jax.synthetic.generate import generate
from handpose_jax.synthetic.render import mitsuba_renderer
from handpose_jax.synthetic.scene.options import SceneOptions

NAME = 'synthetic_hands'

VERSION = '2.0.0'
"""Raised when a seed gives other pictures than before, so that old data sets are not used."""

_JPEG = (
    *(cv2.IMWRITE_JPEG_QUALITY, 95),
    *(cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444),
)

# Pictures of one seed are numbered on through the splits, so no split shows a picture of another.
_FIRST_OF_SPLIT = {'train': 0, 'val': 10_000_000, 'test': 20_000_000}


@dataclasses.dataclass(frozen=True)
class MakeExample:
    """From a picture's number to a record; picklable."""

    options: SceneOptions
    seed: int
    first: int

    def __call__(self, index: int) -> prepared.Example:
        """Renders one hand."""
        mitsuba_renderer.set_threads(1)
        rendered = generate(self.options, self.seed, self.first + index)
        encoded = cv2.imencode('.jpg', rendered.image[..., ::-1], _JPEG)[1]
        everything = np.ones(len(rendered.keypoints), bool)
        box = geometry.keypoint_box(rendered.keypoints, everything)
        if not rendered.has_hand:
            # The crop that the hand would have, so that it says nothing.
            box = geometry.square_box(box, CROP_SCALE)
        return {
            'image': encoded.tobytes(),
            'keypoints': rendered.keypoints * rendered.has_hand,
            'annotated': everything & rendered.has_hand,
            'visible': rendered.visible,
            'box': box.astype(np.float32),
            'norm_size': np.float32(geometry.longest_side(box)),
            'is_left': rendered.is_left,
            'image_id': f'{self.seed}/{self.first + index}',
            'keypoints_3d': rendered.keypoints_3d,
            'camera': rendered.camera.astype(np.float32),
        }


def settings(options: SceneOptions, *, count: int, seed: int) -> dict[str, Any]:
    """What decides the content, as JSON values; files by their names, not by where they lie."""
    values = dataclasses.asdict(options)
    for name in ('textures', 'photos', 'poses'):
        values[name] = values[name] and Path(values[name]).name
    values['rigs'] = [Path(rig).name for rig in options.rigs]
    if not options.without_hand:
        # Data sets from before there was the option are the same.
        del values['without_hand']
    return {'version': VERSION, 'count': count, 'seed': seed, 'options': values}


def prepare(
    folder: str | os.PathLike[str],
    options: SceneOptions,
    *,
    count: int,
    seed: int = 0,
    workers: int | None = None,
) -> None:
    """Renders `count` training pictures and a tenth as many each for 'val' and 'test'.

    Args:
        folder: receives the data set.
        options: of the pictures.
        count: of the split 'train'.
        seed: of everything; the same seed gives the same bytes on the same machine.
        workers: processes; default one for each core.

    Raises:
        ValueError: see prepared.prepare.
    """
    if count < 1:
        raise ValueError(f'count must be at least 1, got {count}')
    tenth = max(1, count // 10)
    prepared.prepare(
        folder,
        NAME,
        {
            split: prepared.Split(
                count if split == 'train' else tenth,
                MakeExample(options, seed, first),
                evaluation=split != 'train',
            )
            for split, first in _FIRST_OF_SPLIT.items()
        },
        settings=settings(options, count=count, seed=seed),
        description='Rendered hands with 21 keypoints, made by handpose_jax.',
        with_3d=True,
        workers=workers,
    )


def default_folder(options: SceneOptions, *, count: int, seed: int) -> Path:
    """Where a data set is kept when no folder is given: the user's cache, by its settings."""
    text = json.dumps(settings(options, count=count, seed=seed), sort_keys=True)
    return prepared.default_folder(f'{NAME}-{hashlib.sha256(text.encode()).hexdigest()[:12]}')


class SyntheticSource(prepared.PreparedSource):
    """Synthetic hands, rendered on first use and kept.

    Args:
        count: of the split 'train'; 'val' and 'test' hold a tenth.
        split: 'train', 'val' or 'test'.
        seed: of everything.
        root: folder of the data set; '' for the user's cache.
        crop_scale: side of the crop over the longest side of the keypoints' box.
        hidden: whether hidden keypoints count.
        **options: fields of SceneOptions.

    Raises:
        ValueError: for options that do not exist, or a folder with another data set.
    """

    def __init__(
        self,
        *,
        count: int,
        split: str = 'train',
        seed: int = 0,
        root: str = '',
        crop_scale: float = 2.2,
        hidden: bool = True,
        **options: Any,
    ):
        known = {field.name for field in dataclasses.fields(SceneOptions)}
        if unknown := sorted(options.keys() - known):
            raise ValueError(
                f'synthetic_hands: unknown option {", ".join(map(repr, unknown))}; '
                f'known are {", ".join(sorted(known))}'
            )
        scenes = SceneOptions(**options)
        folder = Path(root) if root else default_folder(scenes, count=count, seed=seed)
        if not prepared.is_prepared(folder):
            print(
                f'Rendering {count} synthetic hands for training and {2 * max(1, count // 10)} for '
                f'evaluation; this happens once, they are kept in {folder}',
                flush=True,
            )
        prepare(folder, scenes, count=count, seed=seed)
        super().__init__(folder, split=split, crop_scale=crop_scale, hidden=hidden)
