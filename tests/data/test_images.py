"""Safe decoding: every kind of image becomes upright 8-bit RGB, or a ValueError that names it."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import ExifTags, Image

from handpose_jax.data import images


def picture(width=20, height=12):
    """A smooth colour picture without any symmetry."""
    y, x = np.mgrid[:height, :width]
    red, green = 250 * x / (width - 1), 250 * y / (height - 1)
    return np.stack([red, green, 255 - (red + green) / 2], axis=-1).astype(np.uint8)


def encode(image, file_format, **kwargs):
    stream = io.BytesIO()
    image.save(stream, file_format, **kwargs)
    return stream.getvalue()


def png_claiming(width, height):
    """A PNG whose header claims a size, and which holds no pixels."""

    def chunk(kind, body):
        check = struct.pack('>I', zlib.crc32(kind + body))
        return struct.pack('>I', len(body)) + kind + body + check

    header = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', b'') + chunk(b'IEND', b'')


@pytest.mark.parametrize('file_format', ['PNG', 'BMP', 'TIFF', 'WEBP'])
def test_lossless_rgb_is_exact(file_format):
    kwargs = {'lossless': True} if file_format == 'WEBP' else {}
    data = encode(Image.fromarray(picture()), file_format, **kwargs)
    decoded = images.decode_image(data, 'a')
    np.testing.assert_array_equal(decoded, picture())
    assert decoded.flags.writeable
    assert decoded.flags.c_contiguous


@pytest.mark.parametrize('mode', ['RGB', 'CMYK', 'YCbCr'])
def test_jpeg_colour_spaces(mode):
    data = encode(Image.fromarray(picture(64, 48)).convert(mode), 'JPEG', quality=95)
    error = np.abs(images.decode_image(data, 'a').astype(int) - picture(64, 48))
    assert error.mean() < 3


@pytest.mark.parametrize(
    'options', [{}, {'progressive': True}, {'subsampling': 0}, {'quality': 20}]
)
@pytest.mark.parametrize('shape', [(64, 48), (3, 2), (37, 91)])
def test_jpeg_pixels_are_those_of_pillow(options, shape):
    data = encode(Image.fromarray(picture(*shape)), 'JPEG', **options)
    with Image.open(io.BytesIO(data)) as image:
        np.testing.assert_array_equal(images.decode_image(data, 'a'), np.asarray(image))


def test_grey():
    grey = picture()[:, :, 0]
    decoded = images.decode_image(encode(Image.fromarray(grey), 'PNG'), 'a')
    np.testing.assert_array_equal(decoded, np.dstack([grey] * 3))


def test_one_bit():
    bits = picture()[:, :, 0] > 100
    decoded = images.decode_image(encode(Image.fromarray(bits), 'PNG'), 'a')
    np.testing.assert_array_equal(decoded, np.dstack([bits * np.uint8(255)] * 3))


@pytest.mark.parametrize('file_format', ['PNG', 'TIFF'])
def test_sixteen_bit_grey_is_scaled_not_clipped(file_format):
    values = np.linspace(0, 65535, 240).reshape(12, 20).astype(np.uint16)
    decoded = images.decode_image(encode(Image.fromarray(values), file_format), 'a')
    np.testing.assert_array_equal(decoded[:, :, 1], np.round(values / 65535 * 255))


def test_big_endian_sixteen_bit_grey():
    values = np.linspace(0, 65535, 240).reshape(12, 20).astype('>u2')
    image = Image.frombytes('I;16B', (20, 12), values.tobytes())
    decoded = images.decode_image(encode(image, 'TIFF'), 'a')
    np.testing.assert_array_equal(decoded[:, :, 1], np.round(values / 65535 * 255))


@pytest.mark.parametrize(
    ('top', 'dtype', 'white'),
    [(1, np.float32, 1), (200, np.float32, 255), (40000, np.int32, 65535), (200, np.int32, 255)],
)
def test_wide_grey_white_point(top, dtype, white):
    values = np.linspace(0, top, 240).reshape(12, 20).astype(dtype)
    decoded = images.decode_image(encode(Image.fromarray(values), 'TIFF'), 'a')
    expected = np.round(values.astype(np.float64) / white * 255)
    np.testing.assert_array_equal(decoded[:, :, 0], expected)


@pytest.mark.parametrize('bad', [np.nan, -3.0, np.inf])
def test_wide_grey_without_a_white_point_is_refused(bad):
    values = np.ones((12, 20), np.float32)
    values[3, 4] = bad
    with pytest.raises(ValueError, match=r'scan\.tif.*black and white'):
        images.decode_image(encode(Image.fromarray(values), 'TIFF'), 'scan.tif')


def over_white(colour, alpha):
    return colour * (alpha / 255) + 255 * (1 - alpha / 255)


def test_alpha_is_laid_over_white():
    alpha = picture()[:, :, 1]
    data = encode(Image.fromarray(np.dstack([picture(), alpha])), 'PNG')
    expected = over_white(picture(), alpha[:, :, None])
    np.testing.assert_allclose(images.decode_image(data, 'a'), expected, atol=1)


def test_grey_alpha_is_laid_over_white():
    grey, alpha = picture()[:, :, 0], picture()[:, :, 1]
    data = encode(Image.merge('LA', [Image.fromarray(grey), Image.fromarray(alpha)]), 'PNG')
    expected = np.dstack([over_white(grey, alpha)] * 3)
    np.testing.assert_allclose(images.decode_image(data, 'a'), expected, atol=1)


def palette_image():
    image = Image.fromarray(np.arange(240, dtype=np.uint8).reshape(12, 20) % 3)
    image = image.copy()
    image.putpalette([200, 10, 20, 30, 220, 40, 50, 60, 240])
    return image


PALETTE = np.array([[200, 10, 20], [30, 220, 40], [50, 60, 240]])


@pytest.mark.parametrize('file_format', ['PNG', 'GIF'])
def test_palette(file_format):
    decoded = images.decode_image(encode(palette_image(), file_format), 'a')
    np.testing.assert_array_equal(decoded, PALETTE[np.arange(240).reshape(12, 20) % 3])


@pytest.mark.parametrize(
    ('file_format', 'transparency', 'alpha'),
    [('PNG', 1, [255, 0, 255]), ('GIF', 1, [255, 0, 255]), ('PNG', b'\x80\xff\0', [128, 255, 0])],
)
def test_palette_transparency_is_laid_over_white(file_format, transparency, alpha):
    data = encode(palette_image(), file_format, transparency=transparency)
    colours = over_white(PALETTE, np.array(alpha)[:, None])
    expected = colours[np.arange(240).reshape(12, 20) % 3]
    np.testing.assert_allclose(images.decode_image(data, 'a'), expected, atol=1)


def test_transparent_colour_of_an_rgb_png():
    pixels = picture()
    pixels[2, 3] = (1, 2, 3)
    data = encode(Image.fromarray(pixels), 'PNG', transparency=(1, 2, 3))
    pixels[2, 3] = 255
    np.testing.assert_array_equal(images.decode_image(data, 'a'), pixels)


# EXIF 2.3: where the stored picture's row 0 and column 0 are to be seen.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[:, ::-1],
    7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
    8: lambda a: a.swapaxes(0, 1)[::-1],
}


@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize('file_format', ['JPEG', 'PNG', 'TIFF', 'WEBP'])
def test_exif_orientation(file_format, orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    kwargs = {'lossless': True} if file_format == 'WEBP' else {}
    data = encode(Image.fromarray(picture(40, 24)), file_format, exif=exif, **kwargs)
    decoded = images.decode_image(data, 'a')
    expected = UPRIGHT[orientation](picture(40, 24))
    assert decoded.shape == expected.shape
    assert images.image_size(data, 'a') == expected.shape[:2]
    assert np.abs(decoded.astype(int) - expected).mean() < 4


@pytest.mark.filterwarnings('ignore:Corrupt EXIF:UserWarning')
@pytest.mark.parametrize('exif', [b'Exif\0\0damaged', b'Exif\0\0II*\0\xff\xff\xff\xff'])
def test_damaged_exif_does_not_lose_the_picture(exif):
    data = encode(Image.fromarray(picture(40, 24)), 'JPEG', exif=exif)
    assert images.decode_image(data, 'a').shape == (24, 40, 3)


def test_first_of_several_pictures():
    """Phones write JPEGs with a second picture behind the first (MPO)."""
    frames = [Image.fromarray(picture(40, 24)), Image.fromarray(255 - picture(40, 24))]
    data = encode(frames[0], 'MPO', save_all=True, append_images=frames[1:])
    error = np.abs(images.decode_image(data, 'a').astype(int) - picture(40, 24))
    assert error.mean() < 4


@pytest.mark.parametrize('size', [(60_000, 60_000), (13_000, 13_000), (8_001, 8_000)])
def test_a_claimed_size_is_refused_before_decoding(size):
    """Covers the sizes at which Pillow itself would raise, warn and keep quiet."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        with pytest.raises(ValueError, match=rf'bomb\.png.* {size[0]} x {size[1]} .* 64 mega'):
            images.decode_image(png_claiming(*size), 'bomb.png')
        with pytest.raises(ValueError, match=rf'bomb\.png.* {size[0]} x {size[1]} .* 64 mega'):
            images.image_size(png_claiming(*size), 'bomb.png')
    assert not caught


@pytest.mark.parametrize('data', [b'', b'GIF', b'\x89PNG\r\n\x1a\n', b'<svg/>'])
def test_the_size_of_what_is_no_image(data):
    with pytest.raises(ValueError, match='what\\.png'):
        images.image_size(data, 'what.png')


def test_the_size_is_read_without_the_pixels():
    data = encode(Image.fromarray(picture(100, 60)), 'PNG')
    assert images.image_size(data[:60], 'a') == (60, 100)


def test_the_cap_can_be_moved():
    data = encode(Image.fromarray(picture(100, 100)), 'PNG')
    assert images.decode_image(data, 'a', max_megapixels=0.01).shape == (100, 100, 3)
    with pytest.raises(ValueError, match='max_megapixels'):
        images.decode_image(data, 'a', max_megapixels=0.0099)


@pytest.mark.parametrize('file_format', ['JPEG', 'PNG', 'BMP', 'TIFF', 'WEBP', 'GIF'])
@pytest.mark.parametrize('kept', [0.1, 0.5, 0.9])
def test_truncated(file_format, kept):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encode(Image.fromarray(noise), file_format)
    with pytest.raises(ValueError, match=r'cut\.img.*(truncated|corrupt)'):
        images.decode_image(data[: int(len(data) * kept)], 'cut.img')
    # A training asks before its first step, and does not wait for the picture's turn.
    with pytest.raises(ValueError, match=r'cut\.img.*(truncated|corrupt)'):
        images.check_image(data[: int(len(data) * kept)], 'cut.img')
    assert images.check_image(data, 'whole.img') == (64, 64)


@pytest.mark.filterwarnings('ignore::UserWarning:PIL')
@pytest.mark.parametrize('file_format', ['JPEG', 'PNG', 'BMP', 'TIFF', 'WEBP', 'GIF'])
def test_damage_gives_a_picture_or_a_value_error(file_format):
    """Whatever bytes are flipped: no other exception, and never another shape than h w 3."""
    rng = np.random.default_rng(1)
    clean = np.frombuffer(encode(Image.fromarray(picture(32, 32)), file_format), np.uint8)
    refused = []
    for _ in range(200):
        data = clean.copy()
        where = rng.integers(4, len(data), 5)
        data[where] = rng.integers(0, 256, 5)
        try:
            decoded = images.decode_image(data.tobytes(), 'a', max_megapixels=1.0)
        except ValueError as error:
            refused.append(str(error))
        else:
            assert decoded.ndim == 3
            assert decoded.shape[2] == 3
            assert decoded.dtype == np.uint8
    assert refused
    assert all(message.startswith('a: ') for message in refused)


@pytest.mark.parametrize('data', [b'%PDF-1.4 hello', b'\0' * 100, b'RIFF\x10\0\0\0WAVEfmt '])
def test_not_an_image(data):
    with pytest.raises(ValueError, match=r'notes\.txt: expected a JPEG, PNG.*starts with'):
        images.decode_image(data, 'notes.txt')


def test_other_image_formats_are_not_decoded():
    """Few formats, few decoders: an attacker's choice of Pillow plugins stays small."""
    with pytest.raises(ValueError, match='expected a JPEG'):
        images.decode_image(encode(Image.fromarray(picture()), 'PPM'), 'a')


def test_read_image(tmp_path):
    path = tmp_path / 'a.png'
    Image.fromarray(picture()).save(path)
    np.testing.assert_array_equal(images.read_image(path), picture())
    np.testing.assert_array_equal(images.read_image(str(path)), picture())
    with pytest.raises(ValueError, match=r'a\.png: the image claims 20 x 12'):
        images.read_image(path, max_megapixels=0.0001)


def test_unreadable_files(tmp_path):
    (tmp_path / 'empty.jpg').touch()
    with pytest.raises(ValueError, match=r'empty\.jpg: the image file is empty'):
        images.read_image(tmp_path / 'empty.jpg')
    with pytest.raises(ValueError, match=r'none\.jpg: no such image file'):
        images.read_image(tmp_path / 'none.jpg')
    with pytest.raises(ValueError, match='cannot be read'):
        images.read_image(tmp_path)
