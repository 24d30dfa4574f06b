"""Opens a lab for asyncio on an address."""

from collections.abc import Callable
from functools import wraps
from inspect import getdoc, signature
from typing import ParamSpec

from actstore._async.lab import AsyncLab
from actstore._connect import connect
from actstore._lab import Lab

P = ParamSpec("P")


def _for_asyncio(connect_lab: Callable[P, Lab]) -> Callable[P, AsyncLab]:
    @wraps(connect_lab)
    def connect_async(*arguments: P.args, **options: P.kwargs) -> AsyncLab:
        return AsyncLab(connect_lab(*arguments, **options))

    connect_async.__name__ = connect_async.__qualname__ = "connect_async"
    connect_async.__module__ = __name__
    connect_async.__signature__ = signature(connect_lab).replace(return_annotation=AsyncLab)  # type: ignore[attr-defined]
    connect_async.__doc__ = f"Connect for asyncio, with the arguments of `connect`.\n\n{getdoc(connect_lab)}"
    return connect_async


connect_async = _for_asyncio(connect)
