"""
On SQLite a savepoint is released, the outer transaction rolls back, and the row stays.

https://github.com/sqlalchemy/sqlalchemy/pull/10491. The driver begins no transaction before a SAVEPOINT, so its RELEASE
commits. With the recipe of SQLAlchemy's documentation (BEGIN by hand) a unit rolls back as everywhere; without it, what
a unit has written inside a savepoint may stay, and that is the driver's doing.
"""

from __future__ import annotations

import pytest
from sqlalchemy import event
from support import Item, reset, session_maker

from sa_isolated_tasks import Outcome, TaskScope


@pytest.fixture
async def engine_with_begin(sqlite, make_engine):
    """The recipe: the driver leaves transactions alone, and SQLAlchemy's BEGIN is emitted."""
    engine = make_engine(sqlite)

    @event.listens_for(engine.sync_engine, "connect")
    def _connect(connection, _record):
        connection.isolation_level = None

    @event.listens_for(engine.sync_engine, "begin")
    def _begin(connection):
        connection.exec_driver_sql("begin")

    await reset(engine)
    return engine


async def savepoint_and_fail(session):
    async with session.begin_nested():
        session.add(Item(name="inside"))
    session.add(Item(name="outside"))
    await session.flush()
    raise ZeroDivisionError


async def test_control_the_row_stays(sqlite_engine, LiteSession, names_in_table):
    """Plain SQLAlchemy, and the driver as it is."""
    async with LiteSession() as session:
        with pytest.raises(ZeroDivisionError):
            await savepoint_and_fail(session)
        await session.rollback()

    assert ["inside"] == await names_in_table(sqlite_engine)


async def test_with_the_recipe_a_unit_rolls_back_what_was_in_a_savepoint(engine_with_begin, names_in_table):
    """Nothing is left, as the outcome says."""
    async with TaskScope(session_maker(engine_with_begin), name="c41") as scope:
        handle = scope.spawn(savepoint_and_fail)

    assert [] == await names_in_table(engine_with_begin)
    assert Outcome.ROLLED_BACK is handle.outcome


async def test_with_the_recipe_a_savepoint_alone_is_rolled_back(engine_with_begin, names_in_table):
    """The unit goes on, and commits the rest."""

    async def body(session):
        session.add(Item(name="before"))
        savepoint = await session.begin_nested()
        session.add(Item(name="inside"))
        await session.flush()
        await savepoint.rollback()
        session.add(Item(name="after"))

    async with TaskScope(session_maker(engine_with_begin), name="c41") as scope:
        await scope.spawn(body)

    assert ["after", "before"] == await names_in_table(engine_with_begin)
