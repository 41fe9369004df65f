"""The folder of an export: made beside the old one, and swapped for it when it is ready.

    W/export              the export
    W/export_unfinished   the next one while it is made, and the lock of the process that makes it

A kill at any moment leaves the old export or the new one; what else it leaves is cleared by the
next export.
"""

import contextlib
import ctypes
import os
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

from handpose_jax.process import lock

NAME = 'export'
"""In the workdir."""

SUMMARY_FILE = 'export.json'

_UNFINISHED = 'export_unfinished'
_NEW, _OLD = 'new', 'old'

# Of Linux: names relative to the current folder, and swap two of them.
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


@contextlib.contextmanager
def unfinished(workdir: Path) -> Iterator[Path]:
    """Gives an empty folder in the workdir, and keeps other exports out while the block runs.

    It is in the workdir because one elsewhere may be on another disk, and could not be renamed. A
    training may go on in the workdir meanwhile.

    Args:
        workdir: of the run.

    Raises:
        ValueError: if another process exports this workdir, or it cannot be written.
    """
    place = workdir / _UNFINISHED
    try:
        with lock.hold(place):
            try:
                _clear(workdir)
                (place / _NEW).mkdir()
                yield place / _NEW
            finally:
                _clear(workdir)
    finally:
        # It is not empty if it belongs to another process.
        with contextlib.suppress(OSError):
            place.rmdir()


def check(target: Path, known: Collection[str]) -> None:
    """Looks whether an export may be replaced by another.

    Args:
        target: W/export, which need not be there.
        known: what exports write, names in the folder.

    Raises:
        ValueError: if something else is there.
    """
    if not target.exists():
        return
    if not (target / SUMMARY_FILE).exists():
        raise ValueError(
            f'{target}: is there, but was not written by an export (no {SUMMARY_FILE}); move it '
            'away'
        )
    # File managers leave hidden files, which nobody misses.
    names = {path.name for path in target.iterdir() if not path.name.startswith('.')}
    if foreign := sorted(names - {SUMMARY_FILE, *known}):
        raise ValueError(
            f'{target / foreign[0]}: was not written by an export, so it is not replaced; move it '
            'away'
        )


def swap_in(new: Path, workdir: Path) -> None:
    """Makes a complete folder the workdir's export; the old one is cleared with what is unfinished.

    Args:
        new: from unfinished.
        workdir: of the run.

    Raises:
        OSError: if that cannot be done; the old export is there then.
    """
    target = workdir / NAME
    if not target.exists():
        new.rename(target)
    elif not _exchange(new, target):
        # Between the two a kill leaves the old one here, and the next export puts it back.
        target.rename(new.with_name(_OLD))
        new.rename(target)


def _clear(workdir: Path) -> None:
    place, target = workdir / _UNFINISHED, workdir / NAME
    if (place / _OLD).exists() and not target.exists():
        (place / _OLD).rename(target)
    # Versions before 0.2 made a new one each time.
    others = [path for path in workdir.iterdir() if path.name.startswith(f'{_UNFINISHED}_')]
    for path in (*place.iterdir(), *others):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Swaps the names of two folders in one step, where the system and its disk can."""
    try:
        rename = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    names = os.fsencode(one), os.fsencode(other)
    return rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0
