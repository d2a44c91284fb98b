# pyright: strict
"""The same with the session class of SQLModel, which not every SQLAlchemy has one for."""

from __future__ import annotations

from typing import assert_type

from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlmodel.ext.asyncio.session import AsyncSession as SQLModelSession

from sa_isolated_tasks import Factory, TaskScope, isolated_session

engine: AsyncEngine = create_async_engine("sqlite+aiosqlite:///typing.db")
Session = async_sessionmaker(engine, class_=SQLModelSession)

FACTORIES: list[Factory] = [Session, SQLModelSession]


@isolated_session(Session)
async def titles(session: SQLModelSession, author: int) -> list[str]:
    return [""]


async def plain(session: SQLModelSession, author: int) -> bytes:
    return b""


async def calls(session: AsyncSession) -> None:
    assert_type(await titles(1), list[str])
    async with TaskScope(Session, name="typing", limit=5) as scope:
        assert_type(await scope.spawn(titles, 1), list[str])
        assert_type(await scope.spawn(plain, 1), bytes)
        assert_type(await scope.options(name="a").spawn_after_commit(session, plain, 1), bytes)
