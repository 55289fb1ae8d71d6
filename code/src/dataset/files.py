"""Write a file so that nothing that was there is ever lost. Valid Python 3.7, standard library alone."""

import os

from errors import InputError


def replace_file(path, data):
    """Put `data` (bytes) at `path`: written beside it, flushed to disk, then renamed over it.

    HDF5 files are built in memory and come here as bytes: on a full disk h5py complains without end, this in one line.

    Raises:
        InputError: the place cannot be written; what was there stays.
    """
    path = str(path)
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); a writable place with {len(data):,} bytes "
                         "free is expected; make room, or choose another place (--out, --path)") from None
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)
