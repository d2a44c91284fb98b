"""``@isolated_session``: a function that opens its own session whenever it is called."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, overload

from sa_isolated_tasks._factory import SessionFactory
from sa_isolated_tasks._function import (
    Declaration,
    Isolated,
    IsolatedClassMethod,
    IsolatedFunction,
    IsolatedMethod,
    as_isolated,
    isolated_under,
)
from sa_isolated_tasks._signature import Kind, check_body, identifier_of, is_a, name_of, read_shape
from sa_isolated_tasks._types import Factory, SessionT
from sa_isolated_tasks._watch import watch_sessions
from sa_isolated_tasks.exceptions import DeclarationError

__all__ = ["IsolatedClassMethod", "IsolatedFunction", "IsolatedMethod", "as_isolated", "isolated_session"]

P = ParamSpec("P")
R = TypeVar("R")
OwnerT = TypeVar("OwnerT")


class _Decorator(Protocol):
    # A type checker shows a decorator the function under a classmethod, with `type[...]` first, in either order.
    @overload
    def __call__(  # type: ignore[overload-overlap]  # what has Any in the place of the session fits all three
        self, fn: Callable[Concatenate[SessionT, P], Coroutine[Any, Any, R]], /
    ) -> IsolatedFunction[P, R]: ...
    @overload
    def __call__(
        self, fn: Callable[Concatenate[type[OwnerT], SessionT, P], Coroutine[Any, Any, R]], /
    ) -> IsolatedClassMethod[P, R]: ...
    @overload
    def __call__(
        self, fn: Callable[Concatenate[OwnerT, SessionT, P], Coroutine[Any, Any, R]], /
    ) -> IsolatedMethod[OwnerT, P, R]: ...


class _MethodDecorator(Protocol):
    @overload
    def __call__(
        self, fn: Callable[Concatenate[type[OwnerT], SessionT, P], Coroutine[Any, Any, R]], /
    ) -> IsolatedClassMethod[P, R]: ...
    @overload
    def __call__(
        self, fn: Callable[Concatenate[OwnerT, SessionT, P], Coroutine[Any, Any, R]], /
    ) -> IsolatedMethod[OwnerT, P, R]: ...


@overload
def isolated_session(factory: Factory, /) -> _Decorator: ...
@overload
def isolated_session(*, attribute: str) -> _MethodDecorator: ...
def isolated_session(factory: Any = None, /, *, attribute: str | None = None) -> Any:
    """
    Decorates an ``async def`` so that every call runs in a session of its own.

    The function's first parameter (after ``self`` or ``cls``) is the session; callers do not pass it. A call commits
    when the body returns, rolls back when it raises or is cancelled, and always closes. Nothing is begun in advance,
    so the body may commit as often as it likes, and one that never touches the database costs no connection.

    Args:
        factory: called with no arguments for each unit. Gives an ``AsyncSession``, which the unit commits and closes,
            or an async context manager of one, which the unit only enters and exits.
        attribute: for methods, in place of *factory*: the name of the attribute of ``self`` that is the factory.

    Returns:
        A decorator. What it makes is an `IsolatedFunction`, an `IsolatedMethod` or an `IsolatedClassMethod`.

    Raises:
        DeclarationError: the factory or the function cannot be used; at decoration.

    .. versionadded:: 0.1.0
    """
    if (factory is None) == (attribute is None):
        raise DeclarationError(
            "isolated_session() takes a factory or attribute=, and was given "
            + ("neither" if factory is None else "both"),
            why="each call needs to know where its session comes from",
            cure="@isolated_session(Session)",
        )
    _refuse_missing_factory(factory)
    watch_sessions()
    source = SessionFactory(factory) if attribute is None else _checked_name(attribute)

    def decorate(fn: Any) -> Any:
        return _decorate(fn, source)

    return decorate


def _refuse_missing_factory(factory: Any) -> None:
    """An ``async def`` stands in the place of the factory; one without parameters is refused as a factory, later."""
    inner = _inner_of(factory)
    if isinstance(inner, Isolated):
        raise DeclarationError(
            f"isolated_session was given {name_of(inner)}, which is an isolated function, as its factory",
            why="a factory makes sessions",
            cure="@isolated_session(Session)",
        )
    if inspect.iscoroutinefunction(inner) and inspect.signature(inner).parameters:
        raise DeclarationError(
            f"isolated_session was put on {name_of(inner)} without a factory",
            why="it is called with the factory first; what it returns is the decorator",
            cure="@isolated_session(Session)",
        )


def _checked_name(attribute: Any) -> str:
    if isinstance(attribute, str) and attribute.isidentifier():
        return attribute
    raise DeclarationError(
        f"isolated_session() was given attribute={attribute!r}",
        why="it is the name of the attribute that holds the session factory",
        cure='@isolated_session(attribute="Session")',
    )


def _inner_of(fn: Any) -> Any:
    return fn.__func__ if is_a(fn, classmethod, staticmethod) else fn


def _decorate(fn: Any, source: SessionFactory | str) -> Isolated:
    inner = _inner_of(fn)
    _refuse_body(inner)
    shape = read_shape(inner)
    if is_a(fn, staticmethod):
        shape = shape._replace(guessed=False)
    declaration = Declaration(inner, shape, source)
    if is_a(fn, classmethod):
        _expect(declaration, Kind.METHOD, "cls")
        return _class_method(declaration)
    if is_a(source, str):
        _expect(declaration, Kind.METHOD, "self")
    elif is_a(fn, staticmethod):
        _expect(declaration, Kind.FUNCTION, "")
    return _function(declaration) if shape.kind is Kind.FUNCTION else _method(declaration)


# Exact types would be no use here: `_Decorator` says them.
_class_method: Callable[[Declaration], Isolated] = IsolatedClassMethod
_method: Callable[[Declaration], Isolated] = IsolatedMethod
_function: Callable[[Declaration], Isolated] = IsolatedFunction


def _refuse_body(fn: Any) -> None:
    isolated = isolated_under(fn)
    if isolated is not None:
        raise DeclarationError(
            f"{name_of(isolated)} is isolated already",
            why="it would be given a session, and takes none",
            cure=f"{isolated.__name__}.using(Session)",
        )
    check_body(fn)
    if not inspect.isfunction(fn):
        raise DeclarationError(
            f"{name_of(fn)} is an object of {type(fn).__name__}",
            why="isolated_session decorates functions: it reads their signature and takes their name",
            cure="scope.spawn(fn, ...)",
        )


def _expect(declaration: Declaration, kind: Kind, first: str) -> None:
    if declaration.shape.kind is not kind:
        parameters = ", ".join(filter(None, (first, "session: AsyncSession", "...")))
        raise DeclarationError(
            f"{name_of(declaration.fn)} has its session in the wrong place",
            why="the session is the first parameter, after self or cls where there is one",
            cure=f"async def {identifier_of(declaration.fn)}({parameters}): ...",
        )
