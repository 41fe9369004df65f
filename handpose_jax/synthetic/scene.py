"""Photographs of hands that never were, with the truth about them: one for every seed and index."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from handpose_jax import geometry, hand
from handpose_jax.synthetic import (
    backgrounds,
    bodies,
    body,
    camera_effects,
    captures,
    materials,
    poses,
    props,
    render,
    rig,
    shapes,
    skeleton,
)

_Lamp = render.PanelLight | render.PointLight | render.DirectionalLight
_Source = body.BundledBody | rig.GltfRig

HAND, FOREARM = 1, 2
"""Values of RenderedHand.mask beside 0."""


@dataclass(frozen=True)
class SceneOptions:
    """What the pictures are made of.

    Attributes:
        size: side of the picture, pixels.
        rigs: glTF rigs (see rig.GltfRig), drawn at random; none for the bundled body.
        textures: folder of textures for the rigs (see materials.read_textures), or None.
        backgrounds: 'procedural' (drawn), 'photos' (from `photos`, one in six drawn), or 'plain'.
        photos: folder of photographs.
        poses: file of captured poses (see captures.read_webxr), or None for the library alone.
        lighting: 'full' (surroundings and lamps) or 'flat' (the same light from everywhere).
        occlusion: things held and in front, and other hands.
        skin_variety: all skin tones, gloves, sleeves, rings; otherwise one bare hand.
        left_share: part of the hands that are left.
        samples: light paths a pixel.
        resolution: range of the part of its final size at which a picture is taken, before it is
            enlarged as a crop of a photograph is.
    """

    size: int = 224
    rigs: tuple[str, ...] = ()
    textures: str | None = None
    backgrounds: str = 'procedural'
    photos: str | None = None
    poses: str | None = None
    lighting: str = 'full'
    occlusion: bool = True
    skin_variety: bool = True
    left_share: float = 0.5
    samples: int = 2
    resolution: tuple[float, float] = (0.45, 1.0)

    def __post_init__(self) -> None:
        choices = {'backgrounds': ('procedural', 'photos', 'plain'), 'lighting': ('full', 'flat')}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f'SceneOptions.{name} must be one of {allowed}, got {getattr(self, name)!r}'
                )
        low, high = self.resolution
        if not 0 < low <= high <= 1:
            raise ValueError(
                f'SceneOptions.resolution must be a range within 0..1, got {self.resolution}'
            )
        if self.backgrounds == 'photos' and self.photos is None:
            raise ValueError("SceneOptions.backgrounds is 'photos': set photos to their folder")
        if not self.size >= 32 or not self.samples >= 1 or not 0 <= self.left_share <= 1:
            raise ValueError(
                'SceneOptions: size must be at least 32, samples at least 1 and left_share in '
                f'0..1, got {self.size}, {self.samples}, {self.left_share}'
            )


class RenderedHand(NamedTuple):
    """A picture of a hand and the truth about it.

    Attributes:
        image: u8[s s 3], RGB.
        keypoints: f32[21 2], (x, y), image pixels.
        visible: bool[21], inside the picture and not hidden: nothing but the flesh around the
            keypoint lies before it.
        keypoints_3d: f32[21 3], metres, camera frame (x right, y down, z forward).
        is_left: which hand it is.
        mask: u8[s s], HAND (down to the wrist, with a glove or ring) and FOREARM (with its sleeve),
            else 0; of the rendered pixel that is nearest to each pixel's centre.
        camera: f64[3 3] intrinsic matrix; keypoints = camera @ keypoints_3d, divided by depth.
    """

    image: UInt8[np.ndarray, 's s 3']
    keypoints: Float[np.ndarray, '21 2']
    visible: Bool[np.ndarray, '21']
    keypoints_3d: Float[np.ndarray, '21 3']
    is_left: bool
    mask: UInt8[np.ndarray, 's s']
    camera: Float[np.ndarray, '3 3']


# The smallest picture that is taken, pixels a side.
_SMALLEST = 48

# Keypoints that must be visible, or else what hides the hand is taken away.
_LEAST_VISIBLE = 6

# How often, of all pictures.
_GLOVE_SHARE = 0.07
_SLEEVE_SHARE = 0.5
_WRISTBAND_SHARE = 0.1
_RING_SHARE = 0.14
_HELD_SHARE = 0.45  # tried; many poses hold no room for anything
_IN_FRONT_SHARE = 0.13
_OTHER_HAND_SHARE = 0.14
_TABLE_SHARE = 0.18

# Every ingredient has its own stream of random numbers, so that switching one off leaves the others
# as they are: ablations compare the same hands.
_STREAMS = ('pose', 'view', 'skin', 'worn', 'things', 'other', 'backdrop', 'light', 'lens')


def generate(options: SceneOptions, seed: int, index: int) -> RenderedHand:
    """Makes one picture.

    Args:
        options: what it is made of.
        seed: of the data set.
        index: of the picture in it.

    Returns:
        The picture; the same bytes whenever, wherever and beside whatever else it is made.

    Raises:
        ValueError: if a file that the options name is not what it should be.
    """
    picture, staging = stage(options, seed, index)
    buffers = picture.render()
    streams = _streams(seed, index)
    light = _compose(buffers, staging)
    exposure = _exposure(light, buffers, staging, streams['lens'])
    effects = camera_effects.sample(streams['lens'], picture.scene.width)
    image = camera_effects.develop(light * exposure, effects, streams['lens'], size=options.size)
    points = staging.keypoints_3d
    keypoints = project(staging.camera, points)
    return RenderedHand(
        image=image,
        keypoints=keypoints.astype(np.float32),
        visible=find_visible(picture, staging, options.size),
        keypoints_3d=points.astype(np.float32),
        is_left=staging.is_left,
        mask=_mask(buffers, staging, options.size),
        camera=staging.camera,
    )


def project(
    camera: Float[np.ndarray, '3 3'], points: Float[np.ndarray, 'k 3']
) -> Float[np.ndarray, 'k 2']:
    """Where points of the camera frame are seen, in pixels."""
    seen = points @ np.asarray(camera, np.float64).T
    return seen[:, :2] / seen[:, 2:]


class Staging(NamedTuple):
    """What must be known about a scene to label its picture.

    Attributes:
        keypoints_3d: f64[21 3], camera frame.
        camera: f64[3 3] intrinsic matrix of the final picture; the scene has that of the picture
            before it is enlarged.
        is_left: which hand.
        flesh: f64[21], metres that may lie before a visible keypoint.
        parts: what each surface of the scene is: 'hand', 'arm', 'worn' or 'thing'.
        mask_values: the mask's value of each surface.
        backdrop: f32[r r 3], what is seen past all surfaces, at the size it is rendered.
        albedo: the skin's average reflectance.
    """

    keypoints_3d: Float[np.ndarray, '21 3']
    camera: Float[np.ndarray, '3 3']
    is_left: bool
    flesh: Float[np.ndarray, '21']
    parts: tuple[str, ...]
    mask_values: tuple[int, ...]
    backdrop: Float[np.ndarray, 'r r 3']
    albedo: float


def _streams(seed: int, index: int) -> dict[str, np.random.Generator]:
    return {
        name: np.random.default_rng([seed, index, number]) for number, name in enumerate(_STREAMS)
    }


@functools.lru_cache(maxsize=16)
def _rig(path: str) -> rig.GltfRig:
    return rig.GltfRig(path)


@functools.lru_cache(maxsize=2)
def _bundled() -> body.BundledBody:
    # Fine enough for pictures of this size; a finer mesh takes longer to hand to the renderer.
    return body.BundledBody(step=0.0034)


@functools.lru_cache(maxsize=4)
def _pose_library(path: str | None) -> tuple[bodies.HandPose, ...]:
    own = tuple(poses.library().values())
    return own if path is None else own + tuple(captures.read_webxr(path).poses)


# How much flesh may lie between the eye and a visible keypoint, metres on an average hand: wrist,
# thumb, then the same for every finger, base to tip.
_FLESH = np.array([0.030, 0.026, 0.018, 0.0145, 0.012] + 4 * [0.021, 0.0145, 0.0125, 0.0105])


def stage(options: SceneOptions, seed: int, index: int) -> tuple[render.Picture, Staging]:
    """Sets up one picture, without taking it (see generate)."""
    scene, staging = _set_up(options, seed, index)
    picture = render.Picture(scene)
    if options.occlusion and find_visible(picture, staging, options.size).sum() < _LEAST_VISIBLE:
        # So little of the hand is to be seen that nothing could be learnt from it.
        scene, staging = _set_up(dataclasses.replace(options, occlusion=False), seed, index)
        picture = render.Picture(scene)
    return picture, staging


def _set_up(options: SceneOptions, seed: int, index: int) -> tuple[render.Scene, Staging]:
    streams = _streams(seed, index)
    library = _pose_library(options.poses)
    rng = streams['pose']
    pose = poses.sample_pose(rng, library=library)
    shape = skeleton.sample_shape(rng)
    is_left = bool(rng.random() < options.left_share)
    source = _rig(options.rigs[rng.integers(len(options.rigs))]) if options.rigs else _bundled()
    posed = source.pose(shape, pose)

    arm = props.find_arm(posed, pose)
    view = _sample_view(streams['view'], posed, arm, is_left, options.size)
    size = max(_SMALLEST, round(options.size * streams['backdrop'].uniform(*options.resolution)))
    taken = np.eye(3)
    taken[:2] = geometry.scale_map(size / options.size)
    camera = taken @ view.camera

    dress = _sample_dress(options, streams['skin'], source)
    items: list[_Item] = []
    _add_body(items, posed, arm, view, is_left, dress)
    if options.skin_variety:
        _add_worn(items, streams['worn'], posed, arm, view, is_left, dress)
    if options.occlusion:
        _add_things(items, streams['things'], posed, shape, view, is_left)
        _add_other_hand(items, streams['other'], source, library, view, is_left, dress)
    window, beyond = _window(items, camera, size), False

    backdrop = _backdrop(options, streams['backdrop'], size)
    if options.backgrounds != 'plain' and streams['backdrop'].random() < _TABLE_SHARE:
        _add_table(items, streams['backdrop'], options, view)
        beyond = True
    environment, lights = _light(options, streams['light'], backdrop, view)
    scene = render.Scene(
        surfaces=[item.surface for item in items],
        environment=environment,
        lights=lights,
        camera=camera,
        width=size,
        height=size,
        window=window,
        beyond=beyond,
        samples=options.samples,
        bounces=3,
        seed=int(streams['light'].integers(2**31)),
    )
    return scene, Staging(
        keypoints_3d=view.keypoints,
        camera=view.camera,
        is_left=is_left,
        flesh=_FLESH * shape.size * shape.thickness,
        parts=tuple(item.part for item in items),
        mask_values=tuple(item.mask for item in items),
        backdrop=backdrop,
        albedo=dress.albedo,
    )


class _Item(NamedTuple):
    surface: render.Surface
    part: str
    mask: int


class _View(NamedTuple):
    """Camera and the place of the hand before it: camera = rotation @ (mirrored) hand + offset."""

    rotation: Float[np.ndarray, '3 3']
    offset: Float[np.ndarray, '3']
    camera: Float[np.ndarray, '3 3']
    keypoints: Float[np.ndarray, '21 3']


_MIRROR = np.array([-1.0, 1.0, 1.0])


def _place(points: Float[np.ndarray, 'n 3'], view: _View, is_left: bool) -> np.ndarray:
    return (points * _MIRROR if is_left else points) @ view.rotation.T + view.offset


def _turn(normals: Float[np.ndarray, 'n 3'], view: _View, is_left: bool) -> np.ndarray:
    return (normals * _MIRROR if is_left else normals) @ view.rotation.T


_X, _Y, _Z = np.eye(3)
_ATTEMPTS = 12


def _sample_view(
    rng: np.random.Generator,
    posed: bodies.PosedBody,
    arm: props.Arm,
    is_left: bool,
    size: int,
) -> _View:
    """A camera that sees the whole hand, and not the end of the forearm if that can be had."""
    keypoints = posed.keypoints * _MIRROR if is_left else posed.keypoints
    end = arm.vertices[arm.vertices[:, 1] < arm.vertices[:, 1].min() + 0.01] @ arm.frame.T
    end = end * _MIRROR if is_left else end
    kind = rng.choice(['any', 'upright', 'egocentric'], p=[0.5, 0.28, 0.22])
    for _ in range(_ATTEMPTS):
        rotation = _sample_rotation(rng, str(kind), is_left)
        near = kind == 'egocentric'
        distance = math.exp(rng.uniform(math.log(0.28), math.log(0.65 if near else 1.5)))
        aside = np.clip(rng.normal(0, 0.16, 2), -0.5, 0.5)
        middle = (keypoints.min(axis=0) + keypoints.max(axis=0)) / 2
        offset = distance * np.array([*aside, 1.0]) - rotation @ middle
        placed = keypoints @ rotation.T + offset
        flat = placed[:, :2] / placed[:, 2:]
        low, high = flat.min(axis=0), flat.max(axis=0)
        context = math.exp(rng.uniform(math.log(1.45), math.log(2.9)))
        focal = size / (context * float((high - low).max()))
        shift = np.clip(rng.normal(0, 0.05, 2), -0.12, 0.12) * size
        centre = (size - 1) / 2 + shift - focal * (low + high) / 2
        camera = np.array([[focal, 0, centre[0]], [0, focal, centre[1]], [0, 0, 1.0]])
        view = _View(rotation, offset, camera, placed)
        if len(end) == 0:
            break
        end_placed = end @ rotation.T + offset
        depth = end_placed[:, 2]
        if depth.min() < 0.07:
            continue
        seen = project(camera, end_placed)
        inside = ((seen > -4) & (seen < size + 3)).all(axis=1).any()
        # An arm that points straight away hides its own end.
        ray = end_placed.mean(axis=0)
        along = rotation @ ((-arm.frame[:, 1]) * (_MIRROR if is_left else 1.0))
        hidden = along @ ray / np.linalg.norm(ray) > 0.92
        if not inside or hidden:
            break
    return view


def _sample_rotation(
    rng: np.random.Generator, kind: str, is_left: bool
) -> Float[np.ndarray, '3 3']:
    """Camera axes from hand axes."""
    if kind == 'any':
        q = rng.normal(size=4)
        w, x, y, z = q / np.linalg.norm(q)
        return np.array(
            [
                [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
                [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
                [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
            ]
        )
    if kind == 'upright':
        # Fingers up, seen from anywhere around.
        base = np.column_stack([_X, -_Y, -_Z])
        around = skeleton.rotation(_Y, rng.uniform(-math.pi, math.pi))
        tilt = skeleton.rotation(_X, rng.normal(0, 0.4))
        roll = skeleton.rotation(_Z, rng.normal(0, 0.6))
        return roll @ tilt @ base @ around
    # From the owner's eyes: the forearm comes from below, the fingers point ahead and up.
    ahead = math.radians(rng.normal(35, 22))
    base = np.column_stack(
        [
            _X,
            np.array([0.0, -math.cos(ahead), math.sin(ahead)]),
            np.array([0.0, -math.sin(ahead), -math.cos(ahead)]),
        ]
    )
    supination = skeleton.rotation(_Y, rng.normal(0, 1.1))
    inward = 0.35 if is_left else -0.35
    return skeleton.rotation(_Z, rng.normal(inward, 0.45)) @ base @ supination


class _Dress(NamedTuple):
    """Materials of one person's hands."""

    skin: render.Material
    arm: render.Material
    nails: render.Material
    cloth: render.Material
    albedo: float
    gloved: bool


@functools.lru_cache(maxsize=16)
def _sides(source: _Source) -> tuple[np.ndarray, np.ndarray]:
    """Texture coordinates of the back and of the palm of a body."""
    posed = source.pose(skeleton.AVERAGE, skeleton.FLAT)
    middle = (posed.vertices[:, 1] > 0.02) & (posed.vertices[:, 1] < 0.085)
    facing = posed.normals[:, 2]
    return posed.uv[middle & (facing > 0.6)], posed.uv[middle & (facing < -0.6)]


def _sample_dress(options: SceneOptions, rng: np.random.Generator, source: _Source) -> _Dress:
    textures = (
        materials.read_textures(options.textures) if options.textures else materials.NO_TEXTURES
    )
    tone = materials.sample_tone(rng)
    gloved = bool(rng.random() < _GLOVE_SHARE)
    which, roughness, contrast = rng.random(), float(rng.uniform(0.35, 0.62)), rng.uniform(0.5, 1.1)
    bump = float(rng.uniform(0.2, 0.8))
    if not options.skin_variety:
        tone, gloved, which, roughness, contrast, bump = (
            materials.AVERAGE_TONE,
            False,
            0,
            0.5,
            0.8,
            0.5,
        )
    cloth = _cloth(rng)
    nail = materials.nail(rng, tone)
    if gloved:
        if textures.gloves and rng.random() < 0.6:
            colour = textures.gloves[int(which * len(textures.gloves))]
        else:
            colour = backgrounds.colour(rng)
        material = render.Material(
            colour, roughness=float(rng.uniform(0.3, 0.9)), sheen=float(rng.uniform(0, 0.6))
        )
        bare = render.Material(materials.skin_colour(tone), roughness=roughness, specular=0.4)
        long = rng.random() < 0.3 and np.ndim(colour) == 1
        arm = material if long else bare
        return _Dress(material, arm, material, cloth, float(np.mean(colour)), True)
    if textures.skins:
        back, palm = _sides(source)
        logs = textures.skins[int(which * len(textures.skins))]
        colour = materials.tinted(logs, tone, float(contrast), back=back, palm=palm)
        bumps = textures.bumps
    elif options.rigs:
        colour, bumps = materials.skin_colour(tone), None
    else:
        colour, bumps = materials.painted(int(which * materials.VARIANTS), tone)
    material = render.Material(colour, roughness=roughness, specular=0.4, bumps=_bumps(bumps, bump))
    return _Dress(
        material,
        # A rig's forearm may be a continuation that has no texture of its own.
        material
        if not options.rigs
        else render.Material(materials.skin_colour(tone), roughness=roughness, specular=0.4),
        render.Material(nail, roughness=0.3, specular=0.5),
        cloth,
        float(np.mean(materials.skin_colour(tone))),
        False,
    )


def _bumps(normals: np.ndarray | None, strength: float) -> np.ndarray | None:
    """The normal map at one of a few strengths, so that each is converted only once."""
    return None if normals is None else _weakened(_Key(normals), max(1, round(4 * strength)) / 4)


class _Key:
    """An array that hashes by identity."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __hash__(self) -> int:
        return id(self.array)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and other.array is self.array


@functools.lru_cache(maxsize=16)
def _weakened(key: _Key, strength: float) -> np.ndarray:
    normals = (2 * key.array - 1) * np.array([strength, strength, 1.0], np.float32)
    normals /= np.maximum(np.sqrt((normals**2).sum(axis=2, keepdims=True)), 1e-6)
    normals = (0.5 + 0.5 * normals).astype(np.float32)
    normals.flags.writeable = False
    return normals


def _cloth(rng: np.random.Generator) -> render.Material:
    plain = rng.random() < 0.55
    colour = backgrounds.colour(rng) if plain else np.minimum(backgrounds.pattern(rng, 128), 0.9)
    return render.Material(colour, roughness=0.9, specular=0.2, sheen=float(rng.uniform(0, 0.8)))


def _add_body(
    items: list[_Item],
    posed: bodies.PosedBody,
    arm: props.Arm,
    view: _View,
    is_left: bool,
    dress: _Dress,
    labelled: bool = True,
) -> None:
    """Hand and forearm are surfaces of their own."""
    vertices = _place(posed.vertices, view, is_left).astype(np.float32)
    normals = _turn(posed.normals, view, is_left).astype(np.float32)
    along = posed.vertices @ arm.frame[:, 1]
    behind = along[posed.faces].mean(axis=1) < -0.008
    by_region = {bodies.SKIN: dress.skin, bodies.NAIL: dress.nails, bodies.CLOTH: dress.cloth}
    for region, material in by_region.items():
        for is_arm in (False, True):
            chosen = (posed.regions == region) & (behind == is_arm)
            if not chosen.any():
                continue
            faces = posed.faces[chosen]
            used = np.zeros(len(vertices), bool)
            used[faces] = True
            faces = (np.cumsum(used) - 1)[faces]
            if is_arm and region == bodies.SKIN:
                material = dress.arm
            surface = render.Surface(
                vertices=vertices[used],
                normals=normals[used],
                faces=faces[:, ::-1] if is_left else faces,
                uv=posed.uv[used],
                material=material,
            )
            value = (FOREARM if is_arm else HAND) if labelled else 0
            part = ('worn' if is_arm else 'hand') if labelled else 'thing'
            items.append(_Item(surface, part, value))


def _add_shape(
    items: list[_Item],
    shape: shapes.Shape | None,
    view: _View,
    is_left: bool,
    material: render.Material,
    part: str,
    mask: int,
) -> None:
    """Adds something given in the hand frame."""
    if shape is None:
        return
    faces = shape.faces[:, ::-1] if is_left else shape.faces
    surface = render.Surface(
        vertices=_place(shape.vertices, view, is_left),
        normals=_turn(shape.normals, view, is_left),
        faces=faces,
        uv=shape.uv,
        material=material,
    )
    items.append(_Item(surface, part, mask))


def _add_worn(
    items: list[_Item],
    rng: np.random.Generator,
    posed: bodies.PosedBody,
    arm: props.Arm,
    view: _View,
    is_left: bool,
    dress: _Dress,
) -> None:
    clothed = bool((posed.regions == bodies.CLOTH).any())
    if rng.random() < _SLEEVE_SHARE and not clothed:
        cloth = props.sleeve(rng, arm)
        _add_shape(items, cloth, view, is_left, dress.cloth, 'worn', FOREARM)
    elif rng.random() < _WRISTBAND_SHARE / (1 - _SLEEVE_SHARE):
        band = props.wristband(rng, arm)
        material = render.Material(
            backgrounds.colour(rng), roughness=0.4, metallic=float(rng.random() < 0.4)
        )
        _add_shape(items, band, view, is_left, material, 'worn', FOREARM)
    if rng.random() < _RING_SHARE and not dress.gloved:
        metal = np.array([[1.0, 0.77, 0.34], [0.9, 0.9, 0.92], [0.95, 0.64, 0.54]])[rng.integers(3)]
        material = render.Material(metal, roughness=float(rng.uniform(0.1, 0.4)), metallic=1.0)
        _add_shape(items, props.finger_ring(rng, posed), view, is_left, material, 'hand', HAND)


def _thing_material(rng: np.random.Generator) -> render.Material:
    colour = backgrounds.colour(rng)
    if rng.random() < 0.4:
        colour = backgrounds.pattern(rng, 96)
    return render.Material(
        np.minimum(colour, 0.95),
        roughness=float(rng.uniform(0.1, 0.9)),
        metallic=float(rng.random() < 0.12),
    )


def _add_things(
    items: list[_Item],
    rng: np.random.Generator,
    posed: bodies.PosedBody,
    shape: bodies.HandShape,
    view: _View,
    is_left: bool,
) -> None:
    material = _thing_material(rng)
    if rng.random() < _HELD_SHARE:
        thing = props.held(rng, posed.keypoints, shape.size * shape.thickness)
        _add_shape(items, thing, view, is_left, material, 'thing', 0)
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
            surface = render.Surface(
                vertices=thing.vertices,
                normals=thing.normals,
                faces=thing.faces,
                uv=thing.uv,
                material=_thing_material(rng),
            )
            items.append(_Item(surface, 'thing', 0))


def _add_other_hand(
    items: list[_Item],
    rng: np.random.Generator,
    source: _Source,
    library: Sequence[bodies.HandPose],
    view: _View,
    is_left: bool,
    dress: _Dress,
) -> None:
    """A second hand, somewhere at the side; it has no keypoints."""
    if rng.random() >= _OTHER_HAND_SHARE:
        return
    pose = poses.sample_pose(rng, library=library)
    other_is_left = (not is_left) if rng.random() < 0.7 else is_left
    other = source.pose(skeleton.sample_shape(rng), pose)
    turn = skeleton.rotation(rng.normal(size=3), rng.normal(0, 0.7))
    rotation = turn @ view.rotation
    extent = view.keypoints.max(axis=0) - view.keypoints.min(axis=0)
    reach = 0.55 * float(extent[:2].max())
    angle = rng.uniform(0, 2 * math.pi)
    direction = np.array([math.cos(angle), math.sin(angle), 0.0])
    middle = view.keypoints.mean(axis=0)
    for step in (1.0, 1.3, 1.7, 2.2):
        centre = middle + direction * step * (reach + 0.05) + _Z * rng.normal(0, 0.05)
        keypoints = other.keypoints * (_MIRROR if other_is_left else 1.0)
        offset = centre - rotation @ keypoints.mean(axis=0)
        placed = keypoints @ rotation.T + offset
        gaps = np.linalg.norm(placed[:, None] - view.keypoints[None], axis=2)
        if gaps.min() > 0.035 and placed[:, 2].min() > 0.15:
            other_view = view._replace(rotation=rotation, offset=offset, keypoints=placed)
            if _place(other.vertices, other_view, other_is_left)[:, 2].min() > 0.05:
                other_arm = props.find_arm(other, pose)
                _add_body(items, other, other_arm, other_view, other_is_left, dress, labelled=False)
            return


def _add_table(
    items: list[_Item], rng: np.random.Generator, options: SceneOptions, view: _View
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
    level = float((near @ normal).min()) - rng.exponential(0.02)
    side = np.cross(normal, _X if abs(normal[0]) < 0.8 else _Y)
    side /= np.linalg.norm(side)
    ahead = np.cross(normal, side)
    centre = middle - normal * (middle @ normal - level)
    half = 4.0
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * half
    photo = options.backgrounds == 'photos' and options.photos is not None and rng.random() < 0.4
    if photo:
        texture = np.minimum(backgrounds.photograph(rng, str(options.photos), 256), 0.9)
    else:
        texture = np.minimum(backgrounds.pattern(rng, 256), 0.9)
    width = rng.uniform(0.4, 1.2)
    surface = render.Surface(
        vertices=centre + corners[:, :1] * side + corners[:, 1:] * ahead,
        normals=np.tile(normal, (4, 1)),
        faces=np.array([[0, 1, 2], [0, 2, 3]]),
        uv=corners / width + rng.random(2),
        material=render.Material(texture, roughness=float(rng.uniform(0.2, 0.9)), specular=0.4),
    )
    items.append(_Item(surface, 'thing', 0))


def _window(
    items: Sequence[_Item], camera: Float[np.ndarray, '3 3'], size: int
) -> tuple[int, int, int, int]:
    """The part of the picture that surfaces can cover."""
    points = []
    for item in items:
        vertices = np.asarray(item.surface.vertices, np.float64)
        if vertices[:, 2].min() < 0.02:
            return 0, 0, size, size
        points.append(project(camera, vertices))
    seen = np.concatenate(points)
    low = np.clip(np.floor(seen.min(axis=0)) - 1, 0, size - 1).astype(int)
    high = np.clip(np.ceil(seen.max(axis=0)) + 2, low + 1, size).astype(int)
    return int(low[0]), int(low[1]), int(high[0]), int(high[1])


def _backdrop(
    options: SceneOptions, rng: np.random.Generator, size: int
) -> Float[np.ndarray, 's s 3']:
    if options.backgrounds == 'plain':
        tone = rng.uniform(0.1, 0.7, 3).astype(np.float32)
        return np.broadcast_to(tone, (size, size, 3)).astype(np.float32)
    if options.backgrounds == 'photos' and rng.random() > 1 / 6:
        picture = backgrounds.photograph(rng, str(options.photos), size)
        if rng.random() < 0.35:
            picture = backgrounds.out_of_focus(rng, picture)
        return picture
    return backgrounds.drawn(rng, size)


def _light(
    options: SceneOptions,
    rng: np.random.Generator,
    backdrop: Float[np.ndarray, 's s 3'],
    view: _View,
) -> tuple[Float[np.ndarray, '3'], list[_Lamp]]:
    """Light from everywhere, and lamps.

    A map of the surroundings would be truer; Mitsuba takes half as long again to sample it.
    """
    level = max(float(backdrop.mean()), 0.04)
    if options.lighting == 'flat':
        return np.full(3, level), []
    up = -_Y + rng.normal(0, 0.35, 3)
    if rng.random() < 0.3:
        up = rng.normal(size=3)
    up /= np.linalg.norm(up)
    around = backgrounds.surroundings(backdrop) * np.float32(2 ** rng.normal(0, 0.4))
    middle = view.keypoints.mean(axis=0)
    count = int(rng.choice(4, p=[0.1, 0.45, 0.35, 0.1]))
    lamps = [_lamp(rng, level, up, middle) for _ in range(count)]
    if any(isinstance(lamp, render.DirectionalLight) for lamp in lamps):
        return around.mean(axis=(0, 1)), lamps
    # The upper half of the surroundings is a sky or ceiling behind all lamps; it would hide a sun.
    direction = up + rng.normal(0, 0.3, 3)
    direction /= np.linalg.norm(direction)
    distance, side = 3.5, rng.uniform(2.0, 6.0)
    above = 0.6 * math.pi * around[: len(around) // 2].mean(axis=(0, 1)) * distance**2 / side**2
    sky = render.PanelLight(middle + distance * direction, middle, float(side), above)
    return 0.6 * around.mean(axis=(0, 1)), [*lamps, sky]


def _lamp(
    rng: np.random.Generator,
    level: float,
    up: Float[np.ndarray, '3'],
    target: Float[np.ndarray, '3'],
) -> _Lamp:
    """A lamp, mostly above, that gives about as much light as the surroundings."""
    direction = rng.normal(size=3) + 1.1 * up - 0.4 * _Z
    direction /= np.linalg.norm(direction)
    strength = math.pi * level * math.exp(rng.uniform(math.log(0.3), math.log(4.0)))
    warm = rng.normal(0, 0.18)
    tint = strength * np.exp([warm, 0.0, -1.2 * warm])
    distance = rng.uniform(0.8, 2.5)
    position = target + distance * direction
    kind = rng.random()
    if kind < 0.65:
        side = math.exp(rng.uniform(math.log(0.08), math.log(1.2)))
        return render.PanelLight(position, target, side, tint * distance**2 / side**2)
    if kind < 0.85:
        return render.DirectionalLight(-direction, tint)
    return render.PointLight(position, tint * distance**2)


def _compose(buffers: render.RenderBuffers, staging: Staging) -> Float[np.ndarray, 's s 3']:
    return buffers.rgb + (1 - buffers.alpha[..., None]) * staging.backdrop


def _exposure(
    light: Float[np.ndarray, 's s 3'],
    buffers: render.RenderBuffers,
    staging: Staging,
    rng: np.random.Generator,
) -> float:
    """What a camera would choose: by the average of the picture and the light on the hand."""
    own = np.isin(buffers.shape_id, [i for i, v in enumerate(staging.mask_values) if v == HAND])
    whole = float(np.minimum(light, 2.0).mean())
    on_hand = float(light[own].mean()) if own.any() else whole
    # Metering on the hand alone would make all skin equally bright.
    incident = 0.3 * on_hand / max(staging.albedo, 0.02)
    error = 2 ** rng.normal(0, 0.45)
    return error * 0.2 / max(0.45 * whole + 0.55 * min(incident, 4 * whole + 0.1), 1e-3)


def find_visible(picture: render.Picture, staging: Staging, size: int) -> Bool[np.ndarray, '21']:
    """Keypoints in the picture with nothing before them but their own flesh and what is worn on it.

    Args:
        picture: as staged.
        staging: what is known about it.
        size: side of the final picture, pixels.
    """
    keypoints = project(staging.camera, staging.keypoints_3d)
    inside = ((keypoints >= -0.5) & (keypoints <= size - 0.5)).all(axis=1)
    depths, shape_ids = picture.surfaces_towards(staging.keypoints_3d)
    before = staging.keypoints_3d[:, 2] - depths
    parts = np.array([*staging.parts, 'nothing'])[shape_ids]
    own = np.isin(parts, ['hand', 'worn'])
    return inside & np.where(own, before <= staging.flesh, before <= 0)


def _mask(buffers: render.RenderBuffers, staging: Staging, size: int) -> UInt8[np.ndarray, 's s']:
    # NOTHING is -1 and finds the last entry.
    values = np.array([*staging.mask_values, 0], np.uint8)
    mask = values[buffers.shape_id]
    return cv2.resize(mask, (size, size), interpolation=cv2.INTER_NEAREST_EXACT)
