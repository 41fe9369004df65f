"""Errors of predicted keypoints and what is made of them: EPE, PCK, AUC (NumPy, on the host).

    EPE   end-point error: the distance between predicted and annotated keypoint, in pixels
    PCK   share of the counted keypoints whose error, divided by the hand's `norm_size`, is at most
          a threshold
    AUC   area under the PCK curve, divided by its range of thresholds: 0..1

A keypoint counts when its source marks it as visible, and the protocol takes it. A prediction that
is not finite is a miss at every threshold: its error is infinite. Means run over all counted
keypoints of all hands, so that a hand with few visible keypoints weighs less than a complete one,
but where a protocol says otherwise (protocols.py).
"""

import dataclasses
import io
import json
import os
import zipfile
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Integer

from handpose_jax import geometry, hand
from handpose_jax.evaluation.protocols import Protocol
from handpose_jax.process import storage
from handpose_jax.types import Batch

EPE_FRAME = 224
"""Side of the crop, px, in which EPE is reported whatever the network's input size.

Source: Gouidis et al. 2019, section 4 and table 1.
"""

EVALUATION_FILE = 'evaluation.npz'

_PCK_AT = 0.2


@dataclasses.dataclass(frozen=True)
class KeypointErrors:
    """The errors of n hands; parts made from batches merge into the whole.

    Attributes:
        error_crop: px of a crop of side EPE_FRAME.
        error_image: px of the photograph.
        counted: whether the keypoint is annotated; errors are 0 where it is not.
        hidden: annotated but hidden behind something, as far as the source tells.
        norm_size: the protocol's normaliser, px of the photograph.
        confidence: of the prediction.
        index: the record's position in its source.
        predicted_image: (x, y), px of the photograph; may be not finite.
        truth_image: (x, y), px of the photograph; 0 where not counted.
        is_left: whether the hand was mirrored for the network.
    """

    error_crop: Float[np.ndarray, 'n 21']
    error_image: Float[np.ndarray, 'n 21']
    counted: Bool[np.ndarray, 'n 21']
    hidden: Bool[np.ndarray, 'n 21']
    norm_size: Float[np.ndarray, 'n']
    confidence: Float[np.ndarray, 'n 21']
    index: Integer[np.ndarray, 'n']
    predicted_image: Float[np.ndarray, 'n 21 2']
    truth_image: Float[np.ndarray, 'n 21 2']
    is_left: Bool[np.ndarray, 'n']

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
        image_from_crop = np.asarray(batch['image_from_crop'], np.float64)[valid]
        index = np.asarray(batch['index'])[valid]
        hidden = np.asarray(batch['hidden'], bool)[valid]
        any_counted = counted.any(axis=1)
        usable = np.isfinite(image_from_crop).all(axis=(1, 2))
        _check_rows('keypoints', np.isfinite(truth).all(axis=2) | ~counted, index)
        _check_rows('norm_size', (np.isfinite(norm_size) & (norm_size > 0)) | ~any_counted, index)
        _check_rows('image_from_crop', usable | ~any_counted, index)

        predicted = np.asarray(prediction_keypoints_crop, np.float64)[valid]
        finite = np.isfinite(predicted).all(axis=2)
        error_crop = np.linalg.norm(_where(counted & finite, predicted - truth), axis=2)
        # A prediction that is not finite would spoil the other keypoints' products with warnings.
        image_from_crop = np.where(usable[:, None, None], image_from_crop, 0.0)
        predicted_image = geometry.apply_affine(image_from_crop, _where(finite, predicted))
        truth_image = geometry.apply_affine(image_from_crop, _where(counted, truth))
        error_image = np.linalg.norm(
            _where(counted & finite, predicted_image - truth_image), axis=2
        )
        missed = counted & ~finite
        return cls(
            error_crop=np.where(missed, np.inf, error_crop * (EPE_FRAME / size)),
            error_image=np.where(missed, np.inf, error_image),
            counted=counted,
            hidden=hidden,
            norm_size=norm_size,
            confidence=np.asarray(confidence, np.float64)[valid],
            index=index,
            predicted_image=np.where(finite[:, :, None], predicted_image, np.nan),
            truth_image=_where(counted, truth_image),
            is_left=np.linalg.det(image_from_crop[:, :, :2]) < 0,
        )

    @classmethod
    def empty(cls) -> 'KeypointErrors':
        """No hands at all: the neutral element of merge."""
        per_keypoint = np.zeros((0, hand.NUM_KEYPOINTS))
        return cls(
            error_crop=per_keypoint,
            error_image=per_keypoint,
            counted=per_keypoint.astype(bool),
            hidden=per_keypoint.astype(bool),
            norm_size=np.zeros(0),
            confidence=per_keypoint,
            index=np.zeros(0, np.int64),
            predicted_image=np.zeros((0, hand.NUM_KEYPOINTS, 2)),
            truth_image=np.zeros((0, hand.NUM_KEYPOINTS, 2)),
            is_left=np.zeros(0, bool),
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
        values = [
            column.reshape(len(column), int(np.prod(column.shape[1:])))
            for name, column in columns.items()
            if name != 'index'
        ]
        order = np.lexsort((*np.hstack(values).T, columns['index']))
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

    def epe_per_hand(self) -> Float[np.ndarray, 'n']:
        """Mean error of each hand's counted keypoints, px of the EPE_FRAME crop.

        Returns:
            NaN for a hand without counted keypoints: there is nothing to rank it by.
        """
        number = self.counted.sum(axis=1)
        total = np.where(self.counted, self.error_crop, 0.0).sum(axis=1)
        return np.where(number > 0, total / np.maximum(number, 1), np.nan)

    def under(self, protocol: Protocol) -> 'KeypointErrors':
        """The same hands with only the keypoints counted that the protocol takes."""
        chosen = self.select(protocol.keypoints)
        if protocol.hidden:
            return chosen
        return dataclasses.replace(chosen, counted=chosen.counted & ~self.hidden)

    def size_of(self, relative_to: str) -> Float[np.ndarray, 'n']:
        """What a protocol measures hands by, px of the photograph.

        Args:
            relative_to: of the protocol.

        Returns:
            norm_size, but for 'keypoint_box': the longest side of the tight box around the counted
            keypoints; NaN where there are not two places.
        """
        if relative_to != 'keypoint_box':
            return self.norm_size
        counted = self.counted[:, :, None]
        low = np.where(counted, self.truth_image, np.inf).min(axis=1, initial=np.inf)
        high = np.where(counted, self.truth_image, -np.inf).max(axis=1, initial=-np.inf)
        side = (high - low).max(axis=1, initial=-np.inf)
        return np.where(side > 0, side, np.nan)

    def root_aligned(self) -> 'KeypointErrors':
        """The errors of the photograph that are left when the wrist is put where it belongs.

        The wrist's own difference is subtracted from that of each keypoint, so that it counts with
        error 0. Hands whose wrist is not counted count nowhere. error_crop is in the same unit.
        """
        finite = np.isfinite(self.predicted_image).all(axis=2)
        root, root_finite = slice(hand.WRIST, hand.WRIST + 1), finite[:, hand.WRIST, None]
        counted = self.counted & self.counted[:, root]
        measured = counted & finite & root_finite
        difference = _where(self.counted & finite, self.predicted_image - self.truth_image)
        length = np.linalg.norm(_where(measured, difference - difference[:, root]), axis=2)
        error = np.where(counted & ~measured, np.inf, length)
        return dataclasses.replace(self, counted=counted, error_image=error, error_crop=error)

    def summary(self, protocol: Protocol) -> dict[str, Any]:
        """All metrics under a protocol, ready for JSON.

        A value that does not exist (nothing was counted) or is infinite (a counted prediction was
        not finite) is None; `keypoints_counted` and `predictions_not_finite` tell why.

        Some protocols ask for more (Protocol.extras):

            percent_of_side   epe_percent_of_side: the error in percent of norm_size, mean over the
                              counted keypoints of a hand, then over the hands that have one
            root_aligned      epe_mean_root_aligned, epe_median_root_aligned (px of the photograph),
                              auc_root_aligned and keypoints_root_aligned, see root_aligned
            over_keypoints    epe_mean_image_over_keypoints, epe_median_image_over_keypoints and
                              auc_over_keypoints: the mean over the keypoints of each one's own

        Args:
            protocol: decides which keypoints count, and how.
        """
        chosen = self.under(protocol)
        # By all that are annotated: a hidden fingertip is still a part of the hand.
        size = self.size_of(protocol.relative_to)
        curve = chosen._curve(protocol, size)
        columns = {keypoint: chosen.select([keypoint]) for keypoint in protocol.keypoints}
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
            'auc': _area(protocol, curve),
            'pck_at_0.2': chosen._pck_at(protocol, size),
            'pck': {
                'thresholds': list(protocol.thresholds()),
                'values': None if curve is None else curve.tolist(),
            },
            'per_keypoint': {
                hand.KEYPOINT_NAMES[keypoint]: {
                    'counted': column.num_counted,
                    'epe_mean_224': _statistic(np.mean, column.counted_crop()),
                    'epe_median_224': _statistic(np.median, column.counted_crop()),
                    'pck_at_0.2': column._pck_at(protocol, size),
                }
                for keypoint, column in columns.items()
            },
            **chosen._extras(protocol, size),
        }

    def _extras(self, protocol: Protocol, size: Float[np.ndarray, 'n']) -> dict[str, Any]:
        values: dict[str, Any] = {}
        if 'percent_of_side' in protocol.extras:
            error = np.where(self.counted, self.error_image, 0.0).sum(axis=1)
            number = self.counted.sum(axis=1)
            some = number > 0
            percent = 100 * error[some] / number[some] / size[some]
            values['epe_percent_of_side'] = _statistic(np.mean, percent)
        if 'root_aligned' in protocol.extras:
            aligned = self.root_aligned()
            values['epe_mean_root_aligned'] = _statistic(np.mean, aligned.counted_image())
            values['epe_median_root_aligned'] = _statistic(np.median, aligned.counted_image())
            values['auc_root_aligned'] = _area(protocol, aligned._curve(protocol, size))
            values['keypoints_root_aligned'] = aligned.num_counted
        if 'over_keypoints' in protocol.extras:
            columns = [self.select([keypoint]) for keypoint in protocol.keypoints]
            columns = [column for column in columns if column.num_counted]
            for name, function in (('mean', np.mean), ('median', np.median)):
                each = np.array([function(column.counted_image()) for column in columns])
                values[f'epe_{name}_image_over_keypoints'] = _statistic(np.mean, each)
            areas = [_area(protocol, column._curve(protocol, size)) for column in columns]
            values['auc_over_keypoints'] = _statistic(np.mean, np.array(areas, np.float64))
        return values

    def _curve(
        self, protocol: Protocol, size: Float[np.ndarray, 'n']
    ) -> Float[np.ndarray, 't'] | None:
        unit = np.ones(self.num_hands) if protocol.normaliser == 'pixel' else size
        return self._shares(unit, np.asarray(protocol.thresholds()), protocol)

    def _pck_at(self, protocol: Protocol, size: Float[np.ndarray, 'n']) -> float | None:
        shares = self._shares(size, np.array([_PCK_AT]), protocol)
        return None if shares is None else float(shares[0])

    def _shares(
        self, unit: Float[np.ndarray, 'n'], thresholds: Float[np.ndarray, 't'], protocol: Protocol
    ) -> Float[np.ndarray, 't'] | None:
        # A hand without a size, as one keypoint alone has none, cannot be judged.
        counted = self.counted & ~np.isnan(unit)[:, None]
        if not counted.any():
            return None
        relative = self.error_image / np.where(np.isnan(unit) | (unit <= 0), 1.0, unit)[:, None]
        if protocol.rule == 'trapezoid':
            return pck(relative[counted], thresholds)
        columns = np.flatnonzero(counted.any(axis=0))
        each = [pck(relative[counted[:, k], k], thresholds, below=True) for k in columns]
        return np.mean(each, axis=0)


@dataclasses.dataclass(frozen=True)
class EvaluationRecord:
    """All that an evaluation measured, for reports and calibration to be made of it later.

    Attributes:
        errors: of every hand, in the order of their source.
        image_id: names the records, str[n].
        meta: JSON values: 'protocol', 'split', 'step', 'size' (of the network's input, px).
    """

    errors: KeypointErrors
    image_id: np.ndarray
    meta: dict[str, Any]


def write_evaluation(path: str | os.PathLike[str], record: EvaluationRecord) -> None:
    """Writes a record as one .npz file without pickles; there is never half a file.

    Args:
        path: of the file; its folder exists.
        record: what read_evaluation will give back.

    Raises:
        OSError: if it cannot be written.
    """
    columns = {
        field.name: getattr(record.errors, field.name)
        for field in dataclasses.fields(KeypointErrors)
    }
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        **columns,
        image_id=np.asarray(record.image_id, np.str_),
        meta=np.asarray(json.dumps(record.meta)),
    )
    target = storage.folder(path)
    temporary = target.parent / f'{target.name}.new'
    temporary.write_bytes(buffer.getvalue())
    temporary.replace(target)


def read_evaluation(path: str | os.PathLike[str]) -> EvaluationRecord:
    """Reads what an evaluation left in its workdir.

    Args:
        path: of the file, W/evaluation.npz.

    Raises:
        ValueError: if there is no such file, or another one.
    """
    try:
        data = storage.folder(path).read_bytes()
    except OSError as error:
        raise ValueError(
            f'{path}: no evaluation to read ({error.strerror}); make one with handpose evaluate'
        ) from error
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as stored:
            columns = {
                field.name: stored[field.name] for field in dataclasses.fields(KeypointErrors)
            }
            return EvaluationRecord(
                KeypointErrors(**columns), stored['image_id'], json.loads(str(stored['meta']))
            )
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f'{path}: expected the file of an evaluation, got another or a damaged one ({error}); '
            'make it anew with handpose evaluate'
        ) from error


def pck(
    errors: Float[np.ndarray, 'm'], thresholds: Float[np.ndarray, 't'], *, below: bool = False
) -> Float[np.ndarray, 't']:
    """The share of errors at or below each threshold.

    Args:
        errors: of the counted keypoints, in any unit.
        thresholds: in the same unit.
        below: an error that equals the threshold is a miss.

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
    within = np.searchsorted(np.sort(errors), thresholds, side='left' if below else 'right')
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


def _where(
    chosen: Bool[np.ndarray, 'n 21'], points: Float[np.ndarray, 'n 21 2']
) -> Float[np.ndarray, 'n 21 2']:
    return np.where(chosen[:, :, None], points, 0.0)


def _area(protocol: Protocol, curve: Float[np.ndarray, 't'] | None) -> float | None:
    if curve is None:
        return None
    if protocol.rule == 'mmpose':
        return float(curve[:-1].mean())
    return auc(curve, np.asarray(protocol.thresholds()))


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
