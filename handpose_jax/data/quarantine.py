"""Records that cannot be converted: what is wrong with each, and how many are too many.

Training data may lose a few records to damage, never unseen: every one is listed with the reason,
and a share above MAX_SHARE stops the preparation, because then the reader is wrong or the archive
is. Data for evaluation lose none, or their numbers would not compare.
"""

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

MAX_SHARE = 0.01
"""This share of a split's records may be bad."""

FILE = 'quarantine.json'
"""In a prepared data set: its records that were left out; [] where there are none."""

_SUFFIX = '.quarantine.json'
_SHOWN = 10


class BadRecord(ValueError):
    """A record that cannot be used; says where it stands and what is wrong.

    Attributes:
        file: of the annotations or of the image.
        record: what names it in there.
        field: of the record.
        expected: what would be right.
        got: what there is.
    """

    def __init__(self, *, file: Any, record: Any, field: str, expected: str, got: Any):
        self.file = str(file)
        self.record = str(record)
        self.field = field
        self.expected = expected
        self.got = str(got)
        super().__init__(
            f'{self.file}: record {self.record}, field {field!r}: expected {expected}, '
            f'got {self.got}'
        )

    def __reduce__(self) -> tuple[Any, ...]:
        # Worker processes send it back, and an exception is otherwise rebuilt from its message.
        return _bad_record, (self.file, self.record, self.field, self.expected, self.got)


def _bad_record(file: str, record: str, field: str, expected: str, got: str) -> BadRecord:
    return BadRecord(file=file, record=record, field=field, expected=expected, got=got)


@dataclasses.dataclass(frozen=True)
class Entry:
    """One record that was left out.

    Attributes:
        split: of the data set.
        index: of the record among those that were to be converted, from 0.
        problem: the whole message.
        file, record, field, expected, got: see BadRecord; '' where the error does not say.
    """

    split: str
    index: int
    problem: str
    file: str = ''
    record: str = ''
    field: str = ''
    expected: str = ''
    got: str = ''


def entry(split: str, index: int, error: Exception) -> Entry:
    """What is kept of the error of a record."""
    if isinstance(error, BadRecord):
        return Entry(
            split,
            index,
            str(error),
            error.file,
            error.record,
            error.field,
            error.expected,
            error.got,
        )
    return Entry(split, index, str(error))


def write_of_shard(shard: Path, entries: Sequence[Entry]) -> None:
    """Keeps the list of a shard beside it; before the shard gets its name, so that none is lost."""
    path = shard.with_name(shard.name + _SUFFIX)
    if entries:
        _write(path, entries)
    else:
        path.unlink(missing_ok=True)


def read_of_shard(shard: Path) -> list[Entry]:
    """The list of a shard; empty where it has none."""
    path = shard.with_name(shard.name + _SUFFIX)
    return _read(path) if path.exists() else []


def gather(folder: Path, shards: Iterable[Path]) -> None:
    """Writes the shards' lists into FILE."""
    _write(folder / FILE, [one for shard in shards for one in read_of_shard(shard)])


def clear(folder: Path) -> None:
    """Removes the shards' lists; once the data set is finished, so that a kill loses none."""
    for path in folder.glob(f'*{_SUFFIX}'):
        path.unlink()


def read(folder: Path) -> list[Entry]:
    """What was left out of a finished data set."""
    path = folder / FILE
    return _read(path) if path.exists() else []


def check_share(entries: Sequence[Entry], split: str, records: int) -> None:
    """Stops a preparation that loses too much.

    Args:
        entries: of this split so far.
        split: its name.
        records: how many it was to have.

    Raises:
        ValueError: above MAX_SHARE, with the first records and why they cannot be used.
    """
    if len(entries) <= MAX_SHARE * records:
        return
    shown = '\n  '.join(one.problem for one in entries[:_SHOWN])
    raise ValueError(
        f'split {split!r}: {len(entries)} of {records} records so far cannot be used, more than '
        f'{MAX_SHARE:.0%}; repair or unpack the files again:\n  {shown}'
    )


def _write(path: Path, entries: Sequence[Entry]) -> None:
    temporary = path.with_name(f'{path.name}.new')
    rows = [dataclasses.asdict(one) for one in entries]
    temporary.write_text(json.dumps(rows, indent=2) + '\n', encoding='utf-8')
    temporary.replace(path)


def _read(path: Path) -> list[Entry]:
    return [Entry(**row) for row in json.loads(path.read_text('utf-8'))]
