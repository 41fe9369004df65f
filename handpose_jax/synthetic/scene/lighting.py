"""Lamps, and the light from everywhere that goes with a backdrop."""

import math

import numpy as np
from jaxtyping import Float

from handpose_jax.synthetic.render import mitsuba_renderer
from handpose_jax.synthetic.scene import backgrounds
from handpose_jax.synthetic.scene.options import SceneOptions


def sample(
    options: SceneOptions,
    rng: np.random.Generator,
    backdrop: Float[np.ndarray, 's s 3'],
    target: Float[np.ndarray, '3'],
) -> tuple[Float[np.ndarray, '3'], list[mitsuba_renderer.Light]]:
    """Light from everywhere, and lamps.

    A map of the surroundings would be truer; Mitsuba takes half as long again to sample it.
    """
    level = max(float(backdrop.mean()), 0.04)
    if options.lighting == 'flat':
        return np.full(3, level), []
    up = np.array([0.0, -1.0, 0.0]) + rng.normal(0, 0.35, 3)
    if rng.random() < 0.3:
        up = rng.normal(size=3)
    up /= np.linalg.norm(up)
    around = backgrounds.surroundings(backdrop) * np.float32(2 ** rng.normal(0, 0.4))
    count = int(rng.choice(4, p=[0.1, 0.45, 0.35, 0.1]))
    lamps = [_lamp(rng, level, up, target) for _ in range(count)]
    if any(isinstance(lamp, mitsuba_renderer.DirectionalLight) for lamp in lamps):
        return around.mean(axis=(0, 1)), lamps
    # The upper half of the surroundings is a sky or ceiling behind all lamps; it would hide a sun.
    direction = up + rng.normal(0, 0.3, 3)
    direction /= np.linalg.norm(direction)
    distance, side = 3.5, rng.uniform(2.0, 6.0)
    above = 0.6 * math.pi * around[: len(around) // 2].mean(axis=(0, 1)) * distance**2 / side**2
    sky = mitsuba_renderer.PanelLight(target + distance * direction, target, float(side), above)
    return 0.6 * around.mean(axis=(0, 1)), [*lamps, sky]


def _lamp(
    rng: np.random.Generator,
    level: float,
    up: Float[np.ndarray, '3'],
    target: Float[np.ndarray, '3'],
) -> mitsuba_renderer.Light:
    """A lamp, mostly above, that gives about as much light as the surroundings."""
    direction = rng.normal(size=3) + 1.1 * up - np.array([0.0, 0.0, 0.4])
    direction /= np.linalg.norm(direction)
    strength = math.pi * level * math.exp(rng.uniform(math.log(0.3), math.log(4.0)))
    warm = rng.normal(0, 0.18)
    tint = strength * np.exp([warm, 0.0, -1.2 * warm])
    distance = rng.uniform(0.8, 2.5)
    position = target + distance * direction
    kind = rng.random()
    if kind < 0.65:
        side = math.exp(rng.uniform(math.log(0.08), math.log(1.2)))
        return mitsuba_renderer.PanelLight(position, target, side, tint * distance**2 / side**2)
    if kind < 0.85:
        return mitsuba_renderer.DirectionalLight(-direction, tint)
    return mitsuba_renderer.PointLight(position, tint * distance**2)
