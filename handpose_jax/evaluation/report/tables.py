"""The report's numbers as tables of words, for the page and for Markdown alike."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

from handpose_jax import hand
from handpose_jax.evaluation.metrics import METRIC
from handpose_jax.evaluation.protocols import PROTOCOLS, Protocol
from handpose_jax.evaluation.report import bootstrap
from handpose_jax.evaluation.report.bootstrap import Interval
from handpose_jax.evaluation.report.comparison import Comparison
from handpose_jax.evaluation.report.gallery import Gallery
from handpose_jax.evaluation.report.runs import Run

NOTHING = '\N{EN DASH}'


TEST_HANDS = 846
"""Hands in CMU's manual_test. Source: Simon et al. 2017, hand_labels.zip."""


class PaperRow(NamedTuple):
    """A row of the paper's table 1, and the settings that make a run its counterpart.

    Attributes:
        name: in protocols.PROTOCOLS['cmu'].published, which holds the numbers.
        network: config.model.name.
        size: side of the input, px.
        trained_on: names of the prepared data sets.
    """

    name: str
    network: str
    size: int
    trained_on: frozenset[str]


PAPER = (
    PaperRow('CMU, 112', 'mobilenet_v2', 112, frozenset({'cmu'})),
    PaperRow('CMU, 224', 'mobilenet_v2', 224, frozenset({'cmu'})),
    PaperRow('CMU+RHD', 'mobilenet_v2', 224, frozenset({'cmu', 'rhd'})),
    PaperRow('CMU+RHD+SHP', 'mobilenet_v2', 224, frozenset({'cmu', 'rhd', 'shp'})),
    PaperRow('ResNet/CMU', 'resnet50', 224, frozenset({'cmu'})),
)
"""The rows of table 1. Source: Gouidis et al. 2019."""


@dataclasses.dataclass(frozen=True)
class Content:
    """All that the report says.

    Attributes:
        command: that makes the report.
        runs: evaluated runs; the first is what the others are compared with.
        intervals: of each run, by metric.
        comparisons: of the other runs with the first.
        galleries: of each run.
    """

    command: str
    runs: Sequence[Run]
    intervals: Sequence[dict[str, Interval | None]]
    comparisons: Sequence[Comparison]
    galleries: Sequence[Gallery]


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of plain text; not escaped for any format.

    Attributes:
        header: one word for each column.
        rows: as long as the header; the first cell names the row.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


def number(metric: str, value: float | None, *, signed: bool = False) -> str:
    """A metric's value in words, see metrics.Metric.text."""
    return METRIC[metric].text(value, signed=signed)


def _with_interval(
    metric: str, value: float | None, limits: Interval | None, *, signed: bool = False
) -> str:
    """A value and its interval."""
    text = number(metric, value, signed=signed)
    if limits is None or value is None:
        return text
    low, high = (number(metric, limit, signed=signed) for limit in limits)
    return f'{text} ({low} to {high})'


def results(content: Content) -> Table:
    """What was measured: a column for each run."""
    runs = content.runs
    rows = [
        ['protocol', *(run.protocol.name for run in runs)],
        ['hands', *(f'{run.summary["hands"]:,}' for run in runs)],
        ['keypoints counted', *(f'{run.summary["keypoints_counted"]:,}' for run in runs)],
    ]
    if any(run.summary['predictions_not_finite'] for run in runs):
        cells = [f'{run.summary["predictions_not_finite"]:,}' for run in runs]
        rows.append(['predictions that are no number', *cells])
    for name, metric in METRIC.items():
        if not any(name in run.summary for run in runs):
            continue
        cells = [
            _with_interval(name, run.summary.get(name), limits.get(name))
            for run, limits in zip(runs, content.intervals, strict=True)
        ]
        rows.append([metric.label, *cells])
    rows += [
        ['network', *(run.network for run in runs)],
        ['input, px', *(str(run.config.get('size', '?')) for run in runs)],
        ['step', *(NOTHING if run.step is None else f'{run.step:,}' for run in runs)],
        ['trained on', *(run.trained_on for run in runs)],
        ['evaluated on', *(run.evaluated_on for run in runs)],
    ]
    return Table(['', *(run.name for run in runs)], rows)


def differences(comparison: Comparison) -> Table:
    """The other run minus the first, by metric, and which is better."""
    names = {'first': comparison.first.name, 'other': comparison.other.name, None: 'not told apart'}
    rows = []
    for metric, (value, interval, better) in comparison.differences.items():
        both = (comparison.first, comparison.other)
        cells = [number(metric, run.summary[metric]) for run in both]
        cells.append(_with_interval(metric, value, interval, signed=True))
        rows.append([METRIC[metric].label, *cells, names[better] if interval else NOTHING])
    return Table(['', comparison.first.name, comparison.other.name, 'difference', 'better'], rows)


def paper(runs: Sequence[Run]) -> Table:
    """The paper's table 1 with our rows beside theirs."""
    metrics = {'auc': 'AUC', 'epe_mean_224': 'EPE mean', 'epe_median_224': 'EPE median'}
    rows = []
    for row in PAPER:
        published = PROTOCOLS['cmu'].published
        theirs = {one.metric: one.value for one in published if one.system == row.name}
        ours = counterpart(row, runs)
        cells = [row.name]
        for metric in metrics:
            cells.append(number(metric, theirs[metric]))
            cells.append(' / '.join(number(metric, run.summary[metric]) for run in ours))
        rows.append([*cells, ' / '.join(run.name for run in ours)])
    columns = [f'{metric}, {whose}' for metric in metrics.values() for whose in ('paper', 'ours')]
    return Table(['row', *columns, 'our run'], rows)


def paper_note(runs: Sequence[Run]) -> list[str]:
    """Why our cells are empty, and what would fill them."""
    filled = [run for run in runs if any(run in counterpart(r, runs) for r in PAPER)]
    notes = [
        'The columns "paper" are the published numbers of Gouidis et al. 2019, table 1: AUC of '
        "PCKh over 0 to 1 and EPE in pixels of the 224 crop, on CMU's manual_test (protocol cmu, "
        f'{TEST_HANDS} hands). The columns "ours" are measured by this project.'
    ]
    if not filled:
        notes.append(
            'Our cells are empty: no run of this report was trained and evaluated as a row asks. '
            'The data must be asked for from its authors; whoever has it fills a row with '
            'configs/cmu.py, cmu_112.py, cmu_rhd.py, cmu_rhd_shp.py or cmu_resnet50.py.'
        )
    for run in runs:
        if reason := why_not_in_paper(run):
            notes.append(f'{run.name} is not in the table: {reason}.')
        elif run not in filled:
            notes.append(f'{run.name} is not in the table: no row was trained with its settings.')
    return notes


def why_not_in_paper(run: Run) -> str:
    """Why a run may not stand in the paper's table, as a clause; '' if it may."""
    if run.protocol.name != 'cmu':
        return f'its protocol is {run.protocol.name}, not cmu'
    data = run.eval_data
    ids = run.record.image_id
    is_cmu = data['name'] == 'prepared' and all(str(name).startswith('cmu/test/') for name in ids)
    if not (is_cmu or data.get('dataset') == 'cmu') or run.split != 'test':
        return f"it was evaluated on {run.evaluated_on}, not on CMU's manual_test"
    if len(ids) != TEST_HANDS:
        return f'it was evaluated on {len(ids):,} hands, and manual_test has {TEST_HANDS}'
    if run.notes:
        return '; '.join(run.notes)
    return ''


def counterpart(row: PaperRow, runs: Sequence[Run]) -> list[Run]:
    """The runs that may stand beside a row: measured as it was, and trained as it was."""
    return [
        run
        for run in runs
        if not why_not_in_paper(run)
        and run.network == row.network
        and run.config.get('size') == row.size
        and run.training_sets == row.trained_on
    ]


def occlusion(run: Run) -> Table:
    """Keypoints that something hides beside those in view."""
    rows = []
    for label, summary in occlusion_summaries(run).items():
        metrics = ('epe_mean_224', 'epe_median_224', 'auc', 'pck_at_0.2')
        cells = [number(metric, summary[metric]) for metric in metrics]
        rows.append([label, f'{summary["keypoints_counted"]:,}', *cells])
    return Table(['', 'keypoints', 'EPE mean', 'EPE median', 'AUC', 'PCK@0.2'], rows)


def occlusion_summaries(run: Run) -> dict[str, dict[str, Any]]:
    """The metrics of keypoints in view and hidden ones."""
    hidden = run.errors.hidden
    return {'in view': run.summary_of(~hidden), 'hidden': run.summary_of(hidden)}


def knows_hidden(run: Run) -> bool:
    """Whether the run's data tells of hidden keypoints at all."""
    return bool((run.record.errors.hidden & run.errors.select(run.protocol.keypoints).valid).any())


def published(protocol: Protocol) -> Table:
    """Numbers of others under a protocol."""
    rows = [
        [row.system, METRIC[row.metric].label, f'{row.value:g}', row.source, row.remark]
        for row in protocol.published
    ]
    return Table(['published by others', 'metric', 'value', 'source', 'remark'], rows)


def per_keypoint(runs: Sequence[Run]) -> Table:
    """Mean and median EPE and PCK of every keypoint: three columns for each run."""
    columns = ('epe_mean_224', 'epe_median_224', 'pck_at_0.2')
    short = ('EPE mean', 'EPE median', 'PCK@0.2')
    rows = []
    for name in hand.KEYPOINT_NAMES:
        found = [run.summary['per_keypoint'].get(name, {}) for run in runs]
        cells = [number(column, one.get(column)) for one in found for column in columns]
        rows.append([name, *cells])
    several = len(runs) > 1
    header = [f'{run.name}: {column}' if several else column for run in runs for column in short]
    return Table(['keypoint', *header], rows)


def how_sure(runs: Sequence[Run]) -> str:
    """What the ranges in brackets are."""
    few = [run.name for run in runs if run.summary['hands'] < bootstrap.FEWEST_HANDS]
    text = (
        f'Ranges are {bootstrap.LEVEL:.0%} bootstrap intervals: the hands were drawn '
        f'{bootstrap.RESAMPLES:,} times with replacement, whole hands and not single keypoints. '
        'They tell how far other hands of the same kind would move the number; not what another '
        'training run would, and hands of one person or one film are more alike than they assume.'
    )
    if few:
        text += (
            f' None for {", ".join(few)}: fewer than {bootstrap.FEWEST_HANDS} hands do not show '
            'how much hands differ.'
        )
    return text
