"""Evaluated runs: what a workdir's files say, and how to say it."""

import dataclasses
import json
import os
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np
from jaxtyping import Bool
from ml_collections import ConfigDict

from handpose_jax.config import evaluation_data
from handpose_jax.evaluation import calibration, metrics, protocols
from handpose_jax.process import storage
from handpose_jax.training import workdirs


@dataclasses.dataclass(frozen=True)
class Run:
    """One workdir, evaluated.

    Attributes:
        name: the workdir's last folder, or more of it where runs would share a name.
        workdir: as it was given.
        config: of the run.
        record: from metrics.read_evaluation: errors, predictions and names of the hands.
        step: of the checkpoint that was evaluated.
        split: the part of the data that was evaluated.
        protocol: what the errors were measured under.
        summary: metrics.KeypointErrors.summary under that protocol.
        calibration: of the confidence, if the workdir has one.
    """

    name: str
    workdir: str
    config: dict[str, Any]
    record: metrics.EvaluationRecord
    step: int | None
    split: str
    protocol: protocols.Protocol
    summary: dict[str, Any]
    calibration: calibration.Calibration | None

    @property
    def errors(self) -> metrics.KeypointErrors:
        """The errors of all hands, every annotated keypoint counted."""
        return self.record.errors

    @property
    def valid(self) -> Bool[np.ndarray, 'n 21']:
        """The keypoints that count under the protocol."""
        return self.errors.under(self.protocol).valid

    @property
    def notes(self) -> list[str]:
        """What the evaluation says deserves a note, such as crops that are not the protocol's."""
        return list(self.record.meta.get('notes', ()))

    def summary_of(self, part: Bool[np.ndarray, '#n 21']) -> dict[str, Any]:
        """The summary of some keypoints alone, hidden ones included if they are among them.

        Args:
            part: which keypoints of which hands; one row for all hands will do.
        """
        # The size of a hand is that of all its keypoints, whichever are looked at.
        size = self.errors.size_of(self.protocol.relative_to)
        sized = dataclasses.replace(self.errors, valid=self.errors.valid & part, norm_size=size)
        return sized.summary(dataclasses.replace(self.protocol, relative_to='box', hidden=True))

    @property
    def command(self) -> str:
        """What makes the numbers."""
        return f'handpose evaluate --workdir {shlex.quote(self.workdir)}'

    @property
    def basis(self) -> str:
        """What stands below every number: the protocol and how many hands."""
        return f'protocol {self.protocol.name}, {self.summary["hands"]:,} hands'

    @property
    def network(self) -> str:
        """Name of the network, and its width if that is not 1."""
        model = self.config.get('model', {})
        width = model.get('width', 1.0)
        return f'{model.get("name", "?")}{"" if width == 1.0 else f" x {width:g}"}'

    @property
    def eval_data(self) -> dict[str, Any]:
        """The settings of the data that was evaluated on, as sources.load_source takes them."""
        return evaluation_data(ConfigDict(self.config))

    @property
    def trained_on(self) -> str:
        """The training data in a few words."""
        return _describe_data(self.config['data'], self.config.get('train_split', ''))

    @property
    def evaluated_on(self) -> str:
        """The evaluation data in a few words."""
        return _describe_data(self.eval_data, self.split)

    @property
    def training_sets(self) -> frozenset[str]:
        """Names of the prepared data sets that were trained on; kinds of source for others."""
        data = self.config['data']
        parts = data['parts'].values() if data['name'] == 'mixture' else [data]
        return frozenset(part.get('dataset') or part['name'] for part in parts)


def read_runs(workdirs: Sequence[str | os.PathLike[str]]) -> list[Run]:
    """Reads evaluated workdirs, in the given order.

    Raises:
        ValueError: without workdirs, for one given twice, and for one that has no evaluation.
    """
    paths = [os.fspath(workdir) for workdir in workdirs]
    if not paths:
        raise ValueError('expected the workdir of at least one evaluated run, got none')
    return [_read_run(path, name) for path, name in zip(paths, _names(paths), strict=True)]


def report_command(runs: Sequence[Run], out: str) -> str:
    """The command that makes the report of these runs."""
    command = ['python', '-m', 'handpose_jax.evaluation.report']
    return shlex.join([*command, *(run.workdir for run in runs), '--out', out])


def _read_run(workdir: str, name: str) -> Run:
    path = storage.folder(workdir) / metrics.EVALUATION_FILE
    config = workdirs.load_config(workdir)
    if not path.exists():
        raise ValueError(
            f'workdir {workdir}: no {metrics.EVALUATION_FILE}, so it was not evaluated; make it '
            f'with: handpose evaluate --workdir {shlex.quote(workdir)}'
        )
    record = metrics.read_evaluation(path).of_hands()
    protocol = protocols.get_protocol(record.meta['protocol'])
    return Run(
        name=name,
        workdir=workdir,
        config=json.loads(config.to_json_best_effort()),
        record=record,
        step=record.meta.get('step'),
        split=record.meta['split'],
        protocol=protocol,
        summary=record.errors.summary(protocol),
        calibration=calibration.load(workdir),
    )


def _names(paths: Sequence[str]) -> list[str]:
    parts = [PurePath(os.path.normpath(path)).parts for path in paths]
    repeated = [path for path, count in Counter(parts).items() if count > 1]
    if repeated:
        raise ValueError(f'workdir {PurePath(*repeated[0])}: given twice; name each run once')
    length = 1
    while len({path[-length:] for path in parts}) < len(parts):
        length += 1
    return [os.path.join(*path[-length:]) for path in parts]


def _describe_data(data: Mapping[str, Any], split: str) -> str:
    split = data.get('split') or split
    if data['name'] == 'mixture':
        return ' + '.join(_describe_data(part, split) for part in data['parts'].values())
    # Where the data lies may name a person's folders, so only the last of them is told.
    name = data.get('dataset') or PurePath(data.get('root') or '').name
    kind = data['name'] if not name or name == data['name'] else f'{data["name"]} {name}'
    return f'{kind}, {split}' if split else kind
