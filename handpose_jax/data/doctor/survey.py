"""Reads all records of a data set once, and keeps what the doctor asks about (not the pixels)."""

import concurrent.futures
import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8, UInt64
from tqdm import tqdm

from handpose_jax import hand
from handpose_jax.data import images
from handpose_jax.data.doctor import duplicates
from handpose_jax.data.prepared import PreparedSource
from handpose_jax.types import Source


@dataclasses.dataclass(frozen=True, kw_only=True)
class Survey:
    """Columns over the n records of all splits.

    Attributes:
        split: of each record.
        name: of each record, in reports.
        keypoints: (x, y), image pixels.
        annotated: whose place is known.
        visible: not hidden; the same as annotated where the source does not tell.
        is_left: left hands.
        no_hand: pictures without a hand, of which no keypoint is annotated.
        box: x0, y0, x1, y1, image pixels.
        size: (height, width) of the image; 0 where it cannot be decoded.
        contrast: largest grey level less the smallest; -1 where it cannot be decoded.
        digest: of the image's bytes (prepared data sets) or pixels (other sources).
        damage: why the image or record cannot be read; '' if it can.
        bits: perceptual hashes; None without the package imagehash.
        thumbnails: see duplicates.Looks; None without imagehash.
        keypoints_3d: metres, camera frame; None if the source has none.
        camera: intrinsic matrices; None if the source has none.
    """

    split: list[str]
    name: list[str]
    keypoints: Float[np.ndarray, 'n 21 2']
    annotated: Bool[np.ndarray, 'n 21']
    visible: Bool[np.ndarray, 'n 21']
    is_left: Bool[np.ndarray, 'n']
    no_hand: Bool[np.ndarray, 'n']
    box: Float[np.ndarray, 'n 4']
    size: Int[np.ndarray, 'n 2']
    contrast: Int[np.ndarray, 'n']
    digest: list[bytes]
    damage: list[str]
    bits: UInt64[np.ndarray, 'n'] | None
    thumbnails: UInt8[np.ndarray, 'n 16 16'] | None
    keypoints_3d: Float[np.ndarray, 'n 21 3'] | None
    camera: Float[np.ndarray, 'n 3 3'] | None

    def __len__(self) -> int:
        return len(self.name)

    def select(self, chosen: Bool[np.ndarray, 'n']) -> 'Survey':
        """The same without some records."""
        columns: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            column = getattr(self, field.name)
            if isinstance(column, list):
                column = [value for value, wanted in zip(column, chosen, strict=True) if wanted]
            elif column is not None:
                column = column[chosen]
            columns[field.name] = column
        return Survey(**columns)


_Row = dict[str, Any]
"""The columns of Survey for one record; `looks` in place of bits and thumbnail."""


def take(
    sources: Mapping[str, Source], *, threads: int = 2, progress: bool = False, looks: bool = True
) -> Survey:
    """Reads every record of every split and decodes its image.

    Args:
        sources: by split.
        threads: that read and decode.
        progress: show a bar.
        looks: keep what near duplicates are found by; needs imagehash.

    Raises:
        ValueError: if the splits hold no record.
    """
    rows: list[_Row] = []
    splits: list[str] = []
    total = sum(len(source) for source in sources.values())
    if total == 0:
        raise ValueError('there is no record to examine')
    with (
        concurrent.futures.ThreadPoolExecutor(threads) as pool,
        tqdm(total=total, unit='record', desc='reading', disable=not progress) as bar,
    ):
        for split, source in sources.items():
            # In portions: a data set may have more records than the queue should have entries.
            for start in range(0, len(source), 1024):
                numbers = range(start, min(start + 1024, len(source)))
                for row in pool.map(lambda n, s=source: _read(s, n, looks), numbers):
                    rows.append(row)
                    splits.append(split)
                    bar.update()
    return _columns(splits, rows, looks)


def _columns(splits: list[str], rows: list[_Row], looks: bool) -> Survey:
    nothing = duplicates.Looks(np.uint64(0), np.zeros((16, 16), np.uint8))
    kept = [row['looks'] or nothing for row in rows]
    values: dict[str, Any] = {key: [row[key] for row in rows] for key in rows[0] if key != 'looks'}
    if any(row['keypoints_3d'] is None or row['camera'] is None for row in rows):
        values |= {'keypoints_3d': None, 'camera': None}
    for key, column in values.items():
        if column is not None and key not in ('name', 'digest', 'damage'):
            values[key] = np.stack(column)
    return Survey(
        split=splits,
        bits=np.array([look.bits for look in kept], np.uint64) if looks else None,
        thumbnails=np.stack([look.thumbnail for look in kept]) if looks else None,
        **values,
    )


def _read(source: Source, index: int, looks: bool) -> _Row:
    name, damage, digest, image = source.image_id(index), '', b'', None
    no_hand = False
    record: Mapping[str, Any] = {
        'keypoints': np.zeros((hand.NUM_KEYPOINTS, 2)),
        'visible': np.zeros(hand.NUM_KEYPOINTS, bool),
        'is_left': False,
        'box': np.zeros(4),
    }
    try:
        if isinstance(source, PreparedSource):
            record = source.record(index)
            name = record['image_id'].decode()
            digest = hashlib.sha256(record['image']).digest()
            image = images.decode_image(record['image'], name)
            no_hand = not record['annotated'].any()
        else:
            record = source[index]
            no_hand = bool(record.get('no_hand'))
            image = record['image']
            digest = hashlib.sha256(image.tobytes()).digest()
    except ValueError as error:
        damage = str(error)
    return {
        'name': name,
        'keypoints': np.asarray(record['keypoints'], np.float64),
        'annotated': np.asarray(record.get('annotated', record['visible']), bool),
        'visible': np.asarray(record['visible'], bool),
        'is_left': np.bool_(record['is_left']),
        'no_hand': np.bool_(no_hand),
        'box': np.asarray(record['box'], np.float64),
        'size': np.array((0, 0) if image is None else image.shape[:2]),
        'contrast': np.array(-1 if image is None else int(image.max()) - int(image.min())),
        'digest': digest,
        'damage': damage,
        'looks': duplicates.look(image) if looks and image is not None else None,
        **{key: _deep(record.get(key)) for key in ('keypoints_3d', 'camera')},
    }


def _deep(value: np.ndarray | None) -> np.ndarray | None:
    return None if value is None else value.astype(np.float64)
