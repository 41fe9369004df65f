"""Evaluation: predictions over a whole split, metrics under a protocol, and pictures of them."""

import hashlib
import itertools
import json
import re
import time
from pathlib import PurePath
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float
from ml_collections import ConfigDict

from handpose_jax import geometry, inference, models, visualize
from handpose_jax.config import CROP_SCALE, check, evaluation_data
from handpose_jax.data import pipeline, sources
from handpose_jax.data.transforms import crop_image
from handpose_jax.evaluation import protocols
from handpose_jax.evaluation.metrics import (
    EVALUATION_FILE,
    METRIC,
    METRICS,
    EvaluationRecord,
    KeypointErrors,
    write_evaluation,
)
from handpose_jax.evaluation.protocols import Protocol
from handpose_jax.process import distributed, storage
from handpose_jax.training import checkpoints
from handpose_jax.training.workdirs import config_differences
from handpose_jax.types import Source

METRICS_FILE = 'metrics.json'
PREDICTIONS_FILE = 'predictions.json'
SHEET_FILE = 'predictions.png'
EVALUATIONS = 'evaluations'

_CROP_TOLERANCE = 0.01
_TIMED_BATCHES = 5

_SHEET_COLUMNS = 8
_CAPTION_LENGTH = 20


class Result(NamedTuple):
    """What an evaluation found; hands in the order of their source."""

    errors: KeypointErrors
    summary: dict[str, Any]

    @property
    def keypoints_image(self) -> Float[np.ndarray, 'n 21 2']:
        """The predicted keypoints, pixels of the photograph."""
        return self.errors.predicted_image


class Evaluation:
    """One split under one protocol, ready to be run on any variables."""

    def __init__(self, config: ConfigDict, model: models.Network, mesh: Mesh) -> None:
        """Opens the split; several processes share it.

        Args:
            config: as configs/*.py make it.
            model: from handpose_jax.models.build(**config.model.to_dict()).
            mesh: from handpose_jax.process.distributed.data_mesh.

        Raises:
            ValueError: for bad data, an unknown protocol, one that the data's norm_size does not
                fit, or a batch that the devices cannot share.
        """
        self._mesh = mesh
        self._protocol = protocols.get_protocol(config.protocol)
        self._split = config.eval_split
        self._size = config.size
        self._batch_size = config.eval_batch_size
        data = evaluation_data(config)
        self._source = sources.load_source(split=config.eval_split, **data)
        sources.check_images(self._source)
        self._notes = _check_normaliser(self._protocol, self._source, data)
        self._batches = pipeline.eval_batches(
            self._source,
            size=config.size,
            batch_size=distributed.process_batch_size(
                config.eval_batch_size, mesh, field='eval_batch_size'
            ),
            num_threads=config.pipeline.num_threads,
            shard_index=jax.process_index(),
            shard_count=jax.process_count(),
        )
        self._predict = inference.make_predict_step(model, config.decode.to_dict())

    def run(self, variables: Any) -> Result:
        """Predicts every record once. All processes must call it, and get the same result.

        Args:
            variables: {'params', 'batch_stats'} of the model, whole on each device.
        """
        parts, crops = [], []
        for part in self._batches:
            prediction, batch = self._predicted(variables, part)
            errors = KeypointErrors.from_batch(
                prediction.keypoints, prediction.confidence, batch, self._size
            )
            parts.append(errors)
            crops.append(_crop_sizes(errors, batch, self._size, self._protocol.relative_to))
        errors = KeypointErrors.merge(*parts)
        notes = self._notes or _check_crops(self._protocol, np.concatenate(crops))
        summary = {'split': self._split, **errors.summary(self._protocol), 'notes': notes}
        return Result(errors, summary)

    def _predicted(self, variables: Any, part: Any) -> Any:
        spread = distributed.to_devices(part, self._mesh)
        predicted = self._predict(variables, spread.pop('image'))
        return distributed.fetch((predicted, spread), self._mesh)

    def seconds(self, variables: Any) -> float:
        """About what `run` takes, once it is compiled; all processes must call it.

        Args:
            variables: see run.
        """
        first, *others = itertools.islice(self._batches, _TIMED_BATCHES)
        self._predicted(variables, first)
        begin = time.perf_counter()
        for part in (first, *others):
            self._predicted(variables, part)
        each = (time.perf_counter() - begin) / (1 + len(others))
        return each * -(-len(self._source) // self._batch_size)

    def write(self, workdir: str, step: int, result: Result) -> None:
        """Writes metrics.json, predictions.json, evaluation.npz and predictions.png.

        Args:
            workdir: receives the files.
            step: of the checkpoint that was evaluated.
            result: from run.

        Raises:
            ValueError: if the workdir cannot be written.
        """
        folder = storage.folder(workdir)
        try:
            text = json.dumps({'step': step, **result.summary}, indent=2)
            (folder / METRICS_FILE).write_text(text + '\n')
            rows = [
                {
                    'id': self._source.image_id(int(index)),
                    'keypoints': np.round(points, 2).tolist(),
                    'confidence': np.round(sure, 4).tolist(),
                }
                for index, points, sure in zip(
                    result.errors.index,
                    result.keypoints_image,
                    result.errors.confidence,
                    strict=True,
                )
            ]
            (folder / PREDICTIONS_FILE).write_text(json.dumps(rows) + '\n')
            write_evaluation(folder / EVALUATION_FILE, self.record(step, result))
        except OSError as error:
            raise ValueError(
                f'workdir {workdir}: cannot write the evaluation ({error.strerror})'
            ) from error
        visualize.save_png(folder / SHEET_FILE, self.sheet(result))

    def record(self, step: int, result: Result) -> EvaluationRecord:
        """What the evaluation leaves for reports and calibration, see metrics.read_evaluation.

        Args:
            step: of the checkpoint that was evaluated.
            result: from run.
        """
        meta = {
            'protocol': self._protocol.name,
            'split': self._split,
            'step': step,
            'size': self._size,
            'notes': result.summary['notes'],
        }
        names = [self._source.image_id(int(index)) for index in result.errors.index]
        return EvaluationRecord(result.errors, np.asarray(names, np.str_), meta)

    def sheet(self, result: Result) -> np.ndarray:
        """The best, median and worst predictions, a row of each, as one picture u8[h w 3]."""
        error = result.errors.epe_per_hand()
        ranked = np.argsort(np.where(np.isnan(error), np.inf, error), kind='stable')
        # A picture without a hand has no error; it is shown where there is nothing else.
        ranked = ranked[result.errors.has_hand[ranked]] if result.errors.num_hands else ranked
        row = min(_SHEET_COLUMNS, len(ranked))
        middle = max(0, (len(ranked) - row) // 2)
        chosen = [*ranked[:row], *ranked[middle : middle + row], *ranked[len(ranked) - row :]]
        names = ['best'] * row + ['median'] * row + ['worst'] * row
        images, predicted, truth, visible, captions = [], [], [], [], []
        for name, position in zip(names, chosen, strict=True):
            sample = self._source[int(result.errors.index[position])]
            # As photographed: the picture is for people, so a left hand stays a left hand.
            crop, image_from_crop = crop_image(sample['image'], sample['box'], self._size)
            crop_from_image = geometry.invert(image_from_crop)
            images.append(crop)
            predicted.append(
                geometry.apply_affine(crop_from_image, result.keypoints_image[position])
            )
            annotated = sample['keypoints'].astype(np.float64)
            truth.append(geometry.apply_affine(crop_from_image, annotated))
            visible.append(sample['visible'])
            captions.append(f'{name}: {_short(sample["image_id"])}')
        return visualize.prediction_sheet(
            images,
            predicted,
            truth,
            error[chosen],
            captions,
            confidence=result.errors.confidence[chosen],
            visible=visible,
            columns=row,
            title=f'{self._split}: {describe(result.summary)}',
        )


def _check_normaliser(protocol: Protocol, source: Source, data: dict[str, Any]) -> list[str]:
    """Finds out from the first record with a hand what the data's norm_size is.

    Returns:
        What deserves a note in reports.

    Raises:
        ValueError: if the protocol divides errors by something else.
    """
    if not len(source) or protocol.relative_to == 'keypoint_box' or data['name'] == 'mixture':
        return []
    samples = (source[index] for index in range(len(source)))
    sample = next((one for one in samples if not one.get('no_hand')), None)
    if sample is None:
        return []
    crop = geometry.longest_side(np.asarray(sample['box'], np.float64))
    scale = data.get('crop_scale', CROP_SCALE)
    if data.get('crop') == 'image':
        kind, words = 'image', "the image's longest side"
    elif np.isclose(crop, scale * sample['norm_size'], rtol=1e-3):
        kind, words = 'box', "the longest side of the record's box"
    else:
        kind, words = 'head_size', 'neither the side of the box nor of the image, as a head size is'
    if kind == protocol.relative_to:
        return []
    found = (
        f'norm_size is {words} (record {sample["image_id"]}: norm_size '
        f'{sample["norm_size"]:.4g} px, crop {crop:.4g} px)'
    )
    if protocol.normaliser == 'pixel':
        return [f'PCK@0.2 is not relative to the {protocol.relative_to}: {found}']
    others = sorted(
        name
        for name, other in protocols.PROTOCOLS.items()
        if other.normaliser == 'pixel' or other.relative_to == kind
    )
    raise ValueError(
        f'protocol {protocol.name!r}: expected data whose norm_size is the '
        f'{protocol.relative_to.replace("_", " ")} ({protocol.data}), got data whose {found}; '
        f'choose other data, or a protocol that fits these: {", ".join(others)}'
    )


def _crop_sizes(
    errors: KeypointErrors, batch: Any, size: int, relative_to: str
) -> Float[np.ndarray, 'n']:
    # In units of what the protocol measures hands by.
    linear = np.asarray(batch['image_from_crop'], np.float64)[np.asarray(batch['valid'])][:, :, :2]
    counted = errors.valid.any(axis=1)
    side = np.sqrt(np.abs(np.linalg.det(linear[counted]))) * size
    relative = side / errors.size_of(relative_to)[counted]
    return relative[np.isfinite(relative)]


def _check_crops(protocol: Protocol, crops: Float[np.ndarray, 'n']) -> list[str]:
    if np.allclose(crops, protocol.crop_scale, rtol=_CROP_TOLERANCE):
        return []
    low, high = crops.min(), crops.max()
    found = f'{low:.3g}' if high - low < _CROP_TOLERANCE * high else f'{low:.3g} to {high:.3g}'
    return [
        f'not the crops of the protocol: {found} x the {protocol.relative_to.replace("_", " ")}, '
        f'not {protocol.crop_scale:.3g} x'
    ]


def _short(image_id: str) -> str:
    # The end tells records apart; the beginning is often the same folder.
    return image_id if len(image_id) <= _CAPTION_LENGTH else '…' + image_id[-_CAPTION_LENGTH:]


def evaluate(workdir: str, config: ConfigDict | None = None) -> tuple[dict[str, Any], Any]:
    """Evaluates the newest checkpoint of a workdir and writes the files of Evaluation.write.

    Args:
        workdir: of a training run. It alone says the network, its input and its decoding.
        config: says other data, another split or protocol to measure on. What is measured so goes
            into a folder of its own, W/evaluations/NAME, beside what the run says of itself.

    Returns:
        The summary, see metrics.KeypointErrors.summary, and the folder that was written.

    Raises:
        ValueError: if the workdir holds no run, or the data and the protocol do not fit.
    """
    if config is not None:
        check(config)
    mesh = distributed.data_mesh()
    run = inference.load_run(workdir)
    measured, notes = (run.config, []) if config is None else _measured_on(run.config, config)
    evaluation = Evaluation(measured, run.model, mesh)
    result = evaluation.run(distributed.replicate(run.variables, mesh))
    result.summary['notes'] = [*result.summary['notes'], *notes]
    folder = storage.folder(workdir)
    if _settings(measured) != _settings(run.config):
        folder = folder / EVALUATIONS / _folder_name(measured)
    if distributed.is_main_process():
        if folder != storage.folder(workdir):
            # A copy, with which a report can be made of the folder as of a workdir.
            checkpoints.save_config(str(folder), measured)
        evaluation.write(str(folder), run.step, result)
    return result.summary, folder


def _measured_on(own: ConfigDict, other: ConfigDict) -> tuple[ConfigDict, list[str]]:
    """A config with the data, split and protocol of another, and notes of what stays."""
    config = own.copy_and_resolve_references()
    with config.unlocked(), config.ignore_type():
        config.eval_data = other.eval_data if other.eval_data.name else other.data
        for key in ('eval_split', 'protocol', 'eval_batch_size'):
            config[key] = other[key]
        config.pipeline.num_threads = other.pipeline.num_threads
    notes = [
        f"the workdir's {line.split(':')[0]} was taken, not the config's "
        f'({line.partition(": ")[2].replace("->", "not")})'
        for line in config_differences(own, other)
        if line.split(':')[0].split('.')[0] in ('size', 'model', 'decode')
    ]
    return config, notes


def _settings(config: ConfigDict) -> str:
    values = [evaluation_data(config), config.eval_split, config.protocol]
    return json.dumps(values, sort_keys=True, default=str)


def _folder_name(config: ConfigDict) -> str:
    data = evaluation_data(config)
    name = data.get('dataset') or PurePath(data.get('root') or '').name or data['name']
    words = re.sub(r'[^\w.-]+', '_', f'{name}_{config.eval_split}_{config.protocol}')
    return f'{words}_{hashlib.sha256(_settings(config).encode()).hexdigest()[:8]}'


def scalars(summary: dict[str, Any]) -> dict[str, Any]:
    """The numbers of a summary that are worth a curve."""
    return {
        metric.name: summary[metric.name]
        for metric in METRICS
        if metric.curve and metric.name in summary
    }


def describe(summary: dict[str, Any]) -> str:
    """A summary in one line for people."""

    def number(name: str) -> str:
        return METRIC[name].text(summary[name])

    parts = [f'EPE median {number("epe_median_224")} mean {number("epe_mean_224")} px (224 frame)']
    if summary['normaliser'] == 'pixel':
        parts.append(f'mean {number("epe_mean_image")} px (image)')
    if 'epe_mean_root_aligned' in summary:
        parts.append(f'root-aligned {number("epe_mean_root_aligned")} px')
    if 'epe_percent_of_side' in summary:
        parts.append(f'{number("epe_percent_of_side")}% of the side')
    parts.append(f'AUC {number("auc")}, PCK@0.2 {number("pck_at_0.2")}')
    parts.append(f'{summary["hands"]} hands, protocol {summary["protocol"]}')
    notes = summary.get('notes')
    return ', '.join(parts) + (f' (NOTE: {"; ".join(notes)})' if notes else '')
