"""Memory of long runs on CPUs."""

import ctypes

MMAP_MAX, TRIM_THRESHOLD = -4, -1           # names of mallopt(3)


def keep_freed_memory():
    """Let the C library keep freed blocks for the next step instead of handing them back to the system.

    A step frees and asks again for gigabytes of gradients and weights in bf16; every page that the system gives anew
    is cleared and mapped first, which costs a quarter of a step at published widths. Where the C library is not
    glibc nothing happens; the results are the same.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(MMAP_MAX, 0)
        mallopt(TRIM_THRESHOLD, 2 ** 31 - 1)
