"""
The client goes away, the request's cancel scope is cancelled, and with it what the request had started.

https://github.com/Kludex/starlette/issues/1438, https://github.com/fastapi/fastapi/issues/5606. Middleware runs the
endpoint in an anyio task group of its own and cancels it on a disconnect. A unit is no child of it: it belongs to its
scope, and only a decorated function that is called in the request is cancelled with the request.
"""

from __future__ import annotations

import asyncio

import anyio
from support import Item

from sa_isolated_tasks import Outcome, TaskScope, TaskState, isolated_session


async def write(session, reached, release):
    session.add(Item(name="a"))
    await session.flush()
    reached.set()
    await release.wait()


async def request(endpoint, disconnected):
    """What a middleware makes of a request whose client goes away."""
    async with anyio.create_task_group() as group:
        group.start_soon(endpoint)
        await disconnected.wait()
        group.cancel_scope.cancel()


async def test_control_a_task_of_the_request_is_cancelled_with_it(Session, engine, names_in_table):
    """Plain anyio: the row is not written."""

    async def endpoint():
        async with Session.begin() as session:
            await write(session, reached, asyncio.Event())

    reached = asyncio.Event()
    await request(endpoint, reached)

    assert [] == await names_in_table(engine)


async def test_a_unit_that_a_request_has_spawned_goes_on(Session, engine, names_in_table):
    """It is in its transaction when the request is cancelled; the scope of the application has it done."""

    async def endpoint():
        handles.append(scope.spawn(write, reached, release))
        await asyncio.Event().wait()

    reached, release, handles = asyncio.Event(), asyncio.Event(), []
    async with TaskScope(Session, name="c24") as scope:
        await request(endpoint, reached)
        release.set()

    assert (TaskState.SUCCEEDED, Outcome.COMMITTED) == (handles[0].state, handles[0].outcome)
    assert ["a"] == await names_in_table(engine)


async def test_a_request_that_waits_for_a_unit_may_be_cancelled(Session, engine, names_in_table):
    """Who awaits a handle is cancelled; the unit is not."""

    async def endpoint():
        await scope.spawn(write, reached, release)

    reached, release = asyncio.Event(), asyncio.Event()
    async with TaskScope(Session, name="c24") as scope:
        await request(endpoint, reached)
        release.set()

    assert ["a"] == await names_in_table(engine)


async def test_a_call_in_the_request_is_cancelled_with_it_and_leaves_nothing(Session, engine, names_in_table):
    """No scope owns it: it is rolled back, its session is closed, and its connection is back in the pool."""
    reached = asyncio.Event()

    await request(lambda: isolated_session(Session)(write)(reached, asyncio.Event()), reached)

    assert [] == await names_in_table(engine)
    assert 0 == engine.pool.checkedout()
