"""Decodes image files from anywhere into upright 8-bit RGB, or says what is wrong with them.

`image_files` takes a file apart first: it reads size and orientation, keeps the bounds, and finds
what is missing. Pillow then decodes the parts that make the picture. Plain JPEG files, which most
data sets are made of, go to OpenCV: the same pixels in half the time, and without holding up other
threads.
"""

import io
import os
import stat
from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from handpose_jax.data import image_files

try:
    import cv2
except ModuleNotFoundError:
    # The core of the package is installed without it; Pillow then decodes everything.
    cv2 = None  # type: ignore[assignment]

DEFAULT_MAX_MEGAPIXELS = 64.0

# The plugins are called directly because Image.open checks the size itself, by a process-wide
# limit, and hides the claimed size in its error.
_OPENERS: dict[str, Callable[..., ImageFile.ImageFile]] = {
    'JPEG': JpegImagePlugin.JpegImageFile,
    'PNG': PngImagePlugin.PngImageFile,
    'GIF': GifImagePlugin.GifImageFile,
    'BMP': BmpImagePlugin.BmpImageFile,
    'TIFF': TiffImagePlugin.TiffImageFile,
    'WebP': WebPImagePlugin.WebPImageFile,
}

# A pixel takes at most 8 bytes (four samples of 16 bits), or less compressed.
_MAX_BYTES_PER_PIXEL = 8
_FREE_BYTES = 16 * 2**20


def read_image(
    path: str | os.PathLike[str],
    *,
    max_megapixels: float = DEFAULT_MAX_MEGAPIXELS,
    thorough: bool = True,
) -> UInt8[np.ndarray, 'h w 3']:
    """Reads an image file. See decode_image for what is accepted.

    Raises:
        ValueError: if the file cannot be read or decoded; the message names it.
    """
    data = read_bytes(path, max_megapixels=max_megapixels)
    return decode_image(data, str(path), max_megapixels=max_megapixels, thorough=thorough)


def read_bytes(
    path: str | os.PathLike[str], *, max_megapixels: float = DEFAULT_MAX_MEGAPIXELS
) -> bytes:
    """Reads an image file as it is stored.

    Raises:
        ValueError: if the file cannot be read, or is longer than an image of so many pixels can
            be; the message names it.
    """
    most = int(max_megapixels * 1e6) * _MAX_BYTES_PER_PIXEL + _FREE_BYTES
    try:
        # Without O_NONBLOCK, opening a pipe would wait for its writer for ever.
        with open(path, 'rb', buffering=0, opener=_open_at_once) as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise ValueError(
                    f'{path}: the image cannot be read (it is no file); check the path'
                )
            if found.st_size > most:
                raise _too_long(str(path), found.st_size, most)
            return file.readall()
    except FileNotFoundError as error:
        raise ValueError(f'{path}: no such image file; check the path') from error
    except OSError as error:
        raise ValueError(f'{path}: the image file cannot be read ({error.strerror})') from error


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, 'O_NONBLOCK', 0))


def decode_image(
    data: bytes,
    name: str,
    *,
    max_megapixels: float = DEFAULT_MAX_MEGAPIXELS,
    thorough: bool = True,
) -> UInt8[np.ndarray, 'h w 3']:
    """Decodes an encoded image to upright RGB.

    EXIF orientation is applied. Transparency is laid over white. 16-bit grey is scaled to 8 bits;
    32-bit integer or float grey is scaled so that white is the smallest of 1 (float only), 255,
    65,535 and 2^31 - 1 that no pixel exceeds. Of an animation the first frame is taken.

    Args:
        data: the content of a JPEG, PNG, WebP, BMP, TIFF or GIF file.
        name: what error messages call it, usually its path.
        max_megapixels: refuse, before decoding, images that claim more million pixels than this.
        thorough: also look for what only a second decoding shows: coded data of a JPEG that are
            left over, or missing between restart markers or in one of several scans, and the
            checksum inside a PNG. A training does without, as it would wait for its images.

    Raises:
        ValueError: for data that is empty, no such image, too large, truncated or corrupt. A
            picture of which a part is missing is refused, whatever a decoder would put there.
    """
    found = _header(data, name, max_megapixels)
    # A decoder fed with damaged data raises nearly anything (SyntaxError, struct.error, OSError,
    # zlib.error..).
    try:
        if found.jpeg is not None:
            rgb = _decode_jpeg(found.jpeg, name, found, thorough)
        else:
            encoded = _PICTURES.get(found.file_format, bytes)(data)
            rgb = _decode(encoded, name, found)
            if found.file_format == 'PNG' and (thorough or _may_lack_rows(encoded, rgb)):
                image_files.check_png_rows(encoded)
    except Exception as error:
        raise _damaged(name, found.file_format, error) from error
    return _turn(rgb, found.orientation)


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
    return _header(data, name, max_megapixels).upright


def check_image(
    data: bytes, name: str, *, max_megapixels: float = DEFAULT_MAX_MEGAPIXELS
) -> tuple[int, int]:
    """Looks whether all parts of an encoded image are there.

    JPEG, PNG and WebP say where their parts end, and are not decoded. The others do not, and are.

    Args:
        data: the content of the file.
        name: what error messages call it.
        max_megapixels: refuse images that claim more million pixels than this.

    Returns:
        (height, width) of the upright image.

    Raises:
        ValueError: see image_size; and for an image whose end or another part is missing.
    """
    found = _header(data, name, max_megapixels)
    try:
        if found.jpeg is not None:
            found.jpeg.read_scans()
        elif found.file_format in ('PNG', 'WebP'):
            _PICTURES[found.file_format](data)
        else:
            decode_image(data, name, max_megapixels=max_megapixels, thorough=False)
    except Exception as error:
        if isinstance(error, ValueError) and name in str(error):
            raise
        raise _damaged(name, found.file_format, error) from error
    return found.upright


def _header(data: bytes, name: str, max_megapixels: float) -> image_files.Header:
    """Reads the header of a file, and keeps the bounds."""
    if not data:
        raise _empty(name)
    file_format = image_files.kind(data)
    if file_format is None:
        raise ValueError(
            f'{name}: expected a {image_files.FORMATS} image, got a file that starts with '
            f'{data[:12]!r}; convert it, or leave it out'
        )
    most = int(max_megapixels * 1e6) * _MAX_BYTES_PER_PIXEL + _FREE_BYTES
    if len(data) > most:
        raise _too_long(name, len(data), most)
    try:
        found = image_files.header(data)
    except image_files.Damage as error:
        raise _damaged(name, file_format, error) from error
    width, height = found.width, found.height
    if width * height > max_megapixels * 1e6:
        raise ValueError(
            f'{name}: the image claims {width} x {height} pixels '
            f'({width * height / 1e6:.1f} megapixels), more than the {max_megapixels:g} megapixels '
            'allowed; shrink it or raise max_megapixels'
        )
    if max(width, height) > image_files.MAX_SIDE:
        raise ValueError(
            f'{name}: the image claims {width} x {height} pixels, more than '
            f'{image_files.MAX_SIDE:,} on a side; cut it up'
        )
    return found


# Zeros end what a decoder looks at ahead of the data: 8 bytes. They say so little that it cannot
# take them for a part of the picture, and stand for no code that it would complain about.
_AHEAD = bytes(8)
# A picture that comes out without so many of its last bytes did not need them.
_LEFT_OVER = 64
# Sparse files and broken downloads have such holes; whole pictures of one colour may, too.
_HOLE = bytes(64)
# Any data that no encoder writes, without the byte of markers.
_NOISE = bytes(np.random.default_rng(0).integers(1, 255, 32, np.uint8))


def _decode_jpeg(
    parts: image_files.Jpeg, name: str, found: image_files.Header, thorough: bool
) -> UInt8[np.ndarray, 'h w 3']:
    """Decodes a JPEG, still as it is stored.

    libjpeg puts grey, or nothing, where coded data are missing, and writes a warning without a name
    to the standard error stream. Without the end marker it waits for more data instead, and both
    libraries say that they did. A JPEG of several scans is read to its end marker before the first
    row comes out. There, data that the decoder would only look at where others are missing are put
    before each marker: they make no difference in a whole picture.
    """
    parts.read_scans()
    encoded = parts.put_together(pad=_AHEAD, end=b'') if parts.single else parts.put_together()
    colour = parts.bits == 8 and len(parts.components) == 3 and not parts.adobe
    # OpenCV is faster, where it is installed. It cannot be kept from writing libjpeg's warnings;
    # where time allows, Pillow is asked.
    if colour and not thorough and cv2 is not None:
        rgb = cv2.imdecode(
            np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
        )
        if rgb is None:
            raise image_files.Damage('coded data of its picture are missing')
    else:
        rgb = _decode(encoded, name, found)
    tail = parts.tail(_LEFT_OVER)
    if parts.single and (thorough or _HOLE in encoded) and tail.strip(b'\0\xff'):
        short = parts.put_together(cut=_LEFT_OVER, end=b'')
        try:
            _decode(short, name, found)
        except OSError:
            pass
        else:
            raise image_files.Damage('coded data are left over: its picture is damaged')
    if thorough and (parts.restarts or not parts.single):
        other = _decode(parts.put_together(pad=_NOISE, at_restarts=True), name, found)
        if not np.array_equal(rgb, other):
            raise image_files.Damage('coded data of its picture are missing')
    return rgb


_PICTURES: dict[str, Callable[[bytes], bytes]] = {
    'PNG': image_files.png_picture,
    'TIFF': image_files.tiff_picture,
    'WebP': image_files.webp_picture,
}


def _may_lack_rows(encoded: bytes, rgb: np.ndarray) -> bool:
    """Whether rows of a PNG may be missing: the decoder leaves them empty without a word."""
    return image_files.png_interlaced(encoded) or bool((rgb[-1] == rgb[-1, 0]).all())


def _decode(data: bytes, name: str, found: image_files.Header) -> UInt8[np.ndarray, 'h w 3']:
    """Decodes with Pillow, as the picture is stored."""
    image = _OPENERS[found.file_format](io.BytesIO(data), name)
    if image.size != (found.width, found.height):
        raise image_files.Damage(f'it has two sizes, {found[1:3]} and {image.size}')
    image.load()
    return _rgb(image)


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


def _turn(rgb: np.ndarray, orientation: int) -> UInt8[np.ndarray, 'h w 3']:
    turn = _UPRIGHT.get(orientation)
    # Pillow moves pixels several times faster than NumPy does.
    return rgb if turn is None else np.array(Image.fromarray(rgb).transpose(turn))


def _empty(name: str) -> ValueError:
    return ValueError(f'{name}: the image file is empty (0 bytes); copy or export it again')


def _too_long(name: str, found: int, most: int) -> ValueError:
    return ValueError(
        f'{name}: expected an image file of at most {most:,} bytes, got {found:,}; shrink it or '
        'raise max_megapixels'
    )


def _damaged(name: str, file_format: str, error: Exception) -> ValueError:
    return ValueError(
        f'{name}: the {file_format} image is truncated, corrupt or of an unsupported kind '
        f'({error or type(error).__name__}); copy or export it again'
    )


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
