"""
Cancels a unit at every suspension point, one after the other, and looks at what is left.

``python tests/sweep.py`` prints the table of docs/cancellation.md for the SQLAlchemy that is installed; the tests run
the same sweep. A point is clean if the pool has all its connections back, no task is left, the recorded outcome agrees
with the table, both rows of the unit are there or none, and the next unit writes the same table at once.
"""

from __future__ import annotations

import asyncio
import collections.abc
import contextlib
from dataclasses import dataclass, field

import anyio
import sqlalchemy as sa
from support import Item

from sa_isolated_tasks import Outcome, TaskScope, TaskState, UnitCancelledError, isolated_session


class Stepping(collections.abc.Coroutine):
    """A coroutine that tells of each of its suspensions."""

    def __init__(self, coroutine, suspended):
        self.coroutine = coroutine
        self.suspended = suspended

    def send(self, value):
        result = self.coroutine.send(value)
        self.suspended()
        return result

    def throw(self, *error):
        result = self.coroutine.throw(*error)
        self.suspended()
        return result

    def close(self):
        self.coroutine.close()

    def __await__(self):
        yield from self.coroutine.__await__()


@dataclass
class Points:
    """Counts suspensions in all tasks of the unit, and calls *strike* at the one that is asked for."""

    at: int
    strike: collections.abc.Callable = None
    seen: int = 0
    armed: bool = False

    def suspended(self):
        if not self.armed:
            return
        self.seen += 1
        if self.seen == self.at:
            self.strike()

    def task_factory(self, loop, coroutine, **options):
        if self.armed and asyncio.iscoroutine(coroutine):
            coroutine = Stepping(coroutine, self.suspended)
        return asyncio.Task(coroutine, loop=loop, **options)


@dataclass
class Report:
    """What a sweep has found."""

    reached: int = 0
    problems: list = field(default_factory=list)

    @property
    def clean(self):
        return self.reached - len({point for point, _ in self.problems})


async def two_rows(session, name):
    """Two rows, with a savepoint and a query between them; the commit is the unit's."""
    session.add(Item(name=f"{name}-1"))
    await session.flush()
    async with session.begin_nested():
        await session.execute(sa.select(Item))
    session.add(Item(name=f"{name}-2"))


async def two_rows_committed(session, name):
    """The same, with a commit in the body."""
    await two_rows(session, name)
    await session.commit()
    await asyncio.sleep(0)


async def two_rows_streamed(session, name):
    """The same, with a streamed result that is read to its end."""
    await two_rows(session, name)
    result = await session.stream(sa.select(Item.name))
    async for _ in result:
        pass


BODIES = {"plain": two_rows, "commits": two_rows_committed, "streams": two_rows_streamed}
KINDS = ("handle", "twice", "scope", "timeout outside", "timeout inside", "anyio")


async def sweep(engine, session_maker, kind, body=two_rows, *, cold=False, points=200):
    """
    Strikes at the first, the second, ... suspension, until the unit ends before it is struck.

    *cold*: with no connection in the pool, so that connecting is a part of what is swept.
    """
    report = Report()
    for at in range(1, points):
        if cold:
            await engine.dispose()
        struck = await strike_at(engine, session_maker, kind, body, at, report)
        if not struck:
            break
        report.reached += 1
    return report


async def strike_at(engine, session_maker, kind, body, at, report):
    loop = asyncio.get_running_loop()
    before = asyncio.all_tasks()
    points = Points(at)
    loop.set_task_factory(points.task_factory)
    name = f"{kind}-{at}"

    def problem(text):
        report.problems.append((at, text))

    try:
        outcome, ended = await RUNS[kind](session_maker, body, name, points)
    except sa.exc.OperationalError as error:
        problem(f"the unit itself failed: {error}")
        return True
    finally:
        loop.set_task_factory(None)
    struck = points.seen >= at

    for _ in range(3):
        await asyncio.sleep(0)
    if asyncio.all_tasks() - before:
        problem(f"tasks are left: {asyncio.all_tasks() - before}")
    if engine.pool.checkedout():
        problem(engine.pool.status())
    try:
        async with TaskScope(session_maker, name="next", limit=1) as scope:
            await scope.spawn(two_rows, f"next-{name}")
    except Exception as error:
        problem(f"the next unit failed: {error!r}")
    async with engine.connect() as connection:
        rows = (await connection.execute(sa.select(Item.name).where(Item.name.like(f"{name}-%")))).all()
    if len(rows) not in {0, 2}:
        problem(f"half of the rows: {rows}")
    if (outcome is Outcome.COMMITTED) != (len(rows) == 2):
        problem(f"{ended} with outcome {outcome}, but {len(rows)} rows")
    return struck


async def by_handle(session_maker, body, name, points, times=1):
    loop = asyncio.get_running_loop()

    def strike():
        for _ in range(times):
            loop.call_soon(cancel)

    def cancel():
        if times == 1:
            handle.cancel("sweep")
        else:
            [task.cancel() for task in asyncio.all_tasks() if task.get_name() == handle.name]

    points.strike = strike
    async with TaskScope(session_maker, name="sweep", limit=1) as scope:
        points.armed = True
        handle = scope.spawn(body, name)
        with contextlib.suppress(UnitCancelledError):
            await handle
        points.armed = False
    return handle.outcome, handle.state


async def by_handle_twice(session_maker, body, name, points):
    return await by_handle(session_maker, body, name, points, times=2)


async def by_scope(session_maker, body, name, points):
    struck = asyncio.Event()
    points.strike = struck.set
    with contextlib.suppress(KeyError):
        async with TaskScope(session_maker, name="sweep", limit=1) as scope:
            points.armed = True
            handle = scope.spawn(body, name)
            handle.add_done_callback(lambda _: struck.set())
            await struck.wait()
            points.armed = False
            raise KeyError
    return handle.outcome, handle.state


async def by_timeout_outside(session_maker, body, name, points):
    call = isolated_session(session_maker)(body)
    outcomes = Recorder()

    async def run():
        async with asyncio.timeout(None) as deadline:
            points.strike = lambda: deadline.reschedule(0)
            await call(name)

    return await in_a_task(run, points, outcomes)


async def by_anyio(session_maker, body, name, points):
    call = isolated_session(session_maker)(body)
    outcomes = Recorder()

    async def run():
        with anyio.CancelScope() as scope:
            points.strike = scope.cancel
            await call(name)

    return await in_a_task(run, points, outcomes)


async def in_a_task(run, points, outcomes):
    with outcomes:
        points.armed = True
        task = asyncio.get_running_loop().create_task(run())
        with contextlib.suppress(TimeoutError):
            await task
        points.armed = False
    return outcomes.outcome, outcomes.state


class Recorder:
    """A decorated call has no handle: its end is read from the log."""

    def __enter__(self):
        import logging

        self.outcome, self.state = Outcome.NONE, None
        self.logger = logging.getLogger("sa_isolated_tasks")
        self.handler = logging.Handler()
        self.handler.emit = self.emit
        self.level = self.logger.level
        self.logger.addHandler(self.handler)
        self.logger.setLevel("INFO")
        return self

    def emit(self, record):
        self.outcome, self.state = Outcome(record.sit_outcome), TaskState(record.sit_state)

    def __exit__(self, *_):
        self.logger.removeHandler(self.handler)
        self.logger.setLevel(self.level)


async def by_timeout_inside(session_maker, body, name, points):
    async def in_time(session, own_name):
        async with asyncio.timeout(None) as deadline:
            points.strike = lambda: deadline.reschedule(0)
            await body(session, own_name)
        points.strike = lambda: None

    points.strike = lambda: None
    async with TaskScope(session_maker, name="sweep", limit=1) as scope:
        points.armed = True
        handle = scope.spawn(in_time, name)
        with contextlib.suppress(TimeoutError):
            await handle
        points.armed = False
    return handle.outcome, handle.state


RUNS = {
    "handle": by_handle,
    "twice": by_handle_twice,
    "scope": by_scope,
    "timeout outside": by_timeout_outside,
    "timeout inside": by_timeout_inside,
    "anyio": by_anyio,
}


async def table(databases):
    """One line for each driver and kind: points swept, points clean."""
    from sqlalchemy.ext.asyncio import create_async_engine
    from sqlalchemy.pool import AsyncAdaptedQueuePool
    from support import reset, session_maker

    for database in databases:
        for kind in KINDS:
            arguments = {"timeout": 0} if database.has_one_writer else {}
            engine = create_async_engine(
                database.url, poolclass=AsyncAdaptedQueuePool, pool_size=1, max_overflow=1, connect_args=arguments
            )
            await reset(engine)
            report = await sweep(engine, session_maker(engine), kind)
            await engine.dispose()
            yield database.name, kind, report


async def main():
    from databases import NAMES, Databases

    found = Databases()
    databases = [database for database in map(found.get, NAMES) if database.url is not None]
    print(f"SQLAlchemy {sa.__version__}\n\n| driver | cancelled by | points | clean |\n|---|---|---|---|")
    async for name, kind, report in table(databases):
        print(f"| {name} | {kind} | {report.reached} | {report.clean} |")
    found.close()


if __name__ == "__main__":
    asyncio.run(main())
