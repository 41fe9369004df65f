"""What can be in a picture: hands and what they wear, things held and in front, tables."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from handpose_jax import hand
from handpose_jax.synthetic.body import poses, skeleton, types
from handpose_jax.synthetic.render import mitsuba_renderer
from handpose_jax.synthetic.scene import backgrounds, dressing, labels, props, shapes, views
from handpose_jax.synthetic.scene.options import SceneOptions

# How often, of all pictures.
_WRISTBAND_SHARE = 0.2  # of bare arms
_RING_SHARE = 0.14
_HELD_SHARE = 0.45  # tried; many poses hold no room for anything
_IN_FRONT_SHARE = 0.13
_OTHER_HAND_SHARE = 0.14


class Item(NamedTuple):
    """A surface, and what it is to the truth (see labels.Staging)."""

    surface: mitsuba_renderer.Surface
    part: str
    mask: int


def add_body(
    items: list[Item],
    posed: types.PosedBody,
    arm: props.Arm,
    view: views.View,
    dress: dressing.Dress,
    *,
    labelled: bool = True,
) -> None:
    """Hand and forearm are surfaces of their own."""
    vertices = view.place(posed.vertices).astype(np.float32)
    normals = view.turn(posed.normals).astype(np.float32)
    along = posed.vertices @ arm.frame[:, 1]
    along = along[posed.faces].mean(axis=1)
    behind = along < -0.008
    cloth = posed.regions == types.CLOTH
    # Nothing sees the arm deep in a sleeve.
    covered = ~cloth & (along < np.max(along, where=cloth, initial=-1.0) - _INTO_SLEEVE)
    covered &= cloth.any()
    near = _is_near(vertices, view)
    by_region = {types.SKIN: dress.skin, types.NAIL: dress.nails, types.CLOTH: dress.cloth}
    for region, material in by_region.items():
        for is_arm in (False, True):
            chosen = (posed.regions == region) & (behind == is_arm) & ~covered
            if is_arm:
                chosen &= near[posed.faces].any(axis=1)
            if not chosen.any():
                continue
            faces = posed.faces[chosen]
            used = np.zeros(len(vertices), bool)
            used[faces] = True
            faces = (np.cumsum(used) - 1)[faces]
            if is_arm and region == types.SKIN:
                material = dress.arm
            faces = faces[:, ::-1] if view.is_left else faces
            shape = shapes.Shape(vertices[used], normals[used], faces, posed.uv[used])
            value = (labels.FOREARM if is_arm else labels.HAND) if labelled else 0
            part = ('worn' if is_arm else 'hand') if labelled else 'thing'
            items.append(_item(shape, material, part, value))


_INTO_SLEEVE = 0.04

# How far outside the picture an arm still counts, in sides of the picture: it may cast a shadow.
_MARGIN = 0.4
# What is closer to the eye than this always counts, metres.
_CLOSE = 0.1


def _is_near(vertices: Float[np.ndarray, 'v 3'], view: views.View) -> Bool[np.ndarray, 'v']:
    """Vertices in the picture, not far beyond its border, or beside the camera."""
    x, y, z = vertices.T
    focal, side = view.camera[0, 0], view.size
    low, high = -_MARGIN * side, (1 + _MARGIN) * side
    u, v = focal * x + view.camera[0, 2] * z, focal * y + view.camera[1, 2] * z
    # Multiplied by the depth: nothing may be divided by what lies behind the eye.
    inside = (u > low * z) & (u < high * z) & (v > low * z) & (v < high * z)
    return (z < _CLOSE) | inside


def _add_shape(
    items: list[Item],
    shape: shapes.Shape | None,
    view: views.View,
    material: mitsuba_renderer.Material,
    part: str,
    mask: int,
) -> None:
    """Adds something given in the hand frame."""
    if shape is None:
        return
    faces = shape.faces[:, ::-1] if view.is_left else shape.faces
    placed = shapes.Shape(view.place(shape.vertices), view.turn(shape.normals), faces, shape.uv)
    items.append(_item(placed, material, part, mask))


def _item(shape: shapes.Shape, material: mitsuba_renderer.Material, part: str, mask: int) -> Item:
    """An item of a shape in the camera frame."""
    surface = mitsuba_renderer.Surface(
        shape.vertices, shape.faces, material, normals=shape.normals, uv=shape.uv
    )
    return Item(surface, part, mask)


def add_worn(
    items: list[Item],
    rng: np.random.Generator,
    posed: types.PosedBody,
    arm: props.Arm,
    view: views.View,
    dress: dressing.Dress,
    *,
    in_sleeve: bool,
) -> None:
    """Adds a sleeve, unless the body has its own, a wristband, a ring, the hem of a glove."""
    if in_sleeve and not (posed.regions == types.CLOTH).any():
        cloth = props.sleeve(rng, arm)
        _add_shape(items, cloth, view, dress.cloth, 'worn', labels.FOREARM)
    elif not in_sleeve and rng.random() < _WRISTBAND_SHARE:
        band = props.wristband(rng, arm)
        material = mitsuba_renderer.Material(
            backgrounds.colour(rng), roughness=0.4, metallic=float(rng.random() < 0.4)
        )
        _add_shape(items, band, view, material, 'worn', labels.FOREARM)
    if dress.gloved and dress.arm is not dress.skin:
        colour = np.mean(np.reshape(dress.skin.colour, (-1, 3)), axis=0)
        material = mitsuba_renderer.Material(colour, roughness=0.8)
        _add_shape(items, props.hem(arm), view, material, 'worn', labels.FOREARM)
    if rng.random() < _RING_SHARE and not dress.gloved:
        metal = np.array([[1.0, 0.77, 0.34], [0.9, 0.9, 0.92], [0.95, 0.64, 0.54]])[rng.integers(3)]
        material = mitsuba_renderer.Material(
            metal, roughness=float(rng.uniform(0.1, 0.4)), metallic=1.0
        )
        _add_shape(items, props.finger_ring(rng, posed), view, material, 'hand', labels.HAND)


def _thing_material(rng: np.random.Generator) -> mitsuba_renderer.Material:
    colour = backgrounds.colour(rng)
    if rng.random() < 0.4:
        colour = backgrounds.pattern(rng, 96)
    return mitsuba_renderer.Material(
        np.minimum(colour, 0.95),
        roughness=float(rng.uniform(0.1, 0.9)),
        metallic=float(rng.random() < 0.12),
    )


def add_things(
    items: list[Item],
    rng: np.random.Generator,
    posed: types.PosedBody,
    shape: types.HandShape,
    view: views.View,
) -> None:
    """Adds a thing in the grasp, and one between hand and camera."""
    material = _thing_material(rng)
    if rng.random() < _HELD_SHARE:
        thing = props.held(rng, posed.keypoints, shape.size * shape.thickness)
        _add_shape(items, thing, view, material, 'thing', 0)
    if rng.random() < _IN_FRONT_SHARE:
        thing = props.in_front(rng)
        reach = float(np.abs(thing.vertices).max())
        target = view.keypoints[rng.integers(hand.NUM_KEYPOINTS)]
        depth = view.keypoints[:, 2].min() - 0.02
        depth = max(0.12, depth - rng.uniform(0.3, 1.0) * reach - 0.02)
        turn = rng.uniform(0, 2 * math.pi)
        aside = rng.uniform(0.2, 0.9) * reach * np.array([math.cos(turn), math.sin(turn), 0])
        centre = target * (depth / target[2]) + aside
        room = view.keypoints[:, 2].min() - 0.015 - (thing.vertices[:, 2].max() + centre[2])
        if room < 0:
            centre = centre * (1 + room / centre[2])
        if centre[2] + thing.vertices[:, 2].min() > 0.05:
            thing = shapes.moved(thing, np.eye(3), centre)
            items.append(_item(thing, _thing_material(rng), 'thing', 0))


def add_objects(items: list[Item], rng: np.random.Generator, view: views.View) -> None:
    """Adds one to four things where a hand would be."""
    for _ in range(rng.integers(1, 5)):
        thing = props.in_front(rng)
        thing = shapes.moved(
            thing,
            skeleton.rotation(rng.normal(size=3), rng.uniform(0, math.pi)),
            view.keypoints[rng.integers(hand.NUM_KEYPOINTS)] + rng.normal(0, 0.03, 3),
        )
        # Nothing may lie behind the eye, or so near that it is all that is seen.
        nearest = float(thing.vertices[:, 2].min())
        if nearest < _CLOSE:
            away = np.array([0.0, 0.0, _CLOSE - nearest])
            thing = shapes.moved(thing, np.eye(3), away)
        items.append(_item(thing, _thing_material(rng), 'thing', 0))


def add_other_hand(
    items: list[Item],
    rng: np.random.Generator,
    source: dressing.Source,
    library: Sequence[types.HandPose],
    view: views.View,
    dress: dressing.Dress,
) -> None:
    """A second hand, somewhere at the side; it has no keypoints."""
    if rng.random() >= _OTHER_HAND_SHARE:
        return
    pose = poses.sample_pose(rng, library=library)
    is_left = (not view.is_left) if rng.random() < 0.7 else view.is_left
    other = source.pose(skeleton.sample_shape(rng), pose)
    turn = skeleton.rotation(rng.normal(size=3), rng.normal(0, 0.7))
    turned = view._replace(rotation=turn @ view.rotation, is_left=is_left)
    own_middle = turned.turn(other.keypoints.mean(axis=0, keepdims=True))[0]
    extent = view.keypoints.max(axis=0) - view.keypoints.min(axis=0)
    reach = 0.55 * float(extent[:2].max())
    angle = rng.uniform(0, 2 * math.pi)
    direction = np.array([math.cos(angle), math.sin(angle), 0.0])
    middle = view.keypoints.mean(axis=0)
    for step in (1.0, 1.3, 1.7, 2.2):
        centre = middle + direction * step * (reach + 0.05)
        centre += np.array([0.0, 0.0, 1.0]) * rng.normal(0, 0.05)
        moved = turned._replace(offset=centre - own_middle)
        moved = moved._replace(keypoints=moved.place(other.keypoints))
        gaps = np.linalg.norm(moved.keypoints[:, None] - view.keypoints[None], axis=2)
        if gaps.min() > 0.035 and moved.keypoints[:, 2].min() > 0.15:
            if moved.place(other.vertices)[:, 2].min() > 0.05:
                add_body(items, other, props.find_arm(other, pose), moved, dress, labelled=False)
            return


def add_table(
    items: list[Item], rng: np.random.Generator, options: SceneOptions, view: views.View
) -> None:
    """A table, wall or floor that the hand lies on or hovers over, behind everything."""
    turn = rng.uniform(0, 2 * math.pi)
    lean = math.radians(rng.uniform(0, 55))
    normal = np.array(
        [math.sin(lean) * math.cos(turn), math.sin(lean) * math.sin(turn), -math.cos(lean)]
    )
    vertices = np.concatenate([item.surface.vertices for item in items])
    middle = view.keypoints.mean(axis=0)
    # Only what is near the hand must lie above the table: an arm may come through from behind.
    near = vertices[np.linalg.norm(vertices - middle, axis=1) < 0.2]
    # Things may have no corner so near.
    level = float(((near if len(near) else vertices) @ normal).min()) - rng.exponential(0.02)
    side = np.cross(normal, [1.0, 0.0, 0.0] if abs(normal[0]) < 0.8 else [0.0, 1.0, 0.0])
    side /= np.linalg.norm(side)
    ahead = np.cross(normal, side)
    centre = middle - normal * (middle @ normal - level)
    corners = np.array([[-4.0, -4.0], [4.0, -4.0], [4.0, 4.0], [-4.0, 4.0]])
    if options.backgrounds == 'photos' and rng.random() < 0.4:
        texture = backgrounds.photograph(rng, str(options.photos), 256)
    else:
        texture = backgrounds.pattern(rng, 256)
    width = rng.uniform(0.4, 1.2)
    sheet = shapes.Shape(
        vertices=centre + corners[:, :1] * side + corners[:, 1:] * ahead,
        normals=np.tile(normal, (4, 1)),
        faces=np.array([[0, 1, 2], [0, 2, 3]]),
        uv=corners / width + rng.random(2),
    )
    material = mitsuba_renderer.Material(
        np.minimum(texture, 0.9), roughness=float(rng.uniform(0.2, 0.9)), specular=0.4
    )
    items.append(_item(sheet, material, 'thing', 0))
