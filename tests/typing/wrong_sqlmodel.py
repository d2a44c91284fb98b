# pyright: strict
"""The same with the session class of SQLModel."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker, create_async_engine
from sqlmodel.ext.asyncio.session import AsyncSession as SQLModelSession

from sa_isolated_tasks import isolated_session

engine: AsyncEngine = create_async_engine("sqlite+aiosqlite:///typing.db")


@isolated_session(async_sessionmaker(engine, class_=SQLModelSession))
async def titles(session: SQLModelSession, author: int) -> list[str]:
    return [""]


async def calls() -> None:
    await titles("1")  # E
