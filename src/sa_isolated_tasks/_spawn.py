"""How a function and its arguments become a unit in the queue of a scope."""

from __future__ import annotations

import contextvars
import functools
import itertools
import sys
from collections.abc import Callable, Coroutine
from types import CodeType, FrameType, FunctionType
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar, overload

from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session
from sqlalchemy.orm import Session, scoped_session

from sa_isolated_tasks._after_commit import parent_transaction_of
from sa_isolated_tasks._factory import SessionFactory
from sa_isolated_tasks._function import IsolatedFunction, as_isolated, isolated_under, prepare
from sa_isolated_tasks._guard import Passed, check, check_call, is_harmless
from sa_isolated_tasks._handle import Entry, TaskHandle
from sa_isolated_tasks._runner import Runner
from sa_isolated_tasks._signature import (
    Kind,
    Shape,
    carries,
    check_body,
    identifier_of,
    is_a,
    name_of,
    read_shape,
    refuse_taken,
)
from sa_isolated_tasks._types import Context, Guard, SessionT, Welcome
from sa_isolated_tasks._unit import Unit
from sa_isolated_tasks.exceptions import DeclarationError, NoTransactionError, check_seconds

__all__ = ["Options", "Spawner", "Spawning"]

P = ParamSpec("P")
R = TypeVar("R")


class Options:
    """What ``options()`` takes; checked when it is made."""

    __slots__ = ("context", "guard", "name", "timeout")

    def __init__(
        self,
        name: str | None = None,
        timeout: float | None = None,
        context: Context = "copy",
        guard: Guard = "raise",
    ) -> None:
        check_seconds("timeout", timeout)
        if context not in {"copy", "fresh"}:
            raise ValueError(f'context is "copy" or "fresh", not {context!r}')
        if guard not in {"raise", "warn", "off"}:
            raise ValueError(f'guard is "raise", "warn" or "off", not {guard!r}')
        self.name: str | None = name
        self.timeout: float | None = timeout
        self.context: Context = context
        self.guard: Guard = guard


class _Call(NamedTuple):
    """A function and its arguments; *offset* arguments stand before them in the source of the call."""

    fn: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    offset: int


class Spawning:
    """
    Makes units for one scope.

    Args:
        factory: for plain functions; an isolated one has its own.
        admit: gives the runner, or raises if the scope takes no unit of that name now, or not from this thread, unless
            the second argument says that any thread will do.
    """

    __slots__ = ("_admit", "_factory", "_numbers", "_shapes")

    def __init__(self, factory: SessionFactory, admit: Callable[[str, bool], Runner]) -> None:
        self._factory = factory
        self._admit = admit
        self._numbers = itertools.count(1)
        # By code, not by function: a function that is defined where it is spawned is a new one each time.
        self._shapes: dict[CodeType, Shape] = {}

    def spawn(
        self, options: Options, fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any], frame: FrameType
    ) -> TaskHandle[Any]:
        entry = self._entry(options, fn, args, kwargs, frame, offset=1)
        entry.runner.submit(entry)
        return TaskHandle(entry)

    def spawn_after_commit(
        self,
        options: Options,
        session: Any,
        fn: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        frame: FrameType,
    ) -> TaskHandle[Any]:
        parent_session = _session_in_transaction(session, fn)
        entry = self._entry(options, fn, args, kwargs, frame, offset=2)
        parent = parent_transaction_of(parent_session)
        entry.runner.wait_for_commit(entry, parent)
        parent.add(entry, parent_session.get_nested_transaction())
        return TaskHandle(entry)

    def _entry(
        self,
        options: Options,
        fn: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        frame: FrameType,
        *,
        offset: int,
    ) -> Entry:
        # The hook of a commit may run in a worker thread, and so may what is registered for it.
        anywhere = offset > 1
        shape = self._known_shape_of(fn)
        if shape is not None and is_harmless(fn, args, kwargs, shape):
            name = name_of(fn)
            runner = self._admit(name, anywhere)
            unit: Unit[Any] = Unit(self._factory, fn, args, kwargs, timeout=options.timeout)
        else:
            call = _Call(fn, args, kwargs, offset)
            name, runner, unit = self._looked_at(options, call, shape, anywhere=anywhere)
        context = contextvars.copy_context() if options.context == "copy" else contextvars.Context()
        line = (frame.f_code.co_filename, frame.f_lineno)
        return Entry(runner, options.name or name, next(self._numbers), unit, context, line)

    def _looked_at(
        self, options: Options, call: _Call, shape: Shape | None, *, anywhere: bool
    ) -> tuple[str, Runner, Unit[Any]]:
        """Name, runner and unit of a call that may be wrong."""
        isolated = None
        if shape is None:
            call = _unwrapped(call)
            isolated = as_isolated(call.fn)
        if isolated is None:
            if shape is None:
                check_body(call.fn)
            name = name_of(call.fn)
            runner = self._admit(name, anywhere)
            return name, runner, self._plain_unit(options, call, name, shape)
        name = isolated.__qualname__
        runner = self._admit(name, anywhere)
        unit = prepare(
            isolated, call.args, call.kwargs, offset=call.offset, guard=options.guard, timeout=options.timeout
        )
        return name, runner, unit

    def _plain_unit(self, options: Options, call: _Call, name: str, shape: Shape | None) -> Unit[Any]:
        fn, args, kwargs, offset = call
        passed = Passed(name, args, kwargs, fn if carries(fn) else None, offset)
        if shape is None:
            try:
                shape = self._shape_of(fn)
            except DeclarationError:
                # A method of a session has no session parameter; that is not what is wrong with it.
                check(passed, options.guard)
                raise
        check_call(passed, shape, shape.signature, options.guard)
        refuse_taken(shape, name, kwargs)
        return Unit(self._factory, fn, args, kwargs, timeout=options.timeout)

    def _known_shape_of(self, fn: Any) -> Shape | None:
        """Of a plain function that was spawned before, and needs no second look."""
        # All functions that one decorator has wrapped have the same code, and signatures of their own.
        return self._shapes.get(fn.__code__) if type(fn) is FunctionType and not fn.__dict__ else None

    def _shape_of(self, fn: Any) -> Shape:
        shape = _function_shape(fn)
        if type(fn) is FunctionType and not fn.__dict__:
            self._shapes[fn.__code__] = shape
        return shape


def _session_in_transaction(session: Any, fn: Any) -> Session:
    """
    The synchronous session of *session*.

    Raises:
        DeclarationError: it is none.
        NoTransactionError: it has no transaction in progress.
    """
    sync = session.sync_session if isinstance(session, AsyncSession) else session
    name = identifier_of(fn)
    if not isinstance(sync, Session):
        # A registry has to be called: it may be a session of another task when the commit comes.
        given = "registry()" if is_a(session, async_scoped_session, scoped_session) else "session"
        raise DeclarationError(
            f"spawn_after_commit was given a {type(session).__name__} in place of a session",
            why="its first argument is the session whose commit the unit waits for",
            cure=f"scope.spawn_after_commit({given}, {name}, ...)",
        )
    if not sync.in_transaction():
        raise NoTransactionError(
            f"{name} was to be spawned after the commit of a session that has no transaction in progress",
            cure=f"scope.spawn({name}, ...)",
        )
    return sync


def _unwrapped(call: _Call) -> _Call:
    """A ``partial`` of an isolated function is that function with more arguments."""
    given, args, kwargs = call.fn, call.args, call.kwargs
    while isinstance(given, functools.partial):
        args, kwargs = given.args + args, given.keywords | kwargs
        given = given.func
    return call if as_isolated(given) is None else _Call(given, args, kwargs, call.offset)


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

    @overload
    def spawn_after_commit(
        self, session: AsyncSession | Session, fn: IsolatedFunction[P, R], /, *args: P.args, **kwargs: P.kwargs
    ) -> TaskHandle[R]: ...
    @overload
    def spawn_after_commit(
        self,
        session: AsyncSession | Session,
        fn: Callable[Concatenate[SessionT, P], Coroutine[Any, Any, R]],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> TaskHandle[R]: ...
    def spawn_after_commit(
        self, session: AsyncSession | Session, fn: Any, /, *args: Any, **kwargs: Any
    ) -> TaskHandle[Any]:
        """
        As `spawn`, but the unit enters the queue when the transaction that *session* is in has committed.

        It is the session's own root transaction that counts, never a savepoint. Units enter in the order of their
        registration. If it ends in any other way, or a savepoint in which this was called is rolled back, the unit is
        dropped: it never runs, and awaiting its handle raises `TaskDroppedError`. So it is if the scope is left before.

        The commit may happen in another thread, and so may this call. Nothing of *session* is handed to the unit.

        Args:
            session: the parent's, asynchronous or synchronous, with a transaction in progress.
            fn: as for `spawn`.
            args: the same.
            kwargs: the same.

        Raises:
            NoTransactionError: *session* has no transaction in progress; use `spawn`.
            IsolatedTasksError: the other errors of `spawn`.

        .. versionadded:: 0.1.0
        """
        frame = sys._getframe(1)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
        return self._spawning.spawn_after_commit(self._options, session, fn, args, kwargs, frame)
