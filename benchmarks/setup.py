"""The engine that all contenders share, and the loggers to which they write."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from tests.databases import Databases

from benchmarks.workloads import Base

POOL_SIZE = 10


@dataclass(frozen=True)
class Setup:
    """*slots* is how many units a careful author lets run at once: the pool's size, and one on SQLite."""

    engine: AsyncEngine
    Session: async_sessionmaker[AsyncSession]
    slots: int


def logger(name: str) -> logging.Logger:
    """Every line is made, at INFO, and none is written."""
    made = logging.getLogger(name)
    made.setLevel(logging.INFO)
    made.handlers = [logging.NullHandler()]
    made.propagate = False
    return made


def postgresql(databases: Databases) -> URL | None:
    return databases.get("asyncpg").url


def sqlite(directory: str) -> URL:
    return URL.create("sqlite+aiosqlite", database=str(Path(directory) / "benchmarks.db"))


@contextlib.asynccontextmanager
async def connected(url: URL | str) -> AsyncIterator[Setup]:
    """An engine with empty tables, which are dropped in the end."""
    # Without overflow: its connections are opened for one unit and closed again, and that is all one would measure.
    engine = create_async_engine(url, pool_size=POOL_SIZE, max_overflow=0, pool_timeout=600)
    try:
        await _recreate(engine)
        slots = 1 if engine.dialect.name == "sqlite" else POOL_SIZE
        yield Setup(engine, async_sessionmaker(engine, expire_on_commit=False), slots)
        async with engine.begin() as connection:
            await connection.run_sync(Base.metadata.drop_all)
    finally:
        await engine.dispose()


async def _recreate(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.drop_all)
        await connection.run_sync(Base.metadata.create_all)


@contextlib.asynccontextmanager
async def connected_to_sqlite() -> AsyncIterator[Setup]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
        async with connected(sqlite(directory)) as setup:
            yield setup
