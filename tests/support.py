"""What the tests share: one table, and session factories that exist on every supported SQLAlchemy."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import declarative_base, sessionmaker

Base = declarative_base()


class Item(Base):
    """The table of the tests."""

    __tablename__ = "items"

    id = sa.Column(sa.Integer, primary_key=True)
    name = sa.Column(sa.String(100), unique=True)
    amount = sa.Column(sa.Integer, default=0)


def session_maker(engine, **options):
    """``async_sessionmaker``, also on SQLAlchemy 1.4."""
    return sessionmaker(engine, class_=AsyncSession, **options)


async def reset(engine):
    """An empty table."""
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.drop_all)
        await connection.run_sync(Base.metadata.create_all)
