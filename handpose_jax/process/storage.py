"""Where a run's files lie: folders of this machine, or of a bucket (gs://, s3://)."""

import os
from pathlib import Path
from typing import Any


def is_bucket(path: str | os.PathLike[str]) -> bool:
    """Whether a path names a bucket: it has a scheme."""
    return '://' in os.fspath(path)


def folder(path: str | os.PathLike[str]) -> Any:
    """The path as pathlib.Path, or as epath.Path in a bucket; both have the same methods.

    A leading ~ is the home directory, also where no shell has replaced it (--workdir=~/run).

    Raises:
        ValueError: for a ~ where there is no home.
    """
    if not is_bucket(path):
        try:
            return Path(path).expanduser()
        except RuntimeError:
            raise ValueError(f'{path}: there is no such home folder; write the path out') from None
    # Imported here: whoever predicts with an exported file needs no buckets.
    from etils import epath

    return epath.Path(path)


class BucketText:
    """A text file in a bucket, where nothing can be appended: flush writes the whole anew."""

    def __init__(self, path: Any) -> None:
        """Goes on after what the file holds.

        Args:
            path: from folder().
        """
        self._path = path
        self._text = path.read_text() if path.exists() else ''

    def write(self, text: str) -> None:
        """Appends; the bucket does not have it yet."""
        self._text += text

    def flush(self) -> None:
        """Writes the file."""
        self._path.write_text(self._text)

    def close(self) -> None:
        """Does nothing: flush has written all."""
