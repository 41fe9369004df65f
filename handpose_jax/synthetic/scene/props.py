"""Things at a hand: held in it, in front of it, worn on it; in the hand frame, metres."""

import itertools
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from handpose_jax import hand
from handpose_jax.synthetic.body import skeleton, types
from handpose_jax.synthetic.scene import shapes

# Half the thickness of fingers and palm around their bones, metres, of an average hand.
_FINGER_FLESH, _PALM_FLESH = 0.0085, 0.014


# Points on every bone that a thing must not meet.
_POINTS = 5


def held(
    rng: np.random.Generator, keypoints: Float[np.ndarray, '21 3'], scale: float
) -> shapes.Shape | None:
    """Something in the grasp that runs through no finger: a bar, bottle, pen, ball or slab.

    Args:
        rng: decides.
        keypoints: of the posed right hand, hand frame.
        scale: size x thickness of the hand's flesh.

    Returns:
        The thing, or None where the hand holds no room.
    """
    steps = np.linspace(0, 1, _POINTS)[:, None]
    points = np.concatenate(
        [keypoints[a] * (1 - steps) + keypoints[b] * steps for a, b in hand.BONES]
    )
    flesh = np.full(len(points), _FINGER_FLESH)
    flesh[np.isin(np.repeat([b for _, b in hand.BONES], _POINTS), [5, 9, 13, 17])] = _PALM_FLESH
    flesh *= scale
    knuckles = keypoints[[5, 9, 13, 17]].mean(axis=0)
    hold = _held_bar if rng.random() < 0.7 else _held_ball
    return hold(rng, keypoints, points, flesh, knuckles)


def _held_bar(
    rng: np.random.Generator,
    keypoints: Float[np.ndarray, '21 3'],
    points: Float[np.ndarray, 'p 3'],
    flesh: Float[np.ndarray, 'p'],
    knuckles: Float[np.ndarray, '3'],
) -> shapes.Shape | None:
    """Along the knuckles, where the line through the grasp has most room around it."""
    axis = keypoints[17] - keypoints[5] + rng.normal(0, 0.012, 3)
    axis /= np.linalg.norm(axis)
    ahead = np.array([0.0, 1.0, 0.0])
    ahead -= (ahead @ axis) * axis
    ahead /= np.linalg.norm(ahead)
    down = np.cross(axis, ahead)
    down *= -np.sign(down[2])
    depths, reaches = np.linspace(0.018, 0.07, 12), np.linspace(-0.02, 0.06, 9)
    best, room = None, 0.0
    for depth, reach in itertools.product(depths, reaches):
        centre = knuckles + depth * down + reach * ahead
        off = points - centre
        off = off - (off @ axis)[:, None] * axis
        clear = float((np.sqrt((off**2).sum(axis=1)) - flesh).min())
        # Without a bone on its far side, a bar would float before the palm.
        if clear > room and ((points - centre) @ down > 0.008).any():
            best, room = centre, clear
    if best is None or room < 0.004:
        return None
    radius = min(room, float(rng.uniform(0.02, 0.045)))
    length = float(rng.uniform(0.10, 0.28))
    if radius < 0.008:
        bar = shapes.cylinder(radius, length)
    elif rng.random() < 0.35:
        bar = shapes.bottle(radius, max(length, 5 * radius))
    elif rng.random() < 0.3:
        half = np.sqrt(2.0) * radius
        bar = shapes.box(np.array([half, length, half * rng.uniform(0.3, 1.0)]))
    else:
        bar = shapes.cylinder(radius, length)
    sign = rng.choice([-1.0, 1.0])
    frame = np.column_stack([ahead, sign * axis, np.cross(ahead, sign * axis)])
    return shapes.moved(bar, frame, best + axis * rng.uniform(-0.25, 0.25) * length)


def _held_ball(
    rng: np.random.Generator,
    keypoints: Float[np.ndarray, '21 3'],
    points: Float[np.ndarray, 'p 3'],
    flesh: Float[np.ndarray, 'p'],
    knuckles: Float[np.ndarray, '3'],
) -> shapes.Shape | None:
    tips = keypoints[list(hand.FINGERTIPS)]
    candidates = []
    for share in np.linspace(0.2, 0.8, 7):
        middle = share * knuckles + (1 - share) * tips.mean(axis=0)
        candidates += [middle + np.array([0, 0, -d]) for d in np.linspace(0.0, 0.04, 5)]
    centres = np.array(candidates)
    distances = np.linalg.norm(points[None] - centres[:, None], axis=2) - flesh
    rooms = distances.min(axis=1)
    # It is held where the thumb and another finger are about to touch it.
    finger = np.repeat([(b - 1) // 4 for _, b in hand.BONES], _POINTS)
    touch = [distances[:, finger == f].min(axis=1) < rooms + 0.008 for f in range(5)]
    rooms = np.where(touch[0] & (np.sum(touch, axis=0) >= 2), rooms, 0.0)
    best = int(np.argmax(np.where(rooms < 0.045, rooms, 0.0)))
    if rooms[best] < 0.012:
        return None
    radius = float(rooms[best])
    if rng.random() < 0.3:
        side = 2 * radius / np.sqrt(3.0)
        turn = skeleton.rotation(rng.normal(size=3), rng.uniform(0, np.pi))
        thing = shapes.box(side * rng.uniform(0.7, 1.1, 3))
        return shapes.moved(thing, turn, centres[best])
    return shapes.moved(shapes.ball(radius), np.eye(3), centres[best])


def finger_ring(rng: np.random.Generator, body: types.PosedBody) -> shapes.Shape | None:
    """A ring around the first bone of one of the four fingers."""
    finger = rng.choice(['index', 'middle', 'ring', 'ring', 'little'])
    start, end = (body.keypoints[k] for k in hand.FINGERS[str(finger)][:2])
    axis = (end - start) / np.linalg.norm(end - start)
    centre = start + float(rng.uniform(0.4, 0.62)) * (end - start)
    off = body.vertices - centre
    along = off @ axis
    off = off - along[:, None] * axis
    distance = np.sqrt((off**2).sum(axis=1))
    near = (np.abs(along) < 0.006) & (distance < 0.016)
    if near.sum() < 6:
        return None
    centre = centre + off[near].mean(axis=0)
    radius = float(np.quantile(np.linalg.norm(off[near] - off[near].mean(axis=0), axis=1), 0.6))
    tube = float(rng.uniform(0.0007, 0.0016))
    side = np.cross(axis, [0.3, 0.1, 1.0])
    side /= np.linalg.norm(side)
    frame = np.column_stack([side, axis, np.cross(side, axis)])
    return shapes.moved(shapes.ring(radius, tube, flat=float(rng.uniform(1, 3))), frame, centre)


class Arm(NamedTuple):
    """Where the forearm lies: a frame with +y from the elbow to the wrist, and its vertices.

    Attributes:
        frame: f64[3 3], columns are the forearm's axes in the hand frame.
        vertices: f64[n 3], its skin, in its own frame (origin at the wrist).
    """

    frame: Float[np.ndarray, '3 3']
    vertices: Float[np.ndarray, 'n 3']


def find_arm(body: types.PosedBody, pose: types.HandPose) -> Arm:
    """Finds the forearm of a posed body."""
    frame = skeleton.forward_kinematics(skeleton.AVERAGE, pose).frames[skeleton.WRIST_BONE]
    # Not the sleeve: the same arm is found with one and without.
    bare = np.ones(len(body.vertices), bool)
    bare[body.faces[body.regions == types.CLOTH]] = False
    vertices = body.vertices[bare] @ frame
    behind = (vertices[:, 1] < -0.005) & (np.hypot(vertices[:, 0], vertices[:, 2]) < 0.09)
    return Arm(frame, vertices[behind])


def sleeve(rng: np.random.Generator, arm: Arm) -> shapes.Shape | None:
    """A sleeve with folds that ends somewhere behind the wrist."""
    start = -float(rng.uniform(0.012, 0.13))
    if len(arm.vertices) < 24 or arm.vertices[:, 1].min() > start - 0.05:
        return None
    rows = 26
    y = start - (np.linspace(0, 1, rows) ** 1.3) * 0.5
    width, depth, middle = _cross_sections(arm, y)
    loose = 1.03 + 0.002 / width.mean() + rng.exponential(0.10)
    flare = rng.uniform(-0.05, 0.25) * np.exp(-np.linspace(0, 1, rows) / 0.12)
    folds = np.zeros((rows, len(_AROUND)))
    for _ in range(5):
        phase, waves = rng.uniform(0, 2 * np.pi, 2), rng.integers(0, 4)
        stripes = rng.uniform(15, 90) * y[:, None] + waves * _AROUND + phase[0]
        folds += rng.uniform(0.0, 0.02) * (1 + np.sin(stripes + np.sin(_AROUND + phase[1])))
    swell = loose + flare[:, None] + folds
    # The hem: the cloth's edge turns inwards, so that its thickness is seen.
    swell = np.concatenate([swell[:1] * 0.93, swell[:1] * 0.985, swell])
    y = np.concatenate([y[:1] - 0.012, y[:1] - 0.0006, y])
    sections = [np.concatenate([c[:1], c[:1], c]) for c in (width, depth, middle)]
    cloth = _shell(arm, y, swell, *sections)
    # The pattern of the cloth repeats along a long sleeve.
    return cloth._replace(uv=cloth.uv * np.array([1.0, 2.0]))


def wristband(rng: np.random.Generator, arm: Arm) -> shapes.Shape | None:
    """A watch strap or bracelet, tight around the arm."""
    return _around(arm, -float(rng.uniform(0.015, 0.05)), float(rng.uniform(0.003, 0.022)), 0.06)


def hem(arm: Arm) -> shapes.Shape | None:
    """The hem of a glove, over the seam between hand and arm."""
    return _around(arm, -0.012, 0.022, 0.10)


def _around(arm: Arm, place: float, broad: float, thick: float) -> shapes.Shape | None:
    """A band: its middle along the arm and its breadth, metres; thickness as part of the arm's."""
    if len(arm.vertices) < 24:
        return None
    y = place + broad / 2 * np.array([0.85, 1.0, 1.0, -1.0, -1.0, -0.85])
    swell = 1 + np.array([-0.05, thick / 2, thick, thick, thick / 2, -0.05])[:, None]
    return _shell(arm, y, swell, *_cross_sections(arm, np.full(6, place)))


# Angles around the arm.
_AROUND = np.linspace(0, 2 * np.pi, 37)


def _shell(
    arm: Arm,
    y: Float[np.ndarray, 'r'],
    swell: Float[np.ndarray, 'r _'],
    width: Float[np.ndarray, 'r'],
    depth: Float[np.ndarray, 'r'],
    middle: Float[np.ndarray, 'r 2'],
) -> shapes.Shape:
    """A tube around the arm: `swell` times its cross-section in each row."""
    x = middle[:, :1] + swell * width[:, None] * np.cos(_AROUND)
    z = middle[:, 1:] - swell * depth[:, None] * np.sin(_AROUND)
    points = np.stack([x, np.broadcast_to(y[:, None], x.shape), z], axis=-1)
    return shapes.moved(shapes.grid(points), arm.frame, np.zeros(3))


def _cross_sections(
    arm: Arm, y: Float[np.ndarray, 'r']
) -> tuple[Float[np.ndarray, 'r'], Float[np.ndarray, 'r'], Float[np.ndarray, 'r 2']]:
    """Half width, half depth and middle (x, z) of the arm at each y; held where it has ended."""
    edges = np.linspace(max(arm.vertices[:, 1].min(), -0.24), -0.005, 7)
    rows = []
    for low, high in itertools.pairwise(edges):
        part = arm.vertices[
            (arm.vertices[:, 1] >= low - 0.012) & (arm.vertices[:, 1] <= high + 0.012)
        ]
        if len(part) >= 6:
            lowest, highest = part.min(axis=0), part.max(axis=0)
            half, middle = (highest - lowest) / 2, (highest + lowest) / 2
            rows.append([(low + high) / 2, half[0], half[2], middle[0], middle[2]])
    table = np.array(rows if rows else [[0.0, 0.03, 0.022, 0.0, 0.0]])
    columns = [np.interp(y, table[:, 0], table[:, i]) for i in range(1, 5)]
    return columns[0], columns[1], np.stack(columns[2:], axis=1)


def in_front(rng: np.random.Generator) -> shapes.Shape:
    """Something about as large as a hand, around the origin, to be put before one."""
    kind = rng.integers(4)
    if kind == 0:
        thing = shapes.cylinder(float(rng.uniform(0.006, 0.04)), float(rng.uniform(0.15, 0.5)))
    elif kind == 1:
        thing = shapes.box(rng.uniform(0.02, 0.16, 3))
    elif kind == 2:
        thing = shapes.ball(float(rng.uniform(0.02, 0.06)))
    else:
        thing = shapes.bottle(float(rng.uniform(0.02, 0.04)), float(rng.uniform(0.15, 0.26)))
    turn = skeleton.rotation(rng.normal(size=3), rng.uniform(0, 2 * np.pi))
    return shapes.moved(thing, turn, np.zeros(3))
