"""Freed memory stays with the process, and only when asked for."""

import mmap
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource
import sys
import threading
from handpose_jax.process import allocator
if sys.argv[1] == 'keep':
    assert allocator.keep_freed_memory()
    assert allocator.keep_freed_memory()

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def work():
    # As XLA's steps do it: many blocks at once, then none.
    held = [bytearray(b'1') * (30 * 2**20) for _ in range(10)]

def rounds(count):
    before = faults()
    for _ in range(count):
        # In a thread too: its heap is another than the main one's, unless told otherwise.
        worker = threading.Thread(target=work)
        worker.start()
        worker.join()
        work()
    return (faults() - before) / count

rounds(1)
print(rounds(3))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='only glibc can be told')
def test_freed_memory_is_kept():
    """Pages that are met again are not cleared again: there are no faults after the first round."""
    faults = {}
    for how in ('keep', 'leave'):
        out = subprocess.run(
            [sys.executable, '-c', PROGRAM, how], check=True, capture_output=True, text=True
        ).stdout
        faults[how] = float(out)
    pages = 2 * 10 * 30 * 2**20 / mmap.PAGESIZE
    assert faults['leave'] > 0.4 * pages
    assert faults['keep'] < 0.01 * pages


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='only glibc can be told')
def test_a_limit_on_addresses_is_no_error():
    program = (
        'import resource\n'
        'resource.setrlimit(resource.RLIMIT_DATA, (10**9, 10**9))\n'
        'from handpose_jax.process import allocator\n'
        'assert allocator.keep_freed_memory()\n'
        'assert len(bytearray(10**8)) == 10**8\n'
    )
    subprocess.run([sys.executable, '-c', program], check=True)
