"""The same picture twice: equal bytes, or nearly equal looks.

Looks are compared in two steps. A perceptual hash of 64 bits finds candidates among all pairs,
which is fast enough by brute force for a hundred thousand pictures; a thumbnail of 16 x 16 pixels
decides.
Mirrored copies, and crops by more than a few percent, are not found.
"""

from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8, UInt64

MAX_BITS = 10
MIN_CORRELATION = 0.95
"""Two pictures are near duplicates if their hashes differ in at most so many of 64 bits, and their
thumbnails correlate by at least so much.

Measured by benchmarks/doctor.py on photographs: copies that were compressed again, halved,
brightened or cropped by 2% are below and above; of a million pairs of different photographs of one
studio some dozens are, of different sources none.
"""

_THUMBNAIL = 16
# Below this contrast, in grey levels, a thumbnail is noise and correlates with nothing.
_LEAST_CONTRAST = 4.0
_BLOCK_PAIRS = 1 << 24
_MAX_CANDIDATES = 64


class Looks(NamedTuple):
    """What is kept of a picture to compare it by: perceptual hash, and small grey picture."""

    bits: np.uint64
    thumbnail: UInt8[np.ndarray, '16 16']


def look(image: UInt8[np.ndarray, 'h w 3']) -> Looks:
    """Reduces a picture to what it is compared by.

    Raises:
        ImportError: without the package imagehash.
    """
    import imagehash
    from PIL import Image

    # Shrunk first, by the faster library: a photograph would take Pillow several milliseconds.
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (64, 64), interpolation=cv2.INTER_AREA)
    hashed = imagehash.phash(Image.fromarray(small)).hash
    thumbnail = cv2.resize(small, (_THUMBNAIL, _THUMBNAIL), interpolation=cv2.INTER_AREA)
    return Looks(np.packbits(hashed).view(np.uint64)[0], thumbnail)


def normalise(thumbnails: UInt8[np.ndarray, 'n 16 16']) -> Float[np.ndarray, 'n 256']:
    """Thumbnails whose scalar products are their correlations."""
    flat = thumbnails.reshape(len(thumbnails), -1).astype(np.float32)
    flat -= flat.mean(axis=1, keepdims=True)
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    return flat / np.maximum(length, _LEAST_CONTRAST * _THUMBNAIL)


def nearest(
    bits: UInt64[np.ndarray, 'n'],
    thumbnails: Float[np.ndarray, 'n 256'],
    other_bits: UInt64[np.ndarray, 'm'],
    other_thumbnails: Float[np.ndarray, 'm 256'],
    *,
    skip_same: bool = False,
) -> tuple[Int[np.ndarray, 'n'], Float[np.ndarray, 'n']]:
    """Finds each picture's nearest duplicate among others.

    Args:
        bits: perceptual hashes.
        thumbnails: as normalise() gives them.
        other_bits: of the others.
        other_thumbnails: of the others.
        skip_same: the others are the same pictures, and none is its own duplicate.

    Returns:
        Index among the others, -1 for pictures without a near duplicate; and the correlation.
    """
    found = np.full(len(bits), -1)
    correlation = np.zeros(len(bits))
    for start, close in _close_rows(bits, other_bits):
        for row in np.flatnonzero(close.any(axis=1)):
            index = start + int(row)
            candidates = np.flatnonzero(close[row])
            if skip_same:
                candidates = candidates[candidates != index]
            if len(candidates) == 0:
                continue
            if len(candidates) > _MAX_CANDIDATES:
                distance = np.bitwise_count(other_bits[candidates] ^ bits[index])
                candidates = candidates[np.argsort(distance, kind='stable')[:_MAX_CANDIDATES]]
            alike = other_thumbnails[candidates] @ thumbnails[index]
            best = int(alike.argmax())
            if alike[best] >= MIN_CORRELATION:
                found[index], correlation[index] = candidates[best], alike[best]
    return found, correlation


def _close_rows(
    bits: UInt64[np.ndarray, 'n'], others: UInt64[np.ndarray, 'm']
) -> Iterator[tuple[int, Bool[np.ndarray, 'r m']]]:
    rows = max(1, _BLOCK_PAIRS // max(1, len(others)))
    for start in range(0, len(bits), rows):
        yield start, np.bitwise_count(bits[start : start + rows, None] ^ others) <= MAX_BITS
