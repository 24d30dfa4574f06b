"""Keywords that several calls share, spelled out where an editor or a notebook shows a call's signature."""

from collections.abc import Callable
from inspect import Parameter, signature
from typing import Any, TypeVar

Call = TypeVar("Call", bound=Callable[..., Any])


def spelled_out(options: Callable[..., Any]) -> Callable[[Call], Call]:
    """Make a call that takes `**options` show them one by one: the keywords of the function that it hands them to.

    Type checkers read the TypedDict of the options. `help`, and a notebook's tooltip and completion, read this.
    """
    more = [each for each in signature(options).parameters.values() if each.kind is Parameter.KEYWORD_ONLY]

    def spell(call: Call) -> Call:
        own = signature(call)
        told = [each for each in own.parameters.values() if each.kind is not Parameter.VAR_KEYWORD]
        others = [each for each in more if each.name not in own.parameters]
        call.__signature__ = own.replace(parameters=[*told, *others])  # type: ignore[attr-defined]
        return call

    return spell
