"""The programs that are checked: GUM with its triggers, or with the shared session, on one database or the other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from gum_ai import Base, Gum, Proposition, Update, observation_proposition
from model_server import ModelServer
from outside import Outside
from recorded_day import RecordedDay
from shared_session import SharedSession
from sqlalchemy import Connection, event, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.schema import CreateSchema, DropSchema
from suggestions import SuggestionEngine
from with_triggers import Triggers

SCHEMA = "gum_example"


class Transactional:
    """
    GUM's SQLite commits every statement by itself; so that it does not, BEGIN has to be said.

    IMMEDIATE, because GUM's first INSERT on a connection also opens the full-text search, which is a read; and a reader
    that begins to write while somebody else writes is told "database is locked" at once, whatever the timeout.
    """

    async def connect_db(self) -> None:
        await super().connect_db()
        event.listen(self.engine.sync_engine, "begin", _begin)


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


class OnPostgresql:
    """GUM's tables, without its full-text search and its INSERT OR IGNORE, which are SQLite's."""

    url: URL

    async def connect_db(self) -> None:
        self.engine = create_async_engine(self.url, connect_args={"options": f"-csearch_path={SCHEMA}"})
        self.Session = async_sessionmaker(self.engine, expire_on_commit=False, autoflush=False)
        async with self.engine.begin() as connection:
            await connection.execute(DropSchema(SCHEMA, cascade=True, if_exists=True))
            await connection.execute(CreateSchema(SCHEMA))
            await connection.run_sync(Base.metadata.create_all)

    async def _generate_and_search(self, session: AsyncSession, update: Update) -> list[Proposition]:
        found = [
            Proposition(text=draft.pop("proposition"), revision_group=SCHEMA, **draft)
            for draft in await self._construct_propositions(update)
        ]
        session.add_all(found)
        await session.flush()
        return found

    @staticmethod
    async def _attach_obs_if_missing(proposition: Any, observation: Any, session: AsyncSession) -> None:
        pair = {"observation_id": observation.id, "proposition_id": proposition.id}
        await session.execute(insert(observation_proposition).values(pair).on_conflict_do_nothing())


class LateSpawn:
    """Its proactive triggers start another trigger, when the program is being left already."""

    def _engine(self) -> SuggestionEngine:
        return _LateSpawnEngine(self)


class _LateSpawnEngine(SuggestionEngine):
    def __init__(self, gum: Any) -> None:
        super().__init__(gum.client, gum.model)
        self._gum = gum

    async def suggest(self, session: AsyncSession, about: str, category: str, batch_id: str, **row: object) -> None:
        await super().suggest(session, about, category, batch_id, **row)
        if category == "proactive":
            first = await session.scalar(select(Proposition.id).limit(1))
            self._gum._start(session, self._gum._trigger_gumbo_suggestions, first)  # noqa: SLF001 -- as a trigger would


@dataclass(frozen=True)
class Setting:
    """
    Args:
        triggers: `Triggers`, or `SharedSession` for the negative control.
        transactional: whether SQLite is.
        engine_is_faster: whether the model answers a trigger faster than its parent.
        postgresql: where it is; None for SQLite.
    """

    triggers: type[Triggers]
    transactional: bool
    engine_is_faster: bool
    postgresql: URL | None = None

    def __str__(self) -> str:
        program = "the shared session" if self.triggers is SharedSession else "a session for each trigger"
        database = "PostgreSQL" if self.postgresql else "SQLite"
        speed = "faster" if self.engine_is_faster else "slower"
        return f"{program}, {database}, {self.mode}, model {speed} than the parent"

    @property
    def mode(self) -> str:
        return "transactional" if self.transactional else "driver autocommit"

    @property
    def patience(self) -> float:
        """Seconds to wait for what has to come; with the shared session it does not."""
        return 1.0 if self.triggers is SharedSession else 20.0

    def model(self) -> ModelServer:
        fast, slow = (0.0, 0.0), (0.15, 0.15)
        return ModelServer(fast, slow) if self.engine_is_faster else ModelServer(slow, fast)

    def program(self, *more: type) -> type[Any]:
        if self.postgresql is not None:
            return type("GumHere", (*more, self.triggers, OnPostgresql, Gum), {"url": self.postgresql})
        database = (Transactional,) if self.transactional else ()
        return type("GumHere", (*more, self.triggers, *database, Gum), {})


@dataclass
class Running:
    """A program that runs, and who watches it."""

    gum: Any
    day: RecordedDay
    model: ModelServer
    outside: Outside

    @property
    def tracked(self) -> int:
        return len(self.gum._tasks or ())  # noqa: SLF001 -- the set that is to be looked at

    def all_arrived(self) -> bool:
        """Whether every update is an observation, and has its two suggestions, as every confident proposition has."""
        observations = self.outside.sql("select count(*) from observations")
        return observations >= self.day.count and self.expected() == self.arrived()

    def expected(self) -> int:
        count = "(select count(*) from observations) + (select count(*) from propositions where confidence >= 8)"
        return 2 * int(self.outside.sql(f"select {count}"))

    def arrived(self) -> int:
        return int(self.outside.sql("select count(*) from suggestions where delivered"))

    async def end(self) -> None:
        """What GUM leaves open."""
        await self.gum.client.close()
        await self.gum.engine.dispose()


@asynccontextmanager
async def running(
    setting: Setting, *more: type, updates: int = 5, pause: float = 0.0, batch: float = 0.002
) -> AsyncIterator[Running]:
    """The program, entered; who uses it leaves it. *batch* is GUM's interval, in minutes."""
    with TemporaryDirectory() as directory, setting.model() as model:
        url = (
            _synchronous(setting.postgresql)
            if setting.postgresql
            else URL.create("sqlite", database=str(Path(directory) / "gum.db"))
        )
        with Outside(url) as outside:
            day = RecordedDay(updates, pause)
            options = {"data_directory": directory, "api_base": model.url, "batch_interval_minutes": batch}
            gum = setting.program(*more)("Ada", "local", day, verbosity=30, **options)
            await gum.__aenter__()
            program = Running(gum, day, model, outside)
            try:
                yield program
            finally:
                await program.end()


def _synchronous(url: URL) -> URL:
    return url.update_query_dict({"options": f"-csearch_path={SCHEMA}"})


async def leave(program: Running) -> None:
    # With the shared session a statement may wait for the lock of a connection that leaked, five seconds each time.
    await asyncio.wait_for(program.gum.__aexit__(None, None, None), 60)
