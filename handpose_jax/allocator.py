"""Tells glibc's allocator to keep the memory that XLA frees."""

import ctypes
import platform

# Source: malloc.h of glibc, the parameters of mallopt(3).
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_LARGEST = 2**31 - 1
_TOP_PAD = 64 * 2**20


def keep_freed_memory() -> bool:
    """Lets the heap grow and never shrink, and serves large blocks from it.

    Every step of XLA on the CPU allocates and frees its activations. glibc gives blocks of more
    than 32 MiB back to the system at once, and the next step waits while the system clears them
    again, page by page. How much this saves has not been measured apart. The process keeps its
    largest size for good in exchange.

    Call it before the first large allocation; calling it again changes nothing.

    Returns:
        Whether it was done: False where the C library is another than glibc.
    """
    if platform.libc_ver()[0] != 'glibc':
        return False
    library = ctypes.CDLL(None)
    done = [
        library.mallopt(parameter, value)
        for parameter, value in (
            (_M_MMAP_MAX, 0),
            (_M_TRIM_THRESHOLD, _LARGEST),
            (_M_TOP_PAD, _TOP_PAD),
        )
    ]
    return all(done)
