"""
A task holds one session and opens another; when the pool is empty its error handler asks for a third.

https://github.com/xorbitsai/xagent/issues/935. The bound must leave the application a connection, a unit that waits for
another of its scope must not wait for itself, and a failed unit's connection must be back before its error is handled.
"""

from __future__ import annotations

import asyncio

import pytest
import sqlalchemy as sa
from support import Gate, Item, reset, session_maker

from sa_isolated_tasks import Outcome, TaskScope, isolated_session


@pytest.fixture
async def one_connection(database, make_engine):
    """An engine on each database in turn, whose pool has one connection, and gives up at once."""
    engine = make_engine(database, pool_size=1, max_overflow=0, pool_timeout=0.01)
    await reset(engine)
    return engine


async def execute(session):
    await session.execute(sa.text("select 1"))


async def mark_failed(session):
    session.add(Item(name="failed"))


async def execute_and_fail(session):
    session.add(Item(name="undone"))
    await session.flush()
    raise ZeroDivisionError


async def test_control_the_error_handler_waits_for_what_it_holds(one_connection):
    """Plain SQLAlchemy: the second checkout times out, and the third in its handler once more; nothing is marked."""
    Session = session_maker(one_connection)
    timeouts = []

    async with Session() as first:
        await execute(first)
        for attempt in (execute, mark_failed):
            try:
                async with Session() as another, another.begin():
                    await attempt(another)
            except sa.exc.TimeoutError as error:
                timeouts.append(str(error))

    assert [text[:39] for text in timeouts] == ["QueuePool limit of size 1 overflow 0 re"] * 2


async def test_the_handler_of_a_failed_call_has_its_connection(one_connection, names_in_table):
    """When the error of an isolated function is raised its session is closed: one connection is enough for both."""
    isolated = isolated_session(session_maker(one_connection))

    with pytest.raises(ZeroDivisionError):
        await isolated(execute_and_fail)()
    await isolated(mark_failed)()

    assert await names_in_table(one_connection) == ["failed"]


async def test_the_handler_of_a_failed_unit_has_its_connection(one_connection, names_in_table):
    """The same for who awaits a handle, also where the awaiting code is a unit of the same scope."""

    async def supervise(session):
        with pytest.raises(ZeroDivisionError):
            await scope.spawn(execute_and_fail)
        held = one_connection.pool.checkedout()
        await scope.spawn(mark_failed)
        return held

    async with TaskScope(session_maker(one_connection), name="c29", limit=1) as scope:
        handle = scope.spawn(supervise)

    assert (handle.result(), handle.outcome) == (0, Outcome.NONE)
    assert await names_in_table(one_connection) == ["failed"]


async def test_a_done_callback_of_a_failed_unit_has_its_connection(one_connection):
    """A callback is called when the connection is in the pool, not before."""
    held = asyncio.get_running_loop().create_future()

    async with TaskScope(session_maker(one_connection), name="c29") as scope:
        handle = scope.spawn(execute_and_fail)
        handle.add_done_callback(lambda _: held.set_result(one_connection.pool.checkedout()))

    assert await held == 0


async def test_nested_units_do_not_wait_for_themselves(one_connection):
    """However deep, under a limit of one and with one connection: each lends its slot, and holds no connection."""

    async def nest(session, depth):
        return depth if depth == 0 else 1 + await scope.spawn(nest, depth - 1)

    async with TaskScope(session_maker(one_connection), name="c29", limit=1) as scope:
        handle = scope.spawn(nest, 5)

    assert handle.result() == 5


async def test_a_unit_that_commits_first_may_wait_for_another(one_connection):
    """Ending the transaction gives the connection back; then the unit waits for the other, and goes on after it."""

    async def work(session):
        for _ in range(2):
            await execute(session)
            await session.commit()
            await scope.spawn(execute)

    async with TaskScope(session_maker(one_connection), name="c29") as scope:
        handle = scope.spawn(work)

    assert handle.exception() is None
    assert one_connection.pool.checkedout() == 0


async def test_a_unit_in_a_transaction_that_waits_for_another_gets_the_pools_error(one_connection):
    """What the package cannot cure it does not hide: the unit fails by the timeout, and its connection goes back."""

    async def work(session):
        await execute(session)
        await scope.spawn(execute)

    async with TaskScope(session_maker(one_connection), name="c29") as scope:
        handle = scope.spawn(work)

    assert isinstance(handle.exception(), sa.exc.TimeoutError)
    assert (handle.outcome, one_connection.pool.checkedout()) == (Outcome.ROLLED_BACK, 0)


@pytest.mark.parametrize("size", [2, 4])
async def test_the_application_has_a_connection_while_units_hold_theirs(postgresql, make_engine, size):
    """With more units than connections the pool is never empty: nobody has to wait for it."""
    engine = make_engine(postgresql, pool_size=size, max_overflow=0, pool_timeout=0.01)
    await reset(engine)
    Session = session_maker(engine)
    gate, held = Gate(), []

    async def work(session):
        await execute(session)
        await gate.enter()

    async with TaskScope(Session, name="c29") as scope:
        handles = [scope.spawn(work) for _ in range(2 * size)]
        await gate.arrivals(size - 1)
        held.append(engine.pool.checkedout())
        async with Session() as session:
            await execute(session)
        gate.open()

    assert held == [size - 1]
    assert [handle.exception() for handle in handles] == [None] * (2 * size)
