"""Keywords that several calls share, spelled out where an editor or a notebook shows a call's signature."""

from collections.abc import Callable
from inspect import Parameter, signature
from typing import Any, TypeVar, get_args

Call = TypeVar("Call", bound=Callable[..., Any])


def spelled_out(options: Callable[..., Any]) -> Callable[[Call], Call]:
    """Make a call with `**options: Unpack[...]` show each option in its signature, as the function `options` does.

    Type checkers read the TypedDict of the options. `help`, and a notebook's tooltip and completion, read this.

    Args:
        options: The function that takes these options as keywords, with their defaults.
    """
    keywords = signature(options).parameters

    def spell(call: Call) -> Call:
        own = signature(call)
        *named, unpacked = own.parameters.values()
        assert unpacked.kind is Parameter.VAR_KEYWORD  # noqa: S101  a call without options needs no spelling out
        (taken,) = get_args(unpacked.annotation)
        spelled = [keywords[name] for name in keywords if name in taken.__annotations__]
        call.__signature__ = own.replace(parameters=[*named, *spelled])  # type: ignore[attr-defined]
        return call

    return spell
