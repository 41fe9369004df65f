"""External hands: any glTF 2.0 rig (.gltf or .glb), posed by the angles of types.HandPose.

Only what a rigged hand needs is read: meshes with a skin, their positions, normals, texture
coordinates, joints and weights, and the inverse bind matrices. The bind pose is the rest pose;
animations, materials and node transforms are ignored. Directions of fingers and palm come from
where the joints lie, so neither the rig's axes nor its unit nor its handedness matter. Every bone
is then turned to the frame that skeleton.forward_kinematics gives it: a pose means the same on
every body.
"""

import base64
import itertools
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from handpose_jax import hand
from handpose_jax.synthetic.body import meshes, skeleton, types

ADULT_LENGTH = 0.185
"""Wrist to middle fingertip of a straight hand of size 1, metres (see types.HandShape)."""


def _bone_names() -> dict[str, tuple[str, ...]]:
    names: dict[str, tuple[str, ...]] = {'wrist': ('wrist', 'hand')}
    for finger, keypoints in hand.FINGERS.items():
        short = 'pinky' if finger == 'little' else finger
        webxr_finger = finger if finger == 'thumb' else f'{short}finger'
        first = ('metacarpal', 'proximal') if finger == 'thumb' else ('proximal', 'intermediate')
        parts = (*first, 'distal', 'tip')
        for number, (keypoint, part) in enumerate(zip(keypoints, parts, strict=True), start=1):
            phalanx = part if part in ('metacarpal', 'tip') else f'phalanx{part}'
            names[hand.KEYPOINT_NAMES[keypoint]] = (
                f'{finger}{part}',
                f'{webxr_finger}{phalanx}',
                f'{short}{part}',
                f'{short}fingerphalanx{part}',
                f'hand{short}{number}',
            )
    return names


BONE_NAMES: dict[str, tuple[str, ...]] = _bone_names()
"""For each keypoint the names its bone is known by, as `plain_name` writes them.

Godot and OpenXR ('Index_Proximal_R'), WebXR ('index-finger-phalanx-proximal') and Mixamo
('RightHandIndex1') are covered.
"""


def plain_name(bone: str) -> str:
    """A bone's name in lower case, without side, prefix before a colon and punctuation."""
    name = re.sub(r'(?<=[a-z])(?=[A-Z])', '_', bone.split(':')[-1]).lower()
    words = [word for word in re.split(r'[^a-z0-9]+', name) if word]
    return ''.join(word for word in words if word not in ('l', 'r', 'left', 'right'))


class _Mesh(NamedTuple):
    """A skinned mesh in its bind pose, in the file's own frame."""

    vertices: Float[np.ndarray, 'v 3']
    uv: Float[np.ndarray, 'v 2']
    faces: Int[np.ndarray, 'f 3']
    weights: Float[np.ndarray, 'v j']
    heads: Float[np.ndarray, 'j 3']
    names: tuple[str, ...]
    parents: tuple[int, ...]  # -1 for a root


class GltfRig:
    """A body made from a glTF hand rig; a left one is mirrored to right when it is read."""

    def __init__(self, path: str | Path) -> None:
        """Reads a rig.

        Args:
            path: a .gltf (with its buffers embedded or beside it) or .glb file.

        Raises:
            ValueError: if the file is no rigged hand; names the bones that it lacks.
        """
        path = Path(path)
        mesh = _read_mesh(path)
        joints = _find_bones(mesh.names, path)
        rig_from_file = _hand_frame(mesh.heads[joints], path)
        origin = mesh.heads[joints[hand.WRIST]]
        vertices = (mesh.vertices - origin) @ rig_from_file.T
        heads = (mesh.heads[joints] - origin) @ rig_from_file.T
        mirrored = np.linalg.det(rig_from_file) < 0
        faces = mesh.faces[:, ::-1] if mirrored else mesh.faces

        weights = np.zeros((len(vertices), hand.NUM_KEYPOINTS))
        for joint, bone in enumerate(_bone_of_joint(mesh.parents, joints)):
            weights[:, bone] += mesh.weights[:, joint]

        vertices, uv, faces, weights = _with_forearm(vertices, mesh.uv, faces, weights)
        self._vertices = vertices
        self._weights = _with_wrist(vertices, weights)
        self._uv = uv.astype(np.float32)
        self._faces = np.ascontiguousarray(faces, np.int32)
        self._welded = _weld(vertices)
        self._heads = _with_fingertips(heads, vertices, weights)
        self._frames = _rest_frames(self._heads)

    def pose(self, shape: types.HandShape, pose: types.HandPose) -> types.PosedBody:
        """Moves the rig into a pose: angles, radians; not clamped."""
        target = skeleton.forward_kinematics(shape, pose).frames
        palm = shape.size * np.diag([shape.palm_width, 1.0, shape.thickness])
        linear = np.empty((hand.NUM_KEYPOINTS, 3, 3))
        offset = np.zeros((hand.NUM_KEYPOINTS, 3))
        linear[hand.WRIST] = target[hand.WRIST] @ palm
        keypoints = np.zeros((hand.NUM_KEYPOINTS, 3))
        for finger, chain in enumerate(hand.FINGERS.values()):
            base = chain[0]
            linear[base] = target[base] @ palm
            keypoints[base] = linear[base] @ self._heads[base]
            stretch = shape.size * np.diag(
                [shape.thickness, shape.lengths[finger], shape.thickness]
            )
            for parent, bone in itertools.pairwise(chain):
                linear[bone] = target[bone] @ stretch @ self._frames[bone].T
                offset[bone] = keypoints[parent] - linear[bone] @ self._heads[parent]
                keypoints[bone] = linear[bone] @ self._heads[bone] + offset[bone]
        # Linear blend skinning: blend the maps, then apply each vertex's own.
        maps = self._weights @ np.concatenate([linear, offset[..., None]], axis=2).reshape(-1, 12)
        maps = maps.reshape(-1, 3, 4)
        vertices = np.einsum('vij,vj->vi', maps[..., :3], self._vertices) + maps[..., 3]
        return types.PosedBody(
            vertices=vertices.astype(np.float32),
            normals=meshes.vertex_normals(vertices, self._faces, self._welded),
            faces=self._faces,
            uv=self._uv,
            regions=np.full(len(self._faces), types.SKIN, np.int32),
            keypoints=keypoints,
        )


_COMPONENTS = {5120: 'i1', 5121: 'u1', 5122: 'i2', 5123: 'u2', 5125: 'u4', 5126: 'f4'}
_WIDTHS = {'SCALAR': 1, 'VEC2': 2, 'VEC3': 3, 'VEC4': 4, 'MAT4': 16}


def _load_gltf(path: Path) -> tuple[dict[str, Any], list[bytes]]:
    """The document and its buffers."""
    content = path.read_bytes()
    blob = b''
    if content[:4] == b'glTF':
        # A 12-byte header, then chunks of length, type and content.
        # Source: glTF 2.0 specification, section 4.4.
        length = int.from_bytes(content[12:16], 'little')
        blob = content[20 + length + 8 :]
        content = content[20 : 20 + length]
    try:
        document = json.loads(content)
        buffers = []
        for buffer in document['buffers']:
            uri = buffer.get('uri')
            if uri is None:
                buffers.append(blob)
            elif uri.startswith('data:'):
                buffers.append(base64.b64decode(uri.split(',', 1)[1]))
            else:
                buffers.append((path.parent / uri).read_bytes())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f'{path}: not a glTF 2.0 file (.gltf or .glb): {error!r}') from error
    return document, buffers


def _read_mesh(path: Path) -> _Mesh:
    document, buffers = _load_gltf(path)
    users = [n for n in document.get('nodes', []) if 'skin' in n and 'mesh' in n]
    if not document.get('skins') or not users:
        raise ValueError(
            f'{path}: has no mesh with a skin, so nothing can be posed; export the hand together '
            f'with its armature'
        )
    skin, nodes = document['skins'][users[0]['skin']], document['nodes']
    joints = skin['joints']

    def array(index: int) -> Float[np.ndarray, 'n k']:
        accessor = document['accessors'][index]
        if 'sparse' in accessor or 'bufferView' not in accessor:
            raise ValueError(
                f'{path}: accessor {index} is sparse or compressed; export without compression'
            )
        view = document['bufferViews'][accessor['bufferView']]
        dtype = np.dtype(_COMPONENTS[accessor['componentType']]).newbyteorder('<')
        width = _WIDTHS[accessor['type']]
        start = view.get('byteOffset', 0) + accessor.get('byteOffset', 0)
        rows = np.ndarray(
            (accessor['count'], width),
            dtype,
            buffers[view['buffer']],
            start,
            (view.get('byteStride', width * dtype.itemsize), dtype.itemsize),
        )
        values = rows.astype(np.float64)
        return values / np.iinfo(dtype).max if accessor.get('normalized') else values

    parts: list[tuple[np.ndarray, ...]] = []
    count = 0
    for primitive in document['meshes'][users[0]['mesh']]['primitives']:
        names = primitive['attributes']
        lacking = {'POSITION', 'JOINTS_0', 'WEIGHTS_0'} - set(names)
        if lacking or primitive.get('mode', 4) != 4 or 'indices' not in primitive:
            raise ValueError(
                f'{path}: expected indexed triangles with a skin, but the mesh lacks '
                f'{sorted(lacking) or "triangles"}'
            )
        positions = array(names['POSITION'])
        uv = array(names['TEXCOORD_0']) if 'TEXCOORD_0' in names else np.zeros((len(positions), 2))
        weights = np.zeros((len(positions), len(joints)))
        for number in range(len(names)):
            if f'JOINTS_{number}' in names:
                which = array(names[f'JOINTS_{number}']).astype(int)
                amount = array(names[f'WEIGHTS_{number}'])
                np.add.at(weights, (np.arange(len(positions))[:, None], which), amount)
        weights /= np.maximum(weights.sum(axis=1, keepdims=True), 1e-9)
        faces = array(primitive['indices']).astype(int).reshape(-1, 3) + count
        parts.append((positions, uv, faces, weights))
        count += len(positions)
    positions, uv, faces, weights = (np.concatenate(column) for column in zip(*parts, strict=True))

    if 'inverseBindMatrices' in skin:
        inverse = array(skin['inverseBindMatrices']).reshape(-1, 4, 4).transpose(0, 2, 1)
    else:
        inverse = np.tile(np.eye(4), (len(joints), 1, 1))
    parent_of = {child: n for n, node in enumerate(nodes) for child in node.get('children', [])}
    number_of = {node: number for number, node in enumerate(joints)}
    return _Mesh(
        vertices=positions,
        # glTF counts v from the top row of the picture, this package from the bottom.
        uv=np.column_stack([uv[:, 0], 1.0 - uv[:, 1]]),
        faces=faces,
        weights=weights,
        heads=np.linalg.inv(inverse)[:, :3, 3],
        names=tuple(nodes[node].get('name', f'node {node}') for node in joints),
        parents=tuple(number_of.get(parent_of.get(node, -1), -1) for node in joints),
    )


def _find_bones(names: tuple[str, ...], path: Path) -> list[int]:
    """The joint of each keypoint."""
    # The first of several bones that have one plain name.
    plain = {plain_name(name): number for number, name in reversed(list(enumerate(names)))}
    hits = {
        keypoint: [plain[alias] for alias in aliases if alias in plain]
        for keypoint, aliases in BONE_NAMES.items()
    }
    lacking = [
        f'{key} ({" or ".join(BONE_NAMES[key])})' for key, found in hits.items() if not found
    ]
    if lacking:
        raise ValueError(
            f'{path}: this rig lacks {len(lacking)} of {hand.NUM_KEYPOINTS} bones: '
            f'{", ".join(lacking)}; it has {", ".join(names)}. Rename its bones (capitals, '
            f'punctuation and the side do not matter).'
        )
    return [hits[keypoint][0] for keypoint in hand.KEYPOINT_NAMES]


def _hand_frame(heads: Float[np.ndarray, '21 3'], path: Path) -> Float[np.ndarray, '3 3']:
    """The map (with scale, and mirroring a left hand) from the file's axes to the hand frame."""
    wrist = heads[hand.WRIST]
    length = np.linalg.norm(np.diff(heads[[0, 9, 10, 11, 12]], axis=0), axis=1).sum()
    y = heads[9] - wrist
    across = heads[17] - heads[5]
    if length < 1e-9 or np.linalg.norm(np.cross(across, y)) < 1e-6 * length**2:
        raise ValueError(f'{path}: wrist, index, middle and little finger lie on one line')
    y = y / np.linalg.norm(y)
    x = across - (across @ y) * y
    x = x / np.linalg.norm(x)
    z = np.cross(x, y)
    # Fingers at rest bend to the palm; a flat hand's thumb still lies in front of it.
    fingers = skeleton.FINGER_KEYPOINTS[1:]
    bend = ((heads[fingers[:, 3]] - heads[fingers[:, 0]]) @ z / length).sum()
    thumb = (heads[[2, 3, 4]] - wrist).mean(axis=0) @ z / length
    lean = bend + thumb
    if abs(lean) < 0.01:
        raise ValueError(
            f'{path}: the fingers are straight at rest, so it cannot be seen whether this is a '
            f'left or a right hand; bend them a little in the bind pose'
        )
    if lean > 0:
        z = -z
    # The knuckles form an arch: the line from the index to the little finger's falls a little
    # towards the palm, in the rig as in the skeleton.
    arch = skeleton.FINGER_BASES[skeleton.LITTLE] - skeleton.FINGER_BASES[skeleton.INDEX]
    cos, sin = arch[[0, 2]] / np.linalg.norm(arch[[0, 2]])
    x, z = cos * x - sin * z, sin * x + cos * z
    scale = ADULT_LENGTH / (length + _FINGERTIP * length / ADULT_LENGTH)
    return scale * np.stack([x, y, z])


# How far the skin of the fingertip lies beyond the last bone's head in a typical rig, metres; only
# the rig's overall size depends on it.
_FINGERTIP = 0.008
# How deep under the skin the fingertip keypoint lies, metres.
_TIP_DEPTH = 0.003


def _bone_of_joint(parents: tuple[int, ...], keypoint_joints: list[int]) -> list[int]:
    """For each joint the keypoint at the far end of the bone that it moves."""
    ends: dict[int, int] = {keypoint_joints[hand.WRIST]: _PALM}
    for chain in hand.FINGERS.values():
        for near, far in zip(chain, (*chain[1:], chain[-1]), strict=True):
            ends[keypoint_joints[near]] = far

    def ancestors(joint: int) -> list[int]:
        line = [joint]
        while parents[line[-1]] >= 0:
            line.append(parents[line[-1]])
        return line

    # What lies between the wrist and one finger's base is that finger's metacarpal.
    above: dict[int, set[int]] = {}
    for chain in hand.FINGERS.values():
        for joint in ancestors(keypoint_joints[chain[0]])[1:]:
            above.setdefault(joint, set()).add(chain[0])
    bones = []
    for joint in range(len(parents)):
        bases = above.get(joint, set())
        if joint not in ends and len(bases) == 1:
            bones.append(next(iter(bases)))
        else:
            bones.append(next((ends[a] for a in ancestors(joint) if a in ends), _PALM))
    return bones


# The bone from the wrist to the middle finger's base stands for the whole palm.
_PALM = hand.FINGERS['middle'][0]


def _rest_frames(heads: Float[np.ndarray, '21 3']) -> Float[np.ndarray, '21 3 3']:
    """Frames (columns side, length, back) of the bones at rest, as skeleton.Skeleton has them."""
    flat = skeleton.forward_kinematics(skeleton.AVERAGE, skeleton.FLAT).frames
    frames = np.tile(np.eye(3), (hand.NUM_KEYPOINTS, 1, 1))
    for chain in hand.FINGERS.values():
        bones = np.diff(heads[list(chain)], axis=0)
        bones /= np.linalg.norm(bones, axis=1, keepdims=True)
        # A bent finger shows its own hinge; a straight one is taken to be built like ours.
        hinge = -np.cross(bones[0], bones[1]) - np.cross(bones[1], bones[2])
        usual = flat[chain[1]][:, 0]
        if np.linalg.norm(hinge) < _CLEAR_BEND or hinge @ usual < 0.9 * np.linalg.norm(hinge):
            hinge = usual
        for bone, length in zip(chain[1:], bones, strict=True):
            side = hinge - (hinge @ length) * length
            side /= np.linalg.norm(side)
            frames[bone] = np.column_stack([side, length, np.cross(side, length)])
    return frames


_CLEAR_BEND = 0.3


def _with_fingertips(
    heads: Float[np.ndarray, '21 3'],
    vertices: Float[np.ndarray, 'v 3'],
    weights: Float[np.ndarray, 'v 21'],
) -> Float[np.ndarray, '21 3']:
    """Moves the tips along their bones to just under the skin."""
    heads = heads.copy()
    for tip in hand.FINGERTIPS:
        direction = heads[tip] - heads[tip - 1]
        direction /= np.linalg.norm(direction)
        own = vertices[weights[:, tip] > 0.5]
        if len(own):
            # Not the very foremost vertex, which may be the edge of a long nail.
            reach = np.quantile((own - heads[tip - 1]) @ direction, 0.97) - _TIP_DEPTH
            heads[tip] = heads[tip - 1] + max(reach, 0.005) * direction
    return heads


def _weld(vertices: Float[np.ndarray, 'v 3']) -> Int[np.ndarray, 'v']:
    """One number for all vertices at one point."""
    grid = np.round(vertices / 1e-6).astype(np.int64)
    return np.unique(grid, axis=0, return_inverse=True)[1].reshape(-1)


# The forearm that continues a rig, in rows of vertices: how far behind the hand's end each lies
# (metres; the first is inside the hand), and how much wider and thicker than the wrist it is there.
_ARM_ROWS = np.array(
    [-0.022, -0.010, -0.002, 0.004, 0.012, 0.03, 0.055, 0.09, 0.13, 0.18, 0.24, 0.34, 0.45]
)
_ARM_WIDTH = np.array(
    [0.80, 0.97, 1.015, 1.015, 1.005, 1.0, 1.04, 1.13, 1.25, 1.37, 1.43, 1.46, 1.5]
)
_ARM_THICKNESS = np.array(
    [0.75, 0.96, 1.015, 1.02, 1.01, 1.02, 1.08, 1.2, 1.38, 1.54, 1.62, 1.7, 1.8]
)
_ARM_SEGMENTS = 28
# The wrist bends over this stretch: from fully hand to fully forearm, metres along y.
_WRIST_START, _WRIST_END = 0.012, -0.03


def _with_forearm(
    vertices: Float[np.ndarray, 'v 3'],
    uv: Float[np.ndarray, 'v 2'],
    faces: Int[np.ndarray, 'f 3'],
    weights: Float[np.ndarray, 'v 21'],
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Continues a hand that ends at the wrist: a tube that begins inside it."""
    end = vertices[:, 1].min()
    if end < -0.1:
        return vertices, uv, faces, weights
    rim = vertices[(vertices[:, 1] > end + 0.003) & (vertices[:, 1] < end + 0.02)]
    if len(rim) < 8:
        return vertices, uv, faces, weights
    centre = (rim.min(axis=0) + rim.max(axis=0)) / 2
    turn = np.linspace(0, 2 * np.pi, _ARM_SEGMENTS, endpoint=False)
    outline = _outline(rim[:, [0, 2]] - centre[[0, 2]], turn)
    rings = np.stack(
        [
            centre[0] + _ARM_WIDTH[:, None] * outline[:, 0],
            np.repeat(end - _ARM_ROWS[:, None], _ARM_SEGMENTS, axis=1),
            centre[2] + _ARM_THICKNESS[:, None] * outline[:, 1],
        ],
        axis=-1,
    )
    number = np.arange(rings[..., 0].size).reshape(rings.shape[:2])
    # The last column of the grid is the first one again.
    ring = np.append(number, number[:, :1], axis=1).ravel()
    added_faces = len(vertices) + ring[meshes.grid_faces(len(rings), _ARM_SEGMENTS + 1)]
    # Along the end a texture may show anything: all of the forearm has the colour of one point on
    # the back of the wrist.
    ahead = np.flatnonzero((vertices[:, 1] > end + 0.014) & (vertices[:, 1] < end + 0.04))
    source = ahead[np.argmax(vertices[ahead, 2] - np.abs(vertices[ahead, 0]))] if len(ahead) else 0
    count = number.size
    return (
        np.concatenate([vertices, rings.reshape(-1, 3)]),
        np.concatenate([uv, np.broadcast_to(uv[source], (count, 2))]),
        np.concatenate([faces, added_faces]),
        np.concatenate([weights, np.eye(hand.NUM_KEYPOINTS)[np.full(count, _PALM)]]),
    )


def _outline(
    points: Float[np.ndarray, 'n 2'], turn: Float[np.ndarray, 't']
) -> Float[np.ndarray, 't 2']:
    """Where the convex hull of points around the origin lies in each direction (radians)."""
    directions = np.column_stack([np.cos(turn), np.sin(turn)])
    fine = np.linspace(0, 2 * np.pi, 180, endpoint=False)
    normals = np.column_stack([np.cos(fine), np.sin(fine)])
    # A ray leaves the hull where the first of its half planes ends.
    support = (points @ normals.T).max(axis=0)
    slopes = directions @ normals.T
    lengths = np.where(slopes > 1e-6, support / np.maximum(slopes, 1e-6), np.inf).min(axis=1)
    return directions * lengths[:, None]


def _with_wrist(
    vertices: Float[np.ndarray, 'v 3'], weights: Float[np.ndarray, 'v 21']
) -> Float[np.ndarray, 'v 21']:
    """Gives what lies behind the wrist to the forearm, with a smooth passage."""
    t = np.clip((_WRIST_START - vertices[:, 1]) / (_WRIST_START - _WRIST_END), 0, 1)
    share = (t * t * (3 - 2 * t))[:, None]
    forearm = np.zeros_like(weights)
    forearm[:, hand.WRIST] = 1.0
    return weights * (1 - share) + forearm * share
