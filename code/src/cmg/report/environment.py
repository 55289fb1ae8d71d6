"""Machine information for bug reports: versions, processor, GPUs, and commit of the program."""

import locale
import os
import platform
from importlib.metadata import PackageNotFoundError, requires, version

import torch

from cmg.results.provenance import source_commit


def environment():
    """Lines of "name value", as text, without paths or host names."""
    names = ["cmg"]
    try:
        names += sorted({requirement.split(">")[0].split(";")[0].strip() for requirement in requires("cmg")})
    except PackageNotFoundError:                    # the scripts also run without installation
        pass
    lines = {"commit": source_commit(), "python": platform.python_version(), "system": platform.platform(),
             "processor": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads of torch, "
                          f"{torch.backends.cpu.get_cpu_capability()}",
             "encoding": locale.getpreferredencoding()}
    for name in names:
        try:
            lines[name] = version(name)
        except PackageNotFoundError:
            lines[name] = "not installed"
    lines["torch"] = torch.__version__              # includes the build, such as +cu130, which the metadata may omit
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for number in range(count):
        properties = torch.cuda.get_device_properties(number)
        lines[f"GPU {number}"] = f"{properties.name}, {properties.total_memory / 2 ** 30:.0f} GiB"
    if not count:
        lines["GPU"] = "none"
    width = max(map(len, lines))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in lines.items())
