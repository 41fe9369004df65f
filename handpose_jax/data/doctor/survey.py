"""Reads all records of a data set once, and keeps what the doctor asks about (not the pixels)."""

import concurrent.futures
import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple

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


class _Row(NamedTuple):
    name: str
    keypoints: np.ndarray
    annotated: np.ndarray
    visible: np.ndarray
    is_left: bool
    box: np.ndarray
    size: tuple[int, int]
    contrast: int
    digest: bytes
    damage: str
    looks: duplicates.Looks | None
    keypoints_3d: np.ndarray | None
    camera: np.ndarray | None


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
    kept = [row.looks or nothing for row in rows]
    points = [row.keypoints_3d for row in rows if row.keypoints_3d is not None]
    cameras = [row.camera for row in rows if row.camera is not None]
    deep = len(points) == len(cameras) == len(rows)
    return Survey(
        split=splits,
        name=[row.name for row in rows],
        keypoints=np.stack([row.keypoints for row in rows]).astype(np.float64),
        annotated=np.stack([row.annotated for row in rows]),
        visible=np.stack([row.visible for row in rows]),
        is_left=np.array([row.is_left for row in rows]),
        box=np.stack([row.box for row in rows]).astype(np.float64),
        size=np.array([row.size for row in rows]),
        contrast=np.array([row.contrast for row in rows]),
        digest=[row.digest for row in rows],
        damage=[row.damage for row in rows],
        bits=np.array([look.bits for look in kept], np.uint64) if looks else None,
        thumbnails=np.stack([look.thumbnail for look in kept]) if looks else None,
        keypoints_3d=np.stack(points).astype(np.float64) if deep else None,
        camera=np.stack(cameras).astype(np.float64) if deep else None,
    )


def _read(source: Source, index: int, looks: bool) -> _Row:
    if isinstance(source, PreparedSource):
        record = source.record(index)
        name = record['image_id'].decode()
        damage, image = '', None
        try:
            image = images.decode_image(record['image'], name)
        except ValueError as error:
            damage = str(error)
        return _row(
            name,
            record,
            image,
            record['annotated'],
            record['visible'],
            hashlib.sha256(record['image']).digest(),
            damage,
            looks,
        )
    name = source.image_id(index)
    try:
        sample = source[index]
    except ValueError as error:
        nothing = np.zeros((hand.NUM_KEYPOINTS, 2))
        unknown = np.zeros(hand.NUM_KEYPOINTS, bool)
        empty = {'keypoints': nothing, 'is_left': False, 'box': np.zeros(4)}
        return _row(name, empty, None, unknown, unknown, b'', str(error), looks)
    visible = np.asarray(sample['visible'], bool)
    digest = hashlib.sha256(sample['image'].tobytes()).digest()
    return _row(name, sample, sample['image'], visible, visible, digest, '', looks)


def _row(
    name: str,
    record: Mapping[str, Any],
    image: np.ndarray | None,
    annotated: np.ndarray,
    visible: np.ndarray,
    digest: bytes,
    damage: str,
    looks: bool,
) -> _Row:
    return _Row(
        name=name,
        keypoints=np.asarray(record['keypoints'], np.float64),
        annotated=np.asarray(annotated, bool),
        visible=np.asarray(visible, bool),
        is_left=bool(record['is_left']),
        box=np.asarray(record['box'], np.float64),
        size=(0, 0) if image is None else image.shape[:2],
        contrast=-1 if image is None else int(image.max()) - int(image.min()),
        digest=digest,
        damage=damage,
        looks=duplicates.look(image) if looks and image is not None else None,
        keypoints_3d=record.get('keypoints_3d'),
        camera=record.get('camera'),
    )
