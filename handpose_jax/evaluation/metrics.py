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
import functools
import io
import json
import lzma
import os
import zipfile
import zlib
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

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

# What the reader of zip files raises for those that are damaged: a flipped bit may also tell of
# another compression, of a password or of a later version.
_DAMAGED = (
    *(ValueError, KeyError, EOFError, OSError, RuntimeError),
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError),
)


@dataclasses.dataclass(frozen=True)
class KeypointErrors:
    """The errors of n hands; parts made from batches merge into the whole.

    Attributes:
        error_crop: px of a crop of side EPE_FRAME.
        error_image: px of the photograph.
        valid: whether the keypoint is annotated and counts; errors are 0 where it does not.
        hidden: annotated but hidden behind something, as far as the source tells.
        norm_size: the protocol's normaliser, px of the photograph.
        confidence: of the prediction.
        index: the record's position in its source.
        predicted_image: (x, y), px of the photograph; may be not finite.
        truth_image: (x, y), px of the photograph; 0 where not valid.
        is_left: whether the hand was mirrored for the network.
        has_hand: False for a picture without a hand, of which no keypoint is valid.
    """

    error_crop: Float[np.ndarray, 'n 21']
    error_image: Float[np.ndarray, 'n 21']
    valid: Bool[np.ndarray, 'n 21']
    hidden: Bool[np.ndarray, 'n 21']
    norm_size: Float[np.ndarray, 'n']
    confidence: Float[np.ndarray, 'n 21']
    index: Integer[np.ndarray, 'n']
    predicted_image: Float[np.ndarray, 'n 21 2']
    truth_image: Float[np.ndarray, 'n 21 2']
    is_left: Bool[np.ndarray, 'n']
    has_hand: Bool[np.ndarray, 'n']

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
        rows = np.asarray(batch['valid'], bool)
        truth = np.asarray(batch['keypoints'], np.float64)[rows]
        counted = np.asarray(batch['visible'], bool)[rows]
        norm_size = np.asarray(batch['norm_size'], np.float64)[rows]
        image_from_crop = np.asarray(batch['image_from_crop'], np.float64)[rows]
        index = np.asarray(batch['index'])[rows]
        hidden = np.asarray(batch['hidden'], bool)[rows]
        any_counted = counted.any(axis=1)
        usable = np.isfinite(image_from_crop).all(axis=(1, 2))
        _check_rows('keypoints', np.isfinite(truth).all(axis=2) | ~counted, index)
        _check_rows('norm_size', (np.isfinite(norm_size) & (norm_size > 0)) | ~any_counted, index)
        _check_rows('image_from_crop', usable | ~any_counted, index)

        predicted = np.asarray(prediction_keypoints_crop, np.float64)[rows]
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
            valid=counted,
            hidden=hidden,
            norm_size=norm_size,
            confidence=np.asarray(confidence, np.float64)[rows],
            index=index,
            predicted_image=np.where(finite[:, :, None], predicted_image, np.nan),
            truth_image=_where(counted, truth_image),
            is_left=np.linalg.det(image_from_crop[:, :, :2]) < 0,
            has_hand=np.asarray(batch['has_hand'], bool)[rows],
        )

    @classmethod
    def empty(cls) -> 'KeypointErrors':
        """No hands at all: the neutral element of merge."""
        per_keypoint = np.zeros((0, hand.NUM_KEYPOINTS))
        return cls(
            error_crop=per_keypoint,
            error_image=per_keypoint,
            valid=per_keypoint.astype(bool),
            hidden=per_keypoint.astype(bool),
            norm_size=np.zeros(0),
            confidence=per_keypoint,
            index=np.zeros(0, np.int64),
            predicted_image=np.zeros((0, hand.NUM_KEYPOINTS, 2)),
            truth_image=np.zeros((0, hand.NUM_KEYPOINTS, 2)),
            is_left=np.zeros(0, bool),
            has_hand=np.zeros(0, bool),
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

    def take(self, rows: Any) -> 'KeypointErrors':
        """Some hands, or all in another order: `rows` indexes them as it would an array."""
        columns = {
            field.name: getattr(self, field.name)[rows]
            for field in dataclasses.fields(KeypointErrors)
        }
        return KeypointErrors(**columns)

    def select(self, keypoints: Sequence[int]) -> 'KeypointErrors':
        """The same hands with only the given keypoints counted."""
        chosen = np.zeros(hand.NUM_KEYPOINTS, bool)
        chosen[list(keypoints)] = True
        return dataclasses.replace(self, valid=self.valid & chosen)

    @property
    def num_hands(self) -> int:
        """Number of hands, those without a counted keypoint included."""
        return int(self.has_hand.sum())

    @property
    def num_valid(self) -> int:
        """Number of counted keypoints over all hands."""
        return int(self.valid.sum())

    def epe_per_hand(self) -> Float[np.ndarray, 'n']:
        """Mean error of each hand's counted keypoints, px of the EPE_FRAME crop.

        Returns:
            NaN for a hand without counted keypoints: there is nothing to rank it by.
        """
        number = self.valid.sum(axis=1)
        total = np.where(self.valid, self.error_crop, 0.0).sum(axis=1)
        return np.where(number > 0, total / np.maximum(number, 1), np.nan)

    def under(self, protocol: Protocol) -> 'KeypointErrors':
        """The same hands with only the keypoints counted that the protocol takes."""
        chosen = self.select(protocol.keypoints)
        if protocol.hidden:
            return chosen
        return dataclasses.replace(chosen, valid=chosen.valid & ~self.hidden)

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
        counted = self.valid[:, :, None]
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
        counted = self.valid & self.valid[:, root]
        measured = counted & finite & root_finite
        difference = _where(self.valid & finite, self.predicted_image - self.truth_image)
        length = np.linalg.norm(_where(measured, difference - difference[:, root]), axis=2)
        error = np.where(counted & ~measured, np.inf, length)
        return dataclasses.replace(self, valid=counted, error_image=error, error_crop=error)

    def summary(self, protocol: Protocol) -> dict[str, Any]:
        """All metrics under a protocol, ready for JSON.

        A value that does not exist (nothing was counted) or is infinite (a counted prediction was
        not finite) is None; `keypoints_counted` and `predictions_not_finite` tell why.

        Args:
            protocol: decides which keypoints count, and how, and which of METRICS it asks for.
        """
        measured = Measured(self, protocol)
        chosen = measured.errors
        # Thresholds at which the curve is wanted, in units of the normaliser.
        curve = [
            _statistic(np.mean, measured.within(measured.unit, at), measured.by_keypoint)
            for at in protocol.thresholds()
        ]
        columns = {
            hand.KEYPOINT_NAMES[k]: Measured(self.select([k]), protocol, measured.size)
            for k in protocol.keypoints
        }
        few = [metric for metric in METRICS if metric.each_keypoint]
        values = {metric.name: metric.value(measured) for metric in metrics_of(protocol)}
        common = {metric.name for metric in METRICS if not metric.extra}
        summary = {
            'protocol': protocol.name,
            'normaliser': protocol.normaliser,
            'hands': chosen.num_hands,
            'keypoints_counted': chosen.num_valid,
            'predictions_not_finite': int(np.isinf(chosen.error_crop[chosen.valid]).sum()),
            **{name: value for name, value in values.items() if name in common},
            'pck': {
                'thresholds': list(protocol.thresholds()),
                'values': None if curve[0] is None else curve,
            },
            'per_keypoint': {
                name: {
                    'counted': column.errors.num_valid,
                    **{metric.name: metric.value(column) for metric in few},
                }
                for name, column in columns.items()
            },
            **{name: value for name, value in values.items() if name not in common},
        }
        if 'root_aligned' in protocol.extras:
            summary['keypoints_root_aligned'] = measured.aligned.num_valid
        return summary


class Values(NamedTuple):
    """What a metric is a mean or median of: a number for each hand, or each keypoint of it."""

    values: Float[np.ndarray, 'n k']
    valid: Bool[np.ndarray, 'n k']


class Measured:
    """The errors of hands as a protocol sees them, with what metrics are made of.

    Attributes:
        protocol: it decides which keypoints count, and how.
        errors: with only the keypoints counted that the protocol takes.
        size: what the protocol measures hands by, px of the photograph; NaN where there is none.
        unit: of the PCK curve's thresholds, px of the photograph.
        by_keypoint: whether shares are means over the keypoints of their own shares.
    """

    def __init__(
        self, errors: KeypointErrors, protocol: Protocol, size: Float[np.ndarray, 'n'] | None = None
    ) -> None:
        self.protocol = protocol
        self.errors = errors.under(protocol)
        # By all that are annotated: a hidden fingertip is still a part of the hand.
        self.size = errors.size_of(protocol.relative_to) if size is None else size
        self.unit = np.ones(len(errors.index)) if protocol.normaliser == 'pixel' else self.size
        self.by_keypoint = protocol.rule == 'mmpose'

    @functools.cached_property
    def aligned(self) -> KeypointErrors:
        """The errors that are left when the wrist is put where it belongs."""
        return self.errors.root_aligned()

    def crop(self) -> Values:
        """Errors, px of the EPE_FRAME crop."""
        return Values(self.errors.error_crop, self.errors.valid)

    def image(self) -> Values:
        """Errors, px of the photograph."""
        return Values(self.errors.error_image, self.errors.valid)

    def percent_of_side(self) -> Values:
        """The mean error of each hand in percent of its size."""
        valid = self.errors.valid
        number = valid.sum(axis=1, keepdims=True)
        total = np.where(valid, self.errors.error_image, 0.0).sum(axis=1, keepdims=True)
        percent = 100 * total / np.maximum(number, 1) / self.size[:, None]
        return Values(percent, number > 0)

    def within(self, unit: Float[np.ndarray, 'n'], threshold: float) -> Values:
        """1 for an error within the threshold, in units of each hand; else 0."""
        relative, valid = _relative(self.errors, unit)
        # In mmpose's rule an error that equals the threshold is a miss.
        right = relative < threshold if self.by_keypoint else relative <= threshold
        return Values(right.astype(np.float64), valid)

    def area(self, errors: KeypointErrors) -> Values:
        """What each keypoint adds to the area under PCK, divided by the range of thresholds.

        The area is linear in the curve and the curve a mean over keypoints, so the area is the mean
        of what each keypoint would have alone: by the trapezoid rule the share of the range above
        its error's first threshold, and half an interval before it; by mmpose's rule the share of
        all thresholds but the last that it is within.
        """
        relative, valid = _relative(errors, self.unit)
        steps, thresholds = self.protocol.steps, self.protocol.thresholds()
        if self.by_keypoint:
            first = np.searchsorted(thresholds, relative, side='right')
            return Values(np.maximum(steps - first, 0) / steps, valid)
        first = np.searchsorted(thresholds, relative, side='left')
        area = np.where(first > 0, steps - first + 0.5, steps) / steps
        return Values(np.where(first > steps, 0.0, area), valid)


class Metric(NamedTuple):
    """A number that an evaluation reports.

    Attributes:
        name: its key in metrics.json.
        label: what reports call it, with the unit.
        statistic: np.mean or np.median of the values.
        values: what it is a statistic of.
        by_keypoint: whether it is the mean over the keypoints of their own statistics: 'never',
            'always', or 'mmpose' for the protocols of that rule.
        extra: it is reported only under protocols that have this among their extras; '' for all.
        curve: whether TensorBoard shows it.
        each_keypoint: whether it is reported for single keypoints too.
    """

    name: str
    label: str
    statistic: Callable[[Any], Any]
    values: Callable[[Measured], Values]
    by_keypoint: Literal['never', 'mmpose', 'always'] = 'never'
    extra: str = ''
    curve: bool = False
    each_keypoint: bool = False

    @property
    def is_error(self) -> bool:
        """Whether less is better, and the value is in pixels or percent; else it is a share."""
        return self.name.startswith('epe')

    def separate(self, protocol: Protocol) -> bool:
        """Whether each keypoint has a statistic of its own, and the metric is their mean."""
        return self.by_keypoint == 'always' or self.by_keypoint == protocol.rule

    def value(self, measured: Measured) -> float | None:
        """The metric of all hands; None if nothing was counted or it is not finite."""
        return _statistic(self.statistic, self.values(measured), self.separate(measured.protocol))

    def text(self, value: float | None, *, signed: bool = False) -> str:
        """A value in words: 2 digits for errors, 3 for shares."""
        if value is None or not np.isfinite(value):
            return '\N{EN DASH}'
        form = ('+' if signed else '') + ('.2f' if self.is_error else '.3f')
        return format(value, form).replace('-', '\N{MINUS SIGN}')


METRICS = (
    Metric(
        'epe_mean_224',
        'EPE mean, px of the 224 crop',
        np.mean,
        Measured.crop,
        curve=True,
        each_keypoint=True,
    ),
    Metric(
        'epe_median_224',
        'EPE median, px of the 224 crop',
        np.median,
        Measured.crop,
        curve=True,
        each_keypoint=True,
    ),
    Metric('epe_mean_image', 'EPE mean, px of the photograph', np.mean, Measured.image, curve=True),
    Metric('epe_median_image', 'EPE median, px of the photograph', np.median, Measured.image),
    Metric(
        'auc',
        'AUC of PCK',
        np.mean,
        lambda measured: measured.area(measured.errors),
        by_keypoint='mmpose',
        curve=True,
    ),
    Metric(
        'pck_at_0.2',
        'PCK@0.2',
        np.mean,
        lambda measured: measured.within(measured.size, 0.2),
        by_keypoint='mmpose',
        curve=True,
        each_keypoint=True,
    ),
    Metric(
        'epe_percent_of_side',
        'EPE, % of the side, mean over hands',
        np.mean,
        Measured.percent_of_side,
        extra='percent_of_side',
        curve=True,
    ),
    Metric(
        'epe_mean_root_aligned',
        'EPE mean, px of the photograph, root aligned',
        np.mean,
        lambda measured: Values(measured.aligned.error_image, measured.aligned.valid),
        extra='root_aligned',
        curve=True,
    ),
    Metric(
        'epe_median_root_aligned',
        'EPE median, px of the photograph, root aligned',
        np.median,
        lambda measured: Values(measured.aligned.error_image, measured.aligned.valid),
        extra='root_aligned',
    ),
    Metric(
        'auc_root_aligned',
        'AUC of PCK, root aligned',
        np.mean,
        lambda measured: measured.area(measured.aligned),
        by_keypoint='mmpose',
        extra='root_aligned',
        curve=True,
    ),
    Metric(
        'epe_mean_image_over_keypoints',
        'EPE mean, px of the photograph, mean over keypoints',
        np.mean,
        Measured.image,
        by_keypoint='always',
        extra='over_keypoints',
    ),
    Metric(
        'epe_median_image_over_keypoints',
        'EPE median, px of the photograph, mean over keypoints',
        np.median,
        Measured.image,
        by_keypoint='always',
        extra='over_keypoints',
    ),
    Metric(
        'auc_over_keypoints',
        'AUC of PCK, mean over keypoints',
        np.mean,
        lambda measured: measured.area(measured.errors),
        by_keypoint='always',
        extra='over_keypoints',
    ),
)
"""Every metric, in the order of reports; summaries, bootstrap, curves and tables read it."""

METRIC = {metric.name: metric for metric in METRICS}


def metrics_of(protocol: Protocol) -> list[Metric]:
    """Those of METRICS that a protocol asks for."""
    return [metric for metric in METRICS if metric.extra in ('', *protocol.extras)]


@dataclasses.dataclass(frozen=True)
class EvaluationRecord:
    """All that an evaluation measured, for reports and calibration to be made of it later.

    Attributes:
        errors: of every record, in the order of their source.
        image_id: names the records, str[n].
        meta: JSON values: 'protocol', 'split', 'step', 'size' (of the network's input, px).
    """

    errors: KeypointErrors
    image_id: np.ndarray
    meta: dict[str, Any]

    def of_hands(self) -> 'EvaluationRecord':
        """The same without the pictures that show no hand."""
        rows = self.errors.has_hand
        return EvaluationRecord(self.errors.take(rows), self.image_id[rows], self.meta)


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
        # NumPy itself stops reading, and so comparing checksums, where an array's header says so.
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if (damaged := archive.testzip()) is not None:
                raise ValueError(f'{damaged} does not agree with its checksum')
        with np.load(io.BytesIO(data), allow_pickle=False) as stored:
            # Files of versions before 0.2 call `valid` counted.
            names = {'valid': 'counted'} if 'counted' in stored.files else {}
            columns = {
                field.name: stored[names.get(field.name, field.name)]
                for field in dataclasses.fields(KeypointErrors)
                if field.name != 'has_hand'
            }
            # Files from before there were pictures without hands do not have it.
            everywhere = np.ones(len(columns['index']), bool)
            columns['has_hand'] = stored['has_hand'] if 'has_hand' in stored.files else everywhere
            return EvaluationRecord(
                KeypointErrors(**columns), stored['image_id'], json.loads(str(stored['meta']))
            )
    except _DAMAGED as error:
        raise ValueError(
            f'{path}: expected the file of an evaluation, got another or a damaged one ({error}); '
            'make it anew with handpose evaluate'
        ) from error


def _where(
    chosen: Bool[np.ndarray, 'n 21'], points: Float[np.ndarray, 'n 21 2']
) -> Float[np.ndarray, 'n 21 2']:
    return np.where(chosen[:, :, None], points, 0.0)


def _relative(errors: KeypointErrors, unit: Float[np.ndarray, 'n']) -> Values:
    # A hand without a size, as one keypoint alone has none, cannot be judged.
    valid = errors.valid & ~np.isnan(unit)[:, None]
    return Values(
        errors.error_image / np.where(np.isnan(unit) | (unit <= 0), 1.0, unit)[:, None], valid
    )


def _statistic(function: Callable[[Any], Any], of: Values, separate: bool) -> float | None:
    columns = (
        [of.values[:, k][of.valid[:, k]] for k in range(of.valid.shape[1])]
        if separate
        else [of.values[of.valid]]
    )
    each = [function(column) for column in columns if column.size]
    if not each:
        return None
    value = float(each[0] if len(each) == 1 else np.mean(each))
    return value if np.isfinite(value) else None


def _check_rows(field: str, good: Bool[np.ndarray, 'n *rest'], index: Any) -> None:
    bad = ~good.reshape(len(good), -1).all(axis=1)
    if bad.any():
        raise ValueError(
            f'batch[{field!r}]: expected finite values (norm_size: positive) for every hand with '
            f'visible keypoints, got others in the records with index {index[bad].tolist()}; '
            'correct these records or mark their keypoints as not visible'
        )
