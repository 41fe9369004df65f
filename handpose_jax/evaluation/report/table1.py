"""The paper's table 1, and which of our runs may stand beside its rows.

Source: Gouidis et al. 2019, table 1.
"""

import dataclasses
from collections.abc import Sequence

from handpose_jax.evaluation import protocols
from handpose_jax.evaluation.report.runs import Run

TEST_HANDS = 846
"""Hands in CMU's manual_test. Source: Simon et al. 2017, hand_labels.zip."""


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the paper, and the settings that make a run its counterpart.

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

    @property
    def numbers(self) -> dict[str, float]:
        """The paper's, by the metric they are to be compared with."""
        published = protocols.PROTOCOLS['cmu'].published
        return {row.metric: row.value for row in published if row.system == self.name}


ROWS = (
    Row('CMU, 112', 'mobilenet_v2', 112, frozenset({'cmu'})),
    Row('CMU, 224', 'mobilenet_v2', 224, frozenset({'cmu'})),
    Row('CMU+RHD', 'mobilenet_v2', 224, frozenset({'cmu', 'rhd'})),
    Row('CMU+RHD+SHP', 'mobilenet_v2', 224, frozenset({'cmu', 'rhd', 'shp'})),
    Row('ResNet/CMU', 'resnet50', 224, frozenset({'cmu'})),
)


def why_not(run: Run) -> str:
    """Why a run may not stand in the table, as a clause; '' if it may."""
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


def counterpart(row: Row, runs: Sequence[Run]) -> list[Run]:
    """The runs that may stand beside a row: measured as it was, and trained as it was."""
    return [
        run
        for run in runs
        if not why_not(run)
        and run.network == row.network
        and run.config.get('size') == row.size
        and run.training_sets == row.trained_on
    ]
