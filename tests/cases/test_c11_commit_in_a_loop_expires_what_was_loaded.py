"""
Thousands of rows are loaded in advance; a commit in a loop expires them all, every later read fails, connections leak.

https://github.com/BEDOLAGA-DEV/remnawave-bedolaga-telegram-bot/pull/2971. The factory is the user's, so this package
does not change its ``expire_on_commit``; it refuses such rows as arguments, warns about them as results, names the
cure, and gives the connection back whatever the body ran into.
"""

from __future__ import annotations

import gc
import logging

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import MissingGreenlet, StatementError
from support import Item, session_maker

from sa_isolated_tasks import InstancePassedError, IsolatedTasksWarning, Outcome, TaskScope, isolated_session


async def add_rows(Session):
    async with Session() as session, session.begin():
        session.add_all([Item(name=f"user {index}") for index in range(4)])


async def preload(session):
    return {user.name: user for user in await session.scalars(sa.select(Item))}


async def synchronise(session):
    """The shape of the report: a commit for each chunk, and reads of what was loaded before the first."""
    users = await preload(session)
    for name in sorted(users):
        users[name].amount += 1
        await session.commit()


def outside_of_a_greenlet():
    """What implicit I/O raises; SQLAlchemy 2.1 wraps it, and leaves behind a coroutine that was never awaited."""
    return pytest.raises((MissingGreenlet, StatementError), match="greenlet_spawn has not been called")


@pytest.fixture
def collected(caplog):
    """What was never awaited is collected before the test's end, where its warning is expected."""
    # A record of the failure would keep its traceback, and so the coroutine, for longer.
    caplog.set_level(logging.CRITICAL, "sa_isolated_tasks")
    yield
    gc.collect()


never_awaited = pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")


@never_awaited
async def test_control_the_second_read_fails(engine, Session, collected):
    """Plain SQLAlchemy: the first commit expires every row, and the next attribute that is read wants to load."""
    await add_rows(Session)

    async with Session() as session:
        with outside_of_a_greenlet():
            await synchronise(session)


@never_awaited
async def test_the_loop_fails_alone_and_gives_its_connection_back(engine, Session, collected):
    """A unit does not change what the factory says; but its failure shows what was committed, and nothing leaks."""
    await add_rows(Session)

    async with TaskScope(Session, name="c11") as scope:
        handle = scope.spawn(synchronise)
        with outside_of_a_greenlet():
            await handle

    assert (1, 0) == (handle.commits, engine.pool.checkedout())


async def test_the_loop_works_with_a_factory_that_does_not_expire(engine):
    """The cure that the docs name: ``expire_on_commit=False``, for the factory of the units."""
    Session = session_maker(engine, expire_on_commit=False)
    await add_rows(Session)

    async with TaskScope(Session, name="c11") as scope:
        handle = scope.spawn(synchronise)
        await handle

    assert (4, Outcome.COMMITTED) == (handle.commits, handle.outcome)


async def test_a_unit_for_each_chunk_needs_no_setting(engine, Session):
    """Keys are passed, not rows: every unit loads what it needs, and a commit expires only what is thrown away."""
    await add_rows(Session)

    @isolated_session(Session)
    async def add_one(session, name):
        user = await session.scalar(sa.select(Item).where(Item.name == name))
        user.amount += 1

    for index in range(4):
        await add_one(f"user {index}")

    async with engine.connect() as connection:
        assert [1] * 4 == list((await connection.execute(sa.select(Item.amount))).scalars())


async def test_preloaded_rows_are_refused_as_arguments(LiteSession):
    """Before the commit they are attached, after the end of the session expired: neither gets into a unit."""
    await add_rows(LiteSession)

    async def read(session, users):
        return [user.amount for user in users.values()]

    async with TaskScope(LiteSession, name="c11") as scope:
        async with LiteSession() as session:
            users = await preload(session)
            with pytest.raises(InstancePassedError, match=r"attached to another session: arg 1 -> \['user 0'\]"):
                scope.spawn(read, users)
            await session.commit()
        with pytest.raises(InstancePassedError, match=r"detached and expired: arg 1 -> \['user 0'\]"):
            scope.spawn(read, users)


@pytest.mark.parametrize("collect", [list, tuple, lambda rows: {row.name: row for row in rows}])
async def test_expired_rows_as_a_result_are_a_warning(LiteSession, collect):
    """The unit's commit expires what it returns, one level deep too: the warning names the setting that cures it."""
    await add_rows(LiteSession)

    @isolated_session(LiteSession)
    async def load(session):
        return collect((await session.scalars(sa.select(Item))).all())

    with pytest.warns(IsolatedTasksWarning, match="expire_on_commit=False"):
        await load()


async def test_rows_that_are_not_expired_are_a_fine_result(sqlite_engine):
    """With the setting the rows come out of the unit with their values, and without a warning."""
    Session = session_maker(sqlite_engine, expire_on_commit=False)
    await add_rows(Session)

    users = await isolated_session(Session)(preload)()

    assert [0] * 4 == [user.amount for user in users.values()]
