"""A griffe extension: defaults of arguments that a TypedDict names, which only the running call knows."""

import inspect
import pydoc
from typing import Any

import griffe


class Defaults(griffe.Extension):
    """Puts defaults where griffe, which only reads the code, has found an optional key of a TypedDict."""

    def on_function(self, *, func: griffe.Function, **_: Any) -> None:
        """Looks a call up and takes its defaults; griffe calls this for each function that it reads."""
        if any(str(parameter.default) == "..." for parameter in func.parameters):
            self._take_defaults(func)

    def _take_defaults(self, func: griffe.Function) -> None:
        call = pydoc.locate(func.path)
        if not callable(call):  # the constructor that griffe makes up for a TypedDict
            return
        for name, parameter in inspect.signature(call).parameters.items():
            if name in func.parameters and parameter.default is not inspect.Parameter.empty:
                func.parameters[name].default = repr(parameter.default)
