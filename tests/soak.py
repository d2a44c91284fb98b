"""
Spawns units by the hundred thousand through one scope, and watches the memory.

``python tests/soak.py --units 200000`` runs them on a SQLite file, prints a table and exits with 1 if the memory is not
flat. Most units succeed; one in twenty writes a row and takes it back, and as many read. Others fail, with a row or
without, are cancelled while they run or while they are queued, or wait for a commit that comes, or does not.

What is flat? Between a quarter of the run and its end, when every cache is warm:

- the objects that the garbage collector knows may grow by 500. One object kept for each unit would be 150,000;
- the resident set may grow by 4 MiB, which is what the allocator's arenas wander by in a run that keeps nothing.
  Over 150,000 units that is 28 bytes a unit; the smallest thing that can be kept of one, an integer in a list, is 36.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import logging
import os
import resource
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool
from support import Item, reset, session_maker

from sa_isolated_tasks import TaskDroppedError, TaskScope, TaskState, UnitCancelledError

MORE_OBJECTS = 500
MORE_BYTES = 4 * 1024 * 1024
WAVE = 500
INTERVALS = 20


async def nothing(_session):
    return 42


async def write(session):
    session.add(item := Item(name=None))
    await session.flush()
    await session.delete(item)


async def read(session):
    return (await session.execute(sa.select(Item))).scalars().all()


async def fail(_session):
    raise ValueError("as planned")


async def fail_after_writing(session):
    session.add(Item(name=None))
    await session.flush()
    raise ValueError("as planned")


async def wait(_session, reached):
    reached.release()
    await asyncio.Event().wait()


# What `Soak.wave` spawns, in each twenty units.
SPAWNED = [write, read, fail, fail_after_writing] + [nothing] * 10
STRUCK, QUEUED, DROPPED, RELEASED = 2, 1, 1, 2
EACH = len(SPAWNED) + STRUCK + QUEUED + DROPPED + RELEASED


@dataclass(frozen=True)
class Sample:
    """The memory at one moment, after a collection."""

    units: int
    seconds: float
    resident: int
    objects: int

    def __str__(self):
        return f"| {self.units:>7} | {self.seconds:>7.1f} | {self.resident / 1024:>9.0f} | {self.objects:>8} |"


@dataclass
class Report:
    """What a run has found; *problems* is empty if it was flat, and every unit ended as it had to."""

    samples: list = field(default_factory=list)
    problems: list = field(default_factory=list)

    def judge(self, units):
        warm = next(sample for sample in self.samples if sample.units * 4 >= units)
        last = self.samples[-1]
        objects, resident = last.objects - warm.objects, last.resident - warm.resident
        if objects > MORE_OBJECTS:
            self.problems.append(f"{objects} more objects after the first quarter, {MORE_OBJECTS} allowed")
        if resident > MORE_BYTES:
            self.problems.append(f"{resident} more bytes resident after the first quarter, {MORE_BYTES} allowed")
        return f"after the first quarter: {objects:+} objects, {resident / 1024:+.0f} KiB resident"


def resident_bytes():
    """Of this process now; where there is no /proc, the most there ever was."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class Soak:
    """One run: waves of units in one scope."""

    def __init__(self, engine, keep):
        self.session_maker = session_maker(engine)
        self.keep = keep
        self.expected = Counter()

    async def wave(self, scope):
        """As many units as a wave has, and waits for their ends."""
        reached = asyncio.Semaphore(0)
        struck = [scope.spawn(wait, reached) for _ in range(STRUCK * WAVE // EACH)]
        handles = [scope.spawn(SPAWNED[number % len(SPAWNED)]) for number in range(len(SPAWNED) * WAVE // EACH)]
        queued = [scope.spawn(nothing) for _ in range(QUEUED * WAVE // EACH)]
        for handle in queued:
            handle.cancel("in the queue")
        dropped = await self.after_commit(scope, DROPPED * WAVE // EACH, commits=False)
        handles += await self.after_commit(scope, RELEASED * WAVE // EACH, commits=True)
        for handle in struck:
            await reached.acquire()
            handle.cancel("while it ran")
        await scope.drain()
        for handle in [*struck, *queued]:
            await self.end(handle, TaskState.CANCELLED, UnitCancelledError)
        for handle in dropped:
            await self.end(handle, TaskState.DROPPED, TaskDroppedError)
        for handle in handles:
            state = TaskState.FAILED if handle.name.startswith("fail") else TaskState.SUCCEEDED
            await self.end(handle, state, ValueError)
        return len(struck) + len(queued) + len(dropped) + len(handles)

    async def after_commit(self, scope, count, *, commits):
        async with self.session_maker() as parent:
            await parent.execute(sa.select(Item))
            handles = [scope.spawn_after_commit(parent, nothing) for _ in range(count)]
            await (parent.commit() if commits else parent.rollback())
        return handles

    async def end(self, handle, state, error):
        self.keep(handle)
        self.expected[state.value] += 1
        with contextlib.suppress(error):
            await handle
        if handle.state is not state:
            raise AssertionError(f"{handle} should be {state.value}")


async def soak(engine, units, *, keep=lambda handle: None, tell=lambda line: None):
    """Runs *units* units at least; *keep* is given each handle, for a leak on purpose."""
    report, run, started = Report(), Soak(engine, keep), perf_counter()
    tell("|   units | seconds | rss (KiB) | objects  |\n|---|---|---|---|")
    done = 0
    async with TaskScope(run.session_maker, name="soak", limit=STRUCK * WAVE // EACH + 2) as scope:
        while done < units:
            done += await run.wave(scope)
            if done * INTERVALS >= units * (len(report.samples) + 1):
                gc.collect()
                report.samples.append(Sample(done, perf_counter() - started, resident_bytes(), len(gc.get_objects())))
                tell(str(report.samples[-1]))
    counted = {name: getattr(scope.snapshot(), name) for name in ("succeeded", "failed", "cancelled", "dropped")}
    if counted != dict(run.expected):
        report.problems.append(f"the scope counted {counted}, and not {dict(run.expected)}")
    if engine.pool.checkedout():
        report.problems.append(engine.pool.status())
    tell(", ".join(f"{number} {name}" for name, number in counted.items()))
    tell(report.judge(units))
    return report


async def main(units):
    # Every failure is written out, to nowhere: the log is a part of what may leak.
    logger = logging.getLogger("sa_isolated_tasks")
    logger.propagate = False
    with (
        tempfile.TemporaryDirectory() as directory,
        (Path(directory) / "soak.log").open("w") as log,
        contextlib.closing(logging.StreamHandler(log)) as handler,
    ):
        logger.addHandler(handler)
        engine = create_async_engine(
            f"sqlite+aiosqlite:///{directory}/soak.db",
            poolclass=AsyncAdaptedQueuePool,
            pool_size=5,
            # Many write at once, and SQLite is not fair: one of them may wait for long.
            connect_args={"timeout": 600},
        )
        await reset(engine)
        report = await soak(engine, units, tell=print)
        await engine.dispose()
        logger.removeHandler(handler)
    for problem in report.problems:
        print(problem)
    return bool(report.problems)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--units", type=int, default=200_000)
    print(f"SQLAlchemy {sa.__version__}, Python {sys.version.split()[0]}")
    sys.exit(asyncio.run(main(parser.parse_args().units)))
