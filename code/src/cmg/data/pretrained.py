"""Models and processors of transformers, from folders and repositories of others."""

import os
from contextlib import suppress

from cmg.utils.errors import InputError
from cmg.utils.files import require_regular

HUB_SECONDS = 10                # that the hub may take to say whether it has a model


def _reach(name):
    """Options for a model of the hub, which is asked once: transformers would try for a minute where there is no
    network.

    Raises:
        OSError: the hub does not have it, or cannot be asked, and it was not downloaded before.
    """
    from huggingface_hub import HfApi, try_to_load_from_cache  # here, because few programs need it
    try:
        HfApi().model_info(name, timeout=HUB_SECONDS)
    except Exception as error:      # noqa: BLE001   of several libraries: no network, no such name, no permission
        with suppress(ValueError):                      # not the form of a name
            if isinstance(try_to_load_from_cache(name, "config.json"), str):
                return {"local_files_only": True}
        reason = (str(error).strip().splitlines() or [""])[0][:120]
        raise OSError(f"no such folder, and the hub says {type(error).__name__}: {reason}") from None
    return {}


def from_pretrained(kind, name, **options):
    """`kind.from_pretrained(name, **options)`, without running code of the folder or repository, and without asking.

    Args:
        kind: class of transformers.
        name: folder, or name on the hub.

    Raises:
        InputError: the model needs Python code of its own, or its folder holds a pipe or device.
        OSError: neither a folder nor on the hub.
        Exception: whatever else transformers raises of a folder that is no such model.
    """
    from transformers.utils import logging  # here, because few programs need it
    name = str(name)
    if os.path.isdir(name):
        for entry in os.scandir(name):
            if not entry.is_dir():
                try:
                    require_regular(entry.path)
                except OSError as error:
                    raise InputError(f"{entry.path}: cannot be read ({error.strerror}); a folder of plain files is "
                                     "expected; do not use this folder") from None
    else:
        options |= _reach(name)
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()               # what is wrong is said by an exception
    try:
        return kind.from_pretrained(name, trust_remote_code=False, **options)
    except ValueError as error:
        if "custom code" not in str(error) and "trust_remote_code" not in str(error):
            raise
        raise InputError(f"{name}: needs Python code that comes with it, which is never run; a model whose code is "
                         "part of transformers is expected; take another model") from None
    finally:
        logging.set_verbosity(verbosity)
