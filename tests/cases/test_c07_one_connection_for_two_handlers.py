"""
A connection is kept on the application object, and two handlers use it at once.

https://github.com/MagicStack/asyncpg/issues/56. No connection, transaction or open result may be lent to a unit, by
whatever object it travels; units that run at once have one connection each.
"""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
import sqlalchemy as sa
from support import Item, reset, session_maker

from sa_isolated_tasks import ClosedSessionError, SessionPassedError, TaskScope, isolated_session

PATH = "arg 1 -> .state['db']"


async def handle_request(session, app):
    return await app.connection.scalar(sa.select(sa.func.count(Item.id)))


async def test_control_the_driver_refuses_the_second_query(asyncpg):
    """Plain asyncpg: a connection does one thing at a time, and raises at whoever comes second."""
    driver = pytest.importorskip("asyncpg", reason="the report is about this driver")
    url = asyncpg.url
    app = SimpleNamespace(
        connection=await driver.connect(user=url.username, host=url.host, port=url.port, database=url.database)
    )

    try:
        first, second = await asyncio.gather(
            app.connection.fetchval("select 1"), app.connection.fetchval("select 2"), return_exceptions=True
        )
    finally:
        await app.connection.close()

    assert 1 == first
    assert isinstance(second, driver.InterfaceError)
    assert "another operation is in progress" in str(second)


@pytest.mark.parametrize(
    "of",
    [
        pytest.param(lambda connection, _: connection, id="AsyncConnection"),
        pytest.param(lambda connection, _: connection.sync_connection, id="Connection"),
        pytest.param(lambda _, transaction: transaction, id="AsyncTransaction"),
        pytest.param(lambda _, transaction: transaction.sync_transaction, id="RootTransaction"),
    ],
)
async def test_a_connection_on_the_application_object_is_refused(sqlite_engine, LiteSession, of):
    """The path to it is named, and once it is closed the error says that too."""
    async with TaskScope(LiteSession, name="c07") as scope:
        async with sqlite_engine.connect() as connection:
            transaction = await connection.begin()
            app = SimpleNamespace(state={"db": of(connection, transaction)})
            with pytest.raises(SessionPassedError) as refused:
                scope.spawn(handle_request, app)
            await transaction.rollback()
        with pytest.raises(ClosedSessionError) as refused_closed:
            scope.spawn(handle_request, app)

    assert (SessionPassedError, PATH) == (type(refused.value), refused.value.what.rpartition(": ")[2])
    assert PATH == refused_closed.value.what.rpartition(": ")[2]


async def test_an_open_result_is_refused(sqlite_engine, LiteSession):
    """A stream of rows is a connection in use as well."""

    async def read(session, rows):
        return await rows.fetchall()

    async with TaskScope(LiteSession, name="c07") as scope, sqlite_engine.connect() as connection:
        rows = await connection.stream(sa.text("select 1"))
        with pytest.raises(SessionPassedError, match="open result"):
            scope.spawn(read, rows)
        await rows.close()


async def test_a_connection_that_a_session_has_given_is_refused(Session):
    """``await session.connection()`` is the session's own connection, by another name."""

    async def read(session, connection):
        await connection.execute(sa.text("select 1"))

    async with Session() as session:
        connection = await session.connection()
        with pytest.raises(SessionPassedError, match="a connection \\(AsyncConnection\\)"):
            isolated_session(Session)(read)(connection)


async def test_units_that_run_at_once_have_a_connection_each(postgresql, make_engine):
    """While all of them are in their transactions, the server counts one backend for each."""
    engine = make_engine(postgresql)
    await reset(engine)
    all_are_in_transactions = asyncio.Barrier(3)

    async def backend(session):
        pid = await session.scalar(sa.text("select pg_backend_pid()"))
        await all_are_in_transactions.wait()
        return pid

    async with TaskScope(session_maker(engine), name="c07") as scope:
        pids = await asyncio.gather(*(scope.spawn(backend) for _ in range(3)))

    assert 3 == len(set(pids))
