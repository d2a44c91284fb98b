"""
``schema_translate_map`` is set on the session's connection, and forgotten after its commit.

https://github.com/sqlalchemy/sqlalchemy/issues/10322. Options of a connection last one transaction. A unit inherits
nothing from its parent but what its factory says: a factory on ``engine.execution_options(...)`` keeps the tenant in
every transaction of every unit.
"""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import declarative_base
from support import session_maker

from sa_isolated_tasks import TaskScope

Base = declarative_base()
TENANT = "tenant_c59"


class Note(Base):
    """A table that every tenant has, in a schema of its own."""

    __tablename__ = "notes_c59"
    __table_args__ = ({"schema": "per_tenant"},)

    id = sa.Column(sa.Integer, primary_key=True)
    text = sa.Column(sa.String(100))


TRANSLATE = {"schema_translate_map": {"per_tenant": TENANT}}


@pytest.fixture
async def engine(postgresql, make_engine):
    engine = make_engine(postgresql)
    async with engine.begin() as connection:
        await connection.execute(sa.text(f"drop schema if exists {TENANT} cascade"))
        await connection.execute(sa.text(f"create schema {TENANT}"))
        translated = await connection.execution_options(**TRANSLATE)
        await translated.run_sync(Base.metadata.create_all)
    yield engine
    async with engine.begin() as connection:
        await connection.execute(sa.text(f"drop schema {TENANT} cascade"))


async def write_twice(session):
    """Two transactions in one unit."""
    for text in "ab":
        session.add(Note(text=text))
        await session.commit()
    return (await session.execute(sa.select(Note.text).order_by(Note.id))).scalars().all()


async def test_control_the_option_is_lost_after_the_commit(engine):
    """Plain SQLAlchemy: the second transaction looks for the table in a schema that does not exist."""
    async with session_maker(engine)() as session:
        await session.connection(execution_options=TRANSLATE)
        with pytest.raises(DBAPIError, match="per_tenant"):
            await write_twice(session)


async def test_a_factory_on_the_tenants_engine_keeps_it(engine):
    """In each transaction of the unit."""
    Tenant = session_maker(engine.execution_options(**TRANSLATE))

    async with TaskScope(Tenant, name="c59") as scope:
        texts = await scope.spawn(write_twice)

    assert ["a", "b"] == texts


async def test_a_unit_does_not_inherit_the_options_of_its_parents_transaction(engine):
    """Its session is another one, from the factory: a tenant that is nowhere said is not guessed."""

    async def count(session):
        return await session.scalar(sa.select(sa.func.count()).select_from(Note))

    Session = session_maker(engine)
    async with TaskScope(Session, name="c59") as scope, Session() as session:
        await session.connection(execution_options=TRANSLATE)
        await session.execute(sa.select(Note))
        handle = scope.spawn_after_commit(session, count)
        await session.commit()
        with pytest.raises(DBAPIError, match="per_tenant"):
            await handle
