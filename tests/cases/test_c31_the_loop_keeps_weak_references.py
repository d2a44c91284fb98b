"""
A fire-and-forget task waits on an object that only it refers to, and the garbage collector takes both away.

https://github.com/python/cpython/issues/91887. A scope must keep a unit from its spawn to its end, whoever drops the
handle, the arguments or the scope itself, and whatever the unit waits for.
"""

from __future__ import annotations

import asyncio
import gc
import warnings
import weakref

import pytest
from support import Item

from sa_isolated_tasks import TaskScope, isolated_session


class Owner:
    """Has a future that nobody else refers to."""

    def __init__(self):
        self.future = asyncio.get_running_loop().create_future()


class Waits:
    """A body that waits on an `Owner` of its own."""

    def __init__(self):
        self.futures = []
        self.ended = []
        self._reached = asyncio.Semaphore(0)

    async def __call__(self, session=None, name="forgotten"):
        if session is not None:
            session.add(Item(name=name))
            await session.flush()
        owner = Owner()
        self.futures.append(weakref.ref(owner.future))
        self._reached.release()
        await owner.future
        self.ended.append(name)

    async def reached_and_collected(self):
        """Collects garbage when a unit waits; gives what is left of its future."""
        await self._reached.acquire()
        gc.collect()
        return self.futures[-1]()


@pytest.fixture
def waits():
    return Waits()


async def test_control_the_task_is_destroyed(waits, loop_errors):
    """Plain asyncio: the task is gone before its end, and the loop says so only afterwards."""
    asyncio.create_task(waits())  # noqa: RUF006 -- this is the fault

    left = await waits.reached_and_collected()

    assert (left, waits.ended) == (None, [])
    assert [context["message"] for context in loop_errors] == ["Task was destroyed but it is pending!"]


async def test_control_its_session_goes_with_it(sqlite_engine, LiteSession, waits, loop_errors, names_in_table):
    """Plain SQLAlchemy: what the task has written is lost, and nobody has closed its session."""

    async def write():
        session = LiteSession()
        await waits(session)
        await session.commit()

    with warnings.catch_warnings():
        # Which of the warnings comes, or which error in their place, depends on what the collector finds first.
        warnings.simplefilter("ignore")
        asyncio.create_task(write())  # noqa: RUF006 -- this is the fault
        left = await waits.reached_and_collected()
        gc.collect()

    assert (left, waits.ended) == (None, [])
    assert "Task was destroyed but it is pending!" in [context["message"] for context in loop_errors]
    assert await names_in_table(sqlite_engine) == []


async def end_all(scope, waits, count):
    """Lets *count* units go on after a collection each, and leaves the scope."""
    for _ in range(count):
        (await waits.reached_and_collected()).set_result(None)
    await scope.aclose()


async def test_a_unit_is_kept_without_its_handle(engine, Session, waits, loop_errors, names_in_table):
    """Nobody has the handle, the future or the task: the unit goes on, and commits."""
    scope = await TaskScope(Session, name="c31").start()
    scope.spawn(waits.__call__)

    await end_all(scope, waits, 1)

    assert (waits.ended, loop_errors) == (["forgotten"], [])
    assert await names_in_table(engine) == ["forgotten"]


async def test_a_unit_in_the_queue_is_kept(engine, Session, waits, names_in_table):
    """Neither those that wait for a slot nor their arguments are collected, however many collections there are."""
    scope = await TaskScope(Session, name="c31", limit=1).start()
    for number in range(3):
        scope.spawn(waits.__call__, f"number {number}")

    await end_all(scope, waits, 3)

    assert waits.ended == ["number 0", "number 1", "number 2"]
    assert await names_in_table(engine) == waits.ended


async def test_a_unit_of_a_unit_is_kept(LiteSession, waits):
    """It belongs to the scope, not to its parent, which has ended and is gone."""

    async def parent(session):
        scope.spawn(waits.__call__)

    scope = await TaskScope(LiteSession, name="c31").start()
    await scope.spawn(parent)

    await end_all(scope, waits, 1)

    assert waits.ended == ["forgotten"]


async def test_a_unit_of_an_isolated_function_is_kept(LiteSession, waits):
    """A decorated function, spawned, is kept like a plain one."""
    scope = await TaskScope(LiteSession, name="c31").start()

    @isolated_session(LiteSession)
    async def work(session):
        await waits(session)

    scope.spawn(work)
    del work

    await end_all(scope, waits, 1)

    assert waits.ended == ["forgotten"]


async def lend(session, waits, argument):
    await waits()


async def test_an_ended_unit_is_let_go(LiteSession, waits):
    """The strong reference lasts until the end and no longer."""
    scope = await TaskScope(LiteSession, name="c31").start()
    argument = Waits()
    gone = weakref.ref(argument)
    scope.spawn(lend, waits, argument)
    del argument

    future = await waits.reached_and_collected()
    kept = gone() is not None
    future.set_result(None)
    await scope.aclose()
    gc.collect()

    assert (kept, gone()) == (True, None)


async def test_a_unit_is_kept_without_its_scope(LiteSession, waits):
    """A scope that was started and dropped is reported, and its units go on to their end, those in the queue too."""
    scope = await TaskScope(LiteSession, name="c31", limit=1).start()
    last = asyncio.Event()
    scope.spawn(waits.__call__)
    scope.spawn(waits.__call__, "queued").add_done_callback(lambda _: last.set())
    del scope

    with pytest.warns(ResourceWarning, match="scope c31 was started and never closed"):
        for _ in range(2):
            (await waits.reached_and_collected()).set_result(None)
        await last.wait()
        gc.collect()

    assert waits.ended == ["forgotten", "queued"]
