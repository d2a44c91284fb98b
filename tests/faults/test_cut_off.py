"""The network cuts a unit off: a reset, or the end of one direction, in a statement and during the commit."""

from __future__ import annotations

import pytest
from faulty import INSERT, add, who_am_i
from proxy import Link, Moment
from sqlalchemy.exc import DBAPIError

from sa_isolated_tasks import Outcome, TaskState


def _name(value):
    return getattr(value, "name", None) or value.__name__


# What the client hears of; when only the server does, its answers still come through, and that is another test.
FAULTS = pytest.mark.parametrize("fault", [Link.reset, Link.close_to_client], ids=_name)
MOMENTS_AND_FAULTS = pytest.mark.parametrize(
    ("moment", "fault"),
    [
        (Moment.REQUEST, Link.reset),
        (Moment.REQUEST, Link.close_to_server),
        (Moment.REQUEST, Link.close_to_client),
        (Moment.ANSWER, Link.reset),
        (Moment.ANSWER, Link.close_to_client),
    ],
    ids=_name,
)


@MOMENTS_AND_FAULTS
async def test_a_unit_that_is_cut_off_in_a_statement(proxied, moment, fault):
    """Its row is on the way there, or the answer on the way back: it is not there, and the unit fails."""

    async def body(session):
        await who_am_i(session)
        proxied.proxy.trap(INSERT, moment, fault)
        await add(session, "unit")

    async with proxied.scope() as scope:
        handle = scope.spawn(body)
        diagnosis = await proxied.diagnosis(handle)
        well = await proxied.is_well(scope)

    assert ((TaskState.FAILED, Outcome.ROLLED_BACK, []), True) == (diagnosis, well)
    assert isinstance(handle.exception(), DBAPIError)


@FAULTS
async def test_a_unit_that_is_cut_off_between_two_statements(proxied, fault):
    """The next statement fails, and what was written is not there."""

    async def body(session):
        await add(session, "unit")
        fault(*proxied.proxy.links)
        await who_am_i(session)

    async with proxied.scope() as scope:
        handle = scope.spawn(body)
        diagnosis = await proxied.diagnosis(handle)
        well = await proxied.is_well(scope)

    assert ((TaskState.FAILED, Outcome.ROLLED_BACK, []), True) == (diagnosis, well)


@FAULTS
@pytest.mark.parametrize("whose", ["the unit", "the body"])
async def test_a_unit_that_is_cut_off_when_the_server_has_committed(proxied, fault, whose):
    """The rows are there, and the client never hears of it: UNKNOWN, never ROLLED_BACK."""

    async def body(session):
        await add(session, "unit")
        proxied.proxy.trap(proxied.COMMIT, Moment.ANSWER, fault)
        if whose == "the body":
            await session.commit()

    async with proxied.scope() as scope:
        handle = scope.spawn(body)
        diagnosis = await proxied.diagnosis(handle)
        well = await proxied.is_well(scope)

    assert ((TaskState.FAILED, Outcome.UNKNOWN, ["unit"]), True) == (diagnosis, well)
    assert isinstance(handle.exception(), DBAPIError)


async def test_a_unit_whose_committed_answer_still_comes_through(proxied):
    """The server's end of the connection dies behind its answer: the unit is committed, and says so."""

    async def body(session):
        await add(session, "unit")
        proxied.proxy.trap(proxied.COMMIT, Moment.ANSWER, Link.close_to_server)

    async with proxied.scope() as scope:
        diagnosis = await proxied.diagnosis(scope.spawn(body))

    assert (TaskState.SUCCEEDED, Outcome.COMMITTED, ["unit"]) == diagnosis


@pytest.mark.parametrize("fault", [Link.reset, Link.close_to_server], ids=_name)
@pytest.mark.parametrize("whose", ["the unit", "the body"])
async def test_a_unit_that_is_cut_off_before_the_server_has_its_commit(proxied, fault, whose):
    """The rows are not there, but whoever has sent COMMIT cannot know."""

    async def body(session):
        await add(session, "unit")
        proxied.proxy.trap(proxied.COMMIT, Moment.REQUEST, fault)
        if whose == "the body":
            await session.commit()

    async with proxied.scope() as scope:
        handle = scope.spawn(body)
        diagnosis = await proxied.diagnosis(handle)
        well = await proxied.is_well(scope)

    assert ((TaskState.FAILED, Outcome.UNKNOWN, []), True) == (diagnosis, well)


@FAULTS
async def test_a_body_that_hides_that_its_commit_was_cut_off(proxied, fault):
    """It catches the error of its own commit and returns: the outcome stays UNKNOWN."""

    async def body(session):
        await add(session, "unit")
        proxied.proxy.trap(proxied.COMMIT, Moment.ANSWER, fault)
        with pytest.raises(DBAPIError):
            await session.commit()

    async with proxied.scope() as scope:
        handle = scope.spawn(body)
        _, outcome, rows = await proxied.diagnosis(handle)
        well = await proxied.is_well(scope)

    assert (Outcome.UNKNOWN, ["unit"], True) == (outcome, rows, well)


@FAULTS
async def test_every_unit_at_once_is_cut_off(proxied, fault):
    """Each of them ends in a true state, and the pool has new connections for the next ones."""
    trap = proxied.proxy.trap(INSERT, Moment.ANSWER, lambda _: [fault(link) for link in proxied.proxy.links])

    async with proxied.scope(limit=5) as scope:
        handles = [scope.options(name=f"unit {number}").spawn(add, f"unit {number}") for number in range(20)]
        await scope.drain()
        rows = await proxied.watcher.rows()
        well = await proxied.is_well(scope)

    committed = sorted(handle.name.partition("#")[0] for handle in handles if handle.outcome is Outcome.COMMITTED)
    unknown = sum(handle.outcome is Outcome.UNKNOWN for handle in handles)
    assert trap.sprung.is_set()
    assert set(committed) <= set(rows)
    assert len(rows) <= len(committed) + unknown
    assert well
