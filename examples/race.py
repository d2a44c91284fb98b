"""
The same work written by hand in three ways, and with the package: what happens when, in milliseconds.

A parent writes an observation, starts a task for it, and works on in its transaction. The task asks a model, reads the
observation, writes a suggestion and commits, marks the suggestion as delivered and commits, and counts.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from time import perf_counter

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.pool import AsyncAdaptedQueuePool

from sa_isolated_tasks import TaskScope

SECONDS = 0.02  # that a model takes to answer, and a parent for the rest of its work
Sessions = async_sessionmaker[AsyncSession]


class Base(DeclarativeBase):
    pass


class Observation(Base):
    __tablename__ = "observations"

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]


class Suggestion(Base):
    __tablename__ = "suggestions"

    id: Mapped[int] = mapped_column(primary_key=True)
    observation_id: Mapped[int]
    delivered: Mapped[bool] = mapped_column(default=False)


class Program:
    """One run: its database, its clock, and who of the two is faster."""

    def __init__(self, engine: AsyncEngine, faster: str) -> None:
        self.engine = engine
        self.Session: Sessions = async_sessionmaker(engine, expire_on_commit=False)
        self.faster = faster
        self.through = {"task": asyncio.Event(), "parent": asyncio.Event()}
        self.started = perf_counter()

    async def take_time(self, who: str) -> None:
        await asyncio.sleep(SECONDS)
        if self.faster not in {who, "either"}:
            await self.through[self.faster].wait()

    def say(self, who: str, what: str) -> None:
        print(f"  {(perf_counter() - self.started) * 1000:6.1f} ms  {who:<7} {what}")

    async def suggest(self, session: AsyncSession, observation_id: int) -> int:
        await self.take_time("task")
        if await session.get(Observation, observation_id) is None:
            raise LookupError(f"observation {observation_id} not found")
        session.add(suggestion := Suggestion(observation_id=observation_id))
        await session.commit()
        self.say("task", "has committed a suggestion")
        suggestion.delivered = True
        await session.commit()
        self.say("task", "has marked it as delivered")
        return (await session.scalars(select(func.count(Suggestion.id)))).one()

    async def watched(self, task: Awaitable[object], who: str = "task") -> None:
        try:
            await task
        except Exception as error:  # noqa: BLE001 -- whatever it is, it is shown
            self.say(who, f"{type(error).__name__}: {str(error).partition('. ')[0]}")
        else:
            self.say(who, "is through")
        self.through[who].set()

    async def observe(self, start: Callable[[AsyncSession, int], object]) -> None:
        async with self.Session() as session, session.begin():
            session.add(observation := Observation(text="reads mail"))
            await session.flush()
            self.say("parent", "has flushed an observation")
            start(session, observation.id)
            await self.take_time("parent")
            await session.scalars(select(Observation))

    async def report(self) -> None:
        """What another connection sees, and what is left."""
        out = self.engine.pool.checkedout()  # type: ignore[attr-defined]  # a QueuePool has it
        async with self.engine.connect() as connection:
            observations = await connection.scalar(select(func.count(Observation.id)))
            suggestions = await connection.scalar(select(func.count(Suggestion.id)))
            delivered = await connection.scalar(select(func.count(Suggestion.id)).where(Suggestion.delivered))
        pending = asyncio.all_tasks() - {asyncio.current_task()}
        print(f"  in the end: {observations} observation(s); {delivered} of {suggestions} suggestion(s) delivered")
        print(f"  left behind: {out} connection(s) not given back; {len(pending)} task(s), killed with the loop")
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)


Kept = list[AsyncSession]


async def parents_session(program: Program) -> Kept:
    tasks: list[asyncio.Task[None]] = []
    kept: Kept = []

    def start(session: AsyncSession, observation_id: int) -> None:
        kept.append(session)
        tasks.append(asyncio.create_task(program.watched(program.suggest(session, observation_id))))

    await program.watched(program.observe(start), "parent")
    await asyncio.gather(*tasks)
    return kept


async def own_session_in_a_block(program: Program) -> Kept:
    tasks: list[asyncio.Task[None]] = []

    async def run(observation_id: int) -> None:
        async with program.Session.begin() as session:
            await program.suggest(session, observation_id)

    def start(_session: AsyncSession, observation_id: int) -> None:
        tasks.append(asyncio.create_task(program.watched(run(observation_id))))

    await program.watched(program.observe(start), "parent")
    await asyncio.gather(*tasks)
    return []


async def set_of_tasks(program: Program) -> Kept:
    tasks: set[asyncio.Task[None]] = set()

    def spawn(work: Coroutine[object, object, None]) -> None:
        task = asyncio.create_task(program.watched(work))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    async def run(observation_id: int) -> None:
        async with program.Session() as session:
            await program.suggest(session, observation_id)

    async def run_and_follow(observation_id: int) -> None:
        await run(observation_id)
        spawn(run(observation_id))

    await program.watched(program.observe(lambda _session, _observation_id: None), "parent")
    spawn(run_and_follow(1))  # after the block, so that it finds its row
    await asyncio.gather(*tasks)
    program.say("parent", "has gathered its tasks, and ends")
    return []


async def scope_of_units(program: Program) -> Kept:
    async def run(session: AsyncSession, observation_id: int) -> None:
        await program.watched(program.suggest(session, observation_id))

    async def run_and_follow(session: AsyncSession, observation_id: int) -> None:
        await run(session, observation_id)
        scope.spawn(run, observation_id)

    async with TaskScope(program.Session, name="race") as scope:

        def start(session: AsyncSession, observation_id: int) -> None:
            scope.spawn_after_commit(session, run_and_follow, observation_id)

        await program.watched(program.observe(start), "parent")
    program.say("parent", "has left the scope, and ends")
    return []


FORMS: list[tuple[str, Callable[[Program], Awaitable[Kept]], str]] = [
    ("1. The parent's session; the task is faster", parents_session, "task"),
    ("2. The parent's session; the parent is faster", parents_session, "parent"),
    ("3. A session of its own, in a block; the task is faster", own_session_in_a_block, "task"),
    ("4. A session of its own, in a block; the parent is faster", own_session_in_a_block, "parent"),
    ("5. A session of its own, and a set of tasks that is gathered at the end", set_of_tasks, "either"),
    ("6. A TaskScope", scope_of_units, "either"),
]


async def main(title: str, form: Callable[[Program], Awaitable[Kept]], faster: str) -> None:
    print(title)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
        url = f"sqlite+aiosqlite:///{Path(directory) / 'race.db'}"
        engine = create_async_engine(url, poolclass=AsyncAdaptedQueuePool, pool_size=5)
        async with engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
        program = Program(engine, faster)
        kept = await form(program)
        await program.report()
        for session in kept:
            await session.close()
        await engine.dispose()
    print()


if __name__ == "__main__":
    for example in FORMS:
        asyncio.run(main(*example))
