"""A COMMIT of PostgreSQL's that takes as long as the test wants."""

from __future__ import annotations

import asyncio

import sqlalchemy as sa

LOCK = 4512
WAITING = sa.text(
    f"select count(*) from pg_locks join pg_database on pg_database.oid = pg_locks.database "
    f"where locktype = 'advisory' and objid = {LOCK} and not granted and datname = current_database()"
)


class SlowCommit:
    """A trigger that makes each COMMIT wait for a lock that the test holds."""

    def __init__(self, engine):
        self.engine = engine
        self.holder = None

    async def hold(self):
        function = f"begin perform pg_advisory_xact_lock({LOCK}); return null; end"
        async with self.engine.begin() as connection:
            await connection.execute(
                sa.text(f"create or replace function wait_here() returns trigger language plpgsql as $${function}$$")
            )
            await connection.execute(
                sa.text(
                    "create constraint trigger slow after insert on items deferrable initially deferred "
                    "for each row execute function wait_here()"
                )
            )
        self.holder = await self.engine.connect()
        await self.holder.execute(sa.text(f"select pg_advisory_xact_lock({LOCK})"))

    async def reached(self, count=1):
        """Returns when the server is in the middle of that many COMMITs."""
        async with asyncio.timeout(20):
            while (await self.holder.execute(WAITING)).scalar() < count:
                await asyncio.sleep(0)

    async def release(self):
        if self.holder is not None:
            await self.holder.close()
            self.holder = None
