"""
Cancels a unit at every suspension point, one after the other, and looks at what is left.

``python tests/sweep.py`` prints the column of docs/cancellation.md for the SQLAlchemy that is installed, and exits with
1 if it is not clean; the tests run the same sweep. A point is clean if the pool has all its connections back, no task
is left, the server is in no transaction, the recorded outcome agrees with the table, both rows of the unit are there or
none, and the next unit writes the same table at once.

``python tests/sweep.py --time 150`` sweeps in time instead: so many moments, evenly spread over what the unit takes.
"""

from __future__ import annotations

import argparse
import asyncio
import collections.abc
import contextlib
import logging
import statistics
import sys
from dataclasses import dataclass, field
from time import perf_counter

import anyio
import sqlalchemy as sa
from at_rest import Server
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

    @property
    def was_reached(self):
        return self.seen >= self.at


class Moment:
    """The same, for a moment in time: *strike* is called so many seconds after the unit was spawned."""

    task_factory = None

    def __init__(self, seconds):
        self.strike = None
        self.was_reached = False
        self._seconds = seconds
        self._armed = False

    @property
    def armed(self):
        return self._armed

    @armed.setter
    def armed(self, value):
        if value and not self._armed:
            asyncio.get_running_loop().call_later(self._seconds, self._come)
        self._armed = value

    def _come(self):
        if self._armed and self.strike is None:  # the unit has yet to begin
            asyncio.get_running_loop().call_soon(self._come)
        elif self._armed:
            self.was_reached = True
            self.strike()


LEAST = 6
"""Points that a sweep has to reach: with fewer it has not swept, whatever it has found."""


@dataclass
class Report:
    """What a sweep has found."""

    reached: int = 0
    problems: list = field(default_factory=list)

    @property
    def clean(self):
        return self.reached - len({point for point, _ in self.problems})

    @property
    def findings(self):
        """What is wrong: the problems, or that there was not enough to find one in."""
        few = [] if self.reached >= LEAST else [f"only {self.reached} points were reached"]
        return few + self.problems

    def __str__(self):
        return f"{self.clean}/{self.reached}"


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


async def two_rows_in_tasks(session, name):
    """The same in tasks of the body's own, one after the other, the second in a group."""

    async def first():
        session.add(Item(name=f"{name}-1"))
        await session.flush()

    async def second():
        session.add(Item(name=f"{name}-2"))
        await session.flush()

    await asyncio.create_task(first())
    async with asyncio.TaskGroup() as group:
        group.create_task(second())


BODIES = {
    "plain": two_rows,
    "commits": two_rows_committed,
    "streams": two_rows_streamed,
    "tasks": two_rows_in_tasks,
}
KINDS = ("handle", "twice", "scope", "timeout outside", "timeout inside", "anyio")


async def sweep(engine, session_maker, kind, body=two_rows, *, cold=False, points=200):
    """
    Strikes at the first, the second, ... suspension, until the unit ends before it is struck.

    *cold*: with no connection in the pool, so that connecting is a part of what is swept.
    """
    report = Report()
    async with Server(engine) as server:
        for at in range(1, points):
            if cold:
                await engine.dispose()
            point = Points(at)
            await strike_at(engine, session_maker, server, kind, body, (at, point), report)
            if not point.was_reached:
                break
            report.reached += 1
    return report


async def sweep_in_time(engine, session_maker, kind, moments, body=two_rows):
    """
    Strikes at *moments* moments, evenly spread over the time that the unit takes.

    That time varies: the moments that come too late are tried again, with the time as it is then.
    """
    report, left = Report(), range(moments)
    async with Server(engine) as server:
        for turn in range(3):
            seconds = await seconds_of(session_maker, kind, body, turn)
            late = []
            for number in left:
                moment = Moment(seconds * (number + 0.5) / moments)
                await strike_at(engine, session_maker, server, kind, body, (f"t{turn}-{number}", moment), report)
                report.reached += moment.was_reached
                late += [] if moment.was_reached else [number]
            left = late
    return report


async def seconds_of(session_maker, kind, body, turn):
    """What a unit that is left alone takes, from its spawn on."""
    taken = []
    for number in range(11):
        started = perf_counter()
        await RUNS[kind](session_maker, body, f"{kind}-alone-{turn}-{number}", Points(0))
        taken.append(perf_counter() - started)
    return statistics.median(taken)


async def strike_at(engine, session_maker, server, kind, body, where, report):
    loop = asyncio.get_running_loop()
    before = asyncio.all_tasks()
    at, points = where
    loop.set_task_factory(points.task_factory)
    name = f"{kind}-{at}"

    def problem(text):
        report.problems.append((at, text))

    try:
        outcome, ended = await RUNS[kind](session_maker, body, name, points)
    except sa.exc.OperationalError as error:
        problem(f"the unit itself failed: {error}")
        return
    finally:
        loop.set_task_factory(None)

    for _ in range(3):
        await asyncio.sleep(0)
    if asyncio.all_tasks() - before:
        problem(f"tasks are left: {asyncio.all_tasks() - before}")
    if engine.pool.checkedout():
        problem(engine.pool.status())
    transactions = await server.at_rest()
    if transactions:
        problem(f"in a transaction: {transactions}")
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


async def table(databases, run):
    """One report for each driver and kind."""
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
            yield database.name, kind, await run(engine, session_maker(engine), kind)
            await engine.dispose()


async def main(moments, body):
    from databases import NAMES, Databases

    async def run(engine, session_maker, kind):
        if moments:
            return await sweep_in_time(engine, session_maker, kind, moments, BODIES[body])
        return await sweep(engine, session_maker, kind, BODIES[body])

    # The failures of units are meant.
    logging.getLogger("sa_isolated_tasks").addHandler(logging.NullHandler())
    logging.getLogger("sa_isolated_tasks").propagate = False
    found, findings = Databases(), []
    databases = [database for database in map(found.get, NAMES) if database.url is not None]
    print(f"| driver, cancelled by | SQLAlchemy {sa.__version__} |\n|---|---|")
    async for name, kind, report in table(databases, run):
        print(f"| {name}, {kind} | {report} |", flush=True)
        findings += [f"{name}, {kind}: {finding}" for finding in report.findings]
    found.close()
    for finding in findings:
        print(finding)
    return bool(findings)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--time", type=int, metavar="MOMENTS", help="sweep in time, over so many moments")
    parser.add_argument("--body", choices=BODIES, default="plain", help="the unit's; see there")
    given = parser.parse_args()
    sys.exit(asyncio.run(main(given.time, given.body)))
