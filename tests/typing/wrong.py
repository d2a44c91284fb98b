# pyright: strict
"""Wrong calls: each line that ends in ``E`` is an error for both type checkers, and no other line is."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session as SyncSession

from sa_isolated_tasks import TaskScope, isolated_session

engine: AsyncEngine = create_async_engine("sqlite+aiosqlite:///typing.db")
Session = async_sessionmaker(engine)


@isolated_session(Session)
async def titles(session: AsyncSession, author: int, *, prefix: str = "") -> list[str]:
    return [prefix]


async def plain(session: AsyncSession, author: int, *, prefix: str = "") -> bytes:
    return b""


async def without_session(author: int) -> bytes:
    return b""


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


async def calls(session: AsyncSession, repository: Repository) -> None:
    await titles("1")  # E
    await titles()  # E
    await titles(1, "prefix")  # E
    await titles(1, prefix=2)  # E
    await titles(1, suffix="a")  # E
    await titles(session, 1)  # E
    await titles(1, session=session)  # E
    await repository.by_attribute("1")  # E
    await repository.by_attribute(session, 1)  # E
    await repository.method("1")  # E
    await repository.method(session, 1)  # E
    await Repository.method(1)  # E
    await Repository.method(repository, "1")  # E
    await Repository.method("repository", 1)  # E
    await Repository.method.in_session("repository", session, 1)  # E
    await Repository.class_below("1")  # E
    await Repository.class_above("1")  # E
    await Repository.class_below(session, 1)  # E
    await Repository.class_above(session, 1)  # E
    await repository.class_below(1, 2)  # E
    await repository.class_above(1, 2)  # E
    await Repository.static_below("1")  # E
    await repository.static_above("1")  # E
    await repository.static_below(session, 1)  # E
    await Repository.static_above(session, 1)  # E


async def results(repository: Repository) -> None:
    titles(1).append("a")  # E
    repository.method(1).upper()  # E
    titles(1)  # E
    (await titles(1)).upper()  # E


async def variants(session: AsyncSession, sync_session: SyncSession, repository: Repository) -> None:
    await titles.using(Session)("1")  # E
    await titles.using(Session())(1)  # E
    await titles.using(engine)(1)  # E
    await titles.in_session(session)  # E
    await titles.in_session(session, "1")  # E
    await titles.in_session(1)  # E
    await titles.in_session(sync_session, 1)  # E
    await repository.method.using(Session)("1")  # E
    await repository.method.in_session(session, "1")  # E
    await Repository.class_below.in_session(session, "1")  # E


async def spawning(session: AsyncSession, repository: Repository) -> None:
    async with TaskScope(Session, name="typing") as scope:
        scope.spawn(titles, "1")  # E
        scope.spawn(titles)  # E
        scope.spawn(titles, session, 1)  # E
        scope.spawn(titles, 1, suffix="a")  # E
        scope.spawn(titles(1))  # E
        scope.spawn(plain, "1")  # E
        scope.spawn(plain)  # E
        scope.spawn(plain, session, 1)  # E
        scope.spawn(plain, 1, prefix=2)  # E
        scope.spawn(plain(session, 1))  # E
        scope.spawn(without_session, 1)  # E
        scope.spawn(repository.method, "1")  # E
        scope.spawn(repository.method, session, 1)  # E
        scope.spawn(Repository.method, repository, 1)  # E
        scope.spawn(repository.by_attribute, "1")  # E
        scope.spawn(Repository.class_below, "1")  # E
        scope.spawn(Repository.class_above, "1")  # E
        scope.spawn(repository.static_below, "1")  # E
        scope.spawn(Repository.static_above, "1")  # E
        scope.options().spawn(titles, "1")  # E
        scope.spawn(titles, 1).append("a")  # E
        scope.spawn(titles, 1).upper()  # E
        (await scope.spawn(titles, 1)).upper()  # E
        for _title in scope.spawn(titles, 1):  # E
            pass


async def after_commit(session: AsyncSession, repository: Repository) -> None:
    async with TaskScope(Session, name="typing") as scope:
        scope.spawn_after_commit(titles, 1)  # E
        scope.spawn_after_commit(session, titles, "1")  # E
        scope.spawn_after_commit(session, titles, session, 1)  # E
        scope.spawn_after_commit(session, plain, session, 1)  # E
        scope.spawn_after_commit(session, titles(1))  # E
        scope.spawn_after_commit(Session, titles, 1)  # E
        scope.spawn_after_commit(session, repository.method, "1")  # E


isolated_session(Session())  # E
isolated_session(engine)  # E
isolated_session()  # E
isolated_session(Session, attribute="Session")  # E


@isolated_session(Session)  # E
def synchronous(session: AsyncSession) -> None: ...


@isolated_session(Session)  # E
async def generator(session: AsyncSession) -> AsyncIterator[int]:
    yield 1


@isolated_session(Session)  # E
def sync_generator(session: AsyncSession) -> Iterator[int]:
    yield 1


@isolated_session(Session)  # E
async def sync_session(session: SyncSession) -> None: ...


@isolated_session(Session)  # E
async def no_session() -> None: ...


@isolated_session(Session)  # E
async def other_parameter(author: int) -> None: ...


@isolated_session(Session)  # E
async def keyword_only(*, session: AsyncSession) -> None: ...


@isolated_session(Session)  # E
@isolated_session(Session)
async def twice(session: AsyncSession, author: int) -> None: ...


@isolated_session  # E
async def without_factory(session: AsyncSession) -> None: ...


async def coroutine_factory() -> AsyncSession:
    return Session()


async def generator_factory() -> AsyncIterator[AsyncSession]:
    yield Session()


def needy_factory(url: str) -> AsyncSession:
    return AsyncSession(create_async_engine(url))


isolated_session(coroutine_factory)  # E
isolated_session(generator_factory)  # E
isolated_session(needy_factory)  # E
