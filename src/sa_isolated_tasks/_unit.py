"""
One unit: a session is opened, a body runs in it, the transaction is committed or rolled back, the session is closed.

::

    NEW ──> OPENING ──> BODY ──> COMMITTING ──> CLOSING ──> ENDED
                          │           │            ▲
                          └───────────┴─> ROLLING_BACK

Every failure on the way goes through ROLLING_BACK and CLOSING; there is no way past CLOSING.
"""

from __future__ import annotations

import asyncio
import enum
import math
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from time import perf_counter
from typing import Any, Generic, TypeVar, final

from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from sa_isolated_tasks._aborted import dropped_if_rollback_fails
from sa_isolated_tasks._callsite import innermost_line
from sa_isolated_tasks._driving import Driven
from sa_isolated_tasks._factory import SessionFactory, adopt
from sa_isolated_tasks._holders import is_scalar
from sa_isolated_tasks._protect import finish
from sa_isolated_tasks._results import warn_about
from sa_isolated_tasks._steps import awaited_deep_down
from sa_isolated_tasks._types import Outcome, Timing
from sa_isolated_tasks._watch import Record
from sa_isolated_tasks.exceptions import add_note, describe

__all__ = ["PATIENCE", "Phase", "Unit"]

R = TypeVar("R")
T = TypeVar("T")

# As Any, `isinstance` does not narrow to a type with unknown parameters.
_CONTEXT_MANAGER: Any = AbstractAsyncContextManager

_NO_KWARGS: dict[str, Any] = {}

PATIENCE = 10.0
"""Seconds that commit, rollback and close may take after a cancellation; a scope has its own *cancel_timeout*."""


class Phase(enum.Enum):
    """Where in its life a unit is."""

    NEW = enum.auto()
    OPENING = enum.auto()
    BODY = enum.auto()
    COMMITTING = enum.auto()
    ROLLING_BACK = enum.auto()
    CLOSING = enum.auto()
    ENDED = enum.auto()


@final
class Unit(Generic[R]):
    """
    One run of *body* in a session of its own.

    Args:
        factory: gives the session, or a context manager of one.
        body: the user's function; called in the task that runs the unit.
        args: for *body*, behind the session.
        kwargs: the same.
        before: for *body*, before the session: the object of a method.
        timeout: seconds that the body may take; past it the unit fails with ``TimeoutError``.
    """

    __slots__ = (
        "_args",
        "_before",
        "_body",
        "_body_seconds",
        "_commit_seconds",
        "_driver",
        "_factory",
        "_kwargs",
        "_record",
        "_session",
        "_task",
        "_timeout",
        "cancel_requested",
        "patience",
        "phase",
    )

    def __init__(
        self,
        factory: SessionFactory,
        body: Callable[..., Coroutine[Any, Any, R]],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        *,
        before: tuple[Any, ...] = (),
        timeout: float | None = None,
    ) -> None:
        self._factory = factory
        # Not as one closure: a unit in the queue is to be small.
        self._body = body
        self._before = before
        self._args = args
        self._kwargs = kwargs
        self._timeout = timeout
        self._record: Record | None = None
        self._session: AsyncSession | None = None
        self._driver: Driven[Any] | None = None
        self._task: asyncio.Task[Any] | None = None
        self._body_seconds = 0.0
        self._commit_seconds = 0.0
        self.phase: Phase = Phase.NEW
        self.cancel_requested: bool = False
        self.patience: float = PATIENCE

    @property
    def outcome(self) -> Outcome:
        if self._record is None:
            return Outcome.NONE
        return Outcome.UNKNOWN if self._record.abandoned else self._record.outcome

    @property
    def holds_connection(self) -> bool:
        return self._record is not None and self._record.begun

    @property
    def doing(self) -> str:
        """For a person: where the body waits, or which part of the end."""
        if self.phase is Phase.BODY and self._driver is not None:
            line = innermost_line(awaited_deep_down(self._driver.driven))
            return line and f"waits at {line}"
        return "" if self.phase in {Phase.NEW, Phase.ENDED} else self.phase.name.lower().replace("_", " ")

    @property
    def commits(self) -> int:
        return 0 if self._record is None else self._record.commits

    def timing(self, total: float, queued: float, waiting: float) -> Timing:
        held = 0.0 if self._record is None else self._record.held
        return Timing(total, queued, self._body_seconds, self._commit_seconds, held, waiting)

    async def run(self) -> R:
        """
        Runs the unit to its end in the current task.

        Blocks as long as the body does. Cancelling cancels the body, rolls back and closes; a commit that has begun is
        awaited first. The body's exception comes out as it is.
        """
        # No local of the frame is the task: after a failure it would keep itself, by the traceback.
        self._task = asyncio.current_task()
        asked = 0 if self._task is None else self._task.cancelling()
        self.phase = Phase.OPENING
        try:
            made: Any = self._factory.make()
            if not isinstance(made, AsyncSession) and isinstance(made, _CONTEXT_MANAGER):
                result = await self._run_inside(made, asked)
            else:
                self._record = record = self._factory.adopt(made)
                self._session = made
                result = await self._run_with(made, record, asked)
            # Not below: after a failure this frame is kept by its traceback.
            session, body = self._session, self._body
        finally:
            self.phase = Phase.ENDED
            self._session = self._task = self._driver = None
            self.forget()
        if not is_scalar(result):
            warn_about(result, session, body)
        return result

    def forget(self) -> None:
        """It will not run again, or never. The handle may live on; what the body was called with need not."""
        self._before = self._args = ()
        self._kwargs = None
        self._body = _gone

    async def _run_with(self, session: AsyncSession, record: Record, asked: int) -> R:
        """A session from a plain factory: commit, rollback and close are the unit's."""
        try:
            result = await self._driven(self._run_body(session, asked, commits=True), session, record)
        except BaseException as error:
            if self._is_being_collected():
                raise
            await self._roll_back(session, record, error)
            await self._close(session, error)
            raise
        sync = session.sync_session
        # Q: Why not close it all the same? A: To close an empty session costs as much as to make one.
        if record.may_stay_open and not len(sync.identity_map) and not sync.in_transaction():
            record.close()
        else:
            await self._close(session, None)
        return result

    async def _run_inside(self, manager: AbstractAsyncContextManager[Any, Any], asked: int) -> R:
        """A context manager owns its transaction: it is entered and exited, here in one task, and nothing else."""
        session = await manager.__aenter__()
        try:
            self._record = record = adopt(session, in_use=True)
            self._session = session
            result = await self._driven(self._run_body(session, asked, commits=False), session, record)
        except BaseException as error:
            if self._is_being_collected():
                raise
            self.phase = Phase.ROLLING_BACK
            # What it answers does not matter: a suppressed exception would leave the unit without a result.
            await self._timed(self._driven(_leave(manager, error), session, self._record))
            raise
        self.phase = Phase.COMMITTING
        await self._timed(self._driven(_leave(manager, None), session, record))
        return result

    def _is_being_collected(self) -> bool:
        """
        Whether the event loop has gone, and this coroutine is being closed: nothing can be awaited any more.

        Q: Why not ask for GeneratorExit? A: A body may raise that itself, and something else when it is closed:
        test_unit.py::test_a_coroutine_that_is_collected_does_no_io.
        """
        try:
            return asyncio.current_task() is not self._task
        except RuntimeError:
            return True

    async def _run_body(self, session: AsyncSession, asked: int, *, commits: bool) -> R:
        """Driven as a whole: a driver of its own for the commit would cost as much as both cost now."""
        driver = self._driver
        assert driver is not None  # noqa: S101 -- it is what runs this
        self.phase = Phase.BODY
        started = perf_counter()
        try:
            if self._timeout is None:
                result = await self._start(session)
            else:
                result = await self._run_body_in_time(session, self._timeout)
        finally:
            self._body_seconds = perf_counter() - started
        # Q: The body returned; why ask? A: It, or a TaskGroup in it, may have swallowed the cancellation, and half of
        # what it wanted to write would be committed: test_unit.py::test_a_swallowed_cancellation_rolls_back.
        if driver.held is not None:
            driver.deliver()
        times = 0 if self._task is None else self._task.cancelling() - driver.left_by_groups
        if self.cancel_requested or times > asked:
            raise asyncio.CancelledError
        if commits and session.in_transaction():
            self.phase = Phase.COMMITTING
            driver.is_finishing = True
            await self._commit(session)
        return result

    def _start(self, session: AsyncSession) -> Coroutine[Any, Any, R]:
        return self._body(*self._before, session, *self._args, **self._kwargs or _NO_KWARGS)

    def _driven(self, work: Coroutine[Any, Any, T], session: AsyncSession, record: Record | None) -> Awaitable[T]:
        """Step by step, so that no cancellation cuts a commit off; as it is if the session was not accepted."""
        if record is None:
            return work
        driver = self._driver = Driven(work, session, record, self.patience, self.abandon)
        return driver

    async def _run_body_in_time(self, session: AsyncSession, seconds: float) -> R:
        deadline = asyncio.timeout(seconds)
        try:
            async with deadline:
                result = await self._start(session)
        except Exception as error:
            if deadline.expired() and not isinstance(error, TimeoutError):
                raise TimeoutError from error  # SQLite's answer to being interrupted; a CancelledError is another's
            raise
        if deadline.expired():  # the body swallowed it
            raise TimeoutError
        return result

    async def _commit(self, session: AsyncSession) -> None:
        started = perf_counter()
        try:
            await session.commit()
        except Exception as error:
            if self.cancel_requested:
                # The cancellation may be through, having cut the connection off, and this be its answer.
                raise asyncio.CancelledError from error
            raise
        finally:
            self._commit_seconds = perf_counter() - started

    async def _roll_back(self, session: AsyncSession, record: Record, error: BaseException) -> None:
        if not session.in_transaction():
            return
        self.phase = Phase.ROLLING_BACK
        try:
            with dropped_if_rollback_fails(record.connections):
                await self._timed(self._clean_up(session.rollback(), error))
        except asyncio.CancelledError:
            pass  # it came during the rollback, which is complete; *error* ends the task just as well
        except BaseException as failure:  # noqa: BLE001 -- *error* made the rollback necessary, and is raised after it
            add_note(error, f"the rollback failed too: {describe(failure)}")

    async def _close(self, session: AsyncSession, error: BaseException | None) -> None:
        self.phase = Phase.CLOSING
        if _closes_without_io(session):
            session.sync_session.close()
            return
        try:
            await self._clean_up(session.close(), error)
        except asyncio.CancelledError:
            if error is None:
                raise
        except BaseException as failure:
            await self._clean_up(session.invalidate(), failure)
            if error is None:
                raise
            add_note(error, f"closing the session failed too: {describe(failure)}")

    async def _clean_up(self, work: Coroutine[Any, Any, None], error: BaseException | None) -> None:
        """To its end, or as long as patience lasts from the cancellation that made it necessary."""
        cancelled = self.cancel_requested or isinstance(error, asyncio.CancelledError)
        since = asyncio.get_running_loop().time() if cancelled else math.inf
        await finish(work, patience=self.patience, since=since, give_up=self.abandon)

    async def abandon(self) -> None:
        """Patience has ended: the connection is cut, and what becomes of the transaction is the server's business."""
        session, record = self._session, self._record
        if session is not None and record is not None and record.begun:
            record.abandoned = True
            if record.is_cut_at_once:
                # In a greenlet SQLAlchemy would leave a task behind that waits for the thread, and `asyncio.run` would
                # wait for the task: test_leaving.py::test_a_program_whose_unit_was_cut_off.
                record.cut_connections()
                return
            # In a greenlet, so that a driver which closes its connections by a coroutine can do so.
            await session.run_sync(lambda _: record.cut_connections())

    async def _timed(self, ending: Awaitable[object]) -> None:
        started = perf_counter()
        try:
            await ending
        finally:
            self._commit_seconds += perf_counter() - started


async def _leave(manager: AbstractAsyncContextManager[Any, Any], error: BaseException | None) -> None:
    if error is None:
        await manager.__aexit__(None, None, None)
    else:
        await manager.__aexit__(type(error), error, error.__traceback__)


def _closes_without_io(session: AsyncSession) -> bool:
    """No connection is held, and nobody has put code of their own into ``close()``."""
    plain = type(session).close is AsyncSession.close and type(session.sync_session).close is Session.close
    return plain and not session.in_transaction()


async def _gone(*_: Any) -> Any:
    """Stands in for the body of a unit that has ended, and is never run."""
