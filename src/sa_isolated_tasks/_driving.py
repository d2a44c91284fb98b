"""
Keeps cancellations out of what does not survive them.

That is a commit that the body makes, every call on SQLite, and a call that another cancellation is just ending.
A commit that is cut off leaves nobody knowing what became of it. And aiosqlite runs statements in a thread: a
cancellation in the middle of one makes SQLAlchemy give the connection up, while the thread goes on and holds the lock
of the database, so that the next units fail with "database is locked".

So the body is driven step by step. A cancellation that comes at such a moment waits for its end, and is delivered at
the next suspension outside of one, at the entry of the next call, or at the end of the body.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable, Coroutine, Generator
from pathlib import Path
from types import CoroutineType
from typing import Any, TypeVar, final

import sqlalchemy
from sqlalchemy import event
from sqlalchemy.engine import Connection
from sqlalchemy.ext.asyncio import AsyncSession

from sa_isolated_tasks._protect import LAST_WORDS, settle
from sa_isolated_tasks._steps import Steps, times_cancelled
from sa_isolated_tasks._suspended import awaited_by, has_run_out
from sa_isolated_tasks._watch import Record

__all__ = ["Driven"]

R = TypeVar("R")

_SQLALCHEMY = str(Path(sqlalchemy.__file__).parent)
# Where SQLAlchemy calls the drivers.
_DRIVING = tuple(str(Path(sqlalchemy.__file__).parent / part) for part in ("dialects", "connectors"))
_ASYNCIO = str(Path(asyncio.__file__).parent)


@final
class Driven(Steps[R]):
    """
    The body of a unit.

    Half of *patience* after a cancellation that has to wait, a running statement is interrupted, where the driver can.
    When *patience* has ended, the connection is given up, and the cancellation goes on.

    Args:
        body: the coroutine; on SQLite, calls that it makes in tasks of its own are not seen, but their commits are.
        session: the unit's.
        record: what is known of *session*.
        patience: seconds.
        give_up: cuts the connection.
    """

    _given_up: bool = False
    _transactions_ended: int = 0
    _timers: tuple[asyncio.TimerHandle, ...] = ()
    _heard: tuple[Connection, ...] = ()
    # From now on everything is held: the body is through, and the commit is the unit's.
    is_finishing: bool = False

    def __init__(
        self,
        body: Coroutine[Any, Any, R],
        session: AsyncSession,
        record: Record,
        patience: float,
        give_up: Callable[[], Coroutine[Any, Any, None]],
    ) -> None:
        super().__init__(body)
        self._record = record
        self._patience = patience
        self._give_up = give_up
        self._has_lock = _has_sqlite(session)

    def holds(self) -> bool:
        if self._given_up:
            return False
        if self.is_finishing:
            return True
        record = self._record
        # Q: Why hold a second cancellation where the first one got in? A: The driver tells the server to end the
        # statement; cut off in that, it leaves it running, in its transaction, for who knows how long:
        # test_c20_connections_after_a_cancelled_task.py.
        in_danger_in_a_call = self._has_lock or record.on_sqlite or (self._struck_at > 0 and self.was_struck())
        if not record.commit_sent:
            return in_danger_in_a_call and _is_in_a_call(self._coroutine)
        if record.committer is not asyncio.current_task():
            return True
        # Q: Why ask for the call, if COMMIT is on its way? A: A `commit()` that has raised says nothing when it ends:
        # test_driving.py::test_after_a_commit_that_has_failed_nothing_is_held.
        return _is_in_a_call(self._coroutine)

    def owns(self) -> bool:
        """Of the driver's, or the pool's. A timeout in the body itself is not: it has to wait like everybody."""
        return has_run_out(itertools.dropwhile(_is_of_the_body, awaited_by(self._coroutine)))

    def on_hold(self) -> None:
        loop = asyncio.get_running_loop()
        self._stop_timers()
        self._timers = (
            loop.call_later(self._patience / 2, self._interrupt),
            loop.call_later(self._patience, self._end_patience),
        )
        self._record.on_end, self._record.on_entry = self._transaction_ended, self._on_entry
        # Q: Why not listen to the session? A: One of its listeners may be waiting for this very call, and none can be
        # added to those that are being called: test_driving.py::test_a_hold_in_the_call_of_a_listener.
        for connection in self._record.connections:
            if connection not in self._heard:
                self._heard += (connection,)
                event.listen(connection, "before_cursor_execute", self._on_entry)

    def _transaction_ended(self) -> None:
        """What was given up is of the past; `holds()` may say something else."""
        self._transactions_ended += 1
        self._given_up = False
        self.wake()

    def _throw(self, error: BaseException) -> asyncio.Future[Any] | None:
        # Q: Does SQLAlchemy not drop the connection of a statement that is cut off? A: Not if the statement was a
        # listener's, on the driver's cursor: test_c25_returned_with_an_open_transaction.py.
        if isinstance(error, asyncio.CancelledError) and _is_in_a_driver(self._coroutine):
            self._record.distrust_connections()
        try:
            return super()._throw(error)
        finally:
            del error  # as there

    def _interrupt(self) -> None:
        # Q: Was a cancellation not held when this was set? A: It may have been taken back since, and the statement that
        # runs now is another one: test_driving.py::test_a_cancellation_that_was_taken_back_interrupts_nothing.
        if self.is_due:
            self._record.interrupt()

    def _stop_timers(self) -> None:
        for timer in self._timers:
            timer.cancel()

    def __await__(self) -> Generator[Any, None, R]:
        try:
            result = yield from super().__await__()
            if self.held is not None:
                self.deliver()
        except BaseException as error:
            if self.held is not None and isinstance(error, Exception):
                # Q: Why not let the error out? A: Whoever asked for the cancellation would never know that it came to
                # something: test_driving.py::test_a_body_that_fails_while_its_cancellation_is_held_is_cancelled.
                cancelled = self.take_held()
                if cancelled is not None:
                    try:
                        raise cancelled from error
                    finally:
                        del cancelled
            raise
        finally:
            self.held = None
            if self._timers:
                self._forget()
        return result

    def finish(self, unfinished: asyncio.Task[None]) -> Generator[Any, None, None]:
        # Q: The call is over, why not go on? A: Its connection may still be being closed, and what the body did with
        # the session in that time would come in between:
        # test_driving.py::test_a_body_goes_on_when_what_was_given_up_is_closed.
        asked = times_cancelled()
        _, cancelled = yield from settle(asyncio.wait([unfinished])).__await__()
        if cancelled is not None:
            self._hold(cancelled, asked)

    def _forget(self) -> None:
        """The session need not know of this any longer, nor keep it."""
        self._stop_timers()
        self._record.on_end = self._record.on_entry = None
        for connection in self._heard:
            event.remove(connection, "before_cursor_execute", self._on_entry)
        self._heard = ()

    def _on_entry(self, *_: object) -> None:
        """Of a call: a cancellation that is due comes out here, but not within a commit, nor between its statements."""
        if not self.is_finishing and not self._record.commit_sent:
            self.deliver()

    def deliver(self) -> None:
        """Raises the cancellation that is held, if it is still due."""
        cancelled = None if self.held is None else self.take_held()
        if cancelled is not None:
            try:
                raise cancelled
            finally:
                del cancelled  # this frame is in its traceback

    def _end_patience(self) -> None:
        if not self.is_due:
            return
        loop = asyncio.get_running_loop()
        if self.is_waiting:
            self.unfinished = loop.create_task(self._end_of_patience())
        else:
            # Q: What else can it be at? A: It is counting again what was lent to a timeout, which takes a turn, and may
            # be through by then: test_driving.py::test_patience_that_ends_while_a_timeout_gives_back_what_it_was_lent.
            loop.call_soon(self._end_patience)

    async def _end_of_patience(self) -> None:
        before = self._transactions_ended
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORDS):
                await self._give_up()
        self._given_up = before == self._transactions_ended
        self.wake()


def _has_sqlite(session: AsyncSession) -> bool:
    """Whether it may connect to SQLite; where a ``get_bind()`` decides, that is known when it has."""
    binds: dict[Any, Any] = getattr(session, "binds", None) or {}  # not on every version, if there are none
    return any(
        bind.dialect.name == "sqlite" for bind in (session.sync_session.bind, *binds.values()) if bind is not None
    )


def _is_of_the_body(awaiting: Any) -> bool:
    return not _filename_of(awaiting).startswith(_SQLALCHEMY)


def _filename_of(awaiting: Any) -> str:
    return awaiting.cr_code.co_filename if type(awaiting) is CoroutineType else ""


def _is_in_a_call(coroutine: Any) -> bool:
    """
    Whether a coroutine of SQLAlchemy's is in the chain of what this one awaits.

    Not while it waits for a connection of the pool, which is a queue of asyncio's: that may be cut off, and is, by the
    pool's own timeout, which cancels this very task: test_driving.py::test_the_timeout_of_the_pool_is_not_held.
    A driver may wait with a timeout too, and is in a call all the same:
    test_commit_in_body.py::test_a_driver_that_waits_with_a_timeout_is_in_a_call.
    """
    is_inside = False
    # In one loop, and without a function for each link: on SQLite this is asked at every suspension.
    for awaiting in awaited_by(coroutine):
        filename = awaiting.cr_code.co_filename if type(awaiting) is CoroutineType else ""
        if filename.startswith(_SQLALCHEMY):
            is_inside = True
        elif is_inside:
            return not filename.startswith(_ASYNCIO)
    return is_inside


def _is_in_a_driver(coroutine: Any) -> bool:
    """Whether a coroutine with which SQLAlchemy calls a driver is in the chain."""
    return any(_filename_of(awaiting).startswith(_DRIVING) for awaiting in awaited_by(coroutine))
