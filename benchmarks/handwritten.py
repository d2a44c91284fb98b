"""What the package replaces: the pattern of tasks with sessions that is written by hand in every project."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from time import perf_counter
from typing import Any, TypeAlias

from sqlalchemy.ext.asyncio import AsyncSession

from benchmarks.setup import logger
from benchmarks.workloads import Body

LOGGER = logger("benchmarks.handwritten")
Runner: TypeAlias = Callable[[Body, int], Any]


class Background:
    """
    Tasks in a set, with a done callback that logs failures; each is bounded by *limit*, timed and logged.

    *run* opens the session, and commits.
    """

    def __init__(self, run: Runner, limit: int | None) -> None:
        self._run = run
        self._tasks: set[asyncio.Task[None]] = set()
        self._limit = contextlib.nullcontext() if limit is None else asyncio.Semaphore(limit)

    def spawn(self, body: Body, number: int) -> asyncio.Task[None]:
        task = asyncio.create_task(self.work(body, number))
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    async def work(self, body: Body, number: int) -> None:
        started = perf_counter()
        async with self._limit:
            await self._run(body, number)
        LOGGER.info("%s done in %.2fs", body.__name__, perf_counter() - started)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            LOGGER.error("a task failed", exc_info=error)


def begin_block(session_maker: Callable[[], AsyncSession]) -> Runner:
    """As most write it, and the README of SQLAlchemy does."""

    async def run(body: Body, number: int) -> None:
        async with session_maker() as session, session.begin():
            await body(session, number)

    return run


def one_commit(session_maker: Callable[[], AsyncSession]) -> Runner:
    """Leaner: no ``begin()``, one ``commit()``."""

    async def run(body: Body, number: int) -> None:
        async with session_maker() as session:
            await body(session, number)
            await session.commit()

    return run
