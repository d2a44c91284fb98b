"""
Writers are gathered inside one transaction; one fails, the block rolls back, and a slow one writes after that.

https://github.com/Arfey/django-async-backend/issues/77, https://github.com/05bit/peewee-async/issues/260. The slow
writer's row stays. A parallel piece of work has a transaction of its own, and the block's exception is out only when
all of them have ended.
"""

from __future__ import annotations

import asyncio

import pytest
from support import Item

from sa_isolated_tasks import Outcome, SessionPassedError, TaskScope, TaskState


async def test_control_a_straggler_writes_after_the_rollback(Session, engine, names_in_table):
    """Plain SQLAlchemy: the block is over, and the session begins again for who still has it."""

    async def slow(session):
        await release.wait()
        session.add(Item(name="slow"))
        await session.commit()

    async def failing():
        raise ZeroDivisionError

    release, tasks = asyncio.Event(), []

    async def block():
        async with Session() as session, session.begin():
            session.add(Item(name="parent"))
            await session.flush()
            tasks.append(asyncio.create_task(slow(session)))
            await asyncio.gather(tasks[0], failing())

    with pytest.raises(ZeroDivisionError):
        await block()
    release.set()
    await tasks[0]

    assert ["slow"] == await names_in_table(engine)


async def test_the_session_of_the_block_is_refused(Session):
    """At the call, before anything is written."""

    async def slow(_session, parent):
        parent.add(Item(name="slow"))

    async with TaskScope(Session, name="c49") as scope, Session.begin() as session:
        with pytest.raises(SessionPassedError):
            scope.spawn(slow, session)


async def test_no_writer_outlives_the_block_that_failed(Session, engine, names_in_table):
    """The scope is left by the exception: the slow writer is cancelled and rolled back before that comes out."""

    async def slow(session):
        session.add(Item(name="slow"))
        await session.flush()
        has_written.set()
        await asyncio.Event().wait()

    async def block():
        async with TaskScope(Session, name="c49") as scope:
            handles.append(scope.spawn(slow))
            await has_written.wait()
            raise ZeroDivisionError

    has_written, handles = asyncio.Event(), []
    with pytest.raises(ZeroDivisionError):
        await block()

    assert [] == await names_in_table(engine)
    assert (TaskState.CANCELLED, Outcome.ROLLED_BACK) == (handles[0].state, handles[0].outcome)


async def test_a_writer_that_fails_takes_no_row_of_another(Session, engine, names_in_table):
    """Each has its own transaction: one is rolled back, the others are committed."""

    async def write(session, name, fails):
        session.add(Item(name=name))
        await session.flush()
        if fails:
            raise ZeroDivisionError

    async with TaskScope(Session, name="c49") as scope:
        results = await asyncio.gather(
            *(scope.spawn(write, name, name == "b") for name in "abc"), return_exceptions=True
        )

    assert ["a", "c"] == await names_in_table(engine)
    assert [type(None), ZeroDivisionError, type(None)] == [type(result) for result in results]
