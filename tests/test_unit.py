"""One unit's life on each database: open, body, commit or roll back, close; and what a cancellation may not do."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import warnings
from collections import deque
from time import perf_counter
from types import TracebackType

import anyio
import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session as SyncSession
from sqlalchemy.orm import sessionmaker
from support import Item, session_maker

from sa_isolated_tasks import IsolatedTasksWarning, Outcome, isolated_session
from sa_isolated_tasks._factory import SessionFactory
from sa_isolated_tasks._unit import Phase, Unit
from sa_isolated_tasks._watch import watch_sessions


@pytest.fixture(autouse=True)
def _watching():
    watch_sessions()


def unit_of(factory, body, **options):
    return Unit(SessionFactory(factory), body, **options)


async def add(session, name="a"):
    session.add(Item(name=name))


async def test_a_row_is_committed_when_the_body_returns(engine, Session, names_in_table):
    """The body returned: the transaction in progress is committed."""
    unit = unit_of(Session, add)

    await unit.run()

    assert ["a"] == await names_in_table(engine)
    assert (Outcome.COMMITTED, 1, Phase.ENDED) == (unit.outcome, unit.commits, unit.phase)


async def test_a_row_is_rolled_back_when_the_body_raises(engine, Session, names_in_table):
    """The body raised: nothing is written, and its exception comes out as it is."""
    error = ValueError("no")

    async def body(session):
        await add(session)
        await session.flush()
        raise error

    unit = unit_of(Session, body)

    with pytest.raises(ValueError) as caught:
        await unit.run()

    assert [] == await names_in_table(engine)
    assert (error, Outcome.ROLLED_BACK, 0) == (caught.value, unit.outcome, unit.commits)


async def test_a_body_that_never_touches_the_database_costs_no_connection(engine, Session):
    """No connection is checked out, and the outcome is NONE."""
    checkouts = []
    event.listen(engine.sync_engine.pool, "checkout", lambda *args: checkouts.append(args))

    async def body(session):
        return isinstance(session, AsyncSession)

    unit = unit_of(Session, body)
    result = await unit.run()

    assert (True, [], Outcome.NONE) == (result, checkouts, unit.outcome)


async def test_a_read_takes_one_connection_and_gives_it_back(engine, Session):
    """One checkout for a unit that reads, returned to the pool when the unit has ended."""
    checkouts = []
    event.listen(engine.sync_engine.pool, "checkout", lambda *args: checkouts.append(args))

    async def body(session):
        return (await session.execute(sa.text("select 1"))).scalar()

    unit = unit_of(Session, body)
    result = await unit.run()

    assert (1, 1, 0) == (result, len(checkouts), engine.pool.checkedout())


async def test_the_body_may_commit_roll_back_and_begin_as_it_likes(engine, Session, names_in_table):
    """No enclosing block: three transactions in one body, two of them committed, then one by the unit."""

    async def body(session):
        await add(session, "a")
        await session.commit()
        await add(session, "b")
        await session.rollback()
        async with session.begin():
            await add(session, "c")
        await add(session, "d")

    unit = unit_of(Session, body)
    await unit.run()

    assert ["a", "c", "d"] == await names_in_table(engine)
    assert (3, Outcome.COMMITTED) == (unit.commits, unit.outcome)


async def test_a_body_that_committed_once_and_failed_shows_both(engine, Session, names_in_table):
    """The outcome is that of the last transaction; the count shows the commit before it."""

    async def body(session):
        await add(session, "a")
        await session.commit()
        await add(session, "b")
        await session.flush()
        raise ValueError

    unit = unit_of(Session, body)
    with pytest.raises(ValueError):
        await unit.run()

    assert ["a"] == await names_in_table(engine)
    assert (1, Outcome.ROLLED_BACK) == (unit.commits, unit.outcome)


async def test_a_savepoint_is_no_outcome(engine, Session, names_in_table):
    """A savepoint that is rolled back changes neither the outcome nor the count."""

    async def body(session):
        await add(session, "a")
        with contextlib.suppress(ValueError):
            async with session.begin_nested():
                await add(session, "b")
                raise ValueError

    unit = unit_of(Session, body)
    await unit.run()

    assert ["a"] == await names_in_table(engine)
    assert (1, Outcome.COMMITTED) == (unit.commits, unit.outcome)


async def test_a_failed_commit_is_the_failure_of_the_unit(engine, Session, names_in_table):
    """The flush inside the commit violates a constraint: the error comes out, nothing is written, all is closed."""
    await unit_of(Session, add).run()
    unit = unit_of(Session, add)

    with pytest.raises(IntegrityError):
        await unit.run()

    assert ["a"] == await names_in_table(engine)
    assert (Outcome.ROLLED_BACK, 0) == (unit.outcome, engine.pool.checkedout())


def end_connection(engine, connection, pid):
    """Ends the server's side of the current connection from another one, in the middle of a call."""

    async def terminate():
        async with engine.connect() as another:
            await another.execute(sa.text("select pg_terminate_backend(:pid)"), {"pid": pid})

    connection.connection.dbapi_connection.run_async(lambda _: terminate())


async def pid_of(session):
    return (await session.execute(sa.text("select pg_backend_pid()"))).scalar()


@pytest.mark.parametrize("whose", ["the unit's", "the body's"])
async def test_a_connection_that_dies_during_the_commit_leaves_the_outcome_unknown(psycopg, make_engine, whose):
    """COMMIT itself fails because the server has ended the connection: nobody knows, and nobody pretends to."""
    engine, another = make_engine(psycopg), make_engine(psycopg)

    async def body(session):
        pid = await pid_of(session)
        event.listen(engine.sync_engine, "commit", lambda connection: end_connection(another, connection, pid))
        if whose == "the body's":
            await session.commit()

    unit = unit_of(session_maker(engine), body)
    with pytest.raises(DBAPIError):
        await unit.run()

    assert Outcome.UNKNOWN is unit.outcome


async def test_a_connection_that_dies_in_the_flush_of_a_commit_has_committed_nothing(psycopg, make_engine):
    """COMMIT was never sent, so the outcome is known, though it is ``commit()`` that fails."""
    engine, another = make_engine(psycopg), make_engine(psycopg)

    async def body(session):
        pid = await pid_of(session)
        session.add(Item(name="a"))
        event.listen(
            session.sync_session,
            "before_flush",
            lambda flushing, *_: end_connection(another, flushing.connection(), pid),
        )

    unit = unit_of(session_maker(engine), body)
    with pytest.raises(DBAPIError):
        await unit.run()

    assert Outcome.ROLLED_BACK is unit.outcome


async def test_a_unit_has_ten_seconds_for_its_clean_up(LiteSession):
    """That of a decorated function, as the page on cancellation says; a scope's have what the scope gives them."""
    assert 10 == unit_of(LiteSession, add).patience


async def test_an_empty_session_is_not_closed_by_a_call(LiteSession, monkeypatch):
    """It would do nothing, and cost as much as to make one."""
    closed = []
    close = SyncSession.close
    monkeypatch.setattr(SyncSession, "close", lambda session: closed.append(close(session)))

    async def nothing(_session):
        pass

    factory = SessionFactory(LiteSession)
    factory.check_isolation()
    await Unit(factory, nothing).run()

    assert [] == closed


async def test_the_phases_follow_each_other(engine, Session):
    """NEW, BODY, COMMITTING, ENDED, as seen from the body and from the session's own events."""
    seen = []

    async def body(session):
        await add(session)
        seen.append(unit.phase)
        event.listen(session.sync_session, "before_commit", lambda _: seen.append(unit.phase))

    unit = unit_of(Session, body)
    seen.append(unit.phase)
    await unit.run()
    seen.append(unit.phase)

    assert [Phase.NEW, Phase.BODY, Phase.COMMITTING, Phase.ENDED] == seen


@pytest.mark.parametrize("fails", [False, True])
async def test_the_phases_around_the_body_follow_each_other_too(sqlite_engine, fails):
    """The factory is called in OPENING; after a failure comes ROLLING_BACK, and CLOSING after everything."""
    seen = []

    class Noting(AsyncSession):
        async def commit(self):
            seen.append(unit.phase)
            await super().commit()

        async def rollback(self):
            seen.append(unit.phase)
            await super().rollback()

        async def close(self):
            seen.append(unit.phase)
            await super().close()

    def factory():
        seen.append(unit.phase)
        return Noting(sqlite_engine)

    async def body(session):
        await add(session)
        if fails:
            raise ValueError

    unit = unit_of(factory, body)
    with contextlib.suppress(ValueError):
        await unit.run()

    ending = Phase.ROLLING_BACK if fails else Phase.COMMITTING
    assert [Phase.OPENING, ending, Phase.CLOSING] == seen


@pytest.mark.parametrize("fails", [False, True])
async def test_the_phases_around_a_context_manager_follow_each_other(LiteSession, fails):
    """It is entered in OPENING, and exited in COMMITTING, or in ROLLING_BACK after a failure."""
    seen = []

    @contextlib.asynccontextmanager
    async def get_session():
        async with LiteSession() as session:
            seen.append(unit.phase)
            try:
                yield session
            finally:
                seen.append(unit.phase)

    async def body(_session):
        seen.append(unit.phase)
        if fails:
            raise ValueError

    unit = unit_of(get_session, body)
    with contextlib.suppress(ValueError):
        await unit.run()

    ending = Phase.ROLLING_BACK if fails else Phase.COMMITTING
    assert [Phase.OPENING, Phase.BODY, ending, Phase.ENDED] == [*seen, unit.phase]


@pytest.mark.parametrize("end", ["rollback", "context manager"])
async def test_the_time_of_a_rollback_is_that_of_a_commit(engine, Session, end):
    """So it is of the exit of a context manager, which owns its transaction: the parts fit in the whole."""

    @contextlib.asynccontextmanager
    async def manager():
        async with Session() as session:
            yield session
            await session.rollback()

    async def body(session):
        await add(session)
        await session.flush()
        if end == "rollback":
            raise ValueError("no")

    unit = unit_of(Session if end == "rollback" else manager, body)
    started = perf_counter()
    with contextlib.suppress(ValueError):
        await unit.run()
    total = perf_counter() - started
    timing = unit.timing(total, queued=0.0, waiting=0.0)

    assert 0 < timing.commit < total
    assert timing.body + timing.commit < total


async def test_timing_splits_the_time(engine, Session):
    """Body, commit and connection are positive for a unit that writes, and no part is longer than the whole."""
    unit = unit_of(Session, add)
    await unit.run()

    timing = unit.timing(total=60.0, queued=0.0, waiting=0.0)

    assert all(0 < part < 60 for part in (timing.body, timing.commit, timing.connection))


async def test_a_swallowed_cancellation_rolls_back(engine, Session, names_in_table):
    """The body swallows its cancellation and returns: nothing is written, and the cancellation goes on."""
    reached = asyncio.Event()

    async def body(session):
        await add(session)
        await session.flush()
        reached.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()

    unit = unit_of(Session, body)
    task = asyncio.create_task(unit.run())
    await reached.wait()

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert [] == await names_in_table(engine)
    assert Outcome.ROLLED_BACK is unit.outcome


GROUPS = ["in the block", "at its end", "twice", "behind an inner group", "in a manager", "in a unit", "in steps"]


@pytest.mark.parametrize("where", GROUPS)
async def test_a_failure_in_a_task_group_that_the_body_handles_cancels_nothing(Session, engine, names_in_table, where):
    """The group has cancelled its task to stop the block, and that is over; the unit commits."""

    async def fail():
        await asyncio.sleep(0)
        raise ValueError

    async def run_group():
        with contextlib.suppress(ExceptionGroup):
            async with asyncio.TaskGroup() as group:
                group.create_task(fail())
                if where == "behind an inner group":
                    async with asyncio.TaskGroup() as inner:
                        inner.create_task(asyncio.Event().wait())
                if where == "in the block":
                    await asyncio.Event().wait()

    @contextlib.asynccontextmanager
    async def manager():
        await run_group()
        yield

    async def steps():
        await run_group()
        yield

    @isolated_session(Session)
    async def inner(_session):
        await run_group()

    async def body(session):
        if where == "in a manager":
            async with manager():
                pass
        elif where == "in steps":
            async for _ in steps():
                pass
        elif where == "in a unit":
            await inner()
        else:
            await run_group()
        if where == "twice":
            await run_group()
        await add(session)

    unit = unit_of(Session, body)
    await unit.run()

    assert (["a"], Outcome.COMMITTED) == (await names_in_table(engine), unit.outcome)


@pytest.mark.parametrize("waits", [False, True])
async def test_a_cancellation_after_a_task_group_counts(LiteSession, sqlite_engine, names_in_table, waits):
    """The group was stopped in its block, or at its end, and that is over; what is swallowed later is another one."""
    reached = asyncio.Event()

    async def fail():
        await asyncio.sleep(0)
        raise ValueError

    async def body(session):
        await add(session)
        with contextlib.suppress(ExceptionGroup):
            async with asyncio.TaskGroup() as group:
                group.create_task(fail())
                if waits:
                    await asyncio.Event().wait()
        reached.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()

    task = asyncio.create_task(unit_of(LiteSession, body).run())
    await reached.wait()
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    assert [] == await names_in_table(sqlite_engine)


@pytest.mark.parametrize("who", ["a task", "the block"])
async def test_a_cancellation_while_a_task_group_is_stopped_counts(LiteSession, sqlite_engine, names_in_table, who):
    """The group swallows what comes from outside while it waits for its tasks; the unit is cancelled all the same."""
    stopping, release = asyncio.Event(), asyncio.Event()

    async def fail():
        raise ValueError

    async def linger():
        try:
            await asyncio.Event().wait()
        finally:
            stopping.set()
            await release.wait()

    async def body(session):
        await add(session)
        with contextlib.suppress(ExceptionGroup):
            async with asyncio.TaskGroup() as group:
                group.create_task(linger())
                await asyncio.sleep(0)
                if who == "the block":
                    await fail()
                group.create_task(fail())

    unit = unit_of(LiteSession, body)
    task = asyncio.create_task(unit.run())
    await stopping.wait()
    task.cancel()
    await asyncio.sleep(0)
    release.set()

    with pytest.raises(asyncio.CancelledError):
        await task
    assert ([], Outcome.NONE) == (await names_in_table(sqlite_engine), unit.outcome)


async def test_a_cancellation_that_a_helper_of_a_task_group_has_taken_rolls_back(engine, Session, names_in_table):
    """A CancelledError in a helper is swallowed by its TaskGroup: asked for by the handle, it rolls back."""
    reached = asyncio.Event()

    async def body(session):
        await add(session, "a")

        async def helper():
            reached.set()
            await asyncio.Event().wait()

        async with asyncio.TaskGroup() as group:
            helpers.append(group.create_task(helper()))
        await add(session, "b")

    helpers = []
    unit = unit_of(Session, body)
    task = asyncio.create_task(unit.run())
    await reached.wait()

    unit.cancel_requested = True
    helpers[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert [] == await names_in_table(engine)


async def test_a_cancellation_during_the_commit_waits_for_it(engine, Session, names_in_table):
    """Cancelled while committing: the commit is awaited, its outcome recorded, then the cancellation goes on."""

    async def body(session):
        await add(session)
        event.listen(session.sync_session, "before_commit", lambda _: task.cancel())

    unit = unit_of(Session, body)
    task = asyncio.create_task(unit.run())
    with pytest.raises(asyncio.CancelledError):
        await task

    assert ["a"] == await names_in_table(engine)
    assert (Outcome.COMMITTED, 0) == (unit.outcome, engine.pool.checkedout())


async def test_a_cancellation_during_the_rollback_does_not_hide_the_error(engine, Session):
    """Cancelled while rolling back after an error: the rollback is awaited, and the error comes out."""

    async def body(session):
        await add(session)
        await session.flush()
        event.listen(session.sync_session, "after_rollback", lambda _: task.cancel())
        raise ValueError("first")

    unit = unit_of(Session, body)
    task = asyncio.create_task(unit.run())
    with pytest.raises(ValueError, match="first"):
        await task

    assert (Outcome.ROLLED_BACK, 0) == (unit.outcome, engine.pool.checkedout())


async def test_a_unit_past_its_timeout_fails_and_is_rolled_back(engine, Session, names_in_table):
    """The body is cancelled when its time is over; what comes out is TimeoutError."""

    async def body(session):
        await add(session)
        await session.flush()
        await asyncio.Event().wait()

    unit = unit_of(Session, body, timeout=0)
    with pytest.raises(TimeoutError):
        await unit.run()

    assert [] == await names_in_table(engine)


async def test_a_timeout_that_the_body_swallows_fails_all_the_same(engine, Session, names_in_table):
    """A body that catches the cancellation of its timeout and returns does not get its row committed."""

    async def body(session):
        await add(session)
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()

    unit = unit_of(Session, body, timeout=0)
    with pytest.raises(TimeoutError):
        await unit.run()

    assert [] == await names_in_table(engine)


async def test_a_unit_within_its_timeout_succeeds(engine, Session, names_in_table):
    """A timeout that is not reached changes nothing, at the result neither."""

    async def body(session):
        await add(session)
        return 42

    assert 42 == await unit_of(Session, body, timeout=60).run()
    assert ["a"] == await names_in_table(engine)


async def test_a_body_that_fails_within_its_timeout_fails_with_its_own_error(LiteSession):
    """Only what the end of the time has brought about is a TimeoutError."""

    async def body(_session):
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await unit_of(LiteSession, body, timeout=60).run()


async def test_a_timeout_inside_the_body_is_the_bodys_own(engine, Session, names_in_table):
    """A body that handles a timeout of its own is not taken for one that swallows a cancellation."""

    async def body(session):
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0):
                await asyncio.Event().wait()
        with anyio.move_on_after(0):
            await asyncio.Event().wait()
        await add(session)

    await unit_of(Session, body).run()

    assert ["a"] == await names_in_table(engine)


@pytest.mark.filterwarnings("ignore:transaction already deassociated")
async def test_one_of_two_commits_that_fails_leaves_the_outcome_unknown(sqlite_engine, make_engine, sqlite):
    """A session over two engines has one COMMIT for each: the other one may have been the first."""
    other = make_engine(sqlite)

    @event.listens_for(other.sync_engine, "commit")
    def _(_connection):
        raise OSError("no")

    async def body(session):
        for engine in (sqlite_engine, other):
            await session.execute(sa.text("select 1"), bind_arguments={"bind": engine.sync_engine})

    unit = unit_of(session_maker(sqlite_engine), body)
    with pytest.raises(OSError, match="no"):
        await unit.run()

    assert (Outcome.UNKNOWN, 0) == (unit.outcome, unit.commits)


async def test_an_error_that_takes_no_note_is_raised_all_the_same(sqlite_engine, LiteSession, monkeypatch, caplog):
    """Nothing can be set on a frozen dataclass: what failed after it is in the log, and the session is closed."""

    @dataclasses.dataclass(frozen=True)
    class NotFoundError(Exception):
        key: int

    async def body(session):
        await session.execute(sa.text("select 1"))
        monkeypatch.setattr(type(session), "rollback", broken)
        raise NotFoundError(1)

    async def broken(_session):
        raise OSError("second")

    with pytest.raises(NotFoundError):
        await unit_of(LiteSession, body).run()

    assert "it takes no note: the rollback failed too: OSError: second" in caplog.text
    assert sqlite_engine.pool.checkedout() == 0


async def test_a_rollback_that_fails_is_a_note_on_the_error(LiteSession, monkeypatch):
    """The error of the body comes out; the failure of the clean-up is not lost."""

    async def body(session):
        await session.execute(sa.text("select 1"))
        monkeypatch.setattr(type(session), "rollback", broken)
        raise ValueError("first")

    async def broken(_session):
        raise OSError("second")

    with pytest.raises(ValueError, match="first") as caught:
        await unit_of(LiteSession, body).run()

    assert ["the rollback failed too: OSError: second"] == caught.value.__notes__


class Unclosable(AsyncSession):
    """A session whose ``close()`` fails until it is invalidated."""

    invalidated = False

    async def close(self):
        if not self.invalidated:
            raise OSError("cannot close")
        await super().close()

    async def invalidate(self):
        Unclosable.invalidated = True
        await super().invalidate()


@pytest.fixture
def UnclosableSession(sqlite_engine):
    Unclosable.invalidated = False
    return sessionmaker(sqlite_engine, class_=Unclosable)


async def test_a_close_that_fails_is_the_failure_of_the_unit(UnclosableSession):
    """The connection is invalidated rather than leaked, and the error comes out."""
    with pytest.raises(OSError, match="cannot close"):
        await unit_of(UnclosableSession, add).run()

    assert Unclosable.invalidated


async def test_a_close_that_fails_after_an_error_is_a_note_on_it(UnclosableSession):
    """The error of the body comes out; the failing close is noted."""

    async def body(_session):
        raise ValueError("first")

    with pytest.raises(ValueError, match="first") as caught:
        await unit_of(UnclosableSession, body).run()

    assert ["closing the session failed too: OSError: cannot close"] == caught.value.__notes__


class SlowlyClosing(AsyncSession):
    """A session whose ``close()`` waits."""

    reached: asyncio.Event
    release: asyncio.Event

    async def close(self):
        self.reached.set()
        await self.release.wait()
        await super().close()


@pytest.mark.parametrize("fails", [False, True])
async def test_a_cancellation_during_the_close_waits_for_it(sqlite_engine, names_in_table, fails):
    """The close is awaited; then the cancellation goes on, or the error of the body, if there was one."""
    SlowlyClosing.reached, SlowlyClosing.release = asyncio.Event(), asyncio.Event()

    async def body(session):
        await add(session)
        if fails:
            raise ValueError("first")

    unit = unit_of(sessionmaker(sqlite_engine, class_=SlowlyClosing), body)
    task = asyncio.create_task(unit.run())
    await SlowlyClosing.reached.wait()
    task.cancel()
    await asyncio.sleep(0)
    SlowlyClosing.release.set()
    with pytest.raises(ValueError if fails else asyncio.CancelledError):
        await task

    assert ([] if fails else ["a"]) == await names_in_table(sqlite_engine)


async def test_a_session_in_a_transaction_after_its_commit_is_closed_with_io(LiteSession, sqlite_engine):
    """A hook has begun again after the commit: the connection still goes back to the pool."""

    async def body(session):
        await session.execute(sa.text("select 1"))

        @event.listens_for(session.sync_session, "after_transaction_end", once=True)
        def _begin_again(sync_session, _transaction):
            sync_session.begin()

    await unit_of(LiteSession, body).run()

    assert 0 == sqlite_engine.pool.checkedout()


async def test_a_close_of_the_users_own_may_do_io(sqlite_engine):
    """A synchronous session class with a ``close()`` that reads: it has a greenlet, though no transaction is open."""
    closed = []

    class Reading(SyncSession):
        def close(self):
            closed.append(self.execute(sa.text("select 1")).scalar())
            super().close()

    async def body(session):
        return isinstance(session.sync_session, Reading)

    unit = unit_of(lambda: AsyncSession(sqlite_engine, sync_session_class=Reading), body)

    assert await unit.run()
    assert [1] == closed


@pytest.mark.parametrize("last_words", [GeneratorExit, ValueError])
async def test_a_coroutine_that_is_collected_does_no_io(sqlite_engine, last_words):
    """The loop is gone and the coroutine is closed: it ends without awaiting, whatever the body makes of that."""
    calls = []

    class Noting(AsyncSession):
        async def rollback(self):
            calls.append("rollback")

        async def close(self):
            calls.append("close")

    async def body(session):
        await session.begin()
        try:
            await asyncio.Event().wait()
        except GeneratorExit:
            raise last_words from None

    coroutine = unit_of(sessionmaker(sqlite_engine, class_=Noting), body).run()
    coroutine.send(None)

    with contextlib.suppress(ValueError):
        await asyncio.to_thread(coroutine.close)

    assert (None, []) == (coroutine.cr_frame, calls)


@pytest.mark.parametrize("managed", [False, True])
async def test_a_body_may_raise_even_generator_exit(engine, Session, names_in_table, managed):
    """That is no sign that nothing can be awaited: it is rolled back and closed as for any other exception."""

    @contextlib.asynccontextmanager
    async def get_session():
        async with Session() as session:
            yield session

    async def body(session):
        await add(session)
        await session.flush()
        raise GeneratorExit

    unit = unit_of(get_session if managed else Session, body)
    with pytest.raises((GeneratorExit, RuntimeError)):
        await unit.run()

    assert [] == await names_in_table(engine)
    assert (Outcome.ROLLED_BACK, 0) == (unit.outcome, engine.pool.checkedout())


async def test_a_coroutine_with_a_context_manager_that_is_collected_does_no_io(LiteSession):
    """The same for a context-manager factory: it is not exited, since exiting may await."""
    exits = []

    class Manager:
        async def __aenter__(self):
            return LiteSession()

        async def __aexit__(self, *error):
            exits.append(error)

    async def body(_session):
        await asyncio.Event().wait()

    coroutine = unit_of(Manager, body).run()
    coroutine.send(None)

    await asyncio.to_thread(coroutine.close)

    assert [] == exits


async def test_a_context_manager_owns_its_transaction(engine, Session, names_in_table):
    """It is entered and exited in the unit's task, and what it does on exit decides about the rows."""
    steps = []

    @contextlib.asynccontextmanager
    async def get_session():
        async with Session() as session:
            steps.append(("enter", asyncio.current_task()))
            try:
                yield session
                await session.commit()
            finally:
                steps.append(("exit", asyncio.current_task()))

    unit = unit_of(get_session, add)
    await unit.run()

    assert ["a"] == await names_in_table(engine)
    assert [("enter", asyncio.current_task()), ("exit", asyncio.current_task())] == steps
    assert (Outcome.COMMITTED, 1) == (unit.outcome, unit.commits)


async def test_a_context_manager_sees_the_error_of_the_body(engine, Session, names_in_table):
    """The body's error goes through the context manager and comes out, even if that suppresses it."""
    seen = []

    @contextlib.asynccontextmanager
    async def get_session():
        async with Session() as session:
            try:
                yield session
            except ValueError as error:
                seen.append(error)

    async def body(session):
        await add(session)
        await session.flush()
        raise ValueError("no")

    unit = unit_of(get_session, body)
    with pytest.raises(ValueError) as caught:
        await unit.run()

    assert [] == await names_in_table(engine)
    assert [caught.value] == seen
    assert Outcome.ROLLED_BACK is unit.outcome


@pytest.mark.parametrize("fails", [False, True])
async def test_a_context_manager_is_exited_as_by_a_with_statement(LiteSession, fails):
    """With the type, the exception and its traceback; with three times None if there was none."""
    exits = []
    error = ValueError("no")

    class Manager:
        async def __aenter__(self):
            return LiteSession()

        async def __aexit__(self, *details):
            exits.append(details)

    async def body(_session):
        if fails:
            raise error

    with contextlib.suppress(ValueError):
        await unit_of(Manager, body).run()

    assert [(ValueError, error, exits[0][2]) if fails else (None, None, None)] == exits
    assert fails == isinstance(exits[0][2], TracebackType)


@pytest.mark.parametrize(
    "wrap", [lambda item: item, lambda item: [item], lambda item: {"item": item}], ids=["itself", "list", "dict"]
)
async def test_an_expired_instance_as_the_result_is_warned_about(engine, Session, wrap):
    """The commit has expired it and the session is closed: the warning names function, class and cure."""

    async def make(session):
        item = Item(name="a")
        session.add(item)
        return wrap(item)

    with pytest.warns(
        IsolatedTasksWarning, match="returned an instance of Item that is expired.*expire_on_commit"
    ) as seen:
        await unit_of(Session, make).run()

    assert __file__ == seen[0].filename
    assert make.__code__.co_firstlineno == seen[0].lineno


@pytest.mark.parametrize("wrap", [lambda item: deque([item]), lambda item: {item: 1}], ids=["deque", "key"])
async def test_an_expired_instance_in_an_unusual_place_is_warned_about_too(LiteSession, wrap):
    """A deque, the keys of a dict: one level deep, wherever it is."""

    async def make(session):
        item = Item(name="a")
        session.add(item)
        return wrap(item)

    with pytest.warns(IsolatedTasksWarning, match="expired"):
        await unit_of(LiteSession, make).run()


async def test_an_expired_instance_in_a_row_is_warned_about(LiteSession):
    """A Row is no tuple, but holds instances all the same."""

    async def find(session):
        session.add(Item(name="a"))
        await session.flush()
        return (await session.execute(sa.select(Item))).first()

    with pytest.warns(IsolatedTasksWarning, match="expired"):
        await unit_of(LiteSession, find).run()


async def test_a_result_whose_attributes_raise_is_left_alone(LiteSession):
    """A proxy without an object behind it: nothing of it is asked."""

    class Proxy:
        @property
        def __dict__(self):
            raise RuntimeError

    async def body(_session):
        return Proxy()

    assert isinstance(await unit_of(LiteSession, body).run(), Proxy)


async def test_an_attached_instance_as_the_result_is_warned_about(LiteSession):
    """An instance of somebody else's session is no result either."""
    other = SyncSession()
    item = Item(name="a")
    other.add(item)

    async def body(_session):
        return item

    with pytest.warns(IsolatedTasksWarning, match="attached to a session"):
        await unit_of(LiteSession, body).run()
    other.close()


class Repo:
    """As applications have them."""

    def __init__(self, session):
        self.session = session


class Slotted:
    __slots__ = ("kept",)

    def __init__(self, session):
        self.kept = session.sync_session


@pytest.mark.parametrize(
    ("wrap", "words"),
    [
        (lambda session: session, "its session"),
        (lambda session: [session], "its session"),
        (lambda session: {"s": session.sync_session}, "its session"),
        (Repo, "a Repo that holds its session"),
        (Slotted, "a Slotted that holds its session"),
    ],
    ids=["itself", "list", "synchronous", "object", "slots"],
)
async def test_a_session_as_the_result_is_warned_about(LiteSession, wrap, words):
    """It is closed; who uses it again holds a connection that nobody gives back."""

    async def make(session):
        return wrap(session)

    with pytest.warns(IsolatedTasksWarning, match=rf"make\(\) returned {words}: it is closed") as seen:
        await unit_of(LiteSession, make).run()

    assert make.__code__.co_firstlineno == seen[0].lineno


async def test_another_session_as_the_result_is_no_matter_of_the_units(LiteSession):
    """Somebody else closes it."""
    async with LiteSession() as other:

        async def make(_session):
            return Repo(other)

        assert (await unit_of(LiteSession, make).run()).session is other


async def test_a_loaded_instance_as_the_result_is_fine(engine):
    """With ``expire_on_commit=False`` an instance can be read after the unit's end, and nobody warns."""

    async def make(session):
        item = Item(name="a")
        session.add(item)
        return item

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        item = await unit_of(session_maker(engine, expire_on_commit=False), make).run()

    assert "a" == item.name


class Hanging(AsyncSession):
    """A session whose commit, rollback or close hangs."""

    hangs = ""

    async def commit(self):
        await self.hang("commit")
        await super().commit()

    async def rollback(self):
        await self.hang("rollback")
        await super().rollback()

    async def close(self):
        await self.hang("close")
        await super().close()

    async def hang(self, where):
        if where == self.hangs:
            reached.set()
            await asyncio.Event().wait()


reached = asyncio.Event()


@pytest.mark.parametrize("hangs", ["commit", "rollback", "close"])
async def test_past_its_patience_a_unit_ends_with_an_unknown_outcome(engine, monkeypatch, hangs):
    """
    A commit, rollback or close that hangs after a cancellation: the connection is cut, the unit ends, nothing is left.
    """
    monkeypatch.setitem(globals(), "reached", asyncio.Event())
    monkeypatch.setattr(Hanging, "hangs", hangs)
    started = asyncio.Event()

    async def body(session):
        await add(session)
        await session.flush()
        started.set()
        if hangs != "commit":
            await asyncio.Event().wait()

    unit = unit_of(sessionmaker(engine, class_=Hanging), body)
    unit.patience = 1 if hangs == "close" else 0.2  # enough for the rollback on a busy machine too
    task = asyncio.create_task(unit.run())
    await (reached if hangs == "commit" else started).wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    expected = Outcome.ROLLED_BACK if hangs == "close" else Outcome.UNKNOWN
    assert (expected, 0) == (unit.outcome, engine.pool.checkedout())


class Odd(BaseException):
    """Past every ``except Exception``."""


@pytest.mark.parametrize(
    ("asked", "error", "expected"),
    [
        (True, DBAPIError("commit", None, Exception("the connection was cut")), asyncio.CancelledError),
        (False, DBAPIError("commit", None, Exception("the connection was cut")), DBAPIError),
        (True, Odd(), Odd),
    ],
    ids=["asked for", "not asked for", "no error of the driver"],
)
async def test_a_commit_whose_connection_was_cut_is_a_cancellation_if_one_was_asked_for(
    sqlite_engine, asked, error, expected
):
    """The unit was to end, and its connection was given up: the driver's error is not what became of it."""

    class Cut(AsyncSession):
        async def commit(self):
            unit.cancel_requested = asked
            await unit.abandon()
            raise error

    unit = unit_of(sessionmaker(sqlite_engine, class_=Cut), write_and_flush)
    with pytest.raises(expected) as caught:
        await unit.run()

    assert error is (caught.value.__cause__ if expected is asyncio.CancelledError else caught.value)
    assert Outcome.UNKNOWN is unit.outcome


async def write_and_flush(session):
    await add(session)
    await session.flush()
