"""Number of CPU cores that this process may use. Uses only the standard library."""

import os


def usable_cores():
    """Cores that this process may run on; all cores of the machine if the system does not tell."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
