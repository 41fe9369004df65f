"""Decodes image files from anywhere into upright 8-bit RGB, or says what is wrong with them.

Pillow decodes, because it notices a truncated file (OpenCV fills in grey and goes on). Plain whole
JPEG files, which most data sets are made of, go to OpenCV: the same pixels in a third of the time,
and without holding up other threads.
"""

import io
import operator
import os
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import (
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

try:
    import cv2
except ModuleNotFoundError:
    # The core of the package is installed without it; Pillow then decodes everything.
    cv2 = None  # type: ignore[assignment]

DEFAULT_MAX_MEGAPIXELS = 64.0

_FORMATS = 'JPEG, PNG, WebP, BMP, TIFF or GIF'

# The plugins are called directly because Image.open checks the size itself, by a process-wide
# limit, and hides the claimed size in its error.
_OPENERS: tuple[tuple[str, tuple[bytes, ...], Callable[..., ImageFile.ImageFile]], ...] = (
    ('JPEG', (b'\xff\xd8\xff',), JpegImagePlugin.jpeg_factory),
    ('PNG', (b'\x89PNG\r\n\x1a\n',), PngImagePlugin.PngImageFile),
    ('GIF', (b'GIF87a', b'GIF89a'), GifImagePlugin.GifImageFile),
    ('BMP', (b'BM',), BmpImagePlugin.BmpImageFile),
    ('TIFF', (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+'), TiffImagePlugin.TiffImageFile),
    ('WebP', (b'RIFF',), WebPImagePlugin.WebPImageFile),
)

# EXIF 2.3, tag 0x0112: what has to be done to the stored picture to see it upright.
_UPRIGHT: dict[int, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_image(
    path: str | os.PathLike[str], *, max_megapixels: float = DEFAULT_MAX_MEGAPIXELS
) -> UInt8[np.ndarray, 'h w 3']:
    """Reads an image file. See decode_image for what is accepted.

    Raises:
        ValueError: if the file cannot be read or decoded; the message names it.
    """
    return decode_image(read_bytes(path), str(path), max_megapixels=max_megapixels)


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """Reads an image file as it is stored.

    Raises:
        ValueError: if the file cannot be read; the message names it.
    """
    try:
        with open(path, 'rb', buffering=0) as file:
            return file.readall()
    except FileNotFoundError as error:
        raise ValueError(f'{path}: no such image file; check the path') from error
    except OSError as error:
        raise ValueError(f'{path}: the image file cannot be read ({error.strerror})') from error


def decode_image(
    data: bytes, name: str, *, max_megapixels: float = DEFAULT_MAX_MEGAPIXELS
) -> UInt8[np.ndarray, 'h w 3']:
    """Decodes an encoded image to upright RGB.

    EXIF orientation is applied. Transparency is laid over white. 16-bit grey is scaled to 8 bits;
    32-bit integer or float grey is scaled so that white is the smallest of 1 (float only), 255,
    65,535 and 2^31 - 1 that no pixel exceeds. Of an animation the first frame is taken.

    Args:
        data: the content of a JPEG, PNG, WebP, BMP, TIFF or GIF file.
        name: what error messages call it, usually its path.
        max_megapixels: refuse, before decoding, images that claim more million pixels than this.

    Raises:
        ValueError: for data that is empty, no such image, too large, truncated or corrupt.
    """
    if not data:
        raise _empty(name)
    plain = _decode_plain_jpeg(data, max_megapixels)
    if plain is not None:
        return plain
    image, file_format = _open(data, name, max_megapixels)
    try:
        image.load()
        orientation = _orientation(image)
        upright = image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image
        return _rgb(upright)
    except Exception as error:
        raise _damaged(name, file_format, error) from error


def image_size(
    data: bytes, name: str, *, max_megapixels: float = DEFAULT_MAX_MEGAPIXELS
) -> tuple[int, int]:
    """Reads kind and size of an encoded image from its header, without decoding it.

    Args:
        data: the content of the file.
        name: what error messages call it.
        max_megapixels: refuse images that claim more million pixels than this.

    Returns:
        (height, width) of the upright image.

    Raises:
        ValueError: for data that is empty, no image that decode_image takes, or too large. What is
            damaged behind its header is not found here.
    """
    if not data:
        raise _empty(name)
    image, file_format = _open(data, name, max_megapixels)
    width, height = image.size
    # Pillow tells the size of a TIFF as it is to be seen, of the others as they are stored. A PNG's
    # own way to its EXIF block would decode the picture; the general one reads what comes before.
    orientation = _orientation(image, Image.Image.getexif)
    lying = orientation >= 5 and file_format != 'TIFF'
    return (width, height) if lying else (height, width)


def _open(data: bytes, name: str, max_megapixels: float) -> tuple[ImageFile.ImageFile, str]:
    known = [
        (file_format, opener)
        for file_format, prefixes, opener in _OPENERS
        if data.startswith(prefixes) and (file_format != 'WebP' or data[8:12] == b'WEBP')
    ]
    if not known:
        raise ValueError(
            f'{name}: expected a {_FORMATS} image, got a file that starts with {data[:12]!r}; '
            'convert it, or leave it out'
        )
    file_format, opener = known[0]
    # A decoder fed with damaged data raises nearly anything (SyntaxError, struct.error, OSError,
    # zlib.error..).
    try:
        image = opener(io.BytesIO(data), name)
    except Exception as error:
        raise _damaged(name, file_format, error) from error
    width, height = image.size
    if width * height > max_megapixels * 1e6:
        raise ValueError(
            f'{name}: the image claims {width} x {height} pixels '
            f'({width * height / 1e6:.1f} megapixels), more than the {max_megapixels:g} megapixels '
            'allowed; shrink it or raise max_megapixels'
        )
    return image, file_format


_START, _END = b'\xff\xd8', b'\xff\xd9'
# Segments that say nothing about how to see the picture: JFIF, quantization and Huffman tables,
# restart interval, comment. Source: ITU-T T.81, table B.1.
_HARMLESS = {0xE0, 0xDB, 0xC4, 0xDD, 0xFE}
_BASELINE, _EXTENDED, _PROGRESSIVE = 0xC0, 0xC1, 0xC2


def _decode_plain_jpeg(data: bytes, max_megapixels: float) -> UInt8[np.ndarray, 'h w 3'] | None:
    """Decodes a whole JPEG of three 8-bit components without EXIF; None for anything else."""
    if cv2 is None or not (data.startswith(_START) and data.endswith(_END)):
        return None
    position = 2
    while position + 10 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker in (_BASELINE, _EXTENDED, _PROGRESSIVE):
            bits, components = data[position + 4], data[position + 9]
            height = int.from_bytes(data[position + 5 : position + 7], 'big')
            width = int.from_bytes(data[position + 7 : position + 9], 'big')
            if (bits, components) != (8, 3) or not 0 < width * height <= max_megapixels * 1e6:
                return None
            try:
                return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
            except cv2.error:
                return None
        if marker not in _HARMLESS:
            return None
        position += 2 + int.from_bytes(data[position + 2 : position + 4], 'big')
    return None


def _empty(name: str) -> ValueError:
    return ValueError(f'{name}: the image file is empty (0 bytes); copy or export it again')


def _damaged(name: str, file_format: str, error: Exception) -> ValueError:
    return ValueError(
        f'{name}: the {file_format} image is truncated, corrupt or of an unsupported kind '
        f'({error or type(error).__name__}); copy or export it again'
    )


def _orientation(
    image: Image.Image, read: Callable[[Any], Image.Exif] = operator.methodcaller('getexif')
) -> int:
    # Photo viewers show a picture whose EXIF block is damaged as it is stored, and so do we.
    try:
        return read(image).get(ExifTags.Base.Orientation, 1)
    except Exception:
        return 1


def _rgb(image: Image.Image) -> UInt8[np.ndarray, 'h w 3']:
    if image.mode.startswith('I;16'):
        grey = np.asarray(image).astype(np.uint32)
        return _grey_to_rgb((grey * 255 + 32767) // 65535)
    if image.mode in ('I', 'F'):
        return _grey_to_rgb(_scale_wide_grey(np.asarray(image), integer=image.mode == 'I'))
    if image.has_transparency_data:
        paper = Image.new('RGBA', image.size, 'white')
        paper.alpha_composite(image.convert('RGBA'))
        image = paper
    return np.array(image if image.mode == 'RGB' else image.convert('RGB'))


def _scale_wide_grey(grey: np.ndarray, *, integer: bool) -> np.ndarray:
    low, high = float(grey.min()), float(grey.max())
    whites = (255.0, 65535.0, 2.0**31 - 1) if integer else (1.0, 255.0, 65535.0, 2.0**31 - 1)
    # Written so that NaN fails as well.
    if not (low >= 0 and high <= whites[-1]):
        raise ValueError(f'grey values from {low:g} to {high:g} have no known black and white')
    white = next(white for white in whites if high <= white)
    return np.round(grey.astype(np.float64) * (255 / white))


def _grey_to_rgb(grey: np.ndarray) -> UInt8[np.ndarray, 'h w 3']:
    return np.repeat(grey.astype(np.uint8)[:, :, None], 3, axis=2)
