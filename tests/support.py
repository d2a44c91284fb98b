"""What the tests share: one table, and session factories that exist on every supported SQLAlchemy."""

from __future__ import annotations

import asyncio
import contextlib
from types import SimpleNamespace

import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import declarative_base, sessionmaker

Base = declarative_base()


class Item(Base):
    """The table of the tests."""

    __tablename__ = "items"

    id = sa.Column(sa.Integer, primary_key=True)
    name = sa.Column(sa.String(100), unique=True)
    amount = sa.Column(sa.Integer, default=0)


def session_maker(engine, **options):
    """``async_sessionmaker``, also on SQLAlchemy 1.4."""
    return sessionmaker(engine, class_=AsyncSession, **options)


async def reset(engine):
    """An empty table."""
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.drop_all)
        await connection.run_sync(Base.metadata.create_all)


class Gate:
    """Where tasks stop until they are let through, and which tells when they have come."""

    def __init__(self):
        self.entered = 0
        self._arrived = asyncio.Semaphore(0)
        self._waiting = {}
        self._opened = False

    async def enter(self):
        self.entered += 1
        self._arrived.release()
        if not self._opened:
            await self._waiting.setdefault(asyncio.current_task(), asyncio.get_running_loop().create_future())

    async def arrivals(self, count=1):
        """Waits until *count* more have come."""
        for _ in range(count):
            await self._arrived.acquire()

    def let_through(self, task):
        future = self._waiting.pop(task)
        if not future.done():
            future.set_result(None)

    def open(self):
        self._opened = True
        for task in list(self._waiting):
            self.let_through(task)


@contextlib.contextmanager
def new_connections_held(engine):
    """Whoever needs a new connection of *engine* stops while it is being made, until the gate is opened."""
    gate = Gate()

    def on_connect(dbapi_connection, _record):
        dbapi_connection.run_async(lambda _driver_connection: gate.enter())

    event.listen(engine.sync_engine, "connect", on_connect)
    try:
        yield gate
    finally:
        gate.open()
        event.remove(engine.sync_engine, "connect", on_connect)


async def gather_over_one_session(engine, Session, *calls):
    """
    Gathers *calls*, each given the same session, in that session's block, while no connection is idle in the pool.

    This is when SQLAlchemy notices that a session is shared; with an idle connection it serialises the calls.

    Returns:
        ``escaped``, what left the block, or None; the ``results`` of the calls; how many ``connections`` were made.
    """
    session, tasks = Session(), []

    async def block():
        async with session:
            tasks.extend(asyncio.ensure_future(call(session)) for call in calls)
            await asyncio.gather(*tasks)

    async with engine.connect():
        with new_connections_held(engine) as gate:
            running = asyncio.ensure_future(block())
            each_has_one = asyncio.ensure_future(gate.arrivals(len(calls)))
            await asyncio.wait({running, each_has_one}, return_when=asyncio.FIRST_COMPLETED)
            if each_has_one.done():
                # In the other order they would jam a session of 2.0.0: not even close() works on it afterwards.
                gate.let_through(tasks[-1])
                await tasks[-1]
            each_has_one.cancel()
            gate.open()
            (escaped,) = await asyncio.gather(running, return_exceptions=True)
            results = await asyncio.gather(*tasks, return_exceptions=True)
        await session.close()
    return SimpleNamespace(escaped=escaped, results=results, connections=gate.entered)


def assert_it_went_wrong(seen):
    """What `gather_over_one_session` has to give for two calls: the fault of the reports, on every SQLAlchemy."""
    if sa.__version__ <= "2.0.0":
        # 1.4 and 2.0.0 do not look: one session has two connections, and so its work is in two transactions.
        assert seen.escaped is None
        assert seen.connections == len(seen.results)
        return
    assert "Method 'close()' can't be called here; method '_connection_for_bind()' is already" in str(seen.escaped)
    assert "This session is provisioning a new connection; concurrent operations are not permitted" in str(
        seen.results[1]
    )
    assert seen.connections == 1


def make_tasks_eager():
    """In the running loop, from now on; skips the test where there are none."""
    factory = getattr(asyncio, "eager_task_factory", None)
    if factory is None:
        pytest.skip("Python 3.11 has no eager tasks")
    loop = asyncio.get_event_loop()
    if "uvloop" in type(loop).__module__:
        pytest.skip("uvloop gives the factory of eager tasks an argument that it does not take")
    loop.set_task_factory(factory)
