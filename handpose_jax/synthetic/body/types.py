"""What a hand body is: the contract between skeleton, meshes and renderer (types only).

The hand frame, metres, of a right hand: origin at the wrist keypoint; +y from the wrist to the
base of the middle finger; +z out of the back of the hand; +x completes a right-handed frame and
points to the little finger's side. A left hand is the same body mirrored (x -> -x) at the very end.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

SKIN, NAIL, CLOTH = 0, 1, 2
"""Regions of a mesh, each with its own material."""


class HandPose(NamedTuple):
    """Joint angles of one hand, radians; zero is a flat, straight hand.

    Attributes:
        fingers: for thumb, index, middle, ring, little: abduction of the first joint (positive away
            from the middle finger; the middle finger's towards the little one), then flexion
            (positive towards the palm) of the three joints, base to tip. The thumb's are those of
            its carpometacarpal joint (both), metacarpophalangeal and interphalangeal joint.
        wrist: flexion (positive towards the palm) and deviation (positive towards the little
            finger) of the hand against the forearm.
    """

    fingers: Float[np.ndarray, '5 4']
    wrist: Float[np.ndarray, '2']


class HandShape(NamedTuple):
    """Proportions of one hand, as factors on a body's own.

    Attributes:
        size: of everything; 1 is an adult hand of about 18.5 cm, wrist to middle fingertip.
        lengths: of each finger's bones, thumb to little.
        thickness: of flesh around the bones.
        palm_width: of the palm.
    """

    size: float
    lengths: Float[np.ndarray, '5']
    thickness: float
    palm_width: float


class PosedBody(NamedTuple):
    """A body in one pose, in the hand frame, metres; always a right hand.

    Attributes:
        vertices: f32[v 3].
        normals: f32[v 3], unit, outward.
        faces: i32[f 3], counter-clockwise from outside.
        uv: f32[v 2], texture coordinates, v up.
        regions: i32[f], SKIN, NAIL or CLOTH.
        keypoints: f64[21 3], the joints' centres, and the fingertips just under the skin.
    """

    vertices: Float[np.ndarray, 'v 3']
    normals: Float[np.ndarray, 'v 3']
    faces: Int[np.ndarray, 'f 3']
    uv: Float[np.ndarray, 'v 2']
    regions: Int[np.ndarray, 'f']
    keypoints: Float[np.ndarray, '21 3']
