"""What each way of reading keypoints out of the same heatmaps is worth.

    python benchmarks/decoding.py LABEL=WORKDIR ...

runs each workdir's newest checkpoint once over its validation split, decodes the heatmaps in every
way below, and adds the rows to benchmarks/results/decoding.json:

    argmax              the map's highest pixel, as in the paper
    parabola            through the logarithms around it (heatmaps.refine_peaks)
    dark                DARK (heatmaps.refine_dark)
    average             the whole map's centre of mass, as in the tutorial
    average in window   the centre of mass of a square around the highest pixel

and, with the parabola, the fallback rule of the paper's section 3.3 at several thresholds. All
without the fallback otherwise. Differences are to the parabola without fallback, on the same hands,
with 95% bootstrap intervals over hands.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import results_file
from ml_collections import ConfigDict

from handpose_jax import heatmaps, inference
from handpose_jax.config import evaluation_data
from handpose_jax.data import pipeline, sources
from handpose_jax.evaluation import metrics, protocols
from handpose_jax.evaluation.report import bootstrap
from handpose_jax.hand import NUM_KEYPOINTS
from handpose_jax.process import allocator, command_line
from handpose_jax.training import workdirs

THRESHOLDS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4)
FIGURES = ('epe_mean_224', 'epe_median_224', 'pck_at_0.2')
BASELINE = 'parabola'
RESAMPLES = 1000

# Smaller moves of a keypoint's error are rounding, px of a 224 crop.
_SAME = 1e-3
_CHUNK = 64

Points = Callable[[jax.Array], jax.Array]


def average_in_window(maps: jax.Array, *, radius: int) -> jax.Array:
    """Centre of mass of the square of pixels around each map's highest one, map pixels.

    Args:
        maps: f32[b h w k]; negative values count as zero.
        radius: the square has 2 radius + 1 pixels a side, fewer on a border.

    Returns:
        (x, y) f32[b k 2].
    """
    _, h, w, _ = maps.shape
    peak = heatmaps.argmax(maps)
    near_x = jnp.abs(jnp.arange(w)[None, :, None] - peak[:, None, :, 0]) <= radius
    near_y = jnp.abs(jnp.arange(h)[None, :, None] - peak[:, None, :, 1]) <= radius
    window = near_y[:, :, None, :] & near_x[:, None, :, :]
    average = heatmaps.weighted_average(jnp.where(window, maps, 0.0))
    # A map without any positive value has no mass, and its average is the map's centre.
    has_mass = (maps * window).max(axis=(1, 2)) > 0
    return jnp.where(has_mass[..., None], average, peak)


def decoders(sigma_map: float) -> dict[str, Points]:
    """From maps f32[b h w 21] to keypoints in map pixels, by name.

    Args:
        sigma_map: of the targets the network was trained on, map pixels.
    """
    radius = math.ceil(2 * sigma_map)
    return {
        'argmax': lambda maps: heatmaps.argmax(maps).astype(jnp.float32),
        'parabola': lambda maps: heatmaps.refine_peaks(maps, heatmaps.argmax(maps)),
        'dark': lambda maps: heatmaps.refine_dark(maps, heatmaps.argmax(maps), sigma_map=sigma_map),
        'average': heatmaps.weighted_average,
        f'average in window of {2 * radius + 1}': lambda maps: average_in_window(
            maps, radius=radius
        ),
    }


def _predict_maps(
    config: ConfigDict, workdir: str, limit: int
) -> tuple[int, int, np.ndarray, dict[str, np.ndarray]]:
    """Heatmaps of a workdir's validation split.

    Returns:
        The checkpoint's step, the maps' stride, the maps f32[n h w 21] and the batch of all hands.
    """
    run = inference.load_run(workdir, config=config)
    model, step, variables = run.model, run.step, run.variables
    source = sources.load_source(split=config.eval_split, **evaluation_data(config))

    @jax.jit
    def apply(variables: Any, images: jax.Array) -> jax.Array:
        maps: Any = model.apply(variables, images, train=False)
        return maps[..., :NUM_KEYPOINTS]

    maps: list[np.ndarray] = []
    parts: list[dict[str, np.ndarray]] = []
    size, count = config.eval_batch_size, 0
    for batch in pipeline.eval_batches(source, size=config.size, batch_size=size):
        valid = batch['valid']
        maps.append(np.asarray(apply(variables, batch.pop('image')), np.float32)[valid])
        parts.append({name: values[valid] for name, values in batch.items()})
        count += int(valid.sum())
        if limit and count >= limit:
            break
    whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return step, model.stride, np.concatenate(maps), whole


def _in_parts(function: Callable[[jax.Array], Any], maps: np.ndarray) -> Any:
    """Applies a jitted function to maps, a part at a time; joins its results."""
    jitted = jax.jit(function)
    results = [
        jax.tree.map(np.asarray, jitted(maps[start : start + _CHUNK]))
        for start in range(0, len(maps), _CHUNK)
    ]
    return jax.tree.map(lambda *parts: np.concatenate(parts), *results)


def compare(
    measured: dict[str, metrics.KeypointErrors], protocol: protocols.Protocol
) -> dict[str, dict[str, Any]]:
    """Figures of each row, and its differences to the row BASELINE with intervals."""
    draws = bootstrap.draw(list(measured.values()), protocol, resamples=RESAMPLES)
    by_name = dict(zip(measured, draws, strict=True))
    baseline = measured[BASELINE].summary(protocol)
    rows = {}
    for name, errors in measured.items():
        summary = errors.summary(protocol)
        row: dict[str, Any] = {figure: summary[figure] for figure in FIGURES}
        for figure in FIGURES:
            interval = bootstrap.interval(by_name[name][figure] - by_name[BASELINE][figure])
            row[f'{figure}_difference'] = {
                'value': summary[figure] - baseline[figure],
                'interval_95': list(interval) if interval else None,
            }
        rows[name] = row
    return rows


def changes(before: metrics.KeypointErrors, after: metrics.KeypointErrors) -> dict[str, Any]:
    """What became of the counted keypoints that two decodings of the same maps place differently.

    Returns:
        How many moved, how many of them are better and worse, and their errors before and after,
        px of a 224 crop.
    """
    moved = (before.predicted_image != after.predicted_image).any(axis=2) & before.valid
    old, new = before.error_crop[moved], after.error_crop[moved]
    numbers: dict[str, Any] = {
        'changed': int(moved.sum()),
        'better': int((new < old - _SAME).sum()),
        'worse': int((new > old + _SAME).sum()),
    }
    for name, function in (('mean', np.mean), ('median', np.median)):
        numbers[f'{name}_before'] = float(function(old)) if moved.any() else None
        numbers[f'{name}_after'] = float(function(new)) if moved.any() else None
    return numbers


def measure(workdir: str, limit: int) -> dict[str, Any]:
    """All rows of one workdir."""
    config = workdirs.load_config(workdir)
    step, stride, maps, batch = _predict_maps(config, workdir, limit)
    sigma_map = config.sigma * config.size / metrics.EPE_FRAME / stride
    peak = maps.max(axis=(1, 2))
    protocol = protocols.get_protocol(config.protocol)

    def errors_of(points_crop: np.ndarray, confidence: np.ndarray) -> metrics.KeypointErrors:
        whole: Any = batch
        return metrics.KeypointErrors.from_batch(points_crop, confidence, whole, config.size)

    measured = {}
    for name, points in decoders(sigma_map).items():
        found = heatmaps.crop_from_heatmap(jnp.asarray(_in_parts(points, maps)), stride)
        measured[name] = errors_of(np.asarray(found), np.clip(peak, 0, 1))
    ways = compare(measured, protocol)

    with_fallback = {BASELINE: measured[BASELINE]}
    for threshold in THRESHOLDS:
        decode = functools.partial(
            heatmaps.decode, stride=stride, fallback=True, threshold=threshold
        )
        found = _in_parts(decode, maps)
        with_fallback[str(threshold)] = errors_of(found.keypoints, found.confidence)
    fallback = compare(with_fallback, protocol)
    fallback['off'] = fallback.pop(BASELINE)
    for threshold in THRESHOLDS:
        name = str(threshold)
        fallback[name]['uncertain'] = int(((peak < threshold) & batch['visible']).sum())
        fallback[name] |= changes(measured[BASELINE], with_fallback[name])
    return {
        'step': step,
        'model': config.model.name,
        'size': config.size,
        'sigma_map': sigma_map,
        'protocol': config.protocol,
        'hands': len(maps),
        'keypoints': measured[BASELINE].num_valid,
        'confidence_percentiles_5_50_95': np.percentile(
            peak[batch['visible']], [5, 50, 95]
        ).tolist(),
        'decoding': ways,
        'fallback': fallback,
    }


def _with_interval(difference: dict[str, Any], digits: int) -> str:
    text = f'{difference["value"]:+.{digits}f}'
    if difference['interval_95'] is None:
        return text
    low, high = difference['interval_95']
    return f'{text} ({low:+.{digits}f} .. {high:+.{digits}f})'


def table(label: str, run: dict[str, Any]) -> str:
    """Both Markdown tables of one run."""
    low, middle, high = run['confidence_percentiles_5_50_95']
    title = (
        f'{label}: {run["hands"]} hands, {run["keypoints"]} keypoints, {run["model"]} at '
        f'{run["size"]} px, step {run["step"]}; confidence {low:.2f} / {middle:.2f} / {high:.2f} '
        '(5%, median, 95%)'
    )
    figures = 'EPE mean | median | PCK@0.2'
    figures += ' | mean, difference | median, difference | PCK@0.2, difference'
    ways = [_cells(name, row) for name, row in run['decoding'].items()]
    rows = []
    for name in ('off', *map(str, THRESHOLDS)):
        row = run['fallback'][name]
        changed = ['0', '', '', '']
        if row.get('changed'):
            changed = [
                f'{row["changed"]} of {row["uncertain"]}',
                f'{row["better"]} / {row["worse"]}',
                f'{row["median_before"]:.1f} -> {row["median_after"]:.1f}',
                f'{row["mean_before"]:.1f} -> {row["mean_after"]:.1f}',
            ]
        rows.append([*_cells(name, row), *changed])
    head = f'fallback below | {figures} | changed | better / worse'
    head += ' | their median before -> after | mean'
    tables = results_file.table(f'decoding | {figures}', ways), results_file.table(head, rows)
    return '\n\n'.join([title, *tables])


def _cells(name: str, row: dict[str, Any]) -> list[str]:
    digits = dict(zip(FIGURES, (2, 2, 4), strict=True))
    values = [f'{row[figure]:.{digit}f}' for figure, digit in digits.items()]
    changes = [_with_interval(row[f'{figure}_difference'], digits[figure]) for figure in FIGURES]
    return [name, *values, *changes]


def main() -> None:
    """Measures, merges into the results file, prints Markdown tables of the runs named."""
    parser = results_file.parser(__doc__, 'decoding')
    results_file.add_runs(parser)
    parser.add_argument('--limit', type=int, default=0, help='about so many hands; 0: all')
    flags = parser.parse_args()
    allocator.keep_freed_memory()
    results = results_file.measure_runs(
        'decoding', flags, lambda workdir: measure(workdir, flags.limit)
    )
    for label, _ in flags.runs:
        print(table(label, results['runs'][label]), end='\n\n')


if __name__ == '__main__':
    with command_line.told():
        main()
