"""Reads a function's signature once, at decoration: where its session is, and what is left without it."""

from __future__ import annotations

import enum
import functools
import inspect
import re
import types
import typing
from collections.abc import Callable
from typing import Any, NamedTuple, cast

from sqlalchemy.ext.asyncio import AsyncSession

from sa_isolated_tasks.exceptions import DeclarationError

__all__ = [
    "Kind",
    "Shape",
    "carries",
    "check_body",
    "code_of",
    "function_under",
    "identifier_of",
    "is_a",
    "name_of",
    "read_shape",
    "refuse_taken",
]

_NOT_A_BODY = "only an `async def` can be run in a session of its own, and spawned"
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_PLAIN = frozenset({type(None), bool, int, float, str, bytes})


class Kind(enum.Enum):
    """What calls look like: with the session first, or with the object or class before it."""

    FUNCTION = 0
    METHOD = 1


class Shape(NamedTuple):
    """*signature* is the one that callers see: without the session, and for methods with ``self``."""

    kind: Kind
    signature: inspect.Signature
    bound_signature: inspect.Signature
    """Without ``self`` either; of a function, the same as *signature*."""
    required: int
    """How many arguments have to be given, by position or name; of the bound function, for a method."""
    positional: int | None
    """How many may be given by position, None for any number."""
    taken: frozenset[str]
    """Names that no argument may have, although there is a ``**kwargs``: of the session, and of ``self``."""
    guessed: bool
    """A function of a class body is taken for one without ``self``, and no annotation says so."""


def is_a(value: object, *kinds: type) -> bool:
    """By its type, not by `isinstance`: a mock with a spec claims to be a session or an engine, by its class."""
    return issubclass(type(value), kinds)


def function_under(fn: Any) -> Any:
    """What is run in the end: under partials, decorators, bound methods, and objects that can be called."""
    inner = fn
    while isinstance(inner, functools.partial):
        inner = inspect.unwrap(inner.func)
    inner = inspect.unwrap(getattr(inner, "__func__", inner))
    if not hasattr(inner, "__code__"):
        inner = type(inner).__call__
    return inner


def name_of(fn: Any) -> str:
    if type(fn) is types.FunctionType:  # at once: it is asked for every unit
        return fn.__qualname__.rpartition("<locals>.")[2]
    inner = fn
    while isinstance(inner, functools.partial):
        inner = inner.func
    return str(getattr(inner, "__qualname__", type(inner).__name__)).rpartition("<locals>.")[2]


def identifier_of(fn: Any) -> str:
    """A name for a line of code: a lambda has none."""
    name = name_of(fn).rpartition(".")[2]
    return name if name.isidentifier() else "work"


def code_of(fn: Any) -> types.CodeType:
    """The code of what is run in the end, for its file and line."""
    code = function_under(fn).__code__
    assert isinstance(code, types.CodeType)  # noqa: S101 -- an async function, or an object with one
    return code


def carries(fn: Any) -> bool:
    """Whether something may hide in the function itself: in its closure or its defaults, or because it is an object."""
    if type(fn) is not types.FunctionType or fn.__closure__ is not None:
        return True
    if fn.__defaults__ is None and fn.__kwdefaults__ is None:
        return False
    defaults = (*(fn.__defaults__ or ()), *(fn.__kwdefaults__ or {}).values())
    return not _PLAIN.issuperset(map(type, defaults))


def refuse_taken(shape: Shape, name: str, kwargs: dict[str, Any]) -> None:
    """
    Raises what Python would raise in the unit, where ``**kwargs`` lets every name pass.

    Raises:
        TypeError: an argument has the name of the session parameter, or of ``self``.
    """
    if kwargs and not shape.taken.isdisjoint(kwargs):
        given = next(iter(shape.taken.intersection(kwargs)))
        raise TypeError(f"{name}() got multiple values for argument {given!r}")


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
    name = identifier_of(fn)
    what, cure = f"a {type(fn).__name__}, not a function", "async def work(session, ...): ..."
    if inspect.isasyncgenfunction(fn):
        what, cure = "an async generator function", f"async def {name}(session, ...) -> list[...]: ..."
    elif inspect.isgeneratorfunction(fn):
        what, cure = "a generator function", f"async def {name}(session, ...): ..."
    elif callable(fn):
        what, cure = "no `async def`", f"async def {name}(session, ...): ..."
    raise DeclarationError(f"{name_of(fn)} is {what}", why=_NOT_A_BODY, cure=cure)


def _has_async_call(fn: Any) -> bool:
    if isinstance(fn, functools.partial):
        inner = fn.func
        return inspect.iscoroutinefunction(inner) or _has_async_call(inner)
    return callable(fn) and not isinstance(fn, type) and inspect.iscoroutinefunction(type(fn).__call__)


def read_shape(fn: Callable[..., Any]) -> Shape:
    """
    Finds the session parameter of a function that is decorated.

    Raises:
        DeclarationError: there is no session parameter where it has to be.
    """
    signature = inspect.signature(fn)
    parameters = list(signature.parameters.values())
    hints = [_means_session(_evaluated(fn, parameter)) for parameter in parameters[:2]]
    in_class = type(fn) is types.FunctionType and "." in name_of(fn)
    kind = _kind_of(parameters, hints, in_class=in_class)
    if kind is None:
        raise DeclarationError(
            f"{name_of(fn)}{signature} has no session parameter",
            why="the first parameter (after self or cls) receives the session of the unit, by position",
            cure=f"async def {identifier_of(fn)}(session: AsyncSession, ...): ...",
        )
    guessed = in_class and kind is Kind.FUNCTION and hints[0] is None
    return _shape(kind, signature, parameters, guessed=guessed)


def _shape(kind: Kind, signature: inspect.Signature, parameters: list[inspect.Parameter], *, guessed: bool) -> Shape:
    place = kind.value
    # A session that arrives in `*args` takes its place from no other argument.
    after = parameters[place:] if parameters[place].kind in _VARIADIC else parameters[place + 1 :]
    required = sum(parameter.default is parameter.empty for parameter in after if parameter.kind not in _VARIADIC)
    unbounded = any(parameter.kind is parameter.VAR_POSITIONAL for parameter in after)
    return Shape(
        kind=kind,
        signature=signature.replace(parameters=parameters[:place] + after),
        bound_signature=signature.replace(parameters=after),
        required=required,
        positional=None if unbounded else sum(parameter.kind in _POSITIONAL for parameter in after),
        taken=frozenset(
            parameter.name for parameter in parameters[: place + 1] if parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        ),
        guessed=guessed,
    )


def _kind_of(parameters: list[inspect.Parameter], hints: list[bool | None], *, in_class: bool) -> Kind | None:
    """
    Where the session is: True, False and None in *hints* are for "is one", "is something else", "nobody says".

    An annotation decides; without one, a function whose first parameter is ``self`` or ``cls`` is a method.
    """
    if not parameters or not _takes_positional(parameters[0]):
        return None
    if hints[0]:
        return Kind.FUNCTION
    looks_bound = parameters[0].name in {"self", "cls", "mcs"}
    second = len(parameters) > 1 and _takes_positional(parameters[1]) and hints[1] is not False
    if second and (hints[1] or looks_bound) and (in_class or looks_bound):
        return Kind.METHOD
    # Not a guess any more: another parameter says that it is the session, or this one that it is none.
    if looks_bound or hints[0] is False or (len(hints) > 1 and hints[1]):
        return None
    return Kind.FUNCTION


def _takes_positional(parameter: inspect.Parameter) -> bool:
    return parameter.kind in _POSITIONAL or parameter.kind is parameter.VAR_POSITIONAL


def _evaluated(fn: Callable[..., Any], parameter: inspect.Parameter) -> Any:
    annotation = parameter.annotation
    if not isinstance(annotation, str):
        return annotation
    holder = types.SimpleNamespace(__annotations__={parameter.name: annotation})
    names = getattr(function_under(fn), "__globals__", {})
    # Any error may come out of somebody's annotation; a name that is only imported for type checkers is the usual one.
    try:
        return typing.get_type_hints(holder, names, include_extras=True)[parameter.name]
    except (NameError, AttributeError, TypeError, SyntaxError):
        return annotation


def _means_session(annotation: Any) -> bool | None:
    if isinstance(annotation, str):
        return True if re.search(r"\bAsyncSession\b", annotation) else None
    if isinstance(annotation, typing.TypeVar):
        return _means_session_in(annotation.__constraints__ or (annotation.__bound__,))
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _means_session(typing.get_args(annotation)[0])
    if origin in {typing.Union, types.UnionType}:
        return _means_session_in(typing.get_args(annotation))
    return _class_means_session(origin or annotation)


def _means_session_in(alternatives: tuple[Any, ...]) -> bool | None:
    answers = {_means_session(alternative) for alternative in alternatives}
    return True if True in answers else None if None in answers else False


def _class_means_session(cls: Any) -> bool | None:
    if not isinstance(cls, type) or cls in {inspect.Parameter.empty, Any}:
        return None
    if issubclass(cls, AsyncSession):
        return True
    # A Protocol, or a class that AsyncSession derives from, may well be given one.
    return None if getattr(cast("Any", cls), "_is_protocol", False) or issubclass(AsyncSession, cls) else False
