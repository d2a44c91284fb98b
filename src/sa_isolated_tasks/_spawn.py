"""How a function and its arguments become a unit in the queue of a scope."""

from __future__ import annotations

import contextvars
import functools
import itertools
import sys
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from types import CodeType, FrameType, FunctionType
from typing import Any, Concatenate, ParamSpec, TypeVar, overload

from sa_isolated_tasks._factory import SessionFactory
from sa_isolated_tasks._function import IsolatedFunction, as_isolated, isolated_under, prepare
from sa_isolated_tasks._guard import Passed, check_call
from sa_isolated_tasks._handle import Entry, TaskHandle
from sa_isolated_tasks._runner import Runner
from sa_isolated_tasks._signature import (
    Kind,
    Shape,
    carries,
    check_body,
    identifier_of,
    name_of,
    read_shape,
    refuse_taken,
)
from sa_isolated_tasks._types import Context, Guard, SessionT, Welcome
from sa_isolated_tasks._unit import Unit
from sa_isolated_tasks.exceptions import DeclarationError

__all__ = ["Options", "Spawner", "Spawning"]

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Options:
    """What ``options()`` takes; checked when it is made."""

    name: str | None = None
    timeout: float | None = None
    context: Context = "copy"
    guard: Guard = "raise"

    def __post_init__(self) -> None:
        if self.timeout is not None and not self.timeout >= 0:
            raise ValueError(f"timeout is in seconds of running, or None for no limit; it cannot be {self.timeout!r}")
        if self.context not in {"copy", "fresh"}:
            raise ValueError(f'context is "copy" or "fresh", not {self.context!r}')
        if self.guard not in {"raise", "warn", "off"}:
            raise ValueError(f'guard is "raise", "warn" or "off", not {self.guard!r}')


class Spawning:
    """
    Makes units for one scope.

    Args:
        factory: for plain functions; an isolated one has its own.
        admit: gives the runner, or raises if the scope takes no unit of that name now.
    """

    __slots__ = ("_admit", "_factory", "_numbers", "_shapes")

    def __init__(self, factory: SessionFactory, admit: Callable[[str], Runner]) -> None:
        self._factory = factory
        self._admit = admit
        self._numbers = itertools.count(1)
        # By code, not by function: a function that is defined where it is spawned is a new one each time.
        self._shapes: dict[CodeType, Shape] = {}

    def spawn(
        self, options: Options, fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any], frame: FrameType
    ) -> TaskHandle[Any]:
        fn, args, kwargs = _unwrapped(fn, args, kwargs)
        isolated = as_isolated(fn)
        if isolated is None:
            check_body(fn)
            runner = self._admit(name_of(fn))
            unit = self._plain_unit(options, fn, args, kwargs)
            name = name_of(fn)
        else:
            name = isolated.__qualname__
            runner = self._admit(name)
            unit = prepare(isolated, args, kwargs, offset=1, guard=options.guard, timeout=options.timeout)
        context = contextvars.copy_context() if options.context == "copy" else contextvars.Context()
        line = (frame.f_code.co_filename, frame.f_lineno)
        entry = Entry(runner, options.name or name, next(self._numbers), unit, context, line)
        runner.submit(entry)
        return TaskHandle(entry)

    def _plain_unit(self, options: Options, fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Unit[Any]:
        shape = self._shape_of(fn)
        name = name_of(fn)
        check_call(Passed(name, args, kwargs, fn if carries(fn) else None, 1), shape, shape.signature, options.guard)
        refuse_taken(shape, name, kwargs)
        return Unit(self._factory, lambda session: fn(session, *args, **kwargs), fn, options.timeout)

    def _shape_of(self, fn: Any) -> Shape:
        # All functions that one decorator has wrapped have the same code, and signatures of their own.
        if type(fn) is not FunctionType or fn.__dict__:
            return _function_shape(fn)
        shape = self._shapes.get(fn.__code__)
        if shape is None:
            shape = self._shapes[fn.__code__] = _function_shape(fn)
        return shape


def _unwrapped(fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """A ``partial`` of an isolated function is that function with more arguments."""
    given, more_args, more_kwargs = fn, args, kwargs
    while isinstance(given, functools.partial):
        more_args, more_kwargs = given.args + more_args, given.keywords | more_kwargs
        given = given.func
    return (fn, args, kwargs) if as_isolated(given) is None else (given, more_args, more_kwargs)


def _function_shape(fn: Any) -> Shape:
    isolated = isolated_under(fn)
    if isolated is not None and isolated is not fn:
        name = identifier_of(fn)
        raise DeclarationError(
            f"{name_of(fn)} wraps an isolated function, which opens its own session and takes none",
            why="a spawned function is given a session as its first argument, unless it is an isolated function itself",
            cure=f"async def run_{name}(session, *args): return await {name}(*args)  # and spawn this",
        )
    shape = read_shape(fn) if isolated is None else None
    if shape is None or shape.kind is Kind.METHOD:
        raise DeclarationError(
            f"{name_of(fn)} is a method that is bound to no object",
            why="the session is its second parameter, and would be passed as the first",
            cure=f"scope.spawn(obj.{identifier_of(fn)}, ...)",
        )
    return shape


class Spawner(Welcome):
    """
    Spawns units in a scope, with options of its own: what `TaskScope.options` returns.

    .. versionadded:: 0.1.0
    """

    __slots__ = ("_options", "_spawning")

    def __init__(self, spawning: Spawning, options: Options) -> None:
        self._spawning = spawning
        self._options = options

    @overload
    def spawn(self, fn: IsolatedFunction[P, R], /, *args: P.args, **kwargs: P.kwargs) -> TaskHandle[R]: ...
    @overload
    def spawn(
        self, fn: Callable[Concatenate[SessionT, P], Coroutine[Any, Any, R]], /, *args: P.args, **kwargs: P.kwargs
    ) -> TaskHandle[R]: ...
    def spawn(self, fn: Any, /, *args: Any, **kwargs: Any) -> TaskHandle[Any]:
        """
        Runs *fn* as a unit: in a task and a session of its own. Returns at once; no step of the body has run by then.

        The unit starts when a slot is free, in the order of spawning, and holds neither task nor session before that.
        The scope keeps it; the handle may be dropped. A failure is logged, and raised to who awaits the handle; it
        touches neither the spawner nor other units. Context variables are copied at this call.

        Args:
            fn: an isolated function (its own factory wins), or an ``async def`` whose first parameter is the session.
            args: for *fn*, without the session.
            kwargs: the same.

        Raises:
            SessionPassedError: an argument, or *fn* itself, is or holds a session; see *docs/errors.md*.
            InstancePassedError: ... a mapped instance of another session.
            DeclarationError: *fn* is a coroutine object, a generator function, no ``async def``, or takes no session.
            ScopeClosedError: the scope is not open. While it is being left, only its own units may spawn.
            WrongLoopError: called from another loop or thread than the scope's.
            TypeError: the arguments do not fit.

        .. versionadded:: 0.1.0
        """
        # One frame, cheaply.
        frame = sys._getframe(1)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
        return self._spawning.spawn(self._options, fn, args, kwargs, frame)
