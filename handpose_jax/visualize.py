"""Pictures: skeletons over photographs, contact sheets, training curves.

Images are u8[h w 3], RGB. Nothing here changes its arguments.
"""

import os
import struct
import zlib
from collections.abc import Collection
from typing import Any

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from handpose_jax import hand
from handpose_jax.process import outputs, storage

Picture = UInt8[np.ndarray, '_ _ 3']
Colour = tuple[int, int, int]

LOW_CONFIDENCE = 0.1
"""Keypoints below this confidence are drawn hollow.

Source: the code released with Gouidis et al. 2019, threshold on the raw map value.
"""

_OUTLINE: Colour = (25, 25, 25)
_TRUTH: Colour = (255, 255, 255)
_PAPER: Colour = (246, 246, 244)
_MAT: Colour = (226, 226, 222)
_INK: Colour = (30, 30, 30)

# OpenCV draws at fractions of a pixel in fixed point: coordinates times 2 ** _SHIFT.
_SHIFT = 6


def draw_hand(
    image: UInt8[np.ndarray, 'h w 3'],
    keypoints: Float[np.ndarray, '21 2'],
    *,
    confidence: Float[np.ndarray, '21'] | None = None,
    visible: Bool[np.ndarray, '21'] | None = None,
    threshold: float = LOW_CONFIDENCE,
    thickness: float | int | None = None,
    colour: Colour | None = None,
) -> UInt8[np.ndarray, 'h w 3']:
    """Draws the skeleton of one hand over a copy of the image.

    Keypoints that are not finite, or so far outside that no part of them shows, are left out;
    bones that cross the edge are cut there.

    Args:
        image: RGB.
        keypoints: (x, y), image pixels.
        confidence: where below `threshold`, the keypoint is hollow and its bone thin.
        visible: where False, the keypoint and its bones are left out.
        threshold: see `confidence`.
        thickness: of a bone, px; chosen by the size of the image unless given.
        colour: RGB of everything; the fingers' own colours unless given.

    Returns:
        The new image.
    """
    height, width = image.shape[:2]
    canvas = image.copy()
    thick = max(1.0, max(height, width) / 130) if thickness is None else float(thickness)
    radius = 1.25 * thick
    rim = max(1.0, 0.35 * thick)
    shown = np.isfinite(keypoints).all(axis=1)
    if visible is not None:
        shown = shown & visible
    sure = np.ones(hand.NUM_KEYPOINTS, bool) if confidence is None else confidence >= threshold

    # The outline of the whole skeleton first: it must not cut through bones drawn before.
    for passing in ('outline', 'fill'):
        fill = passing == 'fill'
        for parent, child in hand.BONES:
            if shown[parent] and shown[child]:
                bone = thick if sure[parent] and sure[child] else 0.5 * thick
                _line(
                    canvas,
                    keypoints[parent],
                    keypoints[child],
                    (colour or hand.keypoint_colour(child)) if fill else _OUTLINE,
                    bone if fill else bone + 2 * rim,
                )
        for keypoint in np.flatnonzero(shown):
            if not fill:
                _disc(canvas, keypoints[keypoint], radius + rim, _OUTLINE)
    for keypoint in np.flatnonzero(shown):
        own = colour or hand.keypoint_colour(int(keypoint))
        _disc(canvas, keypoints[keypoint], radius + rim, _OUTLINE)
        _disc(canvas, keypoints[keypoint], radius, own)
        if not sure[keypoint]:
            _disc(canvas, keypoints[keypoint], 0.55 * radius, _OUTLINE)
    return canvas


def enlarge(
    image: UInt8[np.ndarray, 'h w 3'], keypoints: Float[np.ndarray, '*k 2'], min_side: int
) -> tuple[Picture, Float[np.ndarray, '*k 2']]:
    """Enlarges a small image, so that a skeleton drawn on it is smooth.

    Args:
        image: RGB.
        keypoints: (x, y), image pixels.
        min_side: px the shorter side shall have at least.

    Returns:
        Image and keypoints, both as they were if the image is large enough.
    """
    shorter = min(image.shape[:2])
    return (
        (image, keypoints) if shorter >= min_side else _resize(image, keypoints, min_side / shorter)
    )


def contact_sheet(
    tiles: Collection[Picture],
    captions: Collection[str],
    *,
    columns: int = 6,
    tile_size: int = 256,
    title: str = '',
) -> Picture:
    """Lays pictures of any size out in rows, with captions below and a title above.

    Args:
        tiles: RGB; fitted into squares, never squashed or cropped.
        captions: one for each tile; lines that are too long end in an ellipsis.
        columns: tiles in a row.
        tile_size: side of a tile, px.
        title: above the first row.

    Returns:
        The sheet, RGB.

    Raises:
        ValueError: without tiles, or for another number of captions.
    """
    if len(tiles) == 0 or len(captions) != len(tiles):
        raise ValueError(
            f'contact_sheet: expected at least one tile and a caption for each, got {len(tiles)} '
            f'tiles and {len(captions)} captions'
        )
    columns = max(1, min(columns, len(tiles)))
    margin = max(6, tile_size // 24)
    font = ImageFont.load_default(max(12, tile_size // 16))
    title_font = ImageFont.load_default(max(16, tile_size // 11))
    line_height = _line_height(font)
    lines = [caption.split('\n') if caption else [] for caption in captions]
    caption_height = line_height * max(map(len, lines)) + (margin // 2 if any(lines) else 0)
    top = margin + (_line_height(title_font) + margin if title else 0)
    rows = -(-len(tiles) // columns)
    width = margin + columns * (tile_size + margin)
    height = top + rows * (tile_size + caption_height + margin)

    sheet = Image.new('RGB', (width, height), _PAPER)
    pen = ImageDraw.Draw(sheet)
    if title:
        text = _shorten(title, title_font, width - 2 * margin)
        pen.text((margin, margin), text, fill=_INK, font=title_font)
    for position, (tile, tile_lines) in enumerate(zip(tiles, lines, strict=True)):
        x = margin + position % columns * (tile_size + margin)
        y = top + position // columns * (tile_size + caption_height + margin)
        sheet.paste(Image.fromarray(_letterbox(tile, tile_size)), (x, y))
        for number, line in enumerate(tile_lines):
            pen.text(
                (x, y + tile_size + margin // 2 + number * line_height),
                _shorten(line, font, tile_size),
                fill=_INK,
                font=font,
            )
    return np.array(sheet)


def prediction_sheet(
    images: Collection[Picture],
    predicted: Collection[Float[np.ndarray, '21 2']],
    truth: Collection[Float[np.ndarray, '21 2']],
    errors: Collection[Any],
    captions: Collection[str] | None = None,
    *,
    confidence: Collection[Float[np.ndarray, '21']] | None = None,
    visible: Collection[Bool[np.ndarray, '21']] | None = None,
    columns: int = 6,
    tile_size: int = 256,
    title: str = '',
) -> Picture:
    """A contact sheet of predictions in colour, with the annotations as thin white skeletons.

    Args:
        images: RGB, any size.
        predicted: (x, y), pixels of the image.
        truth: (x, y), pixels of the image.
        errors: mean error of each hand, px of the 224 crop; NaN where nothing was counted.
        captions: a line above each error, such as the record's name.
        confidence: of the predicted keypoints.
        visible: which keypoints of `truth` are annotated; the others are not drawn.
        columns: tiles in a row.
        tile_size: side of a tile, px.
        title: above the first row.

    Raises:
        ValueError: if the sequences differ in length or are empty.
    """
    number = len(images)
    optional = [given for given in (captions, confidence, visible) if given is not None]
    lengths = [len(given) for given in (images, predicted, truth, errors, *optional)]
    if number == 0 or set(lengths) != {number}:
        raise ValueError(f'prediction_sheet: expected one of each for every image, got {lengths}')
    tiles, texts = [], []
    absent = [None] * number
    for image, points, annotated, error, caption, sure, shown in zip(
        images,
        predicted,
        truth,
        errors,
        absent if captions is None else captions,
        absent if confidence is None else confidence,
        absent if visible is None else visible,
        strict=True,
    ):
        both = np.concatenate([points, annotated])
        larger, moved = _resize(image, both, tile_size / max(image.shape[:2]))
        tile = draw_hand(larger, moved[: hand.NUM_KEYPOINTS], confidence=sure)
        tiles.append(_draw_truth(tile, moved[hand.NUM_KEYPOINTS :], shown, tile_size))
        text = 'no keypoint counted' if np.isnan(error) else f'{error:.1f} px'
        texts.append(text if caption is None else f'{caption}\n{text}')
    return contact_sheet(tiles, texts, columns=columns, tile_size=tile_size, title=title)


# The signature, and the chunk IHDR: the first of every PNG, and always as long.
_PNG_HEADER = 8 + 25


def save_png(path: str | os.PathLike[str], image: UInt8[np.ndarray, 'h w 3']) -> None:
    """Writes an RGB image as PNG, marked as made by this package; makes the folder if absent.

    Raises:
        OSError: if the file cannot be written.
    """
    target = storage.folder(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # Encoded first: cv2.imwrite reports a full or read-only disk by a return value only.
    _, data = cv2.imencode('.png', image[:, :, ::-1])
    header, rest = data.tobytes()[:_PNG_HEADER], data.tobytes()[_PNG_HEADER:]
    text = b'tEXt' + outputs.PNG_TEXT
    mark = struct.pack('>I', len(text) - 4) + text + struct.pack('>I', zlib.crc32(text))
    target.write_bytes(header + mark + rest)


def _draw_truth(
    image: Picture,
    keypoints: Float[np.ndarray, '21 2'],
    visible: Bool[np.ndarray, '21'] | None,
    tile_size: int,
) -> Picture:
    canvas = image.copy()
    shown = np.isfinite(keypoints).all(axis=1)
    if visible is not None:
        shown = shown & visible
    # Thinner than a predicted bone, and on top of it: both are seen where they agree.
    thin = max(1.0, tile_size / 256)
    for parent, child in hand.BONES:
        if shown[parent] and shown[child]:
            _line(canvas, keypoints[parent], keypoints[child], _TRUTH, thin)
    for keypoint in np.flatnonzero(shown):
        _disc(canvas, keypoints[keypoint], 1.6 * thin, _TRUTH)
    return canvas


def _line(
    canvas: Picture,
    start: Float[np.ndarray, '2'],
    end: Float[np.ndarray, '2'],
    colour: Colour,
    thickness: float,
) -> None:
    cut = _clip(start, end, canvas.shape[1], canvas.shape[0], margin=2 * thickness + 2)
    if cut is not None:
        whole = max(1, round(thickness))
        cv2.line(canvas, _fixed(cut[0]), _fixed(cut[1]), colour, whole, cv2.LINE_AA, _SHIFT)


def _disc(canvas: Picture, centre: Float[np.ndarray, '2'], radius: float, colour: Colour) -> None:
    height, width = canvas.shape[:2]
    reach = radius + 2
    if -reach < centre[0] < width + reach and -reach < centre[1] < height + reach:
        # OpenCV's own circle is a rhombus at the small radii of a contact sheet.
        angles = np.linspace(0, 2 * np.pi, 32, endpoint=False)
        rim = centre + radius * np.column_stack([np.cos(angles), np.sin(angles)])
        fixed = np.round(rim * 2**_SHIFT).astype(np.int32)
        cv2.fillConvexPoly(canvas, fixed, colour, cv2.LINE_AA, _SHIFT)


def _fixed(point: Float[np.ndarray, '2']) -> tuple[int, int]:
    return round(float(point[0]) * 2**_SHIFT), round(float(point[1]) * 2**_SHIFT)


def _clip(
    start: Float[np.ndarray, '2'],
    end: Float[np.ndarray, '2'],
    width: int,
    height: int,
    margin: float,
) -> tuple[Float[np.ndarray, '2'], Float[np.ndarray, '2']] | None:
    """The part of a segment within the image and a margin (Liang and Barsky 1984); None if outside.

    OpenCV's fixed point overflows without a word for coordinates far outside.
    """
    start, end = np.asarray(start, np.float64), np.asarray(end, np.float64)
    low = np.array([-margin, -margin])
    high = np.array([width + margin, height + margin])
    step = end - start
    first, last = 0.0, 1.0
    for axis in range(2):
        if step[axis] == 0:
            if not low[axis] <= start[axis] <= high[axis]:
                return None
            continue
        enter, leave = sorted((bound[axis] - start[axis]) / step[axis] for bound in (low, high))
        first, last = max(first, enter), min(last, leave)
    return (start + first * step, start + last * step) if first <= last else None


def _resize(
    image: Picture, keypoints: Float[np.ndarray, '*k 2'], scale: float
) -> tuple[Picture, Float[np.ndarray, '*k 2']]:
    height, width = image.shape[:2]
    size = max(1, round(width * scale)), max(1, round(height * scale))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    # The sides are whole pixels, so each axis has its own exact factor.
    exact = np.array([size[0] / width, size[1] / height])
    moved = (keypoints + 0.5) * exact - 0.5
    return cv2.resize(image, size, interpolation=method).astype(np.uint8), moved


def _letterbox(tile: Picture, size: int) -> Picture:
    fitted, _ = _resize(tile, np.zeros((0, 2)), size / max(tile.shape[:2]))
    height, width = fitted.shape[:2]
    canvas = np.full((size, size, 3), _MAT, np.uint8)
    top, left = (size - height) // 2, (size - width) // 2
    canvas[top : top + height, left : left + width] = fitted
    return canvas


def _line_height(font: Any) -> int:
    # Taller than any Latin letter with an accent; the font's own metrics leave a line empty.
    return round(1.15 * font.getbbox('Ågj')[3])


def _shorten(text: str, font: Any, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + '…') > width:
        text = text[:-1]
    return text + '…'
