"""Two-phase commits: a prepared transaction is not committed yet, and its units wait until it is."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import IntegrityError
from support import Item, reset, session_maker

from sa_isolated_tasks import Outcome, TaskDroppedError, TaskScope, TaskState

PREPARED = {"postgresql": "select count(*) from pg_prepared_xacts", "mysql": "xa recover"}


@pytest.fixture
async def engine(server_that_prepares, make_engine):
    engine = make_engine(server_that_prepares)
    await reset(engine)
    return engine


@pytest.fixture
def TwoPhase(engine):
    """Sessions that commit in two phases."""
    return session_maker(engine, twophase=True)


@pytest.fixture
async def scope(Session):
    async with TaskScope(Session, name="t", limit=2, drain_timeout=60) as scope:
        yield scope


@pytest.fixture
def prepared(engine):
    """How many transactions the server has prepared, and neither committed nor rolled back."""

    async def count():
        async with engine.connect() as connection:
            rows = (await connection.execute(sa.text(PREPARED[engine.dialect.name]))).all()
        return rows[0][0] if engine.dialect.name == "postgresql" else len(rows)

    return count


async def look_up(session, name="a"):
    return (await session.execute(sa.select(Item.name).where(Item.name == name))).scalars().all()


async def prepare(session):
    """`AsyncSession` has no method for it."""
    await session.run_sync(lambda sync: sync.prepare())


async def turns():
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_unit_runs_after_the_commit_in_two_phases(scope, TwoPhase):
    """``commit()`` prepares and commits: the unit finds the row."""
    async with TwoPhase() as parent:
        parent.add(Item(name="a"))
        handle = scope.spawn_after_commit(parent, look_up)
        await parent.commit()

    assert ["a"] == await handle


async def test_a_prepared_transaction_is_not_committed_yet(scope, TwoPhase, prepared):
    """After ``prepare()`` the unit still waits; the commit releases it."""
    async with TwoPhase() as parent:
        parent.add(Item(name="a"))
        handle = scope.spawn_after_commit(parent, look_up)
        await prepare(parent)
        await turns()
        before = (await prepared(), handle.state)
        await parent.commit()

    assert ((1, TaskState.WAITING), ["a"], 0) == (before, await handle, await prepared())


@pytest.mark.parametrize("end", ["rollback", "close"])
@pytest.mark.parametrize("is_prepared", [True, False], ids=["prepared", "not prepared"])
async def test_a_rollback_drops(scope, TwoPhase, prepared, names_in_table, engine, is_prepared, end):
    """Before or after ``prepare()``, by ``rollback()`` or by the end of the session: the unit never runs."""
    async with TwoPhase() as parent:
        parent.add(Item(name="a"))
        await parent.flush()
        handle = scope.spawn_after_commit(parent, look_up)
        if is_prepared:
            await prepare(parent)
        if end == "rollback":
            await parent.rollback()

    with pytest.raises(TaskDroppedError, match="ended without a commit"):
        await handle
    assert (0, []) == (await prepared(), await names_in_table(engine))


async def test_a_prepare_that_fails_drops(scope, TwoPhase, prepared):
    """Its flush violates a constraint: there is nothing that could be committed."""
    async with TwoPhase() as parent:
        parent.add_all([Item(name="a"), Item(name="a")])
        handle = scope.spawn_after_commit(parent, look_up)
        with pytest.raises(IntegrityError):
            await prepare(parent)

    assert (TaskState.DROPPED, 0) == (handle.state, await prepared())


async def test_a_savepoint_in_it_drops_only_its_own(scope, TwoPhase):
    """What was registered in a savepoint that was rolled back, before ``prepare()``, is dropped; the rest runs."""
    async with TwoPhase() as parent:
        parent.add(Item(name="a"))
        await parent.flush()
        outside = scope.spawn_after_commit(parent, look_up)
        with contextlib.suppress(ValueError):
            async with parent.begin_nested():
                inside = scope.spawn_after_commit(parent, look_up)
                raise ValueError
        await prepare(parent)
        await parent.commit()

    assert (["a"], TaskState.DROPPED) == (await outside, inside.state)


async def test_registered_between_the_phases(scope, TwoPhase):
    """A transaction that is prepared is in progress: its commit is waited for."""
    async with TwoPhase() as parent:
        parent.add(Item(name="a"))
        await prepare(parent)
        handle = scope.spawn_after_commit(parent, look_up)
        await turns()
        before = handle.state
        await parent.commit()

    assert (TaskState.WAITING, ["a"]) == (before, await handle)


async def test_the_hooks_of_both_phases(scope, TwoPhase, engine):
    """``before_commit``, then prepared, then committed, then the unit; what a hook registers waits with the others."""
    steps, handles = [], []

    async def unit(_session, name):
        steps.append(name)

    def register(name, session):
        steps.append(name)
        handles.append(scope.spawn_after_commit(session, unit, f"unit of {name}"))

    event.listen(engine.sync_engine, "prepare_twophase", lambda *_: steps.append("prepare_twophase"))
    event.listen(engine.sync_engine, "commit_twophase", lambda *_: steps.append("commit_twophase"))
    async with TwoPhase() as parent:
        event.listen(parent.sync_session, "before_commit", lambda session: register("before_commit", session))
        event.listen(parent.sync_session, "after_commit", lambda session: register("after_commit", session))
        parent.add(Item(name="a"))
        await prepare(parent)
        await parent.commit()
    for handle in handles:
        await handle

    assert ["before_commit", "prepare_twophase", "commit_twophase", "after_commit"] == steps[:4]
    assert ["unit of before_commit", "unit of after_commit"] == steps[4:]


@pytest.mark.parametrize("commits", [True, False], ids=["commits", "fails"])
async def test_a_unit_may_commit_in_two_phases(TwoPhase, prepared, names_in_table, engine, commits):
    """A factory of such sessions: the outcome is true, and nothing stays prepared."""

    async def body(session):
        session.add(Item(name="a"))
        await session.flush()
        if not commits:
            raise ValueError

    async with TaskScope(TwoPhase, name="t") as scope:
        handle = scope.spawn(body)

    expected = (Outcome.COMMITTED, 1, ["a"]) if commits else (Outcome.ROLLED_BACK, 0, [])
    assert expected == (handle.outcome, handle.commits, await names_in_table(engine))
    assert 0 == await prepared()


async def test_a_unit_that_is_cancelled_between_the_phases_is_rolled_back(TwoPhase, prepared, names_in_table, engine):
    """It has prepared, and waits for somebody else: COMMIT was not sent, so its cancellation waits for nothing."""

    async def body(session):
        session.add(Item(name="a"))
        await prepare(session)
        reached.set()
        await asyncio.Event().wait()

    reached = asyncio.Event()
    async with TaskScope(TwoPhase, name="t", cancel_timeout=2) as scope:
        handle = scope.spawn(body)
        await reached.wait()
        handle.cancel()

    assert (TaskState.CANCELLED, Outcome.ROLLED_BACK) == (handle.state, handle.outcome)
    assert (0, []) == (await prepared(), await names_in_table(engine))


async def test_a_cancellation_during_the_second_phase_waits_for_it(TwoPhase, prepared, names_in_table, engine):
    """A commit of the body's that has begun is awaited, in two phases too; then the cancellation goes on."""

    async def body(session):
        session.add(Item(name="a"))
        await session.commit()
        await asyncio.sleep(0)

    event.listen(engine.sync_engine, "commit_twophase", lambda *_: handle.cancel())
    async with TaskScope(TwoPhase, name="t") as scope:
        handle = scope.spawn(body)

    assert (TaskState.CANCELLED, Outcome.COMMITTED, 1) == (handle.state, handle.outcome, handle.commits)
    assert (0, ["a"]) == (await prepared(), await names_in_table(engine))
