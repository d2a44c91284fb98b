"""
A task is cancelled by an anyio scope in its transaction; Python is content, and the server keeps a backend a round.

https://github.com/sqlalchemy/sqlalchemy/issues/12077, /12099, /11821. Anyio cancels again in every turn of the loop,
and so it cancels the driver's own request to end the statement: it runs on, in its transaction, and its backend is out
of the pool's sight. What is counted here is what the server says, not what the pool says.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import uuid

import anyio
import pytest
import sqlalchemy as sa
from at_rest import Server
from faulty import DEADLINE, deadline
from support import Item, reset, session_maker

from sa_isolated_tasks import TaskScope, isolated_session

ROUNDS = 4
SQLALCHEMY = tuple(int(part) for part in sa.__version__.split(".")[:3])
NAMES = (f"c21-{uuid.uuid4().hex[:8]}" for _ in itertools.count())
OPTIONS = {
    "asyncpg": lambda name: {"server_settings": {"application_name": name}},
    "psycopg": lambda name: {"application_name": name},
}
BACKENDS = sa.text("select count(*) from pg_stat_activity where application_name = :name")
ASLEEP = sa.text("select count(*) from pg_stat_activity where application_name = :name and wait_event = 'PgSleep'")
TERMINATE = sa.text("select pg_terminate_backend(pid, 5000) from pg_stat_activity where application_name = :name")


class Ward:
    """An engine whose backends have a name of their own, and a view of the server."""

    def __init__(self, engine, watcher, server, name):
        self.engine = engine
        self.Session = session_maker(engine)
        self.server = server
        self._watcher = watcher
        self._name = {"name": name}

    async def ask(self, question):
        async with self._watcher.connect() as connection:
            return (await connection.execute(question, self._name)).scalar()

    async def asleep(self, count=1):
        """Until so many of its backends are in the statement: a request that comes before it is lost."""
        while await self.ask(ASLEEP) < count:
            pass

    async def left_at_rest(self):
        """Transactions, and backends that are not the pool's, when the server has had time to end them."""
        transactions, too_many = await self.server.at_rest(), 1
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DEADLINE / 2):
                while too_many:
                    too_many = max(0, await self.ask(BACKENDS) - self.engine.pool.checkedin())
        return transactions, too_many


@pytest.fixture
async def ward(postgresql, make_engine):
    watcher, name = make_engine(postgresql), next(NAMES)
    await reset(watcher)
    engine = make_engine(postgresql, pool_size=2, max_overflow=0, connect_args=OPTIONS[postgresql.name](name))
    async with Server(watcher) as server:
        ward = Ward(engine, watcher, server, name)
        try:
            with deadline():
                yield ward
        finally:
            await ward.ask(TERMINATE)


async def asleep(session, _reached):
    session.add(Item())
    await session.flush()
    await session.execute(sa.text("select pg_sleep(60)"))


async def idle(session, reached):
    session.add(Item())
    await session.flush()
    reached.set()
    await asyncio.Event().wait()


async def cancelled_by_anyio(ward, call, reached, count=1):
    """*call* in a task of a group, until it is where it is to be cancelled."""
    async with anyio.create_task_group() as group:
        group.start_soon(call)
        if reached is None:
            await ward.asleep(count)
        else:
            await reached.wait()
        group.cancel_scope.cancel()


async def test_control_a_backend_stays_for_each_round(ward):
    """Plain SQLAlchemy, on each version and driver: the pool is whole, and the server is at work in vain."""

    async def call():
        async with ward.Session() as session, session.begin():
            await asleep(session, None)

    for number in range(ROUNDS):
        await cancelled_by_anyio(ward, call, None, number + 1)

    assert (0, ROUNDS) == (ward.engine.pool.checkedout(), len(await ward.server.transactions()))


@pytest.mark.parametrize("body", [asleep, idle])
async def test_a_call_leaves_no_backend_and_no_transaction(ward, names_in_table, body):
    """A decorated function in a task of the group: each backend is the pool's, or has gone."""
    if ward.engine.dialect.driver == "asyncpg" and SQLALCHEMY < (2, 0, 36) and body is asleep:
        pytest.skip("this SQLAlchemy drops a connection of asyncpg without ending its statement")
    call = isolated_session(ward.Session)(body)

    for _ in range(ROUNDS):
        reached = asyncio.Event() if body is idle else None
        await cancelled_by_anyio(ward, lambda reached=reached: call(reached), reached)

    assert (0, ([], 0)) == (ward.engine.pool.checkedout(), await ward.left_at_rest())
    assert [] == await names_in_table(ward.engine)


async def test_a_scope_in_a_cancelled_group_leaves_no_backend_and_no_transaction(ward, names_in_table):
    """The scope is left by the cancellation that comes again and again, and takes its units with it."""

    async def call():
        async with TaskScope(ward.Session, name="c21") as scope:
            scope.spawn(idle, reached)
            await asyncio.Event().wait()

    for _ in range(ROUNDS):
        reached = asyncio.Event()
        await cancelled_by_anyio(ward, call, reached)

    assert (0, ([], 0)) == (ward.engine.pool.checkedout(), await ward.left_at_rest())
    assert [] == await names_in_table(ward.engine)
