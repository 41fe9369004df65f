"""Pictures: skeletons over photographs, contact sheets, training curves.

Images are u8[h w 3], RGB. Nothing here changes its arguments.
"""

import io
import math
import os
from collections.abc import Collection
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

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

# Coordinates beyond count as this, px; a square of larger ones might overflow.
_FARTHEST = 1e12


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
                _stroke(
                    canvas,
                    keypoints[parent],
                    keypoints[child],
                    (colour or hand.keypoint_colour(child)) if fill else _OUTLINE,
                    bone / 2 if fill else bone / 2 + rim,
                )
        for keypoint in np.flatnonzero(shown):
            if not fill:
                _stroke(canvas, keypoints[keypoint], keypoints[keypoint], _OUTLINE, radius + rim)
    for keypoint in np.flatnonzero(shown):
        own = colour or hand.keypoint_colour(int(keypoint))
        _stroke(canvas, keypoints[keypoint], keypoints[keypoint], _OUTLINE, radius + rim)
        _stroke(canvas, keypoints[keypoint], keypoints[keypoint], own, radius)
        if not sure[keypoint]:
            _stroke(canvas, keypoints[keypoint], keypoints[keypoint], _OUTLINE, 0.55 * radius)
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


def save_png(path: str | os.PathLike[str], image: UInt8[np.ndarray, 'h w 3']) -> None:
    """Writes an RGB image as PNG, marked as made by this package; makes the folder if absent.

    Raises:
        OSError: if the file cannot be written.
    """
    target = storage.folder(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    mark = PngImagePlugin.PngInfo()
    mark.add_text('Software', outputs.MADE_BY)
    data = io.BytesIO()
    Image.fromarray(image).save(data, 'PNG', pnginfo=mark)
    target.write_bytes(data.getvalue())


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
            _stroke(canvas, keypoints[parent], keypoints[child], _TRUTH, thin / 2)
    for keypoint in np.flatnonzero(shown):
        _stroke(canvas, keypoints[keypoint], keypoints[keypoint], _TRUTH, 1.6 * thin)
    return canvas


def _stroke(
    canvas: Picture,
    start: Float[np.ndarray, '2'],
    end: Float[np.ndarray, '2'],
    colour: Colour,
    radius: float,
) -> None:
    """Paints all that is within a radius of a segment, its rim by the share of each pixel."""
    limit = np.array(canvas.shape[1::-1])
    # From the end nearer to the image: the other may be so far away that no digits are left.
    start, end = sorted(
        np.clip(np.array([start, end], np.float64), -_FARTHEST, _FARTHEST),
        key=lambda point: float(np.abs(point - limit / 2).max()),
    )
    low = np.clip(np.floor(np.minimum(start, end) - radius - 1), 0, limit).astype(int)
    high = np.clip(np.ceil(np.maximum(start, end) + radius + 2), 0, limit).astype(int)
    if (low >= high).any():
        return
    x = np.arange(low[0], high[0]) - start[0]
    y = (np.arange(low[1], high[1]) - start[1])[:, None]
    length = math.hypot(*(end - start))
    dx, dy = (end - start) / max(length, 1e-9)
    nearest = np.clip(x * dx + y * dy, 0, length)
    distance = np.hypot(x - nearest * dx, y - nearest * dy)
    share = np.clip(radius + 0.5 - distance, 0, 1)[..., None]
    part = canvas[low[1] : high[1], low[0] : high[0]]
    part[:] = np.rint(part + share * (np.array(colour) - part))


def _resize(
    image: Picture, keypoints: Float[np.ndarray, '*k 2'], scale: float
) -> tuple[Picture, Float[np.ndarray, '*k 2']]:
    height, width = image.shape[:2]
    size = max(1, round(width * scale)), max(1, round(height * scale))
    # The sides are whole pixels, so each axis has its own exact factor.
    exact = np.array([size[0] / width, size[1] / height])
    moved = (keypoints + 0.5) * exact - 0.5
    return np.array(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)), moved


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
