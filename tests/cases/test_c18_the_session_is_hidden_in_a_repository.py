"""
Repositories that share the request's session are gathered; no call shows a session.

https://github.com/reagento/dishka/issues/149. The session must be found behind bound methods and services, and the
error must name the path to it; a repository that is made inside the unit, or that has a factory, works.
"""

from __future__ import annotations

import asyncio
import functools
from dataclasses import dataclass

import pytest
import sqlalchemy as sa
from support import Item, assert_it_went_wrong, gather_over_one_session

from sa_isolated_tasks import SessionPassedError, TaskScope, isolated_session

ORGANISATIONS = ("north", "south")


class Repository:
    def __init__(self, session):
        self.session = session

    async def feed(self, organisation):
        rows = await self.session.execute(sa.select(Item.name).where(Item.name == organisation))
        return list(rows.scalars())


class Slotted:
    __slots__ = ("session",)

    def __init__(self, session):
        self.session = session

    async def feed(self, organisation):
        return organisation


@dataclass
class Service:
    repository: Repository

    async def feed(self, organisation):
        return await self.repository.feed(organisation)


async def add_rows(Session):
    async with Session() as session, session.begin():
        session.add_all([Item(name=name) for name in ORGANISATIONS])


async def test_control_two_repositories_with_one_session(engine, Session):
    """Plain SQLAlchemy: a repository each is not a session each."""
    seen = await gather_over_one_session(
        engine,
        Session,
        lambda session: Repository(session).feed("north"),
        lambda session: Repository(session).feed("south"),
    )

    assert_it_went_wrong(seen)


@pytest.mark.parametrize(
    ("make", "path"),
    [
        (Repository, "Repository.feed -> self.session"),
        (Slotted, "Slotted.feed -> self.session"),
        (lambda session: Service(Repository(session)), "Service.feed -> self.repository.session"),
    ],
    ids=["attribute", "slot", "service"],
)
async def test_a_bound_method_is_refused_with_the_path(LiteSession, make, path):
    """The object of the method is looked into, and the error says where its session is."""
    async with TaskScope(LiteSession, name="c18") as scope, LiteSession() as session:
        with pytest.raises(SessionPassedError) as refused:
            scope.spawn(make(session).feed, "north")

    assert path == refused.value.what.rpartition(": ")[2]


@pytest.mark.parametrize(
    "wrap",
    [
        pytest.param(lambda repository: repository, id="itself"),
        pytest.param(lambda repository: repository.feed, id="bound method"),
        pytest.param(lambda repository: functools.partial(repository.feed, "north"), id="partial"),
        pytest.param(lambda repository: lambda: repository.feed("north"), id="closure"),
        pytest.param(lambda repository: {"feeds": [repository]}, id="containers"),
    ],
)
async def test_a_repository_as_an_argument_is_refused(LiteSession, wrap):
    """It does not matter how the repository gets to the unit."""

    async def collect(session, feed):
        return feed

    async with LiteSession() as session:
        with pytest.raises(SessionPassedError, match=r"arg 1 -> .*\.session\n"):
            isolated_session(LiteSession)(collect)(wrap(Repository(session)))


async def test_calls_of_a_repository_that_wait_to_be_awaited_are_refused(LiteSession):
    """The shape of the report, given to one unit: coroutines that hold a repository that holds a session."""

    async def collect(session, feeds):
        return await asyncio.gather(*feeds)

    async with TaskScope(LiteSession, name="c18") as scope, LiteSession() as session:
        repository = Repository(session)
        feeds = [repository.feed(organisation) for organisation in ORGANISATIONS]
        with pytest.raises(SessionPassedError, match=r"un-started coroutine feed\(\) variable 'self'\.session"):
            scope.spawn(collect, feeds)
        for feed in feeds:
            feed.close()


async def test_a_repository_that_is_made_in_the_unit(engine, Session):
    """The cure: each unit makes its repository with the session that it was given."""
    await add_rows(Session)

    @isolated_session(Session)
    async def feed(session, organisation):
        return await Repository(session).feed(organisation)

    async with engine.connect():
        feeds = await asyncio.gather(*(feed(organisation) for organisation in ORGANISATIONS))

    assert [["north"], ["south"]] == feeds


async def test_a_repository_that_has_a_factory(engine, Session):
    """The other cure: the repository keeps a factory, and its methods are given a session for every call."""

    class Feeds:
        def __init__(self, Session):
            self.Session = Session

        @isolated_session(attribute="Session")
        async def feed(self, session, organisation):
            return await Repository(session).feed(organisation)

    await add_rows(Session)
    repository = Feeds(Session)

    async with TaskScope(Session, name="c18") as scope:
        called = await asyncio.gather(*(repository.feed(organisation) for organisation in ORGANISATIONS))
        spawned = await asyncio.gather(*(scope.spawn(repository.feed, organisation) for organisation in ORGANISATIONS))

    assert [["north"], ["south"]] == called == spawned


async def test_a_session_for_other_purposes_can_be_declared(LiteSession):
    """A class may say that an attribute is its own affair: it is not looked at, and other attributes still are."""

    class Page:
        __isolated_tasks_ignore__ = ("ui_session",)

        def __init__(self, **attributes):
            vars(self).update(attributes)

    async def show(session, page):
        return "shown"

    isolated = isolated_session(LiteSession)(show)
    async with LiteSession() as ui_session:
        shown = await isolated(Page(ui_session=ui_session))
        with pytest.raises(SessionPassedError, match=r"arg 1 -> \.session"):
            isolated(Page(ui_session=ui_session, session=ui_session))

    assert "shown" == shown
