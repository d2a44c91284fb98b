"""
One synchronous session is used by several jobs of an executor.

https://github.com/sqlalchemy/sqlalchemy/issues/5828, /4417, /7433. Rows are lost and transactions are closed under
others. A synchronous session is refused as an argument like any other; a job in a thread makes its own, there; and a
body that has started one waits for it, since a thread cannot be cancelled.
"""

from __future__ import annotations

import asyncio
import threading

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session as SyncSession
from support import Base, Item

from sa_isolated_tasks import Outcome, SessionPassedError, TaskScope, TaskState, UnitCancelledError


@pytest.fixture
def sync_engine(tmp_path):
    """A file that threads may share, each with a connection of its own."""
    engine = sa.create_engine(
        f"sqlite:///{tmp_path / 'c50.db'}", connect_args={"timeout": 20, "check_same_thread": False}
    )
    Base.metadata.create_all(engine)
    yield engine
    engine.dispose()


def names_in(engine):
    with engine.connect() as connection:
        return sorted(connection.execute(sa.text("select name from items")).scalars())


async def test_control_jobs_that_share_a_session_close_it_under_each_other(sync_engine):
    """Plain SQLAlchemy: one job commits while another has flushed, and its rollback finds nothing left to roll back."""

    def first(session):
        session.add(Item(name="first"))
        session.flush()
        flushed.set()
        committed.wait(20)
        session.rollback()

    def second(session):
        flushed.wait(20)
        session.commit()
        committed.set()

    flushed, committed = threading.Event(), threading.Event()
    with SyncSession(sync_engine) as session:
        await asyncio.gather(asyncio.to_thread(first, session), asyncio.to_thread(second, session))

    assert ["first"] == names_in(sync_engine)


async def test_a_synchronous_session_is_refused(LiteSession, sync_engine):
    """As an argument, and in what is to run in the thread."""

    async def work(_session, job):
        await asyncio.to_thread(job)

    with SyncSession(sync_engine) as session:
        async with TaskScope(LiteSession, name="c50") as scope:
            with pytest.raises(SessionPassedError):
                scope.spawn(work, session)
            with pytest.raises(SessionPassedError):
                scope.spawn(work, session.commit)


async def test_each_job_has_a_session_of_its_own(LiteSession, sync_engine):
    """Made and closed in its thread: every row is there."""

    def job(name):
        with SyncSession(sync_engine) as session:
            session.add(Item(name=name))
            session.commit()

    async def work(_session, name):
        await asyncio.to_thread(job, name)

    names = [f"{index:02}" for index in range(12)]
    async with TaskScope(LiteSession, name="c50", limit=None, on_failure="raise") as scope:
        for name in names:
            scope.spawn(work, name)

    assert names == names_in(sync_engine)


async def test_a_body_that_waits_for_its_thread_ends_after_it(LiteSession, sqlite_engine, names_in_table):
    """Cancelled, it has the thread's work done before its session is rolled back and closed."""

    def job():
        loop.call_soon_threadsafe(reached.set)
        release.wait(20)
        steps.append("thread")

    async def work(session):
        session.add(Item(name="a"))
        await session.flush()
        thread = asyncio.ensure_future(asyncio.to_thread(job))
        try:
            await asyncio.shield(thread)
        finally:
            await thread
            steps.append(f"session in use: {session.in_transaction()}")

    loop, reached, release, steps = asyncio.get_running_loop(), asyncio.Event(), threading.Event(), []
    async with TaskScope(LiteSession, name="c50") as scope:
        handle = scope.spawn(work)
        await reached.wait()
        handle.cancel()
        await asyncio.sleep(0)
        before = handle.state
        release.set()
        with pytest.raises(UnitCancelledError):
            await handle

    assert (TaskState.RUNNING, ["thread", "session in use: True"]) == (before, steps)
    assert (Outcome.ROLLED_BACK, []) == (handle.outcome, await names_in_table(sqlite_engine))
