"""
Inserts are gathered; one violates a constraint while the others are in the middle of their COMMIT.

https://github.com/sqlalchemy/sqlalchemy/issues/12728. The others are cancelled there, and the process hangs, or nobody
knows what was committed. A commit that has begun is awaited, within *cancel_timeout*, and its outcome is known.
"""

from __future__ import annotations

import asyncio

import pytest
from support import Item, session_maker

from sa_isolated_tasks import Outcome, TaskScope, TaskState


@pytest.fixture
def engine(postgresql_engine):
    return postgresql_engine


async def write(session, name):
    session.add(Item(name=name))


async def test_control_a_commit_that_is_cancelled_leaves_nothing_known(engine, slow_commit):
    """Plain SQLAlchemy: the task was cancelled in its commit, and the server decides whether the row is there."""
    Session = session_maker(engine)

    async def insert():
        async with Session() as session:
            await write(session, "a")
            await session.commit()

    task = asyncio.create_task(insert())
    await slow_commit.reached()
    task.cancel()
    await asyncio.wait([task])
    await slow_commit.release()

    assert task.cancelled()


async def test_commits_that_have_begun_are_awaited(engine, slow_commit, names_in_table):
    """One unit fails and cancels the others, two of which are committing: their rows are there, and known to be."""

    async def fail(_session):
        raise ZeroDivisionError

    async def block():
        async with TaskScope(session_maker(engine), name="c26", on_failure="cancel") as scope:
            handles.extend(scope.spawn(write, name) for name in "ab")
            await slow_commit.reached(2)
            failing = scope.spawn(fail)
            failing.add_done_callback(lambda _: has_failed.set())
            await asyncio.Event().wait()

    handles, has_failed = [], asyncio.Event()
    task = asyncio.create_task(block())
    await has_failed.wait()
    before = [handle.done() for handle in handles]
    await slow_commit.release()
    with pytest.raises(BaseExceptionGroup) as caught:
        await asyncio.wait_for(task, 20)

    assert [False, False] == before
    assert [(TaskState.CANCELLED, Outcome.COMMITTED)] * 2 == [(handle.state, handle.outcome) for handle in handles]
    assert ["a", "b"] == await names_in_table(engine)
    assert [ZeroDivisionError] == [type(error) for error in caught.value.exceptions]


async def test_a_commit_that_does_not_end_is_given_up(engine, slow_commit):
    """Leaving the scope has a deadline: the connections are cut, and the outcome is unknown, as it is."""
    async with TaskScope(session_maker(engine), name="c26", drain_timeout=0, cancel_timeout=0.1) as scope:
        handles = [scope.spawn(write, name) for name in "ab"]
        await slow_commit.reached(2)
    seen = [(handle.state, handle.outcome) for handle in handles]

    assert [(TaskState.CANCELLED, Outcome.UNKNOWN)] * 2 == seen
