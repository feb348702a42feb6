"""The process that Hydra borrows, given back as it was."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from flowcli.launch.frozen import forget_frozen


@contextmanager
def borrowed_process() -> Iterator[None]:
    """Give back what Hydra takes of the process: argv, environment, root logging, its own singletons."""
    from hydra.core.config_store import ConfigStore
    from hydra.core.global_hydra import GlobalHydra

    root, current = logging.getLogger(), GlobalHydra.instance()
    argv, full_error, handlers, level = sys.argv, os.environ.get("HYDRA_FULL_ERROR"), root.handlers[:], root.level
    outer, loud = current.hydra, logging.raiseExceptions
    os.environ["HYDRA_FULL_ERROR"] = "1"  # makes Hydra raise instead of printing and leaving
    logging.raiseExceptions = False  # a log that cannot be written must not print tracebacks beside our one line
    current.clear()
    try:
        yield
    finally:
        for handler in [handler for handler in root.handlers if handler not in handlers]:
            with suppress(OSError):  # a full disk
                handler.close()
        root.handlers[:], root.level, sys.argv, current.hydra = handlers, level, argv, outer
        logging.raiseExceptions = loud
        forget_frozen(ConfigStore.instance().repo)
        if full_error is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = full_error
