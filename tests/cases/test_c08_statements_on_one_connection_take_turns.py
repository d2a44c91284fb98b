"""
Statements are gathered over one connection, in the hope that they run at once; the driver's lock makes them take turns.

https://github.com/sqlalchemy/sqlalchemy/issues/5967. Sharing must not be made to work by yet another lock: what is
shared is refused, and what is gathered over units of their own does run at once.
"""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest
import sqlalchemy as sa
from support import reset, session_maker

from sa_isolated_tasks import SessionPassedError, TaskScope, isolated_session

INTERVAL = sa.text("select clock_timestamp(), pg_sleep(0.01), clock_timestamp()")
LOCK = sa.text("select pg_advisory_xact_lock(5967)")
WAITERS = sa.text("select count(*) from pg_locks where locktype = 'advisory' and objid = 5967 and not granted")


def open_connection(engine):
    return engine.connect()


def open_session(engine):
    return session_maker(engine)()


async def interval(session):
    start, _, end = (await session.execute(INTERVAL)).one()
    return start, end


@pytest.mark.parametrize("open_one", [open_connection, open_session])
async def test_control_gathered_statements_take_turns(postgresql, make_engine, open_one):
    """Plain SQLAlchemy: no error, and no concurrency: none of four statements begins before another has ended."""
    engine = make_engine(postgresql)
    await reset(engine)

    async with open_one(engine) as shared:
        await shared.execute(sa.text("select 1"))
        intervals = sorted(await asyncio.gather(*(interval(shared) for _ in range(4))))

    assert all(end <= start for (_, end), (start, _) in pairwise(intervals))


@pytest.mark.parametrize("open_one", [open_connection, open_session])
async def test_what_is_shared_is_refused(engine, Session, open_one):
    """There is no lock that would hide it: the first of the gathered calls fails."""
    isolated = isolated_session(Session)(interval)

    async with TaskScope(Session, name="c08") as scope, open_one(engine) as shared:
        with pytest.raises(SessionPassedError, match="arg 1"):
            await asyncio.gather(*(isolated(shared) for _ in range(4)))
        with pytest.raises(SessionPassedError, match="arg 1"):
            await asyncio.gather(*(scope.spawn(interval, shared) for _ in range(4)))


async def test_statements_of_two_units_run_at_once(postgresql, make_engine):
    """One unit's statement waits on the server for as long as the other unit likes, which executes meanwhile."""
    engine = make_engine(postgresql)
    await reset(engine)
    isolated = isolated_session(session_maker(engine))
    is_locked = asyncio.Event()

    @isolated
    async def hold_the_lock(session):
        await session.execute(LOCK)
        is_locked.set()
        while not await session.scalar(WAITERS):
            pass
        return "saw the other wait"

    @isolated
    async def wait_for_the_lock(session):
        await is_locked.wait()
        await session.execute(LOCK)
        return "has the lock"

    async with asyncio.timeout(10):
        results = await asyncio.gather(hold_the_lock(), wait_for_the_lock())

    assert ["saw the other wait", "has the lock"] == results


async def test_the_handle_tells_waiting_for_a_slot_from_running(Session):
    """Units beyond the limit take turns by design, and their time in the queue is said to be that."""
    async with TaskScope(Session, name="c08", limit=1) as scope:
        handles = [scope.spawn(ping) for _ in range(2)]
        await asyncio.gather(*handles)

    assert handles[1].timing.queued >= handles[0].timing.body > 0


async def ping(session):
    await session.execute(sa.text("select 1"))
