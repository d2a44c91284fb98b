"""
A service gathers the calls of a repository, which was given the session of the request when it was made.

https://github.com/reagento/dishka/issues/149. The walk must find the session behind the method, at any depth and
however it is wrapped, and name the path; a repository that has a factory in its place must work.
"""

from __future__ import annotations

import asyncio
import functools
from dataclasses import dataclass
from typing import Any

import pytest
import sqlalchemy as sa
from support import Item, assert_it_went_wrong, gather_over_one_session, reset, session_maker

from sa_isolated_tasks import SessionPassedError, TaskScope, isolated_session

FIRST_STATEMENT = sa.select(sa.func.count(Item.id))


class Repository:
    """As a container for dependencies makes it."""

    def __init__(self, session):
        self.session = session

    async def feed(self, organisation):
        return await self.session.scalar(FIRST_STATEMENT)

    async def feed_in(self, session, organisation):
        return await session.scalar(FIRST_STATEMENT)

    async def write_in(self, session, organisation):
        session.add(Item(name=organisation))


@dataclass
class Service:
    """One level further up."""

    repository: Any

    async def feed_in(self, session, organisation):
        return await self.repository.feed_in(session, organisation)


class Slotted:
    """Has no ``__dict__``, and many of them."""

    __slots__ = ("repositories",)

    def __init__(self, repository):
        self.repositories = {"feeds": [repository]}

    async def feed_in(self, session, organisation):
        return await self.repositories["feeds"][0].feed_in(session, organisation)


async def call(session, function, *args):
    return await function(*args)


def over(repository):
    async def work(session):
        return await repository.feed("a")

    return work


async def test_control_the_repository_is_shared_by_what_is_gathered(postgresql, make_engine):
    """Plain SQLAlchemy: no session is passed in sight, and yet one is used twice."""
    engine = make_engine(postgresql)
    await reset(engine)

    seen = await gather_over_one_session(
        engine,
        session_maker(engine),
        lambda session: Repository(session).feed("a"),
        lambda session: Repository(session).feed("b"),
    )

    assert_it_went_wrong(seen)


@pytest.mark.parametrize(
    ("made", "path"),
    [
        (lambda repository: (repository.feed_in, "a"), "Repository.feed_in -> self.session"),
        (lambda repository: (Service(repository).feed_in, "a"), "Service.feed_in -> self.repository.session"),
        (lambda repository: (Slotted(repository).feed_in, "a"), "-> self.repositories['feeds'][0].session"),
        (lambda repository: (functools.partial(repository.feed_in, organisation="a"),), "-> .func self.session"),
        (lambda repository: (over(repository),), "-> closure 'repository'.session"),
        (lambda repository: (call, repository.feed, "a"), ": arg 1 -> self.session"),
        (lambda repository: (call, functools.partial(repository.feed, "a")), ": arg 1 -> .func self.session"),
        (lambda repository: (call, over(repository), None), ": arg 1 -> closure 'repository'.session"),
    ],
    ids=["method", "service", "slots", "partial", "closure", "argument", "argument partial", "argument closure"],
)
async def test_the_session_of_a_repository_is_found(LiteSession, made, path):
    """However the repository gets there, the call is refused before anything starts, and the path to it is named."""
    async with TaskScope(LiteSession, name="c18") as scope, LiteSession() as session:
        await session.connection()
        with pytest.raises(SessionPassedError) as refused:
            scope.spawn(*made(Repository(session)))

        assert refused.value.what.endswith(path)
        assert len(scope) == 0


async def test_the_gathered_calls_of_the_report_are_refused(Session):
    """The first of the calls in the comprehension fails already, so none of them has used the session."""
    organisations = ["a", "b", "c"]

    async with TaskScope(Session, name="c18") as scope, Session() as session:
        repository = Repository(session)
        with pytest.raises(SessionPassedError, match=r"self\.session"):
            await asyncio.gather(*[scope.spawn(repository.feed_in, name) for name in organisations])

        assert not session.in_transaction()


async def test_an_un_started_call_of_a_repository_is_refused(LiteSession):
    """``repository.feed(...)`` without an await holds the session by its ``self``."""
    async with TaskScope(LiteSession, name="c18") as scope, LiteSession() as session:
        coroutine = Repository(session).feed("a")
        with pytest.raises(SessionPassedError, match=r"un-started coroutine feed\(\) variable 'self'\.session"):
            scope.spawn(call, coroutine)
        coroutine.close()


async def test_an_isolated_method_looks_at_its_object_too(LiteSession):
    """Without a scope, the decorated method of an object that keeps a session is refused in the same way."""

    class Decorated(Repository):
        feed = isolated_session(LiteSession)(Repository.feed_in)

    async with LiteSession() as session:
        with pytest.raises(SessionPassedError, match=r"self\.session"):
            Decorated(session).feed("a")


async def test_a_class_may_say_that_its_session_serves_other_purposes(engine, Session, names_in_table):
    """With the line of the cure in the class the call is let through, and runs in a session of its own."""

    class Ignoring(Repository):
        __isolated_tasks_ignore__ = ("session",)

    async with TaskScope(Session, name="c18") as scope, Session() as session:
        await scope.spawn(Ignoring(session).write_in, "a")

        assert not session.in_transaction()
    assert await names_in_table(engine) == ["a"]


@pytest.mark.parametrize("wrap", [lambda repository: repository, Service])
async def test_repositories_without_a_session_are_gathered(engine, Session, wrap):
    """The session comes with each call: no connection is shared, with an idle one in the pool or without."""
    async with TaskScope(Session, name="c18") as scope, engine.connect():
        feed_in = wrap(Repository(None)).feed_in
        results = await asyncio.gather(*[scope.spawn(feed_in, name) for name in ("a", "b", "c")])

    assert results == [0, 0, 0]


async def test_a_repository_with_a_factory_is_gathered(engine, Session, names_in_table):
    """What the container injects is the factory, and the signature of the calls is what it was."""

    class Factory:
        def __init__(self, Session):
            self.Session = Session

        write = isolated_session(attribute="Session")(Repository.write_in)

    repository = Factory(Session)
    for name in ("a", "b"):
        await repository.write(name)
    async with TaskScope(Session, name="c18") as scope:
        scope.spawn(repository.write, "c")

    assert await names_in_table(engine) == ["a", "b", "c"]
