"""The evaluation protocols: which crop, which normaliser, which range of thresholds.

A number means nothing without its protocol, so every summary of metrics names one of these.
"""

import dataclasses
import difflib
from typing import Literal

from handpose_jax import hand

ALL_KEYPOINTS: tuple[int, ...] = tuple(range(hand.NUM_KEYPOINTS))


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How the error of a prediction is measured and summed up.

    Attributes:
        name: the key in PROTOCOLS.
        description: one sentence for reports.
        crop_scale: side of the square evaluation crop, in units of the normaliser.
        normaliser: what `norm_size` holds, in image pixels, and PCK divides errors by: 'box', the
            longest side of the tight box around the visible keypoints; 'head_size', the longest
            side of the person's head box; or 'image', the longest side of the image.
        max_threshold: end of the PCK curve, in units of the normaliser; it starts at 0.
        steps: number of intervals of the curve.
        keypoints: indices of the keypoints that count.
        source: the publication the protocol comes from, or 'ours'.
    """

    name: str
    description: str
    crop_scale: float
    normaliser: Literal['box', 'head_size', 'image']
    max_threshold: float
    steps: int
    keypoints: tuple[int, ...]
    source: str

    def thresholds(self) -> tuple[float, ...]:
        """The steps + 1 evenly spaced thresholds of the PCK curve, in units of the normaliser."""
        return tuple(self.max_threshold * i / self.steps for i in range(self.steps + 1))


PROTOCOLS: dict[str, Protocol] = {
    'box': Protocol(
        name='box',
        description='Crop 2.2 x the tight keypoint box; errors relative to that box; 0..0.5.',
        # The scale that Simon et al. use where a hand comes without a head size.
        crop_scale=2.2,
        normaliser='box',
        max_threshold=0.5,
        steps=100,
        keypoints=ALL_KEYPOINTS,
        source='ours, for data without a protocol of its own',
    ),
    'cmu': Protocol(
        name='cmu',
        description='Crop 1.54 head sizes; PCKh, errors relative to the head size; 0..1.',
        # A hand is taken to measure 0.7 head sizes, and the crop to be 2.2 hands wide.
        crop_scale=2.2 * 0.7,
        normaliser='head_size',
        max_threshold=1.0,
        steps=100,
        keypoints=ALL_KEYPOINTS,
        source='Simon et al. 2017 (crop, PCKh); Gouidis et al. 2019, section 4 (AUC, EPE)',
    ),
    'freihand_tutorial': Protocol(
        name='freihand_tutorial',
        description='The whole image; errors relative to its side; 0..0.3.',
        crop_scale=1.0,
        normaliser='image',
        # The tutorial has no curve, only the mean error in % of the side; the range is ours.
        max_threshold=0.3,
        steps=100,
        keypoints=ALL_KEYPOINTS,
        source='Chernytska 2021 (crop, normaliser, mean error in % of the side)',
    ),
}


def get_protocol(name: str) -> Protocol:
    """Looks a protocol up by name.

    Raises:
        ValueError: for an unknown name; lists the known ones and suggests the nearest.
    """
    if name in PROTOCOLS:
        return PROTOCOLS[name]
    near = difflib.get_close_matches(name, PROTOCOLS, n=1)
    suggestion = f'; did you mean {near[0]!r}?' if near else ''
    raise ValueError(
        f'protocol must be one of {", ".join(sorted(PROTOCOLS))}, got {name!r}{suggestion}'
    )
