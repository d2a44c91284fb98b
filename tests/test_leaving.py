"""Leaving a scope as programs do it: in a fresh process, by a signal, twice, and from two tasks at once."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import signal
import sqlite3
import sys
import threading

import pytest
from support import Item, reset, session_maker

from sa_isolated_tasks import Outcome, ScopeClosedError, TaskScope, TaskState, UnitCancelledError

PROGRAM = """
import asyncio, logging, sys
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import sessionmaker
from sa_isolated_tasks import TaskScope

# Failures of units are meant to be logged, and a callback may be slow on a slow machine; all else is not meant.
logging.getLogger("sa_isolated_tasks").addHandler(logging.NullHandler())
logging.getLogger("sa_isolated_tasks").propagate = False
logging.getLogger("asyncio").setLevel("ERROR")

async def completed(session, reached):
    await session.execute(sa.text("select 1"))
    reached.set()

async def failed(session, reached):
    await completed(session, reached)
    raise ValueError

async def cancelled(session, reached):
    await completed(session, reached)
    await asyncio.Event().wait()

async def cut(session, reached):
    reached.set()
    await session.execute(sa.text("insert into items (name) values ('a')"))

async def main(url, how):
    arguments = {"timeout": 600} if url.startswith("sqlite") else {}
    engine = create_async_engine(url, connect_args=arguments)
    Session = sessionmaker(engine, class_=AsyncSession)
    drain = {"cancelled": 0, "cut": 1}.get(how)
    async with TaskScope(Session, name="t", limit=2, drain_timeout=drain, cancel_timeout=0.3) as scope:
        reached = asyncio.Event()
        handle = scope.spawn(globals()[how], reached)
        await reached.wait()
    await engine.dispose()
    print(handle.state.value, handle.outcome.value)

asyncio.run(main(*sys.argv[1:]))
"""


async def run(url, how):
    """The program, as strict as Python can be; gives its exit code and all that it has said."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-X", "dev", "-W", "error", "-c", PROGRAM, url.render_as_string(hide_password=False), how),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(), 60)
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()
    return process.returncode, out.decode().strip(), err.decode()


@pytest.mark.parametrize(
    ("how", "end"),
    [
        ("completed", "succeeded committed"),
        ("failed", "failed rolled_back"),
        ("cancelled", "cancelled rolled_back"),
    ],
)
async def test_a_program_that_disposes_of_its_engine_right_after_the_scope(database, how, end):
    """It exits with 0, and no warning, whatever became of its unit: nothing is left that dispose() would disturb."""
    assert (0, end, "") == await run(database.url, how)


async def test_a_program_whose_unit_was_cut_off(sqlite, sqlite_engine, tmp_path):
    """The thread of its connection waits for a lock for ten minutes: the program ends all the same, and silently."""
    if not getattr(sqlite_engine.dialect, "has_terminate", False):
        pytest.skip("this SQLAlchemy closes a connection of aiosqlite only when its thread answers")
    path = tmp_path / "cut.db"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as holder:
        holder.execute("create table items (id integer primary key, name varchar)")
        holder.execute("begin immediate")
        ended = await run(sqlite.url.set(database=str(path)), "cut")

    assert (0, "cancelled unknown", "") == ended


async def test_a_connection_of_sqlite_that_is_cut_leaves_no_task(sqlite, make_engine, tmp_path):
    """While its thread still waits for the lock; when it has it at last, its write is rolled back."""
    path = tmp_path / "cut.db"
    engine = make_engine(dataclasses.replace(sqlite, url=sqlite.url.set(database=str(path))))
    if not getattr(engine.dialect, "has_terminate", False):
        pytest.skip("this SQLAlchemy closes a connection of aiosqlite only when its thread answers")
    threads = set(threading.enumerate())
    await reset(engine)

    async def body(session):
        session.add(Item(name="a"))
        await session.flush()

    before = asyncio.all_tasks()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as holder:
        holder.execute("begin immediate")
        async with TaskScope(session_maker(engine), name="t", drain_timeout=0.1, cancel_timeout=0.1) as scope:
            handle = scope.spawn(body)
        left = asyncio.all_tasks() - before
        holder.execute("rollback")
        await engine.dispose()
        for thread in set(threading.enumerate()) - threads:
            await asyncio.to_thread(thread.join)
        rows = holder.execute("select * from items").fetchall()

    assert (TaskState.CANCELLED, Outcome.UNKNOWN, set(), []) == (handle.state, handle.outcome, left, rows)


async def test_a_program_whose_unit_was_cut_off_in_its_commit(postgresql, slow_commit):
    """The server does not answer to COMMIT: the connection is cut, and dispose() finds nothing to wait for."""
    url = postgresql.url
    if postgresql.name == "asyncpg":
        # The connection by which it asks the server to end the statement complains when it is lost in the TLS probe.
        url = url.update_query_dict({"ssl": "disable"})
    ended = await run(url, "cut")

    assert (0, "cancelled unknown", "") == ended


# A signal


@pytest.fixture
async def on_sigterm():
    """Calls a function when this process is told to terminate, in the loop; `terminate` tells it."""
    loop = asyncio.get_running_loop()
    yield lambda handler: loop.add_signal_handler(signal.SIGTERM, handler)
    loop.remove_signal_handler(signal.SIGTERM)


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


async def write(session, reached, release):
    session.add(Item(name="a"))
    await session.flush()
    reached.set()
    await release.wait()


async def test_a_signal_that_starts_to_close_the_scope_lets_its_units_end(Session, engine, names_in_table, on_sigterm):
    """``aclose()`` in a task of the handler's: intake stops, what runs is committed, and the engine may be disposed."""

    def close():
        closing.append(asyncio.create_task(scope.aclose()))
        called.set()

    closing, called = [], asyncio.Event()
    reached, release = asyncio.Event(), asyncio.Event()
    scope = await TaskScope(Session, name="t").start()
    on_sigterm(close)
    handle = scope.spawn(write, reached, release)
    await reached.wait()
    terminate()
    await called.wait()
    await asyncio.sleep(0)
    with pytest.raises(ScopeClosedError, match="being left"):
        scope.spawn(write, reached, release)
    release.set()
    await closing[0]
    await engine.dispose()

    assert (TaskState.SUCCEEDED, Outcome.COMMITTED) == (handle.state, handle.outcome)
    assert ["a"] == await names_in_table(engine)


async def test_a_signal_that_cancels_the_scope_ends_its_units_at_once(Session, engine, names_in_table, on_sigterm):
    """``cancel()`` in the handler itself: the block goes on to its end, with every unit rolled back and awaited."""
    reached = asyncio.Event()
    async with TaskScope(Session, name="t") as scope:
        on_sigterm(lambda: scope.cancel("SIGTERM"))
        handle = scope.spawn(write, reached, asyncio.Event())
        await reached.wait()
        terminate()
        with pytest.raises(UnitCancelledError, match="SIGTERM"):
            await handle
    await engine.dispose()

    assert (TaskState.CANCELLED, Outcome.ROLLED_BACK, []) == (
        handle.state,
        handle.outcome,
        await names_in_table(engine),
    )


async def test_a_signal_that_cancels_the_host_ends_its_units_at_once(Session, engine, names_in_table, on_sigterm):
    """As ``asyncio.run`` does it for SIGINT: the units are cancelled and awaited, and the cancellation goes on."""

    async def host():
        async with TaskScope(Session, name="t") as scope:
            handles.append(scope.spawn(write, reached, asyncio.Event()))
            await asyncio.Event().wait()

    handles, reached = [], asyncio.Event()
    task = asyncio.create_task(host())
    on_sigterm(task.cancel)
    await reached.wait()
    terminate()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert (TaskState.CANCELLED, Outcome.ROLLED_BACK) == (handles[0].state, handles[0].outcome)
    assert [] == await names_in_table(engine)


# Twice, and from two tasks


async def test_of_two_tasks_that_close_one_is_cancelled(LiteSession):
    """Its cancellation cancels the units, and goes on; the other returns when they have ended, and is not cancelled."""
    reached = asyncio.Event()
    scope = await TaskScope(LiteSession, name="t").start()
    handle = scope.spawn(write, reached, asyncio.Event())
    closers = [asyncio.create_task(scope.aclose()) for _ in range(2)]
    await reached.wait()
    closers[0].cancel()
    await asyncio.wait(closers)

    assert [True, False] == [closer.cancelled() for closer in closers]
    assert (None, TaskState.CANCELLED) == (closers[1].result(), handle.state)


async def test_a_failure_comes_out_of_one_of_two_closes_once(LiteSession):
    """``on_failure="raise"``: of two tasks that close the scope one is told, and a close after that is silent."""

    async def fail(_session):
        await release.wait()
        raise ValueError("no")

    release = asyncio.Event()
    scope = await TaskScope(LiteSession, name="t", on_failure="raise").start()
    scope.spawn(fail)
    closers = [asyncio.create_task(scope.aclose()) for _ in range(2)]
    await asyncio.sleep(0)
    release.set()
    results = await asyncio.gather(*closers, return_exceptions=True)
    await scope.aclose()

    assert [ExceptionGroup, type(None)] == sorted(map(type, results), key=lambda cls: cls.__name__)


async def test_a_unit_and_a_task_close_at_once(LiteSession):
    """The unit waits for the others, the task for the unit too; neither waits for ever."""

    async def closer(_session):
        await scope.aclose()
        order.append("unit")

    async def other(_session):
        reached.set()
        await release.wait()
        order.append("other")

    order, reached, release = [], asyncio.Event(), asyncio.Event()
    scope = await TaskScope(LiteSession, name="t", limit=2).start()
    scope.spawn(other)
    scope.spawn(closer)
    await reached.wait()
    closing = asyncio.create_task(scope.aclose())
    await asyncio.sleep(0)
    release.set()
    await closing
    order.append("task")

    assert ["other", "unit", "task"] == order
