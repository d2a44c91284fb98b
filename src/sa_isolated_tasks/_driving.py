"""
Keeps cancellations out of database calls, for drivers that do not survive them.

aiosqlite runs statements in a thread. A cancellation in the middle of one makes SQLAlchemy give the connection up,
while the thread goes on and holds the lock of the database: the next units fail with "database is locked". So the body
is driven step by step here; a cancellation that comes while it is inside a call waits for the call, and is delivered at
the next suspension outside of one, at the entry of the next call, or at the end of the body.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import Callable, Coroutine, Generator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Generic, TypeVar, final

import sqlalchemy
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncSession

from sa_isolated_tasks._protect import anyio_shield, times_cancelled

__all__ = ["Driven", "needs_driving"]

R = TypeVar("R")
T = TypeVar("T")

_SQLALCHEMY = str(Path(sqlalchemy.__file__).parent)
# The name of asyncio's, and of the one that SQLAlchemy 2.1 has for Python 3.11.
_WAIT_FOR = "wait_for"
_ENTRIES = ("do_orm_execute", "before_flush", "before_commit")


def needs_driving(session: AsyncSession) -> bool:
    """Whether the session's database is one whose driver leaves a lock behind."""
    bind = session.sync_session.bind
    return bind is not None and bind.dialect.name == "sqlite"


@final
class Driven(Generic[R]):
    """
    Awaits a coroutine in the current task, as ``await`` does, apart from cancellations inside of a database call.

    Args:
        coroutine: the body of a unit; calls that it makes in tasks of its own are not seen.
        session: the unit's.
        interrupt: called when a cancellation has waited for *patience* seconds: ends the running statement.
        patience: seconds.
    """

    __slots__ = ("_asked", "_coroutine", "_held", "_interrupt", "_listening", "_patience", "_session")

    def __init__(
        self,
        coroutine: Coroutine[Any, Any, R],
        session: AsyncSession,
        interrupt: Callable[[], object],
        patience: float,
    ) -> None:
        self._coroutine = coroutine
        self._session = session
        self._interrupt = interrupt
        self._patience = patience
        # Delivered as it came: by its text an anyio cancel scope knows its own.
        self._held: asyncio.CancelledError | None = None
        self._listening = False
        self._asked = 0

    def __await__(self) -> Generator[Any, None, R]:
        thrown: BaseException | None = None
        try:
            while True:
                try:
                    waiting = self._coroutine.send(None) if thrown is None else self._coroutine.throw(thrown)
                except StopIteration as end:
                    result: R = end.value
                    return self._unless_cancelled(result)
                thrown = None
                if waiting is not None and _is_in_a_call(self._coroutine):
                    yield from self._wait_for_call(waiting)
                else:
                    thrown = self._take_held() or (yield from _pass_on(waiting))
        finally:
            self._held = None
            self._coroutine.close()

    def _unless_cancelled(self, result: T) -> T:
        """The last moment, and the entry of a call: a cancellation that is due comes out here."""
        cancelled = self._take_held()
        if cancelled is not None:
            raise cancelled
        return result

    def _wait_for_call(self, waiting: asyncio.Future[Any]) -> Generator[Any, None, None]:
        """Waits for what the call waits for; a cancellation is remembered, and does not get there."""
        # Whoever yields a future to its task says so by this flag; it is another one that is yielded now.
        waiting._asyncio_future_blocking = False  # noqa: SLF001 -- the protocol between futures and tasks
        asked = times_cancelled()
        # Held already: this is a later part of the same call.
        timer = self._start_timer(waiting) if self._held is not None else None
        shield: AbstractContextManager[Any] = contextlib.nullcontext()
        while not waiting.done():
            try:
                with shield:
                    yield from _end_of(waiting)
            except asyncio.CancelledError as cancelled:
                shield = anyio_shield()
                if self._held is None:
                    self._hold(cancelled, asked)
                timer = timer or self._start_timer(waiting)
        if timer is not None:
            timer.cancel()

    def _start_timer(self, waiting: asyncio.Future[Any]) -> asyncio.TimerHandle:
        return waiting.get_loop().call_later(self._patience, self._interrupt)

    def _hold(self, cancelled: asyncio.CancelledError, asked: int) -> None:
        self._held = cancelled
        self._asked = asked
        for name in () if self._listening else _ENTRIES:
            event.listen(self._session.sync_session, name, self._on_entry)
        self._listening = True

    def _on_entry(self, *_: object) -> None:
        self._unless_cancelled(None)

    def _take_held(self) -> asyncio.CancelledError | None:
        """The cancellation that is due: none if who asked for it, a timeout in the body, has taken it back."""
        held, self._held = self._held, None
        return held if times_cancelled() > self._asked else None


def _end_of(waiting: asyncio.Future[Any]) -> asyncio.Future[None]:
    """A future that is done when *waiting* is, and may be cancelled in its place; the result stays the call's."""
    end: asyncio.Future[None] = waiting.get_loop().create_future()

    def wake(_: object) -> None:
        if not end.done():
            end.set_result(None)

    waiting.add_done_callback(wake)
    return end


def _pass_on(waiting: Any) -> Generator[Any, None, BaseException | None]:
    """Yields to the task; gives what the task throws."""
    try:
        yield waiting
    except GeneratorExit:
        raise
    except BaseException as error:  # noqa: BLE001 -- it is thrown into the coroutine
        return error
    return None


def _is_in_a_call(coroutine: Any) -> bool:
    """
    Whether a coroutine of SQLAlchemy's is in the chain of what this one awaits.

    Not while it waits for a connection of the pool: that may be cut off, and is, by the pool's own timeout, which
    cancels this very task: test_driving.py::test_the_timeout_of_the_pool_is_not_held.
    """
    found = False
    awaiting = coroutine
    while True:
        code = getattr(awaiting, "cr_code", None)
        if found and code is not None and code.co_name == _WAIT_FOR:
            return False
        found = found or (code is not None and code.co_filename.startswith(_SQLALCHEMY))
        inner = getattr(awaiting, "cr_await", None) or getattr(awaiting, "ag_await", None)
        if inner is None and type(awaiting).__name__ == "coroutine_wrapper":
            inner = next((held for held in gc.get_referents(awaiting) if hasattr(held, "cr_await")), None)
        if inner is None:
            return found
        awaiting = inner
