"""The record of a spawned unit, and the handle by which its spawner sees it."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections.abc import Callable, Generator
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar, final

from sa_isolated_tasks._after_commit import DeadlockWatch, ParentTransaction
from sa_isolated_tasks._context import current_seat
from sa_isolated_tasks._events import UnitEnded
from sa_isolated_tasks._slots import Seat
from sa_isolated_tasks._types import Outcome, TaskState, Timing, UnitSnapshot, Welcome
from sa_isolated_tasks._unit import Unit
from sa_isolated_tasks._watch import current_task
from sa_isolated_tasks.exceptions import CommitDeadlockError, TaskDroppedError, UnitCancelledError

if TYPE_CHECKING:
    from sa_isolated_tasks._runner import Runner

__all__ = ["Entry", "TaskHandle"]

R_co = TypeVar("R_co", covariant=True)
_Callback = Callable[["TaskHandle[Any]"], object]


@final
class Entry:
    """
    One spawned unit, from the spawn to its end and as long as somebody has its handle.

    The state goes WAITING, QUEUED, RUNNING, and then once to one of the four ends. Only the runner changes it.
    """

    __slots__ = (
        "_callbacks",
        "_ended_at",
        "_name",
        "_released_at",
        "_started_at",
        "_traceback",
        "_waiters",
        "cancel_cause",
        "cancel_reason",
        "context",
        "drop_reason",
        "exception",
        "is_taken",
        "number",
        "parent",
        "result",
        "retrieved",
        "runner",
        "seat",
        "spawned_at",
        "spawned_line",
        "state",
        "task",
        "unit",
    )

    def __init__(
        self,
        runner: Runner,
        name: str,
        number: int,
        unit: Unit[Any],
        context: contextvars.Context,
        spawned_line: tuple[str, int],
    ) -> None:
        self.runner: Runner = runner
        self._name = name
        self.number: int = number
        self.unit: Unit[Any] = unit
        self.context: contextvars.Context | None = context
        self.spawned_line: tuple[str, int] = spawned_line
        self.spawned_at: float = perf_counter()
        self._released_at = self.spawned_at
        self._started_at = 0.0
        self._ended_at = 0.0
        self.seat: Seat = Seat(runner.slots, current_seat.get())
        self.state: TaskState = TaskState.QUEUED
        self.task: asyncio.Task[None] | None = None
        self.result: Any = None
        self.exception: BaseException | None = None
        self.retrieved: bool = False
        # Out of the queue: its task is being made.
        self.is_taken: bool = False
        self.cancel_reason: str | None = None
        self.cancel_cause: BaseException | None = None
        self.drop_reason: str | None = None
        self.parent: ParentTransaction | None = None
        self._traceback: TracebackType | None = None
        # Most units are awaited by nobody: the lists are made when they are needed.
        self._waiters: list[asyncio.Future[None]] | None = None
        self._callbacks: list[tuple[_Callback, contextvars.Context]] | None = None

    @property
    def name(self) -> str:
        return f"{self._name}#{self.number}"

    @property
    def waiters(self) -> list[asyncio.Future[None]]:
        return self._waiters or []

    @property
    def is_queued(self) -> bool:
        return self.state is TaskState.QUEUED and not self.is_taken

    @property
    def where(self) -> str:
        filename, line = self.spawned_line
        return f"{filename}:{line}"

    @property
    def queued_seconds(self) -> float:
        return self.timing.queued

    @property
    def timing(self) -> Timing:
        now = self._ended_at or perf_counter()  # once, or the parts of a living unit would not fit in the whole
        waiting = (now if self.parent is not None else self._released_at) - self.spawned_at
        queued = (self._started_at or now) - self.spawned_at - waiting
        return self.unit.timing(now - self.spawned_at, queued, waiting)

    def snapshot(self) -> UnitSnapshot:
        age = perf_counter() - self.spawned_at
        return UnitSnapshot(self.name, self.state, self.unit.outcome, age, self.where, self.unit.doing)

    def ended_event(self) -> UnitEnded:
        unit = self.unit
        return UnitEnded(
            self.runner.name,
            self.name,
            self.state,
            unit.outcome,
            unit.commits,
            self.timing,
            self.exception,
            self.cancel_reason or self.drop_reason or "",
            self.where,
        )

    def wait_for_commit(self, parent: ParentTransaction) -> None:
        self.parent = parent
        self.state = TaskState.WAITING

    def enter_queue(self) -> None:
        self.parent = None
        self._released_at = perf_counter()
        self.state = TaskState.QUEUED

    def release(self) -> None:
        """The parent has committed; in any thread."""
        self.runner.release(self)

    def drop(self, reason: str, /, *, later: bool = False) -> None:
        """The parent will not commit; in any thread."""
        self.runner.drop(self, reason, later=later)

    def start(self, task: asyncio.Task[None]) -> None:
        self.task = task
        self.state = TaskState.RUNNING
        self._started_at = perf_counter()

    def succeed(self, result: object) -> None:
        self.result = result

    def fail(self, error: BaseException) -> None:
        """
        Keeps the exception without the runner's own frame.

        That frame refers to this entry, and the exception to the frame: a cycle that only the garbage collector could
        free: test_handle.py::test_a_failed_unit_is_freed_without_the_garbage_collector.
        """
        self._traceback = error.__traceback__.tb_next if error.__traceback__ is not None else None
        self.exception = error.with_traceback(self._traceback)

    def end(self, state: TaskState) -> None:
        """Wakes those who wait. The callbacks run one turn of the loop later, as those of a future do."""
        self._ended_at = perf_counter()
        self.state = state
        self.task = None
        self.context = None
        self.unit.forget()  # it may never have run
        self.seat.leave()
        if self._waiters:
            for waiter in [waiter for waiter in self._waiters if not waiter.done()]:
                waiter.set_result(None)
        if self._callbacks:
            for callback, context in self._callbacks:
                self._call_soon(callback, context)
        self._waiters = self._callbacks = None

    def _call_soon(self, callback: _Callback, context: contextvars.Context) -> None:
        handle: TaskHandle[Any] = TaskHandle(self)
        self.runner.loop.call_soon(callback, handle, context=context)

    def cancelled_error(self) -> UnitCancelledError:
        reason = self.cancel_reason or "no reason was given"
        error = UnitCancelledError(f"{self.name} was cancelled: {reason}", where=self.where)
        error.reason = reason
        error.__cause__ = self.cancel_cause
        return error

    def dropped_error(self) -> TaskDroppedError:
        return TaskDroppedError(f"{self.name} was dropped: {self.drop_reason}", where=self.where)

    def deadlock_error(self) -> CommitDeadlockError:
        what = f"{self.name} waits for the commit of a transaction, and was awaited inside it"
        return CommitDeadlockError(what, where=self.where)

    def outcome_or_raise(self) -> Any:
        self.retrieved = True
        if self.exception is None:
            return self.result
        raise self.exception.with_traceback(self._traceback)

    async def wait(self) -> Any:
        if not self.state.ended:
            await self._wait_for_end()
        return self.outcome_or_raise()

    async def _wait_for_end(self) -> None:
        self.runner.require_loop(f"{self.name} was awaited", "await handle  # in the loop that runs the scope")
        task = current_task()
        if task is self.task:
            raise RuntimeError(f"{self.name} awaits its own handle, and would wait for ever")
        if self.parent is not None:
            # Q: Who waits for whom is known already? A: Not in the first step of an eager task, whose maker has yet to
            # get to what it waits for: test_after_commit.py, with SIT_LOOP=eager.
            await asyncio.sleep(0)
            if self.state.ended:
                return
        parent = self.parent
        if parent is not None and parent.would_wait_for_itself(task):
            raise self.deadlock_error()
        waiter = self.runner.loop.create_future()
        if self._waiters is None:
            self._waiters = []
        self._waiters.append(waiter)
        seat = current_seat.get()
        try:
            with contextlib.nullcontext() if parent is None else DeadlockWatch(parent, waiter, self.deadlock_error):
                if seat is None or seat.ended:
                    await waiter
                else:
                    await self._wait_without_slot(seat, waiter)
        finally:
            (self._waiters or [waiter]).remove(waiter)  # the end of the unit takes them all

    async def _wait_without_slot(self, seat: Seat, waiter: asyncio.Future[None]) -> None:
        """A unit waits for this one: it lends its slot if this one has none, and goes on when it has it back."""
        self.runner.queue.prefer(self)
        seat.wait_for(self.seat)
        try:
            await waiter
            await seat.come_back()
        except BaseException:
            seat.stop_waiting_for(self.seat)
            raise

    def add_callback(self, callback: _Callback, context: contextvars.Context) -> None:
        if self.state.ended:
            self._call_soon(callback, context)
        elif self._callbacks is None:
            self._callbacks = [(callback, context)]
        else:
            self._callbacks.append((callback, context))


@final
class TaskHandle(Welcome, Generic[R_co]):
    """
    What `TaskScope.spawn` returns: one unit, as its spawner sees it.

    Awaiting it blocks until the unit has ended and its session is closed, then gives its result or raises its
    exception, or `UnitCancelledError`. Cancelling who awaits does not cancel the unit; a unit that awaits a queued unit
    lends it its slot. It may be dropped: the scope keeps the unit. It may be awaited more than once. Two handles of one
    unit are equal.

    .. versionadded:: 0.1.0
    """

    __slots__ = ("_entry",)

    def __init__(self, entry: Entry) -> None:
        self._entry = entry

    def __await__(self) -> Generator[Any, None, R_co]:
        return self._entry.wait().__await__()

    def __eq__(self, other: object) -> bool:
        return self._entry is other._entry if isinstance(other, TaskHandle) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._entry)

    def __repr__(self) -> str:
        return f"<TaskHandle {self.name} {self.state.value}, {self.outcome.value}>"

    @property
    def name(self) -> str:
        """The function's qualified name, or the one given in ``options()``, and a number unique in the scope."""
        return self._entry.name

    @property
    def state(self) -> TaskState:
        """What became of the unit."""
        return self._entry.state

    @property
    def outcome(self) -> Outcome:
        """What became of its last transaction."""
        return self._entry.unit.outcome

    @property
    def commits(self) -> int:
        """How many transactions it has committed, those inside the body included."""
        return self._entry.unit.commits

    @property
    def timing(self) -> Timing:
        """Where its time went, in seconds; until now, while it lives."""
        return self._entry.timing

    def done(self) -> bool:
        """Whether the unit has ended."""
        return self._entry.state.ended

    def cancel(self, reason: str = "") -> bool:
        """
        Asks the unit to end; returns at once.

        A queued unit never starts. A running one gets one ``CancelledError`` at its next suspension, rolls back and
        closes; a commit that has begun is awaited first. Asking again does nothing.

        Args:
            reason: for the log, and for `UnitCancelledError.reason`.

        Returns:
            False if the unit had ended already.

        Raises:
            WrongLoopError: this is another loop or thread than the scope's.
        """
        if self.done():
            return False
        self._entry.runner.require_loop(f"{self.name} was cancelled", "loop.call_soon_threadsafe(handle.cancel)")
        return self._entry.runner.cancel(self._entry, reason or "handle.cancel()")

    def result(self) -> R_co:
        """
        The result, without waiting.

        Raises:
            asyncio.InvalidStateError: the unit has not ended.
            UnitCancelledError: it was cancelled.
            TaskDroppedError: its parent's transaction ended without a commit.
            BaseException: what the unit raised.
        """
        self._require_end()
        result: R_co = self._entry.outcome_or_raise()
        return result

    def exception(self) -> BaseException | None:
        """
        What `result()` would raise, or None.

        Raises:
            asyncio.InvalidStateError: the unit has not ended.
        """
        self._require_end()
        self._entry.retrieved = True
        return self._entry.exception

    def add_done_callback(
        self, callback: Callable[[TaskHandle[Any]], object], *, context: contextvars.Context | None = None
    ) -> None:
        """
        Calls *callback* with the handle in the event loop, soon after the unit has ended, or soon if it has.

        What it raises goes to the loop's exception handler. It is for accounting; it cannot delay the scope's exit.

        Raises:
            WrongLoopError: this is another loop or thread than the scope's.
        """
        runner = self._entry.runner
        runner.require_loop(
            f"a callback was added to {self.name}", "loop.call_soon_threadsafe(handle.add_done_callback, f)"
        )
        self._entry.add_callback(callback, contextvars.copy_context() if context is None else context)

    def _require_end(self) -> None:
        if not self._entry.state.ended:
            raise asyncio.InvalidStateError(f"{self.name} has not ended: it is {self.state.value}")
