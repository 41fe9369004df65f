"""Trained networks as files for other runtimes: TFLite, ONNX, StableHLO, SavedModel.

    handpose export --workdir W

Everything is behind a gate: an artefact that does not find the same keypoints as JAX, in its own
runtime and in a fresh process, fails the export, and none is left.
"""

import dataclasses
import hashlib
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

from handpose_jax import hand, inference, models
from handpose_jax.config import crop_scale, evaluation_data
from handpose_jax.data import pipeline, sources, transforms
from handpose_jax.export import fresh_run, gate, golden, graph, onnx, stablehlo, tflite
from handpose_jax.process import extras, storage
from handpose_jax.types import Source

FOLDER = 'export'
"""In the workdir."""

SUMMARY_FILE = 'export.json'

NUM_IMAGES = 128
"""Crops that the gate compares on, and as many that int8 is calibrated with."""


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
    """Writes W/export from a workdir's newest checkpoint, if everything passes the gate.

    An earlier W/export is removed first.

    Args:
        workdir: of a training run; its data must be there.
        only: keys of ARTEFACTS; none are all.
        num_images: crops to compare on, and to calibrate int8 with.
        config: whose data (eval_data, eval_split, train_split, protocol) is used instead of the
            workdir's own.

    Returns:
        What W/export/export.json holds: the metadata, and the figures of the gate.

    Raises:
        ValueError: if something cannot be exported, or the gate's limits are not kept, with the
            table of its figures; W/export does not exist then.
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
    target = Path(workdir) / FOLDER
    if target.exists() and not (target / SUMMARY_FILE).exists():
        raise ValueError(
            f'{target}: is there, but was not written by an export (no {SUMMARY_FILE}); move it '
            'away'
        )
    # An old one beside a failed new one would look as if it had passed.
    shutil.rmtree(target, ignore_errors=True)
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
    shown = np.concatenate([reference.images, example.crop[None]])
    # In the workdir: a folder elsewhere may be on another disk, and could not be renamed.
    with tempfile.TemporaryDirectory(dir=workdir, prefix='export_unfinished_') as temporary:
        folder, scratch = Path(temporary) / FOLDER, Path(temporary) / 'scratch'
        folder.mkdir()
        scratch.mkdir()
        golden.write(example, folder)
        rows = []
        found: dict[str, Float[np.ndarray, '21 3']] = {}
        for name, artefact in chosen.items():
            path = folder / artefact.file
            artefact.write(given, path)
            for backend in _installed(artefact.backends):
                maps, keypoints = fresh_run.run(backend, path, shown, scratch)
                # The last is the golden crop, of which the gate knows no truth.
                figures = gate.compare(reference, maps[:-1], keypoints[:-1], artefact.precision)
                rows.append({'artefact': name, 'backend': backend, **figures})
                found.setdefault(name, keypoints[-1])
        if any(row['misses'] for row in rows):
            raise ValueError(
                f'workdir {workdir}: the gate refuses the export, nothing is written\n'
                f'{gate.table(rows)}'
            )
        summary = {**metadata, 'reference_pck': reference.pck(reference.keypoints), 'gate': rows}
        for name, artefact in chosen.items():
            path = folder / artefact.file
            own = {
                **metadata,
                'artefact': name,
                'file': artefact.file,
                'precision': artefact.precision,
                'input': {
                    **metadata['input'],
                    'dtype': 'uint8' if name == 'tflite_int8' else 'float32',
                    'batch': 1 if name.startswith('tflite') else 'any',
                },
                'bytes': sum(f.stat().st_size for f in _files(path)),
                'sha256': _digest(path),
                'golden': golden.describe(example, found[name]),
                'gate': [row for row in rows if row['artefact'] == name],
            }
            _write_json(folder / f'{artefact.file}.json', own)
        _write_json(folder / SUMMARY_FILE, summary)
        folder.rename(target)
    return summary


def describe(workdir: str, summary: dict[str, Any]) -> str:
    """What an export found and where it is, for people."""
    return f'{gate.table(summary["gate"])}\n{Path(workdir) / FOLDER}'


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


def _files(path: Path) -> list[Path]:
    return sorted(p for p in path.rglob('*') if p.is_file()) if path.is_dir() else [path]


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    for file in _files(path):
        if path.is_dir():
            digest.update(file.relative_to(path).as_posix().encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _write_json(path: Path, values: Any) -> None:
    path.write_text(json.dumps(values, indent=2) + '\n', encoding='utf-8')
