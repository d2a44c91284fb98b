"""
On SQLite a parent has written and not committed, and the task that it waits for writes in its own session.

https://github.com/AstrBotDevs/AstrBot/pull/6474. No busy timeout helps who waits while they hold the lock: the unit
must fail alone, and leave parent and pool usable. Units that write at once must not lock each other out.
"""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy.exc import OperationalError
from support import Item, reset, session_maker

from sa_isolated_tasks import Outcome, TaskScope, TaskState, isolated_session


@pytest.fixture
async def impatient(sqlite, make_engine):
    """An engine whose connections do not wait for a lock, so that whoever would have to wait fails."""
    engine = make_engine(sqlite, connect_args={"timeout": 0})
    await reset(engine)
    return engine


async def add(session, name):
    session.add(Item(name=name))
    await session.flush()


async def test_control_a_parent_that_waits_locks_its_task_out(impatient):
    """Plain SQLAlchemy: a session of its own is not enough, while the parent's transaction is open."""
    Session = session_maker(impatient)

    async def child():
        async with Session.begin() as session:
            await add(session, "child")

    async with Session.begin() as parent:
        await add(parent, "parent")
        with pytest.raises(OperationalError, match="database is locked"):
            await asyncio.create_task(child())


async def test_control_tasks_that_write_at_once_lock_each_other_out(impatient):
    """Plain SQLAlchemy: as many tasks as connections, and all but the first fail."""
    Session = session_maker(impatient)

    async def child(name):
        async with Session.begin() as session:
            try:
                await add(session, name)
            finally:
                await all_have_tried.wait()

    all_have_tried = asyncio.Barrier(3)
    results = await asyncio.gather(*(child(name) for name in "abc"), return_exceptions=True)

    assert [OperationalError] * 2 == [type(error) for error in results if error is not None]


@pytest.mark.parametrize("parent_is", ["block", "unit"])
@pytest.mark.parametrize("child_is", ["spawned", "called"])
async def test_a_unit_that_is_locked_out_fails_alone(impatient, names_in_table, parent_is, child_is):
    """Its error comes to who awaits it, who goes on, commits, and may then run it again."""
    Session = session_maker(impatient)

    async def parent(session):
        run = (lambda *args: scope.spawn(add, *args)) if child_is == "spawned" else isolated_session(Session)(add)
        await add(session, "parent")
        with pytest.raises(OperationalError, match="database is locked"):
            await run("child")
        await session.commit()
        await run("child")

    async with TaskScope(Session, name="c42") as scope:
        if parent_is == "unit":
            await scope.spawn(parent)
        else:
            async with Session() as session:
                await parent(session)

    assert ["child", "parent"] == await names_in_table(impatient)


async def test_the_handle_says_that_nothing_was_written(impatient):
    """State and outcome of a unit that was locked out, while its parent's transaction is still open."""
    Session = session_maker(impatient)

    async with TaskScope(Session, name="c42") as scope, Session.begin() as parent:
        await add(parent, "parent")
        handle = scope.spawn(add, "child")
        await scope.drain()
        seen = handle.state, handle.outcome, handle.commits, impatient.pool.checkedout()

    assert (TaskState.FAILED, Outcome.ROLLED_BACK, 0, 1) == seen


async def test_a_parent_that_does_not_wait_does_not_lock_its_unit_out(sqlite_engine, LiteSession, names_in_table):
    """With a busy timeout, SQLite's own, the unit goes on as soon as its parent has committed."""

    async def child(session):
        has_begun.set()
        await add(session, "child")

    has_begun = asyncio.Event()
    async with TaskScope(LiteSession, name="c42") as scope:
        async with LiteSession.begin() as parent:
            await add(parent, "parent")
            handle = scope.spawn(child)
            await has_begun.wait()
        await handle

    assert ["child", "parent"] == await names_in_table(sqlite_engine)


async def test_units_that_are_spawned_at_once_write_one_after_the_other(impatient, names_in_table):
    """The limit of a scope is one on SQLite, so that nobody has to wait for a lock, and nobody fails."""
    names = [f"{index:02}" for index in range(20)]

    async with TaskScope(session_maker(impatient), name="c42") as scope:
        await asyncio.gather(*(scope.spawn(add, name) for name in names))

    assert names == await names_in_table(impatient)


async def test_a_unit_commits_before_the_units_that_it_spawns_write(impatient, names_in_table):
    """A tree of writers, none of whom awaits another, has one transaction at a time."""

    async def grow(session, name):
        await add(session, name)
        if len(name) < 3:
            for branch in "ab":
                scope.spawn(grow, name + branch)

    async with TaskScope(session_maker(impatient), name="c42", on_failure="raise") as scope:
        scope.spawn(grow, "t")

    assert ["t", "ta", "taa", "tab", "tb", "tba", "tbb"] == await names_in_table(impatient)
