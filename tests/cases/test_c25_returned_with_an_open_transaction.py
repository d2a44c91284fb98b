"""
A connection goes back to the pool with an open transaction, and what the next ones commit on it is never committed.

https://github.com/sqlalchemy/sqlalchemy/issues/13381. A listener sets a variable of the tenant on the driver's cursor,
so that the implicit BEGIN is sent by the listener; a cancellation comes while the BEGIN is under way. Up to SQLAlchemy
2.0 the dialect of asyncpg then does not know that there is a transaction, and SQLAlchemy does not know that a call was
cut off. A unit knows, and its connection is cut. The variable is better set in ``after_begin``.
"""

from __future__ import annotations

import asyncio
import contextlib

import pytest
import sqlalchemy as sa
from at_rest import Server
from faulty import deadline, end_of, plain_connections, proxy_before, through
from proxy import Moment
from sqlalchemy import event
from sqlalchemy.orm import Session as SyncSession
from support import Item, reset, session_maker

from sa_isolated_tasks import Outcome, TaskScope, TaskState

SQLALCHEMY = tuple(int(part) for part in sa.__version__.split(".")[:2])
SET_TENANT = "select set_config('c25.tenant', 'a', true)"


class Ward:
    """An engine with one connection, through a proxy that stops at BEGIN, a watcher, and what the server says."""

    def __init__(self, proxy, engine, watcher, server):
        self.proxy = proxy
        self.engine = engine
        self.watcher = watcher
        self.server = server
        self.Session = session_maker(engine)

    def strike_at_begin(self, moment, strike):
        """Calls *strike* when the next BEGIN is under way, or answered; it comes through a little later."""

        def fault(link):
            link.stall()
            strike()
            # By then the cancellation is in the driver, which waits for the answer before it does anything else.
            asyncio.get_running_loop().call_later(0.05, link.resume)

        self.proxy.trap(b"BEGIN", moment, fault)


@pytest.fixture
async def ward(postgresql, make_engine):
    watcher = make_engine(postgresql)
    await reset(watcher)
    async with proxy_before(postgresql) as proxy, Server(watcher) as server:
        engine = make_engine(through(proxy, postgresql), pool_size=1, max_overflow=0, **plain_connections(postgresql))
        async with engine.connect():
            pass
        with deadline():
            yield Ward(proxy, engine, watcher, server)


def set_on_the_cursor(ward):
    @event.listens_for(ward.engine.sync_engine, "before_cursor_execute")
    def _set_tenant(_connection, cursor, *_):
        cursor.execute(SET_TENANT)


def set_after_begin(ward):
    class TenantSession(SyncSession):
        """The session of one tenant."""

    @event.listens_for(TenantSession, "after_begin")
    def _set_tenant(_session, _transaction, connection):
        connection.execute(sa.text(SET_TENANT))

    ward.Session = session_maker(ward.engine, sync_session_class=TenantSession)


LISTENERS = pytest.mark.parametrize("listen", [set_on_the_cursor, set_after_begin])
MOMENTS = pytest.mark.parametrize("moment", Moment, ids=lambda moment: moment.name)


async def read(session):
    await session.execute(sa.select(Item))


async def write(session, name="next"):
    session.add(Item(name=name))


async def begin_in_time(ward, moment, session):
    """A timeout of the body's own runs out while BEGIN is under way."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(None) as time:
            ward.strike_at_begin(moment, lambda: time.reschedule(0))
            await read(session)


async def names_of_two_units(ward):
    """Two more units write, on the only connection; gives what they say, and what is there."""
    async with TaskScope(ward.Session, name="c25", limit=1) as scope:
        handles = [scope.spawn(write, name) for name in "ab"]
    async with ward.watcher.connect() as connection:
        names = (await connection.execute(sa.select(Item.name).order_by(Item.name))).scalars().all()
    return [handle.outcome for handle in handles], names


async def test_control_the_next_commit_is_none(ward):
    """Plain SQLAlchemy, below 2.1, on asyncpg: the session commits, and its row is not there."""
    if ward.engine.dialect.driver != "asyncpg" or SQLALCHEMY >= (2, 1):
        pytest.skip("SQLAlchemy 2.1 knows whether BEGIN came through; psycopg always knew")

    async def run():
        async with ward.Session() as session:
            await read(session)

    set_on_the_cursor(ward)
    task = asyncio.create_task(run())
    ward.strike_at_begin(Moment.ANSWER, task.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await task
    async with ward.Session() as session:
        await write(session)
        await session.commit()
    async with ward.watcher.connect() as connection:
        count = (await connection.execute(sa.select(sa.func.count()).select_from(Item))).scalar()

    assert (1, 0) == (len(await ward.server.transactions()), count)


@LISTENERS
@MOMENTS
async def test_a_unit_that_is_cancelled_during_begin(ward, listen, moment):
    """No transaction is left at rest, and what the next units say that they have committed is there."""
    listen(ward)

    async with TaskScope(ward.Session, name="c25", limit=1) as scope:
        handle = scope.spawn(read)
        ward.strike_at_begin(moment, handle.cancel)
        await end_of(handle)
    outcomes, names = await names_of_two_units(ward)

    assert TaskState.CANCELLED is handle.state
    assert ([Outcome.COMMITTED] * 2, ["a", "b"]) == (outcomes, names)
    assert [] == await ward.server.at_rest()


@LISTENERS
@MOMENTS
async def test_a_body_whose_timeout_runs_out_during_begin(ward, listen, moment):
    """It rolls back, and goes on: what it commits then is there."""

    async def body(session):
        await begin_in_time(ward, moment, session)
        await session.rollback()
        await write(session, "body")
        await session.commit()

    listen(ward)
    async with TaskScope(ward.Session, name="c25", limit=1) as scope:
        handle = scope.spawn(body)
        await end_of(handle)
    outcomes, names = await names_of_two_units(ward)

    assert (TaskState.SUCCEEDED, Outcome.COMMITTED) == (handle.state, handle.outcome)
    assert ([Outcome.COMMITTED] * 2, ["a", "b", "body"]) == (outcomes, names)
    assert [] == await ward.server.at_rest()


async def test_a_body_that_goes_on_in_the_transaction_whose_begin_was_cut_off(ward):
    """Its commit fails: it never says that it has committed what the next user of the connection rolls back."""
    if ward.engine.dialect.driver != "asyncpg":
        pytest.skip("psycopg sends BEGIN with the statement, and knows by the answer what has become of it")

    async def body(session):
        await begin_in_time(ward, Moment.ANSWER, session)
        await write(session, "body")

    set_on_the_cursor(ward)
    async with TaskScope(ward.Session, name="c25", limit=1) as scope:
        handle = scope.spawn(body)
        await end_of(handle)
    outcomes, names = await names_of_two_units(ward)

    assert (TaskState.FAILED, Outcome.ROLLED_BACK) == (handle.state, handle.outcome)
    assert ([Outcome.COMMITTED] * 2, ["a", "b"]) == (outcomes, names)
    assert [] == await ward.server.at_rest()


WAIT = {
    "postgresql": "select pg_advisory_lock(2525)",
    "mysql": "select get_lock('c25', 60)",
}
RELEASE = {
    "postgresql": "select pg_advisory_unlock(2525)",
    "mysql": "select release_lock('c25')",
}


async def test_a_statement_on_the_drivers_cursor_that_is_cut_off(server, make_engine):
    """The same without a listener, on each SQLAlchemy: with asyncpg the next units would be in that transaction."""
    engine, healthy = (make_engine(server, pool_size=1, max_overflow=0) for _ in range(2))
    wait, release = WAIT[engine.dialect.name], RELEASE[engine.dialect.name]

    def on_the_cursor(session):
        cursor = session.connection().connection.cursor()
        reached.set()
        cursor.execute(wait)

    async def body(session):
        await session.run_sync(on_the_cursor)

    async def forty_two(session):
        return (await session.execute(sa.text("select 42"))).scalar()

    reached = asyncio.Event()
    async with healthy.connect() as connection:
        await connection.execute(sa.text(wait))
        async with TaskScope(session_maker(engine), name="c25", limit=1) as scope:
            handle = scope.spawn(body)
            await reached.wait()
            handle.cancel()
            await end_of(handle)
            answers = [await scope.spawn(forty_two) for _ in range(2)]
        await connection.execute(sa.text(release))

    assert (TaskState.CANCELLED, [42, 42]) == (handle.state, answers)
    async with Server(healthy) as view:
        assert [] == await view.at_rest()
