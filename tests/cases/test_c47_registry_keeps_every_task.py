"""
A scoped registry keyed by the current task keeps every task and session that nobody removes from it.

https://github.com/sqlalchemy/sqlalchemy/issues/8340. A registry is refused, as a factory and as an argument; nothing of
a unit may be left when it has ended, in the scope or in a registry that a factory of the project's own removes from.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import weakref

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import async_scoped_session
from support import Item

from sa_isolated_tasks import FakeIsolationError, SessionPassedError, TaskScope, TaskState, isolated_session

COUNT = 20


async def count_items(session):
    return await session.scalar(sa.select(sa.func.count(Item.id)))


class Seen:
    """The tasks and sessions that have run a body, as long as somebody else keeps them."""

    def __init__(self):
        self.tasks = weakref.WeakSet()
        self.sessions = weakref.WeakSet()
        self.count = 0

    async def body(self, session, fail=False):
        self.count += 1
        self.tasks.add(asyncio.current_task())
        self.sessions.add(session)
        await count_items(session)
        if fail:
            raise ZeroDivisionError

    def left(self):
        gc.collect()
        return len(self.tasks), len(self.sessions)


@pytest.fixture
def no_log(caplog):
    """What pytest has captured of a failure keeps its traceback, and so the session."""
    caplog.set_level(logging.CRITICAL, "sa_isolated_tasks")


@pytest.fixture
def registry(LiteSession):
    return async_scoped_session(LiteSession, scopefunc=asyncio.current_task)


async def test_control_a_closed_session_is_kept_with_its_task(registry):
    """Plain SQLAlchemy: every session is closed, as the report does, and every task is still there."""
    seen = Seen()

    async def work():
        await seen.body(registry())
        await registry.close()

    for _ in range(COUNT):
        await asyncio.create_task(work())

    assert (COUNT, COUNT) == seen.left()
    assert COUNT == len(registry.registry.registry)


@pytest.mark.parametrize(
    "use",
    [
        pytest.param(lambda registry, _: TaskScope(registry, name="c47").start(), id="scope"),
        pytest.param(lambda registry, _: isolated_session(registry)(count_items)(), id="decorator"),
        pytest.param(lambda registry, Session: isolated_session(Session)(count_items).using(registry)(), id="using"),
    ],
)
async def test_a_registry_is_no_factory(registry, LiteSession, use):
    """It is refused before anything is kept in it, and the cure names what is inside of it."""
    with pytest.raises(FakeIsolationError) as refused:
        use(registry, LiteSession)

    assert "registry.session_factory" in refused.value.cure
    assert {} == registry.registry.registry


async def test_a_registry_is_no_argument(registry, LiteSession):
    """Not even inside something else: who is given it would fill it."""

    async def work(_session, services):
        await services["db"].close()

    async with TaskScope(LiteSession, name="c47") as scope:
        with pytest.raises(SessionPassedError) as refused:
            scope.spawn(work, {"db": registry})

    assert "work() was given a scoped registry (async_scoped_session): arg 1 -> ['db']" == refused.value.what


async def test_an_open_scope_keeps_nothing_of_its_units(LiteSession, no_log):
    """However they ended: returned, failed, or cancelled before they began."""
    seen = Seen()

    async with TaskScope(LiteSession, name="c47") as scope:
        for index in range(COUNT):
            scope.spawn(seen.body, fail=index % 2 == 0)
            scope.spawn(seen.body).cancel()
        await scope.drain()
        left = seen.left()
        snapshot = scope.snapshot()

    assert COUNT == seen.count
    assert (0, 0) == left
    assert (COUNT // 2, COUNT // 2, COUNT) == (snapshot.succeeded, snapshot.failed, snapshot.cancelled)


async def test_a_handle_keeps_neither_task_nor_session(LiteSession):
    """Who holds every handle holds what became of the units, and nothing that they used."""
    seen = Seen()

    async with TaskScope(LiteSession, name="c47") as scope:
        handles = [scope.spawn(seen.body) for _ in range(COUNT)]
        await scope.drain()
        left = seen.left()

    assert (0, 0) == left
    assert {TaskState.SUCCEEDED} == {handle.state for handle in handles}


async def test_a_decorated_function_keeps_nothing_of_its_calls(LiteSession):
    """The same without a scope, in one task for each call."""
    seen = Seen()

    @isolated_session(LiteSession)
    async def body(session):
        await seen.body(session)

    for _ in range(COUNT):
        await asyncio.create_task(body())
    await asyncio.sleep(0)  # the loop itself keeps a task while it wakes who has awaited it

    assert COUNT == seen.count
    assert (0, 0) == seen.left()


async def test_a_factory_may_use_a_registry_and_remove_from_it(registry, no_log):
    """A context manager is left in the unit's own task, so that ``remove()`` finds what it is to remove."""
    seen = Seen()

    @contextlib.asynccontextmanager
    async def session_of_this_task():
        try:
            yield registry()
        finally:
            await registry.remove()

    async with TaskScope(session_of_this_task, name="c47", limit=2) as scope:
        for index in range(COUNT):
            scope.spawn(seen.body, fail=index % 2 == 0)
        await scope.drain()
        left = seen.left()
        snapshot = scope.snapshot()

    assert COUNT == seen.count
    assert (0, 0) == left
    assert {} == registry.registry.registry
    assert (COUNT // 2, COUNT // 2) == (snapshot.succeeded, snapshot.failed)
