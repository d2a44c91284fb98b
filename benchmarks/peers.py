"""
The other packages of this field, each used as its own documentation says.

Those that bring no session of their own run the pattern that is written by hand, with its log line. Those that bring
one replace it, and log nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
from collections.abc import AsyncIterator
from importlib.metadata import version
from typing import Any, NamedTuple

from benchmarks.contenders import Batch, Contender
from benchmarks.handwritten import Background, begin_block
from benchmarks.setup import Setup
from benchmarks.workloads import Body


@contextlib.asynccontextmanager
async def _task_group(setup: Setup) -> AsyncIterator[Batch]:
    background = Background(begin_block(setup.Session), setup.slots)

    async def batch(body: Body, count: int) -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(count):
                group.create_task(background.work(body, number))

    yield batch


@contextlib.asynccontextmanager
async def _aiojobs(setup: Setup) -> AsyncIterator[Batch]:
    import aiojobs

    background = Background(begin_block(setup.Session), None)
    async with aiojobs.Scheduler(limit=setup.slots) as scheduler:

        async def batch(body: Body, count: int) -> None:
            jobs = [await scheduler.spawn(background.work(body, number)) for number in range(count)]
            for job in jobs:
                await job.wait()

        yield batch


@contextlib.asynccontextmanager
async def _aiotools(setup: Setup) -> AsyncIterator[Batch]:
    import aiotools

    background = Background(begin_block(setup.Session), setup.slots)

    async def batch(body: Body, count: int) -> None:
        async with aiotools.TaskScope() as scope:
            for number in range(count):
                scope.create_task(background.work(body, number))

    yield batch


@contextlib.asynccontextmanager
async def _context_async(setup: Setup) -> AsyncIterator[Batch]:
    from context_async_sqlalchemy import DBConnect, db_session, run_in_new_ctx

    connect = DBConnect(lambda _host: setup.engine, lambda _engine: setup.Session, host="the pool's")

    async def work(body: Body, number: int) -> None:
        await body(await db_session(connect), number)

    async def batch(body: Body, count: int) -> None:
        await asyncio.gather(*[run_in_new_ctx(work, body, number) for number in range(count)])

    yield batch


@contextlib.asynccontextmanager
async def _fastapi_async(setup: Setup) -> AsyncIterator[Batch]:
    from fastapi_async_sqlalchemy.middleware import create_middleware_and_session_proxy

    made: tuple[Any, Any] = create_middleware_and_session_proxy()
    middleware, db = made
    middleware(None, custom_engine=setup.engine)

    async def work(body: Body, number: int) -> None:
        async with db.connection() as session:
            await body(session, number)

    async def batch(body: Body, count: int) -> None:
        async with db(multi_sessions=True, max_concurrent=setup.slots, commit_on_exit=True):
            await asyncio.gather(*[asyncio.create_task(work(body, number)) for number in range(count)])

    yield batch


def _txbound(**options: Any) -> Contender:
    @contextlib.asynccontextmanager
    async def contender(setup: Setup) -> AsyncIterator[Batch]:
        import txbound
        from txbound.asyncio import independent_transaction

        txbound.configure(async_session_factory=setup.Session)

        @independent_transaction(**options)
        async def work(session: Any, *, body: Body, number: int) -> None:
            await body(session, number)

        semaphore = asyncio.Semaphore(setup.slots)

        async def bounded(body: Body, number: int) -> None:
            async with semaphore:
                await work(body=body, number=number)

        async def batch(body: Body, count: int) -> None:
            await asyncio.gather(*[asyncio.create_task(bounded(body, number)) for number in range(count)])

        yield batch

    return contender


class _Peer(NamedTuple):
    """*distribution* is empty for what is in Python."""

    distribution: str
    module: str
    contender: Contender


_PEERS = {
    "`asyncio.TaskGroup`, `begin()`, semaphore": _Peer("", "asyncio", _task_group),
    "aiojobs, `begin()`": _Peer("aiojobs", "aiojobs", _aiojobs),
    "aiotools `TaskScope`, `begin()`, semaphore": _Peer("aiotools", "aiotools", _aiotools),
    "context-async-sqlalchemy `run_in_new_ctx`": _Peer(
        "context-async-sqlalchemy", "context_async_sqlalchemy", _context_async
    ),
    "fastapi-async-sqlalchemy `db.connection`": _Peer(
        "fastapi-async-sqlalchemy", "fastapi_async_sqlalchemy", _fastapi_async
    ),
    "transactional-boundary, semaphore": _Peer("transactional-boundary", "txbound", _txbound()),
    "transactional-boundary, `lock_timeout=None`, semaphore": _Peer(
        "transactional-boundary", "txbound", _txbound(lock_timeout=None)
    ),
}
NAMES = tuple(_PEERS)


def installed() -> dict[str, Contender]:
    return {name: peer.contender for name, peer in _PEERS.items() if _is_installed(peer)}


def missing() -> list[str]:
    return [name for name, peer in _PEERS.items() if not _is_installed(peer)]


def versions() -> dict[str, str]:
    """Of the distributions that are installed."""
    found = {peer.distribution for peer in _PEERS.values() if peer.distribution and _is_installed(peer)}
    return {distribution: version(distribution) for distribution in sorted(found)}


def folders() -> list[str]:
    """Where the code of those is that are installed."""
    specs = [importlib.util.find_spec(peer.module) for peer in _PEERS.values() if peer.distribution]
    return [folder for spec in specs if spec is not None for folder in spec.submodule_search_locations or ()]


def _is_installed(peer: _Peer) -> bool:
    return importlib.util.find_spec(peer.module) is not None
