"""Write a file of a dataset; what was there is never lost. Valid Python 3.7, standard library alone."""

import os

from errors import InputError
from writing import whole_file


def replace_file(path, data):
    """Put `data` (bytes) at `path`, whole or not at all; its folder is made.

    HDF5 files are built in memory and come here as bytes: on a full disk h5py complains without end, this in one line.

    Raises:
        InputError: the place cannot be written; what was there stays.
    """
    try:
        os.makedirs(os.path.dirname(str(path)) or ".", exist_ok=True)
        with whole_file(path) as file:
            file.write(data)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); a writable place with {len(data):,} bytes "
                         "free is expected; make room, or choose another place (--out, --path)") from None
