"""Digests that are kept beside what they are of, so that damage is found when it is read."""

import hashlib
import json
from pathlib import Path
from typing import Any


def digest_of_json(value: Any) -> str:
    """A SHA-256 of JSON values, however they are spaced."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def digest_of_files(path: Path) -> tuple[int, str]:
    """Bytes and SHA-256 of a file, or of all files of a folder with their names.

    Hidden files of a folder do not count: file managers leave some.

    Raises:
        OSError: if it cannot be read.
    """
    digest, size = hashlib.sha256(), 0
    inside = path.is_dir()
    files = sorted(p for p in path.rglob('*') if p.is_file()) if inside else [path]
    for file in files:
        if inside:
            if file.name.startswith('.'):
                continue
            digest.update(file.relative_to(path).as_posix().encode())
        content = file.read_bytes()
        digest.update(content)
        size += len(content)
    return size, digest.hexdigest()
