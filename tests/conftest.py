"""Databases, engines, and the checks that hold after every test."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import threading
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool

sys.path.insert(0, str(Path(__file__).parent))

from databases import NAMES, UNSUPPORTED, Databases, require
from slow_commit import SlowCommit
from support import reset, session_maker
from versions import VersionsReport

DATABASES = Databases()
# Minutes of random events, to be asked for: SIT_STEPS=long.
collect_ignore = [] if "SIT_STEPS" in os.environ else ["test_machine.py"]


def pytest_configure(config):
    if "SIT_VERSIONS" in os.environ:
        config.pluginmanager.register(VersionsReport(Path(os.environ["SIT_VERSIONS"]), DATABASES))


def _eager_loop():
    loop = asyncio.new_event_loop()
    loop.set_task_factory(asyncio.eager_task_factory)
    return loop


def _uvloop():
    return pytest.importorskip("uvloop").new_event_loop()


if "SIT_LOOP" in os.environ:
    # By its name in the id of each test: "uvloop", or "eager" for the tasks of Python 3.12.
    def pytest_asyncio_loop_factories():
        return {os.environ["SIT_LOOP"]: {"uvloop": _uvloop, "eager": _eager_loop}[os.environ["SIT_LOOP"]]}


def pytest_sessionfinish():
    DATABASES.close()


def pytest_terminal_summary(terminalreporter):
    terminalreporter.section("databases")
    terminalreporter.write_line(f"SQLAlchemy {sa.__version__}, Python {sys.version.split()[0]}")
    for database in DATABASES.found:
        terminalreporter.write_line(
            f"{database.name}: {(database.problem and 'SKIPPED, ' + database.problem) or 'tested'}"
        )


@pytest.fixture(params=[name for name in NAMES if name not in UNSUPPORTED])
def database(request):
    """Each supported database and driver in turn."""
    return require(DATABASES.get(request.param))


@pytest.fixture
def sqlite():
    """For tests in which the database plays no part."""
    return require(DATABASES.get("sqlite"))


@pytest.fixture(params=[name for name in ("asyncpg", "psycopg") if name not in UNSUPPORTED])
def postgresql(request):
    return require(DATABASES.get(request.param))


@pytest.fixture(params=[name for name in NAMES if name not in (*UNSUPPORTED, "sqlite")])
def server(request):
    """Each driver of a database server in turn."""
    return require(DATABASES.get(request.param))


@pytest.fixture(params=[name for name in NAMES if name not in (*UNSUPPORTED, "sqlite")])
def server_that_prepares(request):
    """The same, with two-phase commits, which SQLite has not."""
    return require(DATABASES.that_prepares(request.param))


@pytest.fixture
def asyncpg():
    return require(DATABASES.get("asyncpg"))


@pytest.fixture
def psycopg():
    return require(DATABASES.get("psycopg"))


@pytest.fixture
async def make_engine():
    """Makes engines with a QueuePool on every database, disposes them, and checks that no connection has leaked."""
    engines = []

    def make(database, **options):
        if options.get("poolclass", AsyncAdaptedQueuePool) is AsyncAdaptedQueuePool:
            options = {"poolclass": AsyncAdaptedQueuePool, "pool_size": 5, "pool_timeout": 5} | options
        engine = create_async_engine(database.url, **options)
        engines.append(engine)
        return engine

    threads = set(threading.enumerate())
    yield make

    leaked = [engine.pool.status() for engine in engines if getattr(engine.pool, "checkedout", lambda: 0)()]
    for engine in engines:
        await engine.dispose()
    # A connection of aiosqlite that was cut ends when its thread does, which raises if the loop has gone by then.
    for thread in set(threading.enumerate()) - threads:
        if "_connection_worker_thread" in thread.name:
            await asyncio.to_thread(thread.join, 10)
    assert leaked == []


@pytest.fixture
async def engine(database, make_engine):
    """An engine on each database in turn, with an empty table."""
    engine = make_engine(database)
    await reset(engine)
    return engine


@pytest.fixture
async def postgresql_engine(postgresql, make_engine):
    engine = make_engine(postgresql)
    await reset(engine)
    return engine


@pytest.fixture
async def slow_commit(postgresql_engine):
    """Every COMMIT of an insert waits until the test releases it."""
    commit = SlowCommit(postgresql_engine)
    await commit.hold()
    yield commit
    await commit.release()


@pytest.fixture
async def sqlite_engine(sqlite, make_engine):
    engine = make_engine(sqlite)
    await reset(engine)
    return engine


@pytest.fixture
def Session(engine):
    """A session factory on each database in turn."""
    return session_maker(engine)


@pytest.fixture
def LiteSession(sqlite_engine):
    """A session factory on SQLite, for tests in which the database plays no part."""
    return session_maker(sqlite_engine)


@pytest.fixture
def names_in_table():
    """What another connection sees."""

    async def read(engine):
        async with engine.connect() as connection:
            return sorted((await connection.execute(sa.text("select name from items"))).scalars())

    return read


@pytest.fixture(autouse=True)
async def no_task_is_left():
    """Every test ends with the tasks that it began with."""
    before = asyncio.all_tasks()
    yield
    before.add(asyncio.current_task())
    # A task that is done is still listed until the loop has run its callbacks.
    for _ in range(3):
        await asyncio.sleep(0)
    assert {task for task in asyncio.all_tasks() - before if not task.done()} == set()


@pytest.fixture
def loop_errors():
    """What went to the loop's exception handler, "never retrieved" included; empty unless a test expects it."""
    seen = []
    asyncio.get_event_loop().set_exception_handler(lambda _loop, context: seen.append(context))
    yield seen
    gc.collect()
