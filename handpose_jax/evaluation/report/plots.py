"""The report's pictures as SVG: PCK curves, errors on a drawn hand, reliability.

Readable in grey and by the colour-blind: lines differ in their dashes too, colours in lightness.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from jaxtyping import Bool, Float
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from handpose_jax import hand

# Okabe and Ito 2008, "Color universal design", without their yellow, which is lost on white.
_COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#56B4E9', '#000000', '#E69F00')
_DASHES: tuple[Any, ...] = ('-', (0, (5, 1.5)), (0, (1, 1.2)), (0, (4, 1.5, 1, 1.5)), (0, (8, 2)))

_INK = '#222222'
_FAINT = '#8a8a8a'
_LONGEST_NAME = 28

_BINS = 10
_FEWEST_IN_BIN = 20

# A right hand seen from its palm's back, fingers spread; only for the drawing.
_DRAWN_HAND = np.array(
    [
        *[(0.0, 0.0)],
        *[(-1.5, 0.9), (-2.6, 1.9), (-3.45, 2.85), (-4.2, 3.8)],
        *[(-1.35, 3.9), (-1.75, 5.45), (-2.0, 6.65), (-2.2, 7.85)],
        *[(-0.1, 4.15), (-0.15, 5.9), (-0.2, 7.25), (-0.25, 8.55)],
        *[(1.1, 3.9), (1.4, 5.5), (1.6, 6.75), (1.8, 7.95)],
        *[(2.2, 3.3), (2.85, 4.5), (3.3, 5.5), (3.7, 6.5)],
    ]
)


class Curve(NamedTuple):
    """One line of a plot; values None where nothing was counted."""

    name: str
    thresholds: Sequence[float]
    values: Sequence[float] | None


def pck(curves: Sequence[Curve], *, x_label: str, title: str) -> str:
    """PCK over its thresholds, named by x_label, as SVG; up to seven curves can be told apart."""
    figure, axes = _figure(4.4, 3.5)
    for i, curve in enumerate(curves):
        if curve.values is not None:
            axes.plot(
                curve.thresholds,
                curve.values,
                label=_safe(curve.name),
                color=_COLOURS[i % len(_COLOURS)],
                linestyle=_DASHES[i % len(_DASHES)],
                linewidth=1.9,
            )
    axes.set(xlabel=x_label, ylabel='PCK', ylim=(0, 1.02), title=_safe(title))
    axes.set_xlim(0, max((max(curve.thresholds) for curve in curves), default=1.0))
    _legend(axes)
    return _svg(figure)


def drawn_hand(errors: Mapping[str, float | None], *, largest: float, title: str) -> str:
    """The error of every keypoint, on a drawn hand, as SVG.

    Args:
        errors: px by the keypoint's name; None or absent where there is none.
        largest: error that gets the darkest colour, px.
        title: stands above the hand.
    """
    figure, axes = _figure(4.4, 4.4)
    colours = matplotlib.colormaps['YlOrBr']
    for parent, child in hand.BONES:
        axes.plot(*_DRAWN_HAND[[parent, child]].T, color='#cfcfcf', linewidth=6, zorder=1)
    for keypoint, name in enumerate(hand.KEYPOINT_NAMES):
        error = errors.get(name)
        share = 0.0 if error is None else min(1.0, error / largest if largest > 0 else 0.0)
        colour: Any = '#ffffff' if error is None else colours(0.05 + 0.85 * share)
        axes.scatter(
            *_DRAWN_HAND[keypoint], s=440, color=[colour], edgecolor=_INK, linewidth=0.8, zorder=2
        )
        axes.annotate(
            '\N{EN DASH}' if error is None else f'{error:.1f}' if error < 99.95 else f'{error:.0f}',
            _DRAWN_HAND[keypoint],
            ha='center',
            va='center',
            fontsize=8.5,
            color='#ffffff' if share > 0.6 else '#000000',
            zorder=3,
        )
    for finger, indices in hand.FINGERS.items():
        x, y = _DRAWN_HAND[indices[-1]]
        axes.annotate(finger, (x, y + 0.62), ha='center', fontsize=9, color=_INK)
    axes.annotate('wrist', (0.0, -0.95), ha='center', fontsize=9, color=_INK)
    axes.set(title=_safe(title), aspect='equal', xlim=(-5.1, 4.6), ylim=(-1.3, 9.8))
    axes.axis('off')
    return _svg(figure)


class Reliability(NamedTuple):
    """Keypoints in bins of equal width over 0..1: number, mean confidence, share that is right.

    The latter two are NaN in an empty bin.
    """

    number: np.ndarray
    confidence: np.ndarray
    right: np.ndarray


def reliability_of(confidence: Float[np.ndarray, 'm'], right: Bool[np.ndarray, 'm']) -> Reliability:
    """Sorts keypoints into bins by their confidence, 0..1; right says whose error is small."""
    bins = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    count = np.bincount(bins, minlength=_BINS)
    some = np.maximum(count, 1)
    mean = np.where(count, np.bincount(bins, confidence, _BINS) / some, np.nan)
    share = np.where(count, np.bincount(bins, right.astype(float), _BINS) / some, np.nan)
    return Reliability(count, mean, share)


def reliability(found: Reliability, *, within: str, title: str) -> str:
    """How often a confidence is right, as SVG; bins with few keypoints are left out.

    The label `within` says what counts as right.
    """
    figure, axes = _figure(4.4, 3.9)
    grid = figure.add_gridspec(2, height_ratios=(4, 1))
    axes.set_subplotspec(grid[0])
    below = figure.add_subplot(grid[1], sharex=axes)
    enough = found.number >= _FEWEST_IN_BIN
    axes.plot([0, 1], [0, 1], color=_FAINT, linewidth=1, linestyle='--')
    axes.annotate('a probability', (0.72, 0.66), rotation=38, fontsize=8, color='#666666')
    axes.plot(
        found.confidence[enough], found.right[enough], color=_COLOURS[0], marker='o', lw=1.9, ms=5
    )
    axes.set(xlim=(0, 1), ylim=(0, 1.02), ylabel=within, title=_safe(title))
    axes.tick_params(labelbottom=False)
    edges = np.arange(_BINS) / _BINS
    below.bar(edges, found.number, width=0.9 / _BINS, align='edge', color='#9db7c9')
    below.set(xlabel='confidence', ylabel='keypoints')
    below.spines[['top', 'right']].set_visible(False)
    return _svg(figure)


def error_against_confidence(
    confidence: Float[np.ndarray, 'm'], error: Float[np.ndarray, 'm'], *, largest: float, title: str
) -> str:
    """Median and spread of the error in tenths of the keypoints by confidence, as SVG.

    Args:
        confidence: 0..1.
        error: px of the 224 crop.
        largest: end of the scale, px; infinite for one of its own.
        title: stands above the plot.
    """
    figure, axes = _figure(4.4, 3.9)
    order = np.argsort(confidence, kind='stable')
    parts = [part for part in np.array_split(order, _BINS) if len(part) >= _FEWEST_IN_BIN]
    if parts:
        at = [float(np.mean(confidence[part])) for part in parts]
        levels = np.array([np.quantile(error[part], (0.1, 0.5, 0.9)) for part in parts])
        axes.fill_between(
            at, levels[:, 0], levels[:, 2], color='#9db7c9', alpha=0.5, lw=0, label='80% of them'
        )
        axes.plot(at, levels[:, 1], color=_COLOURS[0], marker='o', lw=1.9, ms=5, label='median')
        finite = np.max(levels[np.isfinite(levels)], initial=1.0)
        axes.set_ylim(0, 1.3 * largest if np.isfinite(largest) else 1.05 * finite)
    axes.set(xlim=(0, 1), xlabel='confidence', ylabel='error, px of the 224 crop')
    axes.set_title(_safe(title))
    _legend(axes)
    return _svg(figure)


def _figure(width: float, height: float) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), layout='constrained')
    FigureCanvasSVG(figure)
    axes = figure.subplots()
    axes.spines[['top', 'right']].set_visible(False)
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    axes.title.set_fontsize(10.5)
    return figure, axes


def _legend(axes: Any) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8.5, handlelength=3.2)


def _svg(figure: Figure) -> str:
    text = io.StringIO()
    # The same plot is the same text: no date, and no random names inside.
    settings: Any = {'svg.hashsalt': 'handpose_jax', 'svg.fonttype': 'path'}
    with matplotlib.rc_context(settings):
        figure.savefig(text, format='svg', metadata={'Date': None})
    return text.getvalue()


def _safe(name: str) -> str:
    """A name that Matplotlib draws as it is: no formulas, no letters its font lacks."""
    if len(name) > _LONGEST_NAME:
        name = '…' + name[-_LONGEST_NAME:]
    plain = ''.join(c if (c.isprintable() and ord(c) < 0x250) or c == '…' else '?' for c in name)
    # It leaves names that begin with an underscore out of legends.
    return (' ' + plain if plain.startswith('_') else plain).replace('$', r'\$')
