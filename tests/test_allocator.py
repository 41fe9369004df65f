"""Freed memory stays with the process, and only when asked for."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import sys
from handpose_jax import allocator
if sys.argv[1] == 'keep':
    assert allocator.keep_freed_memory()
    assert allocator.keep_freed_memory()
def resident():
    with open('/proc/self/status') as file:
        return next(int(line.split()[1]) for line in file if line.startswith('VmRSS')) / 1024
before = resident()
block = bytearray(200 * 2**20)
while_held = resident()
del block
print(while_held - before, resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='only glibc can be told')
@pytest.mark.parametrize(('how', 'kept'), [('keep', True), ('leave', False)])
def test_freed_memory_is_kept(how, kept):
    out = subprocess.run(
        [sys.executable, '-c', PROGRAM, how], check=True, capture_output=True, text=True
    ).stdout
    held, after = map(float, out.split())
    assert held > 190
    assert (after > 190) == kept
