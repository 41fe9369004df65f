"""Colours and fine relief of the bundled body's skin and nails: textures painted from a seed.

Every texel knows the point of the rest pose that it covers, so that creases, knuckles and
fingertips are painted where they are on the hand, and fit across the seam of the chart.
"""

import functools
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from handpose_jax.synthetic.body import bundled, flesh, skeleton

# Skin from the lightest to the darkest: of the back of the hand and of the palm, sRGB.
_BACK = np.array(
    [
        [246, 218, 203],
        [235, 195, 172],
        [216, 166, 136],
        [181, 126, 94],
        [128, 84, 61],
        [78, 51, 41],
    ],
    dtype=np.float64,
)
_PALM = np.array(
    [
        [246, 209, 194],
        [236, 190, 170],
        [223, 170, 148],
        [207, 153, 130],
        [183, 132, 112],
        [158, 112, 95],
    ],
    dtype=np.float64,
)
# What blood under the skin does to its colour, as a logarithm.
_BLOOD = np.array([0.05, -0.16, -0.13])
_VEIN = np.array([-0.14, -0.04, -0.01])

# Main lines of the palm: x and y of the rest pose, metres, and how deep each is.
_PALM_LINES: tuple[tuple[tuple[tuple[float, float], ...], float], ...] = (
    (((-0.030, 0.073), (-0.016, 0.068), (-0.005, 0.055), (-0.002, 0.036), (-0.007, 0.014)), 1.0),
    (((-0.030, 0.075), (-0.013, 0.070), (0.008, 0.058), (0.025, 0.045)), 0.85),
    (((0.042, 0.062), (0.026, 0.070), (0.009, 0.077), (-0.004, 0.089)), 1.0),
    (((0.002, 0.018), (0.004, 0.040), (0.003, 0.064)), 0.35),
    (((-0.025, 0.001), (-0.008, -0.002), (0.010, -0.002), (0.025, 0.001)), 0.7),
    (((-0.024, -0.008), (0.000, -0.011), (0.024, -0.008)), 0.5),
)
# Veins on the back of the hand.
_VEINS: tuple[tuple[tuple[float, float], ...], ...] = (
    ((-0.012, 0.084), (-0.010, 0.065), (-0.002, 0.048), (-0.004, 0.025), (-0.012, -0.010)),
    ((0.010, 0.083), (0.008, 0.066), (-0.002, 0.048)),
    ((0.030, 0.074), (0.022, 0.055), (0.010, 0.035), (-0.003, 0.022)),
    ((0.022, 0.055), (0.026, 0.030), (0.018, -0.020), (0.015, -0.080)),
    ((-0.012, -0.010), (-0.010, -0.060), (0.004, -0.110)),
)


class SkinTexture(NamedTuple):
    """Textures of the skin, laid out by bundled.chart; row 0 is v = 1.

    Attributes:
        albedo: u8[t t 3], sRGB.
        normals: u8[t t 3], a tangent-space normal map (right-handed, green up).
    """

    albedo: UInt8[np.ndarray, 't t 3']
    normals: UInt8[np.ndarray, 't t 3']


class _Texels(NamedTuple):
    """The texels that show skin, n of them, and what they show."""

    mask: Bool[np.ndarray, 't t']
    points: Float[np.ndarray, 'n 3']
    front: Float[np.ndarray, 'n']  # 1 on the skin of the palm's side, 0 on the back's
    finger: Float[np.ndarray, 'n']  # the finger that owns it, 0..4
    local: Float[np.ndarray, 'n 3']  # in that finger's frame, metres
    knuckles: Float[np.ndarray, 'n']  # nearness to the joints
    redness: Float[np.ndarray, 'n']  # how much blood shows


@functools.lru_cache(maxsize=2)
def _texels(size: int) -> _Texels:
    """Finds the point of the skin under every texel by sampling the mesh's triangles."""
    part = bundled.skin_part()
    count = max(4, size // 48)
    mixtures = [
        (a / count, b / count, 1 - (a + b) / count)
        for a in range(count + 1)
        for b in range(count + 1 - a)
    ]
    points = np.zeros((size, size, 3))
    mask = np.zeros((size, size), bool)
    corners, places = part.vertices[part.faces], part.uv[part.faces]
    for mixture in mixtures:
        weight = np.array(mixture)[:, None]
        uv = np.sum(weight * places, axis=1)
        column = np.clip((uv[:, 0] * size).astype(int), 0, size - 1)
        row = np.clip(((1 - uv[:, 1]) * size).astype(int), 0, size - 1)
        points[row, column] = np.sum(weight * corners, axis=1)
        mask[row, column] = True
    # A rim around the charts, for the texels that a renderer mixes in at their edges.
    for _ in range(3):
        grown = cv2.dilate(mask.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        around = cv2.blur(points, (3, 3)), cv2.blur(mask.astype(np.float64), (3, 3))
        new = grown & ~mask
        points[new] = around[0][new] / around[1][new][:, None]
        mask = grown
    found = points[mask]
    share = bundled.finger_shares(found)
    finger = np.argmax(share, axis=1)
    local, front = np.empty_like(found), np.zeros(len(found))
    for index in range(5):
        there, _ = flesh.finger_coordinates(index, found)
        local[finger == index] = there[finger == index]
        # The back ends at the middle of a finger's side; so does that of the hand.
        alone = np.clip(bundled.finger_progress(index, found) - 0.2, 0.0, 1.0)
        height = alone * there[:, 2] + (1 - alone) * (found[:, 2] + 5.5 * found[:, 0] ** 2)
        front += share[:, index] / (1 + np.exp((height + 0.0015) / 0.0011))
    # Hairless skin ends at the wrist.
    front *= np.clip((found[:, 1] + 0.065) / 0.07, 0.0, 1.0)
    knuckles = _knuckles(found, finger, local)
    redness = _redness(found, front, finger, local, knuckles)
    values = (found, front, finger, local, knuckles, redness)
    return _Texels(mask, *(value.astype(np.float32) for value in values))


def paint(rng: np.random.Generator, tone: float, *, size: int = 512) -> SkinTexture:
    """Paints the skin of one person.

    Args:
        rng: decides all that differs between two hands of one tone.
        tone: 0 (lightest) to 1 (darkest).
        size: side of the textures, texels.

    Returns:
        Colour and relief.

    Raises:
        ValueError: if the tone is not 0 to 1.
    """
    if not 0 <= tone <= 1:
        raise ValueError(f'tone must be 0 (lightest) to 1 (darkest), got {tone}')
    texels = _texels(size)
    points = texels.points
    grain = cv2.GaussianBlur(rng.normal(0, 1, (size, size)), (0, 0), size / 900)
    fine = (grain / grain.std())[texels.mask]
    slow = _noise(rng, points, 0.022)
    blotches = 0.6 * _noise(rng, points, 0.009) + 0.4 * _noise(rng, points, 0.004)
    creases, wrinkles = _creases(rng, texels, size)
    veins = _drawn(rng, [(vein, 1.0) for vein in _VEINS], size, palm=False, width=0.0026)
    veins = veins[texels.mask] * (1 - texels.front) * np.clip(0.5 + slow, 0, 1)
    back, palm = _mixed(_BACK, tone), _mixed(_PALM, tone)
    colour = np.log(back) + texels.front[:, None] * (np.log(palm) - np.log(back))
    warmth = rng.normal(0.0, 0.025)
    colour += warmth * np.array([0.3, 0.0, -1.0])
    blood = rng.uniform(0.3, 1.0) * (1 - 0.55 * tone)
    colour += (blood * (texels.redness + 0.12 * slow + 0.16 * blotches))[:, None] * _BLOOD
    # Pigment gathers over the knuckles and, in dark skin, in the lines of the palm.
    pigment = (0.05 + 0.20 * tone) * texels.knuckles * (1 - texels.front)
    shade = pigment + 0.022 * slow + 0.022 * blotches + 0.020 * fine
    crease_depth = rng.uniform(0.6, 1.2)
    shade += crease_depth * (0.15 + 0.20 * tone) * creases * texels.front
    shade += crease_depth * (0.10 + 0.10 * tone) * wrinkles
    colour -= shade[:, None]
    colour += (creases * texels.front * (1 - tone))[:, None] * 0.5 * _BLOOD
    colour += (rng.uniform(0.0, 0.9) * (1 - 0.6 * tone) * veins)[:, None] * _VEIN
    albedo = np.empty((size, size, 3), np.uint8)
    albedo[:] = np.clip(back, 0, 255).astype(np.uint8)
    albedo[texels.mask] = np.clip(np.exp(colour) + 0.5, 0, 255).astype(np.uint8)
    height = np.zeros((size, size), np.float32)
    relief = -0.00030 * crease_depth * creases - 0.00020 * crease_depth * wrinkles
    relief += 0.00002 * fine + 0.00012 * rng.uniform(0, 1) * veins
    height[texels.mask] = relief
    return SkinTexture(albedo, _normal_map(cv2.GaussianBlur(height, (0, 0), size / 1024)))


def _mixed(palette: Float[np.ndarray, 'c 3'], tone: float) -> Float[np.ndarray, '3']:
    place = tone * (len(palette) - 1)
    low = min(int(place), len(palette) - 2)
    return palette[low] + (place - low) * (palette[low + 1] - palette[low])


def paint_nail(
    rng: np.random.Generator, tone: float, *, size: int = 64
) -> UInt8[np.ndarray, 's s 3']:
    """Paints a nail on skin of a tone, 0 (lightest) to 1: bed, half-moon, free edge, or polish.

    Returns:
        sRGB; columns run across the nail, and row 0 is its free edge.
    """
    v, u = np.meshgrid(np.linspace(1, 0, size), np.linspace(-1, 1, size), indexing='ij')
    if rng.uniform() < 0.15:
        polish = rng.uniform([120, 10, 20], [255, 200, 210])
        flat = np.broadcast_to(polish, (size, size, 3)) * (1 + 0.02 * u[..., None])
        return np.clip(flat, 0, 255).astype(np.uint8)
    bed = _mixed(_PALM, 0.8 * tone) * [1.02, 0.94, 0.93] + rng.normal(0, 4, 3)
    moon = bed + (np.array([245, 225, 215]) * (1 - 0.2 * tone) - bed) * 0.7
    edge = np.array([240, 232, 220]) * (1 - 0.12 * tone)
    half_moon = 1 / (1 + np.exp((v - 0.20 + 0.30 * u * u) * 30)) * rng.uniform(0.2, 1.0)
    free = 1 / (1 + np.exp(-(v - rng.uniform(0.86, 1.02) - 0.05 * u * u) * 45))
    colour = bed + half_moon[..., None] * (moon - bed)
    colour = colour + free[..., None] * (edge - colour)
    ridges = rng.normal(0, 1.2, size)[None, :, None]
    return np.clip(colour * (1 - 0.06 * u[..., None] ** 4) + ridges, 0, 255).astype(np.uint8)


def _noise(
    rng: np.random.Generator, points: Float[np.ndarray, 'n 3'], cell: float
) -> Float[np.ndarray, 'n']:
    """Smooth noise of about unit strength in space, metres a cell."""
    at = (points - points.min(axis=0)) / cell
    shape = np.ceil(at.max(axis=0)).astype(int) + 2
    lattice = rng.normal(0, 1, shape).astype(np.float32).ravel()
    # By axis: whole columns are faster than rows.
    at = np.ascontiguousarray(at.T, np.float32)
    low = at.astype(np.int32)
    t = at - low
    t = (t * t * (3 - 2 * t)).astype(np.float32)
    first = (low[0] * shape[1] + low[1]) * shape[2] + low[2]
    stride = (shape[1] * shape[2], shape[2], 1)
    sides = [
        lattice[first + a * stride[0] + b * stride[1]] * (1 - t[2])
        + lattice[first + a * stride[0] + b * stride[1] + 1] * t[2]
        for a in (0, 1)
        for b in (0, 1)
    ]
    ends = [near * (1 - t[1]) + far * t[1] for near, far in (sides[:2], sides[2:])]
    # Mixing eight values evens them out.
    return (1.5 * (ends[0] * (1 - t[0]) + ends[1] * t[0])).astype(np.float32)


def _redness(
    points: Float[np.ndarray, 'n 3'],
    front: Float[np.ndarray, 'n'],
    finger: Int[np.ndarray, 'n'],
    local: Float[np.ndarray, 'n 3'],
    knuckles: Float[np.ndarray, 'n'],
) -> Float[np.ndarray, 'n']:
    """More blood shows in fingertips, knuckles and the balls of the palm."""
    ends = skeleton.BONE_LENGTHS.sum(axis=1)[finger]
    tips = np.exp(-(((ends - local[:, 1]) / 0.012) ** 2))
    x, y = points[:, 0], points[:, 1]
    balls = np.exp(-(((x + 0.024) / 0.016) ** 2) - ((y - 0.040) / 0.022) ** 2)
    balls += np.exp(-(((x - 0.026) / 0.014) ** 2) - ((y - 0.032) / 0.024) ** 2)
    balls += np.exp(-(((y - 0.088) / 0.012) ** 2)) * (np.abs(x - 0.006) < 0.036)
    return 0.9 * tips + 0.6 * knuckles * (1 - front) + 0.8 * balls * front


def _knuckles(
    points: Float[np.ndarray, 'n 3'], finger: Int[np.ndarray, 'n'], local: Float[np.ndarray, 'n 3']
) -> Float[np.ndarray, 'n']:
    lengths = np.cumsum(skeleton.BONE_LENGTHS, axis=1)[finger]
    near = np.zeros(len(points))
    for joint, reach in ((0, 0.0055), (1, 0.0045)):
        near += np.exp(-(((local[:, 1] - lengths[:, joint]) / reach) ** 2))
    base = np.hypot(local[:, 0], local[:, 1])
    return near + 0.7 * np.exp(-((base / 0.008) ** 2)) * (finger > 0)


def _line(distance: Float[np.ndarray, 'n'], width: float) -> Float[np.ndarray, 'n']:
    return np.exp(-((distance / width) ** 2))


def _creases(
    rng: np.random.Generator, texels: _Texels, size: int
) -> tuple[Float[np.ndarray, 'n'], Float[np.ndarray, 'n']]:
    """Lines of the palm's side, 0..1, and wrinkles over the joints of the fingers' backs."""
    drawn = _drawn(rng, list(_PALM_LINES), size, palm=True, width=0.0009)[texels.mask]
    # Faint lines run everywhere in the palm.
    x, y = texels.points[:, 0], texels.points[:, 1]
    in_palm = np.clip((0.100 - y) / 0.01, 0, 1) * np.clip((y - 0.005) / 0.01, 0, 1)
    web = np.abs(_noise(rng, texels.points, 0.006)) * in_palm * (texels.local[:, 1] < 0.02)
    creases = np.maximum(drawn, 0.30 * np.clip(1 - web / 0.12, 0, 1) * (web > 0) * in_palm)
    wrinkles = np.zeros(len(x))
    jitter = 0.0006 * _noise(rng, texels.points, 0.007)
    for finger in range(5):
        mine = texels.finger == finger
        half = flesh.HALF_BREADTHS[finger]
        across, along = texels.local[mine, 0], texels.local[mine, 1] + jitter[mine]
        first, second, _ = np.cumsum(skeleton.BONE_LENGTHS[finger])
        if finger == skeleton.THUMB:
            folds = [(first - 0.001, 0.8), (first + 0.003, 0.5), (second - 0.001, 1.0)]
        else:
            folds = [
                (0.47 * first, 0.9),
                (0.47 * first + 0.0022, 0.4),
                (first - 0.0020, 1.0),
                (first + 0.0012, 0.8),
                (second - 0.0015, 1.0),
            ]
        bow = 6.0 * across * across
        value = np.zeros(len(across))
        for place, depth in folds:
            value = np.maximum(value, depth * _line(along - place + bow, 0.00075))
        creases[mine] = np.maximum(creases[mine], value)
        fade = np.clip(1.25 - np.abs(across) / (0.8 * half), 0, 1)
        value = np.zeros(len(across))
        for joint, spread in ((first, 0.0052), (second, 0.0026)):
            for offset in np.linspace(-1, 1, 6 if joint == first else 4):
                place = joint + spread * offset + np.sign(offset) * 9.0 * across * across
                strength = rng.uniform(0.5, 1.0) * (1 - 0.45 * abs(offset))
                value = np.maximum(value, strength * _line(along - place, 0.00055))
        if finger == skeleton.THUMB:
            value *= along > first + 0.012
        wrinkles[mine] = value * fade
    return creases * texels.front, wrinkles * (1 - texels.front)


def _drawn(
    rng: np.random.Generator,
    lines: list[tuple[tuple[tuple[float, float], ...], float]],
    size: int,
    *,
    palm: bool,
    width: float,
) -> Float[np.ndarray, 's s']:
    """Draws curves through points of the rest pose into the chart, each a little different."""
    canvas = np.zeros((size, size), np.float32)
    texel = 2 * (bundled.CHART_RIGHT - bundled.CHART_LEFT) / size
    for points, strength in lines:
        knots = np.array(points) + rng.normal(0, 0.0012, (len(points), 2))
        lengths = np.r_[0.0, np.cumsum(np.linalg.norm(np.diff(knots, axis=0), axis=1))]
        at = np.linspace(0, lengths[-1], 40)
        curve = flesh.smooth_profile(np.column_stack([lengths, knots]), at)
        curve += 0.0003 * np.cumsum(rng.normal(0, 1, curve.shape), axis=0) / 3
        curve = np.column_stack([curve, np.zeros(len(curve))])
        uv = bundled.chart(curve, palm=palm)
        pixels = np.column_stack([uv[:, 0], 1 - uv[:, 1]]) * size - 0.5
        layer = np.zeros_like(canvas)
        thick = max(1, round(width / texel))
        cv2.polylines(
            layer, [np.round(pixels * 16).astype(np.int32)], False, 1.0, thick, cv2.LINE_AA, 4
        )
        # A line fades towards its ends.
        np.maximum(canvas, rng.uniform(0.7, 1.0) * strength * layer, out=canvas)
    return cv2.GaussianBlur(canvas, (0, 0), max(0.5, 0.35 * width / texel)).astype(np.float64)


def _normal_map(height: Float[np.ndarray, 't t']) -> UInt8[np.ndarray, 't t 3']:
    size = len(height)
    v = 1 - (np.arange(size) + 0.5) / size
    y = bundled.unchart(np.column_stack([np.full(size, 0.25), v]))[:, 1]
    texel = 2 * (bundled.CHART_RIGHT - bundled.CHART_LEFT) / size
    along = np.gradient(height, y, axis=0)
    across = np.gradient(height, texel, axis=1)
    normal = np.stack([-across, -along, np.ones_like(height)], axis=-1)
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
    return np.round(127.5 * (normal + 1)).astype(np.uint8)
