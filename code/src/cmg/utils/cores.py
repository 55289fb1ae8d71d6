"""How many CPU cores this process may use.

Standard library alone.
"""

import os


def usable_cores():
    """Cores that the system lets this process run on; all of the machine's where it does not say."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
