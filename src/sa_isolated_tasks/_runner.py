"""
The engine of a scope: starts units in order, accounts for their ends, and knows when it is quiet.

All accounting is in the done callback of a unit's task, which runs whatever became of the task.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Sequence
from typing import final

from sa_isolated_tasks._after_commit import ParentTransaction
from sa_isolated_tasks._context import current_seat
from sa_isolated_tasks._events import Listener, ScopeWaiting, UnitStarted
from sa_isolated_tasks._handle import Entry
from sa_isolated_tasks._logging import LOGGER, hear_starts, notify
from sa_isolated_tasks._queue import StartQueue
from sa_isolated_tasks._quiet import QuietWaiters
from sa_isolated_tasks._slots import Seat, Slots
from sa_isolated_tasks._types import TaskState, UnitSnapshot
from sa_isolated_tasks.exceptions import UnitCancelledError, WrongLoopError

__all__ = ["REPORT_INTERVAL", "Runner"]

REPORT_INTERVAL = 30.0  # seconds between two reports of a scope that waits to be quiet
_A_LONG_TIME = 365 * 24 * 3600.0


@final
class Runner:
    """
    Runs the units of one scope in one event loop.

    *on_failure* is told of every failure, in the done callback; *patience* is what a unit has after a cancellation.
    """

    __slots__ = (
        "_anchor",
        "_arriving",
        "_hear_starts",
        "_pumping",
        "_quiet_waiters",
        "closed",
        "counts",
        "listeners",
        "loop",
        "name",
        "on_failure",
        "patience",
        "queue",
        "queued",
        "running",
        "slots",
        "waiting",
    )

    def __init__(
        self,
        name: str,
        limit: int | None,
        listeners: Sequence[Listener],
        on_failure: Callable[[Entry], None],
        patience: float,
    ) -> None:
        self.name: str = name
        self.loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()
        self.slots: Slots = Slots(limit, self._schedule, self._tell_if_quiet)
        self.listeners: tuple[Listener, ...] = tuple(listeners)
        self._hear_starts = hear_starts(listeners)
        self.on_failure: Callable[[Entry], None] = on_failure
        self.patience: float = patience
        self.counts: dict[TaskState, int] = dict.fromkeys((state for state in TaskState if state.ended), 0)
        # Set when no unit may start any more.
        self.closed: bool = False
        # Units that wait for a commit, and those of them whose commit came in another thread and is on its way here.
        self.waiting: dict[Entry, None] = {}
        self._arriving: dict[Entry, None] = {}
        # A cancelled unit stays in the queue until its turn, so `queued` counts those that are left.
        self.queued: int = 0
        self.running: dict[Entry, None] = {}
        self.queue: StartQueue[Entry] = StartQueue()
        self._pumping = False
        # The loop keeps tasks by weak references. It keeps this timer, which never fires, and so all that lives here,
        # though the scope be dropped: test_c31_the_loop_keeps_weak_references.py.
        self._anchor: asyncio.TimerHandle | None = None
        self._quiet_waiters = QuietWaiters(self.slots)

    @property
    def live(self) -> int:
        """Units that have to end before it is quiet: a unit that waits for a commit is not among them."""
        return self.queued + len(self.running) + len(self._arriving)

    @property
    def count(self) -> int:
        return self.queued + len(self.running) + len(self.waiting)

    def entries(self) -> list[Entry]:
        return [*self.running, *self.queue.units()]

    def all_entries(self) -> list[Entry]:
        return [*self.entries(), *self.waiting]

    def snapshots(self, *, but: Seat | None = None) -> tuple[UnitSnapshot, ...]:
        return tuple(entry.snapshot() for entry in self.all_entries() if entry.seat is not but)

    def is_quiet(self, waiter: Seat | None) -> bool:
        """Whether no unit is left that *waiter* has to wait for."""
        return self._quiet_waiters.is_quiet(self.live, waiter)

    def submit(self, entry: Entry) -> None:
        """Puts a unit into the queue. It starts in a later turn of the loop, never in the spawner's frame."""
        if self._anchor is None:
            self._anchor = self.loop.call_later(_A_LONG_TIME, _nobody_waits, self)
        self.queue.append(entry)
        self.queued += 1
        if self.slots.free > 0:
            self._schedule()

    def wait_for_commit(self, entry: Entry, parent: ParentTransaction) -> None:
        entry.wait_for_commit(parent)
        self.waiting[entry] = None

    def release(self, entry: Entry) -> None:
        """The parent has committed. In another thread the loop is told, and leaving the scope waits for the news."""
        if self.is_here():
            self._arrive(entry)
        else:
            self._arriving[entry] = None
            self._tell_loop(functools.partial(self._arrive, entry))

    def drop(self, entry: Entry, reason: str, *, later: bool = False) -> None:
        """The parent will not commit. *later*: not in this frame, which may be the garbage collector's."""
        if self.is_here() and not later:
            self._drop(entry, reason)
        else:
            self._tell_loop(functools.partial(self._drop, entry, reason))

    def drop_waiting(self, reason: str) -> None:
        for entry in list(self.waiting):
            self._drop(entry, reason)

    def _arrive(self, entry: Entry) -> None:
        self._arriving.pop(entry, None)
        if entry.state is not TaskState.WAITING:
            self._tell_if_quiet()
        elif self.closed:
            self._drop(entry, f"scope {self.name} was left before it could start")
        else:
            del self.waiting[entry]
            entry.enter_queue()
            self.submit(entry)

    def _drop(self, entry: Entry, reason: str) -> None:
        if entry.state is TaskState.WAITING:
            del self.waiting[entry]
            entry.drop_reason = reason
            self._end(entry)

    def is_here(self) -> bool:
        try:
            return asyncio.get_running_loop() is self.loop
        except RuntimeError:
            return False

    def require_loop(self, what: str, cure: str) -> None:
        """
        Raises unless the scope's loop is running this.

        Raises:
            WrongLoopError: it is another loop or thread.
        """
        if not self.is_here():
            raise WrongLoopError(f"{what} from another event loop or thread than that of scope {self.name}", cure=cure)

    def _tell_loop(self, news: Callable[[], None]) -> None:
        try:
            self.loop.call_soon_threadsafe(news)
        except RuntimeError:
            LOGGER.warning("scope %s: its event loop is closed, so a unit that waited for a commit is lost", self.name)

    def _schedule(self) -> None:
        # Q: Why not start it right here? A: An eager task factory would run the body inside `spawn`, and inside the
        # done callback of another unit: test_scope.py::test_no_step_runs_before_spawn_returns.
        if self.queued and not self._pumping:
            self._pumping = True
            self.loop.call_soon(self._pump)

    def _pump(self) -> None:
        self._pumping = False
        while self.queued and self.slots.take():
            self._start(self.queue.pop())

    def _start(self, entry: Entry) -> None:
        self.queued -= 1
        self.running[entry] = None
        entry.is_taken = True
        entry.seat.holds = True
        entry.unit.patience = self.patience
        context = entry.context
        assert context is not None  # noqa: S101 -- only the end of a unit drops it
        main = self._main(entry)
        try:
            task = context.run(self.loop.create_task, main)
        except BaseException as error:
            # A task factory that raises; or an eager task, whose first step runs here, and ends the program.
            main.close()
            if entry.exception is None:
                entry.fail(error)
            del self.running[entry]
            self._end(entry)
            if isinstance(error, Exception):
                return
            raise
        task.set_name(entry.name)
        task.add_done_callback(functools.partial(self._task_done, entry))
        if entry.task is None and not task.done():
            entry.task = task  # not eager: `_main` has not begun
        # An eager task has run, and perhaps failed, on top of this frame, which its traceback keeps: as in `_main`.
        del entry, main, task, context

    async def _main(self, entry: Entry) -> None:
        current_seat.set(entry.seat)
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 -- a coroutine that runs has one
        entry.start(task)
        try:
            if self._hear_starts or LOGGER.isEnabledFor(logging.DEBUG):
                self._tell_of_start(entry)
            entry.succeed(await entry.unit.run())
        except asyncio.CancelledError as error:
            self._cancelled(entry, task, error)
        except (KeyboardInterrupt, SystemExit) as error:
            entry.fail(error)
            raise
        except BaseException as error:  # noqa: BLE001 -- it is in the handle and in the log; nobody awaits the task
            entry.fail(error)
        finally:
            # The frames of the traceback lead back to this one, and the entry holds the traceback: break the cycle,
            # test_handle.py::test_a_failed_unit_is_freed_without_the_garbage_collector.
            del entry, task

    def _tell_of_start(self, entry: Entry) -> None:
        started = UnitStarted(self.name, entry.name, entry.queued_seconds)
        notify(self.listeners, lambda listener: listener.unit_started(started))

    def _cancelled(self, entry: Entry, task: asyncio.Task[None], error: asyncio.CancelledError) -> None:
        if entry.cancel_reason is None and task.cancelling():
            entry.cancel_reason = "its task was cancelled"
        if entry.cancel_reason is not None:
            entry.cancel_cause = error.__cause__
            return
        # Nobody asked: the body has awaited something that was cancelled. That is a failure, and has to be seen as one.
        stray = UnitCancelledError(
            f"{entry.name} ended with a CancelledError, but nobody had cancelled it",
            where=entry.where,
            why="something that the unit awaited was cancelled; a CancelledError is for the task that is cancelled",
            cure="except asyncio.CancelledError: ...  # around the await of what may be cancelled",
        )
        stray.__cause__ = error.with_traceback(error.__traceback__ and error.__traceback__.tb_next)
        entry.fail(stray)

    def _task_done(self, entry: Entry, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            task.exception()  # it is the handle's; the task's copy would be reported as never retrieved
        del self.running[entry]
        self._end(entry)

    def _end(self, entry: Entry) -> None:
        """The end of every unit, whether it ever ran or not."""
        if not (self.running or self.queued or self._arriving):
            # A dict keeps the table of its largest size, and the queue the units that were cancelled in it.
            self.running = {}
            self.queue.clear()
            if self._anchor is not None:
                self._anchor.cancel()
                self._anchor = None
        state = TaskState.SUCCEEDED
        if entry.exception is not None:
            state = TaskState.FAILED
        elif entry.drop_reason is not None:
            state = TaskState.DROPPED
            entry.exception = entry.dropped_error()
        elif entry.cancel_reason is not None or entry.state is TaskState.QUEUED:
            state = TaskState.CANCELLED
            entry.cancel_reason = entry.cancel_reason or "its task was cancelled"
            entry.exception = entry.cancelled_error()
        self.counts[state] += 1
        entry.end(state)
        ended = entry.ended_event()
        try:
            notify(self.listeners, lambda listener: listener.unit_ended(ended))
        finally:
            if state is TaskState.FAILED:
                self.on_failure(entry)
            self._tell_if_quiet()

    def _tell_if_quiet(self) -> None:
        if not self.queued:  # no unit in the queue waits for others
            self._quiet_waiters.tell(self.live)

    def cancel(self, entry: Entry, reason: str) -> bool:
        """Cancels one unit; only the first call reaches it, so that its clean-up is not cut off."""
        if entry.state.ended:
            return False
        if entry.cancel_reason is not None:
            return True
        if entry in self.running and (entry.task is None or not entry.task.cancel(reason)):
            return False  # its task is done, and its end will be accounted for in the next turn of the loop
        entry.cancel_reason = reason
        entry.unit.cancel_requested = True
        if entry in self.waiting:
            del self.waiting[entry]
            self._end(entry)
        elif entry not in self.running:
            self.queued -= 1
            self._end(entry)
            self.queue.tidy(self.queued)
        return True

    def cancel_all(self, reason: str, *, but: Seat | None = None) -> None:
        """Cancels every unit, apart from those that wait for a commit, and the one that has that seat."""
        for entry in self.entries():
            if entry.seat is not but:
                self.cancel(entry, reason)

    def holds_connections(self, *, but: Seat | None) -> bool:
        return any(entry.unit.holds_connection for entry in self.running if entry.seat is not but)

    async def abandon_all(self, *, but: Seat | None) -> None:
        """Cuts the connections of what still runs: a statement that hangs ends with its connection."""
        await asyncio.gather(*[entry.unit.abandon() for entry in self.running if entry.seat is not but])

    async def quiet(self, waiter: Seat | None) -> None:
        """
        Waits until no unit is left, apart from the one that waits, and those around it.

        A unit that waits here lends its slot meanwhile: what it waits for may be in the queue.
        """
        if waiter is None or waiter.ended:
            await self._until_quiet(None)
            return
        # "Everyone else has ended" is waited for like a unit: one without a slot, if the waiter is of this scope.
        others = Seat(Slots(0, _nobody_waits))
        others.crowd = True
        others.holds = not waiter.belongs_to(self.slots)
        waiter.wait_for(others)
        try:
            await self._until_quiet(waiter)
            others.leave()
            await waiter.come_back()
        except BaseException:
            waiter.stop_waiting_for(others)
            raise

    async def _until_quiet(self, waiter: Seat | None) -> None:
        started = self.loop.time()
        due = started + REPORT_INTERVAL
        while not self.is_quiet(waiter):
            try:
                with self._quiet_waiters.joined_by(waiter) as quiet:
                    self._tell_if_quiet()
                    await asyncio.wait([quiet], timeout=max(due - self.loop.time(), 0))
            except asyncio.CancelledError:
                self._tell_if_quiet()  # another one, if it was this that had been told
                raise
            if self.loop.time() >= due:
                self._report(self.loop.time() - started)
                due += REPORT_INTERVAL

    def _report(self, waited: float) -> None:
        event = ScopeWaiting(self.name, waited, tuple(entry.name for entry in self.entries()))
        notify(self.listeners, lambda listener: listener.scope_waiting(event))


def _nobody_waits(*_: object) -> None:
    """A slot is free that no unit can take; or a scope has been busy for a year."""
