"""Makes an awaited method of a blocking one, so that no signature and no docstring is written twice."""

import inspect
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from functools import partial, wraps
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, overload

from actstore._async.questions import Questions, in_this_loop

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")
T = TypeVar("T")


class Twin(Generic[S]):
    """Asks the questions of an object that blocks, without blocking the event loop."""

    def __init__(self, blocking: S, questions: Questions) -> None:
        self._blocking = blocking
        self._questions = questions

    def __repr__(self) -> str:
        return f"async {self._blocking!r}"


class Shown(Generic[R]):
    """A property or an attribute of the blocking object, read as it is now: it asks nothing."""

    def __init__(self, of: Callable[[Any], R] | None = None) -> None:
        """`of` is the property of the blocking class; None: an attribute that only its instances have."""
        self.__doc__ = inspect.getdoc(of)
        self._name = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, twin: None, owner: type) -> "Shown[R]": ...

    @overload
    def __get__(self, twin: Twin[Any], owner: type) -> R: ...

    def __get__(self, twin: Twin[Any] | None, owner: type) -> Any:
        return self if twin is None else getattr(twin._blocking, self._name)


@overload
def awaited(
    method: Callable[Concatenate[Any, P], R], *, lasting: bool = False
) -> Callable[Concatenate[Twin[Any], P], Coroutine[Any, Any, R]]: ...


@overload
def awaited(
    method: Callable[Concatenate[Any, P], R], made: Callable[[R, Questions], T], *, lasting: bool = False
) -> Callable[Concatenate[Twin[Any], P], Coroutine[Any, Any, T]]: ...


def awaited(method: Callable[..., Any], made: Callable[..., Any] | None = None, *, lasting: bool = False) -> Any:
    """Makes the coroutine method of a method that asks.

    Args:
        method: The method of the blocking class.
        made: Makes the twin of what the method returns. None: what it returns asks nothing, and is given as it is.
        lasting: Whether it waits for a capture or a sweep to end.
    """

    @wraps(method)
    async def ask(self: Twin[Any], /, *positional: Any, **named: Any) -> Any:
        call = partial(method, self._blocking, *positional, **in_this_loop(named))
        found = await self._questions.ask(call, lasting)
        return found if made is None else made(found, self._questions)

    return _returning(ask, made)


def streamed(
    method: Callable[Concatenate[Any, P], Iterator[R]],
) -> Callable[Concatenate[Twin[Any], P], AsyncIterator[R]]:
    """Makes the asynchronous generator of a method that yields news."""

    @wraps(method)
    async def listen(self: Twin[Any], /, *positional: P.args, **named: P.kwargs) -> AsyncIterator[R]:
        async for item in self._questions.each(partial(method, self._blocking, *positional, **named)):
            yield item

    return listen


@overload
def at_once(method: Callable[Concatenate[Any, P], R]) -> Callable[Concatenate[Twin[Any], P], R]: ...


@overload
def at_once(
    method: Callable[Concatenate[Any, P], R], made: Callable[[R, Questions], T]
) -> Callable[Concatenate[Twin[Any], P], T]: ...


def at_once(method: Callable[..., Any], made: Callable[..., Any] | None = None) -> Any:
    """Makes the twin of a method that asks nobody: it is called without `await`."""

    @wraps(method)
    def call(self: Twin[Any], /, *positional: Any, **named: Any) -> Any:
        found = method(self._blocking, *positional, **named)
        return found if made is None else made(found, self._questions)

    return _returning(call, made)


def _returning(twin: Any, made: Any) -> Any:
    """Tells in the signature what a twin returns, where that is a twin itself."""
    if isinstance(made, type):
        twin.__signature__ = inspect.signature(twin).replace(return_annotation=made)
    return twin
