"""The gate: whether an artefact finds what JAX finds, on real images, and how far it is off."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from handpose_jax.evaluation import protocols
from handpose_jax.evaluation.metrics import KeypointErrors


@dataclasses.dataclass(frozen=True)
class Limits:
    """What an artefact may differ from JAX by; None is no limit.

    Attributes:
        heatmap: largest difference of a heatmap's value, in units of the highest value or of 1.
        shift: mean and 99th percentile of the keypoints' shifts, px of the crop. The mean sees the
            few that move far, which the percentile hides.
        pck: change in PCK@0.2, either way; never less than FEWEST_KEYPOINTS of those that count, so
            that in a small set one keypoint alone does not decide.
        tie: pixels whose values in JAX differ by no more are equal maxima, between which a peak may
            jump; in units as heatmap.
    """

    heatmap: float | None
    shift: float | None
    pck: float
    tie: float


LIMITS: dict[str, Limits] = {
    'f32': Limits(heatmap=1e-4, shift=0.01, pck=0.01, tie=1e-4),
    'f16': Limits(heatmap=1e-2, shift=0.1, pck=0.01, tie=1e-2),
    'dynamic_int8': Limits(heatmap=None, shift=None, pck=0.01, tie=0.05),
    'int8': Limits(heatmap=None, shift=None, pck=0.01, tie=0.05),
}

FEWEST_KEYPOINTS = 2
"""What PCK may change by in whole keypoints, where Limits.pck is less than that."""

_COLUMNS = {
    'artefact': 'artefact',
    'backend': 'runtime',
    'heatmap_max': 'max heatmap difference',
    'heatmap_mean': 'mean',
    'shift_mean': 'mean shift, px',
    'shift_p99': '99th percentile',
    'jumps': 'jumps',
    'pck': 'PCK@0.2',
    'pck_change': 'change',
    'result': 'result',
}


@dataclasses.dataclass(frozen=True)
class Reference:
    """Real crops, their truth, and what JAX finds in them.

    Attributes:
        batch: types.Batch of all crops.
        heatmaps: of the trained network in JAX, batch normalisation and all.
        keypoints: by heatmaps.decode: x, y in pixels of the crop, confidence.
        protocol: name of the run's.
        stride: pixels of the crop for each of a heatmap.
        peaks: whether keypoints are peaks of heatmaps, which can jump, or averages, which cannot.
    """

    batch: Any
    heatmaps: Float[np.ndarray, 'b h w c']
    keypoints: Float[np.ndarray, 'b 21 3']
    protocol: str
    stride: int
    peaks: bool = True

    @property
    def images(self) -> UInt8[np.ndarray, 'b s s 3']:
        """The crops."""
        return self.batch['image']

    def pck(self, keypoints: Float[np.ndarray, 'b 21 3']) -> tuple[float | None, int]:
        """PCK@0.2 of keypoints under the run's protocol, and how many of them count.

        PCK is None where none does.
        """
        errors = KeypointErrors.from_batch(
            keypoints[..., :2], keypoints[..., 2], self.batch, self.images.shape[1]
        )
        summary = errors.summary(protocols.get_protocol(self.protocol))
        return summary['pck_at_0.2'], summary['keypoints_counted']


def compare(
    reference: Reference,
    maps: Float[np.ndarray, '...'],
    keypoints: Float[np.ndarray, '...'],
    precision: str,
) -> dict[str, Any]:
    """Measures an artefact's outputs against JAX.

    Args:
        reference: what JAX finds.
        maps: heatmaps of the artefact, for the same crops.
        keypoints: of the artefact: x, y in pixels of the crop, confidence.
        precision: a key of LIMITS.

    Returns:
        The figures of the table, for JSON, and 'misses': a sentence for each limit that is not
        kept.
    """
    for name, found, expected in (
        ('heatmaps', maps, reference.heatmaps),
        ('keypoints', keypoints, reference.keypoints),
    ):
        if found.shape != expected.shape:
            return {'misses': [f'{name} of shape {found.shape}, expected {expected.shape}']}
        if not np.isfinite(found).all():
            return {'misses': [f'{name} with values that are not finite']}
    limits = LIMITS[precision]
    unit = max(1.0, float(np.abs(reference.heatmaps).max()))
    difference = np.abs(maps.astype(np.float64) - reference.heatmaps)
    shift = np.linalg.norm(
        keypoints[..., :2].astype(np.float64) - reference.keypoints[..., :2], axis=-1
    )
    jumped = _jumps(reference, keypoints, shift, limits.tie * unit) & reference.peaks
    stayed = shift[~jumped]
    (before, counted), (after, _) = reference.pck(reference.keypoints), reference.pck(keypoints)
    pck_limit = max(limits.pck, FEWEST_KEYPOINTS / max(counted, 1))
    change = None if before is None or after is None else after - before
    figures: dict[str, Any] = {
        'images': len(keypoints),
        'heatmap_max': float(difference.max()),
        'heatmap_mean': float(difference.mean()),
        'shift_mean': float(stayed.mean()) if stayed.size else None,
        'shift_p99': float(np.percentile(stayed, 99)) if stayed.size else None,
        'shift_max': float(stayed.max()) if stayed.size else None,
        'jumps': int(jumped.sum()),
        'confidence_max': float(np.abs(keypoints[..., 2] - reference.keypoints[..., 2]).max()),
        'pck': after,
        'pck_change': change,
        'pck_limit': pck_limit,
        'keypoints_counted': counted,
        'limits': dataclasses.asdict(limits),
    }
    misses = []
    for name, limit in (
        ('heatmap_max', None if limits.heatmap is None else limits.heatmap * unit),
        ('shift_mean', limits.shift),
        ('shift_p99', limits.shift),
        ('pck_change', pck_limit),
    ):
        value = figures[name]
        if limit is None or value is None:
            continue
        # A change of just the limit may come out larger in its last digit.
        if abs(value) > limit and not math.isclose(abs(value), limit):
            misses.append(f'{name} {abs(value):.3g}, at most {limit:.3g}')
    if change is None:
        misses.append('no keypoint counts in PCK')
    # All keypoints between equal maxima: that is no comparison.
    if not stayed.size:
        misses.append('every keypoint lies between equal maxima')
    return {**figures, 'misses': misses}


def _jumps(
    reference: Reference,
    keypoints: Float[np.ndarray, 'b 21 3'],
    shift: Float[np.ndarray, 'b 21'],
    tie: float,
) -> np.ndarray:
    """Which keypoints moved to another pixel that is as high in JAX's own heatmap."""
    limit = reference.heatmaps.shape[1] - 1

    def value_at(points: np.ndarray) -> np.ndarray:
        pixels = np.rint((points[..., :2] + 0.5) / reference.stride - 0.5).astype(int)
        pixels = np.clip(pixels, 0, limit)
        hands, names = np.indices(pixels.shape[:2])
        return reference.heatmaps[hands, pixels[..., 1], pixels[..., 0], names]

    equal = np.abs(value_at(keypoints) - value_at(reference.keypoints)) <= tie
    return (shift > 0.75 * reference.stride) & equal


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The figures of several artefacts as a Markdown table, the misses below it."""

    def cell(row: dict[str, Any], name: str) -> str:
        value = row.get(name)
        if name == 'result':
            return 'MISSED' if row['misses'] else 'kept'
        if value is None:
            return ''
        return f'{value:.2g}' if isinstance(value, float) and name != 'pck' else _plain(value)

    lines = [f'| {" | ".join(_COLUMNS.values())} |', '|' + '---|' * len(_COLUMNS)]
    lines += [f'| {" | ".join(cell(row, name) for name in _COLUMNS)} |' for row in rows]
    lines += [f'{row["artefact"]}: {miss}' for row in rows for miss in row['misses']]
    return '\n'.join(lines)


def _plain(value: Any) -> str:
    return f'{value:.4f}' if isinstance(value, float) else str(value)
