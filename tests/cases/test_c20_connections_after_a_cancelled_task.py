"""
A task is cancelled while it holds a connection, and the connection does not come back; or the server keeps a backend.

https://github.com/sqlalchemy/sqlalchemy/issues/8145, /6652, /8516. Plain SQLAlchemy of today gives it back, so there is
no control: the versions that did not are older than those that are supported. After any cancellation the pool is whole,
and the server shows no transaction of the unit and no backend too many. Cancelled by anyio: see C21.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import uuid

import pytest
import sqlalchemy as sa
from support import Item, reset, session_maker

from sa_isolated_tasks import TaskScope, UnitCancelledError, isolated_session

ROUNDS = 8
# Each test has a name of its own: the server may still be ending what another one has left.
NAMES = (f"c20-{uuid.uuid4().hex[:8]}" for _ in itertools.count())
OPTIONS = {
    "asyncpg": lambda name: {"server_settings": {"application_name": name}},
    "psycopg": lambda name: {"application_name": name},
}
SQLALCHEMY = tuple(int(part) for part in sa.__version__.split(".")[:3])
BACKENDS = sa.text(
    "select count(*), count(*) filter (where state <> 'idle') from pg_stat_activity where application_name = :name"
)
SLEEPING = sa.text("select count(*) from pg_stat_activity where application_name = :name and wait_event = 'PgSleep'")


async def hang(session):
    """In a transaction, in a statement that would take a minute."""
    session.add(Item(name="a"))
    await session.flush()
    await session.execute(sa.text("select pg_sleep(60)"))


async def by_handle(Session, reached):
    async with TaskScope(Session, name="c20") as scope:
        handle = scope.spawn(hang)
        await reached()
        handle.cancel()
        with contextlib.suppress(UnitCancelledError):
            await handle


async def by_task(Session, reached):
    task = asyncio.create_task(isolated_session(Session)(hang)())
    await reached()
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def by_the_scope(Session, reached):
    with contextlib.suppress(KeyError):
        async with TaskScope(Session, name="c20") as scope:
            scope.spawn(hang)
            await reached()
            raise KeyError


async def until_it_sleeps(engine, name):
    """A request to end a statement that comes before the statement is lost, so the server has to be in it."""
    async with asyncio.timeout(20), engine.connect() as connection:
        while not (await connection.execute(SLEEPING, {"name": name})).scalar():
            await connection.rollback()


async def until_it_is_quiet(engine, name):
    """Until the server has ended what it was told to end: nobody is at work, and nobody is there too many."""
    async with asyncio.timeout(20), engine.connect() as connection:
        total, busy = 3, 1
        while busy or total > 2:
            total, busy = (await connection.execute(BACKENDS, {"name": name})).one()
            await connection.rollback()


@pytest.mark.parametrize("cancel", [by_handle, by_task, by_the_scope])
async def test_no_connection_and_no_backend_is_left(postgresql, make_engine, names_in_table, cancel):
    """Round after round, on a pool of two: nothing is checked out, nobody is in a transaction, nobody is too many."""
    if postgresql.name == "asyncpg" and SQLALCHEMY < (2, 0, 36):
        pytest.skip("this SQLAlchemy drops a connection of asyncpg without ending its statement")
    name = next(NAMES)
    watcher = make_engine(postgresql)
    engine = make_engine(postgresql, pool_size=2, max_overflow=0, connect_args=OPTIONS[postgresql.name](name))
    await reset(watcher)

    for _ in range(ROUNDS):
        await cancel(session_maker(engine), functools.partial(until_it_sleeps, watcher, name))
    checked_out = engine.pool.checkedout()
    await until_it_is_quiet(watcher, name)

    assert (0, []) == (checked_out, await names_in_table(watcher))
