"""
A hook on commit enqueues work when a savepoint is released, and the outer transaction rolls back.

https://github.com/pallets-eco/flask-sqlalchemy/issues/645. Only the commit of the root transaction counts, and what was
registered in a savepoint that is rolled back is dropped, however deep it was.
"""

from __future__ import annotations

from sqlalchemy import event
from support import Item

from sa_isolated_tasks import TaskScope, TaskState


async def test_control_the_hook_fires_for_a_savepoint(Session):
    """Plain SQLAlchemy: ``after_commit`` is sent when a savepoint is released, and nothing has been committed."""
    sent = []

    async with Session() as session:
        event.listen(session.sync_session, "after_commit", lambda _: sent.append("committed"))
        async with session.begin_nested():
            session.add(Item(name="a"))
        await session.rollback()

    assert ["committed"] == sent


async def test_nothing_is_started_by_a_savepoint(Session):
    """The savepoint is released, the root rolls back: the unit never runs."""
    runs = []

    async def work(session):
        runs.append(session)

    async with TaskScope(Session, name="c56") as scope, Session() as session:
        async with session.begin_nested():
            session.add(Item(name="a"))
            handle = scope.spawn_after_commit(session, work)
        waiting = handle.state
        await session.rollback()

    assert ([], TaskState.WAITING, TaskState.DROPPED) == (runs, waiting, handle.state)


async def test_each_savepoint_has_its_own_registrations(Session):
    """Of three levels the inner one is rolled back: the units of the other two run, in their order."""
    runs = []

    async def work(_session, level):
        runs.append(level)

    async with TaskScope(Session, name="c56") as scope, Session() as session:
        await session.connection()
        scope.spawn_after_commit(session, work, "root")
        async with session.begin_nested():
            scope.spawn_after_commit(session, work, "outer")
            inner = await session.begin_nested()
            dropped = scope.spawn_after_commit(session, work, "inner")
            await inner.rollback()
            scope.spawn_after_commit(session, work, "outer again")
        await session.commit()

    assert ["root", "outer", "outer again"] == runs
    assert TaskState.DROPPED is dropped.state
