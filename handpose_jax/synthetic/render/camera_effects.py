"""What a camera does to light: blur, noise, colour and compression (NumPy and OpenCV).

A picture enters as linear RGB and leaves as the bytes of an ordinary photograph.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float, UInt8

Linear = Float[np.ndarray, 'h w 3']


@dataclass(frozen=True)
class CameraEffects:
    """Settings of one photograph; the defaults change nothing but the encoding.

    Attributes:
        white_balance: factors on red, green and blue.
        vignetting: darkening of the corners, 0..1.
        motion: (x, y) of the movement while the shutter is open, pixels.
        defocus: radius of the circle of confusion, pixels.
        shot_noise: standard deviation of a white pixel, from the light itself.
        read_noise: standard deviation in the dark, from the sensor.
        grain: correlation length of the noise, pixels; 0 for independent pixels.
        contrast: strength of an S-shaped tone curve, 0 for none.
        saturation: factor on the distance from grey.
        sharpening: strength of an unsharp mask.
        jpeg_quality: 1..100, or None for no compression.
    """

    white_balance: tuple[float, float, float] = (1.0, 1.0, 1.0)
    vignetting: float = 0.0
    motion: tuple[float, float] = (0.0, 0.0)
    defocus: float = 0.0
    shot_noise: float = 0.0
    read_noise: float = 0.0
    grain: float = 0.0
    contrast: float = 0.0
    saturation: float = 1.0
    sharpening: float = 0.0
    jpeg_quality: int | None = None


def sample(rng: np.random.Generator, size: int) -> CameraEffects:
    """Draws what an ordinary camera or phone might do to a picture of `size` pixels a side."""
    scale = size / 224
    low_light = rng.random() < 0.15
    noise = float(10 ** rng.uniform(-2.6, -1.7)) * (3.0 if low_light else 1.0)
    shake = float(rng.exponential(2.5)) * scale * (2.0 if low_light else 1.0)
    turn = rng.uniform(0, math.pi)
    moves = rng.random() < (0.5 if low_light else 0.2)
    warm = rng.normal(0, 0.10)
    tint = rng.normal(0, 0.035)
    return CameraEffects(
        white_balance=(math.exp(warm), math.exp(-tint), math.exp(-warm)),
        vignetting=float(rng.uniform(0, 0.4)) if rng.random() < 0.4 else 0.0,
        motion=(shake * math.cos(turn), shake * math.sin(turn)) if moves else (0.0, 0.0),
        defocus=float(rng.exponential(0.9)) * scale if rng.random() < 0.35 else 0.0,
        shot_noise=noise,
        read_noise=0.35 * noise * float(rng.uniform(0.2, 1.0)),
        grain=float(rng.uniform(0.3, 0.9)) if rng.random() < 0.5 else 0.0,
        contrast=float(rng.uniform(0, 0.8)),
        saturation=float(np.clip(rng.normal(1.0, 0.16), 0.3, 1.5)) * float(rng.random() > 0.02),
        sharpening=float(rng.uniform(0.1, 0.8)) if rng.random() < 0.4 else 0.0,
        jpeg_quality=int(rng.integers(35, 97)) if rng.random() < 0.85 else None,
    )


def develop(
    picture: Linear, effects: CameraEffects, rng: np.random.Generator, *, size: int | None = None
) -> UInt8[np.ndarray, 'H W 3']:
    """Takes the photograph.

    Args:
        picture: f32[h w 3], linear RGB; 1 is white.
        effects: the camera's settings.
        rng: decides the noise.
        size: enlarges the finished photograph to a square of this side, pixels, as a crop of a
            larger one is enlarged.

    Returns:
        u8, sRGB. Nothing in it has moved: blur is symmetrical about each point.
    """
    height, width = picture.shape[:2]
    light = picture * np.array(effects.white_balance, np.float32)
    # Highlights roll off before they are blurred, or one lamp would flood the picture.
    light = np.minimum(light, 4.0)
    if effects.defocus > 0.3:
        light = cv2.filter2D(light, -1, _disc(effects.defocus), borderType=cv2.BORDER_REFLECT)
    if math.hypot(*effects.motion) > 0.5:
        light = cv2.filter2D(light, -1, _streak(effects.motion), borderType=cv2.BORDER_REFLECT)
    if effects.vignetting:
        light = light * _vignette(height, width, effects.vignetting)
    if effects.shot_noise or effects.read_noise:
        light = light + _noise(light, effects, rng)
    encoded = _encode(np.clip(light, 0, 1))
    if effects.contrast:
        curved = encoded * encoded * (3 - 2 * encoded)
        encoded = encoded + effects.contrast * (curved - encoded)
    if effects.saturation != 1.0:
        # Source: Rec. 709 luma weights.
        grey = encoded @ np.array([0.2126, 0.7152, 0.0722], np.float32)
        encoded = grey[..., None] + effects.saturation * (encoded - grey[..., None])
    if effects.sharpening:
        blurred = cv2.GaussianBlur(encoded, (0, 0), 1.2)
        encoded = encoded + effects.sharpening * (encoded - blurred)
    image = np.clip(np.rint(encoded * 255), 0, 255).astype(np.uint8)
    if effects.jpeg_quality is not None:
        image = _jpeg(image, effects.jpeg_quality)
    if size is not None and (size, size) != (width, height):
        image = cv2.resize(image, (size, size), interpolation=cv2.INTER_CUBIC)
    return image


def _encode(light: Linear) -> Linear:
    """Source: IEC 61966-2-1 (sRGB), the transfer function."""
    curve = 1.055 * cv2.pow(np.maximum(light, 0.0031308), 1 / 2.4) - 0.055
    return np.where(light <= 0.0031308, 12.92 * light, curve).astype(np.float32)


def _disc(radius: float) -> Float[np.ndarray, 'k k']:
    """An even disc with a soft rim, of sum 1."""
    half = math.ceil(radius + 0.5)
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    kernel = np.clip(radius + 0.5 - np.hypot(x, y), 0, 1)
    return (kernel / kernel.sum()).astype(np.float32)


def _streak(motion: tuple[float, float]) -> Float[np.ndarray, 'k k']:
    """A line through the middle, of sum 1, symmetrical."""
    half = math.ceil(max(abs(motion[0]), abs(motion[1])) / 2 + 1)
    kernel = np.zeros((2 * half + 1, 2 * half + 1), np.float32)
    steps = 8 * half + 1
    for t in np.linspace(-0.5, 0.5, steps):
        x, y = half + t * motion[0], half + t * motion[1]
        x0, y0 = math.floor(x), math.floor(y)
        for dx, dy in ((0, 0), (1, 0), (0, 1), (1, 1)):
            weight = (1 - abs(x - x0 - dx)) * (1 - abs(y - y0 - dy))
            if weight > 0:
                kernel[y0 + dy, x0 + dx] += weight
    return kernel / kernel.sum()


def _vignette(height: int, width: int, strength: float) -> Float[np.ndarray, 'h w 1']:
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    return (1 - strength * (x * x + y * y) / 2)[..., None]


def _noise(light: Linear, effects: CameraEffects, rng: np.random.Generator) -> Linear:
    grains = rng.standard_normal(light.shape, dtype=np.float32)
    if effects.grain:
        soft = cv2.GaussianBlur(grains, (0, 0), effects.grain)
        grains = (soft / max(float(soft.std()), 1e-6)).astype(np.float32)
    variance = effects.shot_noise**2 * np.maximum(light, 0) + effects.read_noise**2
    return grains * np.sqrt(variance)


def _jpeg(image: UInt8[np.ndarray, 'h w 3'], quality: int) -> UInt8[np.ndarray, 'h w 3']:
    encoded = cv2.imencode(
        '.jpg', cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality]
    )[1]
    decoded = cv2.imdecode(encoded, cv2.IMREAD_COLOR)
    if decoded is None:
        raise RuntimeError('OpenCV cannot read back the JPEG that it wrote; is libjpeg broken?')
    return cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB).astype(np.uint8)
