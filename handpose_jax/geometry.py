"""Boxes, crops and affine maps between image, crop and heatmap frames (NumPy).

**The pixel-centre rule**, the only one in this package: the point (x, y) = (0, 0) is the *centre*
of the first pixel, so an image of width w covers x from -0.5 to w - 0.5. It is OpenCV's rule and
that of annotations made by clicking on pixels or by projecting with a calibrated camera. From it
follow:

    a map scaled by s:   x_dst = (x_src + 0.5) * s - 0.5
    a mirrored image:    x_dst = w - 1 - x_src
    boxes:               x0, y0, x1, y1 are edges in the same frame; the whole image is
                         (-0.5, -0.5, w - 0.5, h - 0.5)

Affine maps are f64[2 3] arrays [A | t] named `dst_from_src`; points are rows (x, y).
"""

import math

import numpy as np
from jaxtyping import Bool, Float

Affine = Float[np.ndarray, '2 3']
Box = Float[np.ndarray, '4']


def whole_image_box(height: int, width: int) -> Box:
    """The box that covers an image of the given size, in image pixels."""
    return np.array([-0.5, -0.5, width - 0.5, height - 0.5])


def keypoint_box(keypoints: Float[np.ndarray, 'k 2'], counted: Bool[np.ndarray, 'k']) -> Box:
    """The tight box around the counted keypoints.

    Args:
        keypoints: (x, y), any frame.
        counted: which of them to enclose.

    Returns:
        x0, y0, x1, y1 in the keypoints' frame.

    Raises:
        ValueError: if no keypoint is counted.
    """
    if not counted.any():
        raise ValueError('keypoint_box: no keypoint is counted, so there is no box around them')
    points = np.asarray(keypoints, np.float64)[counted]
    return np.concatenate([points.min(axis=0), points.max(axis=0)])


def longest_side(box: Box) -> float:
    """The longer of a box's two sides, in the box's unit."""
    return float(max(box[2] - box[0], box[3] - box[1]))


def square_box(box: Box, scale: float = 1.0) -> Box:
    """The square of side scale x the longest side, around the same centre.

    Args:
        box: x0, y0, x1, y1.
        scale: factor on the longest side.
    """
    x0, y0, x1, y1 = box.tolist()
    x, y, half = (x0 + x1) / 2, (y0 + y1) / 2, scale * max(x1 - x0, y1 - y0) / 2
    return np.array([x - half, y - half, x + half, y + half])


def crop_from_image(box: Box, size: int, *, rotation: float = 0.0, mirror: bool = False) -> Affine:
    """The map that cuts a square box out of an image and resizes it to size x size pixels.

    The crop shows the box's content rotated by `rotation` about the box's centre. What is cut may
    lie outside the image; warping pads there. Never squashes: a box that is not square is an error.

    Args:
        box: x0, y0, x1, y1 in image pixels, square.
        size: side of the crop, pixels.
        rotation: radians, clockwise as seen on the screen (y points down).
        mirror: flip the crop left-right (after the rotation).

    Returns:
        f64[2 3], crop pixels from image pixels.

    Raises:
        ValueError: for a box that is empty, not finite or not square.
    """
    x0, y0, x1, y1 = box.tolist()
    width, height = x1 - x0, y1 - y0
    if not (math.isfinite(width) and math.isfinite(height) and width > 0 and height > 0):
        raise ValueError(f'crop_from_image: the box must be finite and not empty, got {box}')
    if not math.isclose(width, height, rel_tol=1e-4):
        raise ValueError(f'crop_from_image: the box must be square, got {width} x {height}')
    scale = size / width
    cos, sin = scale * math.cos(rotation), scale * math.sin(rotation)
    x, y, middle = (x0 + x1) / 2, (y0 + y1) / 2, (size - 1) / 2
    side = -1.0 if mirror else 1.0
    return np.array(
        [
            [side * cos, -side * sin, middle - side * (cos * x - sin * y)],
            [sin, cos, middle - (sin * x + cos * y)],
        ]
    )


def mirror_map(width: int) -> Affine:
    """The map that flips an image of the given width left-right; it is its own inverse."""
    return np.array([[-1.0, 0.0, width - 1.0], [0.0, 1.0, 0.0]])


def scale_map(scale: float) -> Affine:
    """The map from a frame to the same picture resized by a factor, under the pixel-centre rule."""
    offset = 0.5 * scale - 0.5
    return np.array([[scale, 0.0, offset], [0.0, scale, offset]])


def compose(c_from_b: Affine, b_from_a: Affine) -> Affine:
    """The map c_from_a: first b_from_a, then c_from_b."""
    composed = c_from_b[:, :2] @ b_from_a
    composed[:, 2] += c_from_b[:, 2]
    return composed


def invert(dst_from_src: Affine) -> Affine:
    """The map src_from_dst.

    Raises:
        ValueError: if the map cannot be inverted.
    """
    # By hand: for one such map NumPy's own inverse takes ten times as long, for every example.
    (a, b, x), (c, d, y) = dst_from_src.tolist()
    determinant = a * d - b * c
    if abs(determinant) < 1e-12:
        raise ValueError(f'invert: the affine map is singular: {dst_from_src.tolist()}')
    a, b, c, d = d / determinant, -b / determinant, -c / determinant, a / determinant
    return np.array([[a, b, -(a * x + b * y)], [c, d, -(c * x + d * y)]])


def apply_affine(
    dst_from_src: Float[np.ndarray, '*batch 2 3'], points: Float[np.ndarray, '*batch k 2']
) -> Float[np.ndarray, '*batch k 2']:
    """Moves points by an affine map, or each batch entry's points by its own map.

    Args:
        dst_from_src: one map, or one for each entry of the leading dimensions.
        points: (x, y) in the source frame.

    Returns:
        (x, y) in the destination frame, in the wider of the two dtypes.
    """
    linear, offset = dst_from_src[..., :2], dst_from_src[..., 2]
    return points @ np.swapaxes(linear, -1, -2) + offset[..., None, :]
