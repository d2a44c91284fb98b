"""
A periodic cleaner opens one session and gathers two DELETE statements over it.

https://github.com/dstackai/dstack/issues/2638. Each of the two must have a session of its own, or the shared one must
be refused; and the job must be able to run again and again.
"""

from __future__ import annotations

import asyncio

import pytest
import sqlalchemy as sa
from support import Item, assert_it_went_wrong, gather_over_one_session, reset, session_maker

from sa_isolated_tasks import Outcome, SessionPassedError, TaskScope, isolated_session

STALE = ("running", "finished")


async def delete(session, name):
    await session.execute(sa.delete(Item).where(Item.name == name))


async def add_rows(Session):
    async with Session() as session, session.begin():
        session.add_all([Item(name=name) for name in (*STALE, "kept")])


async def test_control_with_an_idle_connection_nothing_is_noticed(engine, Session, names_in_table):
    """Plain SQLAlchemy: while the pool has a connection the two statements queue up for it, and all seems well."""
    await add_rows(Session)

    async with Session() as session:
        await asyncio.gather(*(delete(session, name) for name in STALE))
        await session.commit()

    assert ["kept"] == await names_in_table(engine)


async def test_control_without_an_idle_connection_the_job_fails(postgresql, make_engine):
    """Plain SQLAlchemy: the second statement finds the session connecting, and ``close()`` finds it so once more."""
    engine = make_engine(postgresql)
    await reset(engine)

    seen = await gather_over_one_session(
        engine,
        session_maker(engine),
        lambda session: delete(session, "running"),
        lambda session: delete(session, "finished"),
    )

    assert_it_went_wrong(seen)


async def test_the_shared_session_is_refused(Session):
    """Neither way of starting the two statements takes the one session: the first call fails already."""
    isolated = isolated_session(Session)(delete)

    async with TaskScope(Session, name="c05") as scope, Session() as session:
        with pytest.raises(SessionPassedError, match="arg 1"):
            await asyncio.gather(*(isolated(session, name) for name in STALE))
        with pytest.raises(SessionPassedError, match="arg 1"):
            await asyncio.gather(*(scope.spawn(delete, session, name) for name in STALE))

        assert 0 == len(scope)


async def test_gather_over_an_isolated_function(engine, Session, names_in_table):
    """Each call has a session and a transaction of its own, with an idle connection in the pool or without."""
    await add_rows(Session)
    isolated = isolated_session(Session)(delete)

    async with engine.connect():
        await asyncio.gather(*(isolated(name) for name in STALE))

    assert ["kept"] == await names_in_table(engine)


async def test_the_job_runs_again_and_again_in_one_scope(engine, Session, names_in_table):
    """A scope that lives as long as the application runs the job in every round, and keeps nothing of it."""
    outcomes = []
    async with TaskScope(Session, name="c05") as scope:
        for _ in range(3):
            await add_rows(Session)
            handles = [scope.spawn(delete, name) for name in (*STALE, "kept")]
            await asyncio.gather(*handles)
            outcomes += [handle.outcome for handle in handles]
            assert (0, 0) == (len(scope), engine.pool.checkedout())

    assert [Outcome.COMMITTED] * 9 == outcomes
    assert [] == await names_in_table(engine)


async def test_one_statement_that_fails_does_not_undo_the_other(engine, Session, names_in_table):
    """The two have two transactions: what the first has deleted is gone, whatever becomes of the second."""
    await add_rows(Session)

    async def delete_and_fail(session, name):
        await delete(session, name)
        raise ZeroDivisionError

    async with TaskScope(Session, name="c05") as scope:
        handles = scope.spawn(delete, "running"), scope.spawn(delete_and_fail, "finished")

    assert [Outcome.COMMITTED, Outcome.ROLLED_BACK] == [handle.outcome for handle in handles]
    assert ["finished", "kept"] == await names_in_table(engine)
