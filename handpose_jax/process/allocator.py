"""Tells glibc's allocator to keep the memory that XLA frees, in huge pages."""

import ctypes
import mmap
import os
import platform

# Source: malloc.h of glibc, the parameters of mallopt(3).
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8
_NEVER = -1
_TOP_PAD = 64 * 2**20

_HUGE_PAGE = 2 * 2**20

_done: bool | None = None


def keep_freed_memory() -> bool:
    """Serves all blocks from one heap that never shrinks, most of it in huge pages.

    Every step of XLA on the CPU allocates and frees its activations, hundreds of megabytes. By
    default glibc gives large blocks, and the emptied heaps of threads, back to the system; the next
    step waits while the system clears the same memory again, page by page: 765,000 pages
    and a fifth of the time at 224 px and batch 32, none with this
    (docs/notes/training_speed.md). The process keeps its largest size for good in exchange.

    Call it before the first large allocation; calling it again changes nothing. Huge pages are
    left out where the system does not give them.

    Returns:
        Whether it was done: False where the C library is another than glibc.
    """
    global _done
    if _done is None:
        _done = platform.libc_ver()[0] == 'glibc' and _configure(ctypes.CDLL(None))
    return _done


def _configure(library: ctypes.CDLL) -> bool:
    done = [
        library.mallopt(parameter, value)
        for parameter, value in (
            (_M_MMAP_MAX, 0),
            (_M_TRIM_THRESHOLD, _NEVER),
            (_M_TOP_PAD, _TOP_PAD),
            # The heaps of threads are unmapped whenever they are empty, whatever the threshold.
            (_M_ARENA_MAX, 1),
        )
    ]
    _reserve(library)
    return all(done)


def _reserve(library: ctypes.CDLL) -> None:
    """Stretches the heap by addresses that huge pages will fill; they cost nothing until used."""
    if not hasattr(mmap, 'MADV_HUGEPAGE'):
        return
    library.malloc.restype = ctypes.c_void_p
    library.malloc.argtypes = [ctypes.c_size_t]
    library.free.argtypes = [ctypes.c_void_p]
    library.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    size = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') // 2
    block = library.malloc(size)
    if not block:
        # A limit on addresses (ulimit -v) or strict overcommit: the heap grows as it needs to.
        return
    first = -(-block // _HUGE_PAGE) * _HUGE_PAGE
    last = (block + size) // _HUGE_PAGE * _HUGE_PAGE
    library.madvise(first, last - first, mmap.MADV_HUGEPAGE)
    library.free(block)
