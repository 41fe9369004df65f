"""What a crop needs of OpenCV, in NumPy, for the core of the package, which goes without it.

OpenCV is ten times as fast; no grey level differs from its own by more than one.
"""

import itertools

import numpy as np
from jaxtyping import Float, UInt8


def average(
    image: UInt8[np.ndarray, 'h w 3'], width: int, height: int
) -> UInt8[np.ndarray, '{height} {width} 3']:
    """Makes an image smaller: each new pixel is the mean of the area that it covers.

    Args:
        image: RGB.
        width: of the result, at most the image's, pixels.
        height: likewise.
    """
    rows = _average_rows(image, height)
    columns = _average_rows(np.swapaxes(rows, 0, 1), width)
    return np.rint(np.swapaxes(columns, 0, 1)).astype(np.uint8)


def _average_rows(values: np.ndarray, count: int) -> Float[np.ndarray, '{count} _ 3']:
    edges = np.arange(count + 1) * (len(values) / count)
    whole = np.minimum(edges.astype(int), len(values) - 1)
    # Each new row is a sum of whole rows, and parts of the two that its edges cut.
    kind = np.uint32 if values.dtype == np.uint8 else np.float64
    sums = np.array(
        [values[a:b].sum(axis=0, dtype=kind) for a, b in itertools.pairwise(whole.tolist())]
    )
    parts = (edges - whole)[:, None, None] * values[whole]
    return (sums + parts[1:] - parts[:-1]) * (count / len(values))


def warp(
    image: UInt8[np.ndarray, 'h w 3'],
    image_from_crop: Float[np.ndarray, '2 3'],
    size: int,
    padding: int,
) -> UInt8[np.ndarray, '{size} {size} 3']:
    """Moves an image by an affine map, bilinearly.

    Args:
        image: RGB.
        image_from_crop: from pixels of the result to pixels of the image.
        size: side of the result, pixels.
        padding: grey level outside the image, which its border blends into.
    """
    height, width = image.shape[:2]
    # Two rows and columns around it: farther out all is padding.
    framed = np.pad(image, ((2, 2), (2, 2), (0, 0)), constant_values=padding)
    y, x = np.mgrid[:size, :size].astype(np.float64)
    points = np.stack([x, y, np.ones_like(x)], axis=-1) @ image_from_crop.T + 2
    points = np.clip(points, 0, [width + 2, height + 2])
    corner = points.astype(int)
    right, down = np.moveaxis(points - corner, -1, 0)[..., None].astype(np.float32)
    column, row = np.moveaxis(corner, -1, 0)
    above = framed[row, column] * (1 - right) + framed[row, column + 1] * right
    below = framed[row + 1, column] * (1 - right) + framed[row + 1, column + 1] * right
    return np.rint(above * (1 - down) + below * down).astype(np.uint8)
