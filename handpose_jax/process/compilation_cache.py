"""Keeps compiled programs between runs, so that a second run starts in seconds."""

import os
import stat
from pathlib import Path

import jax

from handpose_jax.process import user_cache

_LEAST_SECONDS = 1.0


def keep_compiled_programs() -> Path | None:
    """Turns JAX's persistent compilation cache on, in a private folder of the user's cache.

    What lies there is executed, so nobody else may write to it: the folder is made with mode 0700,
    and one that belongs to somebody else, or is open to others, is not used. A user who has set
    JAX_COMPILATION_CACHE_DIR has chosen already.

    Returns:
        The folder, or None where none is used.
    """
    if os.environ.get('JAX_COMPILATION_CACHE_DIR'):
        return None
    try:
        folder = user_cache.folder() / 'compiled'
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
    except (OSError, ValueError):
        # A home that is read-only, or none at all, is no reason not to train.
        return None
    ours = not hasattr(os, 'getuid') or status.st_uid == os.getuid()
    if not (stat.S_ISDIR(status.st_mode) and ours and not status.st_mode & 0o077):
        return None
    jax.config.update('jax_compilation_cache_dir', str(folder))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', _LEAST_SECONDS)
    return folder
