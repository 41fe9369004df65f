"""Errors of predicted keypoints and what is made of them: EPE, PCK, AUC (NumPy, on the host).

    EPE   end-point error: the distance between predicted and annotated keypoint, in pixels
    PCK   share of the counted keypoints whose error, divided by the hand's `norm_size`, is at most
          a threshold
    AUC   area under the PCK curve, divided by its range of thresholds: 0..1

A keypoint counts when it is annotated as visible. A prediction that is not finite is a miss at
every threshold: its error is infinite. Means run over all counted keypoints of all hands, so that a
hand with few visible keypoints weighs less than a complete one.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Integer

from handpose_jax import hand
from handpose_jax.protocols import Protocol
from handpose_jax.types import Batch

EPE_FRAME = 224
"""Side of the crop, px, in which EPE is reported whatever the network's input size.

Source: Gouidis et al. 2019, section 4 and table 1.
"""

_PCK_AT = 0.2


@dataclasses.dataclass(frozen=True)
class KeypointErrors:
    """The errors of n hands; parts made from batches merge into the whole.

    Attributes:
        error_crop: px of a crop of side EPE_FRAME.
        error_image: px of the photograph.
        counted: whether the keypoint is annotated; errors are 0 where it is not.
        norm_size: the protocol's normaliser, px of the photograph.
        confidence: of the prediction.
        index: the record's position in its source.
    """

    error_crop: Float[np.ndarray, 'n 21']
    error_image: Float[np.ndarray, 'n 21']
    counted: Bool[np.ndarray, 'n 21']
    norm_size: Float[np.ndarray, 'n']
    confidence: Float[np.ndarray, 'n 21']
    index: Integer[np.ndarray, 'n']

    @classmethod
    def from_batch(
        cls,
        prediction_keypoints_crop: Float[Any, 'b 21 2'],
        confidence: Float[Any, 'b 21'],
        batch: Batch,
        size: int,
    ) -> 'KeypointErrors':
        """Measures one batch; rows that are not valid (padding) are dropped.

        Args:
            prediction_keypoints_crop: predicted (x, y), crop pixels; NumPy or JAX.
            confidence: of each predicted keypoint; NumPy or JAX.
            batch: the batch that was predicted.
            size: side of the batch's crops, px.

        Raises:
            ValueError: for a size that is not positive, an annotated keypoint that is not finite,
                or a hand with annotated keypoints whose norm_size or image_from_crop is unusable.
        """
        if size <= 0:
            raise ValueError(f'size: expected a positive number of pixels, got {size}')
        valid = np.asarray(batch['valid'], bool)
        truth = np.asarray(batch['keypoints'], np.float64)[valid]
        counted = np.asarray(batch['visible'], bool)[valid]
        norm_size = np.asarray(batch['norm_size'], np.float64)[valid]
        linear = np.asarray(batch['image_from_crop'], np.float64)[valid][:, :, :2]
        index = np.asarray(batch['index'])[valid]
        any_counted = counted.any(axis=1)
        _check_rows('keypoints', np.isfinite(truth).all(axis=2) | ~counted, index)
        _check_rows('norm_size', (np.isfinite(norm_size) & (norm_size > 0)) | ~any_counted, index)
        _check_rows('image_from_crop', np.isfinite(linear).all(axis=(1, 2)) | ~any_counted, index)

        predicted = np.asarray(prediction_keypoints_crop, np.float64)[valid]
        finite = np.isfinite(predicted).all(axis=2)
        measured = counted & finite
        difference = np.where(measured[:, :, None], predicted - truth, 0.0)
        difference_image = np.where(
            measured[:, :, None],
            difference @ np.swapaxes(np.where(any_counted[:, None, None], linear, 0.0), 1, 2),
            0.0,
        )
        missed = counted & ~finite
        return cls(
            error_crop=np.where(
                missed, np.inf, np.linalg.norm(difference, axis=2) * (EPE_FRAME / size)
            ),
            error_image=np.where(missed, np.inf, np.linalg.norm(difference_image, axis=2)),
            counted=counted,
            norm_size=norm_size,
            confidence=np.asarray(confidence, np.float64)[valid],
            index=index,
        )

    @classmethod
    def empty(cls) -> 'KeypointErrors':
        """No hands at all: the neutral element of merge."""
        per_keypoint = np.zeros((0, hand.NUM_KEYPOINTS))
        return cls(
            error_crop=per_keypoint,
            error_image=per_keypoint,
            counted=per_keypoint.astype(bool),
            norm_size=np.zeros(0),
            confidence=per_keypoint,
            index=np.zeros(0, np.int64),
        )

    @staticmethod
    def merge(*parts: 'KeypointErrors') -> 'KeypointErrors':
        """Joins parts into one, sorted by index.

        The order and grouping of the parts leave no trace, down to the last bit of every metric.
        """
        parts = (KeypointErrors.empty(), *parts)
        columns = {
            field.name: np.concatenate([getattr(part, field.name) for part in parts])
            for field in dataclasses.fields(KeypointErrors)
        }
        # Two sources may use the same index; the values then decide, so that order never does.
        values = ('norm_size', 'error_image', 'error_crop', 'counted', 'confidence')
        ties = np.column_stack([columns[name] for name in values])
        order = np.lexsort((*ties.T[::-1], columns['index']))
        return KeypointErrors(**{name: column[order] for name, column in columns.items()})

    def select(self, keypoints: Sequence[int]) -> 'KeypointErrors':
        """The same hands with only the given keypoints counted."""
        chosen = np.zeros(hand.NUM_KEYPOINTS, bool)
        chosen[list(keypoints)] = True
        return dataclasses.replace(self, counted=self.counted & chosen)

    @property
    def num_hands(self) -> int:
        """Number of hands, those without a counted keypoint included."""
        return len(self.index)

    @property
    def num_counted(self) -> int:
        """Number of counted keypoints over all hands."""
        return int(self.counted.sum())

    def counted_crop(self) -> Float[np.ndarray, 'm']:
        """Errors of the counted keypoints, px of the EPE_FRAME crop."""
        return self.error_crop[self.counted]

    def counted_image(self) -> Float[np.ndarray, 'm']:
        """Errors of the counted keypoints, px of the photograph."""
        return self.error_image[self.counted]

    def counted_normalised(self) -> Float[np.ndarray, 'm']:
        """Errors of the counted keypoints in units of their hand's norm_size."""
        norm_size = np.broadcast_to(self.norm_size[:, None], self.counted.shape)
        return self.error_image[self.counted] / norm_size[self.counted]

    def epe_per_hand(self) -> Float[np.ndarray, 'n']:
        """Mean error of each hand's counted keypoints, px of the EPE_FRAME crop.

        Returns:
            NaN for a hand without counted keypoints: there is nothing to rank it by.
        """
        number = self.counted.sum(axis=1)
        total = np.where(self.counted, self.error_crop, 0.0).sum(axis=1)
        return np.where(number > 0, total / np.maximum(number, 1), np.nan)

    def summary(self, protocol: Protocol) -> dict[str, Any]:
        """All metrics under a protocol, ready for JSON.

        A value that does not exist (nothing was counted) or is infinite (a counted prediction was
        not finite) is None; `keypoints_counted` and `predictions_not_finite` tell why.

        Args:
            protocol: decides which keypoints count and the range of PCK.
        """
        chosen = self.select(protocol.keypoints)
        thresholds = np.asarray(protocol.thresholds())
        values: list[float] | None = None
        area: float | None = None
        if chosen.num_counted:
            curve = pck(chosen.counted_normalised(), thresholds)
            values, area = curve.tolist(), auc(curve, thresholds)
        table = {
            hand.KEYPOINT_NAMES[keypoint]: chosen.select([keypoint])._row()
            for keypoint in protocol.keypoints
        }
        return {
            'protocol': protocol.name,
            'normaliser': protocol.normaliser,
            'hands': chosen.num_hands,
            'keypoints_counted': chosen.num_counted,
            'predictions_not_finite': int(np.isinf(chosen.counted_crop()).sum()),
            'epe_mean_224': _statistic(np.mean, chosen.counted_crop()),
            'epe_median_224': _statistic(np.median, chosen.counted_crop()),
            'epe_mean_image': _statistic(np.mean, chosen.counted_image()),
            'epe_median_image': _statistic(np.median, chosen.counted_image()),
            'auc': area,
            'pck_at_0.2': _pck_at(chosen),
            'pck': {'thresholds': thresholds.tolist(), 'values': values},
            'per_keypoint': table,
        }

    def _row(self) -> dict[str, Any]:
        return {
            'counted': self.num_counted,
            'epe_mean_224': _statistic(np.mean, self.counted_crop()),
            'epe_median_224': _statistic(np.median, self.counted_crop()),
            'pck_at_0.2': _pck_at(self),
        }


def pck(
    errors: Float[np.ndarray, 'm'], thresholds: Float[np.ndarray, 't']
) -> Float[np.ndarray, 't']:
    """The share of errors at or below each threshold.

    Args:
        errors: of the counted keypoints, in any unit.
        thresholds: in the same unit.

    Returns:
        0..1 for each threshold.

    Raises:
        ValueError: without errors, or for one that is NaN.
    """
    if errors.size == 0:
        raise ValueError('errors: expected at least one counted keypoint, got none')
    if np.isnan(errors).any():
        raise ValueError(
            'errors: expected numbers, got NaN; a prediction that failed has error inf'
        )
    within = np.searchsorted(np.sort(errors), thresholds, side='right')
    return within / errors.size


def auc(values: Float[np.ndarray, 't'], thresholds: Float[np.ndarray, 't']) -> float:
    """The area under a curve by the trapezoid rule, divided by the range of thresholds.

    Args:
        values: the curve, as from pck.
        thresholds: where it was taken, ascending.

    Raises:
        ValueError: for fewer than two thresholds or ones that do not ascend.
    """
    if len(thresholds) < 2 or not (np.diff(thresholds) > 0).all():
        raise ValueError(
            f'thresholds: expected at least two, ascending, got {np.asarray(thresholds).tolist()}'
        )
    area = np.trapezoid(values.astype(np.float64), thresholds)
    return float(area / (thresholds[-1] - thresholds[0]))


def _pck_at(errors: KeypointErrors) -> float | None:
    if not errors.num_counted:
        return None
    return float(pck(errors.counted_normalised(), np.array([_PCK_AT]))[0])


def _statistic(function: Any, errors: Float[np.ndarray, 'm']) -> float | None:
    if errors.size == 0:
        return None
    value = float(function(errors))
    return value if np.isfinite(value) else None


def _check_rows(field: str, good: Bool[np.ndarray, 'n *rest'], index: Any) -> None:
    bad = ~good.reshape(len(good), -1).all(axis=1)
    if bad.any():
        raise ValueError(
            f'batch[{field!r}]: expected finite values (norm_size: positive) for every hand with '
            f'visible keypoints, got others in the records with index {index[bad].tolist()}; '
            'correct these records or mark their keypoints as not visible'
        )
