# pyright: strict
"""Right calls: both type checkers infer each exactly, and complain about none."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar, assert_type

from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session as SyncSession

from sa_isolated_tasks import (
    Factory,
    IsolatedFunction,
    TaskHandle,
    TaskScope,
    isolated_session,
)

T = TypeVar("T")

engine: AsyncEngine = create_async_engine("sqlite+aiosqlite:///typing.db")
Session = async_sessionmaker(engine)


class OwnSession(AsyncSession):
    pass


@asynccontextmanager
async def get_session() -> AsyncGenerator[AsyncSession]:
    async with Session() as session:
        yield session


def make_own() -> OwnSession:
    return OwnSession(engine)


FACTORIES: list[Factory] = [
    Session,
    Session.begin,
    get_session,
    make_own,
    OwnSession,
    async_sessionmaker(engine, class_=OwnSession),
    functools.partial(AsyncSession, engine),
    lambda: AsyncSession(engine),
]


@isolated_session(Session)
async def titles(session: AsyncSession, author: int, *, prefix: str = "") -> list[str]:
    return [prefix]


@isolated_session(make_own)
async def own(session: OwnSession) -> None: ...


@isolated_session(Session)
async def keywords(session: AsyncSession, /, *numbers: int, **fields: str) -> str:
    return ""


@isolated_session(Session)
async def same(session: AsyncSession, value: T) -> T:
    return value


@isolated_session(Session)
async def variadic(session: AsyncSession, /, *numbers: int, **names: str) -> int:
    return sum(numbers)


async def plain(session: AsyncSession, author: int, *, prefix: str = "") -> bytes:
    return b""


@dataclass
class Repository:
    sessions: async_sessionmaker[AsyncSession]

    @isolated_session(attribute="sessions")
    async def by_attribute(self, session: AsyncSession, number: int) -> str:
        return ""

    @isolated_session(Session)
    async def method(self, session: AsyncSession, number: int) -> str:
        return ""

    @isolated_session(Session)
    @classmethod
    async def class_below(cls, session: AsyncSession, number: int) -> str:
        return ""

    @classmethod
    @isolated_session(Session)
    async def class_above(cls, session: AsyncSession, number: int) -> str:
        return ""

    @isolated_session(Session)
    @staticmethod
    async def static_below(session: AsyncSession, number: int) -> str:
        return ""

    @staticmethod
    @isolated_session(Session)
    async def static_above(session: AsyncSession, number: int) -> str:
        return ""

    async def plain(self, session: AsyncSession, number: int) -> float:
        return 0.0


class Overriding(Repository):
    @isolated_session(attribute="sessions")
    async def by_attribute(self, session: AsyncSession, number: int) -> str:
        inside = await super().by_attribute.in_session(session, number)
        return inside + await super().by_attribute(number)


def takes_callable(fn: Callable[[int], Coroutine[Any, Any, str]]) -> Coroutine[Any, Any, str]:
    return fn(1)


def takes_any_isolated(fn: IsolatedFunction[[int], str]) -> Coroutine[Any, Any, str]:
    return fn(1)


async def calls(repository: Repository) -> None:
    assert_type(await titles(1), list[str])
    assert_type(await titles(author=1, prefix="a"), list[str])
    assert_type(await own(), None)
    assert_type(await same(1), int)
    assert_type(await keywords(1, 2, name="a"), str)
    assert_type(await variadic(1, 2, name="a"), int)
    assert_type(await repository.by_attribute(1), str)
    assert_type(await repository.method(1), str)
    assert_type(await Repository.method(repository, 1), str)
    assert_type(await Repository.class_below(1), str)
    assert_type(await repository.class_below(1), str)
    assert_type(await Repository.class_above(1), str)
    assert_type(await repository.class_above(1), str)
    assert_type(await Repository.static_below(1), str)
    assert_type(await repository.static_below(1), str)
    assert_type(await Repository.static_above(1), str)
    assert_type(await repository.static_above(1), str)
    assert_type(await takes_any_isolated(repository.method), str)
    assert_type(await takes_callable(repository.method), str)


async def variants(session: AsyncSession, repository: Repository) -> None:
    assert_type(await titles.using(get_session)(1), list[str])
    assert_type(await titles.using(Session.begin)(1, prefix=""), list[str])
    assert_type(await titles.in_session(session, 1, prefix="a"), list[str])
    assert_type(await repository.method.using(Session)(1), str)
    assert_type(await Repository.method.using(Session)(repository, 1), str)
    assert_type(await repository.method.in_session(session, 1), str)
    assert_type(await Repository.method.in_session(repository, session, 1), str)
    assert_type(await Repository.class_below.using(Session)(1), str)
    assert_type(await Repository.class_below.in_session(session, 1), str)


async def spawning(repository: Repository) -> None:
    async with TaskScope(Session, name="typing", limit=5) as scope:
        assert_type(scope.spawn(titles, 1), TaskHandle[list[str]])
        assert_type(await scope.spawn(titles, author=1, prefix="a"), list[str])
        assert_type(await scope.spawn(own), None)
        assert_type(await scope.spawn(variadic, 1, 2, name="a"), int)
        assert_type(await scope.spawn(plain, 1, prefix="a"), bytes)
        assert_type(await scope.spawn(repository.by_attribute, 1), str)
        assert_type(await scope.spawn(repository.method, 1), str)
        assert_type(await scope.spawn(Repository.class_below, 1), str)
        assert_type(await scope.spawn(Repository.class_above, 1), str)
        assert_type(await scope.spawn(repository.static_below, 1), str)
        assert_type(await scope.spawn(Repository.static_above, 1), str)
        assert_type(await scope.spawn(repository.plain, 1), float)
        assert_type(await scope.options(timeout=1.0).spawn(titles, 1), list[str])
        assert_type(scope.spawn(titles, 1).result(), list[str])


async def after_commit(session: AsyncSession, sync_session: SyncSession, repository: Repository) -> None:
    async with TaskScope(Session, name="typing") as scope:
        assert_type(scope.spawn_after_commit(session, titles, 1, prefix="a"), TaskHandle[list[str]])
        assert_type(await scope.spawn_after_commit(sync_session, plain, author=1), bytes)
        assert_type(await scope.spawn_after_commit(session, repository.method, 1), str)


async def spawners(repository: Repository) -> None:
    async with asyncio.TaskGroup() as group:
        assert_type(group.create_task(titles(1)), asyncio.Task[list[str]])
        assert_type(await asyncio.create_task(repository.method(1)), str)
    both = await asyncio.gather(titles(1), repository.method(1))
    assert_type(both, tuple[list[str], str])
    assert_type(await asyncio.wait_for(titles(1), timeout=1), list[str])


def main() -> None:
    assert_type(asyncio.run(titles(1)), list[str])
