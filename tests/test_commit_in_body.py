"""A commit that the body makes, in each way that a cancellation can come: awaited, known, and then cancelled."""

from __future__ import annotations

import asyncio
import contextlib

import anyio
import pytest
import sqlalchemy as sa
from slow_commit import SlowCommit
from sqlalchemy import event
from support import Item, reset, session_maker

from sa_isolated_tasks import Outcome, TaskScope, UnitCancelledError, isolated_session


@pytest.fixture
def engine(postgresql_engine):
    """Of the database that has a commit which can be held."""
    return postgresql_engine


@pytest.fixture
async def slow_psycopg(psycopg, make_engine):
    """An engine, its COMMITs that wait, and the class of its driver's connections."""
    from psycopg import AsyncConnection

    engine = make_engine(psycopg)
    await reset(engine)
    commit = SlowCommit(engine)
    await commit.hold()
    yield engine, commit, AsyncConnection
    await commit.release()


async def commit_and_go_on(session, steps):
    session.add(Item(name="a"))
    await session.flush()
    await session.commit()
    steps.append("committed")
    await asyncio.sleep(0)
    steps.append("went on")


async def by_handle(commit, factory, steps):
    async with TaskScope(factory, name="t", limit=1) as scope:
        handle = scope.spawn(commit_and_go_on, steps)
        await commit.reached()
        handle.cancel()
        await commit.release()
        with contextlib.suppress(UnitCancelledError):
            await handle
    return handle.outcome


async def by_task(commit, factory, steps, times=2):
    """As ``asyncio.run`` does in the end: every task, and again."""
    async with TaskScope(factory, name="t", limit=1) as scope:
        handle = scope.spawn(commit_and_go_on, steps)
        await commit.reached()
        here = asyncio.current_task()
        for _ in range(times):
            [task.cancel() for task in asyncio.all_tasks() if task is not here]
            await asyncio.sleep(0)
        await commit.release()
        with contextlib.suppress(UnitCancelledError):
            await handle
    return handle.outcome


async def by_timeout_inside(commit, factory, steps):
    async def body(session):
        async with asyncio.timeout(None) as deadline:
            deadlines.append(deadline)
            await commit_and_go_on(session, steps)

    deadlines = []
    async with TaskScope(factory, name="t", limit=1) as scope:
        handle = scope.spawn(body)
        await commit.reached()
        deadlines[0].reschedule(0)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await commit.release()
        with contextlib.suppress(TimeoutError):
            await handle
    return handle.outcome


async def by_anyio(commit, factory, steps):
    call = isolated_session(factory)(commit_and_go_on)

    async def run():
        with anyio.CancelScope() as scope:
            scopes.append(scope)
            await call(steps)

    scopes = []
    task = asyncio.create_task(run())
    await commit.reached()
    scopes[0].cancel()
    for _ in range(20):
        await asyncio.sleep(0)
    await commit.release()
    await task
    return Outcome.COMMITTED


KINDS = {"handle": by_handle, "task": by_task, "timeout inside": by_timeout_inside, "anyio": by_anyio}


@pytest.mark.parametrize("kind", KINDS)
async def test_a_commit_of_the_body_is_awaited(slow_commit, engine, Session, names_in_table, kind):
    """The row is there and the outcome says so; the cancellation comes at the next suspension after the commit."""
    steps = []

    outcome = await KINDS[kind](slow_commit, Session, steps)

    assert ["a"] == await names_in_table(engine)
    assert (Outcome.COMMITTED, ["committed"]) == (outcome, steps)


async def test_a_commit_with_nothing_left_to_flush_is_awaited(slow_commit, engine, Session, names_in_table):
    """Nor does a listener matter that takes away, in ``before_flush``, all that there was to flush."""

    async def body(session):
        await session.execute(sa.insert(Item).values(name="a"))
        session.add(Item(name="b"))
        event.listen(session.sync_session, "before_flush", lambda flushing, *_: flushing.expunge_all())
        await session.commit()

    async with TaskScope(Session, name="t", limit=1) as scope:
        handle = scope.spawn(body)
        await slow_commit.reached()
        handle.cancel()
        await slow_commit.release()
        with pytest.raises(UnitCancelledError):
            await handle

    assert ["a"] == await names_in_table(engine)
    assert Outcome.COMMITTED is handle.outcome


@pytest.mark.parametrize("seconds", [60, 0.001])
async def test_a_driver_that_waits_with_a_timeout_is_in_a_call(slow_psycopg, names_in_table, monkeypatch, seconds):
    """Whether it runs out, as that of psycopg 3.2 does ten times a second, or not: the commit is awaited."""
    engine, slow_commit, driver = slow_psycopg

    async def commit(connection):
        committing = asyncio.ensure_future(really_commit(connection))
        try:
            while not committing.done():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(asyncio.shield(committing), seconds)
        finally:
            committing.cancel()

    really_commit = driver.commit
    monkeypatch.setattr(driver, "commit", commit)
    async with TaskScope(session_maker(engine), name="t", limit=1) as scope:
        handle = scope.spawn(commit_and_go_on, [])
        await slow_commit.reached()
        handle.cancel()
        for _ in range(3):
            await slow_commit.reached()
        await slow_commit.release()
        with pytest.raises(UnitCancelledError):
            await handle

    assert ["a"] == await names_in_table(engine)
    assert Outcome.COMMITTED is handle.outcome


async def test_a_timeout_of_the_driver_gets_into_a_commit_that_is_awaited(slow_psycopg, monkeypatch):
    """The driver may give the commit up, though nobody else may; then nobody knows what became of it."""
    engine, slow_commit, driver = slow_psycopg
    deadlines = []

    async def commit(connection):
        async with asyncio.timeout(None) as deadline:
            deadlines.append(deadline)
            await really_commit(connection)

    really_commit = driver.commit
    monkeypatch.setattr(driver, "commit", commit)
    async with asyncio.timeout(20), TaskScope(session_maker(engine), name="t", limit=1, cancel_timeout=600) as scope:
        handle = scope.spawn(commit_and_go_on, [])
        await slow_commit.reached()
        handle.cancel()
        await asyncio.sleep(0)
        deadlines[0].reschedule(0)
        with pytest.raises(UnitCancelledError):
            await handle

    assert Outcome.UNKNOWN is handle.outcome


async def test_a_body_that_waits_for_the_commit_of_a_helper_knows_its_outcome(
    slow_commit, engine, Session, names_in_table
):
    """The body is cancelled at once, and waits for its helper, whose commit nothing cuts off."""

    async def body(session):
        helper = asyncio.create_task(commit_and_go_on(session, []))
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.wait([helper])

    async with TaskScope(Session, name="t", limit=1) as scope:
        handle = scope.spawn(body)
        await slow_commit.reached()
        handle.cancel()
        await asyncio.sleep(0)
        await slow_commit.release()
        with pytest.raises(UnitCancelledError):
            await handle

    assert ["a"] == await names_in_table(engine)
    assert Outcome.COMMITTED is handle.outcome


async def test_a_transaction_after_one_that_was_given_up_has_its_own_outcome(engine, slow_commit, names_in_table):
    """The body has a timeout around its commit, which outlasts the patience, and goes on in another transaction."""
    deadlines = []

    async def body(session):
        with contextlib.suppress(TimeoutError, sa.exc.DBAPIError):
            async with asyncio.timeout(None) as deadline:
                deadlines.append(deadline)
                await commit_and_go_on(session, [])
        await session.rollback()
        await slow_commit.release()
        session.add(Item(name="b"))

    async with TaskScope(session_maker(engine), name="t", limit=1, cancel_timeout=0.05) as scope:
        handle = scope.options(guard="off").spawn(body)
        await slow_commit.reached()
        deadlines[0].reschedule(0)
        await handle

    assert "b" in await names_in_table(engine)
    assert Outcome.COMMITTED is handle.outcome


async def given_up(slow_commit, factory, body, *args):
    """The outcome of a unit that is cancelled in a commit which outlasts its patience."""
    async with TaskScope(factory, name="t", limit=1, cancel_timeout=0.05) as scope:
        handle = scope.spawn(body, *args)
        await slow_commit.reached()
        handle.cancel()
        with pytest.raises(UnitCancelledError):
            await asyncio.wait_for(handle, 10)
        outcome = handle.outcome
        await slow_commit.release()
    return outcome


async def test_a_commit_that_outlasts_the_patience_is_given_up(postgresql, make_engine, slow_commit):
    """Past *cancel_timeout* the connection is cut, the outcome is unknown, and the unit ends."""
    engine = make_engine(postgresql, pool_size=2)

    assert Outcome.UNKNOWN is await given_up(slow_commit, session_maker(engine), commit_and_go_on, [])
    assert 0 == engine.pool.checkedout()


async def test_a_commit_of_a_context_manager_that_outlasts_the_patience_is_given_up(
    postgresql, make_engine, slow_commit
):
    """Its connection is cut too, though its transaction is its own."""
    engine = make_engine(postgresql, pool_size=2)

    @contextlib.asynccontextmanager
    async def get_session():
        async with session_maker(engine)() as session:
            yield session
            await session.commit()

    async def write(session):
        session.add(Item(name="a"))
        await session.flush()

    assert Outcome.UNKNOWN is await given_up(slow_commit, get_session, write)
    assert 0 == engine.pool.checkedout()
