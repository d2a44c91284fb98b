"""
Three sessions of one block are gathered; one query fails, and the block closes the others while they still connect.

https://github.com/sqlalchemy/sqlalchemy/issues/10092. Each session must be opened and closed inside its own task, and
when one task fails the others must be waited for, or cancelled and waited for, before anything of theirs is closed.
"""

from __future__ import annotations

import asyncio

import pytest
import sqlalchemy as sa
from databases import SQLALCHEMY
from support import Gate, Item, new_connections_held

from sa_isolated_tasks import Outcome, SessionPassedError, TaskScope, TaskState, isolated_session


async def count(session):
    return await session.scalar(sa.select(sa.func.count(Item.id)))


async def fail_after(session, gate, others):
    """Takes the idle connection, and fails when the others have come to the gate."""
    await count(session)
    await gate.arrivals(others)
    raise ZeroDivisionError


async def test_control_the_block_closes_sessions_that_still_connect(engine, Session):
    """Plain SQLAlchemy: the first error ends the block, and ``close()`` meets a session in the middle of connecting."""
    tasks, sessions = [], []
    with new_connections_held(engine) as gate:

        async def gather_three():
            async with Session() as a, Session() as b, Session() as c:
                sessions.extend((a, b, c))
                tasks.extend(map(asyncio.ensure_future, (fail_after(a, gate, 2), count(b), count(c))))
                await asyncio.gather(*tasks)

        (escaped,) = await asyncio.gather(gather_three(), return_exceptions=True)
        gate.open()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    left = engine.pool.checkedout()
    for session in sessions:
        await session.close()

    if SQLALCHEMY < (2, 0):
        # 1.4 has no such check: the sessions are closed under the queries, which fail on the pieces.
        assert (ZeroDivisionError, 0) == (type(escaped), left)
        assert [ZeroDivisionError, AttributeError, AttributeError] == list(map(type, results))
    else:
        assert "Method 'close()' can't be called here; method '_connection_for_bind()' is already" in str(escaped)
        assert [ZeroDivisionError, int, int] == list(map(type, results))
        assert 2 == left


async def test_sessions_of_the_parents_block_are_refused(Session):
    """None of the sessions may be lent, whichever of them it is and whatever it has done by then."""
    async with TaskScope(Session, name="c03") as scope, Session() as fresh, Session() as used:
        await count(used)

        for session in (fresh, used):
            with pytest.raises(SessionPassedError):
                scope.spawn(count, session)

        assert 0 == len(scope)


async def test_one_unit_fails_while_the_others_connect(engine, Session):
    """The failure reaches who awaits it and nobody else: the others connect in peace, and give their results."""
    async with TaskScope(Session, name="c03", limit=3) as scope:
        with new_connections_held(engine) as gate:
            failing, *others = scope.spawn(fail_after, gate, 2), scope.spawn(count), scope.spawn(count)
            with pytest.raises(ZeroDivisionError):
                await failing
            gate.open()
            results = await asyncio.gather(*others)

    assert [0, 0] == results
    assert 0 == engine.pool.checkedout()


async def test_gather_over_isolated_functions_may_give_up_early(engine, Session):
    """Without a scope too: gather raises at once, and leaves the others running in sessions that only they close."""
    isolated = isolated_session(Session)
    with new_connections_held(engine) as gate:
        tasks = [asyncio.create_task(isolated(fail_after)(gate, 2))]
        tasks += [asyncio.create_task(isolated(count)()) for _ in range(2)]
        with pytest.raises(ZeroDivisionError):
            await asyncio.gather(*tasks)
        gate.open()
        results = await asyncio.gather(*tasks[1:])

    assert [0, 0] == results
    assert 0 == engine.pool.checkedout()


async def test_the_first_failure_cancels_the_others_and_waits_for_them(engine, Session):
    """With ``on_failure="cancel"`` the block is left with the failure, after the others have closed their sessions."""
    gate = Gate()

    async def wait_in_transaction(session):
        await count(session)
        await gate.enter()

    handles = []
    with pytest.raises(ExceptionGroup) as raised:
        async with TaskScope(Session, name="c03", limit=3, on_failure="cancel") as scope:
            handles += [scope.spawn(wait_in_transaction), scope.spawn(wait_in_transaction)]
            handles += [scope.spawn(fail_after, gate, 2)]
            await asyncio.get_running_loop().create_future()

    assert [ZeroDivisionError] == list(map(type, raised.value.exceptions))
    assert [TaskState.CANCELLED, TaskState.CANCELLED, TaskState.FAILED] == [handle.state for handle in handles]
    assert [Outcome.ROLLED_BACK] * 3 == [handle.outcome for handle in handles]
    assert 0 == engine.pool.checkedout()
