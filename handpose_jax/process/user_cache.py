"""The user's cache: where data sets and compiled programs are kept when no folder is named."""

import os
from pathlib import Path


def folder() -> Path:
    """The package's folder in the user's cache; it may not be there yet.

    Raises:
        ValueError: where the user has no home, as in a container that runs under a number.
    """
    try:
        cache = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache')
    except RuntimeError:
        raise ValueError(
            'this user has no home folder to keep a cache in: set XDG_CACHE_HOME to a folder that '
            'can be written, or name the folder of the data set'
        ) from None
    return cache / 'handpose_jax'
