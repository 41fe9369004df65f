"""From a source to a stream of batches, with Grain.

Every example is a function of (seed, position in the stream) alone: the stream is the same for any
number of threads, and a saved iterator state continues it exactly. Batches are made in threads of
this process: decoding and warping release the interpreter lock.
"""

import dataclasses
import functools
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import cv2
import grain
import numpy as np

from handpose_jax import hand
from handpose_jax.data.transforms import Augmentation, crop_example
from handpose_jax.types import Sample, Source

_Made = TypeVar('_Made')

_BATCHES_AHEAD_PER_THREAD = 2


def train_dataset(
    source: Source,
    *,
    size: int,
    batch_size: int,
    seed: int,
    augmentation: Augmentation | None,
    balance: float | Mapping[str, float] = 1.0,
    balance_within: float = 1.0,
    num_threads: int = 2,
    shard_index: int = 0,
    shard_count: int = 1,
) -> grain.IterDataset:
    """An endless stream of shuffled, augmented training batches.

    Iterators over it have get_state() and set_state() for checkpoints.

    Args:
        source: where the samples come from; may hold fewer records than a batch.
        size: side of the crops, pixels.
        batch_size: examples in each batch of this shard.
        seed: of order and augmentation, 0..2**32 - 1.
        augmentation: None for plain crops.
        balance: b gives each of source.groups a share of the stream proportional to (its number of
            records)**b: 1 takes the records as they are, each once per epoch; 0 shows all groups
            equally often. Or the shares themselves, a weight for each group; 0 leaves it out.
            Within a group every record comes equally often.
        balance_within: the same exponent for the groups inside each part of a mixture, whose own
            groups are its parts: 1 takes the records of a part as they are.
        num_threads: threads that make batches; 0 makes them when asked for.
        shard_index: which part of the stream to take, for several processes.
        shard_count: into how many parts the stream is dealt, batch by batch.

    Returns:
        A dataset of types.Batch, NumPy.

    Raises:
        ValueError: for an empty source or an argument out of range; while iterating, for a record
            that cannot be read, by its name.
    """
    _check(source, size, batch_size, num_threads, shard_index, shard_count)
    indices = _train_indices(source, seed, balance, balance_within)
    batches = indices.random_map(_TrainExample(source, size, augmentation), seed=seed).batch(
        batch_size, drop_remainder=True
    )
    return _shard_and_read(batches, num_threads, shard_index, shard_count)


def train_positions(
    source: Source,
    *,
    batch_size: int,
    seed: int,
    balance: float | Mapping[str, float] = 1.0,
    balance_within: float = 1.0,
    num_threads: int = 2,
    shard_index: int = 0,
    shard_count: int = 1,
) -> grain.IterDataset:
    """The records of train_dataset's stream, in its order, without their pictures.

    Args:
        source: as there, and so are all others.
        batch_size: see there.
        seed: see there.
        balance: see there.
        balance_within: see there.
        num_threads: see there.
        shard_index: see there.
        shard_count: see there.

    Returns:
        A dataset of batches: 'position' u32[b], each example's place in the stream of all shards
        together, and 'index' i32[b], its record.

    Raises:
        ValueError: for an empty source or an argument out of range.
    """
    _check(source, 1, batch_size, num_threads, shard_index, shard_count)
    indices = _train_indices(source, seed, balance, balance_within)
    batches = indices.map_with_index(_place).batch(batch_size, drop_remainder=True)
    return _shard_and_read(batches, num_threads, shard_index, shard_count)


def _place(position: int, index: int) -> dict[str, Any]:
    return {'position': np.uint32(position), 'index': np.int32(index)}


def eval_batches(
    source: Source,
    *,
    size: int,
    batch_size: int,
    num_threads: int = 2,
    shard_index: int = 0,
    shard_count: int = 1,
) -> grain.IterDataset:
    """Every record once, in order, without augmentation.

    Batches are dealt to the shards in turn. All have batch_size examples and every shard has the
    same number of batches: what is missing at the end is padded with examples of valid False (image
    and keypoints zero, norm_size one, nothing visible, index -1).

    Args:
        source: where the samples come from.
        size: side of the crops, pixels.
        batch_size: examples in each batch of this shard.
        num_threads: threads that make batches; 0 makes them when asked for.
        shard_index: which shard this is.
        shard_count: how many there are.

    Returns:
        A dataset of types.Batch, NumPy; it can be iterated over again.

    Raises:
        ValueError: for an empty source or an argument out of range; while iterating, for a record
            that cannot be read, by its name.
    """
    _check(source, size, batch_size, num_threads, shard_index, shard_count)
    step = batch_size * shard_count
    padded = -(-len(source) // step) * step
    batches = grain.MapDataset.range(padded).map(_EvalExample(source, size)).batch(batch_size)
    return _shard_and_read(batches, num_threads, shard_index, shard_count)


@dataclasses.dataclass(frozen=True)
class _TrainExample:
    source: Source
    size: int
    augmentation: Augmentation | None

    def __call__(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        return _example(self.source, index, self.size, self.augmentation, rng)


@dataclasses.dataclass(frozen=True)
class _EvalExample:
    source: Source
    size: int

    def __call__(self, index: int) -> dict[str, Any]:
        if index < len(self.source):
            return _example(self.source, index, self.size, None, None)
        return {
            'image': np.zeros((self.size, self.size, 3), np.uint8),
            'keypoints': np.zeros((hand.NUM_KEYPOINTS, 2), np.float32),
            'visible': np.zeros(hand.NUM_KEYPOINTS, bool),
            'norm_size': np.float32(1),
            'image_from_crop': np.eye(2, 3, dtype=np.float32),
            'valid': np.bool_(False),
            'index': np.int32(-1),
            'hidden': np.zeros(hand.NUM_KEYPOINTS, bool),
            'has_hand': np.bool_(True),
        }


def _example(
    source: Source,
    index: int,
    size: int,
    augmentation: Augmentation | None,
    rng: np.random.Generator | None,
) -> dict[str, Any]:
    return made_of(
        source,
        index,
        functools.partial(crop_example, size=size, augmentation=augmentation, rng=rng, index=index),
    )


def made_of(source: Source, index: int, make: Callable[[Sample], _Made]) -> _Made:
    """Reads a record and makes something of it.

    Raises:
        ValueError: where either fails, naming the record.
    """
    try:
        return make(source[index])
    except (ValueError, OSError, cv2.error) as error:
        name = source.image_id(index)
        # Most sources name the record themselves, with the file it is written in.
        if isinstance(error, ValueError) and name in str(error):
            raise
        raise ValueError(f'record {index} ({name}): {error}') from error


def _train_indices(
    source: Source, seed: int, balance: float | Mapping[str, float], balance_within: float
) -> grain.MapDataset:
    """The records of a training, one after the other without an end."""
    if not 0 <= seed < 2**32:
        raise ValueError(f'seed must be in 0..2**32 - 1, got {seed}')
    for name, value in (('balance', balance), ('balance_within', balance_within)):
        if not isinstance(value, Mapping) and not 0 <= value <= 1:
            raise ValueError(f'{name} must be in 0..1, got {value}')
    if balance == 1 and balance_within == 1:
        return grain.MapDataset.range(len(source)).shuffle(seed=seed).repeat()
    return _balanced_indices(source, balance, seed, balance_within)


def _balanced_indices(
    source: Source,
    balance: float | Mapping[str, float],
    seed: int,
    within: float = 1.0,
) -> grain.MapDataset:
    members: dict[str, list[int]] = defaultdict(list)
    for index, group in enumerate(source.groups):
        members[group].append(index)
    if isinstance(balance, Mapping):
        _check_weights(balance, members)
    parts, shares = [], []
    for position, (group, indices) in enumerate(members.items()):
        share = balance[group] if isinstance(balance, Mapping) else float(len(indices)) ** balance
        if not share:
            continue
        inner = _inner_groups(source, indices, within)
        total = sum(len(some) ** within for some in inner)
        for number, some in enumerate(inner):
            # Neighbouring seeds would give groups of equal size the same order, one epoch apart.
            words = [seed, position, number] if number else [seed, position]
            group_seed = int(np.random.SeedSequence(words).generate_state(1)[0])
            parts.append(grain.MapDataset.source(some).shuffle(seed=group_seed).repeat())
            shares.append(share * len(some) ** within / total)
    return grain.MapDataset.mix(parts, shares)


def _inner_groups(source: Source, indices: list[int], within: float) -> list[list[int]]:
    """The records of one group by the group that they have in their part of a mixture."""
    inner = getattr(source, 'inner_groups', None)
    if within == 1 or inner is None:
        return [indices]
    members: dict[str, list[int]] = defaultdict(list)
    for index in indices:
        members[inner[index]].append(index)
    return list(members.values())


def _check_weights(balance: Mapping[str, float], groups: Iterable[str]) -> None:
    if set(balance) != set(groups):
        raise ValueError(
            f'pipeline.balance: expected a weight for each of the groups {sorted(groups)}, got '
            f'weights for {sorted(balance)}'
        )
    if min(balance.values()) < 0 or not sum(balance.values()) > 0:
        raise ValueError(
            f'pipeline.balance: expected weights of 0 or more and one above 0, got {dict(balance)}'
        )


def _shard_and_read(
    batches: grain.MapDataset, num_threads: int, shard_index: int, shard_count: int
) -> grain.IterDataset:
    # OpenCV's own threads would compete with ours; crops are too small to gain from them.
    cv2.setNumThreads(1)
    # Whole batches are dealt, not examples: a mix of groups is periodic, and every n-th example of
    # it could be of one group.
    if shard_count > 1:
        batches = batches[shard_index::shard_count]
    return batches.to_iter_dataset(
        grain.ReadOptions(
            num_threads=num_threads,
            prefetch_buffer_size=_BATCHES_AHEAD_PER_THREAD * num_threads,
        )
    )


def _check(
    source: Source,
    size: int,
    batch_size: int,
    num_threads: int,
    shard_index: int,
    shard_count: int,
) -> None:
    if len(source) == 0:
        raise ValueError('the source holds no records; there is nothing to make batches of')
    for name, value, smallest in (
        ('size', size, 1),
        ('batch_size', batch_size, 1),
        ('num_threads', num_threads, 0),
        ('shard_count', shard_count, 1),
    ):
        if value < smallest:
            raise ValueError(f'{name} must be at least {smallest}, got {value}')
    if not 0 <= shard_index < shard_count:
        raise ValueError(f'shard_index must be in 0..{shard_count - 1}, got {shard_index}')
