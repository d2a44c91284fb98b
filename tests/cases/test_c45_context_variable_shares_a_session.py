"""
A session is kept in a context variable, which every task inherits; or one for each task is found by ``id(task)``.

https://github.com/h0rn3t/fastapi-async-sqlalchemy/issues/5, and pull requests 22, 24, 37 and 41. A unit's session is
the one that it is given: never inherited, never found by an address, and closed as soon as the unit has ended.
"""

from __future__ import annotations

import asyncio
from contextvars import ContextVar, copy_context

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session as SyncSession
from support import Item, reset, session_maker

from sa_isolated_tasks import TaskScope, isolated_session

current: ContextVar[AsyncSession] = ContextVar("current")


@pytest.fixture(params=["scope", "decorator"])
def run(request):
    """Both ways to run an isolated function and wait for it: through a scope, and in a task of its own."""

    async def run_in_scope(Session, fn, *args):
        async with TaskScope(Session, name="c45") as scope:
            return await scope.spawn(fn, *args)

    async def run_in_task(Session, fn, *args):
        return await asyncio.create_task(isolated_session(Session)(fn)(*args))

    return {"scope": run_in_scope, "decorator": run_in_task}[request.param]


def sessions_in_context():
    return {value for value in copy_context().values() if isinstance(value, AsyncSession | SyncSession)}


async def add(session, name):
    session.add(Item(name=name))
    await session.flush()


async def test_control_a_childs_rollback_undoes_what_its_parent_has_written(engine, Session, names_in_table):
    """Plain SQLAlchemy: the child inherits the variable, and with it the transaction of its parent."""

    async def child():
        await current.get().rollback()

    async with Session() as session:
        current.set(session)
        await add(session, "parent")
        await asyncio.create_task(child())
        await session.commit()

    assert [] == await names_in_table(engine)


async def test_control_a_new_task_finds_the_session_of_one_that_has_ended():
    """Plain asyncio: an ``id`` is an address, and the next task soon has the same."""
    sessions = {}

    async def work(index):
        return sessions.setdefault(id(asyncio.current_task()), index)

    found = [await asyncio.create_task(work(index)) for index in range(1000)]

    assert found != list(range(1000))


async def test_control_sessions_that_are_closed_late_exhaust_the_pool(database, make_engine):
    """Plain SQLAlchemy: one session for each task, all closed at the end of the request, is one too many."""
    engine = make_engine(database, pool_size=2, max_overflow=0, pool_timeout=0)
    sessions = [AsyncSession(engine) for _ in range(3)]

    results = await asyncio.gather(
        *(session.scalar(sa.text("select 1")) for session in sessions), return_exceptions=True
    )
    for session in sessions:
        await session.close()

    assert [1, 1, PoolTimeoutError] == [result if result == 1 else type(result) for result in results]


async def test_a_unit_does_not_inherit_the_session_of_its_spawner(run, engine, Session, names_in_table):
    """The rollback of the report is the unit's own, though the variable has been copied to it."""

    async def child(session):
        await session.execute(sa.select(Item))
        await session.rollback()
        return session is current.get()

    async with Session() as session:
        current.set(session)
        await add(session, "parent")
        shared = await run(Session, child)
        await session.commit()

    assert not shared
    assert ["parent"] == await names_in_table(engine)


async def test_the_package_puts_no_session_into_a_context(run, LiteSession):
    """In a unit, and in the tasks that it starts, no variable holds one."""

    async def child(_session):
        return sessions_in_context() | await asyncio.create_task(grandchild())

    async def grandchild():
        return sessions_in_context()

    assert set() == await run(LiteSession, child)


async def test_what_a_unit_puts_into_a_variable_stays_in_the_unit(run, LiteSession):
    """Code deep in a unit finds its session so; the spawner and the next unit do not."""

    async def child(session):
        before = sessions_in_context()
        current.set(session)
        return before, await asyncio.create_task(deep()) == {session}

    async def deep():
        return sessions_in_context()

    seen = [await run(LiteSession, child) for _ in range(2)]

    assert [(set(), True)] * 2 == seen
    assert set() == sessions_in_context()


async def test_a_fresh_context_takes_the_session_away(LiteSession):
    """The guard cannot see into variables: ``context="fresh"`` leaves them behind, in a unit of a unit too."""

    async def child(session, depth):
        found = [sessions_in_context()]
        current.set(session)
        if depth:
            found += await scope.options(context="fresh").spawn(child, depth - 1)
        return found

    async with TaskScope(LiteSession, name="c45") as scope, LiteSession() as session:
        current.set(session)
        found = await scope.options(context="fresh").spawn(child, 2)

    assert [set()] * 3 == found


async def test_a_unit_finds_nothing_of_another_whose_address_its_task_has(run, LiteSession):
    """The addresses of tasks do come again, and every session is a new one."""

    async def mark(session, index):
        return id(asyncio.current_task()), session.sync_session.info.setdefault("first", index)

    seen = [await run(LiteSession, mark, index) for index in range(100)]

    assert list(range(100)) == [first for _, first in seen]
    assert len({address for address, _ in seen}) < 100


async def test_more_units_than_connections_wait_for_their_turn(database, make_engine, names_in_table):
    """A pool without overflow, in which nobody may wait for a connection, is enough for any number of units."""
    engine = make_engine(database, pool_size=3, max_overflow=0, pool_timeout=0)
    await reset(engine)
    names = [f"{index:02}" for index in range(10)]

    async with TaskScope(session_maker(engine), name="c45") as scope:
        await asyncio.gather(*(scope.spawn(add, name) for name in names))

    assert names == await names_in_table(engine)
