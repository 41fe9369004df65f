"""Path-traced pictures of triangle meshes, and the exact depth under every pixel's centre.

The world is the camera: metres, OpenCV's axes (x right, y down, z forward). Pixels follow the rule
of geometry.py: (0, 0) is the centre of the first one.

Mitsuba 3 does the work, in its scalar variant, which needs no GPU, display or system library. It is
imported when the first picture is made.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int

# Blocks are seeded one by one. Mitsuba's own choice of their size depends on the number of threads,
# and so would the noise.
_BLOCK = 32

NOTHING = -1
"""shape_id of pixels that show no surface."""

_LAMP = -2

# Rays from the camera begin at this depth, metres.
_NEAR = 1e-3

_Region = tuple[int, int, int, int]


@dataclass(frozen=True)
class Material:
    """How a surface reflects; colours are linear RGB.

    Attributes:
        colour: f32[h w 3] texture (first row at the top, v = 1), or one f32[3]. A texture that
            never changes should be a read-only array: it is then converted only once.
        roughness: 0 (mirror) to 1 (chalk), or a texture f32[h w].
        specular: strength of the reflection of a non-metal, 0..1.
        metallic: 0 or 1.
        sheen: soft edge reflection of cloth, 0..1.
        bumps: normal map f32[h w 3], components coded as 0.5 + 0.5 x, or None.
    """

    colour: np.ndarray
    roughness: float | np.ndarray = 0.5
    specular: float = 0.5
    metallic: float = 0.0
    sheen: float = 0.0
    bumps: np.ndarray | None = None


@dataclass(frozen=True)
class Surface:
    """A triangle mesh in the camera frame.

    Attributes:
        vertices: f32[v 3], metres.
        normals: f32[v 3], unit, outward; None for flat faces.
        faces: i32[f 3].
        uv: f32[v 2], v up, or None.
        colours: f32[v 3] linear RGB at the vertices instead of the material's colour, or None.
        material: see Material.
    """

    vertices: np.ndarray
    faces: np.ndarray
    material: Material
    normals: np.ndarray | None = None
    uv: np.ndarray | None = None
    colours: np.ndarray | None = None


@dataclass(frozen=True)
class PanelLight:
    """A square lamp.

    Attributes:
        position: f64[3], metres, camera frame.
        target: f64[3] that it faces.
        side: metres.
        radiance: f64[3], linear RGB.
    """

    position: np.ndarray
    target: np.ndarray
    side: float
    radiance: np.ndarray


@dataclass(frozen=True)
class PointLight:
    """A lamp without extent: hard shadows.

    Attributes:
        position: f64[3], metres, camera frame.
        intensity: f64[3], linear RGB.
    """

    position: np.ndarray
    intensity: np.ndarray


@dataclass(frozen=True)
class DirectionalLight:
    """A light as far as the sun.

    Attributes:
        direction: f64[3], of the light's travel, camera frame.
        irradiance: f64[3], linear RGB.
    """

    direction: np.ndarray
    irradiance: np.ndarray


@dataclass(frozen=True)
class Scene:
    """What one picture shows.

    Attributes:
        surfaces: their indices are the shape_id of the result.
        environment: f32[h w 3] linear RGB light from everywhere, latitudes (row 0 is `up`) by
            longitudes; or f64[3] for the same from all sides.
        up: f64[3], where the environment's row 0 comes from, camera frame.
        lights: lamps; they are not seen themselves.
        camera: f64[3 3] intrinsic matrix, square pixels, no skew.
        width: pixels.
        height: pixels.
        window: x0, y0, x1, y1: columns x0..x1-1 and rows y0..y1-1 that matter; all unless given.
        beyond: render the rest, too, with a single light path a pixel; else it stays empty.
        samples: light paths a pixel of the window.
        bounces: longest light path, counted in edges from the eye; 2 is direct light only.
        seed: of the light paths.
    """

    surfaces: Sequence[Surface]
    environment: np.ndarray
    camera: np.ndarray
    width: int
    height: int
    up: np.ndarray = field(default_factory=lambda: np.array([0.0, -1.0, 0.0]))
    lights: Sequence[PanelLight | PointLight | DirectionalLight] = ()
    window: tuple[int, int, int, int] | None = None
    beyond: bool = False
    samples: int = 4
    bounces: int = 3
    seed: int = 0


class RenderBuffers(NamedTuple):
    """A rendered picture.

    Attributes:
        rgb: f32[h w 3], linear, premultiplied by alpha; smoothed where the surface is.
        alpha: f32[h w], the part of each pixel that surfaces cover, softened a little.
        depth: f32[h w], z of the surface under the pixel's centre, metres; infinite where none is.
        shape_id: i32[h w], which surface that is, or NOTHING.
    """

    rgb: Float[np.ndarray, 'h w 3']
    alpha: Float[np.ndarray, 'h w']
    depth: Float[np.ndarray, 'h w']
    shape_id: Int[np.ndarray, 'h w']


class Picture:
    """A scene made ready: render it, or ask what a ray meets."""

    def __init__(self, scene: Scene) -> None:
        self._mi = _mitsuba()
        self.scene = scene
        whole = (0, 0, scene.width, scene.height)
        self._window = scene.window or whole
        self._region = whole if scene.beyond else self._window
        self._loaded = _load(self._mi, scene)
        # Mitsuba numbers shapes from 1 in the order of shapes(); lamps are among them.
        numbers = [NOTHING]
        for shape in self._loaded.shapes():
            name = shape.id()
            is_surface = name.startswith('surface_')
            numbers.append(int(name.removeprefix('surface_')) if is_surface else _LAMP)
        self._surface_of_shape = np.array(numbers, np.int32)

    def render(self) -> RenderBuffers:
        """Renders colour, coverage, depth and shapes."""
        scene = self.scene
        x0, y0, x1, y1 = self._region
        colour = self._colour(self._window, scene.samples)
        if self._region != self._window:
            fine, colour = colour, self._colour(self._region, 1)
            left, top, right, bottom = self._window
            colour[top:bottom, left:right] = fine
        exact = self._pass(
            # Every channel costs as much time as a ray.
            {'type': 'aov', 'aovs': 'far:depth,shape:shape_index,own:albedo'},
            # One sample without jitter: through the pixel's centre.
            {'type': 'stratified', 'sample_count': 1, 'jitter': False},
            'rgb',
            self._region,
        )
        shape = (scene.height, scene.width)
        rgb = np.zeros((*shape, 3), np.float32)
        alpha = np.zeros(shape, np.float32)
        depth = np.full(shape, np.inf, np.float32)
        shape_id = np.full(shape, NOTHING, np.int32)
        # A few samples tell little about a pixel's coverage; with its neighbours' they tell enough.
        coverage = cv2.GaussianBlur(np.ascontiguousarray(colour[..., 3]), (3, 3), 0.7)
        alpha[y0:y1, x0:x1] = np.clip(coverage, 0, 1)
        shapes = self._surface_of_shape[exact[..., 1].astype(int)]
        shown = shapes >= 0
        # Mitsuba's depth is the distance along the ray, which begins at the near plane.
        z = exact[..., 0] / self._obliqueness()[y0:y1, x0:x1] + _NEAR
        depth[y0:y1, x0:x1][shown] = z[shown]
        shape_id[y0:y1, x0:x1][shown] = shapes[shown]
        for y, x in np.argwhere(shapes == _LAMP):
            behind = self._first_surface(self._ray_of_pixel(int(x) + x0, int(y) + y0))
            if behind is not None:
                depth[y + y0, x + x0], shape_id[y + y0, x + x0] = behind
        rgb[y0:y1, x0:x1] = _smoothed(
            np.maximum(np.nan_to_num(colour[..., :3]), 0),
            focal=float(scene.camera[0, 0]),
            traced=colour[..., 3],
            alpha=alpha[y0:y1, x0:x1],
            albedo=exact[..., 2:5],
            depth=depth[y0:y1, x0:x1],
            shape_id=shape_id[y0:y1, x0:x1],
        )
        return RenderBuffers(rgb, alpha, depth, shape_id)

    def _colour(self, region: _Region, samples: int) -> Float[np.ndarray, 'h w 4']:
        integrator = {'type': 'path', 'max_depth': self.scene.bounces, 'hide_emitters': True}
        # Strata are a square grid.
        square = math.isqrt(samples) ** 2 == samples
        sampler = {'type': 'stratified' if square else 'independent', 'sample_count': samples}
        return self._pass(integrator, sampler, 'rgba', region)

    def _pass(
        self,
        integrator: dict[str, Any],
        sampler: dict[str, Any],
        pixel_format: str,
        region: _Region,
    ) -> Float[np.ndarray, 'h w c']:
        mi, scene = self._mi, self.scene
        sensor = mi.load_dict(_sensor(mi, scene, sampler, pixel_format, region))
        tracer = mi.load_dict({**integrator, 'block_size': _BLOCK})
        picture = mi.render(self._loaded, sensor=sensor, integrator=tracer, seed=scene.seed)
        return np.array(picture)

    def _obliqueness(self) -> Float[np.ndarray, 'h w']:
        """Distance from the eye for each unit of depth, through every pixel's centre."""
        camera = np.asarray(self.scene.camera, np.float64)
        x = (np.arange(self.scene.width) - camera[0, 2]) / camera[0, 0]
        y = (np.arange(self.scene.height) - camera[1, 2]) / camera[1, 1]
        return np.sqrt(1 + x[None, :] ** 2 + y[:, None] ** 2)

    def _ray_of_pixel(self, x: int, y: int) -> Float[np.ndarray, '3']:
        ray = np.linalg.solve(np.asarray(self.scene.camera, np.float64), [x, y, 1.0])
        return ray / np.linalg.norm(ray)

    def _first_surface(self, direction: Float[np.ndarray, '3']) -> tuple[float, int] | None:
        """Depth (z) and index of the first surface in a direction, lamps left out."""
        mi = self._mi
        start = np.zeros(3)
        while True:
            ray = mi.Ray3f(mi.Point3f(*start.tolist()), mi.Vector3f(*direction.tolist()))
            hit = self._loaded.ray_intersect_preliminary(ray)
            if not hit.is_valid():
                return None
            start = start + (float(hit.t) + 1e-6) * direction
            name = hit.shape.id()
            if name.startswith('surface_'):
                return float(start[2]), int(name.removeprefix('surface_'))

    def surfaces_towards(
        self, points: Float[np.ndarray, 'k 3']
    ) -> tuple[Float[np.ndarray, 'k'], Int[np.ndarray, 'k']]:
        """The rendered surface exactly where each point is seen.

        Args:
            points: camera frame, metres, in front of the eye.

        Returns:
            f64[k], depth (z) of the first surface on the ray from the eye through the point, before
            it or behind it, infinite where there is none; and i32[k], its shape_id.
        """
        depths = np.full(len(points), np.inf)
        shape_ids = np.full(len(points), NOTHING, np.int32)
        for index, point in enumerate(np.asarray(points, np.float64)):
            hit = self._first_surface(point / np.linalg.norm(point))
            if hit is not None:
                depths[index], shape_ids[index] = hit
        return depths, shape_ids


# Passes of the smoothing filter: distance to the neighbours that are averaged, pixels.
_REACHES = (1, 2, 3)
# How unlike two neighbouring pixels of one surface may be. Their depths, in relation to the depth:
# by a part for any picture, and one for each pixel that the surface recedes while it is crossed by
# one; and how much the slopes there may differ.
_DEPTH_TOLERANCE, _STEEPNESS, _SLOPE_TOLERANCE = 0.004, 3.0, 1.0


def _smoothed(
    rgb: Float[np.ndarray, 'h w 3'],
    *,
    focal: float,
    traced: Float[np.ndarray, 'h w'],
    alpha: Float[np.ndarray, 'h w'],
    albedo: Float[np.ndarray, 'h w 3'],
    depth: Float[np.ndarray, 'h w'],
    shape_id: Int[np.ndarray, 'h w'],
) -> Float[np.ndarray, 'h w 3']:
    """Averages the light (not the colour) of neighbours on one smooth piece of a surface.

    A few light paths a pixel are noisy. Pixels that show more than one surface give their
    neighbours nothing; they take the light of the one under their centre, and then a little of the
    colours around them, so that edges stay soft.

    Source: Dammertz et al. 2010, "Edge-avoiding A-Trous wavelet transform for fast global
    illumination filtering", High Performance Graphics, with the albedo divided out.
    """
    shape = rgb.shape[:2]
    recede = _DEPTH_TOLERANCE + _STEEPNESS / focal
    hit = shape_id != NOTHING
    near = np.where(hit, depth, 0.0).astype(np.float32)
    edge = np.zeros(shape, bool)
    for axis in (0, 1):
        step = np.abs(np.diff(near, axis=axis)) > recede * near.max(initial=0.0)
        step |= np.diff(shape_id, axis=axis) != 0
        before, after = [slice(None)] * 2, [slice(None)] * 2
        before[axis], after[axis] = slice(None, -1), slice(1, None)
        edge[tuple(before)] |= step
        edge[tuple(after)] |= step
    edge |= alpha < 0.999
    traced = np.where(traced > 0.01, traced, 0.0).astype(np.float32)
    # Nearly nothing, so that a pixel without neighbours of its kind keeps its own light.
    gives = np.where(hit & ~edge, 1.0, 0.02 * traced).astype(np.float32)
    gives *= hit
    albedo = np.maximum(albedo, 0.02)
    light = rgb / (albedo * np.maximum(traced, 0.05)[..., None])
    tolerance = 1.0 / (recede * near + 1e-9)
    # How steeply the surface recedes, in relation to what may be: stands for its normal.
    slope = 0.5 / (_SLOPE_TOLERANCE * near.max(initial=0.0) / focal + 1e-9)
    across = np.gradient(near, axis=1).astype(np.float32) * np.float32(slope)
    down = np.gradient(near, axis=0).astype(np.float32) * np.float32(slope)
    sloped = hit & ~edge
    # The shape is a far step in depth of its own.
    place = near + np.float32(100.0) * shape_id
    for reach in _REACHES:
        given = light * gives[..., None]
        total, weights = given.copy(), gives.copy()
        for dy, dx in itertools.product((-reach, 0, reach), repeat=2):
            if (dy == dx == 0) or abs(dy) >= shape[0] or abs(dx) >= shape[1]:
                continue
            to, of = (
                tuple(
                    slice(max(0, sign * d), min(n, n + sign * d))
                    for d, n in zip((dy, dx), shape, strict=True)
                )
                for sign in (-1, 1)
            )
            alike = 1 - np.abs(place[to] - place[of]) * (tolerance[to] * (1 / reach))
            bend = np.abs(across[to] - across[of]) + np.abs(down[to] - down[of])
            alike -= bend * (sloped[to] & sloped[of])
            np.maximum(alike, 0.0, out=alike)
            alike *= 0.5 if dy == 0 or dx == 0 else 0.25
            total[to] += alike[..., None] * given[of]
            weights[to] += alike * gives[of]
        light = total / np.maximum(weights, 1e-6)[..., None]
        # What was an edge now has the light of its own surface.
        gives = (hit & (weights > 0.1)).astype(np.float32) + gives * (weights <= 0.1)
    clean = np.where(hit[..., None], light * albedo, 0.0)
    return _soft_edges(clean, rgb, hit=hit, edge=edge, alpha=alpha)


def _soft_edges(
    clean: Float[np.ndarray, 'h w 3'],
    rgb: Float[np.ndarray, 'h w 3'],
    *,
    hit: Bool[np.ndarray, 'h w'],
    edge: Bool[np.ndarray, 'h w'],
    alpha: Float[np.ndarray, 'h w'],
) -> Float[np.ndarray, 'h w 3']:
    """Mixes the colours around every edge pixel, and lets the backdrop through by its coverage."""
    present = hit.astype(np.float32)
    colours = cv2.GaussianBlur(np.ascontiguousarray(clean * present[..., None]), (3, 3), 0.6)
    cover = cv2.GaussianBlur(present, (3, 3), 0.6)
    mixed = colours / np.maximum(cover, 1e-3)[..., None]
    # Far from every hit there is only what was traced: a sliver thinner than a pixel.
    mixed = np.where((cover > 0.02)[..., None], mixed * alpha[..., None], rgb)
    return np.where((edge | ~hit)[..., None], mixed, clean).astype(np.float32)


def render(scene: Scene) -> RenderBuffers:
    """Renders a scene (see Picture, which also answers questions about it)."""
    return Picture(scene).render()


def _mitsuba() -> Any:
    try:
        import mitsuba as mi
    except ImportError as error:
        raise ImportError('rendering hands needs Mitsuba 3: pip install mitsuba') from error
    if mi.variant() != 'scalar_rgb':
        mi.set_variant('scalar_rgb')
    return mi


def set_threads(count: int) -> None:
    """Sets on how many threads pictures are rendered; the pictures do not depend on it.

    Args:
        count: at least 1. One is best where several processes render.
    """
    _mitsuba()
    import drjit

    drjit.set_thread_count(count)


def _sensor(
    mi: Any, scene: Scene, sampler: dict[str, Any], pixel_format: str, region: _Region
) -> dict[str, Any]:
    camera = np.asarray(scene.camera, np.float64)
    x0, y0, x1, y1 = region
    return {
        'type': 'perspective',
        'fov_axis': 'x',
        'fov': math.degrees(2 * math.atan(scene.width / (2 * camera[0, 0]))),
        'near_clip': _NEAR,
        'far_clip': 100.0,
        # Mitsuba's camera has +x to the left and +y up.
        'to_world': mi.ScalarTransform4f(np.diag([-1.0, -1.0, 1.0, 1.0])),
        'principal_point_offset_x': ((scene.width - 1) / 2 - camera[0, 2]) / scene.width,
        'principal_point_offset_y': ((scene.height - 1) / 2 - camera[1, 2]) / scene.height,
        'film': {
            'type': 'hdrfilm',
            'width': scene.width,
            'height': scene.height,
            'crop_offset_x': x0,
            'crop_offset_y': y0,
            'crop_width': x1 - x0,
            'crop_height': y1 - y0,
            'pixel_format': pixel_format,
            'component_format': 'float32',
            # A box keeps every sample in its own pixel: blocks do not overlap, so neither the
            # order in which they end nor the window changes a pixel.
            'rfilter': {'type': 'box'},
        },
        'sampler': sampler,
    }


def _load(mi: Any, scene: Scene) -> Any:
    camera = np.asarray(scene.camera, np.float64)
    if camera.shape != (3, 3) or not math.isclose(camera[0, 0], camera[1, 1], rel_tol=1e-6):
        raise ValueError(f'Scene.camera must be 3 x 3 with square pixels, got {camera.tolist()}')
    x0, y0, x1, y1 = scene.window or (0, 0, scene.width, scene.height)
    if not (0 <= x0 < x1 <= scene.width and 0 <= y0 < y1 <= scene.height):
        raise ValueError(
            f'Scene.window must lie inside {scene.width} x {scene.height} and not be empty, got '
            f'{scene.window}'
        )
    description: dict[str, Any] = {
        'type': 'scene',
        'environment': _environment(mi, scene),
    }
    for index, surface in enumerate(scene.surfaces):
        description[f'surface_{index}'] = _mesh(mi, surface, f'surface_{index}')
    for index, light in enumerate(scene.lights):
        description[f'light_{index}'] = _light(mi, light)
    return mi.load_dict(description, parallel=False)


# Light paths are shared out among the sources of light by about how much each gives; none is left
# out for good.
_LEAST_WEIGHT = 1e-3


def _environment(mi: Any, scene: Scene) -> dict[str, Any]:
    light = np.ascontiguousarray(scene.environment, np.float32)
    weight = max(math.pi * float(light.mean()), _LEAST_WEIGHT)
    if light.ndim == 1:
        return {
            'type': 'constant',
            'radiance': {'type': 'rgb', 'value': light.tolist()},
            'sampling_weight': weight,
        }
    up = np.asarray(scene.up, np.float64)
    up = up / np.linalg.norm(up)
    side = np.cross(up, [0.0, 0.0, 1.0] if abs(up[2]) < 0.9 else [1.0, 0.0, 0.0])
    side /= np.linalg.norm(side)
    turned = np.eye(4)
    turned[:3, :3] = np.column_stack([side, up, np.cross(side, up)])
    return {
        'type': 'envmap',
        'bitmap': mi.Bitmap(light),
        'to_world': mi.ScalarTransform4f(turned),
        'sampling_weight': weight,
    }


def _mesh(mi: Any, surface: Surface, name: str) -> Any:
    properties = mi.Properties()
    properties['bsdf'] = mi.load_dict(_bsdf(mi, surface))
    if surface.normals is None:
        properties['face_normals'] = True
    mesh = mi.Mesh(
        name,
        len(surface.vertices),
        len(surface.faces),
        props=properties,
        has_vertex_normals=surface.normals is not None,
        has_vertex_texcoords=surface.uv is not None,
    )
    if surface.colours is not None:
        mesh.add_attribute('vertex_color', 3, np.ravel(surface.colours).astype(np.float32))
    parameters = mi.traverse(mesh)
    parameters['vertex_positions'] = np.ravel(surface.vertices).astype(np.float32)
    parameters['faces'] = np.ravel(surface.faces).astype(np.uint32)
    if surface.normals is not None:
        parameters['vertex_normals'] = np.ravel(surface.normals).astype(np.float32)
    if surface.uv is not None:
        # Mitsuba counts v from the top row of a texture.
        texcoords = np.asarray(surface.uv, np.float32) * [1.0, -1.0] + [0.0, 1.0]
        parameters['vertex_texcoords'] = np.ravel(texcoords).astype(np.float32)
    parameters.update()
    return mesh


# Textures made of read-only arrays, kept for the next picture: (array, texture).
_kept: dict[int, tuple[np.ndarray, Any]] = {}
_KEPT_TEXTURES = 64


def _texture(mi: Any, values: np.ndarray) -> Any:
    if values.flags.writeable:
        return _new_texture(mi, values)
    if id(values) not in _kept:
        if len(_kept) >= _KEPT_TEXTURES:
            _kept.clear()
        # The array is kept too, so that its identity stays its own.
        _kept[id(values)] = values, mi.load_dict(_new_texture(mi, values.copy()))
    return _kept[id(values)][1]


def _new_texture(mi: Any, values: np.ndarray) -> dict[str, Any]:
    values = np.ascontiguousarray(values, np.float32)
    if values.ndim == 2:
        values = values[..., None]
    return {'type': 'bitmap', 'bitmap': mi.Bitmap(values), 'raw': True}


def _bsdf(mi: Any, surface: Surface) -> dict[str, Any]:
    material = surface.material
    colour: dict[str, Any]
    if surface.colours is not None:
        colour = {'type': 'mesh_attribute', 'name': 'vertex_color'}
    elif np.ndim(material.colour) == 1:
        colour = {'type': 'rgb', 'value': [float(c) for c in material.colour]}
    else:
        colour = _texture(mi, material.colour)
    roughness = material.roughness
    bsdf: dict[str, Any] = {
        'type': 'principled',
        'base_color': colour,
        'roughness': roughness if isinstance(roughness, float) else _texture(mi, roughness),
        'specular': float(material.specular),
        'metallic': float(material.metallic),
    }
    if material.sheen:
        bsdf['sheen'] = float(material.sheen)
    if material.bumps is not None:
        bsdf = {
            'type': 'normalmap',
            'normalmap': _texture(mi, material.bumps),
            'bsdf': bsdf,
        }
    return {'type': 'twosided', 'bsdf': bsdf}


def _light(mi: Any, light: PanelLight | PointLight | DirectionalLight) -> dict[str, Any]:
    def rgb(values: np.ndarray) -> dict[str, Any]:
        return {'type': 'rgb', 'value': [float(v) for v in values]}

    def weight(irradiance: np.ndarray) -> float:
        return max(float(np.mean(irradiance)), _LEAST_WEIGHT)

    def point(values: np.ndarray) -> list[float]:
        return [float(v) for v in values]

    if isinstance(light, PointLight):
        position = point(light.position)
        return {
            'type': 'point',
            'position': position,
            'intensity': rgb(light.intensity),
            'sampling_weight': weight(light.intensity / float(np.square(light.position).sum())),
        }
    if isinstance(light, DirectionalLight):
        direction = point(light.direction)
        return {
            'type': 'directional',
            'direction': direction,
            'irradiance': rgb(light.irradiance),
            'sampling_weight': weight(light.irradiance),
        }
    towards = np.asarray(light.target, np.float64) - light.position
    upward = [0.0, 1.0, 0.0] if abs(towards[1]) < 0.9 * np.linalg.norm(towards) else [1.0, 0.0, 0.0]
    transform = mi.ScalarTransform4f
    return {
        'type': 'rectangle',
        'to_world': transform().look_at(
            origin=point(light.position), target=point(light.target), up=upward
        )
        @ transform().scale([light.side / 2, light.side / 2, 1.0]),
        'emitter': {
            'type': 'area',
            'radiance': rgb(light.radiance),
            'sampling_weight': weight(light.radiance * (light.side**2 / (towards @ towards))),
        },
    }
