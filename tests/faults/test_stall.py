"""The network falls silent for ever: in a commit, in a rollback, before there is a connection. The unit ends."""

from __future__ import annotations

import asyncio

import pytest
from faulty import INSERT, add
from proxy import Link, Moment

from sa_isolated_tasks import Outcome, TaskState, UnitCancelledError

CANCEL_TIMEOUT = 0.1
# Of a busy machine; what hangs, hangs for ever.
MARGIN = 1.0

MOMENTS = pytest.mark.parametrize("moment", list(Moment), ids=lambda moment: moment.name)


@pytest.fixture
def patience(server):
    """asyncpg: SQLAlchemy gives a silent connection two seconds to say goodbye, and nothing shortens that."""
    return CANCEL_TIMEOUT + MARGIN + (2.0 if server.name == "asyncpg" else 0)


class Stopwatch:
    """How long something took, in the time of the loop."""

    def __enter__(self):
        self._started = asyncio.get_running_loop().time()
        return self

    def __exit__(self, *_):
        self.seconds = asyncio.get_running_loop().time() - self._started


def stalls(proxied, silent):
    """A link falls silent, or the whole network does: then a driver cannot send a cancel request either."""
    if silent == "network":
        return lambda _: proxied.proxy.partition()
    return Link.stall


SILENT = pytest.mark.parametrize("silent", ["link", "network"])


@SILENT
@MOMENTS
@pytest.mark.parametrize("whose", ["the unit", "the body"])
async def test_a_cancelled_unit_that_waits_in_its_commit(patience, proxied, silent, moment, whose):
    """The commit is awaited for *cancel_timeout*, and no longer; nobody knows what became of it."""

    async def body(session):
        await add(session, "unit")
        traps.append(proxied.proxy.trap(proxied.COMMIT, moment, stalls(proxied, silent)))
        reached.set()
        if whose == "the body":
            await session.commit()

    traps, reached = [], asyncio.Event()
    async with proxied.scope(cancel_timeout=CANCEL_TIMEOUT) as scope:
        handle = scope.spawn(body)
        await reached.wait()
        await traps[0].sprung.wait()
        with Stopwatch() as watch:
            handle.cancel("by the test")
            state, outcome, rows = await proxied.diagnosis(handle)
        proxied.proxy.heal()
        well = await proxied.is_well(scope)

    assert (TaskState.CANCELLED, Outcome.UNKNOWN, True) == (state, outcome, well)
    assert (["unit"] if moment is Moment.ANSWER else []) == rows
    assert watch.seconds < patience


@SILENT
async def test_a_cancelled_unit_whose_rollback_is_not_answered(patience, proxied, silent):
    """It waits for something else when the network falls silent: its rollback has *cancel_timeout*."""

    async def body(session):
        await add(session, "unit")
        stalls(proxied, silent)(*proxied.proxy.links)
        reached.set()
        await asyncio.Event().wait()

    reached = asyncio.Event()
    async with proxied.scope(cancel_timeout=CANCEL_TIMEOUT) as scope:
        handle = scope.spawn(body)
        await reached.wait()
        with Stopwatch() as watch:
            handle.cancel("by the test")
            diagnosis = await proxied.diagnosis(handle)
        proxied.proxy.heal()
        well = await proxied.is_well(scope)

    assert ((TaskState.CANCELLED, Outcome.UNKNOWN, []), True) == (diagnosis, well)
    assert isinstance(handle.exception(), UnitCancelledError)
    assert watch.seconds < patience


async def test_a_cancelled_unit_that_waits_for_a_new_connection(patience, proxied):
    """The network is silent before the unit has a connection at all."""
    proxied.proxy.partition()
    accepted = asyncio.ensure_future(proxied.proxy.next_accepted())

    async with proxied.scope(cancel_timeout=CANCEL_TIMEOUT) as scope:
        handle = scope.spawn(add, "unit")
        await accepted
        # Some turns of the loop: on Python 3.11 a cancellation that meets the end of ``wait_for`` is lost.
        await proxied.watcher.rows()
        with Stopwatch() as watch:
            handle.cancel("by the test")
            diagnosis = await proxied.diagnosis(handle)
        proxied.proxy.heal()
        well = await proxied.is_well(scope)

    assert ((TaskState.CANCELLED, Outcome.NONE, []), True) == (diagnosis, well)
    assert watch.seconds < patience


async def test_a_stall_that_ends_hurts_nobody(patience, proxied):
    """Nobody is impatient: the unit goes on when the network does."""
    trap = proxied.proxy.trap(INSERT, Moment.ANSWER, Link.stall)

    async with proxied.scope() as scope:
        handle = scope.spawn(add, "unit")
        await trap.sprung.wait()
        trap.link.resume()
        diagnosis = await proxied.diagnosis(handle)

    assert (TaskState.SUCCEEDED, Outcome.COMMITTED, ["unit"]) == diagnosis
