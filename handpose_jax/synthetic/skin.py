"""Colours and textures of hands: skin of every tone, nails, gloves.

Colours are linear RGB reflectances.
"""

import functools
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float

from handpose_jax.synthetic import backgrounds

Colour = Float[np.ndarray, '3']

# Light that comes back from skin has passed its pigments: -log(reflectance) = scatter + melanin * m
# + haemoglobin * h. Melanin takes most of the blue, haemoglobin green and blue. The vectors were set
# by eye so that m from 0.02 to 2.6 runs through the Fitzpatrick scale from I to VI.
_SCATTER = np.array([0.13, 0.27, 0.40])
_MELANIN = np.array([0.80, 1.12, 1.38])
_HAEMOGLOBIN = np.array([0.06, 0.45, 0.36])
_MELANIN_RANGE = (0.02, 2.6)

TEXTURE_SIZE = 512


class SkinTone(NamedTuple):
    """What colours a person's skin.

    Attributes:
        melanin: 0 (very light) to 2.6 (very dark).
        haemoglobin: blood under the skin, about 0.2 (pale) to 1.1 (flushed).
    """

    melanin: float
    haemoglobin: float


AVERAGE_TONE = SkinTone(0.45, 0.55)


def sample_tone(rng: np.random.Generator) -> SkinTone:
    """Draws a skin tone; light to dark are about equally likely as the eye sees them."""
    low, high = _MELANIN_RANGE
    return SkinTone(
        melanin=float(low + (high - low) * rng.beta(0.9, 1.25)),
        haemoglobin=float(np.clip(rng.normal(0.55, 0.2), 0.15, 1.1)),
    )


def skin_colour(tone: SkinTone) -> Colour:
    """The back of the hand's reflectance."""
    absorbed = _SCATTER + tone.melanin * _MELANIN + tone.haemoglobin * _HAEMOGLOBIN
    return np.exp(-absorbed).astype(np.float32)


class TextureSet(NamedTuple):
    """Textures of one rig, by what they are for; read-only arrays.

    Attributes:
        skins: log reflectance against the texture's own average, f32[h w 3] each.
        gloves: linear RGB, f32[h w 3] each.
        bumps: normal map of the skin, components coded as 0.5 + 0.5 x, or None.
        glove_bumps: of the gloves, or None.
        roughness: f32[h w], or None.
    """

    skins: tuple[np.ndarray, ...]
    gloves: tuple[np.ndarray, ...]
    bumps: np.ndarray | None
    glove_bumps: np.ndarray | None
    roughness: np.ndarray | None


NO_TEXTURES = TextureSet((), (), None, None, None)


@functools.lru_cache(maxsize=4)
def read_textures(folder: str) -> TextureSet:
    """Reads a folder of textures; what each is follows from its name.

    `*glove*` are gloves, `*normal*` normal maps (glTF's convention: green is up),
    `*roughness*` or `*orm*` maps with roughness in green; every other picture is skin.

    Args:
        folder: with PNG or JPEG files.

    Raises:
        ValueError: if there is no skin texture.
    """
    skins, gloves = [], []
    bumps = glove_bumps = roughness = None
    for path in backgrounds.photographs(folder):
        name = Path(path).stem.lower()
        image = cv2.imread(path, cv2.IMREAD_COLOR)
        if image is None:
            raise ValueError(f'{path}: not a picture that can be read')
        image = cv2.resize(image, (TEXTURE_SIZE, TEXTURE_SIZE), interpolation=cv2.INTER_AREA)
        image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
        if 'normal' in name:
            vectors = image.astype(np.float32) / 255
            if 'glove' in name:
                glove_bumps = _constant(vectors)
            else:
                bumps = _constant(vectors)
        elif 'roughness' in name or 'orm' in name.split('_'):
            roughness = _constant(image[..., 1].astype(np.float32) / 255)
        elif 'glove' in name:
            gloves.append(_constant(backgrounds.linear(image)))
        else:
            logs = np.log(np.maximum(backgrounds.linear(image), 0.003))
            skins.append(_constant(np.clip(logs - np.median(logs, axis=(0, 1)), -1.6, 1.6)))
    if not skins:
        raise ValueError(f'{folder}: no skin texture among {len(gloves)} gloves and maps')
    return TextureSet(tuple(skins), tuple(gloves), bumps, glove_bumps, roughness)


def _constant(values: np.ndarray) -> np.ndarray:
    """Marks an array as never changing, so that the renderer converts it once."""
    values = np.ascontiguousarray(values, np.float32)
    values.flags.writeable = False
    return values


def tinted(deviation: np.ndarray, tone: SkinTone, contrast: float) -> Float[np.ndarray, 'h w 3']:
    """A skin texture in a given tone.

    Args:
        deviation: one of TextureSet.skins.
        tone: of the skin.
        contrast: factor on the texture's own variation.
    """
    base = np.log(skin_colour(tone))
    return np.minimum(cv2.exp(np.float32(contrast) * deviation + base), 0.95)


def nail_colour(rng: np.random.Generator, tone: SkinTone) -> tuple[Colour, float]:
    """Colour and roughness of the nails: bare, or sometimes painted."""
    if rng.random() < 0.15:
        return backgrounds.colour(rng), 0.15
    bare = 0.55 * skin_colour(tone) + 0.45 * np.array([0.75, 0.52, 0.46], np.float32)
    return (bare * skin_colour(tone).mean() ** 0.35).astype(np.float32), 0.3
