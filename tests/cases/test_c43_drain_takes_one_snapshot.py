"""
A shutdown waits for one snapshot of the running tasks, cancels what is left, and disposes of the engine at once.

https://github.com/vstorm-co/agenticos/issues/11, /1090, /1095. A task that is spawned meanwhile is orphaned, and one
that is cancelled is not awaited. Leaving a scope waits until it is quiet under one deadline, cancels, waits for the
end, and only then returns; nobody but its own units may spawn meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from support import Item

from sa_isolated_tasks import Outcome, ScopeClosedError, TaskScope, TaskState


async def test_control_one_snapshot_misses_what_is_spawned_meanwhile(LiteSession):
    """Plain asyncio: the set is looked at once; the child is still running when the shutdown is over."""

    async def child():
        await asyncio.Event().wait()

    async def parent():
        await release.wait()
        running.add(asyncio.create_task(child()))

    running, release = set(), asyncio.Event()
    running.add(asyncio.create_task(parent()))
    snapshot = set(running)
    release.set()
    await asyncio.wait(snapshot)
    orphans = [task for task in running if not task.done()]
    for task in orphans:
        task.cancel()
    await asyncio.wait(orphans)

    assert 1 == len(orphans)


async def test_units_of_units_are_waited_for(Session, engine, names_in_table):
    """Spawned while the scope is being left, by a unit that it waits for; the engine may be disposed of after that."""

    async def write(session, name):
        session.add(Item(name=name))
        await session.flush()
        if len(name) < 4:
            scope.spawn(write, name + "x")

    async with TaskScope(Session, name="c43") as scope:
        scope.spawn(write, "x")
    await engine.dispose()

    assert ["x", "xx", "xxx", "xxxx"] == await names_in_table(engine)


async def test_intake_stops_first(LiteSession):
    """Who is no unit of the scope can spawn nothing while it is being left, and is told so."""

    async def wait(_session):
        await release.wait()

    release = asyncio.Event()
    scope = await TaskScope(LiteSession, name="c43").start()
    scope.spawn(wait)
    leaving = asyncio.create_task(scope.aclose())
    await asyncio.sleep(0)
    with pytest.raises(ScopeClosedError, match="being left"):
        scope.spawn(wait)
    release.set()
    await leaving

    assert 0 == len(scope)


async def test_what_is_cancelled_is_awaited(Session, engine, names_in_table):
    """Past *drain_timeout* the unit is cancelled, rolls back and cleans up, and only then is the scope left."""
    written, steps = asyncio.Event(), []

    async def hang(session):
        session.add(Item(name="a"))
        await session.flush()
        written.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            steps.append("cleaned up")

    async with TaskScope(Session, name="c43", drain_timeout=0.05) as scope:
        handle = scope.spawn(hang)
        await written.wait()
    await engine.dispose()

    assert (["cleaned up"], TaskState.CANCELLED, Outcome.ROLLED_BACK) == (steps, handle.state, handle.outcome)
    assert [] == await names_in_table(engine)


async def test_the_shutdown_itself_may_be_cancelled(LiteSession, sqlite_engine):
    """Its deadline is over: the units are cancelled and awaited all the same, and the cancellation goes on."""

    async def hang(session):
        session.add(Item(name="a"))
        await session.flush()
        reached.set()
        await asyncio.Event().wait()

    reached = asyncio.Event()
    scope = await TaskScope(LiteSession, name="c43").start()
    handle = scope.spawn(hang)
    await reached.wait()
    leaving = asyncio.create_task(scope.aclose())
    await asyncio.sleep(0)
    leaving.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await leaving

    assert (True, TaskState.CANCELLED, 0) == (leaving.cancelled(), handle.state, sqlite_engine.pool.checkedout())
