"""Runs an artefact on images in a process of its own: what the gate starts."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from handpose_jax import runtimes

_CODE = 'import sys; from handpose_jax.export import fresh_run; fresh_run.main(sys.argv[1:])'


def run(
    backend: str, artefact: Path, images: UInt8[np.ndarray, 'b s s 3'], folder: Path
) -> runtimes.Arrays:
    """Runs an artefact in a fresh process.

    Args:
        backend: see runtimes.load.
        artefact: file or folder.
        images: crops.
        folder: receives what the processes exchange.

    Returns:
        Heatmaps and keypoints.

    Raises:
        ValueError: if the process fails, with the end of what it said.
    """
    given, result = folder / 'images.npy', folder / f'{artefact.name}.npz'
    np.save(given, images)
    done = subprocess.run(
        [sys.executable, '-c', _CODE, backend, str(artefact), str(given), str(result)],
        # The limits are those of float32; GPUs multiply with fewer bits.
        env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise ValueError(
            f'{artefact.name}: does not run in {backend} (exit code {done.returncode}):\n'
            f'{done.stderr[-2000:]}'
        )
    with np.load(result) as arrays:
        return arrays['heatmaps'], arrays['keypoints']


def main(arguments: Sequence[str]) -> None:
    """The other process: backend, artefact, images.npy, result.npz."""
    backend, artefact, given, result = arguments
    maps, keypoints = runtimes.load(artefact, backend).run(np.load(given))
    np.savez(result, heatmaps=maps, keypoints=keypoints)
