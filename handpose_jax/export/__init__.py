"""Trained networks as files for other runtimes: TFLite, ONNX, StableHLO, SavedModel.

    handpose export --workdir W

Everything is behind a gate: an artefact that does not find the same keypoints as JAX, in its own
runtime and in a fresh process, is not delivered, and fails the command after the others are.
"""

import dataclasses
import importlib.metadata
import importlib.util
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from handpose_jax import hand, inference, models, sidecars
from handpose_jax.config import crop_scale, evaluation_data
from handpose_jax.data import pipeline, sources, transforms
from handpose_jax.export import folder, fresh_run, gate, golden, graph, onnx, stablehlo, tflite
from handpose_jax.process import extras, storage
from handpose_jax.types import Source

FOLDER = folder.NAME
"""In the workdir."""

SUMMARY_FILE = folder.SUMMARY_FILE

NUM_IMAGES = 128
"""Crops that the gate compares on, and as many that int8 is calibrated with."""


class Refused(ValueError):
    """The gate refuses artefacts; those that passed are delivered.

    Attributes:
        summary: what export would have returned.
    """

    def __init__(self, message: str, summary: dict[str, Any]) -> None:
        """See export, which raises it."""
        super().__init__(message)
        self.summary = summary


@dataclasses.dataclass(frozen=True)
class Given:
    """What artefacts are written from.

    Attributes:
        lax: the graph, its convolutions as converters must see them.
        auto: the graph, its convolutions in the formulation that suits the platform, for XLA.
        for_jax: as auto, decoded by JAX's own operations.
        images: crops to calibrate with, u8[n size size 3].
        metadata: what every artefact tells about itself.
    """

    lax: graph.Graph
    auto: graph.Graph
    for_jax: graph.Graph
    images: np.ndarray
    metadata: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Artefact:
    """One thing to export.

    Attributes:
        file: name in the folder.
        backends: runtimes that the gate runs it in.
        precision: a key of gate.LIMITS.
        modules: what must be installed to make and run it.
        write: receives what to write, and the path.
    """

    file: str
    backends: tuple[str, ...]
    precision: str
    modules: tuple[str, ...]
    write: Callable[[Given, Path], None]


def _tflite(precision: str) -> Artefact:
    def write(given: Given, path: Path) -> None:
        path.write_bytes(tflite.convert(given.lax, precision, given.images))

    modules = ('tensorflow', 'ai_edge_litert')
    return Artefact(f'handpose_{precision}.tflite', ('tflite',), precision, modules, write)


ARTEFACTS: dict[str, Artefact] = {
    **{f'tflite_{precision}': _tflite(precision) for precision in tflite.PRECISIONS},
    'onnx': Artefact(
        'handpose.onnx',
        ('onnx', 'openvino'),
        'f32',
        ('onnx', 'onnxruntime'),
        lambda given, path: onnx.save(
            given.lax, path, {key: json.dumps(value) for key, value in given.metadata.items()}
        ),
    ),
    'stablehlo': Artefact(
        'handpose.stablehlo',
        ('stablehlo',),
        'f32',
        ('flatbuffers',),
        lambda given, path: stablehlo.save(given.for_jax, path),
    ),
    'saved_model': Artefact(
        'saved_model',
        ('saved_model',),
        'f32',
        ('tensorflow',),
        lambda given, path: tflite.save_saved_model(given.auto, path),
    ),
}


def export(
    workdir: str,
    *,
    only: Sequence[str] = (),
    num_images: int = NUM_IMAGES,
    config: ConfigDict | None = None,
) -> dict[str, Any]:
    """Writes W/export from a workdir's newest checkpoint: all that passes the gate.

    An earlier W/export stays until the new one is complete, and where nothing passes. What it holds
    of the same checkpoint and was not asked for is in the new one too.

    Args:
        workdir: of a training run; its data must be there.
        only: keys of ARTEFACTS; none are all.
        num_images: crops to compare on, and to calibrate int8 with.
        config: whose data (eval_data, eval_split, train_split, protocol) is used instead of the
            workdir's own.

    Returns:
        What W/export/export.json holds: the metadata; the figures of the gate ('gate' of what is
        delivered, 'refused' of what is not); 'delivered', the artefacts that were made, 'kept',
        those of the export before, and 'not_kept', a sentence for each of those that went.

    Raises:
        Refused: if artefacts do not keep the gate's limits, do not run or cannot be written, with
            the table of its figures, after the others are delivered.
        ValueError: if nothing can be exported; W/export is as it was then.
    """
    chosen = _choose(only)
    if storage.is_bucket(workdir):
        raise ValueError(f'workdir {workdir}: export writes to a disk; copy the workdir to one')
    if num_images < 1:
        raise ValueError(f'num_images: expected 1 or more, got {num_images}')
    trained = graph.load(workdir)
    config = trained.config if config is None else config
    if config.size != trained.config.size:
        raise ValueError(
            f'config.size: expected {trained.config.size} as in {workdir}, got {config.size}'
        )
    place = storage.folder(workdir)
    target = place / FOLDER
    try:
        with folder.unfinished(place) as new:
            folder.check(target, _names())
            summary = _fill(new, target, trained, config, chosen, num_images)
            if summary['delivered']:
                folder.swap_in(new, place)
    except OSError as error:
        raise ValueError(
            f'{target}: cannot be written ({error}); what was there before is as it was'
        ) from error
    if summary['refused']:
        raise Refused(
            f'workdir {workdir}: the gate refuses {_listed(summary["refused"])}, not delivered; '
            f'{_left(target, summary)}\n{_table(summary)}',
            summary,
        )
    return summary


def _fill(
    new: Path,
    target: Path,
    trained: graph.Trained,
    config: ConfigDict,
    chosen: dict[str, Artefact],
    num_images: int,
) -> dict[str, Any]:
    """Makes a complete export in an empty folder, and returns its summary."""
    lax, auto, for_jax = (
        graph.make_graph(
            trained.config, trained.variables, implementation=implementation, portable=portable
        )
        for implementation, portable in (('lax', True), ('auto', True), ('auto', False))
    )
    metadata = _metadata(trained, lax)
    example = golden.make(trained.config.size, metadata['crop']['scale'])
    reference, keypoints = _reference(trained, config, num_images, example)
    metadata['golden'] = golden.describe(example, keypoints)
    calibration = crops(config, config.train_split, num_images)['image']
    given = Given(lax, auto, for_jax, calibration, metadata)
    golden.write(example, new)
    rows = {
        name: _make(name, artefact, given, new, reference, example)
        for name, artefact in chosen.items()
    }
    refused = {name for name, its in rows.items() if any(row['misses'] for row in its)}
    delivered = [name for name in rows if name not in refused]
    # Where nothing passes, the export before stays whole.
    kept, not_kept = _keep(target, new, chosen, metadata) if delivered else ({}, [])
    not_kept += [
        f'{chosen[name].file} of the export before is not kept: the gate refuses the new one'
        for name in chosen
        if delivered and name in refused and (target / chosen[name].file).exists()
    ]
    passed = {**kept, **{name: rows[name] for name in delivered}}
    summary = {
        **metadata,
        'reference_pck': reference.pck(reference.keypoints)[0],
        'delivered': delivered,
        'kept': list(kept),
        'not_kept': not_kept,
        'gate': [row for name in ARTEFACTS for row in passed.get(name, ())],
        'refused': [row for name in chosen if name in refused for row in rows[name]],
    }
    content = json.dumps(summary, indent=2)
    (new / SUMMARY_FILE).write_text(f'{content}\n', encoding='utf-8')
    return summary


def _make(
    name: str,
    artefact: Artefact,
    given: Given,
    new: Path,
    reference: gate.Reference,
    example: golden.Golden,
) -> list[dict[str, Any]]:
    """Writes one artefact and its sidecar, and leaves them if they pass the gate.

    Returns:
        The gate's rows.
    """
    path = new / artefact.file
    shown = np.concatenate([reference.images, example.crop[None]])
    rows: list[dict[str, Any]] = []
    found: list[Float[np.ndarray, '21 3']] = []
    about = _about(name, artefact, given.metadata)
    try:
        artefact.write(given, path)
        # The gate opens it as people do, and so the sidecar must be there.
        sidecars.write(path, about)
    except (OSError, MemoryError):
        raise
    # Converters have a dozen kinds of errors, and the other artefacts need not suffer from one.
    except Exception as error:
        miss = f'cannot be written ({type(error).__name__}: {error})'
        rows.append({'artefact': name, 'backend': '', 'misses': [miss]})
    for backend in () if rows else _installed(artefact.backends):
        try:
            with tempfile.TemporaryDirectory() as scratch:
                maps, keypoints = fresh_run.run(backend, path, shown, Path(scratch))
        except ValueError as error:
            rows.append({'artefact': name, 'backend': backend, 'misses': [str(error)]})
            continue
        # The last is the golden crop, of which the gate knows no truth.
        figures = gate.compare(reference, maps[:-1], keypoints[:-1], artefact.precision)
        rows.append({'artefact': name, 'backend': backend, **figures})
        found.append(keypoints[-1])
    if any(row['misses'] for row in rows):
        for leftover in (path, sidecars.path_of(path)):
            if leftover.is_dir():
                shutil.rmtree(leftover)
            else:
                leftover.unlink(missing_ok=True)
    else:
        told = golden.describe(example, found[0])
        sidecars.write(path, {**about, 'golden': told, 'gate': rows})
    return rows


def _keep(
    target: Path, new: Path, chosen: dict[str, Artefact], metadata: dict[str, Any]
) -> tuple[dict[str, list[dict[str, Any]]], list[str]]:
    """Copies what an older export has of the same checkpoint, and was not asked for.

    Returns:
        The gate's rows of each artefact that is kept, and a sentence about each that is not.
    """
    kept: dict[str, list[dict[str, Any]]] = {}
    not_kept: list[str] = []
    for name, artefact in ARTEFACTS.items():
        path = target / artefact.file
        if name in chosen or not path.exists():
            continue
        try:
            sidecars.verify(path)
            about = sidecars.read(path)
            if reason := _another(about, metadata):
                raise ValueError(reason)
        except ValueError as error:
            not_kept.append(f'{artefact.file} of the export before is not kept: {error}')
            continue
        copy: Callable[[Path, Path], Any] = shutil.copytree if path.is_dir() else shutil.copy2
        copy(path, new / artefact.file)
        shutil.copy2(sidecars.path_of(path), new)
        kept[name] = about.get('gate', [])
    return kept, not_kept


def _another(about: dict[str, Any], metadata: dict[str, Any]) -> str:
    """Why an artefact cannot stand beside new ones; nothing if it can."""
    old, new = about.get('checkpoint_step'), metadata['checkpoint_step']
    if old != new:
        return f'it is of step {old}, and this export of step {new}'
    # A sidecar has lists where there were tuples.
    plain = json.loads(json.dumps(metadata))
    for field in ('checkpoint_sha256', 'crop', 'decode', 'outputs'):
        if about.get(field) != plain[field]:
            return f'its {field} is another'
    # It tells what it finds in the picture, of which the folder has one.
    pictured = about.get('golden')
    if isinstance(pictured, dict) and pictured.get('box') != plain['golden']['box']:
        return 'its golden picture is another'
    return ''


def _names() -> list[str]:
    """Everything that exports write into their folder, but for the summary."""
    files = [artefact.file for artefact in ARTEFACTS.values()]
    return [golden.FOLDER, *files, *(sidecars.path_of(Path(file)).name for file in files)]


def describe(workdir: str, summary: dict[str, Any]) -> str:
    """What an export found and where it is, for people."""
    target = storage.folder(workdir) / FOLDER
    return f'{_table(summary)}\n{_left(target, summary)}'


def _table(summary: dict[str, Any]) -> str:
    rows = [*summary['gate'], *summary['refused']]
    return '\n'.join([gate.table(rows), *summary['not_kept']])


def _left(target: Path, summary: dict[str, Any]) -> str:
    if not summary['delivered']:
        return f'{target} is as it was' if target.exists() else 'nothing is written'
    kept = summary['kept']
    told = f'{target} has {", ".join(summary["delivered"])}'
    return f'{told}, and of the export before {", ".join(kept)}' if kept else told


def _listed(rows: Sequence[dict[str, Any]]) -> str:
    return ', '.join(dict.fromkeys(row['artefact'] for row in rows))


def _choose(only: Sequence[str]) -> dict[str, Artefact]:
    if unknown := sorted(set(only) - set(ARTEFACTS)):
        raise ValueError(f'only: expected some of {", ".join(ARTEFACTS)}, got {unknown[0]!r}')
    chosen = {name: ARTEFACTS[name] for name in ARTEFACTS if not only or name in only}
    missing = {
        module: name
        for name, artefact in chosen.items()
        for module in artefact.modules
        if importlib.util.find_spec(module) is None
    }
    if missing:
        told = ', '.join(f'{module} (for {name})' for module, name in missing.items())
        line = extras.how_to_install(*missing)
        raise ValueError(f'not installed: {told}; {line}, or choose others with --only')
    return chosen


def _installed(backends: Sequence[str]) -> list[str]:
    # OpenVINO is a second opinion about the ONNX file, not a need.
    return [b for b in backends if b != 'openvino' or importlib.util.find_spec('openvino')]


def crops(config: ConfigDict, split: str, number: int) -> dict[str, Any]:
    """Up to that many crops of a split, spread evenly over it, as one types.Batch."""
    source = sources.load_source(split=split, **evaluation_data(config))
    if not len(source):
        raise ValueError(f'split {split!r}: no records; the gate needs real images')
    number = min(number, len(source))
    chosen = np.linspace(0, len(source) - 1, number).round().astype(int)
    batches = pipeline.eval_batches(
        _Some(source, chosen), size=config.size, batch_size=number, num_threads=0
    )
    return dict(next(iter(batches)))


class _Some:
    """Some of a source's records."""

    def __init__(self, source: Source, chosen: np.ndarray) -> None:
        self._source = source
        self._chosen = [int(index) for index in chosen]

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, index: int, /) -> Any:
        return self._source[self._chosen[index]]

    @property
    def groups(self) -> Sequence[str]:
        return [self._source.groups[index] for index in self._chosen]

    def image_id(self, index: int, /) -> str:
        return self._source.image_id(self._chosen[index])

    def fingerprint(self) -> str:
        return self._source.fingerprint()


def _reference(
    trained: graph.Trained, config: ConfigDict, number: int, example: golden.Golden
) -> tuple[gate.Reference, Float[np.ndarray, '21 3']]:
    """What JAX finds in real crops, and in the golden one."""
    batch = crops(config, config.eval_split, number)
    own = trained.config
    # Artefacts compute in float32, whatever the training did.
    model = models.build(**{**own.model.to_dict(), 'dtype': 'float32'})
    # GPUs multiply with fewer bits, and would not keep the limits of float32.
    with jax.default_device(jax.local_devices(backend='cpu')[0]):
        variables = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), trained.variables)
        infer = inference.make_infer(model, own.decode.to_dict(), variables)
        found = infer(np.concatenate([batch['image'], example.crop[None]]))
    maps, keypoints = (np.asarray(array) for array in found)
    peaks = own.decode.get('method', 'peak') == 'peak'
    return (
        gate.Reference(batch, maps[:-1], keypoints[:-1], config.protocol, model.stride, peaks),
        keypoints[-1],
    )


def _about(name: str, artefact: Artefact, metadata: dict[str, Any]) -> dict[str, Any]:
    """What the sidecar of an artefact tells before the gate has seen it."""
    return {
        **metadata,
        'artefact': name,
        'precision': artefact.precision,
        'input': {
            **metadata['input'],
            'dtype': 'uint8' if name == 'tflite_int8' else 'float32',
            'batch': 1 if name.startswith('tflite') else 'any',
        },
    }


def _metadata(trained: graph.Trained, exported: graph.Graph) -> dict[str, Any]:
    config = trained.config
    data = evaluation_data(config)
    whole = data.get('crop') == 'image'
    return {
        'model': config.model.to_dict(),
        'checkpoint_step': trained.step,
        'checkpoint_sha256': trained.checksum,
        'input': {
            'name': graph.INPUT,
            'shape': ['b', exported.size, exported.size, 3],
            'layout': 'NHWC, RGB',
            'range': [0, 255],
            'normalisation': 'inside the artefact: give the pixels as they are',
        },
        'crop': {
            'rule': 'the whole image, square'
            if whole
            else 'the square around the box of the hand, enlarged by the scale about its centre',
            'scale': None if whole else crop_scale(config),
            'step': 'side of the square / size, photograph pixels for each pixel of the crop',
            **transforms.CROP_RULE,
            'left_hands': 'mirrored before, and the x of what is found mirrored back',
            'pixel_centres': 'at whole numbers: the crop reaches from -0.5 to size - 0.5',
        },
        'outputs': {
            'heatmaps': {
                'shape': ['b', exported.map_size, exported.map_size, exported.num_maps],
                'meaning': 'the keypoints in their order, then the background if there is one',
            },
            'keypoints': {
                'shape': ['b', hand.NUM_KEYPOINTS, 3],
                'meaning': 'x, y in pixels of the crop; confidence 0..1, not a probability',
            },
        },
        'decode': config.decode.to_dict(),
        'keypoint_names': list(hand.KEYPOINT_NAMES),
        'licence': {
            'code': 'Apache-2.0',
            'weights': 'follow the licences of the training data and of the initial weights',
            'data': data.get('name'),
        },
        'versions': {
            name: importlib.metadata.version(name)
            for name in ('jax', 'numpy', 'tensorflow-cpu', 'tensorflow', 'onnx', 'ai-edge-litert')
            if _is_installed(name)
        },
    }


def _is_installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
