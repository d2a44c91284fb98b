"""
``gather(db.get(A), db.get(B))`` and ``gather(*[db.refresh(x) for x in xs])``: it worked in 1.4, and 2.0 raises.

https://github.com/fractal-analytics-platform/fractal-server/issues/1000. Whatever hands a session's methods, coroutines
or instances to units must be refused; gathered over an isolated function, by key, the same must work.
"""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy.exc import InvalidRequestError
from support import Item, assert_it_went_wrong, gather_over_one_session

from sa_isolated_tasks import InstancePassedError, SessionPassedError, TaskScope, isolated_session


async def add_rows(Session):
    async with Session() as session, session.begin():
        session.add_all([Item(id=1, name="project"), Item(id=2, name="link")])


async def name_of(session, key):
    return (await session.get(Item, key)).name


async def test_control_two_gets_over_one_session(engine, Session):
    """Plain SQLAlchemy: whoever comes second finds the session connecting."""
    await add_rows(Session)

    seen = await gather_over_one_session(
        engine, Session, lambda session: session.get(Item, 1), lambda session: session.get(Item, 2)
    )

    assert_it_went_wrong(seen)


async def test_control_two_refreshes_over_one_session(engine, Session):
    """Plain SQLAlchemy: loading again is no different from loading."""
    await add_rows(Session)
    async with Session() as session:
        items = [await session.get(Item, key) for key in (1, 2)]

    async def refresh(session, item):
        session.add(item)
        await session.refresh(item)

    seen = await gather_over_one_session(
        engine, Session, lambda session: refresh(session, items[0]), lambda session: refresh(session, items[1])
    )

    assert_it_went_wrong(seen)


async def test_control_two_flushes_over_one_session(engine, Session):
    """Plain SQLAlchemy: writes fail on every version, with an idle connection too."""
    async with Session() as session:
        session.add(Item(name="a"))
        results = await asyncio.gather(session.flush(), session.flush(), return_exceptions=True)

    assert [type(None), InvalidRequestError] == list(map(type, results))
    assert "Session is already flushing" == str(results[1])


async def test_gather_by_key(engine, Session):
    """Each call loads in a session of its own, and no connection need be idle for it."""
    await add_rows(Session)
    isolated = isolated_session(Session)(name_of)

    async with engine.connect():
        names = await asyncio.gather(*(isolated(key) for key in (1, 2)))

    assert ["project", "link"] == names


async def test_writes_are_gathered_too(engine, Session, names_in_table):
    """Two units flush at once, each its own row."""

    async def add(session, name):
        session.add(Item(name=name))
        await session.flush()

    async with TaskScope(Session, name="c17") as scope:
        await asyncio.gather(*(scope.spawn(add, name) for name in "ab"))

    assert ["a", "b"] == await names_in_table(engine)


async def test_a_method_of_a_session_is_refused(LiteSession):
    """``db.get`` is an ``async def`` without a session parameter, and carries its session with it."""
    async with TaskScope(LiteSession, name="c17") as scope, LiteSession() as db:
        for method in (db.get, db.refresh, db.execute):
            with pytest.raises(SessionPassedError):
                scope.spawn(method, Item)


@pytest.mark.parametrize(
    "wrap",
    [
        pytest.param(lambda calls: calls, id="list"),
        pytest.param(tuple, id="tuple"),
        pytest.param(iter, id="iterator"),
        pytest.param(lambda calls: dict(enumerate(calls)), id="dict"),
    ],
)
async def test_calls_of_a_session_that_wait_to_be_awaited_are_refused(LiteSession, wrap):
    """A comprehension of coroutines is a list of sessions, in any kind of container."""

    async def gather(session, calls):
        return await asyncio.gather(*calls)

    async with LiteSession() as db:
        calls = [db.get(Item, key) for key in (1, 2)]
        with pytest.raises(SessionPassedError, match=r"un-started coroutine get\(\) variable 'self'"):
            isolated_session(LiteSession)(gather)(wrap(calls))
        for call in calls:
            call.close()


async def test_a_generator_of_calls_is_refused(LiteSession):
    """Before its first step a generator expression has caught the session, and made nothing yet."""

    async def gather(session, calls):
        return await asyncio.gather(*calls)

    async with LiteSession() as db:
        with pytest.raises(SessionPassedError, match="un-started generator"):
            isolated_session(LiteSession)(gather)(db.get(Item, key) for key in (1, 2))


async def test_instances_to_refresh_are_refused(LiteSession):
    """They belong to the session that loaded them; another one cannot refresh them."""
    await add_rows(LiteSession)

    async def refresh(session, item):
        await session.refresh(item)

    async with TaskScope(LiteSession, name="c17") as scope, LiteSession() as db:
        items = [await db.get(Item, key) for key in (1, 2)]
        for item in items:
            with pytest.raises(InstancePassedError) as refused:
                scope.spawn(refresh, item)
            assert refused.value.cure.startswith("scope.spawn(refresh, item.id)")
