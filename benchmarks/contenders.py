"""
Who is measured: each runs a batch of units to its end, at least as much at once as a pool has connections.

Each opens a session for every unit. A contender is a context manager, since a scope, like a scheduler, lives as long as
the application: starting and leaving it is not measured.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from time import perf_counter
from typing import Any, Literal, TypeAlias

from benchmarks.handwritten import LOGGER, Background, Runner, begin_block, one_commit
from benchmarks.setup import Setup, logger
from benchmarks.workloads import Body
from sa_isolated_tasks import TaskScope

Batch: TypeAlias = Callable[[Body, int], Awaitable[None]]
Contender: TypeAlias = Callable[[Setup], AbstractAsyncContextManager[Batch]]

OURS = "this package"
OURS_UNLIMITED = "this package, `limit=None`"
OURS_TO_THE_FULL = "this package, `limit=10`: no connection stays free"
OURS_GATHERED = "this package, `gather(*handles)`"
BY_HAND = "by hand: `begin()`, semaphore"
BY_HAND_UNLIMITED = "by hand: `begin()`, no semaphore"
LEAN = "by hand: one `commit()`, semaphore"
FLOOR = "the floor: no package, no task for a unit"
LEAST = "the least: a task, a session, a log record"
CORE = "one `engine.begin()`: no session"


@contextlib.asynccontextmanager
async def _scope(setup: Setup, *, limit: int | Literal["pool"] | None = "pool") -> AsyncIterator[Batch]:
    logger("sa_isolated_tasks")
    async with TaskScope(setup.Session, name="bench", limit=limit) as scope:

        async def batch(body: Body, count: int) -> None:
            _handles = [scope.spawn(body, number) for number in range(count)]
            await scope.drain()

        yield batch


def _to_the_full(setup: Setup) -> AbstractAsyncContextManager[Batch]:
    return _scope(setup, limit=setup.slots)


@contextlib.asynccontextmanager
async def _gathered(setup: Setup) -> AsyncIterator[Batch]:
    """With a task more for each unit: `asyncio.gather` makes one for whatever is no future."""
    logger("sa_isolated_tasks")
    async with TaskScope(setup.Session, name="bench") as scope:

        async def batch(body: Body, count: int) -> None:
            await asyncio.gather(*[scope.spawn(body, number) for number in range(count)])

        yield batch


@contextlib.asynccontextmanager
async def _by_hand(
    setup: Setup, *, opened: Callable[..., Runner] = begin_block, limited: bool = True
) -> AsyncIterator[Batch]:
    background = Background(opened(setup.Session), setup.slots if limited else None)

    async def batch(body: Body, count: int) -> None:
        await asyncio.gather(*[background.spawn(body, number) for number in range(count)])

    yield batch


def _in_turns(slots: int, work: Callable[[Body, range], Awaitable[None]]) -> Batch:
    """As many tasks as the pool has connections take one number after the other."""

    async def batch(body: Body, count: int) -> None:
        await asyncio.gather(*[work(body, range(first, count, slots)) for first in range(slots)])

    return batch


@contextlib.asynccontextmanager
async def _floor(setup: Setup) -> AsyncIterator[Batch]:
    """
    A session is made, the body run, the transaction committed if there is one, and the session closed.

    It holds no connection by then, so that takes no greenlet. No log, no timing, no handle, no cleanup after a failure.
    """

    async def work(body: Body, numbers: range) -> None:
        for number in numbers:
            session = setup.Session()
            await body(session, number)
            if session.in_transaction():
                await session.commit()
            session.sync_session.close()

    yield _in_turns(setup.slots, work)


@contextlib.asynccontextmanager
async def _core(setup: Setup) -> AsyncIterator[Batch]:
    """Without a session: the body gets a connection, which is enough for a statement."""

    async def work(body: Callable[[Any, int], Awaitable[None]], numbers: range) -> None:
        for number in numbers:
            async with setup.engine.begin() as connection:
                await body(connection, number)

    yield _in_turns(setup.slots, work)


@contextlib.asynccontextmanager
async def _least(setup: Setup) -> AsyncIterator[Batch]:
    """
    What nobody can do without who runs each unit in a task and logs it.

    The record is made as this package makes it, the session, which holds nothing by then, left open, and the next unit
    started where one has ended.
    """

    async def unit(body: Body, number: int) -> None:
        started = perf_counter()
        session = setup.Session()
        await body(session, number)
        if session.in_transaction():
            await session.commit()
        if LOGGER.isEnabledFor(logging.INFO):
            args = (body.__name__, perf_counter() - started)
            LOGGER.handle(LOGGER.makeRecord(LOGGER.name, logging.INFO, __file__, 0, "%s done in %.2fs", args, None))

    async def batch(body: Body, count: int) -> None:
        loop = asyncio.get_running_loop()
        numbers, running, done = iter(range(count)), 0, loop.create_future()

        def start_next() -> None:
            nonlocal running
            for number in numbers:
                running += 1
                loop.create_task(unit(body, number)).add_done_callback(ended)
                return

        def ended(_task: object) -> None:
            nonlocal running
            running -= 1
            start_next()
            if not running:
                done.set_result(None)

        for _ in range(setup.slots):
            start_next()
        await done

    yield batch


BOUNDED: dict[str, Contender] = {
    OURS: _scope,
    OURS_TO_THE_FULL: _to_the_full,
    OURS_GATHERED: _gathered,
    BY_HAND: _by_hand,
    LEAN: functools.partial(_by_hand, opened=one_commit),
    LEAST: _least,
    FLOOR: _floor,
}
ONE_STATEMENT: dict[str, Contender] = {CORE: _core}
UNBOUNDED: dict[str, Contender] = {
    OURS_UNLIMITED: functools.partial(_scope, limit=None),
    BY_HAND_UNLIMITED: functools.partial(_by_hand, limited=False),
}
