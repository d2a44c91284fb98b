"""
``gather(db.get(A, 1), db.get(B, 2))`` and ``gather(*[db.refresh(x) for x in xs])`` over one session.

https://github.com/fractal-analytics-platform/fractal-server/issues/1000. What took turns in silence with 1.4 fails with
2.0; methods of a session, and coroutines of them, must be refused, and units that read the same rows at once must work.
"""

from __future__ import annotations

import asyncio

import pytest
import sqlalchemy as sa
from support import Item, assert_it_went_wrong, gather_over_one_session, reset, session_maker

from sa_isolated_tasks import (
    DeclarationError,
    InstancePassedError,
    SessionPassedError,
    TaskScope,
    isolated_session,
)


async def add_items(Session):
    """Gives two rows, as detached instances that are loaded."""
    items = [Item(id=number, name=f"item {number}") for number in (1, 2)]
    async with Session() as session:
        session.add_all(items)
        await session.flush()
        for item in items:
            await session.refresh(item)
        await session.commit()
    async with Session() as session:
        return [await session.get(Item, number) for number in (1, 2)]


async def refresh(session, item):
    session.add(item)
    await session.refresh(item)
    return item.name


async def get_name(session, number):
    return (await session.get(Item, number)).name


async def wait_for_all(session, coroutines):
    return await asyncio.gather(*coroutines)


@pytest.mark.parametrize(
    "call",
    [lambda session, item: session.get(Item, item.id), refresh],
    ids=["get", "refresh"],
)
async def test_control_two_reads_find_one_session_connecting(postgresql, make_engine, call):
    """Plain SQLAlchemy: the second read fails while the first one's connection is being made (2.0; 1.4 takes two)."""
    engine = make_engine(postgresql)
    await reset(engine)
    Session = session_maker(engine)
    first, second = await add_items(Session)

    seen = await gather_over_one_session(
        engine, Session, lambda session: call(session, first), lambda session: call(session, second)
    )

    assert_it_went_wrong(seen)


async def test_control_with_an_idle_connection_they_take_turns(Session):
    """Plain SQLAlchemy: whoever tests with a warm session sees nothing of it."""
    await add_items(Session)

    async with Session() as session:
        await session.connection()
        items = await asyncio.gather(session.get(Item, 1), session.get(Item, 2))

        assert [item.name for item in items] == ["item 1", "item 2"]


async def test_control_two_writes_find_one_session_flushing(Session):
    """Plain SQLAlchemy: for writes it fails on every version, with a connection or without."""
    async with Session() as session:
        await session.connection()
        session.add(Item(name="a"))
        _, second = await asyncio.gather(session.flush(), session.flush(), return_exceptions=True)

    assert isinstance(second, sa.exc.InvalidRequestError)
    assert str(second) == "Session is already flushing"


@pytest.mark.parametrize("method", ["get", "refresh", "merge", "execute", "delete"])
async def test_a_method_of_a_session_is_refused(LiteSession, method):
    """A bound method of the session is the session, in the place of the function."""
    async with TaskScope(LiteSession, name="c17") as scope, LiteSession() as session:
        with pytest.raises(SessionPassedError, match=rf"AsyncSession\.{method} -> self\n"):
            scope.spawn(getattr(session, method), Item, 1)

        assert not session.in_transaction()


@pytest.mark.parametrize("method", ["get", "refresh", "flush", "commit", "rollback", "close"])
async def test_a_method_of_a_session_in_an_argument_is_refused(LiteSession, method):
    """The same in a list of things to call, also for methods that take nothing."""
    async with TaskScope(LiteSession, name="c17") as scope, LiteSession() as session:
        with pytest.raises(SessionPassedError, match=r"arg 1 -> \[0\] self\n"):
            scope.spawn(wait_for_all, [getattr(session, method)])

        assert not session.in_transaction()


async def test_gathered_coroutines_of_a_session_are_refused(LiteSession):
    """As a list, which is what the comprehension makes, and one in the place of the function."""
    async with TaskScope(LiteSession, name="c17") as scope, LiteSession() as session:
        coroutines = [session.get(Item, number) for number in (1, 2)]
        with pytest.raises(SessionPassedError, match=r"arg 1 -> \[0\] un-started coroutine get\(\)"):
            scope.spawn(wait_for_all, coroutines)
        with pytest.raises(DeclarationError, match="a coroutine object was given"):
            scope.spawn(coroutines[0])
        for coroutine in coroutines:
            coroutine.close()


async def test_an_instance_that_is_attached_is_refused(Session):
    """A unit cannot refresh what belongs to the session of its spawner."""
    await add_items(Session)
    isolated = isolated_session(Session)(refresh)

    async with TaskScope(Session, name="c17") as scope, Session() as session:
        item = await session.get(Item, 1)
        with pytest.raises(InstancePassedError, match="arg 1"):
            scope.spawn(refresh, item)
        with pytest.raises(InstancePassedError, match="arg 1"):
            isolated(item)


async def test_units_get_at_once(engine, Session):
    """The cure of the report without its price: each has its own session, with an idle connection or without."""
    await add_items(Session)
    isolated = isolated_session(Session)(get_name)

    async with TaskScope(Session, name="c17", limit=None) as scope, engine.connect():
        spawned = await asyncio.gather(*[scope.spawn(get_name, number) for number in (1, 2, 1)])
        called = await asyncio.gather(*[isolated(number) for number in (1, 2, 1)])

    assert spawned == called == ["item 1", "item 2", "item 1"]


async def test_units_refresh_detached_instances_at_once(engine, Session):
    """Detached and loaded instances may be passed; each unit adds its own to its session, and gets the new values."""
    items = await add_items(Session)
    async with Session() as session, session.begin():
        await session.execute(sa.update(Item).values(amount=Item.id))
    isolated = isolated_session(session_maker(engine, expire_on_commit=False))(refresh)

    async with engine.connect():
        names = await asyncio.gather(*[isolated(item) for item in items])

    assert names == ["item 1", "item 2"]
    assert [item.amount for item in items] == [1, 2]


async def test_units_flush_at_once(engine, Session, names_in_table):
    """Writes as well: each unit flushes its own session."""

    async def write(session, name):
        session.add(Item(name=name))
        await session.flush()

    async with TaskScope(Session, name="c17", limit=3) as scope:
        await asyncio.gather(*[scope.spawn(write, name) for name in "abc"])

    assert await names_in_table(engine) == ["a", "b", "c"]
