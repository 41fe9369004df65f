"""Sets up one picture: draws what is in it, how it is seen and how it is lit."""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from handpose_jax import geometry
from handpose_jax.synthetic.body import bundled, captures, gltf_rig, poses, skeleton, types
from handpose_jax.synthetic.render import mitsuba_renderer
from handpose_jax.synthetic.scene import (
    backgrounds,
    dressing,
    ingredients,
    labels,
    lighting,
    props,
    views,
)
from handpose_jax.synthetic.scene.options import SceneOptions

# The smallest picture that is taken, pixels a side.
_SMALLEST = 48

# Keypoints that must be visible, or else what hides the hand is taken away.
_LEAST_VISIBLE = 6

# How often, of all pictures.
_TABLE_SHARE = 0.18
_SLEEVE_SHARE = 0.5

# Every ingredient has its own stream of random numbers, so that switching one off leaves the others
# as they are: ablations compare the same hands.
_STREAMS = ('pose', 'view', 'skin', 'worn', 'things', 'other', 'backdrop', 'light', 'lens', 'none')


def random_streams(seed: int, index: int) -> dict[str, np.random.Generator]:
    """One stream of random numbers for each ingredient of a picture."""
    return {
        name: np.random.default_rng([seed, index, number]) for number, name in enumerate(_STREAMS)
    }


_rig = functools.lru_cache(maxsize=16)(gltf_rig.GltfRig)


# Light paths in any picture, for each pixel that it has after it was enlarged.
_PATHS = 0.4

# Fine enough for pictures of this size; a finer mesh takes longer to hand to the renderer.
_STEP = 0.005

# Sleeves of the bundled body; it takes longer to make one than to put it on.
_SLEEVES = 16


@functools.lru_cache(maxsize=_SLEEVES + 1)
def _bundled(sleeve: int | None) -> bundled.BundledBody:
    """The bundled body, bare or in one of a few sleeves."""
    worn = None if sleeve is None else bundled.sample_sleeve(np.random.default_rng(sleeve))
    return bundled.BundledBody(step=_STEP, sleeve=worn)


@functools.lru_cache(maxsize=4)
def _pose_library(path: str | None) -> tuple[types.HandPose, ...]:
    own = tuple(poses.library().values())
    return own if path is None else own + tuple(captures.read_webxr(path).poses)


# How much flesh may lie between the eye and a visible keypoint, metres on an average hand: wrist,
# thumb, then the same for every finger, base to tip.
_FLESH = np.array([0.030, 0.026, 0.018, 0.0145, 0.012] + 4 * [0.021, 0.0145, 0.0125, 0.0105])


def stage(
    options: SceneOptions, seed: int, index: int
) -> tuple[mitsuba_renderer.Picture, labels.Staging]:
    """Sets up one picture, without taking it (see generate)."""
    scene, staging = _set_up(options, seed, index)
    picture = mitsuba_renderer.Picture(scene)
    if options.occlusion and staging.has_hand:
        visible = labels.find_visible(picture, staging, options.size)
        # Where so little of the hand is to be seen, nothing could be learnt from it.
        if visible.sum() < _LEAST_VISIBLE:
            return stage(dataclasses.replace(options, occlusion=False), seed, index)
    return picture, staging


def _set_up(
    options: SceneOptions, seed: int, index: int
) -> tuple[mitsuba_renderer.Scene, labels.Staging]:
    streams = random_streams(seed, index)
    library = _pose_library(options.poses)
    rng = streams['pose']
    pose = poses.sample_pose(rng, library=library)
    shape = skeleton.sample_shape(rng)
    is_left = bool(rng.random() < options.left_share)
    in_sleeve = options.skin_variety and bool(streams['worn'].random() < _SLEEVE_SHARE)
    source: dressing.Source
    if options.rigs:
        source = _rig(options.rigs[rng.integers(len(options.rigs))])
    else:
        source = _bundled(int(streams['worn'].integers(_SLEEVES)) if in_sleeve else None)
    posed = source.pose(shape, pose)

    arm = props.find_arm(posed, pose)
    view = views.sample(streams['view'], posed, arm, is_left, options.size)
    size = max(_SMALLEST, round(options.size * streams['backdrop'].uniform(*options.resolution)))
    taken = np.eye(3)
    taken[:2] = geometry.scale_map(size / options.size)
    camera = taken @ view.camera

    dress = dressing.sample(options, streams['skin'], source)
    items: list[ingredients.Item] = []
    has_hand = bool(streams['none'].random() >= options.without_hand)
    if not has_hand:
        ingredients.add_objects(items, streams['none'], view)
    else:
        ingredients.add_body(items, posed, arm, view, dress)
    if options.skin_variety and has_hand:
        ingredients.add_worn(items, streams['worn'], posed, arm, view, dress, in_sleeve=in_sleeve)
    if options.occlusion and has_hand:
        ingredients.add_things(items, streams['things'], posed, shape, view)
        ingredients.add_other_hand(items, streams['other'], source, library, view, dress)
    window, beyond = _window(items, camera, size), False

    backdrop = _backdrop(options, streams['backdrop'], size)
    if options.backgrounds != 'plain' and streams['backdrop'].random() < _TABLE_SHARE:
        ingredients.add_table(items, streams['backdrop'], options, view)
        beyond = True
    environment, lights = lighting.sample(
        options, streams['light'], backdrop, view.keypoints.mean(axis=0)
    )
    scene = mitsuba_renderer.Scene(
        surfaces=[item.surface for item in items],
        environment=environment,
        lights=lights,
        camera=camera,
        width=size,
        height=size,
        window=window,
        beyond=beyond,
        # More light paths in a small picture, where a finger has few pixels.
        samples=max(options.samples, round(options.samples * _PATHS * (options.size / size) ** 2)),
        bounces=3,
        seed=int(streams['light'].integers(2**31)),
    )
    return scene, labels.Staging(
        keypoints_3d=view.keypoints,
        camera=view.camera,
        is_left=is_left,
        flesh=_FLESH * shape.size * shape.thickness,
        parts=tuple(item.part for item in items),
        mask_values=tuple(item.mask for item in items),
        backdrop=backdrop,
        albedo=dress.albedo,
        has_hand=has_hand,
    )


def _window(
    items: Sequence[ingredients.Item], camera: Float[np.ndarray, '3 3'], size: int
) -> tuple[int, int, int, int]:
    """The part of the picture that surfaces can cover."""
    points = []
    for item in items:
        vertices = np.asarray(item.surface.vertices, np.float64)
        if vertices[:, 2].min() < 0.02:
            return 0, 0, size, size
        points.append(views.project(camera, vertices))
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
