"""What a unit does: three functions as an application would write them, each given a session and a number."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias

from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

Body: TypeAlias = Callable[[AsyncSession, int], Coroutine[Any, Any, None]]


class Base(DeclarativeBase):
    """Of the tables of the benchmarks."""


class Written(Base):
    """A row that a unit has written."""

    __tablename__ = "sit_benchmark"

    id: Mapped[int] = mapped_column(primary_key=True)
    number: Mapped[int]


_ONE = text("select 1")


async def nothing(_session: AsyncSession, _number: int) -> None:
    """Has a session, and does not need it this time."""


async def select_one(session: AsyncSession, _number: int) -> None:
    await session.execute(_ONE)


async def insert(session: AsyncSession, number: int) -> None:
    session.add(Written(number=number))


NOTHING, SELECT, INSERT = "a unit that never touches the database", "`select 1` and commit", "insert and commit"
BODIES: dict[str, Body] = {NOTHING: nothing, SELECT: select_one, INSERT: insert}


async def rows_written(session: AsyncSession) -> int:
    return (await session.execute(select(func.count()).select_from(Written))).scalar_one()
