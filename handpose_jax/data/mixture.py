"""Several data sets as one, for a network that trains on their union."""

import bisect
import hashlib
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from handpose_jax.types import Sample, Source


class MixtureSource:
    """The records of all parts, one part after the other.

    Its groups are the names of the parts, so pipeline.train_dataset's `balance` says how often each
    part is shown: a number, or a weight for each name.

    Args:
        parts: sources by name.

    Raises:
        ValueError: without parts.
    """

    def __init__(self, parts: Mapping[str, Source]):
        if not parts:
            raise ValueError('data.parts: expected at least one data set, got none')
        self._names = tuple(parts)
        self._parts = tuple(parts.values())
        # The number of records up to and with each part.
        self._ends = list(itertools.accumulate(len(part) for part in self._parts))

    @property
    def parts(self) -> dict[str, Source]:
        """The sources by name."""
        return dict(zip(self._names, self._parts, strict=True))

    @property
    def groups(self) -> Sequence[str]:
        """For each record the name of its part."""
        return tuple(
            name
            for name, part in zip(self._names, self._parts, strict=True)
            for _ in range(len(part))
        )

    @property
    def inner_groups(self) -> Sequence[str]:
        """For each record the group that it has in its part."""
        return tuple(group for part in self._parts for group in part.groups)

    def __len__(self) -> int:
        return self._ends[-1]

    def fingerprint(self) -> str:
        """SHA-256 of the parts' names and fingerprints."""
        lines = [
            f'{name}\0{part.fingerprint()}\n'
            for name, part in zip(self._names, self._parts, strict=True)
        ]
        return hashlib.sha256(''.join(lines).encode()).hexdigest()

    def image_id(self, index: int, /) -> str:
        """As the part names it."""
        part, inside = self._locate(index)
        return part.image_id(inside)

    def __getitem__(self, index: int, /) -> Sample:
        part, inside = self._locate(index)
        return part[inside]

    def _locate(self, index: int) -> tuple[Any, int]:
        if not 0 <= index < len(self):
            raise IndexError(f'record {index} of {len(self)}')
        number = bisect.bisect_right(self._ends, index)
        return self._parts[number], index - (self._ends[number - 1] if number else 0)
