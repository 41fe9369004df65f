"""Evaluation: predictions over a whole split, metrics under a protocol, and pictures of them."""

import json
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float
from ml_collections import ConfigDict

from handpose_jax import distributed, geometry, models, protocols, runtimes, storage, visualize
from handpose_jax.data import pipeline, sources
from handpose_jax.data.transforms import crop_example
from handpose_jax.metrics import KeypointErrors

METRICS_FILE = 'metrics.json'
PREDICTIONS_FILE = 'predictions.json'
SHEET_FILE = 'predictions.png'

_SHEET_COLUMNS = 8
_CAPTION_LENGTH = 20


class Result(NamedTuple):
    """What an evaluation found; hands in the order of their source."""

    errors: KeypointErrors
    summary: dict[str, Any]
    keypoints_image: Float[np.ndarray, 'n 21 2']  # predicted, pixels of the photograph


class Evaluation:
    """One split under one protocol, ready to be run on any variables."""

    def __init__(self, config: ConfigDict, model: models.Network, mesh: Mesh) -> None:
        """Opens the split; several processes share it.

        Args:
            config: as configs/*.py make it.
            model: from handpose_jax.models.build(**config.model.to_dict()).
            mesh: from handpose_jax.distributed.data_mesh.

        Raises:
            ValueError: for bad data, an unknown protocol, or a batch that the devices cannot share.
        """
        self._mesh = mesh
        self._protocol = protocols.get_protocol(config.protocol)
        self._split = config.eval_split
        self._size = config.size
        # Networks trained on a mixture are measured on one data set.
        data = config.eval_data if 'eval_data' in config else config.data
        self._source = sources.load_source(split=config.eval_split, **data.to_dict())
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
        self._predict = runtimes.make_predict_step(model, config.decode.to_dict())

    def run(self, variables: Any) -> Result:
        """Predicts every record once. All processes must call it, and get the same result.

        Args:
            variables: {'params', 'batch_stats'} of the model, whole on each device.
        """
        parts, keypoints, order = [KeypointErrors.empty()], [], []
        for part in self._batches:
            spread = distributed.to_devices(part, self._mesh)
            predicted = self._predict(variables, spread.pop('image'))
            prediction, batch = distributed.fetch((predicted, spread), self._mesh)
            parts.append(
                KeypointErrors.from_batch(
                    prediction.keypoints, prediction.confidence, batch, self._size
                )
            )
            valid = batch['valid']
            keypoints.append(
                geometry.apply_affine(batch['image_from_crop'], prediction.keypoints)[valid]
            )
            order.append(batch['index'][valid])
        errors = KeypointErrors.merge(*parts)
        summary = {'split': self._split, **errors.summary(self._protocol)}
        by_index = np.argsort(np.concatenate(order), kind='stable')
        return Result(errors, summary, np.concatenate(keypoints)[by_index])

    def write(self, workdir: str, step: int, result: Result) -> None:
        """Writes metrics.json, predictions.json and predictions.png into the workdir.

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
        except OSError as error:
            raise ValueError(
                f'workdir {workdir}: cannot write the evaluation ({error.strerror})'
            ) from error
        visualize.save_png(folder / SHEET_FILE, self.sheet(result))

    def sheet(self, result: Result) -> np.ndarray:
        """The best, median and worst predictions, a row of each, as one picture u8[h w 3]."""
        error = result.errors.epe_per_hand()
        ranked = np.argsort(np.where(np.isnan(error), np.inf, error), kind='stable')
        row = min(_SHEET_COLUMNS, len(ranked))
        middle = max(0, (len(ranked) - row) // 2)
        chosen = [*ranked[:row], *ranked[middle : middle + row], *ranked[len(ranked) - row :]]
        names = ['best'] * row + ['median'] * row + ['worst'] * row
        images, predicted, truth, visible, captions = [], [], [], [], []
        for name, position in zip(names, chosen, strict=True):
            sample = self._source[int(result.errors.index[position])]
            # As photographed: the picture is for people, so a left hand stays a left hand.
            example = crop_example({**sample, 'is_left': False}, size=self._size)
            crop_from_image = geometry.invert(example['image_from_crop'].astype(np.float64))
            images.append(example['image'])
            predicted.append(
                geometry.apply_affine(crop_from_image, result.keypoints_image[position])
            )
            truth.append(example['keypoints'].astype(np.float64))
            visible.append(example['visible'])
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


def _short(image_id: str) -> str:
    # The end tells records apart; the beginning is often the same folder.
    return image_id if len(image_id) <= _CAPTION_LENGTH else '…' + image_id[-_CAPTION_LENGTH:]


def evaluate(config: ConfigDict, workdir: str) -> dict[str, Any]:
    """Evaluates the newest checkpoint of a workdir and writes the files of Evaluation.write.

    Returns:
        The summary, see metrics.KeypointErrors.summary.
    """
    model = models.build(**config.model.to_dict())
    mesh = distributed.data_mesh()
    evaluation = Evaluation(config, model, mesh)
    step, variables = runtimes.load_variables(workdir, config, model)
    result = evaluation.run(distributed.replicate(variables, mesh))
    if distributed.is_main_process():
        evaluation.write(workdir, step, result)
    return result.summary


def scalars(summary: dict[str, Any]) -> dict[str, Any]:
    """The numbers of a summary that are worth a curve."""
    names = ('epe_mean_224', 'epe_median_224', 'epe_mean_image', 'auc', 'pck_at_0.2')
    return {name: summary[name] for name in names}


def describe(summary: dict[str, Any]) -> str:
    """A summary in one line for people."""

    def number(name: str, form: str) -> str:
        value = summary[name]
        return 'none' if value is None else format(value, form)

    return (
        f'EPE median {number("epe_median_224", ".2f")} mean {number("epe_mean_224", ".2f")} px '
        f'(224 frame), AUC {number("auc", ".3f")}, PCK@0.2 {number("pck_at_0.2", ".3f")}, '
        f'{summary["hands"]} hands, protocol {summary["protocol"]}'
    )
