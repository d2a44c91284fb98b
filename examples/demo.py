"""
The fault and its cure, on a SQLite file: a parent writes observations, and background tasks write suggestions for them.

First the tasks share the parent's session, in both orders of the race; then the same work goes through the package.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import tempfile
from pathlib import Path

from sqlalchemy import ForeignKey, select
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.pool import AsyncAdaptedQueuePool

from sa_isolated_tasks import SessionPassedError, TaskHandle, TaskScope

TEXTS = ("reads mail", "opens the calendar", "writes a report", "books a train")
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
    observation_id: Mapped[int] = mapped_column(ForeignKey("observations.id"))
    text: Mapped[str]
    delivered: Mapped[bool] = mapped_column(default=False)


async def suggest(session: AsyncSession, observation_id: int) -> str:
    """Writes a suggestion, commits, and marks it delivered in a second transaction, as real engines do."""
    observation = (await session.scalars(select(Observation).where(Observation.id == observation_id))).one()
    await asyncio.sleep(0)  # a model would be asked here
    suggestion = Suggestion(observation_id=observation_id, text=f"help: {observation.text}")
    session.add(suggestion)
    await session.commit()
    suggestion.delivered = True
    return suggestion.text


# The fault


async def the_task_is_faster(session_maker: Sessions) -> None:
    """The task commits inside the parent's block, and the parent dies of it."""
    async with session_maker() as session, session.begin():
        session.add(observation := Observation(text=TEXTS[0]))
        await session.flush()
        await asyncio.create_task(suggest(session, observation.id))
        await session.scalars(select(Suggestion))


async def the_parent_is_faster(session_maker: Sessions) -> list[AsyncSession]:
    """The parent's session is closed when the task goes on: it silently opens again, and nobody will ever close it."""
    answered = asyncio.Event()
    sessions: list[AsyncSession] = []
    tasks: list[asyncio.Task[None]] = []
    for text in TEXTS[:2]:
        async with session_maker() as session, session.begin():
            session.add(Observation(text=text))
            tasks.append(asyncio.create_task(look_up(session, answered)))
        sessions.append(session)
    answered.set()
    await asyncio.gather(*tasks)
    return sessions


async def look_up(session: AsyncSession, answered: asyncio.Event) -> None:
    await answered.wait()  # a model takes its time
    await session.scalars(select(Observation))


async def show_the_fault(session_maker: Sessions, engine: AsyncEngine) -> None:
    heading("1. The parent's session is passed to the task")
    print("The task is faster than the parent:")
    try:
        await the_task_is_faster(session_maker)
    except InvalidRequestError as error:
        print(f"  InvalidRequestError: {error}")
    print("\nThe parent is faster than the task. No error; but when all is done, the pool says:")
    sessions = await the_parent_is_faster(session_maker)
    print(f"  {engine.pool.status()}")
    for session in sessions:
        await session.close()


# The cure


async def show_the_cure(session_maker: Sessions, engine: AsyncEngine) -> None:
    heading("2. The same work, each task in a session of its own")
    handles: list[TaskHandle[str]] = []
    async with TaskScope(session_maker, name="demo") as scope:
        for text in TEXTS:
            async with session_maker() as session, session.begin():
                session.add(observation := Observation(text=text))
                await session.flush()
                observation_id = observation.id
            handles.append(scope.spawn(suggest, observation_id))
    print_costs(handles)
    print(f"\nWhen all is done, the pool says:\n  {engine.pool.status()}")
    await print_rows(session_maker)
    await show_the_guard(session_maker)


async def show_the_guard(session_maker: Sessions) -> None:
    heading("3. And when somebody passes a session again")
    async with TaskScope(session_maker, name="demo") as scope, session_maker() as session:
        await session.connection()
        context = {"user": "ada", "db": session}
        try:
            scope.spawn(with_context, context)
        except SessionPassedError as error:
            print(error)


async def with_context(session: AsyncSession, context: dict[str, object]) -> None:
    raise NotImplementedError  # the call is refused


# What is printed


def heading(text: str) -> None:
    print(f"\n{text}\n{'-' * len(text)}\n")


def print_costs(handles: list[TaskHandle[str]]) -> None:
    print(
        f"{'unit':<12}{'state':<12}{'outcome':<12}{'commits':>8}{'total':>10}{'queued':>10}{'body':>10}{'commit':>10}"
    )
    for handle in handles:
        timing = handle.timing
        seconds = (timing.total, timing.queued, timing.body, timing.commit)
        columns = "".join(f"{value * 1000:>7.1f} ms" for value in seconds)
        print(f"{handle.name:<12}{handle.state.value:<12}{handle.outcome.value:<12}{handle.commits:>8}{columns}")


async def print_rows(session_maker: Sessions) -> None:
    async with session_maker() as session:
        rows = (await session.scalars(select(Suggestion).order_by(Suggestion.id))).all()
    print(f"\n{'id':<4}{'observation':<13}{'delivered':<11}text")
    for row in rows:
        print(f"{row.id:<4}{row.observation_id:<13}{'yes' if row.delivered else 'no':<11}{row.text}")


async def main() -> None:
    logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
        engine = create_async_engine(
            f"sqlite+aiosqlite:///{Path(directory) / 'demo.db'}", poolclass=AsyncAdaptedQueuePool, pool_size=5
        )
        session_maker = async_sessionmaker(engine, expire_on_commit=False)
        for show in (show_the_fault, show_the_cure):
            async with engine.begin() as connection:
                await connection.run_sync(Base.metadata.drop_all)
                await connection.run_sync(Base.metadata.create_all)
            await show(session_maker, engine)
        await engine.dispose()


if __name__ == "__main__":
    asyncio.run(main())
