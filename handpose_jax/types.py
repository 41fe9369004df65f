"""What flows through the package: Sample, Source, Batch, Prediction; and the names of dimensions.

Dimension names in jaxtyping annotations mean the same everywhere:

    b       examples in a batch
    h, w    height and width of an image or map, in its own pixels
    c       channels
    21      keypoints, in the order of handpose_jax.hand
    22      heatmaps: the 21 keypoints, then the background
    2       (x, y); 2 3 is an affine map [A | t], applied as A @ (x, y) + t

Frames are named by a suffix: `_image` (pixels of the whole photograph), `_crop` (pixels of the
network's input) and `_heatmap` (pixels of its output). geometry.py states where a pixel's centre
is.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, NotRequired, Protocol, TypedDict, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, UInt8


class Sample(TypedDict):
    """One hand in one image, as a source yields it (NumPy)."""

    image: UInt8[np.ndarray, 'h w 3']  # RGB, upright
    keypoints: Float[np.ndarray, '21 2']  # (x, y), image pixels; any finite value where not visible
    visible: Bool[np.ndarray, '21']  # annotated and to be counted
    box: Float[np.ndarray, '4']  # x0, y0, x1, y1 of the crop before augmentation, image pixels
    is_left: bool
    norm_size: float  # the protocol's normaliser, image pixels
    image_id: str  # names the record in messages and reports
    # Annotated, but hidden behind something; where absent, the source does not tell.
    hidden: NotRequired[Bool[np.ndarray, '21']]
    # The picture shows no hand: keypoints zero, nothing visible, `box` is the region to cut, and
    # `norm_size` its longest side. Where absent, there is a hand.
    no_hand: NotRequired[bool]


@runtime_checkable
class Source(Protocol):
    """A finite, random-access collection of samples; read from several threads at once."""

    @property
    def groups(self) -> Sequence[str]:
        """For each record, the group it is balanced by."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...

    def image_id(self, index: int, /) -> str:
        """The name of a record in messages and reports, known without reading its image."""

    def fingerprint(self) -> str:
        """A digest that changes when the records do; a run that goes on compares it."""


class Batch(TypedDict):
    """What one training or evaluation step receives (NumPy on the host, jax.Array in the step)."""

    image: UInt8[np.ndarray, 'b h w 3']  # RGB crop, right hands only (left ones are mirrored)
    keypoints: Float[np.ndarray, 'b 21 2']  # crop pixels
    visible: Bool[np.ndarray, 'b 21']
    norm_size: Float[np.ndarray, 'b']  # image pixels
    image_from_crop: Float[np.ndarray, 'b 2 3']  # undoes crop, augmentation and mirroring
    valid: Bool[np.ndarray, 'b']  # False for the padding of the last evaluation batch
    index: Any  # int32[b]: the record's position in its source, to find its name again
    hidden: Bool[np.ndarray, 'b 21']  # as in Sample; False where the source does not tell
    has_hand: Bool[np.ndarray, 'b']  # False where the sample says no_hand; True for padding, too


class Prediction(NamedTuple):
    """Keypoints with their confidence; arrays of NumPy or JAX alike."""

    keypoints: Any  # f32[.. 21 2], (x, y); the frame is the producer's and said there
    confidence: Any  # f32[.. 21], the raw peak value clipped to 0..1 (not a probability)
