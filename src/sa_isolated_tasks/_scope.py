"""``TaskScope``: owns the units that are spawned through it, until they have ended."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import warnings
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Self, final, get_args

from sa_isolated_tasks._context import current_seat
from sa_isolated_tasks._events import Listener
from sa_isolated_tasks._factory import SessionFactory, check_limit, resolve_limit
from sa_isolated_tasks._handle import Entry, TaskHandle
from sa_isolated_tasks._leaving import raise_problems, shutdown_error
from sa_isolated_tasks._logging import with_logging
from sa_isolated_tasks._protect import LAST_WORDS, settle
from sa_isolated_tasks._runner import Runner
from sa_isolated_tasks._slots import Seat
from sa_isolated_tasks._spawn import Options, Spawner, Spawning
from sa_isolated_tasks._steps import times_cancelled
from sa_isolated_tasks._types import Context, Factory, Guard, Limit, OnFailure, ScopeSnapshot, TaskState, UnitSnapshot
from sa_isolated_tasks._watch import watch_sessions
from sa_isolated_tasks.exceptions import ScopeClosedError, WrongLoopError, check_seconds

__all__ = ["TaskScope"]


class _State(enum.Enum):
    """The life of a scope, from left to right; only CANCELLING may be left out."""

    NEW = "not started"
    OPEN = "open"
    DRAINING = "being left"
    CANCELLING = "being cancelled"
    CLOSED = "closed"


@final
class TaskScope(Spawner):
    """
    Owns background units: each in a session of its own, tracked, bounded, logged, and waited for.

    ``async with TaskScope(...) as scope`` waits, on leaving, until every unit has ended; leaving by an exception
    cancels them. For an object with a life of its own there are `start()` and `aclose()`.

    Args:
        factory: gives the sessions of plain functions; called with no arguments for each unit.
        name: for the log.
        limit: how many units may run at once: ``"pool"`` for one less than the pool's size (1 on SQLite), a number, or
            None for no limit. The rest wait in order.
        on_failure: ``"log"``: a failure is in the log and in the handle. ``"raise"``: leaving also raises an
            ``ExceptionGroup`` of those that nobody has looked at. ``"cancel"``: the first failure cancels the other
            units and the block, and leaving raises the group, as ``asyncio.TaskGroup`` does.
        drain_timeout: seconds that leaving waits before it cancels; None for no limit.
        cancel_timeout: seconds that it waits after that, before it gives up with a `ShutdownError`.
        listeners: get the events; a `LoggingListener` is added if there is none.

    Raises:
        DeclarationError: the factory, or a listener, is none.
        LimitError: *limit* is no positive number.
        ValueError: another argument is out of range.

    .. versionadded:: 0.1.0
    """

    __slots__ = (
        "_cancel_timeout",
        "_drain_timeout",
        "_factory",
        "_failures",
        "_host",
        "_host_asked",
        "_host_was_cancelled",
        "_limit",
        "_listeners",
        "_on_failure",
        "_runner",
        "_state",
        "name",
    )

    def __init__(
        self,
        factory: Factory,
        *,
        name: str,
        limit: Limit = "pool",
        on_failure: OnFailure = "log",
        drain_timeout: float | None = None,
        cancel_timeout: float = 10.0,
        listeners: Sequence[Listener] = (),
    ) -> None:
        # First: `__del__` looks at it.
        self._state = _State.NEW
        check_limit(limit)
        if on_failure not in get_args(OnFailure):
            raise ValueError(f'on_failure is "log", "raise" or "cancel", not {on_failure!r}')
        check_seconds("drain_timeout", drain_timeout)
        check_seconds("cancel_timeout", cancel_timeout, or_none="")  # without it, a scope could wait for ever
        if not name:
            raise ValueError(f"the name of a scope is for the log, and cannot be {name!r}")
        self._factory = SessionFactory(factory)
        super().__init__(Spawning(self._factory, self._admit), Options())
        self.name: str = name
        self._limit: Limit = limit
        self._on_failure = on_failure
        self._drain_timeout = drain_timeout
        self._cancel_timeout = cancel_timeout
        self._listeners = with_logging(listeners)
        self._runner: Runner | None = None
        self._host: asyncio.Task[Any] | None = None
        self._host_asked = 0
        self._host_was_cancelled = False
        self._failures: list[Entry] = []
        watch_sessions()

    def options(
        self,
        *,
        name: str | None = None,
        timeout: float | None = None,
        context: Context = "copy",
        guard: Guard = "raise",
    ) -> Spawner:
        """
        A view of this scope that spawns with other options; the scope itself does not change.

        Args:
            name: for the log and the handle, in place of the function's.
            timeout: seconds that the body may run; past it the unit is rolled back and fails with ``TimeoutError``.
                Time in the queue, and the commit, do not count.
            context: ``"fresh"`` starts with no context variables, for code whose libraries keep a session in one.
            guard: ``"warn"`` for an `IsolatedTasksWarning` in place of the error for a passed session, ``"off"`` for
                no check.

        Raises:
            ValueError: a value is out of range.

        .. versionadded:: 0.1.0
        """
        return Spawner(self._spawning, Options(name, timeout, context, guard))

    def start(self) -> asyncio.Future[Self]:
        """
        Opens the scope, in the running event loop. It may be awaited, but is open at once.

        Raises:
            ScopeClosedError: it was started before.
            WrongLoopError: no event loop is running.
            FakeIsolationError: the factory cannot isolate.
            LimitError: ``limit="pool"`` and the pool's size cannot be known.

        .. versionadded:: 0.1.0
        """
        if self._state is not _State.NEW:
            raise ScopeClosedError(
                f"scope {self.name} was started twice: it is {self._state.value}",
                why="a scope has one life",
                cure=f"scope = TaskScope(Session, name={self.name!r})",
            )
        loop = _running_loop()
        if loop is None:
            raise WrongLoopError(
                f"scope {self.name} was started where no event loop runs",
                cure="async def main(): scope.start()",
            )
        limit = resolve_limit(self._limit, self._factory)
        self._runner = Runner(self.name, limit, self._listeners, self._unit_failed, self._cancel_timeout)
        self._state = _State.OPEN
        started: asyncio.Future[Self] = loop.create_future()
        started.set_result(self)
        return started

    async def drain(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 -- the scope stays usable after it
        """
        Blocks until no unit is left; the scope stays open. Called by one of its units, that one does not count.

        Args:
            timeout: seconds to wait.

        Raises:
            TimeoutError: units are left; they go on.
            ScopeClosedError: the scope was never started.
            WrongLoopError: this is another loop or thread.

        .. versionadded:: 0.1.0
        """
        check_seconds("timeout", timeout)
        runner = self._require_runner("drained")
        if not await self._quiet_within(runner, timeout, current_seat.get()):
            names = ", ".join(entry.name for entry in runner.entries())
            raise TimeoutError(f"scope {self.name} was not quiet after {timeout} s: {names}")

    def cancel(self, reason: str = "") -> None:
        """
        Cancels every unit that lives now; returns at once, and the scope stays open. See `TaskHandle.cancel`.

        Raises:
            ScopeClosedError: the scope was never started.
            WrongLoopError: this is another loop or thread.

        .. versionadded:: 0.1.0
        """
        runner = self._require_runner("cancelled")
        for entry in runner.all_entries():
            runner.cancel(entry, reason or f"scope {self.name} was cancelled")

    async def aclose(self) -> None:
        """
        Leaves the scope: blocks until its units have ended, as the end of ``async with`` does.

        Closing twice, or from two tasks, waits for the same end. Called by one of its units it waits for the others.
        If the caller is cancelled, the units are cancelled and waited for, and the cancellation goes on.

        Raises:
            ShutdownError: units have survived their cancellation for *cancel_timeout* seconds.
            WrongLoopError: this is another loop or thread.
            ExceptionGroup: of failures, as *on_failure* says.

        .. versionadded:: 0.1.0
        """
        await self._leave(None)

    async def __aenter__(self) -> Self:
        self.start()
        self._host = asyncio.current_task()
        self._host_asked = times_cancelled()
        return self

    async def __aexit__(
        self, _type: type[BaseException] | None, error: BaseException | None, _traceback: TracebackType | None
    ) -> bool:
        if self._host is not None and self._host_was_cancelled and self._host.uncancel() <= self._host_asked:
            # The only cancellation was this scope's own, for a failed unit: the failure comes out in its place.
            error = None if isinstance(error, asyncio.CancelledError) else error
        await self._leave(error)
        # Only with *error*, which goes on by itself; a failure that took its place was raised by the line above.
        return False

    async def _leave(self, error: BaseException | None) -> None:
        """Waits, cancels, waits again, reports. *error* is what the block is being left with."""
        if self._runner is None or (self._state is _State.CLOSED and not len(self)):
            self._state = _State.CLOSED
            return
        runner = self._require_runner("left")
        if self._state is _State.OPEN:
            self._state = _State.DRAINING
        seat = current_seat.get()
        cause = error
        if cause is None:
            try:
                await self._quiet_within(runner, self._drain_timeout, seat)
            except asyncio.CancelledError as cancelled:
                cause = cancelled
        survivors: tuple[UnitSnapshot, ...] = ()
        if not runner.is_quiet(seat):
            self._state = _State.CANCELLING
            runner.closed = True
            runner.cancel_all(self._reason_for_cancelling(cause), but=seat)
            quiet, late = await settle(self._quiet_within(runner, self._cancel_timeout, seat))
            cause = late if cause is None else cause
            if not quiet:
                quiet, late = await settle(self._last_words(runner, seat))
                cause = late if cause is None else cause
            survivors = () if quiet else runner.snapshots(but=seat)
        if seat is None or not seat.belongs_to(runner.slots):
            self._state = _State.CLOSED
            runner.closed = True
            runner.drop_waiting(f"scope {self.name} was left before its parent committed")
        raise_problems(self.name, self._problems(survivors, error), error, cause, strict=self._on_failure == "cancel")

    async def _last_words(self, runner: Runner, seat: Seat | None) -> bool:
        """Cuts the connections of the survivors; those that hung in a statement will end in a moment."""
        hanging = runner.holds_connections(but=seat)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORDS):
                await runner.abandon_all(but=seat)
        return await self._quiet_within(runner, LAST_WORDS if hanging else 0, seat)

    def _reason_for_cancelling(self, cause: BaseException | None) -> str:
        if cause is None:
            return f"scope {self.name} was left, and drain_timeout={self._drain_timeout} has passed"
        return f"scope {self.name} was left by {type(cause).__name__}"

    def _problems(self, survivors: tuple[UnitSnapshot, ...], error: BaseException | None) -> list[BaseException]:
        """What *on_failure* wants to be raised, and the survivors; without what the block is being left with."""
        failures, self._failures = self._failures, []
        unseen = [entry.exception for entry in failures if self._on_failure == "cancel" or not entry.retrieved]
        problems = [failure for failure in unseen if failure is not None and failure is not error]
        if survivors:
            problems.append(shutdown_error(self.name, survivors, self._cancel_timeout))
        return problems

    async def _quiet_within(self, runner: Runner, seconds: float | None, seat: Seat | None) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await runner.quiet(seat)
        except TimeoutError:
            return False
        return True

    def _unit_failed(self, entry: Entry) -> None:
        if self._on_failure == "log" or self._runner is None:
            return
        self._failures.append(entry)
        if self._on_failure != "cancel" or self._state is _State.CANCELLING:
            return
        block_is_running = self._state is _State.OPEN
        self._state = _State.CANCELLING
        self._runner.closed = True
        self._runner.cancel_all(f"unit {entry.name} of the same scope failed")
        if self._host is not None and block_is_running:
            self._host_was_cancelled = True
            self._host.cancel(f"unit {entry.name} failed")

    def _admit(self, name: str, anywhere: bool) -> Runner:  # noqa: FBT001 -- not public
        """
        The runner, if a unit may be spawned here and now.

        Raises:
            ScopeClosedError: the scope is not open, and the spawner is none of its units.
            WrongLoopError: this is another loop or thread.
        """
        runner, state = self._runner, self._state
        if runner is not None and (state is _State.OPEN or state is _State.DRAINING):
            if not anywhere and not runner.is_here():
                runner.require_loop(f"{name} was spawned", f"loop.call_soon_threadsafe(scope.spawn, {name}, ...)")
            if state is _State.OPEN:
                return runner
            seat = current_seat.get()
            if seat is not None and seat.belongs_to(runner.slots):
                return runner
        raise ScopeClosedError(
            f"{name} was spawned in scope {self.name}, which is {self._state.value}",
            cure=f"async with TaskScope(Session, name={self.name!r}) as scope: scope.spawn({name}, ...)",
        )

    def _require_runner(self, verb: str) -> Runner:
        if self._runner is None:
            raise ScopeClosedError(
                f"scope {self.name} cannot be {verb}: it was never started",
                why="a scope belongs to the event loop in which it is started",
                cure="scope.start()",
            )
        self._runner.require_loop(f"the scope was {verb}", "await scope.aclose()  # in the loop that started it")
        return self._runner

    def snapshot(self) -> ScopeSnapshot:
        """The state of the scope and of its living units, frozen: for a person or a metric."""
        runner = self._runner
        if runner is None:
            return ScopeSnapshot(self.name, self._state.value, None, 0, 0, 0, 0, 0, 0, 0, ())
        return ScopeSnapshot(
            name=self.name,
            state=self._state.value,
            limit=runner.slots.limit,
            waiting=len(runner.waiting),
            queued=runner.queued,
            running=len(runner.running),
            succeeded=runner.counts[TaskState.SUCCEEDED],
            failed=runner.counts[TaskState.FAILED],
            cancelled=runner.counts[TaskState.CANCELLED],
            dropped=runner.counts[TaskState.DROPPED],
            units=runner.snapshots(),
        )

    def __len__(self) -> int:
        return 0 if self._runner is None else self._runner.count

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> Iterator[TaskHandle[Any]]:
        """The handles of the units that live now; spawning meanwhile does no harm."""
        entries = [] if self._runner is None else self._runner.all_entries()
        handles: list[TaskHandle[Any]] = [TaskHandle(entry) for entry in entries]
        return iter(handles)

    def __repr__(self) -> str:
        return f"<TaskScope {self.name}: {self._state.value}, {len(self)} unit(s)>"

    def __del__(self) -> None:
        if self._state is _State.OPEN:
            warnings.warn(
                f"scope {self.name} was started and never closed; units left: {len(self)}",
                ResourceWarning,
                stacklevel=2,
                source=self,
            )


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
