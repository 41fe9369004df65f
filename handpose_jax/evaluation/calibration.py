"""Confidence that means something: handpose calibrate --workdir W.

A heatmap's peak is not a probability. From an evaluation, W/evaluation.npz, this fits what a
confidence says about a keypoint's error, and writes it to W/calibration.json:

    probability_correct   P(error at most 0.2 of the longest side of the hand's tight keypoint box)
    std_px_224            the error's standard deviation along x and along y, pixels of a 224 crop
    presence              P(there is a hand), where the evaluation had pictures without one

**What the standard deviation means.** Errors have a narrow core and a few far outliers (another
finger, the other end of the hand), for which no single Gaussian fits. It describes the core: a
two-dimensional Gaussian of this deviation has the median error that keypoints of this confidence
have, so half of them lie within 1.18 of it, whatever the outliers. How much of the discs of one and
two deviations is really covered is reported beside what a Gaussian would cover (39% and 86%).
`probability_correct` tells how likely an outlier is.

**What presence means.** It follows from PRESENCE_SCORE, one number of the 21 confidences, and takes
a picture to show a hand as often as not: how many pictures of each kind an evaluation happened to
have does not matter.

Hands are split by a hash of their image's name: about two thirds fit, the others measure, so that
the numbers in the report are of exactly what was written, on hands it has not seen. Both curves are
isotonic steps of bins of equal count, one for all keypoints: a logistic curve, and curves for each
type of joint, lost at most 0.3% less (probability) and 1.1% less (deviation) in cross-validation.
"""

import argparse
import dataclasses
import hashlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from handpose_jax.evaluation.metrics import (
    EPE_FRAME,
    EVALUATION_FILE,
    EvaluationRecord,
    read_evaluation,
)
from handpose_jax.process import storage
from handpose_jax.process.digests import digest_of_json

CALIBRATION_FILE = 'calibration.json'

CORRECT_WITHIN = 0.2
"""An error up to this part of the box's longest side, PCK's usual threshold, is correct."""

_MEDIAN_RADIUS = float(np.sqrt(2 * np.log(2)))
PRESENCE_SCORE = 'highest'
"""The one of PRESENCE_SCORES that presence is made of; benchmarks/presence.py compares them."""

PRESENCE_SCORES: dict[str, Callable[[Any], Any]] = {
    'mean': lambda confidence: np.mean(confidence, axis=-1),
    'median': lambda confidence: np.median(confidence, axis=-1),
    'lower quartile': lambda confidence: np.quantile(confidence, 0.25, axis=-1),
    'upper quartile': lambda confidence: np.quantile(confidence, 0.75, axis=-1),
    'lowest': lambda confidence: np.min(confidence, axis=-1),
    'highest': lambda confidence: np.max(confidence, axis=-1),
}
"""From f[.. 21] confidences to f[..], more where a hand is likelier."""

_FORMAT = 3
_GRID = np.linspace(0, 1, 201)
_FIT_SHARE = 2 / 3
_LEAST_KEYPOINTS = 200
_BIN_KEYPOINTS = 100
_LEAST_PICTURES = 20
_BIN_PICTURES = 20
_MOST_BINS = 30
_REPORT_BINS = 10
_ECE_BINS = 15
_SMALLEST_STD = 0.01
_PERFECT_DRAWS = 40
# Radii in standard deviations, and the share of a two-dimensional Gaussian that is within.
_DISCS = {
    'half': (_MEDIAN_RADIUS, 0.5),
    'one_sigma': (1.0, float(1 - np.exp(-0.5))),
    'two_sigma': (2.0, float(1 - np.exp(-2.0))),
}


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What a confidence says about the error of a keypoint.

    The tables hold a number for each of 201 confidences from 0 to 1; between them lines.

    Attributes:
        probability: that the error is at most CORRECT_WITHIN; never falls with the confidence.
        std: of the error along x and along y, px of a 224 crop; never rises with it.
        report: JSON values: what it was fitted on, and how it held out.
        presence: that there is a hand, by PRESENCE_SCORE of its confidences; never falls with that.
            None where there were too few pictures without a hand to fit it on.
    """

    probability: Float[np.ndarray, '201']
    std: Float[np.ndarray, '201']
    report: dict[str, Any]
    presence: Float[np.ndarray, '201'] | None = None

    @property
    def step(self) -> int | None:
        """The training step of the checkpoint whose predictions it was fitted on."""
        return self.report['fitted_on']['step']

    def apply(
        self, confidence: Float[np.ndarray, '*n']
    ) -> tuple[Float[np.ndarray, '*n'], Float[np.ndarray, '*n']]:
        """What confidences mean.

        Args:
            confidence: as heatmaps.decode gives them; NaN stays NaN.

        Returns:
            The probability of being correct, and the standard deviation in pixels of a 224 crop.
        """
        confidence = np.asarray(confidence, np.float64)
        return (
            np.interp(confidence, _GRID, self.probability),
            np.interp(confidence, _GRID, self.std),
        )

    def apply_presence(
        self, confidence: Float[np.ndarray, '*n 21']
    ) -> Float[np.ndarray, '*n'] | None:
        """How likely there is a hand.

        Args:
            confidence: of the 21 keypoints of each picture; NaN gives NaN.

        Returns:
            Probabilities; None without a table for them.
        """
        if self.presence is None:
            return None
        score = PRESENCE_SCORES[PRESENCE_SCORE](np.asarray(confidence, np.float64))
        return np.asarray(np.interp(score, _GRID, self.presence))


def fit(record: EvaluationRecord) -> Calibration:
    """Fits a calibration on part of an evaluation and measures it on the rest.

    Args:
        record: of hands that the network was not trained on.

    Raises:
        ValueError: if either part has too few counted keypoints.
    """
    data = _observations(record)
    fitting = data.share < _FIT_SHARE
    for name, part in (('fit', fitting), ('measure', ~fitting)):
        if part.sum() < _LEAST_KEYPOINTS:
            raise ValueError(
                f'calibration: expected at least {_LEAST_KEYPOINTS} counted keypoints to {name} '
                f'it, got {int(part.sum())} of {len(part)} in all; evaluate more hands'
            )
    seen, unseen = data.select(fitting), data.select(~fitting)
    calibration = Calibration(
        # Half a count more on either side: a hundred correct keypoints do not prove certainty.
        _isotonic(
            seen.confidence,
            seen.correct,
            lambda part: (part.sum() + 0.5) / (len(part) + 1),
            increasing=True,
        ),
        _isotonic(
            seen.confidence,
            seen.error,
            lambda part: max(float(np.median(part)) / _MEDIAN_RADIUS, _SMALLEST_STD),
            increasing=False,
        ),
        {},
    )
    presence, presence_report = _fit_presence(record)
    report = {
        'fitted_on': {
            'sha256': fingerprint(record),
            'hands': len(np.unique(seen.row)),
            'keypoints': len(seen.error),
            **{name: record.meta.get(name) for name in ('protocol', 'split', 'step')},
        },
        'held_out': _measure(calibration, seen, unseen),
        'presence': presence_report,
    }
    return dataclasses.replace(calibration, presence=presence, report=report)


def _fit_presence(
    record: EvaluationRecord,
) -> tuple[Float[np.ndarray, '201'] | None, dict[str, Any] | None]:
    """The table of presence and how it held out; None for either where there is too little."""
    usable = np.isfinite(record.errors.confidence).all(axis=1)
    score = PRESENCE_SCORES[PRESENCE_SCORE](record.errors.confidence[usable])
    has_hand = record.errors.has_hand[usable]
    fitting = _shares(record.image_id[usable]) < _FIT_SHARE
    parts = {
        name: int((chosen & kind).sum())
        for name, chosen, kind in (
            ('hands', fitting, has_hand),
            ('without', fitting, ~has_hand),
            ('held_out_hands', ~fitting, has_hand),
            ('held_out_without', ~fitting, ~has_hand),
        )
    }
    if min(parts.values()) < _LEAST_PICTURES:
        return None, None
    # Weighed as if there were as many pictures of either kind.
    half = fitting.sum() / 2
    weight, weight_without = half / parts['hands'], half / parts['without']

    def share(part: Bool[np.ndarray, 'k']) -> float:
        hands, without = weight * part.sum(), weight_without * (~part).sum()
        return float((hands + 0.5) / (hands + without + 1))

    table = _isotonic(
        score[fitting], has_hand[fitting], share, increasing=True, per_bin=_BIN_PICTURES
    )
    claimed, shown = np.interp(score[~fitting], _GRID, table), has_hand[~fitting]
    return table, {
        'score': PRESENCE_SCORE,
        **parts,
        'auroc': auroc(score[~fitting][shown], score[~fitting][~shown]),
        'brier': float(((1 - claimed[shown]) ** 2).mean() + (claimed[~shown] ** 2).mean()) / 2,
    }


def auroc(positive: Float[np.ndarray, 'p'], negative: Float[np.ndarray, 'n']) -> float:
    """Area under the ROC curve: how often a positive's score is above a negative's, ties half.

    Args:
        positive: scores of what is to have high ones.
        negative: scores of the rest.

    Raises:
        ValueError: if either is empty.
    """
    if not (len(positive) and len(negative)):
        raise ValueError(
            f'auroc: expected scores of both kinds, got {len(positive)} and {len(negative)}'
        )
    ranked = np.sort(negative)
    below = np.searchsorted(ranked, positive, side='left')
    not_above = np.searchsorted(ranked, positive, side='right')
    return float((below + not_above).mean() / (2 * len(negative)))


def fingerprint(record: EvaluationRecord) -> str:
    """A digest of everything in an evaluation that a calibration depends on."""
    digest = hashlib.sha256()
    errors = record.errors
    columns = {
        'confidence': errors.confidence,
        'error_crop': errors.error_crop,
        'error_image': errors.error_image,
        'counted': errors.valid,  # the name in older digests
        'truth_image': errors.truth_image,
        'image_id': record.image_id,
    }
    if not errors.has_hand.all():
        columns['has_hand'] = errors.has_hand
    for name, column in columns.items():
        values = np.ascontiguousarray(column)
        digest.update(f'{name} {values.dtype.str} {values.shape}\n'.encode())
        digest.update(values.tobytes())
    return digest.hexdigest()


def save(workdir: str | os.PathLike[str], calibration: Calibration) -> None:
    """Writes W/calibration.json; there is never half a file.

    Raises:
        ValueError: if the workdir cannot be written.
    """
    content = {
        'format': _FORMAT,
        'probability': np.round(calibration.probability, 6).tolist(),
        'std': np.round(calibration.std, 6).tolist(),
        'presence': (
            None if calibration.presence is None else np.round(calibration.presence, 6).tolist()
        ),
        'report': calibration.report,
    }
    path = storage.folder(workdir) / CALIBRATION_FILE
    temporary = path.parent / f'{path.name}.new'
    try:
        temporary.write_text(json.dumps({'checksum': digest_of_json(content), **content}) + '\n')
        temporary.replace(path)
    except OSError as error:
        raise ValueError(f'{path}: cannot be written ({error.strerror})') from error


def load(workdir: str | os.PathLike[str]) -> Calibration | None:
    """Reads W/calibration.json.

    Returns:
        None if the workdir has no such file.

    Raises:
        ValueError: for a file that is damaged, changed by hand or of another version.
    """
    path = storage.folder(workdir) / CALIBRATION_FILE
    if not path.exists():
        return None
    again = f'make it anew with handpose calibrate --workdir {workdir}'
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f'{path}: expected a calibration in JSON ({error}); {again}') from error
    version = content.get('format') if isinstance(content, dict) else None
    if version != _FORMAT:
        raise ValueError(f'{path}: expected a calibration of format {_FORMAT}; {again}')
    if content.pop('checksum', None) != digest_of_json(content):
        raise ValueError(
            f'{path}: its content does not agree with its checksum, so it is damaged or was '
            f'changed by hand; {again}'
        )
    presence = content['presence']
    return Calibration(
        np.asarray(content['probability'], np.float64),
        np.asarray(content['std'], np.float64),
        content['report'],
        None if presence is None else np.asarray(presence, np.float64),
    )


def expected_calibration_error(
    probability: Float[np.ndarray, 'm'], correct: Bool[np.ndarray, 'm']
) -> float:
    """ECE: the mean distance of probabilities from what came true, over bins of equal count.

    Args:
        probability: claimed.
        correct: what came true.

    Source: Naeini et al. 2015, with bins of equal count instead of equal width.
    """
    order = np.argsort(probability, kind='stable')
    gaps = [
        len(part) * abs(probability[part].mean() - correct[part].mean())
        for part in np.array_split(order, min(_ECE_BINS, len(order)))
    ]
    return float(sum(gaps) / len(order))


def describe(report: dict[str, Any]) -> str:
    """A calibration's report as Markdown for people."""
    fitted_on, held_out = report['fitted_on'], report['held_out']
    before, after = held_out['before'], held_out['after']
    lines = [
        f'Fitted on {fitted_on["hands"]} hands ({fitted_on["keypoints"]} keypoints) of split '
        f'{fitted_on["split"]}, step {fitted_on["step"]}; measured on {held_out["hands"]} others '
        f'({held_out["keypoints"]} keypoints).',
        '',
        '| on hands not used for fitting | before | after | ideal |',
        '|---|---|---|---|',
        f'| ECE of P(error <= {CORRECT_WITHIN} box) | {before["ece"]:.4f} | {after["ece"]:.4f} | '
        f'{held_out["ece_of_perfect"]:.4f} (chance) |',
        f'| Brier score | {before["brier"]:.4f} | {after["brier"]:.4f} | 0 |',
    ]
    for key, (radius, ideal) in _DISCS.items():
        lines.append(
            f'| errors within {radius:.3g} std | {before["coverage"][key]:.3f} | '
            f'{after["coverage"][key]:.3f} | {ideal:.3f} |'
        )
        lines.append(
            f'| ... mean distance from that over tenths of confidence | '
            f'{before["coverage_distance"][key]:.3f} | {after["coverage_distance"][key]:.3f} | 0 |'
        )
    lines += [
        '',
        '| confidence | keypoints | probability correct | really correct | std, px of 224 | '
        'within 1 std | within 2 std |',
        '|---|---|---|---|---|---|---|',
    ]
    for row in held_out['by_confidence']:
        lines.append(
            f'| {row["confidence"][0]:.3f} .. {row["confidence"][1]:.3f} | {row["keypoints"]} | '
            f'{row["probability"]:.3f} | {row["correct"]:.3f} | {row["std"]:.2f} | '
            f'{row["one_sigma"]:.3f} | {row["two_sigma"]:.3f} |'
        )
    presence = report['presence']
    if presence is None:
        lines += ['', 'Nothing is said about presence: there were too few pictures without a hand.']
    else:
        lines += [
            '',
            f'P(there is a hand) by the {presence["score"]} of the confidences, fitted on '
            f'{presence["hands"]} hands and {presence["without"]} pictures without; on '
            f'{presence["held_out_hands"]} and {presence["held_out_without"]} others: AUROC '
            f'{presence["auroc"]:.4f}, Brier score {presence["brier"]:.4f}.',
        ]
    return '\n'.join(lines)


@dataclasses.dataclass(frozen=True)
class _Observations:
    """The counted keypoints of all hands, one after the other."""

    confidence: Float[np.ndarray, 'm']
    correct: Bool[np.ndarray, 'm']
    error: Float[np.ndarray, 'm']  # px of a 224 crop
    row: Int[np.ndarray, 'm']  # the hand
    share: Float[np.ndarray, 'm']  # 0..1 by the image's name: which part its hands are in

    def select(self, chosen: Bool[np.ndarray, 'm']) -> '_Observations':
        return _Observations(
            *(getattr(self, field.name)[chosen] for field in dataclasses.fields(self))
        )


def _observations(record: EvaluationRecord) -> _Observations:
    side = record.errors.size_of('keypoint_box')
    # A single annotated keypoint has no box, so whether it is correct cannot be said.
    usable = record.errors.valid & np.isfinite(side)[:, None]
    usable &= np.isfinite(record.errors.confidence)
    share = _shares(record.image_id)
    row, _ = np.nonzero(usable)
    return _Observations(
        confidence=record.errors.confidence[usable],
        correct=record.errors.error_image[usable] <= CORRECT_WITHIN * side[row],
        # Farther than the crop is wide says no more than that, and infinity would spoil a median.
        error=np.minimum(record.errors.error_crop[usable], float(EPE_FRAME)),
        row=row,
        share=share[row],
    )


def _shares(image_id: Any) -> Float[np.ndarray, 'n']:
    names = [hashlib.sha256(str(name).encode()).digest() for name in image_id]
    return np.array([int.from_bytes(name[:8], 'big') / 2**64 for name in names], np.float64)


def _isotonic(
    confidence: Float[np.ndarray, 'm'],
    outcome: Any,
    statistic: Callable[[Any], float],
    *,
    increasing: bool,
    per_bin: int = _BIN_KEYPOINTS,
) -> Float[np.ndarray, '201']:
    """The statistic of bins of equal count, made monotone, with lines between the bins' centres."""
    # Imported here: whoever only applies a calibration needs no SciPy.
    from scipy import optimize

    count = int(np.clip(len(confidence) // per_bin, 1, _MOST_BINS))
    edges = np.unique(np.quantile(confidence, np.linspace(0, 1, count + 1)[1:-1]))
    # Equal confidences stay together; many may be exactly 1.
    which = np.searchsorted(edges, confidence, side='right')
    parts = [which == number for number in np.unique(which)]
    centres = np.array([confidence[part].mean() for part in parts])
    values = np.array([statistic(outcome[part]) for part in parts])
    weights = np.array([part.sum() for part in parts], np.float64)
    smooth = optimize.isotonic_regression(values, weights=weights, increasing=increasing).x
    return np.interp(_GRID, centres, smooth)


def _measure(
    calibration: Calibration, seen: _Observations, unseen: _Observations
) -> dict[str, Any]:
    probability, std = calibration.apply(unseen.confidence)
    same_for_all = np.full_like(std, np.median(seen.error) / _MEDIAN_RADIUS)
    tenths = np.array_split(
        np.argsort(unseen.confidence, kind='stable'), min(_REPORT_BINS, len(std))
    )
    rng = np.random.default_rng(0)
    by_chance = [
        expected_calibration_error(probability, rng.random(len(probability)) < probability)
        for _ in range(_PERFECT_DRAWS)
    ]
    return {
        'hands': len(np.unique(unseen.row)),
        'keypoints': len(unseen.error),
        'share_correct': float(unseen.correct.mean()),
        # Before: the confidence taken for a probability, and one deviation for all keypoints.
        'before': _row(unseen.confidence, same_for_all, unseen, tenths),
        'after': _row(probability, std, unseen, tenths),
        # What a perfect calibration would show in a sample of this size, if keypoints were
        # independent; those of a hand are not, so chance alone can show more.
        'ece_of_perfect': float(np.mean(by_chance)),
        'by_confidence': [
            {
                'confidence': [float(f(unseen.confidence[part])) for f in (np.min, np.max)],
                'keypoints': len(part),
                'probability': float(probability[part].mean()),
                'correct': float(unseen.correct[part].mean()),
                'std': float(std[part].mean()),
                **_coverage(unseen.error[part], std[part]),
            }
            for part in tenths
        ],
    }


def _row(
    probability: Float[np.ndarray, 'm'],
    std: Float[np.ndarray, 'm'],
    data: _Observations,
    tenths: Sequence[Int[np.ndarray, '_']],
) -> dict[str, Any]:
    parts = [_coverage(data.error[part], std[part]) for part in tenths]
    return {
        'ece': expected_calibration_error(probability, data.correct),
        'brier': float(((probability - data.correct) ** 2).mean()),
        'coverage': _coverage(data.error, std),
        'coverage_distance': {
            name: float(np.mean([abs(part[name] - ideal) for part in parts]))
            for name, (_, ideal) in _DISCS.items()
        },
    }


def _coverage(error: Float[np.ndarray, 'm'], std: Float[np.ndarray, 'm']) -> dict[str, float]:
    return {name: float((error <= radius * std).mean()) for name, (radius, _) in _DISCS.items()}


def main(argv: Sequence[str] | None = None, prog: str = 'handpose calibrate') -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--workdir', required=True, help='folder of a training run, evaluated')
    flags = parser.parse_args(argv)
    try:
        record = read_evaluation(storage.folder(flags.workdir) / EVALUATION_FILE)
        calibration = fit(record)
        save(flags.workdir, calibration)
    except ValueError as error:
        sys.exit(f'error: {error}')
    print(describe(calibration.report))


if __name__ == '__main__':
    main()
