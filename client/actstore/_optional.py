"""Libraries that only some calls need: they are imported when one does."""

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from actstore._errors import MISSING_LIBRARY, MissingLibrary


def library(name: str, install: str) -> Any:
    """The module `name`; if it is not installed, MissingLibrary says that `pip install {install}` brings it."""
    with needs(f"pip install {install}"):
        return importlib.import_module(name)


@contextmanager
def needs(next_step: str) -> Iterator[None]:
    """Raises MissingLibrary with what to do, if a library that the block imports is not installed."""
    try:
        yield
    except MissingLibrary:
        raise
    except ImportError as error:
        missing = (error.name or str(error)).partition(".")[0]
        message = f"this needs the library {missing}, which is not installed here"
        raise MissingLibrary(message, reason=MISSING_LIBRARY, next_step=next_step) from error


def install_extra(extra: str) -> str:
    """Says how one of actstore's own extras is installed."""
    return f"install actstore with its extra {extra}: pip install '.[{extra}]' in a clone, or the same of its wheel"


def check_installed(library: str, extra: str, spec: Callable[[str], object] = find_spec) -> None:
    """Raises MissingLibrary if a library of one of actstore's own extras is not installed."""
    if spec(library) is None:
        message = f"this needs the library {library}, which is not installed here"
        raise MissingLibrary(message, reason=MISSING_LIBRARY, next_step=install_extra(extra))
