"""What a result was measured on: processor, device and versions; nothing that names the host."""

import importlib.metadata
import os
import pathlib
import platform
import re
from typing import Any

import jax

PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'grain', 'numpy', 'opencv-python-headless')


def describe() -> dict[str, Any]:
    """The 'machine' entry of a results file."""
    info = pathlib.Path('/proc/cpuinfo')
    names = re.findall(r'model name\s*:\s*(.+)', info.read_text()) if info.exists() else []
    device = jax.devices()[0]
    return {
        'processor': names[0] if names else platform.processor(),
        'cores': len(os.sched_getaffinity(0)),
        'device': device.platform if device.platform == 'cpu' else device.device_kind,
        'system': platform.system(),
        'python': platform.python_version(),
        'packages': {name: importlib.metadata.version(name) for name in PACKAGES},
    }
