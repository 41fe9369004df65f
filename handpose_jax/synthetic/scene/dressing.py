"""What a person's hands look like: skin, gloves, nails and cloth as materials."""

import functools
from typing import NamedTuple

import numpy as np

from handpose_jax import hand
from handpose_jax.synthetic.body import bundled, gltf_rig, skeleton
from handpose_jax.synthetic.render import mitsuba_renderer
from handpose_jax.synthetic.scene import backgrounds, materials
from handpose_jax.synthetic.scene.options import SceneOptions

Source = bundled.BundledBody | gltf_rig.GltfRig


class Dress(NamedTuple):
    """Materials of one person's hands."""

    skin: mitsuba_renderer.Material
    arm: mitsuba_renderer.Material
    nails: mitsuba_renderer.Material
    cloth: mitsuba_renderer.Material
    albedo: float
    gloved: bool


# How often, of all pictures.
_GLOVE_SHARE = 0.07


@functools.lru_cache(maxsize=16)
def _sides(source: Source) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Texture coordinates of the back and of the palm of a body, and of its fingertips."""
    posed = source.pose(skeleton.AVERAGE, skeleton.FLAT)
    middle = (posed.vertices[:, 1] > 0.02) & (posed.vertices[:, 1] < 0.085)
    facing = posed.normals[:, 2]
    tips = posed.keypoints[list(hand.FINGERTIPS)]
    distance = np.linalg.norm(posed.vertices[:, None] - tips, axis=2).min(axis=1)
    return (
        posed.uv[middle & (facing > 0.6)],
        posed.uv[middle & (facing < -0.6)],
        posed.uv[distance < 0.012],
    )


@functools.lru_cache(maxsize=16)
def _gloves(folder: str, source: Source) -> tuple[np.ndarray, ...]:
    """The gloves of a folder that cover the fingers.

    What is left bare has a skin of its own in the texture, not that of the arm.
    """
    back, _, tips = _sides(source)
    return tuple(
        glove
        for glove in materials.read_textures(folder).gloves
        if materials.is_alike(materials.at_uv(glove, back), materials.at_uv(glove, tips))
    )


def sample(options: SceneOptions, rng: np.random.Generator, source: Source) -> Dress:
    """Draws what one person wears, and their skin."""
    skins = materials.read_textures(options.textures).skins if options.textures else ()
    tone = materials.sample_tone(rng)
    gloved = bool(rng.random() < _GLOVE_SHARE)
    which, roughness, contrast = rng.random(), float(rng.uniform(0.35, 0.62)), rng.uniform(0.5, 1.1)
    bump = float(rng.uniform(0.2, 0.8))
    if not options.skin_variety:
        tone, gloved = materials.AVERAGE_TONE, False
        which, roughness, contrast, bump = 0, 0.5, 0.8, 0.5
    cloth = _cloth(rng)
    nail = materials.nail(rng, tone)
    plain = materials.skin_colour(tone)
    bare = mitsuba_renderer.Material(plain, roughness=roughness, specular=0.4)
    if gloved:
        gloves = _gloves(options.textures, source) if options.textures else ()
        if gloves and rng.random() < 0.6:
            colour = gloves[int(which * len(gloves))]
        else:
            colour = backgrounds.colour(rng)
        material = mitsuba_renderer.Material(
            colour, roughness=float(rng.uniform(0.3, 0.9)), sheen=float(rng.uniform(0, 0.6))
        )
        long = rng.random() < 0.3 and np.ndim(colour) == 1
        arm = material if long else bare
        return Dress(material, arm, material, cloth, float(np.mean(colour)), True)
    if skins:
        back, palm, _ = _sides(source)
        logs = skins[int(which * len(skins))]
        colour = materials.tinted(logs, tone, float(contrast), back=back, palm=palm)
        bumps = materials.relief(str(options.textures), bump)
    elif options.rigs:
        colour, bumps = plain, None
    else:
        colour, bumps = materials.painted(int(which * materials.VARIANTS), tone)
    material = mitsuba_renderer.Material(colour, roughness=roughness, specular=0.4, bumps=bumps)
    # A rig's forearm may be a continuation that has no texture of its own.
    arm = bare if options.rigs else material
    nails = mitsuba_renderer.Material(nail, roughness=0.3, specular=0.5)
    return Dress(material, arm, nails, cloth, float(np.mean(plain)), False)


def _cloth(rng: np.random.Generator) -> mitsuba_renderer.Material:
    plain = rng.random() < 0.55
    colour = backgrounds.colour(rng) if plain else np.minimum(backgrounds.pattern(rng, 128), 0.9)
    return mitsuba_renderer.Material(
        colour, roughness=0.9, specular=0.2, sheen=float(rng.uniform(0, 0.8))
    )
