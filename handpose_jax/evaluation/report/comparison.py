"""The difference between two runs, if they were measured on the same hands in the same way."""

import dataclasses
from typing import NamedTuple

import numpy as np

from handpose_jax.evaluation.metrics import METRIC, KeypointErrors
from handpose_jax.evaluation.report import bootstrap
from handpose_jax.evaluation.report.runs import Run

# Annotations of the same hand may differ by what float32 and a text file round.
_SAME_PIXELS = 0.05
_SAME_SCALE = 1e-3


class Difference(NamedTuple):
    """How one metric differs: the other run's value minus the first's.

    Attributes:
        value: None where one of the two does not exist.
        interval: None without a value or with too few hands.
        better: 'first', 'other', or None where the interval holds 0 or is missing.
    """

    value: float | None
    interval: bootstrap.Interval | None
    better: str | None


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two runs side by side.

    Attributes:
        first: what the other is compared with.
        other: the run that is compared.
        refused: why they are not compared; '' where they are.
        differences: by metric; empty where refused.
    """

    first: Run
    other: Run
    refused: str
    differences: dict[str, Difference]


def intervals(run: Run) -> dict[str, bootstrap.Interval | None]:
    """The interval of each metric of one run; none where the hands are too few."""
    if run.errors.num_hands < bootstrap.FEWEST_HANDS:
        return {}
    (draws,) = bootstrap.draw([run.errors], run.protocol)
    return {metric: bootstrap.interval(values) for metric, values in draws.items()}


def compare(first: Run, other: Run) -> Comparison:
    """Pairs two runs by image_id and takes the difference of every metric."""
    refused = why_not(first, other)
    if refused:
        return Comparison(first, other, refused, {})
    differences: dict[str, Difference] = {}
    errors = [_in_order_of_names(run) for run in (first, other)]
    enough = errors[0].num_hands >= bootstrap.FEWEST_HANDS
    draws = bootstrap.draw(errors, first.protocol) if enough else None
    for metric in bootstrap.metrics_of_draws(first.errors, first.protocol):
        before, after = first.summary[metric], other.summary[metric]
        if before is None or after is None:
            differences[metric] = Difference(None, None, None)
            continue
        limits = draws and bootstrap.interval(draws[1][metric] - draws[0][metric])
        better = None
        if limits and (limits.low > 0 or limits.high < 0):
            better = 'other' if (limits.high < 0) == METRIC[metric].is_error else 'first'
        differences[metric] = Difference(after - before, limits or None, better)
    return Comparison(first, other, '', differences)


def why_not(first: Run, other: Run) -> str:
    """Why two runs must not be compared, as a clause; '' if they may be."""
    one, two = first.protocol.name, other.protocol.name
    if one != two:
        return f'one was measured under protocol {one}, the other under {two}'
    names = [np.asarray(run.record.image_id) for run in (first, other)]
    for run, ids in zip((first, other), names, strict=True):
        if len(set(ids.tolist())) < len(ids):
            return f'several hands of {run.name} bear the same image_id and cannot be paired'
    alone = [len(set(a.tolist()) - set(b.tolist())) for a, b in (names, names[::-1])]
    if any(alone):
        return (
            f'they were measured on different hands: {alone[0]:,} only in {first.name}, '
            f'{alone[1]:,} only in {other.name}, {len(names[0]) - alone[0]:,} in both'
        )
    a, b = (_in_order_of_names(run) for run in (first, other))
    if not np.array_equal(a.valid, b.valid):
        return 'different keypoints of the same hands are annotated'
    if not (np.abs(a.truth_image - b.truth_image)[a.valid] <= _SAME_PIXELS).all():
        return 'the annotations of hands with the same image_id differ: these are other data'
    some = a.valid.any(axis=1)
    if not np.allclose(a.norm_size[some], b.norm_size[some], rtol=_SAME_SCALE):
        return f'the normaliser ({first.protocol.normaliser}) of the same hands differs'
    scales = [_image_px_of_crop_px(errors) for errors in (a, b)]
    known = np.isfinite(scales).all(axis=0)
    if not np.allclose(scales[0][known], scales[1][known], rtol=_SAME_SCALE):
        return 'the same hands were cropped at different scales, so pixels of the crop differ'
    return ''


def _in_order_of_names(run: Run) -> KeypointErrors:
    return run.errors.take(np.argsort(np.asarray(run.record.image_id), kind='stable'))


def _image_px_of_crop_px(errors: KeypointErrors) -> np.ndarray:
    """How many image pixels a pixel of the 224 crop is, of each hand; NaN where nobody can tell."""
    usable = errors.valid & np.isfinite(errors.error_crop)
    crop = np.where(usable, errors.error_crop, 0.0).sum(axis=1)
    image = np.where(usable, errors.error_image, 0.0).sum(axis=1)
    return np.where(crop > 0, image / np.where(crop > 0, crop, 1.0), np.nan)
