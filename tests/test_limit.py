"""The limit of a scope on real pools: nobody gets a pool timeout, nobody waits for ever, queued units cost nothing."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import tracemalloc

import pytest
import sqlalchemy as sa
from sqlalchemy import event
from support import Item, reset, session_maker

from sa_isolated_tasks import TaskDroppedError, TaskScope, TaskState, UnitCancelledError
from sa_isolated_tasks._quiet import QuietWaiters


async def answer(_session, value=42):
    return value


@pytest.fixture
def scope_of(LiteSession):
    def make(limit=1):
        return TaskScope(LiteSession, name="t", limit=limit)

    return make


async def test_no_more_units_run_than_the_pool_has_connections_less_one(postgresql, make_engine):
    """``limit="pool"`` over a pool of 3 runs two at once."""
    running, most = set(), []

    async def body(_session, number):
        running.add(number)
        most.append(len(running))
        await asyncio.sleep(0)
        running.remove(number)

    async with TaskScope(session_maker(make_engine(postgresql, pool_size=3)), name="t") as scope:
        for number in range(20):
            scope.spawn(body, number)

    assert 2 == max(most)


async def test_a_thousand_units_over_a_pool_of_five(database, make_engine):
    """
    1,000 units, a parent that holds a connection, a second scope on the same engine, 20 foreground requests, a pool of
    5 with a timeout of one second, units that hold their connection for longer than that: no pool timeout, and the
    order of start is kept.
    """
    engine = make_engine(database, pool_size=5, max_overflow=10, pool_timeout=1)
    await reset(engine)
    session = session_maker(engine)
    order = []
    loop = asyncio.get_running_loop()

    async def hold(own, number):
        order.append(number)
        await own.execute(sa.text("select 1"))
        if number in {100, 200, 300}:
            # Held by the clock, since it is the pool's own clock that must not run out.
            held = loop.create_future()
            loop.call_later(1.2, held.set_result, None)
            await held

    async def second(own, number):
        await own.execute(sa.text("select 1"))
        return number

    async def foreground():
        async with session() as own:
            return (await own.execute(sa.text("select 1"))).scalar()

    async with session() as parent, TaskScope(session, name="one") as one, TaskScope(session, name="two") as two:
        await parent.execute(sa.text("select 1"))
        handles = [one.spawn(hold, number) for number in range(1000)]
        others = [two.spawn(second, number) for number in range(50)]
        requests = await asyncio.gather(*[foreground() for _ in range(20)])

    assert list(range(1000)) == order
    assert [1] * 20 == requests
    assert {TaskState.SUCCEEDED} == {handle.state for handle in handles + others}


async def test_many_writers_on_sqlite_are_never_locked_out(sqlite, make_engine, names_in_table):
    """One writer at a time: thirty units that read, then write, get no "database is locked", with no busy timeout."""
    engine = make_engine(sqlite, connect_args={"timeout": 0})
    await reset(engine)

    async def body(session, number):
        await session.execute(sa.select(Item))
        session.add(Item(name=f"{number:02}"))

    async with TaskScope(session_maker(engine), name="t") as scope:
        handles = [scope.spawn(body, number) for number in range(30)]

    assert {TaskState.SUCCEEDED} == {handle.state for handle in handles}
    assert 30 == len(await names_in_table(engine))


async def test_a_queued_unit_is_neither_a_task_nor_a_session(LiteSession):
    """A thousand queued units: one task more than before, and no session made."""
    made = []
    reached, release = asyncio.Event(), asyncio.Event()

    def factory():
        session = LiteSession()
        made.append(session)
        return session

    async def hold(_session):
        reached.set()
        await release.wait()

    async with TaskScope(factory, name="t") as scope:
        before = (len(asyncio.all_tasks()), len(made))
        scope.spawn(hold)
        await reached.wait()
        for number in range(1000):
            scope.spawn(answer, number)
        await asyncio.sleep(0)
        after = (len(asyncio.all_tasks()), len(made))
        release.set()

    assert (before[0] + 1, before[1] + 1) == after


async def test_a_queued_unit_costs_at_most_one_and_a_half_kib(scope_of):
    """With its handle, measured over ten thousand; afterwards the memory is free again."""
    count = 10_000
    reached, release = asyncio.Event(), asyncio.Event()

    async def hold(_session):
        reached.set()
        await release.wait()

    async with scope_of() as scope:
        scope.spawn(hold)
        await reached.wait()
        gc.collect()
        tracemalloc.start()
        try:
            handles = [scope.spawn(answer, 1) for _ in range(count)]
            full, _ = tracemalloc.get_traced_memory()
            scope.cancel()
            del handles
            release.set()
            await scope.drain()
            gc.collect()
            empty, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()

    assert full / count <= 1536
    assert empty / count < 10


@pytest.mark.parametrize("how", ["await", "gather", "wait_for", "shield"])
async def test_a_unit_that_awaits_a_queued_unit_lends_its_slot(scope_of, how):
    """With one slot this would be a deadlock, directly or through helpers that await in a task of their own."""

    async def parent(_session):
        handle = scope.spawn(answer)
        if how == "gather":
            return (await asyncio.gather(handle, scope.spawn(answer)))[0]
        if how == "wait_for":
            return await asyncio.wait_for(handle, 5)
        if how == "shield":
            return await asyncio.shield(asyncio.ensure_future(_await(handle)))
        return await handle

    async with scope_of() as scope:
        handle = scope.spawn(parent)

    assert 42 == handle.result()


async def _await(handle):
    return await handle


async def test_a_deep_chain_of_units_that_await_each_other_ends(scope_of):
    """Fifty units, each spawning and awaiting the next, on one slot."""

    async def level(_session, depth):
        return depth if depth == 50 else await scope.spawn(level, depth + 1)

    async with scope_of() as scope:
        handle = scope.spawn(level, 0)

    assert 50 == handle.result()


async def test_two_units_that_wait_for_a_third_of_the_queue_end(scope_of):
    """Two slots, both taken by units that wait, one for the other and that one for a queued unit."""
    release = asyncio.Event()

    async def first(_session, target):
        await release.wait()
        return await target()

    async with scope_of(2) as scope:
        b = scope.spawn(first, lambda: scope.spawn(answer))
        a = scope.spawn(first, lambda: b)
        for _ in range(5):
            await asyncio.sleep(0)
        release.set()

    assert [42, 42] == [a.result(), b.result()]


async def test_what_a_lender_waits_for_starts_before_others(server, make_engine):
    """
    Six parents lock the same row, and each awaits a child: the child of who has the lock starts, though five parents
    stand before it in the queue, and would take every slot to wait for the lock.
    """
    engine = make_engine(server)
    await reset(engine)
    session = session_maker(engine)
    async with session() as setup, setup.begin():
        setup.add(Item(id=1, name="a"))

    async def parent(own):
        await own.execute(sa.update(Item).values(amount=1))
        return await scope.spawn(answer)

    async with TaskScope(session, name="t", drain_timeout=20) as scope:
        handles = [scope.spawn(parent) for _ in range(6)]

    assert [42] * 6 == [handle.result() for handle in handles]


async def test_what_a_unit_awaits_comes_before_what_was_spawned_earlier(scope_of):
    """The unit has lent its slot for it; the others keep their order."""
    order = []

    async def note(_session, number):
        order.append(number)

    async def parent(_session):
        handles = [scope.spawn(note, number) for number in range(3)]
        await handles[1]

    async with scope_of() as scope:
        scope.spawn(parent)

    assert [1, 0, 2] == order


async def test_who_waits_for_a_connection_that_is_never_made_goes_on(server, make_engine):
    """The pool wakes nobody when a connection is cut off while it is made; after its timeout it makes another."""
    engine = make_engine(server, pool_size=1, max_overflow=0, pool_timeout=0.5)

    async def read(own):
        return (await own.execute(sa.text("select 1"))).scalar()

    async with TaskScope(session_maker(engine), name="t", limit=None) as scope:
        first = scope.spawn(read)
        while engine.pool.overflow() < 0:
            await asyncio.sleep(0)
        second = scope.spawn(read)
        while second.state is not TaskState.RUNNING:
            await asyncio.sleep(0)
        first.cancel()

    assert (TaskState.CANCELLED, 1) == (first.state, second.result())


async def test_awaited_children_need_no_more_connections_than_their_parents(postgresql, make_engine):
    """Forty parents in a transaction await a child each, over a pool of 5: nobody gets a pool timeout."""
    session = session_maker(make_engine(postgresql, pool_size=5, max_overflow=5, pool_timeout=1))

    async def read(own):
        return (await own.execute(sa.text("select 1"))).scalar()

    async def parent(own):
        await read(own)
        return await scope.spawn(read)

    async with TaskScope(session, name="t") as scope:
        handles = [scope.spawn(parent) for _ in range(40)]

    assert [1] * 40 == [handle.result() for handle in handles]


async def test_a_helper_that_outlives_its_unit_takes_no_slot(scope_of):
    """Its wait for a handle is given up after the unit has ended: the slot that the unit lent is free for others."""
    release, left = asyncio.Event(), asyncio.Event()

    async def slow(_session):
        await release.wait()

    async def unit(_session):
        helpers.append(asyncio.create_task(_await(scope.spawn(slow))))
        await asyncio.sleep(0)

    helpers = []
    async with scope_of() as scope:
        handle = scope.spawn(unit)
        handle.add_done_callback(lambda _: left.set())
        await left.wait()
        helpers[0].cancel()
        release.set()
        follower = scope.spawn(answer)

    assert 42 == follower.result()


async def test_a_lender_whose_unit_ends_without_a_slot_waits_for_its_own(scope_of, LiteSession):
    """It awaits a unit that waits for a commit; its slot is with another when that unit is dropped."""
    release, rolled_back, order = asyncio.Event(), asyncio.Event(), []

    async def lender(_session):
        with contextlib.suppress(TaskDroppedError):
            await waiting
        order.append("lender")

    async def other(_session):
        await release.wait()
        order.append("other")

    async with scope_of() as scope, LiteSession() as parent, parent.begin():
        waiting = scope.spawn_after_commit(parent, answer)
        waiting.add_done_callback(lambda _: rolled_back.set())
        scope.spawn(lender)
        handle = scope.spawn(other)
        while handle.state is not TaskState.RUNNING:
            await asyncio.sleep(0)
        await parent.rollback()
        await rolled_back.wait()
        await asyncio.sleep(0)
        release.set()
        await handle

    assert order == ["other", "lender"]


async def test_a_lender_that_is_cancelled_goes_on_at_once(scope_of):
    """Its clean-up waits neither for the unit that it awaited nor for a slot."""
    reached, release = asyncio.Event(), asyncio.Event()

    async def occupant(_session):
        reached.set()
        await release.wait()

    async def lender(_session):
        await scope.spawn(occupant)

    async with scope_of() as scope:
        handle = scope.spawn(lender)
        await reached.wait()
        handle.cancel()
        with pytest.raises(UnitCancelledError):
            await handle
        follower = scope.spawn(answer)
        release.set()

    assert 42 == follower.result()


async def test_a_timeout_around_a_queued_unit_gives_the_lender_its_slot_back(scope_of):
    """The lender handles the timeout and goes on; the unit that it no longer awaits runs later."""
    release = asyncio.Event()

    async def occupant(_session):
        await release.wait()

    async def lender(_session):
        queued = scope.spawn(answer)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await queued
        release.set()
        return queued

    async with scope_of() as scope:
        handle = scope.spawn(lender)
        scope.spawn(occupant)

    assert 42 == handle.result().result()


@pytest.mark.parametrize("drains", [False, True])
async def test_a_lender_that_has_given_up_counts_as_running(scope_of, drains):
    """It goes on beside the unit that has its slot; when that has ended, nobody starts until it has ended too."""
    steps, release = [], asyncio.Event()

    async def occupant(_session):
        deadlines[0].reschedule(0)
        await release.wait()

    async def note(_session):
        steps.append("another starts")

    async def lender(_session):
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None) as deadline:
                deadlines.append(deadline)
                handles = [scope.spawn(occupant), scope.spawn(note)]
                await (scope.drain() if drains else asyncio.gather(*handles))
        release.set()
        for _ in range(30):
            await asyncio.sleep(0)
        steps.append("the lender ends")

    deadlines = []
    async with scope_of() as scope:
        scope.spawn(lender)

    assert ["the lender ends", "another starts"] == steps


async def test_a_helper_that_outlives_its_unit_waits_like_anybody(scope_of):
    """A task that an ended unit has left behind may await a handle; it has no slot to lend."""

    async def body(_session):
        helpers.append(asyncio.create_task(_await(later())))

    def later():
        return scope.spawn(answer)

    helpers = []
    async with scope_of() as scope:
        await scope.spawn(body)
        result = await helpers[0]

    assert 42 == result


async def test_the_open_transaction_of_a_lender_keeps_its_connection(postgresql, make_engine):
    """A lender in a transaction holds its connection while it waits: the pool's overflow serves the other."""
    engine = make_engine(postgresql, pool_size=1)
    most = []
    event.listen(engine.sync_engine.pool, "checkout", lambda *_: most.append(engine.pool.checkedout()))

    async def read(session):
        return (await session.execute(sa.text("select 1"))).scalar()

    async def parent(session):
        await read(session)
        return await scope.spawn(read)

    async with TaskScope(session_maker(engine), name="t") as scope:
        handle = scope.spawn(parent)

    assert (1, 2) == (handle.result(), len(most))


async def test_many_units_that_wait_until_it_is_quiet(scope_of, monkeypatch):
    """Each of them is told once, and looked at a few times for each of the others, not for each pair."""
    looks = []
    look = QuietWaiters._are_only

    def counted(waiters, live, waiting, waiter):
        looks.append(1)
        return look(waiters, live, waiting, waiter)

    monkeypatch.setattr(QuietWaiters, "_are_only", counted)
    ended = []

    async def wait(_session, number):
        await scope.drain()
        ended.append(number)

    units = 60
    async with asyncio.timeout(30), scope_of(limit=None) as scope:
        for number in range(units):
            scope.spawn(wait, number)

    assert sorted(ended) == [*range(units)]
    assert len(looks) < 2 * units * units


async def test_who_is_told_that_it_is_quiet_and_cancelled_passes_it_on(scope_of, monkeypatch):
    """A helper of an outer unit waits for an inner scope, and so does a unit of that: the helper gives up when told."""
    release, ended, told = asyncio.Event(), asyncio.Event(), []
    tell = QuietWaiters.tell

    def tell_and_cancel(waiters, live):
        tell(waiters, live)
        if not told and any(quiet.done() for quiet, _ in waiters._waiters):
            told.append(helpers[0].cancel())

    monkeypatch.setattr(QuietWaiters, "tell", tell_and_cancel)
    helpers = []

    async def wait(_session, scope):
        await scope.drain()
        ended.set()

    async def hold(_session):
        await release.wait()

    async def outer(_session):
        async with scope_of(limit=2) as inner:
            inner.spawn(hold)
            helpers.append(asyncio.create_task(inner.drain()))
            await asyncio.sleep(0)
            inner.spawn(wait, inner)
            while len(inner._runner._quiet_waiters._waiters) < 2:
                await asyncio.sleep(0)
            release.set()
            await ended.wait()

    async with asyncio.timeout(30), scope_of() as scope:
        handle = scope.spawn(outer)

    assert (told, handle.exception(), helpers[0].cancelled()) == ([True], None, True)
