"""Libraries that only some calls need: they are imported when one does."""

import importlib
from typing import Any

from actstore._errors import MISSING_LIBRARY, MissingLibrary


def library(name: str, install: str) -> Any:
    """The module `name`; where it is not installed, MissingLibrary says that `pip install {install}` brings it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingLibrary(
            f"this needs the library {name.split('.')[0]}, which is not installed here",
            reason=MISSING_LIBRARY,
            next_step=f"pip install {install}",
        ) from error
