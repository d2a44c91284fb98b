"""
A test's session is joined to an outer transaction that is rolled back; the code under test spawns a task.

https://github.com/sqlalchemy/sqlalchemy/issues/5811. With the application's factory the task sees nothing of what the
test has written; on the test's connection, tasks at once break each other's savepoints. `using()` swaps the factory,
``limit=1`` makes the units take turns, and what is spawned after the commit runs though the outer transaction is open.
"""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from support import Item, session_maker

from sa_isolated_tasks import FakeIsolationError, TaskScope, isolated_session


@pytest.fixture
async def joined(server, make_engine):
    """The engine of the application, and a factory of sessions that are joined to the test's transaction."""
    engine = make_engine(server)
    async with engine.begin() as connection:
        await connection.run_sync(Item.metadata.drop_all)
        await connection.run_sync(Item.metadata.create_all)
    async with engine.connect() as connection:
        transaction = await connection.begin()
        yield engine, session_maker(connection)
        await transaction.rollback()


async def count(session):
    return await session.scalar(sa.select(sa.func.count()).select_from(Item))


async def test_control_the_applications_session_sees_nothing(joined):
    """Plain SQLAlchemy: the row is committed in the test's own transaction only."""
    engine, TestSession = joined

    async with TestSession() as session:
        session.add(Item(name="a"))
        await session.commit()
    async with session_maker(engine)() as session:
        seen = await count(session)

    assert 0 == seen


async def test_a_unit_of_the_applications_factory_sees_nothing_either(joined):
    """It is isolated from the test's transaction as from every other; it runs after the session's own commit."""
    engine, TestSession = joined

    async with TaskScope(session_maker(engine), name="c39") as scope, TestSession() as session:
        session.add(Item(name="a"))
        await session.flush()
        handle = scope.spawn_after_commit(session, count)
        await session.commit()

        assert 0 == await handle


async def test_a_factory_on_the_tests_connection_is_refused_where_it_stands(joined):
    """Its sessions share a connection, and are not isolated: the error comes before anything runs."""
    _, TestSession = joined

    with pytest.raises(FakeIsolationError):
        TaskScope(TestSession, name="c39", limit=1).start()


async def test_the_body_can_be_run_in_the_tests_session(joined):
    """`in_session()` is the way to test it: the same body, on purpose in the session that the test will roll back."""
    engine, TestSession = joined
    isolated = isolated_session(session_maker(engine))(count)

    async with TestSession() as session:
        session.add(Item(name="a"))
        await session.flush()
        seen = await isolated.in_session(session), await isolated()

    assert (1, 0) == seen
