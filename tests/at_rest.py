"""What the server says, by a connection of its own: who is in a transaction, and how many there are."""

from __future__ import annotations

import asyncio
import contextlib
import re

import sqlalchemy as sa
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool

# Seconds; a safety net only: the server may still be ending what it was told to end.
DEADLINE = 20
_POSTGRESQL = sa.text(
    "select pid, state, query from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid() "
    "and backend_type = 'client backend' and xact_start is not null"
)
_INNODB = sa.text("show engine innodb status")
# information_schema.innodb_trx is a copy that is a tenth of a second old; this is not.
_ACTIVE = re.compile(r"^---TRANSACTION [^,]*, ACTIVE(?:.(?!^---))*?^M\w+ thread id (\d+)", re.MULTILINE | re.DOTALL)
_OTHERS = sa.text("select id, info from information_schema.processlist where db = database() and id <> connection_id()")
_BEGIN_IMMEDIATE = sa.text("begin immediate")


class Server:
    """The server of *engine*, seen by a connection that is not of its pool."""

    def __init__(self, engine):
        arguments = {"timeout": 0} if engine.dialect.name == "sqlite" else {}
        self._engine = create_async_engine(
            engine.url, poolclass=AsyncAdaptedQueuePool, pool_size=1, max_overflow=0, connect_args=arguments
        )
        self._look = {"sqlite": _writers_of_sqlite, "postgresql": _in_postgresql}.get(engine.dialect.name, _in_innodb)

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        await self._engine.dispose()

    async def transactions(self):
        """Those that are in progress, in words; of SQLite's only one that writes can be seen."""
        async with self._engine.connect() as connection:
            return await self._look(connection)

    async def at_rest(self):
        """The transactions that are still in progress when the server has had time to end them."""
        if self._engine.dialect.name == "sqlite":
            return await self.transactions()
        found = ["?"]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DEADLINE):
                while found:
                    found = await self.transactions()
        return found


async def _in_postgresql(connection):
    return [f"{row.pid} {row.state}: {row.query}" for row in await connection.execute(_POSTGRESQL)]


async def _in_innodb(connection):
    status = (await connection.execute(_INNODB)).one()[2]
    active = set(map(int, _ACTIVE.findall(status)))
    return [f"{row.id}: {row.info}" for row in await connection.execute(_OTHERS) if row.id in active]


async def _writers_of_sqlite(connection):
    try:
        await connection.execute(_BEGIN_IMMEDIATE)
    except OperationalError as error:
        return [str(error.orig)]
    return []
