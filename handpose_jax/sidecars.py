"""The JSON beside each exported file, NAME.json beside NAME: what it is, and that it is whole.

It holds the bytes and the SHA-256 of the file, and a checksum of its own content. Runtimes open
most damaged files without a word, and answer from other weights.
"""

import json
from pathlib import Path
from typing import Any

from handpose_jax.process.digests import digest_of_files, digest_of_json

_FORMAT = 2
"""Of those that have a checksum of their own; the ones before have neither."""

_AGAIN = 'export again or bring the file back'


def path_of(exported: Path) -> Path:
    """Where the sidecar of an exported file or folder lies."""
    return exported.with_name(f'{exported.name}.json')


def write(exported: Path, about: dict[str, Any]) -> None:
    """Writes a sidecar, over an earlier one.

    Args:
        exported: the file or folder, which is there.
        about: JSON values: what it tells beside name, bytes and checksums.
    """
    size, digest = digest_of_files(exported)
    about = {**about, 'file': exported.name, 'bytes': size, 'sha256': digest, 'format': _FORMAT}
    content = json.dumps({**about, 'checksum': digest_of_json(about)}, indent=2)
    path_of(exported).write_text(f'{content}\n', encoding='utf-8')


def read(exported: Path) -> dict[str, Any]:
    """Reads a sidecar; the file that it tells of need not be there.

    Returns:
        What write was given, and file, bytes, sha256 and format. Versions before 0.2 wrote neither
        format nor a checksum, so that what they wrote is taken as it is.

    Raises:
        ValueError: if it is not there, is none, or is not what was written.
    """
    path = path_of(exported)
    try:
        about = json.loads(path.read_bytes())
    except FileNotFoundError:
        missing = path if exported.exists() else exported
        raise ValueError(
            f'{missing}: no such file; an exported network is two files, NAME and NAME.json, '
            'written by handpose export'
        ) from None
    except (OSError, ValueError) as error:
        raise not_ours(path, error) from error
    if not isinstance(about, dict):
        raise not_ours(path, f'a {type(about).__name__}')
    told = about.pop('checksum', None)
    if (told is not None or 'format' in about) and told != digest_of_json(about):
        raise ValueError(
            f'{path}: its content does not agree with its checksum, so it is damaged or was '
            f'changed by hand; {_AGAIN}'
        )
    return about


def not_ours(path: Path, found: Any) -> ValueError:
    """The error for a sidecar in which something else is written.

    Args:
        path: of the sidecar.
        found: what there is instead.
    """
    return ValueError(
        f'{path}: expected what handpose export writes beside a network, got {found!r}; {_AGAIN}'
    )


def verify(exported: Path) -> None:
    """Compares an exported file or folder with its sidecar.

    Raises:
        ValueError: if they do not agree, or one of them is missing or cannot be read.
    """
    about = read(exported)
    path = path_of(exported)
    try:
        expected = about['bytes'], about['sha256']
    except KeyError as error:
        raise not_ours(path, error) from error
    try:
        found = digest_of_files(exported)
    except OSError as error:
        raise ValueError(f'{exported}: cannot be read ({error.strerror})') from error
    if found != expected:
        raise ValueError(f'{exported}: does not agree with {path.name} beside it; {_AGAIN}')
