"""Path-traced pictures of triangle meshes, and the exact depth under every pixel's centre.

The world is the camera: metres, OpenCV's axes (x right, y down, z forward). Pixels follow the rule
of geometry.py: (0, 0) is the centre of the first one.

Mitsuba 3 does the work, in its scalar variant, which needs no GPU, display or system library. It is
imported when the first picture is made.
"""

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, Int

from handpose_jax.synthetic.render import denoising, first_hits
from handpose_jax.synthetic.render.first_hits import NOTHING as NOTHING

# Blocks are seeded one by one. Mitsuba's own choice of their size depends on the number of threads,
# and so would the noise.
_BLOCK = 32

# Rays from the camera begin at this depth, metres.
_NEAR = 1e-3

_Region = tuple[int, int, int, int]


@dataclass(frozen=True)
class Material:
    """How a surface reflects; colours are linear RGB.

    Attributes:
        colour: f32[h w 3] texture (first row at the top, v = 1), or one f32[3]. A texture that
            never changes should be a read-only array: it is then converted only once.
        roughness: 0 (mirror) to 1 (chalk).
        specular: strength of the reflection of a non-metal, 0..1.
        metallic: 0 or 1.
        sheen: soft edge reflection of cloth, 0..1.
        bumps: normal map f32[h w 3], components coded as 0.5 + 0.5 x, or None.
    """

    colour: np.ndarray
    roughness: float = 0.5
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
        material: see Material.
    """

    vertices: np.ndarray
    faces: np.ndarray
    material: Material
    normals: np.ndarray | None = None
    uv: np.ndarray | None = None


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


Light = PanelLight | PointLight | DirectionalLight


@dataclass(frozen=True)
class Scene:
    """What one picture shows.

    Attributes:
        surfaces: their indices are the shape_id of the result.
        environment: f64[3], linear RGB light, the same from all sides.
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
    lights: Sequence[Light] = ()
    window: _Region | None = None
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

    def render(self) -> RenderBuffers:
        """Renders colour, coverage, depth and shapes."""
        scene = self.scene
        x0, y0, x1, y1 = self._region
        colour = self._colour(self._window, scene.samples)
        if self._region != self._window:
            fine, colour = colour, self._colour(self._region, 1)
            left, top, right, bottom = self._window
            colour[top:bottom, left:right] = fine
        meshes = [(surface.vertices, surface.faces) for surface in scene.surfaces]
        hits = first_hits.find(meshes, scene.camera, self._region, near=_NEAR)
        shape = (scene.height, scene.width)
        rgb = np.zeros((*shape, 3), np.float32)
        alpha = np.zeros(shape, np.float32)
        depth = np.full(shape, np.inf, np.float32)
        shape_id = np.full(shape, NOTHING, np.int32)
        shown = hits.shape_id != NOTHING
        # A few samples tell little about a pixel's coverage; with its neighbours' they tell enough.
        coverage = (scene.samples * colour[..., 3] + shown) / (scene.samples + 1)
        coverage = cv2.GaussianBlur(np.asarray(coverage, np.float32), (3, 3), 0.7)
        alpha[y0:y1, x0:x1] = np.clip(coverage, 0, 1)
        depth[y0:y1, x0:x1] = hits.depth
        shape_id[y0:y1, x0:x1] = hits.shape_id
        albedo, normals = _appearance(scene.surfaces, hits)
        rgb[y0:y1, x0:x1] = denoising.smooth(
            np.maximum(np.nan_to_num(colour[..., :3]), 0),
            focal=float(scene.camera[0, 0]),
            traced=colour[..., 3],
            alpha=alpha[y0:y1, x0:x1],
            albedo=albedo,
            positions=self._rays(self._region) * np.where(shown, hits.depth, 0)[..., None],
            normals=normals,
            shape_id=hits.shape_id,
        )
        return RenderBuffers(rgb, alpha, depth, shape_id)

    def _colour(self, region: _Region, samples: int) -> Float[np.ndarray, 'h w 4']:
        mi, scene = self._mi, self.scene
        path = {'type': 'path', 'max_depth': scene.bounces, 'hide_emitters': True}
        tracer = mi.load_dict({**path, 'block_size': _BLOCK})
        sensor = mi.load_dict(_sensor(mi, scene, samples, region))
        return np.array(mi.render(self._loaded, sensor=sensor, integrator=tracer, seed=scene.seed))

    def _rays(self, region: _Region) -> Float[np.ndarray, 'h w 3']:
        """The points at depth 1 that are seen at the pixels' centres."""
        camera = np.asarray(self.scene.camera, np.float64)
        x0, y0, x1, y1 = region
        rays = np.ones((y1 - y0, x1 - x0, 3), np.float32)
        rays[..., 0] = (np.arange(x0, x1) - camera[0, 2]) / camera[0, 0]
        rays[..., 1] = ((np.arange(y0, y1) - camera[1, 2]) / camera[1, 1])[:, None]
        return rays

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


def _appearance(
    surfaces: Sequence[Surface], hits: first_hits.Hits
) -> tuple[Float[np.ndarray, 'h w 3'], Float[np.ndarray, 'h w 3']]:
    """Reflectance and unit normal under every pixel's centre; 0 where there is no surface."""
    shape = hits.shape_id.shape
    albedo = np.zeros((hits.shape_id.size, 3), np.float32)
    normals = np.zeros((hits.shape_id.size, 3), np.float32)
    ids, faces, weights = hits.shape_id.ravel(), hits.face.ravel(), hits.weights.reshape(-1, 3)
    for index, surface in enumerate(surfaces):
        at = np.flatnonzero(ids == index)
        if not len(at):
            continue
        corners, share = np.asarray(surface.faces)[faces[at]], weights[at]

        def between(values: np.ndarray, c: np.ndarray = corners, w: np.ndarray = share) -> Any:
            return sum(w[:, k, None] * values[c[:, k]] for k in range(3))

        if surface.normals is None:
            a, b, c = (np.asarray(surface.vertices)[corners[:, k]] for k in range(3))
            normal = np.cross(b - a, c - a)
        else:
            normal = between(surface.normals)
        length = np.sqrt((normal**2).sum(axis=1, keepdims=True))
        normals[at] = normal / np.maximum(length, 1e-12)
        colour = surface.material.colour
        if np.ndim(colour) == 1 or surface.uv is None:
            albedo[at] = np.mean(np.reshape(colour, (-1, 3)), axis=0)
        else:
            albedo[at] = _texels(colour, between(surface.uv))
    return albedo.reshape(*shape, 3), normals.reshape(*shape, 3)


# OpenCV takes no more than 32767 rows or columns.
_ROW = 256


def _texels(texture: np.ndarray, uv: Float[np.ndarray, 'n 2']) -> Float[np.ndarray, 'n 3']:
    """A texture's values at texture coordinates (v up), as Mitsuba has them: bilinear, repeated."""
    height, width = texture.shape[:2]
    at = np.zeros((2, -(-len(uv) // _ROW) * _ROW), np.float32)
    at[0, : len(uv)] = np.mod(uv[:, 0], 1) * width - 0.5
    at[1, : len(uv)] = np.mod(1 - uv[:, 1], 1) * height - 0.5
    x, y = at.reshape(2, -1, _ROW)
    texture = np.ascontiguousarray(texture, np.float32)
    values = cv2.remap(texture, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
    return np.asarray(values, np.float32).reshape(-1, 3)[: len(uv)]


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


def _sensor(mi: Any, scene: Scene, samples: int, region: _Region) -> dict[str, Any]:
    camera = np.asarray(scene.camera, np.float64)
    x0, y0, x1, y1 = region
    # Strata are a square grid.
    kind = 'stratified' if math.isqrt(samples) ** 2 == samples else 'independent'
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
            'pixel_format': 'rgba',
            'component_format': 'float32',
            # A box keeps every sample in its own pixel: blocks do not overlap, so neither the
            # order in which they end nor the window changes a pixel.
            'rfilter': {'type': 'box'},
        },
        'sampler': {'type': kind, 'sample_count': samples},
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
    environment = np.asarray(scene.environment, np.float32)
    description: dict[str, Any] = {
        'type': 'scene',
        'environment': {
            'type': 'constant',
            'radiance': _rgb(environment),
            'sampling_weight': _weight(math.pi * float(environment.mean())),
        },
    }
    for index, surface in enumerate(scene.surfaces):
        description[f'surface_{index}'] = _mesh(mi, surface, f'surface_{index}')
    for index, light in enumerate(scene.lights):
        description[f'light_{index}'] = _light(mi, light)
    # Optimised, the order of lamps, and so the noise, would depend on where they lie in memory.
    return mi.load_dict(description, parallel=False, optimize=False)


# Light paths are shared out among the sources of light by about how much each gives; none is left
# out for good.
_LEAST_WEIGHT = 1e-3


def _weight(irradiance: np.ndarray | float) -> float:
    return max(float(np.mean(irradiance)), _LEAST_WEIGHT)


def _rgb(values: np.ndarray) -> dict[str, Any]:
    return {'type': 'rgb', 'value': _floats(values)}


def _floats(values: np.ndarray) -> list[float]:
    return [float(value) for value in values]


def _mesh(mi: Any, surface: Surface, name: str) -> Any:
    properties = mi.Properties()
    properties['bsdf'] = mi.load_dict(_bsdf(mi, surface.material))
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
    parameters = mi.traverse(mesh)
    _fill(parameters, 'vertex_positions', surface.vertices, np.float32)
    _fill(parameters, 'faces', surface.faces, np.uint32)
    if surface.normals is not None:
        _fill(parameters, 'vertex_normals', surface.normals, np.float32)
    if surface.uv is not None:
        # Mitsuba counts v from the top row of a texture.
        texcoords = np.asarray(surface.uv, np.float32) * [1.0, -1.0] + [0.0, 1.0]
        _fill(parameters, 'vertex_texcoords', texcoords, np.float32)
    parameters.update()
    return mesh


def _fill(parameters: Any, name: str, values: np.ndarray, dtype: type) -> None:
    """Copies values into a mesh's own memory; to assign them takes fifty times as long."""
    memory = np.from_dlpack(parameters[name])
    values = np.ascontiguousarray(values, dtype).ravel()
    if memory.shape != values.shape or memory.dtype != values.dtype:
        raise ValueError(f'Surface: expected {memory.shape} values of {name}, got {values.shape}')
    # Mitsuba hands out a view that may only be read.
    ctypes.memmove(memory.ctypes.data, values.ctypes.data, values.nbytes)
    parameters.set_dirty(name)


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
    bitmap = mi.Bitmap(np.ascontiguousarray(values, np.float32))
    return {'type': 'bitmap', 'bitmap': bitmap, 'raw': True}


def _bsdf(mi: Any, material: Material) -> dict[str, Any]:
    flat = np.ndim(material.colour) == 1
    bsdf: dict[str, Any] = {
        'type': 'principled',
        'base_color': _rgb(material.colour) if flat else _texture(mi, material.colour),
        'roughness': float(material.roughness),
        'specular': float(material.specular),
        'metallic': float(material.metallic),
    }
    if material.sheen:
        bsdf['sheen'] = float(material.sheen)
    if material.bumps is not None:
        bumps = _texture(mi, material.bumps)
        bsdf = {'type': 'normalmap', 'normalmap': bumps, 'bsdf': bsdf}
    return {'type': 'twosided', 'bsdf': bsdf}


def _light(mi: Any, light: Light) -> dict[str, Any]:
    if isinstance(light, PointLight):
        irradiance = light.intensity / float(np.square(light.position).sum())
        return {
            'type': 'point',
            'position': _floats(light.position),
            'intensity': _rgb(light.intensity),
            'sampling_weight': _weight(irradiance),
        }
    if isinstance(light, DirectionalLight):
        return {
            'type': 'directional',
            'direction': _floats(light.direction),
            'irradiance': _rgb(light.irradiance),
            'sampling_weight': _weight(light.irradiance),
        }
    towards = np.asarray(light.target, np.float64) - light.position
    upward = [0.0, 1.0, 0.0] if abs(towards[1]) < 0.9 * np.linalg.norm(towards) else [1.0, 0.0, 0.0]
    transform = mi.ScalarTransform4f
    facing = transform().look_at(
        origin=_floats(light.position), target=_floats(light.target), up=upward
    )
    return {
        'type': 'rectangle',
        'to_world': facing @ transform().scale([light.side / 2, light.side / 2, 1.0]),
        'emitter': {
            'type': 'area',
            'radiance': _rgb(light.radiance),
            'sampling_weight': _weight(light.radiance * (light.side**2 / (towards @ towards))),
        },
    }
