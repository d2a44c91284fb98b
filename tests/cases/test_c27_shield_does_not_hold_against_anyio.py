"""
On cancellation a handler saves its run behind ``asyncio.shield``, inside a cancelled anyio scope.

https://github.com/agno-agi/agno/issues/7318. The scope cancels the await of the shield again at once, and the row is
missing. A unit's own commit and clean-up are awaited under anyio as well; and what has to be saved after a
cancellation is a unit of a scope that is not inside the cancelled one.
"""

from __future__ import annotations

import asyncio

import anyio
import pytest
from support import Item

from sa_isolated_tasks import TaskScope, isolated_session


async def save(session, name, saved):
    session.add(Item(name=name))
    await session.flush()
    saved.set()


async def test_control_the_shield_is_left_before_the_work_is_done(LiteSession, sqlite_engine):
    """Plain SQLAlchemy: the handler goes on, and ends, while the shielded work is still running."""

    async def save_run():
        await release.wait()
        async with LiteSession.begin() as session:
            await save(session, "a", saved)

    async def handler():
        try:
            await asyncio.Event().wait()
        finally:
            work.append(asyncio.ensure_future(save_run()))
            await asyncio.shield(work[0])

    release, saved, work = asyncio.Event(), asyncio.Event(), []
    with anyio.CancelScope() as scope:
        asyncio.get_running_loop().call_soon(scope.cancel)
        await handler()
    left_early = not work[0].done()
    release.set()
    await work[0]

    assert left_early


@pytest.mark.parametrize("moment", ["body", "commit"])
async def test_a_units_own_end_is_awaited_under_anyio(Session, engine, names_in_table, moment):
    """Cancelled in its body it is rolled back; in its commit, that is awaited. Then the cancellation goes on."""

    async def body(session):
        await save(session, "a", saved)
        if moment == "body":
            await asyncio.Event().wait()

    saved = asyncio.Event()
    with anyio.CancelScope() as scope:
        saved.set = scope.cancel
        await isolated_session(Session)(body)()

    expected = [] if moment == "body" else ["a"]
    assert (True, expected) == (scope.cancelled_caught, await names_in_table(engine))
    assert 0 == engine.pool.checkedout()


async def test_what_is_saved_after_a_cancellation_is_a_unit_of_its_own(Session, engine, names_in_table):
    """The handler spawns it and goes; the scope around the application has it done."""
    async with TaskScope(Session, name="c27") as application:
        with anyio.CancelScope() as scope:
            asyncio.get_running_loop().call_soon(scope.cancel)
            try:
                await asyncio.Event().wait()
            finally:
                application.spawn(save, "a", asyncio.Event())

    assert ["a"] == await names_in_table(engine)
