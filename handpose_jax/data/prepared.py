"""Prepared data sets: one canonical form on disk, written in parallel and read without TensorFlow.

A prepared data set is a folder that TensorFlow Datasets can open (`tfds.builder_from_directory`):

    <name>-<split>.array_record-00003-of-00016   shards, images as encoded bytes
    features.json, dataset_info.json             TFDS's metadata, written last
    prepare.json                                 the settings it was made with
    counts.json                                  records in each split, beside those published
    quarantine.json                              records left out, and why (quarantine.py)
    fingerprint.json                             SHA-256 of every shard, and of them all

Each shard is written beside its place and renamed when complete, so a killed preparation goes on
where it was and finished shards are not made again. A folder without fingerprint.json is not
finished.
"""

import concurrent.futures
import hashlib
import json
import math
import multiprocessing.managers
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from handpose_jax import geometry, hand
from handpose_jax.data import images, quarantine
from handpose_jax.process import lock, user_cache
from handpose_jax.process.threads import become_worker, end_with_parent
from handpose_jax.types import Sample

SETTINGS_FILE = 'prepare.json'
COUNTS_FILE = 'counts.json'
FINGERPRINT_FILE = 'fingerprint.json'

_FILE_FORMAT = 'array_record'

Example = dict[str, Any]
"""One record: the fields of `features()`, NumPy values, `image` as encoded bytes."""


class Split(NamedTuple):
    """What a split holds.

    Attributes:
        records: how many.
        make: index to Example; picklable, and a function of the index alone. Raises ValueError or
            OSError for a record that cannot be used.
        published: how many its authors say it has; None if they do not.
        evaluation: whether numbers are to be measured on it: then one bad record stops the
            preparation; else a few are left out and listed, see quarantine.py.
    """

    records: int
    make: Callable[[int], Example]
    published: int | None = None
    evaluation: bool = False


def features(with_3d: bool) -> Any:
    """The record as TFDS features; with_3d adds keypoints_3d (metres) and the camera matrix."""
    import tensorflow_datasets as tfds

    fields: dict[str, Any] = {
        # Bytes as they are in the file: TFDS's own image feature needs TensorFlow.
        'image': tfds.features.Tensor(shape=(), dtype=np.object_),
        'keypoints': tfds.features.Tensor(shape=(hand.NUM_KEYPOINTS, 2), dtype=np.float32),
        # Its place is known; it counts in training. None is: the picture shows no hand.
        'annotated': tfds.features.Tensor(shape=(hand.NUM_KEYPOINTS,), dtype=np.bool_),
        # Not hidden by anything, as far as the source tells; else the same as annotated.
        'visible': tfds.features.Tensor(shape=(hand.NUM_KEYPOINTS,), dtype=np.bool_),
        'box': tfds.features.Tensor(shape=(4,), dtype=np.float32),
        'norm_size': tfds.features.Tensor(shape=(), dtype=np.float32),
        'is_left': tfds.features.Tensor(shape=(), dtype=np.bool_),
        'image_id': tfds.features.Text(),
    }
    if with_3d:
        fields['keypoints_3d'] = tfds.features.Tensor(
            shape=(hand.NUM_KEYPOINTS, 3), dtype=np.float32
        )
        fields['camera'] = tfds.features.Tensor(shape=(3, 3), dtype=np.float32)
    return tfds.features.FeaturesDict(fields)


def default_folder(name: str) -> Path:
    """Where a data set is kept when no folder is given: by its name, in the user's cache."""
    return user_cache.folder() / name


def is_prepared(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder holds a finished data set."""
    return (Path(folder) / FINGERPRINT_FILE).is_file()


def prepare(
    folder: str | os.PathLike[str],
    name: str,
    splits: Mapping[str, Split],
    *,
    settings: Mapping[str, Any],
    description: str,
    with_3d: bool = False,
    records_per_shard: int = 256,
    workers: int | None = None,
) -> None:
    """Writes a data set, or what is missing of it.

    Args:
        folder: receives the files.
        name: of the data set, part of the files' names.
        splits: by name.
        settings: JSON values that decide the content; a folder made with others is refused.
        description: a line for TFDS's metadata.
        with_3d: the records hold keypoints_3d and camera.
        records_per_shard: size of a shard.
        workers: processes; default one for each core.

    Raises:
        ValueError: for a folder with other settings or that cannot be written; or for a record that
            cannot be made, by its split and number, where one stops it or there are too many.
    """
    target = Path(folder)
    if is_prepared(target):
        _check_settings(target, settings)
        return
    with lock.hold(target):
        try:
            if (target / SETTINGS_FILE).exists():
                _check_settings(target, settings)
            else:
                _write_json(target / SETTINGS_FILE, dict(settings))
        except OSError as error:
            raise ValueError(
                f'{target}: cannot write the data set there ({error.strerror}); give another folder'
            ) from error
        tasks = [
            _Shard(str(target), name, split_name, split, number, count, with_3d)
            for split_name, split in splits.items()
            for count in [max(1, math.ceil(split.records / records_per_shard))]
            for number in range(count)
        ]
        missing = [task for task in tasks if not task.path.exists()]
        _make_shards(tasks, missing, name, workers or _usable_cores())
        _finish(target, name, splits, tasks, description, with_3d)


def _usable_cores() -> int:
    # Containers are given a part of a machine; only Linux tells which.
    if hasattr(os, 'sched_getaffinity'):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class _Shard(NamedTuple):
    folder: str
    dataset: str
    split_name: str
    split: Split
    number: int
    of: int
    with_3d: bool

    @property
    def path(self) -> Path:
        stem = f'{self.dataset}-{self.split_name}.{_FILE_FORMAT}'
        return Path(self.folder) / f'{stem}-{self.number:05d}-of-{self.of:05d}'

    @property
    def indices(self) -> range:
        total = self.split.records
        return range(total * self.number // self.of, total * (self.number + 1) // self.of)


def _make_shards(
    all_: Sequence[_Shard], missing: Sequence[_Shard], name: str, workers: int
) -> None:
    if not missing:
        return
    quarantined: dict[str, list[quarantine.Entry]] = {}
    unfinished = {task.path for task in missing}
    for task in all_:
        if task.path not in unfinished:
            quarantined.setdefault(task.split_name, []).extend(quarantine.read_of_shard(task.path))
    total = sum(len(task.indices) for task in all_)
    done = total - sum(len(task.indices) for task in missing)
    records = {task.split_name: task.split.records for task in all_}
    bar = tqdm(total=total, initial=done, unit='image', desc=f'preparing {name}', smoothing=0.1)
    # Spawned, not forked: the parent may hold threads of JAX, and renderers keep global state.
    context = multiprocessing.get_context('spawn')
    manager = multiprocessing.managers.SyncManager(ctx=context)
    manager.start(end_with_parent)
    with (
        bar,
        manager,
        concurrent.futures.ProcessPoolExecutor(
            workers, mp_context=context, initializer=become_worker
        ) as pool,
    ):
        ticks = manager.Queue()
        futures = {pool.submit(_write_shard, task, ticks) for task in missing}
        try:
            while futures:
                finished, futures = concurrent.futures.wait(futures, timeout=0.5)
                for future in finished:
                    for entry in future.result():
                        entries = quarantined.setdefault(entry.split, [])
                        entries.append(entry)
                        quarantine.check_share(entries, entry.split, records[entry.split])
                while not ticks.empty():
                    bar.update(ticks.get())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _write_shard(shard: _Shard, ticks: Any) -> list[quarantine.Entry]:
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.core import example_serializer

    fields = features(shard.with_3d)
    serializer = example_serializer.ExampleSerializer(fields.get_serialized_info())
    temporary = shard.path.with_name(f'{shard.path.name}.partial-{os.getpid()}')
    writer = ArrayRecordWriter(str(temporary), 'group_size:1')
    bad: list[quarantine.Entry] = []
    try:
        for index in shard.indices:
            try:
                example = shard.split.make(index)
            except (ValueError, OSError) as error:
                if shard.split.evaluation:
                    raise ValueError(
                        f'{shard.dataset}/{shard.split_name}, record {index}: {error}'
                    ) from error
                bad.append(quarantine.entry(shard.split_name, index, error))
                quarantine.check_share(bad, shard.split_name, shard.split.records)
                continue
            message = serializer.get_tf_example(fields.encode_example(example))
            # A protobuf map has no order of its own: without this, every process writes another.
            writer.write(message.SerializeToString(deterministic=True))
            ticks.put(1)
        writer.close()
        quarantine.write_of_shard(shard.path, bad)
        temporary.replace(shard.path)
    finally:
        temporary.unlink(missing_ok=True)
    return bad


def _finish(
    target: Path,
    name: str,
    splits: Mapping[str, Split],
    tasks: Sequence[_Shard],
    description: str,
    with_3d: bool,
) -> None:
    import tensorflow_datasets as tfds

    def template(split: str | None = None) -> Any:
        return tfds.core.ShardedFileTemplate(
            data_dir=target, dataset_name=name, split=split, filetype_suffix=_FILE_FORMAT
        )

    by_split: dict[str, list[_Shard]] = {}
    lengths: dict[str, list[int]] = {}
    for task in tasks:
        left_out = len(quarantine.read_of_shard(task.path))
        by_split.setdefault(task.split_name, []).append(task)
        lengths.setdefault(task.split_name, []).append(len(task.indices) - left_out)
    tfds.folder_dataset.write_metadata(
        data_dir=target,
        features=features(with_3d),
        split_infos=[
            tfds.core.SplitInfo(
                name=split_name,
                shard_lengths=lengths[split_name],
                num_bytes=sum(shard.path.stat().st_size for shard in shards),
                filename_template=template(split_name),
            )
            for split_name, shards in by_split.items()
        ],
        filename_template=template(),
        description=description,
        check_data=False,
    )
    counts = {
        split_name: {
            'records': sum(lengths[split_name]),
            'published': split.published,
            'quarantined': split.records - sum(lengths[split_name]),
        }
        for split_name, split in splits.items()
    }
    _write_json(target / COUNTS_FILE, counts)
    quarantine.gather(target, [task.path for task in tasks])
    digests = {task.path.name: _digest(task.path) for task in tasks}
    whole = hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()
    for leftover in target.glob('*.partial-*'):
        leftover.unlink()
    _write_json(target / FINGERPRINT_FILE, {'sha256': whole, 'shards': digests})
    quarantine.clear(target)


def counts(folder: str | os.PathLike[str]) -> dict[str, dict[str, int | None]]:
    """For each split of a finished data set its 'records', 'published' and 'quarantined'."""
    return json.loads((Path(folder) / COUNTS_FILE).read_text())


def fingerprint(folder: str | os.PathLike[str]) -> str:
    """The SHA-256 of a finished data set, as it was when finished."""
    return json.loads((Path(folder) / FINGERPRINT_FILE).read_text())['sha256']


def _digest(path: Path) -> str:
    with path.open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def _check_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    old = json.loads((folder / SETTINGS_FILE).read_text())
    new = json.loads(json.dumps(dict(settings)))
    lines = [
        f'{key}: {old.get(key)!r} -> {new.get(key)!r}'
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]
    if lines:
        listed = '\n  '.join(lines)
        raise ValueError(
            f'{folder} holds a data set made with other settings:\n  {listed}\n'
            'give another folder, or the old settings'
        )


def _write_json(path: Path, values: Any) -> None:
    temporary = path.with_name(f'{path.name}.new')
    temporary.write_text(json.dumps(values, indent=2, sort_keys=True) + '\n')
    temporary.replace(path)


class PreparedSource:
    """Reads a prepared data set.

    Args:
        root: its folder; '' for the place where `dataset` is kept by default.
        dataset: its name; not needed with a root.
        split: one of its splits, or several joined by '+'.
        crop: what is cut out: 'box', the square around the record's box; or 'image', the whole
            image, whose longest side is then norm_size too.
        crop_scale: for 'box': side of the square over the longest side of the record's box; the
            region of a picture without a hand is cut as it is.
        hidden: whether keypoints that are annotated but hidden from view count too.
        max_megapixels: see images.decode_image.

    Raises:
        ValueError: if the folder holds no finished data set, another one, or not this split; for
            another crop.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] = '',
        *,
        dataset: str = '',
        split: str = 'train',
        crop: str = 'box',
        crop_scale: float = 2.2,
        hidden: bool = True,
        max_megapixels: float = images.DEFAULT_MAX_MEGAPIXELS,
    ):
        import tensorflow_datasets as tfds

        if not (root or dataset):
            raise ValueError(
                'data.root: expected the folder of a prepared data set, or its name in '
                "data.dataset, got ''"
            )
        self._root = Path(root) if root else default_folder(dataset)
        if not is_prepared(self._root):
            command = f'python datasets/prepare.py {dataset or "NAME"}'
            raise ValueError(
                f'{self._root}: no finished data set there ({FINGERPRINT_FILE} is missing); '
                f'prepare it first: {command} --help, and datasets/README.md'
            )
        builder = tfds.builder_from_directory(self._root)
        for one in split.split('+'):
            if one not in builder.info.splits:
                known = ', '.join(sorted(builder.info.splits))
                raise ValueError(f'{self._root}: no split {one!r}; there are {known}')
        if crop not in ('box', 'image'):
            raise ValueError(f"data.crop: expected 'box' or 'image', got {crop!r}")
        self._name = builder.info.name
        if dataset not in ('', self._name):
            raise ValueError(f'{self._root}: expected the data set {dataset!r}, got {self._name!r}')
        self._split = split
        self._crop = crop
        self._crop_scale = crop_scale
        self._counted = 'annotated' if hidden else 'visible'
        self._max_megapixels = max_megapixels
        self._records: Any = builder.as_data_source(split=split)

    @property
    def groups(self) -> Sequence[str]:
        """One group: the data set's name."""
        return (self._name,) * len(self)

    def __len__(self) -> int:
        return len(self._records)

    def fingerprint(self) -> str:
        """SHA-256 of the whole data set, as it was when finished."""
        return fingerprint(self._root)

    def image_id(self, index: int, /) -> str:
        """Data set, split and number; the record's own id is in its sample."""
        return f'{self._name}/{self._split}/{index}'

    def record(self, index: int, /) -> Example:
        """The record as it is stored, image still encoded."""
        return self._records[index]

    def __getitem__(self, index: int, /) -> Sample:
        record = self._records[index]
        image = images.decode_image(
            record['image'],
            self.image_id(index),
            max_megapixels=self._max_megapixels,
            thorough=False,
        )
        no_hand = not record['annotated'].any()
        if self._crop == 'image':
            box = geometry.square_box(geometry.whole_image_box(*image.shape[:2]))
            norm_size = float(max(image.shape[:2]))
        else:
            box = geometry.square_box(record['box'], 1.0 if no_hand else self._crop_scale)
            norm_size = float(record['norm_size'])
        sample: Sample = {
            'image': image,
            'keypoints': record['keypoints'],
            'visible': record[self._counted],
            'box': box.astype(np.float32),
            'is_left': bool(record['is_left']),
            'norm_size': norm_size,
            'image_id': record['image_id'].decode(),
            'hidden': record['annotated'] & ~record['visible'],
        }
        if no_hand:
            sample['no_hand'] = True
        return sample
