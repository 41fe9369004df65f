"""What the tests of synthetic hands compare with: slow, plain geometry; and a writer of rigs."""

import base64
import collections
import json
import struct

import numpy as np

from handpose_jax import hand
from handpose_jax.synthetic.body import skeleton, types


def winding(vertices, faces, points):
    """How often a surface surrounds each point: 1 inside, 0 outside (Van Oosterom, Strackee)."""
    turns, corners = np.zeros(len(points)), np.asarray(vertices, float)[faces]
    for index, point in enumerate(np.asarray(points)):
        a, b, c = np.moveaxis(corners - point, 1, 0)
        la, lb, lc = (np.linalg.norm(v, axis=1) for v in (a, b, c))
        top = (a * np.cross(b, c)).sum(axis=1)
        bottom = la * lb * lc + (a * b).sum(1) * lc + (b * c).sum(1) * la + (c * a).sum(1) * lb
        turns[index] = 2 * np.arctan2(top, bottom).sum() / (4 * np.pi)
    return turns


def volume(vertices, faces):
    """What a closed surface holds; negative if its faces look inwards."""
    a, b, c = np.moveaxis(np.asarray(vertices, float)[faces], 1, 0)
    return (a * np.cross(b, c)).sum() / 6


def directed_sides(faces):
    """How often each pair of vertices is the side of a face, in the order of its corners."""
    sides = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    return collections.Counter(map(tuple, sides.tolist()))


def looks_along(vertices, faces, directions):
    """Product of each face's normal, as long as twice its area, with a direction of its own."""
    corners = np.asarray(vertices, float)[faces]
    across = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    return (across * directions).sum(axis=1)


def cast(meshes, points, near=0.0):
    """The first surface on the ray through each point, by Moeller and Trumbore: depth and index."""
    depth, which = np.full(len(points), np.inf), np.full(len(points), -1)
    for index, (vertices, faces) in enumerate(meshes):
        corners = np.asarray(vertices, np.float64)[faces]
        one, two = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
        for k, point in enumerate(points):
            direction = point / point[2]
            p = np.cross(direction, two)
            determinant = (one * p).sum(axis=1)
            q = np.cross(-corners[:, 0], one)
            with np.errstate(divide='ignore', invalid='ignore'):
                u, v = (-corners[:, 0] * p).sum(axis=1) / determinant, q @ direction / determinant
                t = (two * q).sum(axis=1) / determinant
                hit = (u >= 0) & (v >= 0) & (u + v <= 1) & (t > near)
            if hit.any() and t[hit].min() < depth[k]:
                depth[k], which[k] = t[hit].min(), index
    return depth, which


def gently_bent():
    """The pose that a written rig rests in."""
    angles = np.zeros((5, 4))
    # Not at the base: there, a bent finger would hollow the palm.
    angles[:, 2:] = np.radians([24, 16])
    return types.HandPose(angles, np.zeros(2))


def keypoints_at_rest():
    return skeleton.forward_kinematics(skeleton.AVERAGE, gently_bent()).keypoints


def tube(start, end, radius, around=6):
    """An open prism around a bone: vertices in two rings, and faces that look outwards."""
    axis = (end - start) / np.linalg.norm(end - start)
    side = np.cross(axis, [0.3, 0.2, 1.0])
    side /= np.linalg.norm(side)
    turn = np.linspace(0, 2 * np.pi, around, endpoint=False)[:, None]
    circle = radius * (np.cos(turn) * side + np.sin(turn) * np.cross(axis, side))
    here, there = np.arange(around), (np.arange(around) + 1) % around
    halves = (here, there, there + around), (here, there + around, here + around)
    return np.concatenate([start + circle, end + circle]), np.concatenate(
        [np.column_stack(half) for half in halves]
    )


def godot_names():
    names = ['Wrist', *(f'Thumb_{p}' for p in ('Metacarpal', 'Proximal', 'Distal', 'Tip'))]
    for finger in ('Index', 'Middle', 'Ring', 'Little'):
        names += [f'{finger}_{p}' for p in ('Proximal', 'Intermediate', 'Distal', 'Tip')]
    return [f'{name}_R' for name in names]


def make_rig(
    path,
    *,
    keypoints=None,
    names=None,
    left=False,
    turn=None,
    scale=1.0,
    form='embedded',
    drop=(),
    extra=True,
):
    """Writes a rig: one tube a bone, rigidly bound, with a palm bone that is no keypoint."""
    keypoints = keypoints_at_rest() if keypoints is None else keypoints
    names = list(names or godot_names())
    parents = [-1] + [0] * 20
    for parent, child in hand.BONES:
        parents[child] = parent
    tubes = [tube(keypoints[a], keypoints[b], 0.008 if a else 0.012) for a, b in hand.BONES]
    vertices = np.concatenate([v for v, _ in tubes])
    faces = np.concatenate([f + 12 * number for number, (_, f) in enumerate(tubes)])
    joints = np.repeat([parent for parent, _ in hand.BONES], 12)
    if left:
        vertices, keypoints = vertices * [-1, 1, 1], keypoints * [-1, 1, 1]
        faces = faces[:, ::-1]
    move = np.eye(3) if turn is None else skeleton.rotation(np.array([1.0, 2, 3]), turn)
    vertices = scale * vertices @ move.T + [3.0, 4, 5]
    heads = scale * keypoints @ move.T + [3.0, 4, 5]
    if extra:
        # A palm bone in a frame of its own that no keypoint needs.
        names.append('Palm_R')
        parents.append(0)
        heads = np.concatenate([heads, heads[:1]])
    inverse = np.tile(np.eye(4), (len(heads), 1, 1))
    inverse[:, :3, 3] = -heads
    nodes = [{'name': name} for name in names]
    for child, parent in enumerate(parents):
        if parent >= 0:
            nodes[parent].setdefault('children', []).append(child)
    nodes.append({'mesh': 0, 'skin': 0})
    kept = [n for n in range(len(names)) if names[n] not in drop]

    arrays = [
        (vertices.astype('<f4'), 'VEC3'),
        (np.tile(np.array([0.25, 0.125], '<f4'), (len(vertices), 1)), 'VEC2'),
        (np.pad(joints[:, None], ((0, 0), (0, 3))).astype('u1'), 'VEC4'),
        (np.tile(np.array([255, 0, 0, 0], 'u1'), (len(joints), 1)), 'VEC4'),
        (faces.reshape(-1, 1).astype('<u2'), 'SCALAR'),
        (inverse[kept].transpose(0, 2, 1).reshape(-1, 16).astype('<f4'), 'MAT4'),
    ]
    blob, views, accessors = b'', [], []
    for values, kind in arrays:
        blob += b'\0' * (-len(blob) % 4)
        views.append({'buffer': 0, 'byteOffset': len(blob), 'byteLength': values.nbytes})
        accessors.append(
            {
                'bufferView': len(views) - 1,
                'componentType': {'f4': 5126, 'u1': 5121, 'u2': 5123}[values.dtype.str[1:]],
                'count': len(values),
                'type': kind,
                'normalized': len(views) == 4,
            }
        )
        blob += values.tobytes()
    attributes = {'POSITION': 0, 'TEXCOORD_0': 1, 'JOINTS_0': 2, 'WEIGHTS_0': 3}
    document = {
        'asset': {'version': '2.0'},
        'nodes': nodes,
        'meshes': [{'primitives': [{'attributes': attributes, 'indices': 4}]}],
        'skins': [{'joints': kept, 'inverseBindMatrices': 5}],
        'accessors': accessors,
        'bufferViews': views,
        'buffers': [{'byteLength': len(blob)}],
    }
    if form == 'embedded':
        uri = 'data:application/octet-stream;base64,' + base64.b64encode(blob).decode()
        document['buffers'][0]['uri'] = uri
    elif form == 'beside':
        document['buffers'][0]['uri'] = 'buffer.bin'
        (path.parent / 'buffer.bin').write_bytes(blob)
    text = json.dumps(document).encode()
    if form == 'glb':
        text += b' ' * (-len(text) % 4)
        blob += b'\0' * (-len(blob) % 4)
        chunks = struct.pack('<I4s', len(text), b'JSON') + text
        chunks += struct.pack('<I4s', len(blob), b'BIN\0') + blob
        text = struct.pack('<4sII', b'glTF', 2, 12 + len(chunks)) + chunks
    path.write_bytes(text)
    return path
