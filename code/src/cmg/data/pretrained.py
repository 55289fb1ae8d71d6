"""Load transformers models and processors from folders and from the hub, without trusting them."""

import os
from contextlib import suppress

from cmg.utils.errors import InputError
from cmg.utils.files import require_regular

HUB_SECONDS = 10                # timeout for the request whether the hub has a model


def _reach(name):
    """Options for a model on the hub after a single request; without a network, transformers would retry for a minute.

    Raises:
        OSError: the hub does not have the model or is unreachable, and it was not downloaded before.
    """
    from huggingface_hub import HfApi, try_to_load_from_cache  # here, because few programs need it
    try:
        HfApi().model_info(name, timeout=HUB_SECONDS)
    except Exception as error:      # noqa: BLE001   from several libraries: no network, no such name, no permission
        with suppress(ValueError):                      # not a valid name
            if isinstance(try_to_load_from_cache(name, "config.json"), str):
                return {"local_files_only": True}
        reason = (str(error).strip().splitlines() or [""])[0][:120]
        raise OSError(f"no such folder, and the hub request failed with {type(error).__name__}: {reason}") from None
    return {}


def from_pretrained(kind, name, **options):
    """`kind.from_pretrained(name, **options)`, without running code from the folder or repository and without prompts.

    Args:
        kind: class of transformers.
        name: folder, or name on the hub.

    Raises:
        InputError: the model needs its own Python code, or its folder contains a pipe or device.
        OSError: neither a folder nor a model on the hub.
        Exception: anything else that transformers raises for a folder without such a model.
    """
    from transformers.utils import logging  # here, because few programs need it
    name = str(name)
    if os.path.isdir(name):
        for entry in os.scandir(name):
            if not entry.is_dir():
                try:
                    require_regular(entry.path)
                except OSError as error:
                    raise InputError(f"{entry.path}: cannot be read ({error.strerror}); expected a folder of plain "
                                     "files; do not use this folder") from None
    else:
        options |= _reach(name)
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()               # problems are reported as exceptions
    try:
        return kind.from_pretrained(name, trust_remote_code=False, **options)
    except ValueError as error:
        if "custom code" not in str(error) and "trust_remote_code" not in str(error):
            raise
        raise InputError(f"{name}: needs its own Python code, which is never run; expected a model whose code is part "
                         "of transformers; choose another model") from None
    finally:
        logging.set_verbosity(verbosity)
