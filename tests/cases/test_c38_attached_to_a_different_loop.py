"""
What belongs to one event loop, an engine's connections or a scope, is used in another: a loop per test, or per request.

https://github.com/pytest-dev/pytest-asyncio/issues/402 and https://github.com/sqlalchemy/sqlalchemy/issues/5626. A
scope must say so before anything has begun, and go on in its own loop; a decorated function belongs to no loop.
"""

from __future__ import annotations

import asyncio
import gc

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine
from support import Item, reset, session_maker

from sa_isolated_tasks import ScopeClosedError, TaskScope, TaskState, WrongLoopError, isolated_session


@pytest.fixture
def loops():
    """Two loops, neither of which runs while the other does."""
    with asyncio.Runner() as first, asyncio.Runner() as second:
        yield first, second


async def add(session, name):
    session.add(Item(name=name))


async def call(fn, *args):
    """``fn(*args)`` inside a loop, awaited if it can be."""
    result = fn(*args)
    return await result if hasattr(result, "__await__") else result


def causes_of(error):
    while error is not None:
        yield str(error)
        error = error.__cause__ or error.__context__


def test_control_a_pooled_connection_is_used_in_another_loop(asyncpg, loops):
    """Plain SQLAlchemy: the pool hands the connection to whoever asks, and the driver waits in the wrong loop."""
    engine = create_async_engine(asyncpg.url)
    first, second = loops

    async def use():
        async with engine.connect() as connection:
            await connection.execute(sa.text("select 1"))

    first.run(use())
    with pytest.raises(Exception) as failed:
        second.run(use())
    first.run(engine.dispose())

    assert any("attached to a different loop" in text for text in causes_of(failed.value))


@pytest.mark.parametrize(
    "use",
    [
        pytest.param(lambda scope, _handle, fn: scope.spawn(fn, "b"), id="spawn"),
        pytest.param(lambda scope, _handle, fn: scope.options(name="b").spawn(fn, "b"), id="options"),
        pytest.param(lambda _scope, handle, _fn: handle, id="await"),
        pytest.param(lambda _scope, handle, _fn: asyncio.gather(handle), id="gather"),
    ],
)
@pytest.mark.parametrize("isolate", [False, True], ids=["plain", "isolated"])
def test_a_scope_is_refused_in_another_loop_and_goes_on_in_its_own(sqlite, loops, use, isolate):
    """Nothing has begun there, and the unit that runs meanwhile commits as if nothing had been tried."""
    engine = create_async_engine(sqlite.url)
    first, second = loops
    gate = asyncio.Event()

    async def add_later(session):
        await gate.wait()
        await add(session, "a")

    async def spawn():
        await reset(engine)
        scope.start()
        return scope.spawn(add_later)

    async def finish():
        gate.set()
        await scope.aclose()
        async with engine.connect() as connection:
            names = (await connection.execute(sa.select(Item.name))).scalars().all()
        await engine.dispose()
        return names

    Session = session_maker(engine)
    scope = TaskScope(Session, name="c38")
    fn = isolated_session(Session)(add) if isolate else add
    handle = first.run(spawn())
    with pytest.raises(WrongLoopError, match="another event loop"):
        second.run(call(use, scope, handle, fn))
    length = len(scope)
    names = first.run(finish())

    assert (1, TaskState.SUCCEEDED) == (length, handle.state)
    assert ["a"] == names


def test_a_scope_that_its_loop_has_left_open_is_refused_in_the_next(sqlite):
    """``asyncio.run`` twice, and the scope is at module level: the second run is told, and so is who forgot it."""
    engine = create_async_engine(sqlite.url)

    async def start(scope):
        scope.start()

    def run_twice():
        scope = TaskScope(session_maker(engine), name="c38")
        asyncio.run(start(scope))
        with pytest.raises(WrongLoopError, match="add was spawned from another event loop"):
            asyncio.run(call(scope.spawn, add, "a"))

    def forget():
        run_twice()
        gc.collect()

    with pytest.warns(ResourceWarning, match="scope c38 was started and never closed; units left: 0"):
        forget()


@pytest.mark.parametrize(
    "use", [lambda scope: scope.spawn(add, "a"), lambda scope: scope.start()], ids=["spawn", "start"]
)
def test_a_scope_that_was_closed_in_its_loop_is_closed_in_the_next(sqlite, use):
    """It has one life: another loop needs another scope, and the error says so."""
    engine = create_async_engine(sqlite.url)
    scope = TaskScope(session_maker(engine), name="c38")

    async def live():
        async with scope:
            pass

    asyncio.run(live())
    with pytest.raises(ScopeClosedError, match=r"scope c38.* is closed"):
        asyncio.run(call(use, scope))


def test_one_function_runs_in_one_loop_after_another(database):
    """A decorated function belongs to no loop; each loop has its scope, and disposes the engine before it ends."""
    engine = create_async_engine(database.url)
    Session = session_maker(engine)
    isolated = isolated_session(Session)(add)

    async def use(name):
        async with TaskScope(Session, name="c38", limit=1) as scope:
            await isolated(name)
            await scope.spawn(isolated, name * 2)
            await scope.spawn(add, name * 3)
        async with engine.connect() as connection:
            names = (await connection.execute(sa.select(Item.name).order_by(Item.id))).scalars().all()
        await engine.dispose()
        return names

    async def prepare():
        await reset(engine)
        await engine.dispose()

    asyncio.run(prepare())
    seen = [asyncio.run(use(name)) for name in "ab"]

    assert [["a", "aa", "aaa"], ["a", "aa", "aaa", "b", "bb", "bbb"]] == seen


def test_one_function_runs_in_two_loops_by_turns(database, loops):
    """Each loop has an engine of its own, and ``using()`` gives the function its sessions."""
    engines = [create_async_engine(database.url) for _ in loops]
    isolated = isolated_session(session_maker(engines[0]))(add)
    first = loops[0]

    async def read():
        async with engines[0].connect() as connection:
            return (await connection.execute(sa.select(Item.name).order_by(Item.id))).scalars().all()

    first.run(reset(engines[0]))
    for index, name in enumerate("abcd"):
        loops[index % 2].run(call(isolated.using(session_maker(engines[index % 2])), name))
    names = first.run(read())
    for loop, engine in zip(loops, engines, strict=True):
        loop.run(engine.dispose())

    assert ["a", "b", "c", "d"] == names
