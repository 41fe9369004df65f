"""The hand: 21 keypoints, five fingers, the bones between them, and their colours.

Pure Python, no imports: everything else in the package may rely on it.

Order (paper.md section 4; CMU, FreiHAND and MediaPipe use the same): the wrist, then thumb, index,
middle, ring and little finger, each from its base to its tip.
"""

NUM_KEYPOINTS = 21

WRIST = 0

FINGERS: dict[str, tuple[int, int, int, int]] = {
    'thumb': (1, 2, 3, 4),
    'index': (5, 6, 7, 8),
    'middle': (9, 10, 11, 12),
    'ring': (13, 14, 15, 16),
    'little': (17, 18, 19, 20),
}
"""Keypoint indices of each finger, base to tip."""

# The thumb has its own anatomy: carpometacarpal, metacarpophalangeal and one interphalangeal joint.
_THUMB_PARTS = ('cmc', 'mcp', 'ip', 'tip')
_FINGER_PARTS = ('mcp', 'pip', 'dip', 'tip')

KEYPOINT_NAMES: tuple[str, ...] = (
    'wrist',
    *(
        f'{finger}_{part}'
        for finger in FINGERS
        for part in (_THUMB_PARTS if finger == 'thumb' else _FINGER_PARTS)
    ),
)

FINGERTIPS: tuple[int, ...] = tuple(indices[-1] for indices in FINGERS.values())

BONES: tuple[tuple[int, int], ...] = tuple(
    bone
    for indices in FINGERS.values()
    for bone in zip((WRIST, *indices[:-1]), indices, strict=True)
)
"""The 20 (parent, child) pairs; every keypoint but the wrist is the child of exactly one."""

WRIST_COLOUR: tuple[int, int, int] = (230, 230, 230)

FINGER_COLOURS: dict[str, tuple[int, int, int]] = {
    'thumb': (228, 80, 60),
    'index': (240, 170, 40),
    'middle': (80, 190, 90),
    'ring': (60, 160, 235),
    'little': (190, 100, 220),
}
"""RGB, 0..255; chosen to stay apart on skin and for colour-blind readers."""


def keypoint_colour(keypoint: int) -> tuple[int, int, int]:
    """Returns the RGB colour (0..255) of a keypoint, and of the bone that ends in it.

    Args:
        keypoint: index, 0..20.

    Raises:
        ValueError: if the index is not 0..20.
    """
    if keypoint == WRIST:
        return WRIST_COLOUR
    for finger, indices in FINGERS.items():
        if keypoint in indices:
            return FINGER_COLOURS[finger]
    raise ValueError(f'keypoint must be 0..{NUM_KEYPOINTS - 1}, got {keypoint}')
