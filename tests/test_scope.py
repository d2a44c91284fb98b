"""The scope: spawning, tracking, failing, draining, leaving."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import inspect
import linecache
import logging
import sys
import weakref

import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import sessionmaker
from support import Item, make_tasks_eager, session_maker

from sa_isolated_tasks import (
    DeclarationError,
    LimitError,
    Outcome,
    ScopeClosedError,
    ScopeSnapshot,
    ShutdownError,
    TaskHandle,
    TaskScope,
    TaskState,
    UnitCancelledError,
    WrongLoopError,
    isolated_session,
)
from sa_isolated_tasks import _runner as runner_module
from sa_isolated_tasks import _scope as scope_module


class Gate:
    """Lets a unit wait until the test opens it, and the test until the unit has come."""

    def __init__(self):
        self.reached = asyncio.Event()
        self.opened = asyncio.Event()

    async def pass_through(self, _session=None, result=None):
        self.reached.set()
        await self.opened.wait()
        return result


async def add(session, name="a"):
    session.add(Item(name=name))
    return name


async def answer(_session, value=42):
    return value


async def fail(_session, message="no"):
    raise ValueError(message)


async def for_ever(_session):
    await asyncio.Event().wait()


@pytest.fixture
def scope_of(LiteSession):
    """Makes scopes on SQLite with no limit, unless a test asks for another."""

    def make(factory=LiteSession, **options):
        return TaskScope(factory, **({"name": "t", "limit": None} | options))

    return make


# Spawning


async def test_units_commit_their_rows(engine, Session, names_in_table):
    """Each unit has its own session, committed at its end."""
    async with TaskScope(Session, name="t") as scope:
        handles = [scope.spawn(add, name) for name in "abc"]

    assert ["a", "b", "c"] == await names_in_table(engine)
    assert [Outcome.COMMITTED] * 3 == [handle.outcome for handle in handles]


async def test_no_step_runs_before_spawn_returns(scope_of, eager_or_not):
    """The body starts in a later turn of the loop, also with eager tasks, from a unit and from a callback."""
    steps = []

    async def body(_session, name):
        steps.append(name)

    async def spawner(_session):
        scope.spawn(body, "from a unit")
        steps.append("unit spawned")

    def spawn_from_callback(_handle):
        scope.spawn(body, "from a callback")
        steps.append("callback spawned")
        spawned.set()

    spawned = asyncio.Event()
    async with scope_of() as scope:
        scope.spawn(body, "first")
        steps.append("spawned")
        handle = scope.spawn(spawner)
        handle.add_done_callback(spawn_from_callback)
        await spawned.wait()

    assert steps.index("spawned") < steps.index("first")
    assert steps.index("unit spawned") < steps.index("from a unit")
    assert steps.index("callback spawned") < steps.index("from a callback")


@pytest.fixture(params=["plain", "eager"])
def eager_or_not(request):
    if request.param == "eager":
        make_tasks_eager()


async def test_eager_units_succeed_fail_and_are_cancelled_as_others(scope_of, eager_or_not):
    """A unit that ends in its first step is accounted for like any other."""
    async with scope_of() as scope:
        handles = [scope.spawn(answer), scope.spawn(fail), scope.spawn(for_ever)]
        await asyncio.wait([asyncio.ensure_future(_settled(handle)) for handle in handles[:2]])
        handles[2].cancel()

    assert [TaskState.SUCCEEDED, TaskState.FAILED, TaskState.CANCELLED] == [handle.state for handle in handles]


async def _settled(handle):
    with contextlib.suppress(ValueError, UnitCancelledError):
        await handle


async def test_units_start_in_the_order_of_their_spawns(scope_of):
    """With one slot, ten units run one after the other, first come, first served."""
    order = []

    async def body(_session, number):
        order.append(number)
        await asyncio.sleep(0)

    async with scope_of(limit=1) as scope:
        for number in range(10):
            scope.spawn(body, number)

    assert list(range(10)) == order


async def test_a_unit_is_kept_though_nobody_refers_to_it(scope_of):
    """A unit that waits for something only itself refers to survives the garbage collector, and ends."""

    class Owner:
        def __init__(self):
            self.future = asyncio.get_running_loop().create_future()

    async def body(_session):
        owner = Owner()
        futures.append(weakref.ref(owner.future))
        reached.set()
        return await owner.future

    futures, reached = [], asyncio.Event()
    async with scope_of() as scope:
        scope.spawn(body)
        await reached.wait()
        gc.collect()
        futures[0]().set_result("alive")


async def test_an_ended_unit_is_kept_by_nobody(scope_of):
    """After its end the scope refers to neither the unit's arguments nor its result."""

    class Argument:
        pass

    argument = Argument()
    gone = weakref.ref(argument)
    async with scope_of() as scope:
        await scope.spawn(answer, argument)
        del argument
        await asyncio.sleep(0)

        assert gone() is None


async def test_context_variables_are_copied_at_the_spawn(scope_of):
    """The unit sees the spawner's request id as it was at the spawn, and cannot change it for the spawner."""
    request_id = contextvars.ContextVar("request_id", default="none")

    async def body(_session):
        seen.append(request_id.get())
        request_id.set("the unit's")

    seen = []
    request_id.set("1")
    async with scope_of() as scope:
        scope.spawn(body)
        request_id.set("2")

    assert (["1"], "2") == (seen, request_id.get())


async def test_a_fresh_context_has_no_variables(scope_of):
    """``options(context="fresh")`` hides the spawner's variables."""
    request_id = contextvars.ContextVar("request_id", default="none")

    async def body(_session):
        return request_id.get()

    request_id.set("1")
    async with scope_of() as scope:
        handle = scope.options(context="fresh").spawn(body)

    assert "none" == handle.result()


async def test_options_name_and_limit_the_time_of_a_unit(scope_of):
    """The name is in the handle; past its timeout the unit fails with TimeoutError."""
    async with scope_of() as scope:
        handle = scope.options(name="slow", timeout=0).spawn(for_ever)

    assert "slow#1" == handle.name
    assert isinstance(handle.exception(), TimeoutError)


SECONDS = "timeout is in seconds, from 0, or None for no limit; it cannot be "


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"timeout": -1}, f"{SECONDS}-1"),
        ({"timeout": float("nan")}, f"{SECONDS}nan"),
        ({"timeout": "1"}, f"{SECONDS}'1'"),
        ({"context": "other"}, 'context is "copy" or "fresh", not \'other\''),
        ({"guard": "loud"}, 'guard is "raise", "warn" or "off", not \'loud\''),
    ],
    ids=str,
)
async def test_an_option_out_of_range_is_refused(scope_of, options, text):
    """Bad options fail where they are given, and the error says what may be given."""
    with pytest.raises(ValueError) as caught:
        scope_of().options(**options)

    assert text == str(caught.value)


async def test_a_unit_isolated_by_the_decorator_uses_its_own_factory(scope_of, LiteSession, sqlite_engine):
    """The decorator's factory wins over the scope's."""
    other = session_maker(sqlite_engine, info={"mine": True})

    @isolated_session(other)
    async def body(session):
        return session.info.get("mine")

    async with scope_of() as scope:
        handle = scope.spawn(body)

    assert handle.result() is True


async def test_unfitting_arguments_are_refused_at_the_spawn(scope_of):
    """Too many, too few or unknown arguments are a TypeError at the call, and nothing is spawned."""
    async with scope_of() as scope:
        for args, kwargs in [((1, 2), {}), ((), {"other": 1})]:
            with pytest.raises(TypeError, match=r"answer\(\)"):
                scope.spawn(answer, *args, **kwargs)

        assert 0 == len(scope)


async def test_a_factory_that_raises_fails_the_unit(LiteSession):
    """What the factory raises is the unit's failure, seen by who awaits the handle."""
    made = []

    def factory():
        # The scope asks once, at its start, what the sessions are bound to.
        made.append(1)
        if len(made) > 1:
            raise OSError("no database")
        return LiteSession()

    async with TaskScope(factory, name="t") as scope:
        handle = scope.spawn(answer)

    assert (TaskState.FAILED, "no database") == (handle.state, str(handle.exception()))


# Failures


async def test_one_failure_among_a_hundred_touches_no_sibling(engine, Session, names_in_table, caplog, loop_errors):
    """99 commit; one record at ERROR with its traceback; nothing is "never retrieved"; the pool is clean."""

    async def body(session, number):
        session.add(Item(name=f"{number:03}"))
        await session.flush()
        if number == 50:
            raise ValueError("the fiftieth")

    with caplog.at_level(logging.INFO, "sa_isolated_tasks"):
        async with TaskScope(Session, name="t") as scope:
            for number in range(100):
                scope.spawn(body, number)
        gc.collect()
        await asyncio.sleep(0)

    assert [f"{number:03}" for number in range(100) if number != 50] == await names_in_table(engine)
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert 1 == len(errors)
    assert "the fiftieth" in str(errors[0].exc_info[1])
    assert "body" in [frame.name for frame in _frames(errors[0].exc_info[2])]
    assert ([], 0) == (loop_errors, engine.pool.checkedout())


def _frames(traceback):
    import traceback as module

    return module.extract_tb(traceback)


async def test_raise_raises_what_nobody_has_looked_at(scope_of):
    """``on_failure="raise"``: the group holds the failures that were not awaited, and no others."""
    with pytest.raises(ExceptionGroup) as caught:
        async with scope_of(on_failure="raise") as scope:
            seen = scope.spawn(fail, "seen")
            scope.spawn(fail, "unseen")
            scope.spawn(answer)
            with pytest.raises(ValueError):
                await seen

    assert ["unseen"] == [str(error) for error in caught.value.exceptions]


async def test_raise_is_silent_when_all_was_looked_at(scope_of):
    """No failure is raised a second time: result(), exception() and await all count as looking."""
    async with scope_of(on_failure="raise") as scope:
        handle = scope.spawn(fail)
        await scope.drain()
        handle.exception()


async def test_raise_notes_failures_on_an_exception_that_is_under_way(scope_of):
    """The block's own exception comes out, with the failures as notes."""
    with pytest.raises(KeyError) as caught:
        async with scope_of(on_failure="raise") as scope:
            scope.spawn(fail)
            await scope.drain()
            raise KeyError("block")

    assert ["scope t: ValueError: no"] == caught.value.__notes__


async def test_cancel_cancels_the_rest_and_the_block(scope_of):
    """``on_failure="cancel"``: the first failure cancels siblings and block, and the group comes out."""
    with pytest.raises(ExceptionGroup) as caught:
        async with scope_of(on_failure="cancel") as scope:
            sibling = scope.spawn(for_ever)
            scope.spawn(fail)
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError as cancelled:
                message = str(cancelled)
                raise

    assert "unit fail#2 failed" == message
    assert ("units of scope t failed", ["no"]) == (
        caught.value.message,
        [str(error) for error in caught.value.exceptions],
    )
    assert (TaskState.CANCELLED, "unit fail#2 of the same scope failed") == (sibling.state, sibling.exception().reason)
    assert 0 == asyncio.current_task().cancelling()


async def test_a_block_that_swallows_its_cancellation_does_not_hide_the_failure(scope_of):
    """The block catches the cancellation and ends: the group comes out, and no cancellation is left over."""
    with pytest.raises(ExceptionGroup):
        async with scope_of(on_failure="cancel") as scope:
            scope.spawn(fail)
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()

    await asyncio.sleep(0)
    assert 0 == asyncio.current_task().cancelling()


async def test_a_block_that_closes_its_scope_after_a_failure_is_not_left_cancelled(scope_of):
    """The block catches its cancellation and closes the scope itself: the group comes out there, once, and no more."""
    with pytest.raises(ExceptionGroup):
        async with scope_of(on_failure="cancel") as scope:
            scope.spawn(fail)
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
            await scope.aclose()

    await asyncio.sleep(0)
    assert 0 == asyncio.current_task().cancelling()


async def test_cancel_with_a_failing_block_raises_both(scope_of):
    """The block answers the cancellation with an error of its own: both are in the group, as in a TaskGroup."""
    with pytest.raises(ExceptionGroup) as caught:
        async with scope_of(on_failure="cancel") as scope:
            scope.spawn(fail)
            try:
                await asyncio.Event().wait()
            finally:
                raise KeyError("block")

    assert "units of scope t failed" == caught.value.message
    assert ["KeyError('block')", "ValueError('no')"] == [repr(error) for error in caught.value.exceptions]


async def test_a_block_that_raises_the_failure_itself_raises_it_once(scope_of):
    """What the block is left with is not put into a group with itself."""
    with pytest.raises(ValueError, match="no") as caught:
        async with scope_of(on_failure="cancel") as scope:
            handle = scope.spawn(fail)
            with contextlib.suppress(asyncio.CancelledError):
                await handle
            handle.result()

    assert not hasattr(caught.value, "__notes__")


async def test_a_block_that_fails_alone_comes_out_as_it_is(scope_of):
    """``on_failure="cancel"`` makes a group of the failures of units; without one there is nothing to group."""
    with pytest.raises(KeyError, match="block"):
        async with scope_of(on_failure="cancel") as scope:
            scope.spawn(for_ever)
            raise KeyError("block")


async def test_a_block_that_is_cancelled_from_outside_stays_cancelled(scope_of):
    """The scope takes back its own cancellation of the block, and no other."""
    reached, left = asyncio.Event(), []

    async def host():
        try:
            async with scope_of(on_failure="cancel"):
                reached.set()
                await asyncio.Event().wait()
        finally:
            left.append(asyncio.current_task().cancelling())

    task = asyncio.create_task(host())
    await reached.wait()
    task.cancel()
    await asyncio.wait([task])

    assert (True, [1]) == (task.cancelled(), left)


async def test_cancel_without_a_block_cancels_the_rest(scope_of, loop_errors):
    """A scope that was started by ``start()`` has no block to cancel; the group comes out of ``aclose()``."""
    scope = scope_of(on_failure="cancel")
    scope.start()
    sibling = scope.spawn(for_ever)
    await _settled(scope.spawn(fail))
    with pytest.raises(ExceptionGroup) as caught:
        await scope.aclose()

    assert (["no"], TaskState.CANCELLED) == ([str(error) for error in caught.value.exceptions], sibling.state)
    assert [] == loop_errors


class Odd(BaseException):
    """Past every ``except Exception``."""


async def test_an_exception_past_every_handler_is_a_failure_like_any_other(scope_of, loop_errors):
    """It is in the handle; it is none of those that end the program, so the loop is not told."""

    async def body(_session):
        raise Odd

    async with scope_of() as scope:
        handle = scope.spawn(body)

    assert (TaskState.FAILED, Odd) == (handle.state, type(handle.exception()))
    assert [] == loop_errors


async def test_cancel_and_a_cancellation_from_outside_goes_on(scope_of):
    """Cancelled by the scope and by somebody else, the host is still cancelled."""

    async def host():
        async with scope_of(on_failure="cancel") as scope:
            scope.spawn(fail)
            try:
                await asyncio.Event().wait()
            finally:
                asyncio.current_task().cancel()

    task = asyncio.create_task(host())
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_cancel_while_the_scope_is_being_left(scope_of):
    """A failure during the wait at the end cancels the rest; the second failure changes nothing more."""

    async def fail_on_cancel(_session):
        try:
            await asyncio.Event().wait()
        finally:
            raise ValueError("second")

    with pytest.raises(ExceptionGroup) as caught:
        async with scope_of(on_failure="cancel") as scope:
            scope.spawn(fail_on_cancel)
            scope.spawn(fail, "first")

    assert {"first", "second"} == {str(error) for error in caught.value.exceptions}


async def test_cancel_takes_no_unit_after_the_first_failure(scope_of):
    """A scope that is being cancelled is closed to spawns."""
    with pytest.raises(ExceptionGroup):
        async with scope_of(on_failure="cancel") as scope:
            scope.spawn(fail)
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
            with pytest.raises(ScopeClosedError):
                scope.spawn(answer)


async def test_a_stray_cancelled_error_is_a_failure(scope_of, caplog):
    """A body that awaits something cancelled, and was not cancelled itself, has failed; its waiter is not cancelled."""

    async def body(_session):
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        await future

    async with scope_of() as scope:
        handle = scope.spawn(body)
        with pytest.raises(
            UnitCancelledError, match=r"body#1 ended with a CancelledError, but nobody had cancelled it\n"
        ) as caught:
            await handle

    assert TaskState.FAILED is handle.state
    assert isinstance(caught.value.__cause__, asyncio.CancelledError)
    assert "body" == _frames(caught.value.__cause__.__traceback__)[-1].name
    assert caught.value.where.startswith(__file__)
    assert caught.value.why.startswith("something that the unit awaited was cancelled; ")
    assert "except asyncio.CancelledError: ...  # around the await of what may be cancelled" == caught.value.cure
    assert ["ERROR"] == [record.levelname for record in caplog.records]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_rolls_back_and_goes_on_to_the_loop(sqlite, error):
    """KeyboardInterrupt and SystemExit in a body end the program, after the rollback."""
    from sqlalchemy.ext.asyncio import create_async_engine
    from support import reset

    async def body(session):
        session.add(Item(name="a"))
        await session.flush()
        raise error

    async def main():
        engine = create_async_engine(sqlite.url)
        await reset(engine)
        try:
            async with TaskScope(session_maker(engine), name="t") as scope:
                handles.append(scope.spawn(body))
        finally:
            await engine.dispose()

    handles = []
    with pytest.raises(error):
        asyncio.run(main())

    assert (TaskState.FAILED, Outcome.ROLLED_BACK) == (handles[0].state, handles[0].outcome)


# Life and death of a scope


async def test_leaving_waits_for_units_and_the_units_that_they_spawn(scope_of):
    """Quiet means quiet: a unit spawned by a unit during the wait is waited for too."""
    ended = []

    async def inner(_session):
        ended.append("inner")

    async def outer(_session):
        await asyncio.sleep(0)
        scope.spawn(inner)
        ended.append("outer")

    async with scope_of() as scope:
        scope.spawn(outer)

    assert ["outer", "inner"] == ended
    assert 0 == len(scope)


async def test_others_may_not_spawn_while_a_scope_is_being_left(scope_of):
    """While it is being left, only its own units may spawn."""
    gate = Gate()
    scope = scope_of()
    await scope.start()
    scope.spawn(gate.pass_through)
    closing = asyncio.create_task(scope.aclose())
    await gate.reached.wait()

    with pytest.raises(ScopeClosedError, match="being left"):
        scope.spawn(answer)

    gate.opened.set()
    await closing


@pytest.mark.parametrize("isolated", [False, True])
@pytest.mark.parametrize("state", ["not started", "closed"])
async def test_spawning_on_a_scope_that_is_not_open_is_refused(scope_of, LiteSession, state, isolated):
    """Before its start and after its end a scope takes no unit, and says which."""
    scope = scope_of()
    if state == "closed":
        async with scope:
            pass

    with pytest.raises(ScopeClosedError, match=f"answer was spawned in scope t, which is {state}\n") as caught:
        scope.spawn(isolated_session(LiteSession)(answer) if isolated else answer)

    assert "async with TaskScope(Session, name='t') as scope: scope.spawn(answer, ...)" == caught.value.cure


async def test_leaving_by_an_exception_cancels_at_once(scope_of):
    """The exception comes out, and no unit is left."""
    with pytest.raises(KeyError, match="block"):
        async with scope_of() as scope:
            handle = scope.spawn(for_ever)
            queued = scope.spawn(answer)
            raise KeyError("block")

    assert [TaskState.CANCELLED] * 2 == [handle.state, queued.state]
    assert "scope t was left by KeyError" == handle.exception().reason


async def test_past_the_drain_timeout_units_are_cancelled(scope_of):
    """A unit that never ends is cancelled when *drain_timeout* has passed, and the exit goes on."""
    async with scope_of(drain_timeout=0) as scope:
        handle = scope.spawn(for_ever)

    assert TaskState.CANCELLED is handle.state
    assert "scope t was left, and drain_timeout=0 has passed" == handle.exception().reason


class Stubborn:
    """A unit that ignores its cancellation until it is released."""

    def __init__(self):
        self.release = asyncio.Event()
        self.reached = asyncio.Event()

    async def run(self, _session):
        self.reached.set()
        while not self.release.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await self.release.wait()


async def test_survivors_are_reported(scope_of):
    """A unit that swallows its cancellation is there with name, age, spawn line, and the line at which it waits."""
    stubborn = Stubborn()
    with pytest.raises(
        ShutdownError,
        match=r"1 unit\(s\) of scope t survived their cancellation by 0 s: "
        r"Stubborn\.run#1 \(running for .*s, spawned at .*test_scope\.py:\d+, waits at (.*test_scope\.py:\d+)\)\n",
    ) as caught:
        async with scope_of(drain_timeout=0, cancel_timeout=0) as scope:
            handle = scope.spawn(stubborn.run)
            await stubborn.reached.wait()

    (survivor,) = caught.value.survivors
    filename, _, line = survivor.doing.removeprefix("waits at ").rpartition(":")
    assert ("Stubborn.run#1", "await self.release.wait()") == (
        survivor.name,
        linecache.getline(filename, int(line)).strip(),
    )
    stubborn.release.set()
    with pytest.raises(UnitCancelledError):
        await handle


async def test_a_survivor_without_a_session_is_reported_at_once(LiteSession, monkeypatch):
    """It hangs in its factory, so there is no connection to cut, and nothing to wait for after that."""
    monkeypatch.setattr("sa_isolated_tasks._scope.LAST_WORDS", 60)
    stubborn = Stubborn()

    @contextlib.asynccontextmanager
    async def stuck():
        await stubborn.run(None)
        async with LiteSession() as session:
            yield session

    with pytest.raises(ShutdownError, match=r"opening\)"):
        async with (
            asyncio.timeout(20),
            TaskScope(stuck, name="t", limit=1, drain_timeout=0, cancel_timeout=0) as scope,
        ):
            handle = scope.spawn(add)
            await stubborn.reached.wait()

    stubborn.release.set()
    with pytest.raises(UnitCancelledError):
        await handle


async def test_a_snapshot_says_what_each_unit_is_doing(sqlite_engine):
    """The innermost line of the user's own, below a helper and a decorated function; or the part of the end."""
    reached, release, committing = asyncio.Event(), asyncio.Event(), asyncio.Event()

    class SlowSession(AsyncSession):
        async def commit(self):
            committing.set()
            await release.wait()
            await super().commit()

    Session = sessionmaker(sqlite_engine, class_=SlowSession)

    async def helper():
        reached.set()
        await release.wait()  # here

    @isolated_session(Session)
    async def inner(session):
        await helper()

    async def waits(session):
        await inner()

    async def writes(session, name):
        session.add(Item(name=name))

    async with TaskScope(Session, name="t", limit=2) as scope:
        scope.spawn(waits)
        scope.spawn(writes, "a")
        scope.spawn(writes, "b")
        await reached.wait()
        await committing.wait()
        doing = [unit.doing for unit in scope.snapshot().units]
        release.set()

    place, _, line = doing[0].removeprefix("waits at ").rpartition(":")
    assert linecache.getline(place, int(line)).strip().endswith("# here")
    assert ["committing", ""] == doing[1:]


async def test_several_survivors_are_told_apart(scope_of):
    """The text has one after the other."""
    stubborn = Stubborn()
    with pytest.raises(
        ShutdownError, match=r"2 unit\(s\) .*: Stubborn\.run#1 \([^()]*\); Stubborn\.run#2 \([^()]*\)\n"
    ):
        async with scope_of(drain_timeout=0, cancel_timeout=0) as scope:
            handles = [scope.spawn(stubborn.run) for _ in range(2)]
            while {TaskState.RUNNING} != {handle.state for handle in handles}:
                await asyncio.sleep(0)

    stubborn.release.set()
    await asyncio.gather(*handles, return_exceptions=True)


async def test_survivors_are_noted_on_an_exception_that_is_under_way(scope_of):
    """The block's exception comes out, and says in a note who survived."""
    stubborn = Stubborn()
    with pytest.raises(KeyError) as caught:
        async with scope_of(cancel_timeout=0) as scope:
            handle = scope.spawn(stubborn.run)
            await stubborn.reached.wait()
            raise KeyError("block")

    assert "survived" in caught.value.__notes__[0]
    stubborn.release.set()
    with pytest.raises(UnitCancelledError):
        await handle


async def test_survivors_and_failures_come_out_together(scope_of):
    """With ``on_failure="raise"`` the group holds the failures and the ShutdownError."""
    stubborn = Stubborn()
    with pytest.raises(ExceptionGroup) as caught:
        async with scope_of(on_failure="raise", drain_timeout=0, cancel_timeout=0) as scope:
            handle = scope.spawn(stubborn.run)
            scope.spawn(fail)
            await stubborn.reached.wait()

    assert [ValueError, ShutdownError] == [type(error) for error in caught.value.exceptions]
    stubborn.release.set()
    with pytest.raises(UnitCancelledError):
        await handle


async def test_a_cancelled_host_cancels_its_units_and_goes_on_being_cancelled(scope_of):
    """The caller's cancellation during the wait cancels the units, waits for them, and is not swallowed."""
    gate = Gate()

    async def host():
        async with scope_of() as scope:
            handles.append(scope.spawn(gate.pass_through))

    handles = []
    task = asyncio.create_task(host())
    await gate.reached.wait()

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert TaskState.CANCELLED is handles[0].state


async def test_a_host_that_is_cancelled_again_and_again_waits_for_its_units(scope_of):
    """The second and third cancellation do not cut off the wait; they are not swallowed either."""
    cleaning, release = asyncio.Event(), asyncio.Event()

    async def body(_session):
        try:
            await asyncio.Event().wait()
        finally:
            cleaning.set()
            await release.wait()

    async def host():
        async with scope_of() as scope:
            handles.append(scope.spawn(body))

    handles = []
    task = asyncio.create_task(host())
    while not handles or handles[0].state is not TaskState.RUNNING:
        await asyncio.sleep(0)
    task.cancel()
    await cleaning.wait()
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
    before = task.done()
    release.set()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert (False, TaskState.CANCELLED) == (before, handles[0].state)


@pytest.mark.parametrize("phase", ["units are cancelled", "connections are cut"])
async def test_who_closes_is_cancelled_while(asyncpg, make_engine, phase):
    """That comes too late to change anything, waits for the end, and is not swallowed."""
    cancelled, release = asyncio.Event(), asyncio.Event()

    async def body(session):
        await session.execute(sa.text("select 1"))
        reached.set()
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                cancelled.set()

    reached = asyncio.Event()
    patience = 60 if phase == "units are cancelled" else 0
    Session = session_maker(make_engine(asyncpg))
    scope = TaskScope(Session, name="t", limit=1, drain_timeout=0, cancel_timeout=patience)
    scope.start()
    handle = scope.spawn(body)
    await reached.wait()
    closing = asyncio.create_task(scope.aclose())
    await cancelled.wait()
    while phase == "connections are cut" and handle.outcome is not Outcome.UNKNOWN:
        await asyncio.sleep(0)
    closing.cancel("too late")
    await asyncio.sleep(0)
    before = closing.done()
    release.set()
    with pytest.raises(asyncio.CancelledError, match="too late"):
        await closing

    assert (False, TaskState.CANCELLED) == (before, handle.state)


async def test_a_failing_unit_after_the_hosts_cancellation_is_noted(scope_of):
    """The cancellation comes out; what a unit raised in its clean-up is a note on it."""

    async def body(_session):
        try:
            await asyncio.Event().wait()
        finally:
            raise ValueError("clean-up")

    async def host():
        async with scope_of(on_failure="raise") as scope:
            handles.append(scope.spawn(body))

    handles = []
    task = asyncio.create_task(host())
    while not handles or handles[0].state is not TaskState.RUNNING:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError) as caught:
        await task

    assert ["scope t: ValueError: clean-up"] == caught.value.__notes__


async def test_start_opens_at_once_with_and_without_await(scope_of):
    """``start()`` need not be awaited; awaited, it gives the scope."""
    one, two = scope_of(), scope_of()

    one.start()
    awaited = await two.start()

    assert awaited is two
    assert [42, 42] == [await scope.spawn(answer) for scope in (one, two)]
    await one.aclose()
    await two.aclose()


async def test_a_scope_has_one_life(scope_of):
    """It can be started once; closing it before, twice and from two tasks is fine."""
    scope = scope_of()
    async with scope:
        with pytest.raises(ScopeClosedError, match=r"scope t was started twice: it is open\n") as caught:
            scope.start()
    assert ("a scope has one life", "scope = TaskScope(Session, name='t')") == (caught.value.why, caught.value.cure)
    await scope.aclose()
    with pytest.raises(ScopeClosedError, match="it is closed"):
        scope.start()
    unstarted = scope_of()
    await unstarted.aclose()
    with pytest.raises(ScopeClosedError):
        unstarted.start()


async def test_two_tasks_that_close_wait_for_the_same_end(scope_of):
    """Both return when the last unit has ended, and not before."""
    gate = Gate()
    scope = scope_of()
    scope.start()
    scope.spawn(gate.pass_through)
    closers = [asyncio.create_task(scope.aclose()) for _ in range(2)]
    await gate.reached.wait()
    before = [closer.done() for closer in closers]

    gate.opened.set()
    await asyncio.gather(*closers)

    assert [False, False] == before


async def test_a_unit_may_close_its_own_scope(scope_of):
    """It waits for the others, not for itself; the host waits for it."""
    gate = Gate()
    steps = []

    async def closer(_session):
        await scope.aclose()
        steps.append("closed")

    async def other(_session):
        await gate.pass_through()
        steps.append("other")

    async with scope_of(limit=2) as scope:
        scope.spawn(other)
        scope.spawn(closer)
        await gate.reached.wait()
        gate.opened.set()

    assert ["other", "closed"] == steps


async def test_a_scope_that_is_being_cancelled_says_so(scope_of):
    """Its units may spawn no more, and are told why; a snapshot has the same word."""
    seen = []

    async def body(_session):
        try:
            await asyncio.Event().wait()
        finally:
            seen.append(scope.snapshot().state)
            scope.spawn(answer)

    async with scope_of(drain_timeout=0) as scope:
        handle = scope.spawn(body)

    assert ["being cancelled"] == seen
    assert "answer was spawned in scope t, which is being cancelled" == handle.exception().what


async def test_a_unit_that_closes_its_scope_is_not_cancelled_by_it(scope_of):
    """Past the drain timeout it cancels the others, and goes on itself."""

    async def closer(_session):
        await scope.aclose()
        return "closed"

    scope = scope_of(drain_timeout=0)
    scope.start()
    other = scope.spawn(for_ever)
    result = await scope.spawn(closer)
    await scope.aclose()

    assert ("closed", TaskState.CANCELLED) == (result, other.state)


async def test_a_unit_that_has_closed_its_scope_may_still_spawn(scope_of):
    """The others have ended, so nothing was cancelled; the scope is being left until this unit has ended too."""

    async def closer(_session):
        await scope.aclose()
        return await scope.spawn(answer)

    async with scope_of() as scope:
        handle = scope.spawn(closer)

    assert 42 == handle.result()


async def test_a_unit_that_closes_its_scope_does_not_report_itself(scope_of):
    """Among those who survive their cancellation is nobody that was not cancelled."""
    stubborn = Stubborn()

    async def closer(_session):
        await stubborn.reached.wait()
        await scope.aclose()

    scope = scope_of(drain_timeout=0, cancel_timeout=0)
    scope.start()
    other = scope.spawn(stubborn.run)
    with pytest.raises(ShutdownError) as caught:
        await scope.spawn(closer)
    stubborn.release.set()
    with pytest.raises(UnitCancelledError):
        await other
    await scope.aclose()

    assert ["Stubborn.run#1"] == [survivor.name for survivor in caught.value.survivors]


async def test_a_unit_that_closes_its_scope_keeps_its_connection(scope_of, sqlite_engine, names_in_table, monkeypatch):
    """The connections of those who survive are cut, and they end by that; its own row is written, without a wait."""
    monkeypatch.setattr(scope_module, "LAST_WORDS", 3600)
    cut, reached = asyncio.Event(), asyncio.Event()
    event.listen(sqlite_engine.sync_engine.pool, "checkin", lambda *_: cut.set())

    async def stubborn(session, connects):
        if connects:
            await session.execute(sa.text("select 1"))
            reached.set()
        while not cut.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await cut.wait()
        for _ in range(20):
            await asyncio.sleep(0)

    async def closer(session):
        await reached.wait()
        await add(session)
        await session.flush()
        await scope.aclose()

    scope = scope_of(drain_timeout=0, cancel_timeout=0)
    scope.start()
    scope.spawn(stubborn, connects=False)
    other = scope.spawn(stubborn, connects=True)
    handle = scope.spawn(closer)
    await handle
    await scope.aclose()

    assert ["a"] == await names_in_table(sqlite_engine)
    assert (Outcome.COMMITTED, TaskState.CANCELLED, Outcome.UNKNOWN) == (handle.outcome, other.state, other.outcome)


async def test_a_unit_that_drains_its_scope_lends_its_slot(scope_of):
    """With one slot, a unit that waits for all others lets them run."""

    async def drainer(_session):
        handle = scope.spawn(answer)
        await scope.drain()
        return handle.result()

    async with scope_of(limit=1) as scope:
        handle = scope.spawn(drainer)

    assert 42 == handle.result()


async def test_a_unit_that_is_cancelled_while_it_drains_goes_on_at_once(scope_of):
    """Its clean-up does not wait for a slot."""
    gate = Gate()

    async def drainer(_session):
        scope.spawn(gate.pass_through)
        await scope.drain()

    async with scope_of(limit=1) as scope:
        handle = scope.spawn(drainer)
        await gate.reached.wait()
        handle.cancel()
        with pytest.raises(UnitCancelledError):
            await handle
        gate.opened.set()


async def test_an_inner_scope_in_a_unit_may_wait_for_units_of_the_outer(scope_of):
    """The unit that leaves the inner scope lends its outer slot: one slot in each is enough."""

    async def waits_for_outer(_session, handle):
        return await handle

    async def outer(_session):
        queued = scope.spawn(answer)
        async with scope_of(name="inner", limit=1) as inner:
            handle = inner.spawn(waits_for_outer, queued)
        return handle.result()

    async with scope_of(limit=1) as scope:
        handle = scope.spawn(outer)

    assert 42 == handle.result()


async def test_a_unit_that_lent_its_slot_for_an_inner_scope_takes_it_back(scope_of):
    """Another unit of the outer scope has the slot meanwhile: it ends before the first one goes on."""
    steps = []

    async def waits_for_outer(_session, handle):
        await handle

    async def long(_session):
        for _ in range(50):
            await asyncio.sleep(0)
        steps.append("the other unit ends")

    async def outer(_session):
        queued = scope.spawn(answer)
        scope.spawn(long)
        async with scope_of(name="inner", limit=1) as inner:
            inner.spawn(waits_for_outer, queued)
        steps.append("the first goes on")

    async with scope_of(limit=1) as scope:
        scope.spawn(outer)

    assert ["the other unit ends", "the first goes on"] == steps


async def test_a_unit_that_leaves_an_inner_scope_keeps_its_slot(scope_of):
    """Units of another scope need no slot of this one: with one slot, one unit is open at a time."""
    open_now, most = set(), []

    async def outer(_session, number):
        open_now.add(number)
        most.append(len(open_now))
        async with scope_of(name="inner", limit=1) as inner:
            inner.spawn(answer)
        open_now.remove(number)

    async with scope_of(limit=1) as scope:
        for number in range(3):
            scope.spawn(outer, number)

    assert [1, 1, 1] == most


async def test_two_units_that_drain_do_not_wait_for_each_other(scope_of):
    """Each waits for all but those that wait as it does."""

    async def drainer(_session):
        await scope.drain()
        return "drained"

    async with scope_of() as scope:
        handles = [scope.spawn(drainer) for _ in range(2)]

    assert ["drained"] * 2 == [handle.result() for handle in handles]


async def test_a_helper_whose_unit_has_ended_drains_like_anybody(scope_of):
    """It waits for units that drain too, and nobody takes its unit for one that is still to end."""
    gate, steps = Gate(), []

    async def helper():
        await scope.drain()
        steps.append("helper")

    async def unit(_session):
        helpers.append(asyncio.create_task(helper()))
        await asyncio.sleep(0)

    async def drainer(_session):
        await scope.drain()
        steps.append("drainer")
        for _ in range(20):
            await asyncio.sleep(0)
        steps.append("drainer ends")

    async def other(_session):
        await gate.pass_through()
        steps.append("other")

    helpers = []
    async with scope_of() as scope:
        scope.spawn(other)
        scope.spawn(unit)
        while len(scope) > 1:
            await asyncio.sleep(0)
        scope.spawn(drainer)
        for _ in range(20):
            await asyncio.sleep(0)
        gate.opened.set()
        await helpers[0]

    assert ["other", "drainer", "drainer ends", "helper"] == steps


@pytest.mark.parametrize("waits", [True, False])
async def test_a_unit_that_drains_waits_for_its_spawner_unless_that_waits_for_it(scope_of, waits):
    """Its spawner is a unit like any other; but one that awaits it is exempt, or both would wait for ever."""
    steps = []

    async def child(_session):
        await scope.drain()
        steps.append("child")

    async def parent(_session):
        handle = scope.spawn(child)
        for _ in range(10):
            await asyncio.sleep(0)
        if waits:
            await handle
        steps.append("parent")

    async with scope_of() as scope:
        scope.spawn(parent)

    assert (["child", "parent"] if waits else ["parent", "child"]) == steps


def test_an_eager_unit_that_ends_the_program_ends(sqlite):
    """SystemExit before the first suspension of an eager task: the unit has failed, and nobody waits for it."""
    if not hasattr(asyncio, "eager_task_factory"):
        pytest.skip("Python 3.11 has no eager tasks")
    from sqlalchemy.ext.asyncio import create_async_engine

    async def leave(_session):
        raise SystemExit(3)

    async def main():
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        engine = create_async_engine(sqlite.url)
        async with TaskScope(session_maker(engine), name="t", cancel_timeout=60) as scope:
            handles.append(scope.spawn(leave))

    handles = []
    with pytest.raises(SystemExit):
        asyncio.run(main())

    assert TaskState.FAILED is handles[0].state


async def test_a_task_factory_that_raises_fails_the_unit(scope_of, loop_errors):
    """The unit that could not be started has failed, and that is all; the next ones start."""

    def broken(_loop, coroutine, **_options):
        asyncio.get_running_loop().set_task_factory(None)
        raise OSError("no task")

    async with scope_of(limit=1) as scope:
        asyncio.get_running_loop().set_task_factory(broken)
        handles = [scope.spawn(answer) for _ in range(2)]

    assert ["no task", 42] == [str(handles[0].exception()), handles[1].result()]
    assert [] == loop_errors


async def test_drain_leaves_the_scope_open(scope_of):
    """After ``drain()`` the scope takes more units; past its timeout it names what is left, and lets it go on."""
    gate = Gate()
    async with scope_of() as scope:
        with pytest.raises(ValueError, match=r"^timeout is in seconds, from 0"):
            await scope.drain(-1)
        await scope.spawn(answer)
        await scope.drain()
        handle = scope.spawn(gate.pass_through)
        scope.spawn(gate.pass_through)
        left = r"Gate\.pass_through#2, Gate\.pass_through#3"
        with pytest.raises(TimeoutError, match=f"^scope t was not quiet after 0 s: {left}$"):
            await scope.drain(0)
        gate.opened.set()

    assert TaskState.SUCCEEDED is handle.state


async def test_a_scope_that_waits_reports_whom_it_waits_for(scope_of, caplog, monkeypatch):
    """Every interval one WARNING names the units; the documents say how long that is."""
    assert 30 == runner_module.REPORT_INTERVAL
    monkeypatch.setattr(runner_module, "REPORT_INTERVAL", 0)
    gate = Gate()
    scope = scope_of()
    scope.start()
    scope.spawn(gate.pass_through)
    closing = asyncio.create_task(scope.aclose())
    while len(caplog.records) < 2:
        await asyncio.sleep(0)
    monkeypatch.setattr(runner_module, "REPORT_INTERVAL", 3600)
    for _ in range(20):
        await asyncio.sleep(0)

    gate.opened.set()
    await closing

    # The interval had begun before it was made longer.
    assert len(caplog.records) <= 3
    assert "scope t has waited 0s for 1 unit(s): Gate.pass_through#1" == caplog.records[0].getMessage()
    assert "WARNING" == caplog.records[0].levelname


async def test_cancel_cancels_every_unit_and_leaves_the_scope_open(scope_of):
    """Queued and running ones; a unit spawned afterwards runs."""
    async with scope_of(limit=1) as scope:
        running = scope.spawn(for_ever)
        queued = scope.spawn(answer)
        await asyncio.sleep(0)

        scope.cancel("maintenance")
        later = scope.spawn(answer)

    assert ["maintenance"] * 2 == [running.exception().reason, queued.exception().reason]
    assert 42 == later.result()


async def test_a_cancel_without_a_reason_names_the_scope(scope_of):
    """The handle says who cancelled."""
    async with scope_of() as scope:
        handle = scope.spawn(for_ever)
        scope.cancel()

    assert "scope t was cancelled" == handle.exception().reason


@pytest.mark.parametrize(
    ("use", "verb"),
    [(lambda scope: scope.cancel(), "cancelled"), (lambda scope: scope.drain(), "drained")],
    ids=["cancel", "drain"],
)
async def test_a_scope_that_was_never_started_has_nothing_to_cancel_or_drain(scope_of, use, verb):
    """Both say that it was never started, and what to do."""
    with pytest.raises(ScopeClosedError) as caught:
        waiting = use(scope_of())
        await waiting

    assert f"scope t cannot be {verb}: it was never started" == caught.value.what
    assert ("a scope belongs to the event loop in which it is started", "scope.start()") == (
        caught.value.why,
        caught.value.cure,
    )


async def test_a_scope_that_was_never_started_is_true_and_empty(scope_of):
    """It may be asked what it asks of nobody."""
    scope = scope_of()

    assert (True, 0, []) == (bool(scope), len(scope), list(scope))


async def test_a_scope_is_true_has_a_length_and_iterates_over_live_handles(scope_of):
    """An empty scope is true; its length and iteration are those of the living units."""
    async with scope_of(limit=1) as scope:
        empty = (bool(scope), len(scope), list(scope))
        handles = [scope.spawn(for_ever), scope.spawn(for_ever)]
        full = (bool(scope), len(scope), set(scope))
        await asyncio.sleep(0)
        running = (len(scope), set(scope))
        scope.cancel()

    assert (True, 0, []) == empty
    assert (True, 2, set(handles)) == full
    assert (2, set(handles)) == running


async def test_a_snapshot_shows_states_and_counts(scope_of):
    """Frozen figures of the scope and its living units, before, during and after."""
    scope = scope_of(limit=1)
    before = scope.snapshot()
    async with scope:
        await scope.spawn(answer)
        await _settled(scope.spawn(fail))
        scope.spawn(for_ever)
        scope.spawn(for_ever).cancel()
        queued = scope.spawn(answer)
        await asyncio.sleep(0)
        during = scope.snapshot()
        scope.cancel()
    after = scope.snapshot()

    assert ScopeSnapshot("t", "not started", None, 0, 0, 0, 0, 0, 0, 0, ()) == before
    assert ("open", 1, 1, 1) == (during.state, during.limit, during.queued, during.running)
    assert (1, 1, 1) == (during.succeeded, during.failed, during.cancelled)
    assert ["for_ever#3", "answer#5"] == [unit.name for unit in during.units]
    assert queued.name == during.units[1].name
    assert 0 < during.units[1].age < during.units[0].age < 60
    assert ("closed", 3, ()) == (after.state, after.cancelled, after.units)
    assert "<TaskScope t: closed, 0 unit(s)>" == repr(scope)


LEAVE_IT = "await scope.aclose()  # in the loop that started it"
USES = {
    "spawn": (
        lambda scope, _handle: scope.spawn(answer),
        "answer was spawned",
        "loop.call_soon_threadsafe(scope.spawn, answer, ...)",
    ),
    "drain": (lambda scope, _handle: scope.drain(), "the scope was drained", LEAVE_IT),
    "aclose": (lambda scope, _handle: scope.aclose(), "the scope was left", LEAVE_IT),
    "cancel the scope": (lambda scope, _handle: scope.cancel(), "the scope was cancelled", LEAVE_IT),
    "await": (
        lambda _scope, handle: handle,
        "Gate.pass_through#1 was awaited",
        "await handle  # in the loop that runs the scope",
    ),
    "cancel the unit": (
        lambda _scope, handle: handle.cancel(),
        "Gate.pass_through#1 was cancelled",
        "loop.call_soon_threadsafe(handle.cancel)",
    ),
    "add a callback": (
        lambda _scope, handle: handle.add_done_callback(print),
        "a callback was added to Gate.pass_through#1",
        "loop.call_soon_threadsafe(handle.add_done_callback, f)",
    ),
}


@pytest.mark.parametrize(("use", "what", "cure"), USES.values(), ids=USES.keys())
async def test_another_loop_or_thread_is_refused(scope_of, use, what, cure):
    """Every use from another loop or thread says so at once, names the cure, and changes nothing."""

    async def in_another_loop(scope, handle):
        waiting = use(scope, handle)
        await waiting

    gate = Gate()
    async with scope_of() as scope:
        handle = scope.spawn(gate.pass_through)
        await gate.reached.wait()
        with pytest.raises(WrongLoopError) as caught:
            await asyncio.to_thread(asyncio.run, in_another_loop(scope, handle))
        state = (len(scope), handle.state, scope.snapshot().state)
        gate.opened.set()

    assert f"{what} from another event loop or thread than that of scope t" == caught.value.what
    assert cure == caught.value.cure
    assert (1, TaskState.RUNNING, "open") == state


async def test_without_any_loop_a_spawn_is_refused(scope_of):
    """A plain thread has no loop at all."""
    async with scope_of() as scope:
        with pytest.raises(WrongLoopError):
            await asyncio.to_thread(scope.spawn, answer)


async def test_what_has_ended_belongs_to_no_loop(scope_of):
    """A closed scope may be closed again, and an ended unit cancelled, anywhere."""
    async with scope_of() as scope:
        handle = scope.spawn(answer)

    cancelled = await asyncio.to_thread(handle.cancel)
    await asyncio.to_thread(asyncio.run, scope.aclose())

    assert (False, 42) == (cancelled, handle.result())


def test_a_scope_cannot_start_where_no_loop_runs(LiteSession_without_loop):
    """``start()`` outside of a coroutine names the cure."""
    with pytest.raises(WrongLoopError) as caught:
        LiteSession_without_loop.start()

    assert "scope t was started where no event loop runs" == caught.value.what
    assert "async def main(): scope.start()" == caught.value.cure


@pytest.fixture
def LiteSession_without_loop():
    return TaskScope(AsyncSession, name="t", limit=1)


async def test_a_scope_that_is_dropped_while_open_is_reported(scope_of):
    """A ResourceWarning with its name, from the garbage collector."""
    scope = scope_of()
    scope.start()

    with pytest.warns(ResourceWarning, match=r"^scope t was started and never closed; units left: 0$"):
        del scope
        gc.collect()


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"limit": 0}, LimitError, "limit"),
        ({"limit": True}, LimitError, "limit"),
        ({"limit": "many"}, LimitError, "limit"),
        ({"on_failure": "ignore"}, ValueError, '^on_failure is "log", "raise" or "cancel", not \'ignore\'$'),
        ({"drain_timeout": -1}, ValueError, "^drain_timeout is in seconds, from 0, or None for no limit; .*-1$"),
        ({"cancel_timeout": float("nan")}, ValueError, "^cancel_timeout is in seconds, from 0; it cannot be nan$"),
        ({"cancel_timeout": None}, ValueError, "^cancel_timeout is in seconds, from 0; it cannot be None$"),
        ({"name": ""}, ValueError, "^the name of a scope is for the log, and cannot be ''$"),
        ({"name": None}, ValueError, "None$"),
        ({"listeners": [object()]}, DeclarationError, "object"),
        ({"factory": 42}, DeclarationError, "42|int"),
    ],
    ids=str,
)
def test_arguments_out_of_range_are_refused(options, error, text):
    """Bad arguments fail when the scope is made, before anything starts, and the error names them."""
    with pytest.raises(error, match=text):
        TaskScope(**({"factory": session_maker(None), "name": "t"} | options))


def test_the_parameters_are_those_of_the_pages():
    """By name only, and with these defaults."""
    assert (
        "(factory, *, name, limit='pool', on_failure='log', drain_timeout=None, cancel_timeout=10.0, listeners=())",
        "(self, *, name=None, timeout=None, context='copy', guard='raise')",
        "(self, callback, *, context=None)",
    ) == tuple(map(_parameters_of, (TaskScope, TaskScope.options, TaskHandle.add_done_callback)))


def _parameters_of(called):
    signature = inspect.signature(called)
    bare = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in signature.parameters.values()]
    return str(signature.replace(parameters=bare, return_annotation=inspect.Signature.empty))


async def test_a_failure_cancels_a_scope_within_a_cancelled_task(scope_of):
    """The cancellation of before is not the scope's: the group of failures comes out, as it does elsewhere."""

    async def host():
        try:
            await asyncio.Event().wait()
        finally:
            async with scope_of(on_failure="cancel") as scope:
                scope.spawn(fail)
                await asyncio.Event().wait()

    task = asyncio.create_task(host())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(ExceptionGroup) as caught:
        await task

    assert ["no"] == [str(error) for error in caught.value.exceptions]


async def test_a_scope_watches_sessions_from_when_it_is_made(tmp_path):
    """A session that did its work after that, and was closed, is known to be closed."""
    program = """
import asyncio, sys
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import sessionmaker
from sa_isolated_tasks import SessionPassedError, TaskScope

async def body(session, other):
    pass

async def main():
    engine = create_async_engine("sqlite+aiosqlite:///" + sys.argv[1])
    Session = sessionmaker(engine, class_=AsyncSession)
    scope = TaskScope(Session, name="t", limit=1)
    async with Session() as closed:
        await closed.execute(sa.text("select 1"))
    async with scope:
        try:
            scope.spawn(body, closed)
        except SessionPassedError as error:
            print(error.code)
    await engine.dispose()

asyncio.run(main())
"""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program, str(tmp_path / "a.db")), stdout=asyncio.subprocess.PIPE
    )
    out, _ = await asyncio.wait_for(process.communicate(), 60)

    assert (0, b"SIT102") == (process.returncode, out.strip())


async def test_a_scope_within_a_cancelled_task_still_leaves_cleanly(scope_of):
    """A scope used in the clean-up of a cancelled task runs its units: that old cancellation is not theirs."""

    async def host():
        try:
            await asyncio.Event().wait()
        finally:
            async with scope_of() as scope:
                results.append(await scope.spawn(answer))

    results = []
    task = asyncio.create_task(host())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert [42] == results


async def test_the_row_of_a_spawner_is_committed_on_its_own(engine, Session, names_in_table):
    """A parent's rollback leaves the unit's row, and the other way round."""

    async def failing(session):
        await add(session, "unit, rolled back")
        await session.flush()
        raise ValueError

    async with TaskScope(Session, name="t", limit=1) as scope:
        async with Session() as parent:
            await parent.execute(sa.select(Item))
            await scope.spawn(add, "unit, committed")
            await parent.rollback()
        await _settled(scope.spawn(failing))
        async with Session() as parent:
            await add(parent, "parent, committed")
            await parent.commit()

    assert ["parent, committed", "unit, committed"] == await names_in_table(engine)
