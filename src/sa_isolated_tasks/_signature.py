"""Reads a function's signature once, at decoration: where its session is, and what is left without it."""

from __future__ import annotations

import enum
import functools
import inspect
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from sa_isolated_tasks.exceptions import DeclarationError

__all__ = ["Kind", "Shape", "check_body", "code_of", "name_of", "read_shape"]

_NOT_A_BODY = "only an `async def` can be run in a session of its own, and spawned"
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class Kind(enum.Enum):
    """What calls look like: with the session first, or with the object or class before it."""

    FUNCTION = 0
    METHOD = 1


@dataclass(frozen=True, slots=True)
class Shape:
    """*signature* is the one that callers see: without the session, and for methods with ``self``."""

    kind: Kind
    signature: inspect.Signature
    required: int
    """How many arguments have to be given, by position or name; of the bound function, for a method."""
    positional: int | None
    """How many may be given by position, None for any number."""


def name_of(fn: Any) -> str:
    inner = fn
    while isinstance(inner, functools.partial):
        inner = inner.func
    return str(getattr(inner, "__qualname__", type(inner).__name__)).rpartition("<locals>.")[2]


def code_of(fn: Any) -> types.CodeType:
    """The code of what is run in the end, for its file and line."""
    inner = inspect.unwrap(fn)
    while isinstance(inner, functools.partial):
        inner = inspect.unwrap(inner.func)
    inner = getattr(inner, "__func__", inner)
    code = getattr(inner, "__code__", None) or type(inner).__call__.__code__
    assert isinstance(code, types.CodeType)  # noqa: S101 -- an async function, or an object with one
    return code


def check_body(fn: Any) -> None:
    """
    Raises unless *fn* is an ``async def``, or a callable that makes coroutines.

    Raises:
        DeclarationError: with the cure for each of the usual mistakes.
    """
    if inspect.iscoroutinefunction(fn) or _has_async_call(fn):
        return
    if inspect.iscoroutine(fn):
        name = fn.__name__
        fn.close()  # it will not be awaited by anybody
        raise DeclarationError(
            f"a coroutine object was given, {name}(...), not a function",
            why="it was made with its arguments, session included, before there was a session of its own",
            cure=f"scope.spawn({name}, ...)",
        )
    name = name_of(fn)
    if inspect.isasyncgenfunction(fn):
        what, cure = "an async generator function", f"async def {name}(session, ...) -> list[...]: ..."
    elif inspect.isgeneratorfunction(fn):
        what, cure = "a generator function", f"async def {name}(session, ...): ..."
    elif callable(fn):
        what, cure = "no `async def`", f"async def {name}(session, ...): ..."
    else:
        what, cure = f"a {type(fn).__name__}, not a function", "async def work(session, ...): ..."
    raise DeclarationError(f"{name} is {what}", why=_NOT_A_BODY, cure=cure)


def _has_async_call(fn: Any) -> bool:
    if isinstance(fn, functools.partial):
        return _has_async_call(fn.func) or inspect.iscoroutinefunction(fn.func)
    return callable(fn) and not isinstance(fn, type) and inspect.iscoroutinefunction(type(fn).__call__)


def read_shape(fn: Callable[..., Any]) -> Shape:
    """
    Finds the session parameter of a function that is decorated.

    Raises:
        DeclarationError: there is no session parameter where it has to be.
    """
    signature = inspect.signature(fn)
    parameters = list(signature.parameters.values())
    hints = _hints_of(fn, parameters[:2])
    kind = _kind_of(fn, parameters, hints)
    if kind is None:
        raise DeclarationError(
            f"{name_of(fn)}{signature} has no session parameter",
            why="the first parameter (after self or cls) receives the session of the unit, by position",
            cure=f"async def {fn.__name__}(session: AsyncSession, ...): ...",
        )
    left = [parameter for index, parameter in enumerate(parameters) if index != kind.value]
    return _shape(kind, signature.replace(parameters=left), left[kind.value :])


def _shape(kind: Kind, signature: inspect.Signature, own: list[inspect.Parameter]) -> Shape:
    required = sum(
        parameter.default is parameter.empty
        for parameter in own
        if parameter.kind not in {parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD}
    )
    unbounded = any(parameter.kind is parameter.VAR_POSITIONAL for parameter in own)
    positional = None if unbounded else sum(parameter.kind in _POSITIONAL for parameter in own)
    return Shape(kind, signature, required, positional)


def _kind_of(fn: Callable[..., Any], parameters: list[inspect.Parameter], hints: list[bool | None]) -> Kind | None:
    """
    Where the session is: True, False and None in *hints* are for "is one", "is something else", "nobody says".

    An annotation decides; without one, a function in a class body whose first parameter is ``self`` or ``cls`` is a method.
    """
    positional = [parameter.kind in _POSITIONAL for parameter in parameters[:2]]
    if not positional or not positional[0]:
        star = bool(parameters) and parameters[0].kind is inspect.Parameter.VAR_POSITIONAL
        return Kind.FUNCTION if star else None
    if hints[0]:
        return Kind.FUNCTION
    second = len(positional) > 1 and positional[1] and hints[1] is not False
    in_class = fn.__qualname__.rpartition("<locals>.")[2].count(".") > 0
    if in_class and second and (hints[1] or parameters[0].name in {"self", "cls", "mcs"}):
        return Kind.METHOD
    if hints[0] is False or (in_class and parameters[0].name in {"self", "cls"}):
        return None
    return Kind.FUNCTION


def _hints_of(fn: Callable[..., Any], parameters: list[inspect.Parameter]) -> list[bool | None]:
    return [_means_session(_evaluated(fn, parameter)) for parameter in parameters]


def _evaluated(fn: Callable[..., Any], parameter: inspect.Parameter) -> Any:
    annotation = parameter.annotation
    if annotation is parameter.empty or not isinstance(annotation, str):
        return annotation
    holder = types.SimpleNamespace(__annotations__={parameter.name: annotation})
    # Any error may come out of somebody's annotation; a name that is only imported for type checkers is the usual one.
    try:
        return typing.get_type_hints(holder, inspect.unwrap(fn).__globals__, include_extras=True)[parameter.name]
    except (NameError, AttributeError, TypeError, SyntaxError):
        return annotation


def _means_session(annotation: Any) -> bool | None:
    if isinstance(annotation, str):
        return True if annotation.strip("'\" ").endswith("Session") else None
    if isinstance(annotation, typing.TypeVar):
        return _means_session(annotation.__bound__) if annotation.__bound__ is not None else None
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _means_session(typing.get_args(annotation)[0])
    if origin in {typing.Union, types.UnionType}:
        answers = [_means_session(member) for member in typing.get_args(annotation)]
        return True if True in answers else None if None in answers else False
    return _class_means_session(origin or annotation)


def _class_means_session(cls: Any) -> bool | None:
    if not isinstance(cls, type) or cls is inspect.Parameter.empty or cls is object:
        return None
    if issubclass(cls, AsyncSession):
        return True
    # A Protocol, or a class that AsyncSession derives from, may well be given one.
    return None if getattr(cls, "_is_protocol", False) or issubclass(AsyncSession, cls) else False
