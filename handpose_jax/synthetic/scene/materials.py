"""Colours and textures of hands: skin of every tone, nails, gloves.

Colours are linear RGB reflectances.
"""

import functools
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float

from handpose_jax.synthetic.body import skin
from handpose_jax.synthetic.scene import backgrounds

Colour = Float[np.ndarray, '3']

# Light that comes back from skin has passed its pigments: -log(reflectance) = scatter + melanin * m
# + haemoglobin * h. Melanin takes most of the blue, haemoglobin green and blue. The vectors were
# set by eye so that m from 0.02 to 2.3 runs through the Fitzpatrick scale from I to VI.
_SCATTER = np.array([0.13, 0.27, 0.40])
_MELANIN = np.array([0.80, 1.12, 1.38])
_HAEMOGLOBIN = np.array([0.06, 0.45, 0.36])
_MELANIN_RANGE = (0.02, 2.3)

TEXTURE_SIZE = 384


class SkinTone(NamedTuple):
    """What colours a person's skin.

    Attributes:
        melanin: 0 (very light) to 2.3 (very dark).
        haemoglobin: blood under the skin, about 0.2 (pale) to 1.1 (flushed).
    """

    melanin: float
    haemoglobin: float


AVERAGE_TONE = SkinTone(0.45, 0.55)


def sample_tone(rng: np.random.Generator) -> SkinTone:
    """Draws a skin tone; light to dark are about equally likely as the eye sees them."""
    low, high = _MELANIN_RANGE
    return SkinTone(
        melanin=float(low + (high - low) * rng.beta(0.85, 1.45)),
        haemoglobin=float(np.clip(rng.normal(0.55, 0.2), 0.15, 1.1)),
    )


def skin_colour(tone: SkinTone) -> Colour:
    """The back of the hand's reflectance."""
    absorbed = _SCATTER + tone.melanin * _MELANIN + tone.haemoglobin * _HAEMOGLOBIN
    return np.exp(-absorbed).astype(np.float32)


class TextureSet(NamedTuple):
    """Textures of one rig, by what they are for; read-only arrays.

    Attributes:
        skins: log reflectance, f32[h w 3] each.
        gloves: linear RGB, f32[h w 3] each.
        bumps: normal map of the skin, components coded as 0.5 + 0.5 x, or None.
    """

    skins: tuple[np.ndarray, ...]
    gloves: tuple[np.ndarray, ...]
    bumps: np.ndarray | None


@functools.lru_cache(maxsize=4)
def read_textures(folder: str) -> TextureSet:
    """Reads a folder of textures; what each is follows from its name.

    `*glove*` are gloves, `*normal*` is the skin's normal map (glTF's convention: green is up);
    normal maps of gloves and maps of roughness (`*roughness*`, `*orm*`) are not used. Every other
    picture is skin.

    Args:
        folder: with PNG or JPEG files.

    Raises:
        ValueError: if there is no skin texture.
    """
    skins, gloves = [], []
    bumps = None
    for path in backgrounds.photographs(folder):
        name = Path(path).stem.lower()
        is_glove, is_normal = 'glove' in name, 'normal' in name
        if (is_glove and is_normal) or 'roughness' in name or 'orm' in name.split('_'):
            continue
        size = (TEXTURE_SIZE, TEXTURE_SIZE)
        image = cv2.resize(backgrounds.read(path), size, interpolation=cv2.INTER_AREA)
        if is_normal:
            bumps = _constant(image.astype(np.float32) / 255)
        elif is_glove:
            gloves.append(_constant(backgrounds.linear(image)))
        else:
            skins.append(_constant(np.log(np.maximum(backgrounds.linear(image), 0.003))))
    if not skins:
        raise ValueError(f'{folder}: no skin texture among {len(gloves)} gloves and maps')
    return TextureSet(tuple(skins), tuple(gloves), bumps)


def _constant(values: np.ndarray) -> np.ndarray:
    """Marks an array as never changing, so that the renderer converts it once."""
    values = np.ascontiguousarray(values, np.float32)
    values.flags.writeable = False
    return values


def at_uv(texture: np.ndarray, uv: Float[np.ndarray, 'n 2']) -> Float[np.ndarray, 'n c']:
    """The texels at texture coordinates (v up), the nearest ones."""
    height, width = texture.shape[:2]
    x = np.clip(np.floor(uv[:, 0] % 1.0 * width), 0, width - 1).astype(int)
    y = np.clip(np.floor((1 - uv[:, 1]) % 1.0 * height), 0, height - 1).astype(int)
    return texture[y, x]


# Difference of log reflectance in any channel.
_ALIKE = 1.2


def is_alike(some: Float[np.ndarray, 'n 3'], others: Float[np.ndarray, 'm 3']) -> bool:
    """Whether two sets of linear RGB colours have about one hue and brightness, by medians."""
    logs = [np.log(np.maximum(np.median(colours, axis=0), 0.003)) for colours in (some, others)]
    return bool(np.abs(logs[0] - logs[1]).max() < _ALIKE)


def tinted(
    logs: np.ndarray,
    tone: SkinTone,
    contrast: float,
    *,
    back: Float[np.ndarray, 'n 2'],
    palm: Float[np.ndarray, 'm 2'],
) -> Float[np.ndarray, 'h w 3']:
    """A skin texture in a given tone.

    Args:
        logs: one of TextureSet.skins.
        tone: of the back of the hand.
        contrast: factor on the texture's own variation.
        back: texture coordinates of points on the back of the hand.
        palm: of points in the palm.
    """
    usual = np.median(at_uv(logs, back), axis=0)
    paler = float(np.median(at_uv(logs, palm) - usual))
    # Only dark skin has a palm that is much paler than the back.
    most = 0.15 + 0.4 * tone.melanin
    if abs(paler) * contrast > most:
        contrast = most / abs(paler)
    base = np.log(skin_colour(tone)) - np.float32(contrast) * usual
    return np.minimum(cv2.exp(np.float32(contrast) * logs + base), 0.9).astype(np.float32)


def painted(variant: int, tone: SkinTone) -> tuple[np.ndarray, np.ndarray]:
    """Textures of the bundled body: one of VARIANTS painted skins near a tone.

    Args:
        variant: 0 to VARIANTS - 1.
        tone: of the back of the hand.

    Returns:
        f32[t t 3] linear RGB in exactly that tone's shade, and a normal map as in TextureSet, whose
        relief differs from skin to skin.
    """
    logs, bumps, usual = _painted(variant, _step(tone))
    # What is left between the painted tone and the wanted one.
    return np.minimum(cv2.exp(logs + (np.log(skin_colour(tone)) - usual)), 0.9), bumps


VARIANTS = 4
_PAINTED_TONES = 5


def _step(tone: SkinTone) -> int:
    """Which of the painted tones is nearest."""
    return round(tone.melanin / _MELANIN_RANGE[1] * (_PAINTED_TONES - 1))


@functools.lru_cache(maxsize=VARIANTS * _PAINTED_TONES)
def _painted(variant: int, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Log reflectance and normal map of one painted skin, and its back's log reflectance."""
    rng = np.random.default_rng([variant, step])
    texture = skin.paint(rng, step / (_PAINTED_TONES - 1), size=TEXTURE_SIZE)
    logs = np.log(np.maximum(backgrounds.linear(texture.albedo), 0.003))
    # Texels that show no skin have the back's colour; so have most of those that do.
    usual = np.median(logs.reshape(-1, 3), axis=0)
    bumps = _weakened(texture.normals.astype(np.float32) / 255, float(rng.uniform(0.2, 0.8)))
    return _constant(logs), bumps, usual


def _weakened(bumps: np.ndarray, strength: float) -> np.ndarray:
    """A normal map with its slopes made less steep."""
    vectors = (2 * bumps - 1) * np.array([strength, strength, 1.0], np.float32)
    vectors /= np.maximum(np.sqrt((vectors**2).sum(axis=2, keepdims=True)), 1e-6)
    return _constant(0.5 + 0.5 * vectors)


_STRENGTHS = 4


@functools.lru_cache(maxsize=4 * _STRENGTHS)
def _relief(folder: str, step: int) -> np.ndarray | None:
    bumps = read_textures(folder).bumps
    return None if bumps is None else _weakened(bumps, step / _STRENGTHS)


def relief(folder: str, strength: float) -> np.ndarray | None:
    """The skin's normal map in a folder (see read_textures) with less steep slopes.

    `strength` is the factor on them, 0..1, rounded to one of a few, so that each is made once.
    """
    return _relief(folder, max(1, round(_STRENGTHS * strength)))


@functools.lru_cache(maxsize=64)
def _painted_nail(variant: int, step: int) -> np.ndarray:
    """Linear RGB texture of the bundled body's nails; some variants are polished."""
    rng = np.random.default_rng([variant, step])
    return _constant(backgrounds.linear(skin.paint_nail(rng, step / (_PAINTED_TONES - 1))))


def nail(rng: np.random.Generator, tone: SkinTone) -> np.ndarray:
    """A nail texture for a tone."""
    return _painted_nail(int(rng.integers(8)), _step(tone))
