"""The server ends the connection of a unit: before, in and between its statements, and during its commit."""

from __future__ import annotations

import asyncio

import pytest
import sqlalchemy as sa
from faulty import Ward, add, wait_for_lock, who_am_i
from proxy import Link, Moment
from sqlalchemy.exc import DBAPIError

from sa_isolated_tasks import Outcome, TaskState, UnitCancelledError


async def warm_up(ward, scope):
    """Leaves one idle connection in the pool; gives its number."""

    async def look(session):
        return await who_am_i(session)

    return await scope.spawn(look)


async def test_a_connection_that_died_in_the_pool(ward):
    """The unit that gets it fails at its first statement, and the next ones get new connections."""
    async with ward.scope() as scope:
        await ward.watcher.terminate(await warm_up(ward, scope))
        handle = scope.spawn(add, "unit")
        diagnosis = await ward.diagnosis(handle)
        well = await ward.is_well(scope)

    assert ((TaskState.FAILED, Outcome.ROLLED_BACK, []), True) == (diagnosis, well)
    assert isinstance(handle.exception(), DBAPIError)


async def test_a_connection_that_died_in_the_pool_is_replaced_by_a_pre_ping(postgresql, postgresql_ward, make_engine):
    """With ``pool_pre_ping`` the unit does not notice."""
    ward = Ward(make_engine(postgresql, pool_pre_ping=True), postgresql_ward.watcher)
    async with ward.scope() as scope:
        await ward.watcher.terminate(await warm_up(ward, scope))
        diagnosis = await ward.diagnosis(scope.spawn(add, "unit"))

    assert (TaskState.SUCCEEDED, Outcome.COMMITTED, ["unit"]) == diagnosis


@pytest.mark.parametrize("statement", [False, True], ids=["before the first", "between two"])
async def test_a_connection_that_dies_while_no_statement_runs(ward, statement):
    """Before its first row is written, or after it: the next statement fails, and nothing is written."""

    async def body(session):
        if statement:
            await add(session, "first")
        await ward.watcher.terminate(await who_am_i(session))
        await add(session, "unit")

    async with ward.scope() as scope:
        handle = scope.spawn(body)
        diagnosis = await ward.diagnosis(handle)
        well = await ward.is_well(scope)

    assert ((TaskState.FAILED, Outcome.ROLLED_BACK, []), True) == (diagnosis, well)
    assert isinstance(handle.exception(), DBAPIError)


async def test_a_connection_that_dies_in_a_statement(ward):
    """The statement fails, and with it the unit; what it had written is not there."""
    reached = asyncio.get_running_loop().create_future()

    async def body(session):
        await add(session, "unit")
        reached.set_result(await who_am_i(session))
        await wait_for_lock(session)

    async with ward.watcher.lock(), ward.scope() as scope:
        handle = scope.spawn(body)
        await ward.watcher.until_it_waits(await reached)
        await ward.watcher.terminate(await reached)
        diagnosis = await ward.diagnosis(handle)
        well = await ward.is_well(scope)

    assert ((TaskState.FAILED, Outcome.ROLLED_BACK, []), True) == (diagnosis, well)
    assert isinstance(handle.exception(), DBAPIError)


@pytest.mark.parametrize("first", ["terminate", "cancel"])
async def test_a_connection_that_dies_in_a_statement_of_a_unit_that_is_cancelled(ward, first):
    """In both orders the unit ends as cancelled and rolled back."""
    reached = asyncio.get_running_loop().create_future()

    async def body(session):
        await add(session, "unit")
        reached.set_result(await who_am_i(session))
        await wait_for_lock(session)

    async with ward.watcher.lock(), ward.scope() as scope:
        handle = scope.spawn(body)
        await ward.watcher.until_it_waits(await reached)
        if first == "cancel":
            handle.cancel("by the test")
            await ward.watcher.terminate(await reached)
        else:
            terminating = asyncio.create_task(ward.watcher.terminate(await reached))
            await ward.watcher.rows()
            handle.cancel("by the test")
            await terminating
        diagnosis = await ward.diagnosis(handle)
        well = await ward.is_well(scope)

    assert (Outcome.ROLLED_BACK, [], True) == (*diagnosis[1:], well)
    assert isinstance(handle.exception(), UnitCancelledError if first == "cancel" else (UnitCancelledError, DBAPIError))


async def test_a_connection_that_dies_after_the_last_statement(ward):
    """The body has returned, and COMMIT is what finds out: nothing is written, and nobody says that it is."""

    async def body(session):
        await add(session, "unit")
        await ward.watcher.terminate(await who_am_i(session))

    async with ward.scope() as scope:
        handle = scope.spawn(body)
        state, outcome, rows = await ward.diagnosis(handle)
        well = await ward.is_well(scope)

    assert (TaskState.FAILED, [], True) == (state, rows, well)
    assert outcome in {Outcome.ROLLED_BACK, Outcome.UNKNOWN}
    assert isinstance(handle.exception(), DBAPIError)


async def test_a_body_that_survives_the_death_of_its_connection(ward):
    """It catches the error, rolls back and goes on with a new connection: that transaction is what counts."""

    async def body(session):
        await add(session, "first")
        await ward.watcher.terminate(await who_am_i(session))
        with pytest.raises(DBAPIError):
            await session.execute(sa.text("select 1"))
        await session.rollback()
        await add(session, "unit")

    async with ward.scope() as scope:
        diagnosis = await ward.diagnosis(scope.spawn(body))
        well = await ward.is_well(scope)

    assert ((TaskState.SUCCEEDED, Outcome.COMMITTED, ["unit"]), True) == (diagnosis, well)


async def test_a_body_that_hides_the_death_of_its_connection(ward):
    """It catches the error and returns: what it wrote is lost, so the unit must not say that it is committed."""

    async def body(session):
        await add(session, "unit")
        await ward.watcher.terminate(await who_am_i(session))
        with pytest.raises(DBAPIError):
            await session.execute(sa.text("select 1"))

    async with ward.scope() as scope:
        handle = scope.spawn(body)
        diagnosis = await ward.diagnosis(handle)
        well = await ward.is_well(scope)

    assert ((TaskState.FAILED, Outcome.ROLLED_BACK, []), True) == (diagnosis, well)


DEFERRED = (
    """
    create or replace function wait_for_the_test() returns trigger language plpgsql as
    $$ begin perform pg_advisory_xact_lock(4711); return null; end $$
    """,
    """
    create constraint trigger wait_for_the_test after insert on items deferrable initially deferred
    for each row when (new.name = 'unit') execute function wait_for_the_test()
    """,
)


@pytest.mark.parametrize("whose", ["the unit", "the body"])
async def test_a_connection_that_dies_in_the_middle_of_a_commit(postgresql_ward, whose):
    """A deferred trigger waits inside COMMIT when the server ends the connection: the outcome is UNKNOWN."""
    ward = postgresql_ward
    reached = asyncio.get_running_loop().create_future()
    await ward.watcher.run(*DEFERRED)

    async def body(session):
        await add(session, "unit")
        reached.set_result(await who_am_i(session))
        if whose == "the body":
            await session.commit()

    async with ward.watcher.lock(), ward.scope() as scope:
        handle = scope.spawn(body)
        await ward.watcher.until_it_waits(await reached)
        await ward.watcher.terminate(await reached)
        diagnosis = await ward.diagnosis(handle)
        well = await ward.is_well(scope)

    assert ((TaskState.FAILED, Outcome.UNKNOWN, []), True) == (diagnosis, well)


@pytest.mark.parametrize("first", ["terminate", "cancel"])
async def test_a_connection_that_dies_in_the_middle_of_the_commit_of_a_cancelled_unit(postgresql_ward, first):
    """The commit is awaited, and dies: UNKNOWN in both orders."""
    ward = postgresql_ward
    reached = asyncio.get_running_loop().create_future()
    await ward.watcher.run(*DEFERRED)

    async def body(session):
        await add(session, "unit")
        reached.set_result(await who_am_i(session))

    async with ward.watcher.lock(), ward.scope(cancel_timeout=10) as scope:
        handle = scope.spawn(body)
        await ward.watcher.until_it_waits(await reached)
        terminating = asyncio.create_task(ward.watcher.terminate(await reached))
        if first == "terminate":
            await ward.watcher.rows()
        handle.cancel("by the test")
        await terminating
        _, outcome, rows = await ward.diagnosis(handle)
        well = await ward.is_well(scope)

    assert (Outcome.UNKNOWN, [], True) == (outcome, rows, well)


async def test_a_connection_that_dies_while_its_commit_is_on_the_way(proxied):
    """COMMIT has left the client and not reached the server when the server ends the connection."""
    reached = asyncio.get_running_loop().create_future()
    trap = proxied.proxy.trap(proxied.COMMIT, Moment.REQUEST, Link.stall)

    async def body(session):
        await add(session, "unit")
        reached.set_result(await who_am_i(session))

    async with proxied.scope() as scope:
        handle = scope.spawn(body)
        await trap.sprung.wait()
        await proxied.watcher.terminate(await reached)
        trap.link.resume()
        diagnosis = await proxied.diagnosis(handle)
        well = await proxied.is_well(scope)

    assert ((TaskState.FAILED, Outcome.UNKNOWN, []), True) == (diagnosis, well)
