"""Units that wait for their parent's commit: what releases them, what drops them, and what a hook may not do."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import sys
import threading
import weakref

import pytest
import sqlalchemy as sa
from databases import SQLALCHEMY
from sqlalchemy import event
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session
from sqlalchemy.orm import Session as SyncSession
from sqlalchemy.orm import scoped_session
from support import Item, make_tasks_eager, session_maker

from sa_isolated_tasks import (
    CommitDeadlockError,
    DeclarationError,
    InstancePassedError,
    NoTransactionError,
    Outcome,
    ScopeClosedError,
    SessionPassedError,
    TaskDroppedError,
    TaskScope,
    TaskState,
    UnitCancelledError,
    isolated_session,
)
from sa_isolated_tasks._after_commit import DeadlockWatch, ParentTransaction, parent_transaction_of


async def look_up(session, name):
    """The row of the parent, if it can be seen."""
    return (await session.execute(sa.select(Item.name).where(Item.name == name))).scalars().all()


async def answer(_session, value=42):
    return value


@pytest.fixture
async def scope(Session):
    """A scope on each database in turn; its units see what the parent has committed."""
    async with TaskScope(Session, name="t", limit=2, drain_timeout=60) as scope:
        yield scope


@pytest.fixture
async def lite_scope(LiteSession):
    async with TaskScope(LiteSession, name="t", limit=2, drain_timeout=60) as scope:
        yield scope


# What releases


async def test_a_unit_starts_after_the_commit_and_sees_the_row(scope, Session):
    """While the parent is in its block the unit waits; after it, it finds the row."""
    async with Session() as parent, parent.begin():
        parent.add(Item(name="a"))
        await parent.flush()
        handle = scope.spawn_after_commit(parent, look_up, "a")
        for _ in range(5):
            await asyncio.sleep(0)
        before = (handle.state, len(scope))
        meanwhile = handle.timing

    assert (TaskState.WAITING, 1) == before
    assert ["a"] == await handle
    assert 0 < meanwhile.waiting == meanwhile.total
    assert 0 == meanwhile.queued
    assert meanwhile.waiting <= handle.timing.waiting < handle.timing.total
    assert 0 < handle.timing.queued <= handle.timing.total - handle.timing.waiting


@pytest.mark.parametrize("begin", ["autobegin", "begin", "block"])
async def test_every_way_to_begin_counts(scope, Session, begin):
    """Autobegun, ``begin()`` and a block: the root transaction's commit releases."""
    async with Session() as parent:
        if begin == "begin":
            await parent.begin()
        async with parent.begin() if begin == "block" else contextlib.nullcontext():
            parent.add(Item(name="a"))
            handle = scope.spawn_after_commit(parent, look_up, "a")
            if begin != "block":
                await parent.commit()

    assert ["a"] == await handle


async def test_units_start_in_the_order_of_their_registration(LiteSession):
    """Ten units of one commit, one slot."""
    order = []

    async def body(_session, number):
        order.append(number)

    async with TaskScope(LiteSession, name="t") as scope, LiteSession() as parent, parent.begin():
        parent.add(Item(name="a"))
        for number in range(10):
            scope.spawn_after_commit(parent, body, number)

    assert list(range(10)) == order


async def test_a_released_savepoint_passes_its_units_to_the_root(scope, Session):
    """A savepoint's release starts nothing; the root's commit does."""
    async with Session() as parent, parent.begin():
        async with parent.begin_nested():
            parent.add(Item(name="a"))
            handle = scope.spawn_after_commit(parent, look_up, "a")
        await asyncio.sleep(0)
        between = handle.state

    assert (TaskState.WAITING, ["a"]) == (between, await handle)


async def test_a_second_transaction_on_the_same_session_has_units_of_its_own(scope, Session):
    """The first commit releases the first unit only; the second rolls back and drops the second."""
    async with Session() as parent:
        parent.add(Item(name="a"))
        first = scope.spawn_after_commit(parent, look_up, "a")
        await parent.commit()
        parent.add(Item(name="b"))
        second = scope.spawn_after_commit(parent, look_up, "b")
        await parent.rollback()

    assert ["a"] == await first
    assert TaskState.DROPPED is second.state


async def test_a_synchronous_parent_in_a_worker_thread_hands_over_to_the_loop(engine, Session, scope):
    """Registered and committed in a thread, the unit runs in the scope's loop."""

    async def body(_session):
        return asyncio.get_running_loop()

    def work(sync_session):
        sync_session.add(Item(name="a"))
        handles.append(scope.spawn_after_commit(sync_session, body))

    handles = []
    async with Session() as parent:
        await parent.run_sync(work)
        await parent.commit()

    assert asyncio.get_running_loop() is await handles[0]


@pytest.fixture
def sync_session_maker(tmp_path):
    """Synchronous sessions on a SQLite file of their own."""
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'sync.db'}")
    Item.metadata.create_all(engine)
    yield lambda: SyncSession(engine)
    engine.dispose()


@pytest.mark.parametrize("register", ["in the loop", "in the thread"])
async def test_a_commit_in_a_thread_is_waited_for(lite_scope, sync_session_maker, register):
    """A synchronous parent commits in a thread: the loop is told, and the unit runs."""

    def spawn(parent):
        parent.add(Item(name="a"))
        handles.append(lite_scope.spawn_after_commit(parent, answer))

    def work(parent):
        if register == "in the thread":
            spawn(parent)
        parent.commit()
        parent.close()

    handles = []
    parent = sync_session_maker()
    if register == "in the loop":
        spawn(parent)
    await asyncio.to_thread(work, parent)

    assert 42 == await handles[0]


async def test_a_commit_that_came_in_a_thread_before_the_scope_is_left_is_not_lost(LiteSession, sync_session_maker):
    """The commit is through, but the loop has not been told yet when the scope is left: the unit runs all the same."""
    with sync_session_maker() as parent:
        async with TaskScope(LiteSession, name="t") as scope:
            parent.add(Item(name="a"))
            handle = scope.spawn_after_commit(parent, answer)
            # In another thread, and without giving the loop a turn.
            thread = threading.Thread(target=parent.commit)
            thread.start()
            thread.join()

    assert 42 == handle.result()


async def test_a_rollback_in_a_thread_drops(lite_scope, sync_session_maker):
    """The loop is told, and the handle says why."""
    with sync_session_maker() as parent:
        parent.add(Item(name="a"))
        handle = lite_scope.spawn_after_commit(parent, answer)
        await asyncio.to_thread(parent.rollback)

        with pytest.raises(TaskDroppedError, match="ended without a commit"):
            await handle


async def test_a_rollback_in_the_loop_drops_at_once(lite_scope, sync_session_maker):
    """Not in a later turn: who has rolled back may look at the handle."""
    with sync_session_maker() as parent:
        parent.add(Item(name="a"))
        handle = lite_scope.spawn_after_commit(parent, answer)
        parent.rollback()

        assert TaskState.DROPPED is handle.state


async def test_a_hook_after_the_commit_may_register_too(lite_scope, LiteSession):
    """In ``after_commit`` the transaction is committed already: the unit starts."""
    handles = []
    async with LiteSession() as parent:
        parent.add(Item(name="a"))
        handles.append(lite_scope.spawn_after_commit(parent, answer, 1))

        @event.listens_for(parent.sync_session, "after_commit")
        def _register(session):
            handles.append(lite_scope.spawn_after_commit(session, answer, 2))

        await parent.commit()

    assert [1, 2] == [await handle for handle in handles]


@pytest.mark.parametrize("mode", ["conditional_savepoint", "rollback_only", "control_fully", "create_savepoint"])
async def test_a_parent_joined_to_an_outer_transaction_releases_when_it_commits(lite_scope, sqlite_engine, mode):
    """It is the session's own commit that counts, in every way to join; the outer transaction is still open."""
    if SQLALCHEMY < (2, 0):
        pytest.skip("SQLAlchemy 1.4 has no join_transaction_mode")
    async with sqlite_engine.connect() as connection:
        outer = await connection.begin()
        async with AsyncSession(connection, join_transaction_mode=mode) as parent:
            parent.add(Item(name="a"))
            handle = lite_scope.spawn_after_commit(parent, answer)
            await parent.commit()
        result = await handle
        if outer.is_active:  # "control_fully" has committed it
            await outer.rollback()

    assert 42 == result


# What drops


async def rolled_back(parent):
    await parent.rollback()


async def closed(parent):
    await parent.close()


@pytest.mark.parametrize("end", [rolled_back, closed])
async def test_a_transaction_that_ends_without_a_commit_drops(scope, Session, caplog, end):
    """Rolled back or closed: the unit never runs, awaiting it says why, and so does the log."""
    caplog.set_level(logging.INFO, "sa_isolated_tasks")
    async with Session() as parent:
        parent.add(Item(name="a"))
        await parent.flush()
        handle = scope.spawn_after_commit(parent, look_up, "a")
        spawned_at = scope.snapshot().units[0].spawned_at
        await end(parent)

    assert TaskState.DROPPED is handle.state
    assert handle.timing.waiting == handle.timing.total
    with pytest.raises(
        TaskDroppedError, match="look_up#1 was dropped: its parent's transaction ended without a commit"
    ) as caught:
        await handle
    assert spawned_at == caught.value.where
    assert ["look_up#1 dropped after 0.0"] == [
        record.getMessage()[:27] for record in caplog.records if record.name == "sa_isolated_tasks"
    ]


async def test_a_block_that_raises_drops(scope, Session):
    """The exception rolls the parent back, and the unit with it."""
    with pytest.raises(ValueError):
        async with Session() as parent, parent.begin():
            parent.add(Item(name="a"))
            handle = scope.spawn_after_commit(parent, look_up, "a")
            raise ValueError

    assert TaskState.DROPPED is handle.state


async def test_a_failed_commit_drops(scope, Session):
    """The flush inside the commit fails: when the parent is closed the unit is dropped, and not before it can tell."""
    async with Session() as parent:
        parent.add(Item(name="a"))
        await parent.commit()
    async with Session() as parent:
        parent.add(Item(name="a"))
        handle = scope.spawn_after_commit(parent, look_up, "a")
        with pytest.raises(IntegrityError):
            await parent.commit()

    assert TaskState.DROPPED is handle.state


async def test_a_savepoint_that_is_rolled_back_drops_only_its_own(scope, Session):
    """What was registered before and after it is released by the root's commit."""
    async with Session() as parent, parent.begin():
        before = scope.spawn_after_commit(parent, answer, 1)
        with contextlib.suppress(ValueError):
            async with parent.begin_nested():
                inside = scope.spawn_after_commit(parent, answer, 2)
                raise ValueError
        after = scope.spawn_after_commit(parent, answer, 3)
        parent.add(Item(name="a"))

    assert [1, 3] == [await before, await after]
    with pytest.raises(TaskDroppedError, match="the savepoint in which it was registered was rolled back"):
        await inside


async def test_a_released_savepoint_inside_one_that_is_rolled_back_drops(scope, Session):
    """The inner release is undone by the outer rollback, and so are its units; those outside are not touched."""
    async with Session() as parent, parent.begin():
        before = scope.spawn_after_commit(parent, look_up, "a")
        with contextlib.suppress(ValueError):
            async with parent.begin_nested():
                async with parent.begin_nested():
                    parent.add(Item(name="a"))
                    inner = scope.spawn_after_commit(parent, look_up, "a")
                raise ValueError
        outer = scope.spawn_after_commit(parent, look_up, "a")

    assert (TaskState.DROPPED, [], []) == (inner.state, await before, await outer)


async def test_a_savepoint_in_a_flush_shares_the_fate_of_the_savepoint_around_the_flush(lite_scope, LiteSession):
    """A hook of the flush opens and releases a savepoint: what is around it is the savepoint that is rolled back."""
    handles = []
    async with LiteSession() as parent, parent.begin():

        @event.listens_for(parent.sync_session, "after_flush", once=True)
        def _register(session, _context):
            with session.begin_nested():
                handles.append(lite_scope.spawn_after_commit(session, answer))

        with contextlib.suppress(ValueError):
            async with parent.begin_nested():
                parent.add(Item(name="a"))
                await parent.flush()
                raise ValueError
        parent.add(Item(name="b"))

    assert [TaskState.DROPPED] == [handle.state for handle in handles]


async def test_a_failed_flush_in_a_savepoint_drops_only_its_own(scope, Session):
    """The savepoint is rolled back by the error of its flush; the root commits."""
    async with Session() as parent, parent.begin():
        parent.add(Item(name="a"))
        await parent.flush()
        handle = scope.spawn_after_commit(parent, look_up, "a")
        with contextlib.suppress(IntegrityError):
            async with parent.begin_nested():
                inside = scope.spawn_after_commit(parent, look_up, "a")
                parent.add(Item(name="a"))

    assert (["a"], TaskState.DROPPED) == (await handle, inside.state)


async def test_a_commit_inside_a_savepoint_block_releases_all(lite_scope, LiteSession):
    """``commit()`` while a savepoint is open commits the whole."""
    async with LiteSession() as parent:
        await parent.begin_nested()
        parent.add(Item(name="a"))
        handle = lite_scope.spawn_after_commit(parent, answer)
        await parent.commit()
        if parent.in_transaction():  # on SQLAlchemy 1.4 this was the savepoint's
            await parent.commit()

    assert 42 == await handle


async def test_a_parent_that_is_collected_drops(lite_scope, LiteSession):
    """A session that is given up, never committed and never closed, keeps no unit waiting."""
    parent = LiteSession()
    await parent.begin()
    handle = lite_scope.spawn_after_commit(parent, answer)

    del parent
    gc.collect()
    at_once = handle.state

    with pytest.raises(TaskDroppedError, match="its parent's session was collected without a commit"):
        await handle
    # Not in the frame of the garbage collector, which may run in the middle of anything.
    assert TaskState.WAITING is at_once


async def test_a_parent_that_is_still_open_when_the_scope_is_left_does_not_hold_it_up(LiteSession):
    """The unit is dropped, its handle says so, and the late commit of the parent does no harm."""
    async with LiteSession() as parent:
        async with TaskScope(LiteSession, name="t") as scope:
            parent.add(Item(name="a"))
            handle = scope.spawn_after_commit(parent, answer)
        state = handle.state
        await parent.commit()

    assert (TaskState.DROPPED, TaskState.DROPPED) == (state, handle.state)
    with pytest.raises(TaskDroppedError, match="scope t was left before its parent committed"):
        handle.result()


async def test_a_commit_while_the_scope_is_being_left_still_counts(LiteSession):
    """The scope waits for another unit; the parent commits meanwhile; its unit runs."""
    reached, release = asyncio.Event(), asyncio.Event()

    async def hold(_session):
        reached.set()
        await release.wait()

    scope = TaskScope(LiteSession, name="t")
    scope.start()
    async with LiteSession() as parent:
        parent.add(Item(name="a"))
        handle = scope.spawn_after_commit(parent, answer)
        scope.spawn(hold)
        closing = asyncio.create_task(scope.aclose())
        await reached.wait()
        await parent.commit()
        release.set()
        await closing

    assert 42 == handle.result()


@pytest.mark.parametrize("by", ["leaving", "a failure"])
async def test_a_commit_while_the_scope_is_being_cancelled_drops(LiteSession, by):
    """A scope that cancels what runs starts nothing new."""
    cleaning, release = asyncio.Event(), asyncio.Event()

    async def fail(_session):
        raise ValueError("no")

    async def stubborn(_session):
        try:
            await asyncio.Event().wait()
        finally:
            cleaning.set()
            await release.wait()

    scope = TaskScope(
        LiteSession, name="t", limit=2, drain_timeout=0, on_failure="log" if by == "leaving" else "cancel"
    )
    scope.start()
    async with LiteSession() as parent:
        parent.add(Item(name="a"))
        handle = scope.spawn_after_commit(parent, answer)
        scope.spawn(stubborn)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        closing = asyncio.create_task(scope.aclose()) if by == "leaving" else scope.spawn(fail)
        await cleaning.wait()
        await parent.commit()
        release.set()
        with contextlib.suppress(ValueError):
            await closing
    with contextlib.suppress(ExceptionGroup):
        await scope.aclose()

    with pytest.raises(TaskDroppedError, match="scope t was left before it could start"):
        handle.result()


async def test_a_unit_that_is_registered_in_a_thread_while_the_scope_is_left_never_starts(
    LiteSession, sync_session_maker, monkeypatch
):
    """The scope was open when the call began, and is left in the middle of it: the commit finds nothing to start."""
    inside, go_on = threading.Event(), threading.Event()

    def slowly(session):
        inside.set()
        go_on.wait()
        return parent_transaction_of(session)

    monkeypatch.setattr("sa_isolated_tasks._spawn.parent_transaction_of", slowly)
    ran, handles = [], []

    async def body(_session):
        ran.append(1)

    scope = TaskScope(LiteSession, name="t", limit=1)
    scope.start()
    with sync_session_maker() as parent:
        parent.add(Item(name="a"))
        thread = threading.Thread(target=lambda: handles.append(scope.spawn_after_commit(parent, body)))
        thread.start()
        await asyncio.to_thread(inside.wait)
        await scope.aclose()
        go_on.set()
        await asyncio.to_thread(thread.join)
        parent.commit()

    with pytest.raises(TaskDroppedError):
        await handles[0]
    assert [] == ran


@pytest.mark.parametrize("whose", ["handle", "scope"])
async def test_a_waiting_unit_can_be_cancelled(lite_scope, LiteSession, whose):
    """It ends at once; the commit then finds nothing to start."""
    async with LiteSession() as parent:
        parent.add(Item(name="a"))
        handle = lite_scope.spawn_after_commit(parent, answer)
        waiting = lite_scope.snapshot().waiting
        if whose == "handle":
            handle.cancel("changed my mind")
        else:
            lite_scope.cancel("changed my mind")
        await parent.commit()

    assert (1, TaskState.CANCELLED, 0) == (waiting, handle.state, len(lite_scope))
    with pytest.raises(UnitCancelledError, match="changed my mind"):
        await handle


async def test_a_unit_that_is_cancelled_while_the_news_of_its_commit_is_on_its_way_stays_cancelled(
    LiteSession, sync_session_maker
):
    """The commit came in a thread, the cancellation before the loop was told; leaving the scope does not hang."""
    with sync_session_maker() as parent:
        async with TaskScope(LiteSession, name="t") as scope:
            parent.add(Item(name="a"))
            handle = scope.spawn_after_commit(parent, answer)
            thread = threading.Thread(target=parent.commit)
            thread.start()
            thread.join()
            handle.cancel()

    assert TaskState.CANCELLED is handle.state


async def test_a_unit_that_is_cancelled_while_the_news_of_its_rollback_is_on_its_way_stays_cancelled(
    lite_scope, sync_session_maker
):
    """The rollback came in a thread, the cancellation before the loop was told."""
    with sync_session_maker() as parent:
        parent.add(Item(name="a"))
        handle = lite_scope.spawn_after_commit(parent, answer)
        thread = threading.Thread(target=parent.rollback)
        thread.start()
        thread.join()
        handle.cancel()
        await asyncio.sleep(0)

    assert TaskState.CANCELLED is handle.state


async def test_a_savepoint_without_units_drops_none(lite_scope, LiteSession):
    """What was registered outside of a savepoint that is rolled back is not touched by it."""
    async with LiteSession() as parent, parent.begin():
        handle = lite_scope.spawn_after_commit(parent, answer)
        with contextlib.suppress(ValueError):
            async with parent.begin_nested():
                raise ValueError
        parent.add(Item(name="a"))

    assert 42 == await handle


# What a hook may not do


@pytest.mark.parametrize("eager", [False, True])
async def test_no_step_runs_in_the_frame_of_the_commit(lite_scope, LiteSession, eager):
    """When ``commit()`` returns nothing of the unit has run in its frame, eager tasks included."""
    steps = []

    async def body(_session):
        steps.append("unit")

    if eager:
        make_tasks_eager()
    async with LiteSession() as parent:
        parent.add(Item(name="a"))
        handle = lite_scope.spawn_after_commit(parent, body)
        event.listen(parent.sync_session, "after_commit", lambda _: steps.append("committed"))
        await parent.commit()
    await handle

    assert ["committed", "unit"] == steps


async def test_a_broken_listener_does_not_break_the_parent(LiteSession, caplog):
    """A listener that raises when a unit is dropped is logged; ``rollback()`` returns as always."""

    class Broken:
        def unit_started(self, event, /):
            raise OSError

        unit_ended = scope_waiting = unit_started

    async with TaskScope(LiteSession, name="t", listeners=[Broken()]) as scope, LiteSession() as parent:
        parent.add(Item(name="a"))
        handle = scope.spawn_after_commit(parent, answer)
        await parent.rollback()

    assert TaskState.DROPPED is handle.state
    assert "a listener raised: Broken" in caplog.text


async def test_somebody_elses_broken_hook_does_not_lose_the_unit(lite_scope, LiteSession):
    """A hook that raises after the commit makes ``commit()`` raise though the row is there: the unit runs."""
    async with LiteSession() as parent:
        parent.add(Item(name="a"))
        handle = lite_scope.spawn_after_commit(parent, look_up, "a")

        @event.listens_for(parent.sync_session, "after_commit")
        def _break(_session):
            raise OSError("hook")

        with pytest.raises(OSError, match="hook"):
            await parent.commit()

    assert ["a"] == await handle


async def test_the_hook_loads_nothing(engine, Session):
    """The parent's instances expire with the commit: nothing is emitted on their behalf."""
    statements = []
    async with TaskScope(Session, name="t", limit=1) as scope, Session() as parent:
        parent.add(Item(name="a"))
        await parent.flush()
        event.listen(engine.sync_engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
        handle = scope.spawn_after_commit(parent, answer)
        await parent.commit()
        await handle

    assert [] == statements


async def test_a_transaction_that_has_ended_leaves_nothing_behind(lite_scope, LiteSession):
    """A session that lives as long as the program does not collect the queues of its transactions."""

    def transactions():
        return [thing for thing in gc.get_objects() if type(thing) is ParentTransaction]

    gc.collect()
    before = transactions()
    async with LiteSession() as parent:
        for _ in range(3):
            parent.add(Item())
            handle = lite_scope.spawn_after_commit(parent, answer)
            await parent.commit()
            await handle
        gc.collect()
        left = [transaction for transaction in transactions() if transaction not in before]

    assert [] == left


async def test_a_loop_that_is_closed_does_not_break_the_commit(tmp_path, sync_session_maker, caplog):
    """The scope's loop is gone when the parent commits: the log says that the unit is lost, and the row is there."""
    from sqlalchemy.ext.asyncio import create_async_engine

    def elsewhere(parent):
        async def main():
            engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'other.db'}")
            scope = TaskScope(session_maker(engine), name="t", limit=1)
            scope.start()
            scope.spawn_after_commit(parent, answer)
            await engine.dispose()
            scopes.append(scope)

        asyncio.run(main())

    scopes = []

    with sync_session_maker() as parent:
        parent.add(Item(name="a"))
        await asyncio.to_thread(elsewhere, parent)
        parent.commit()
        count = parent.execute(sa.text("select count(*) from items")).scalar()

    assert (1, 1) == (count, len(scopes[0]))
    assert ["scope t: its event loop is closed, so a unit that waited for a commit is lost"] == [
        record.getMessage() for record in caplog.records
    ]
    with pytest.warns(ResourceWarning):
        scopes.clear()
        gc.collect()


async def test_the_end_of_the_program_drops_nothing(tmp_path):
    """Parent and scope are still open then: the loop has gone, so nobody is told of a drop, and stderr stays empty."""
    program = """
import asyncio, sys
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session, sessionmaker
from sa_isolated_tasks import TaskScope

async def answer(session):
    return 42

async def main():
    global scope
    engine = create_async_engine("sqlite+aiosqlite:///" + sys.argv[1])
    scope = TaskScope(sessionmaker(engine, class_=AsyncSession), name="t", limit=1)
    scope.start()
    parent.begin()
    scope.spawn_after_commit(parent, answer)

parent = Session(sa.create_engine("sqlite://"))
asyncio.run(main())
"""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program, str(tmp_path / "a.db")),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await asyncio.wait_for(process.communicate(), 60)

    assert (0, b"") == (process.returncode, out)


# What is refused


async def test_without_a_transaction_there_is_nothing_to_wait_for(lite_scope, LiteSession):
    """A session that has not begun, or has committed, is an error that names ``spawn``."""
    async with LiteSession() as parent:
        with pytest.raises(NoTransactionError) as caught:
            lite_scope.spawn_after_commit(parent, answer)

    assert (
        "answer was to be spawned after the commit of a session that has no transaction in progress"
        == caught.value.what
    )
    assert "scope.spawn(answer, ...)" == caught.value.cure
    assert 0 == len(lite_scope)


@pytest.mark.parametrize(
    ("session", "kind"), [(None, "NoneType"), ("session", "str"), (answer, "function")], ids=["None", "str", "function"]
)
async def test_the_first_argument_is_a_session(lite_scope, session, kind):
    """Anything else is refused at the call, which is told what it was, and what it has to be."""
    with pytest.raises(DeclarationError) as caught:
        lite_scope.spawn_after_commit(session, answer)

    assert f"spawn_after_commit was given a {kind} in place of a session" == caught.value.what
    assert "its first argument is the session whose commit the unit waits for" == caught.value.why
    assert "scope.spawn_after_commit(session, answer, ...)" == caught.value.cure


@pytest.mark.parametrize("kind", [async_scoped_session, scoped_session])
async def test_a_registry_is_to_be_called(lite_scope, LiteSession, kind):
    """Its current session is the first argument, not the registry; the cure says so, and works."""
    registry = async_scoped_session(LiteSession, scopefunc=asyncio.current_task)
    given = registry if kind is async_scoped_session else scoped_session(SyncSession)

    with pytest.raises(DeclarationError) as caught:
        lite_scope.spawn_after_commit(given, answer)

    assert f"spawn_after_commit was given a {kind.__name__} in place of a session" == caught.value.what
    assert "scope.spawn_after_commit(registry(), answer, ...)" == caught.value.cure
    await registry().connection()
    handle = lite_scope.spawn_after_commit(registry(), answer)
    await registry().commit()
    assert 42 == await handle
    await registry.remove()


async def test_the_parents_session_and_instances_are_refused_as_arguments(lite_scope, LiteSession):
    """The guard looks at the arguments of the function, and its cure keeps the session that is waited for."""
    async with LiteSession() as parent:
        item = Item(name="a")
        parent.add(item)
        await parent.flush()
        with pytest.raises(SessionPassedError) as session_passed:
            lite_scope.spawn_after_commit(parent, answer, parent)
        with pytest.raises(InstancePassedError) as instance_passed:
            lite_scope.spawn_after_commit(parent, answer, item)

    assert "lite_scope.spawn_after_commit(parent, answer)" == session_passed.value.cure
    assert instance_passed.value.cure.startswith("lite_scope.spawn_after_commit(parent, answer, item.id)")
    assert 0 == len(lite_scope)


async def test_a_scope_that_is_closed_takes_no_waiting_unit(LiteSession):
    """As for ``spawn``."""
    async with TaskScope(LiteSession, name="t") as scope:
        pass
    async with LiteSession() as parent:
        await parent.begin()
        with pytest.raises(ScopeClosedError):
            scope.spawn_after_commit(parent, answer)


async def test_an_isolated_function_can_wait_too(lite_scope, LiteSession):
    """With its own factory, and with options."""

    @isolated_session(LiteSession)
    async def double(_session: AsyncSession, number: int):
        return 2 * number

    async with LiteSession() as parent, parent.begin():
        parent.add(Item(name="a"))
        handle = lite_scope.options(name="twice").spawn_after_commit(parent, double, 21)

    assert ("twice#1", 42) == (handle.name, await handle)


# Deadlock


async def directly(handle):
    await handle


async def through_gather(handle):
    await asyncio.gather(handle, return_exceptions=False)


async def through_wait_for(handle):
    await asyncio.wait_for(handle, 60)


async def through_a_task(handle):
    await asyncio.create_task(directly(handle))


async def through_a_nested_gather(handle):
    await asyncio.gather(through_a_task(handle))


async def through_a_task_group(handle):
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(directly(handle))
    except ExceptionGroup as caught:
        raise caught.exceptions[0] from None


async def through_wait(handle):
    (task,) = (await asyncio.wait([asyncio.create_task(directly(handle))]))[0]
    task.result()


async def through_shield(handle):
    await asyncio.shield(handle)


WAITS = pytest.mark.parametrize(
    "wait",
    [
        directly,
        through_gather,
        through_wait_for,
        through_a_task,
        through_a_nested_gather,
        through_a_task_group,
        through_wait,
        through_shield,
    ],
)


@WAITS
async def test_awaiting_inside_the_transaction_is_a_deadlock(lite_scope, LiteSession, wait, monkeypatch):
    """Found at the ``await``, in the parent's task or in any that it waits for; the parent can still commit."""
    monkeypatch.setattr("sa_isolated_tasks._after_commit._LOOK_AGAIN", 3600)
    async with LiteSession() as parent, parent.begin():
        parent.add(Item(name="a"))
        handle = lite_scope.spawn_after_commit(parent, answer)
        spawned_at = lite_scope.snapshot().units[0].spawned_at
        with pytest.raises(CommitDeadlockError) as caught:
            async with asyncio.timeout(20):
                await wait(handle)

    assert "answer#1 waits for the commit of a transaction, and was awaited inside it" == caught.value.what
    assert spawned_at == caught.value.where

    assert 42 == await handle


async def test_awaiting_in_a_transaction_that_a_helper_has_begun_is_a_deadlock(lite_scope, LiteSession):
    """Who has registered the unit has the session, and is to commit."""
    async with LiteSession() as parent:
        await asyncio.create_task(parent.connection())
        handle = lite_scope.spawn_after_commit(parent, answer)
        with pytest.raises(CommitDeadlockError):
            async with asyncio.timeout(20):
                await handle
        await parent.commit()

    assert 42 == await handle


@pytest.mark.parametrize("over", ["the wait", "the transaction", "the commit"])
async def test_who_looks_for_a_deadlock_stops_when_something_is_over(LiteSession, over):
    """There is nothing to fail then, and nothing to look for."""
    async with LiteSession() as session:
        await session.begin()
        parent = parent_transaction_of(session.sync_session)
        parent.add(Noted(), None)
        waiting = asyncio.get_running_loop().create_future()
        watch = DeadlockWatch(parent, waiting, CommitDeadlockError)
        with watch:
            timer = watch._timer
            if over == "the wait":
                waiting.cancel()
            else:
                parent.is_open, parent.was_committed = over == "the commit", over == "the commit"
            watch._look()

            assert watch._timer is timer
        assert over == "the wait" or not waiting.done()


async def by_gather(register):
    return (await asyncio.gather(register()))[0]


async def by_a_task_group(register):
    async with asyncio.TaskGroup() as group:
        task = group.create_task(register())
    return task.result()


async def in_a_thread(register):
    return await asyncio.to_thread(lambda: asyncio.run(register()))


@pytest.mark.parametrize("register_by", [by_gather, by_a_task_group, in_a_thread])
async def test_awaiting_what_a_helper_has_registered_is_a_deadlock(lite_scope, LiteSession, register_by):
    """The helper has ended; the transaction was begun by the task of the block, which has to end it."""

    async def register():
        return lite_scope.spawn_after_commit(parent, answer)

    async with LiteSession() as parent, parent.begin():
        handle = await register_by(register)
        with pytest.raises(CommitDeadlockError):
            await handle

    assert 42 == await handle


async def a_gather_that_was_made_before(scope, parent, handle):
    gathered = asyncio.gather(handle)
    await parent.execute(sa.text("select 1"))
    await gathered


async def a_task_that_was_made_before(scope, parent, handle):
    task = asyncio.create_task(directly(handle))
    await parent.execute(sa.text("select 1"))
    await task


async def a_task_group_whose_block_works(scope, parent, handle):
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(directly(handle))
            await parent.execute(sa.text("select 1"))
    except ExceptionGroup as caught:
        raise caught.exceptions[0] from None


async def a_unit_that_was_spawned_before(scope, parent, handle):
    async def hold(_session):
        await handle

    unit = scope.options(guard="off").spawn(hold)
    while unit.state is TaskState.QUEUED:
        await asyncio.sleep(0)
    await parent.execute(sa.text("select 1"))
    await unit


@pytest.mark.parametrize(
    "wait",
    [
        a_gather_that_was_made_before,
        a_task_that_was_made_before,
        a_task_group_whose_block_works,
        a_unit_that_was_spawned_before,
    ],
)
async def test_a_deadlock_that_comes_about_later_ends(lite_scope, LiteSession, monkeypatch, wait):
    """The handle is awaited already when the block begins to wait for whoever awaits it."""
    monkeypatch.setattr("sa_isolated_tasks._after_commit._LOOK_AGAIN", 0.01)
    async with LiteSession() as parent, parent.begin():
        parent.add(Item(name="a"))
        handle = lite_scope.spawn_after_commit(parent, answer)
        with pytest.raises(CommitDeadlockError):
            async with asyncio.timeout(20):
                await wait(lite_scope, parent, handle)

    assert 42 == await handle


async def test_who_looks_for_a_deadlock_looks_again(lite_scope, LiteSession, monkeypatch):
    """As long as there is none, and the transaction is open; then it lets it be."""
    looks, looked, let_be = [], asyncio.Event(), asyncio.Event()
    look = DeadlockWatch._look

    def would_wait(_parent, _task):
        looks.append(1)
        looked.set() if len(looks) == 4 else None

    def look_and_tell(watch):
        look(watch)
        let_be.set() if watch._parent.was_committed else None

    monkeypatch.setattr(DeadlockWatch, "_look", look_and_tell)
    monkeypatch.setattr("sa_isolated_tasks._after_commit._LOOK_AGAIN", 0.001)
    monkeypatch.setattr(ParentTransaction, "would_wait_for_itself", would_wait)
    release = asyncio.Event()

    async def hold(_session):
        await release.wait()
        return 42

    async with LiteSession() as parent, parent.begin():
        parent.add(Item(name="a"))
        handle = lite_scope.spawn_after_commit(parent, hold)
        waiter = asyncio.create_task(_result_of(handle))
        async with asyncio.timeout(20):
            await looked.wait()
    seen = len(looks)
    async with asyncio.timeout(20):
        await let_be.wait()
    release.set()

    assert 42 == await waiter
    assert len(looks) == seen


async def test_the_unit_that_was_waited_for_is_kept_by_nobody(lite_scope, LiteSession):
    """Who looks for a deadlock stops when the wait is over."""

    async def make(_session):
        return await asyncio.sleep(0, lambda: None)

    async with LiteSession() as parent, parent.begin():
        parent.add(Item(name="a"))
        handle = lite_scope.spawn_after_commit(parent, make)
        waiter = asyncio.create_task(_result_of(handle))
        await asyncio.sleep(0)
    result = weakref.ref(await waiter)
    del handle, waiter
    for _ in range(3):
        await asyncio.sleep(0)

    assert result() is None


@WAITS
async def test_awaiting_inside_the_transaction_of_a_unit_is_a_deadlock(LiteSession, wait):
    """It is the unit's own transaction that is waited for, and the unit is told; it may go on and commit."""

    async def body(session):
        session.add(Item(name="a"))
        await session.flush()
        handle = scope.spawn_after_commit(session, answer)
        with pytest.raises(CommitDeadlockError):
            await wait(handle)
        return handle

    async with TaskScope(LiteSession, name="s", limit=3) as scope:
        unit = scope.spawn(body)
        handle = await unit

        assert Outcome.COMMITTED is unit.outcome
        await handle


async def test_a_unit_that_the_parent_awaits_may_not_wait_for_its_commit(LiteSession):
    """The parent awaits a unit inside its block, and that one awaits what waits for the block: the latter is told."""

    async def middle(_session, handle):
        with pytest.raises(CommitDeadlockError):
            await handle

    async with TaskScope(LiteSession, name="s", limit=3) as scope, LiteSession() as parent, parent.begin():
        parent.add(Item(name="a"))
        handle = scope.spawn_after_commit(parent, answer)
        await scope.spawn(middle, handle)

    assert 42 == handle.result()


async def test_an_eager_wait_for_a_unit_that_is_dropped_meanwhile(lite_scope, sync_session_maker):
    """An eager task looks twice before it waits: the parent may have rolled back in between."""

    async def wait(handle):
        await handle

    make_tasks_eager()
    with sync_session_maker() as parent:
        parent.add(Item(name="a"))
        waiting = asyncio.create_task(wait(lite_scope.spawn_after_commit(parent, answer)))
        parent.rollback()

    with pytest.raises(TaskDroppedError):
        await asyncio.wait_for(waiting, 10)


@pytest.mark.parametrize("when", ["before the await", "in the turn of the await"])
async def test_after_a_commit_in_a_thread_waiting_is_no_deadlock(lite_scope, sync_session_maker, when):
    """The row is there, a hook still runs in the thread, and the loop has not been told: the unit may be awaited."""
    committed, release = threading.Event(), threading.Event()
    parent = sync_session_maker()

    @event.listens_for(parent, "after_commit")
    def _hold(_session):
        committed.set()
        release.wait()

    def commit():
        thread.start()
        committed.wait()

    parent.add(Item(name="a"))
    handle = lite_scope.spawn_after_commit(parent, answer)
    thread = threading.Thread(target=parent.commit)
    if when == "before the await":
        commit()
    else:
        asyncio.get_running_loop().call_soon(commit)
    try:
        result = await handle
    finally:
        release.set()
        thread.join()
        parent.close()

    assert 42 == result


async def test_after_a_rollback_in_a_thread_waiting_is_no_deadlock(lite_scope, sync_session_maker):
    """The loop has not been told of it yet: who awaits the unit learns that it was dropped."""
    with sync_session_maker() as parent:
        parent.add(Item(name="a"))
        handle = lite_scope.spawn_after_commit(parent, answer)
        thread = threading.Thread(target=parent.rollback)
        thread.start()
        thread.join()
        with pytest.raises(TaskDroppedError):
            await handle


async def test_another_task_may_wait_while_the_parent_goes_on(lite_scope, LiteSession):
    """A task that the parent does not wait for may await the unit inside the block: that is no deadlock."""
    async with LiteSession() as parent, parent.begin():
        parent.add(Item(name="a"))
        handle = lite_scope.spawn_after_commit(parent, answer)
        waiter = asyncio.create_task(_result_of(handle))
        for _ in range(3):
            await asyncio.sleep(0)

    assert 42 == await waiter


async def _result_of(handle):
    return await handle


async def test_a_handle_is_awaited_after_a_parent_whose_task_has_ended(lite_scope, LiteSession):
    """The task that registered is done, the transaction still open: somebody else may wait and commit."""
    parent = LiteSession()

    async def register():
        parent.add(Item(name="a"))
        return lite_scope.spawn_after_commit(parent, answer)

    handle = await asyncio.create_task(register())
    waiter = asyncio.create_task(_result_of(handle))
    await asyncio.sleep(0)
    await parent.commit()
    await parent.close()

    assert 42 == await waiter


async def test_units_of_savepoints_keep_the_order_of_their_registration(LiteSession):
    """In the root, in a savepoint, in one inside of it, in the root again: released by one commit, one by one."""
    order = []

    async def body(_session, number):
        order.append(number)

    async with TaskScope(LiteSession, name="t") as scope, LiteSession() as parent, parent.begin():
        parent.add(Item(name="a"))
        scope.spawn_after_commit(parent, body, 1)
        async with parent.begin_nested():
            scope.spawn_after_commit(parent, body, 2)
            async with parent.begin_nested():
                scope.spawn_after_commit(parent, body, 3)
            scope.spawn_after_commit(parent, body, 4)
        scope.spawn_after_commit(parent, body, 5)

    assert [1, 2, 3, 4, 5] == order


class Noted:
    """A waiting unit that notes what its parent does with it."""

    def __init__(self):
        self.fates = []

    def release(self):
        self.fates.append("released")

    def drop(self, reason, /, *, later=False):
        self.fates.append("dropped")


async def test_what_a_savepoint_has_dropped_the_root_does_not_release(lite_scope, LiteSession):
    """A unit has one fate, whatever becomes of the transaction around the savepoint."""
    unit = Noted()

    async with LiteSession() as parent, parent.begin():
        savepoint = await parent.begin_nested()
        sync = parent.sync_session
        parent_transaction_of(sync).add(unit, sync.get_nested_transaction())
        await savepoint.rollback()

    assert ["dropped"] == unit.fates


@pytest.mark.parametrize("end", ["rollback", "collection"])
async def test_nobody_waits_for_a_transaction_that_has_ended(lite_scope, LiteSession, end):
    """Its units may not know of it yet, and awaiting one of them is no deadlock."""
    parent = LiteSession()
    await parent.begin()
    queue = parent_transaction_of(parent.sync_session)
    queue.add(Noted(), None)
    before = queue.would_wait_for_itself(asyncio.current_task())

    if end == "rollback":
        await parent.rollback()
    del parent
    gc.collect()

    assert (True, False) == (before, queue.would_wait_for_itself(asyncio.current_task()))


async def test_who_awaits_a_unit_that_is_dropped_when_the_scope_is_left_is_told(LiteSession):
    """After the scope no handle is waited for any more: the waiter gets the error, and goes on."""
    async with LiteSession() as parent:
        async with TaskScope(LiteSession, name="t") as scope:
            parent.add(Item(name="a"))
            waiter = asyncio.create_task(_result_of(scope.spawn_after_commit(parent, answer)))
            await asyncio.sleep(0)
        with pytest.raises(TaskDroppedError, match="was left before its parent committed"):
            await waiter
