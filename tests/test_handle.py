"""The handle: awaiting, cancelling, results, callbacks; and what it does not do to its waiter."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import os
import weakref

import pytest
import sqlalchemy as sa
from support import Item

from sa_isolated_tasks import Outcome, TaskScope, TaskState, Timing, UnitCancelledError, isolated_session

VARIABLE = contextvars.ContextVar("VARIABLE")


async def answer(_session, value=42):
    return value


async def fail(_session):
    raise ValueError("no")


async def for_ever(_session):
    await asyncio.Event().wait()


not_eager = pytest.mark.skipif(os.environ.get("SIT_LOOP") == "eager", reason="an eager task has begun when it exists")


@pytest.fixture
async def scope(LiteSession):
    async with TaskScope(LiteSession, name="t", limit=None, drain_timeout=60) as scope:
        yield scope
        scope.cancel()


async def started(handle):
    while handle.state is TaskState.QUEUED:
        await asyncio.sleep(0)


async def test_awaiting_gives_the_result_as_often_as_one_likes(scope):
    """A handle may be awaited before and after the end, and more than once."""
    handle = scope.spawn(answer)

    assert [42, 42, 42] == [await handle, await handle, handle.result()]


async def test_awaiting_raises_the_units_own_exception(scope):
    """The same exception object for everyone who awaits, and its traceback does not grow."""
    handle = scope.spawn(fail)
    caught = []
    for _ in range(3):
        try:
            await handle
        except ValueError as error:
            frames = sum(1 for _ in _walk(error.__traceback__))
            caught.append((error, frames))

    assert 1 == len({id(error) for error, _ in caught})
    assert 1 == len({frames for _, frames in caught})
    assert caught[0][0] is handle.exception()


def _walk(traceback):
    while traceback is not None:
        yield traceback
        traceback = traceback.tb_next


async def test_awaiting_a_cancelled_unit_does_not_cancel_the_waiter(scope):
    """It raises UnitCancelledError with the reason, never a CancelledError, which a TaskGroup would swallow."""
    handle = scope.spawn(for_ever)
    await started(handle)
    handle.cancel("not needed")

    async with asyncio.TaskGroup() as group:
        waiter = group.create_task(_catch(handle))

    assert isinstance(waiter.result(), UnitCancelledError)
    assert "for_ever#1 was cancelled: not needed" == waiter.result().what
    assert waiter.result().where.startswith(__file__)
    assert ("not needed", TaskState.CANCELLED) == (waiter.result().reason, handle.state)


async def _catch(handle):
    try:
        await handle
    except UnitCancelledError as error:
        return error


async def test_cancelling_who_awaits_does_not_cancel_the_unit(scope):
    """The unit goes on, and its result is there for others."""
    release = asyncio.Event()

    async def body(_session):
        await release.wait()
        return "done"

    handle = scope.spawn(body)
    waiter = asyncio.create_task(_await(handle))
    await started(handle)

    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    release.set()

    assert "done" == await handle


async def _await(handle):
    return await handle


async def test_who_has_given_up_waiting_is_forgotten(scope):
    """Or a unit that lives long would collect those who look in on it with a timeout."""
    handle = scope.spawn(for_ever)
    for _ in range(3):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(handle, 0.001)

    assert handle._entry.waiters == []


@pytest.mark.parametrize("wait", [asyncio.wait_for, None], ids=["wait_for", "gather"])
async def test_a_handle_works_with_wait_for_and_gather(scope, wait):
    """Both await a handle in a task of their own; the results are the units'."""
    handles = [scope.spawn(answer, number) for number in range(3)]

    if wait is None:
        results = await asyncio.gather(*handles)
    else:
        results = [await wait(handle, 5) for handle in handles]

    assert [0, 1, 2] == results


async def test_before_the_end_there_is_no_result(scope):
    """``result()`` and ``exception()`` raise InvalidStateError while the unit lives."""
    handle = scope.spawn(for_ever)

    for ask in (handle.result, handle.exception):
        with pytest.raises(asyncio.InvalidStateError, match=r"^for_ever#1 has not ended: it is queued$"):
            ask()

    assert not handle.done()


async def test_after_the_end_the_exception_is_given_or_raised(scope):
    """``exception()`` gives what ``result()`` raises; None for a success."""
    ok, failed = scope.spawn(answer), scope.spawn(fail)
    await scope.drain()

    with pytest.raises(ValueError) as caught:
        failed.result()

    assert (None, caught.value) == (ok.exception(), failed.exception())
    assert (True, True) == (ok.done(), failed.done())


async def test_a_queued_unit_that_is_cancelled_never_starts(LiteSession):
    """It ends at once, opens no session, and leaves the queue."""
    steps = []

    async def body(_session):
        steps.append("body")

    async with TaskScope(LiteSession, name="t", limit=1) as scope:
        scope.spawn(answer)
        handle = scope.spawn(body)
        was_alive = handle.cancel("changed my mind")
        length = len(scope)

    assert (True, TaskState.CANCELLED, 1, []) == (was_alive, handle.state, length, steps)
    assert Outcome.NONE is handle.outcome
    timing = handle.timing
    assert Timing(total=timing.total, queued=timing.total) == timing == handle.timing


@not_eager
async def test_a_unit_that_is_cancelled_before_its_first_step_never_runs(scope):
    """Its task exists, but has not begun: the body is not entered, and the handle says cancelled."""
    steps = []

    async def body(_session):
        steps.append("body")

    handle = scope.spawn(body)
    # The pump runs in the next turn of the loop and makes the task; its first step comes in the turn after.
    await asyncio.sleep(0)
    handle.cancel()
    await scope.drain()

    assert (TaskState.CANCELLED, []) == (handle.state, steps)


async def test_a_second_cancel_does_not_cut_off_the_clean_up(scope):
    """Only the first call reaches the unit; the clean-up in its body runs to its end."""
    cleaning, release = asyncio.Event(), asyncio.Event()

    async def body(_session):
        try:
            await asyncio.Event().wait()
        finally:
            cleaning.set()
            await release.wait()
            steps.append("clean")

    steps = []
    handle = scope.spawn(body)
    await started(handle)
    first = handle.cancel("one")
    await cleaning.wait()
    second = handle.cancel("two")
    release.set()
    await scope.drain()

    assert (True, True, ["clean"], "one") == (first, second, steps, handle.exception().reason)


async def test_cancelling_an_ended_unit_changes_nothing(scope):
    """``cancel()`` says False, and the result stays."""
    handle = scope.spawn(answer)
    await handle

    assert (False, 42) == (handle.cancel(), handle.result())


async def test_a_cancel_between_the_end_of_the_task_and_its_callback_changes_nothing(scope):
    """The body has returned, the loop has not yet told: the unit has succeeded, and stays so."""

    async def body(_session):
        # Runs right after this task is done, before its done callbacks.
        asyncio.get_running_loop().call_soon(lambda: answers.append(handle.cancel()))

    answers = []
    handle = scope.spawn(body)
    await handle

    assert ([False], TaskState.SUCCEEDED) == (answers, handle.state)


async def test_a_unit_may_cancel_itself(scope, LiteSession):
    """Its own cancel reaches it at its next suspension, and rolls back."""

    async def body(session):
        session.add(Item(name="a"))
        await session.flush()
        handle.cancel("enough")
        await session.execute(sa.text("select 1"))

    handle = scope.spawn(body)
    await scope.drain()

    assert (TaskState.CANCELLED, Outcome.ROLLED_BACK) == (handle.state, handle.outcome)


async def test_a_cancelled_unit_that_raises_something_else_has_failed(scope):
    """The error of the clean-up is not hidden by the cancellation."""

    async def body(_session):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise ValueError("clean-up") from None

    handle = scope.spawn(body)
    await started(handle)
    handle.cancel()
    await scope.drain()

    assert (TaskState.FAILED, "clean-up") == (handle.state, str(handle.exception()))


async def test_a_task_that_is_cancelled_from_outside_is_a_cancelled_unit(scope):
    """Whoever cancels the unit's task directly, as ``asyncio.run`` does at its end, gets a cancelled unit."""

    async def body(_session):
        asyncio.current_task().cancel()
        await asyncio.Event().wait()

    handle = scope.spawn(body)
    await scope.drain()

    assert ("its task was cancelled", TaskState.CANCELLED) == (handle.exception().reason, handle.state)


@not_eager
async def test_a_task_that_is_cancelled_from_outside_before_its_first_step_is_a_cancelled_unit(scope):
    """The body was never entered, and nobody had asked the handle: that is no success."""
    before = asyncio.all_tasks()
    handle = scope.spawn(answer)
    await asyncio.sleep(0)
    (task,) = asyncio.all_tasks() - before
    task.cancel()
    await scope.drain()

    assert ("its task was cancelled", TaskState.CANCELLED) == (handle.exception().reason, handle.state)


async def test_a_unit_cannot_await_itself(scope):
    """It would wait for ever, so it is told at once."""

    async def body(_session):
        await handle

    handle = scope.spawn(body)
    await scope.drain()

    with pytest.raises(RuntimeError, match=r"body#1 awaits its own handle, and would wait for ever$"):
        handle.result()


async def test_callbacks_run_once_in_order_and_not_in_the_adders_frame(scope):
    """Callbacks added before and after the end run in the loop, in their order, with an equal handle."""
    handle = scope.spawn(answer)
    calls = []
    handle.add_done_callback(lambda ended: calls.append(("first", ended)))
    handle.add_done_callback(lambda ended: calls.append(("second", ended)))
    await handle
    handle.add_done_callback(lambda ended: calls.append(("late", ended)))
    at_once = len(calls)
    await asyncio.sleep(0)
    await asyncio.sleep(0)

    assert [("first", handle), ("second", handle), ("late", handle)] == calls
    assert at_once < 3


async def test_a_callback_runs_in_the_context_in_which_it_was_added(scope):
    """In a copy of the adder's variables, or in the context that it was given; added before the end or after it."""
    seen = []
    given = contextvars.Context()
    given.run(VARIABLE.set, "given")

    def note(_handle):
        seen.append(VARIABLE.get())

    def add(text):
        VARIABLE.set(text)
        handle.add_done_callback(note)
        handle.add_done_callback(note, context=given)

    handle = scope.spawn(answer)
    add("before")
    VARIABLE.set("meanwhile")
    await handle
    add("after")
    VARIABLE.set("at the end")
    await asyncio.sleep(0)

    assert ["before", "given", "after", "given"] == seen


async def test_a_callback_that_raises_harms_nobody(scope, loop_errors):
    """What it raises goes to the loop's exception handler; the other callbacks run."""
    called = asyncio.Event()
    handle = scope.spawn(answer)
    handle.add_done_callback(lambda _: 1 / 0)
    handle.add_done_callback(lambda _: called.set())

    await called.wait()

    assert [ZeroDivisionError] == [type(context["exception"]) for context in loop_errors]
    assert 42 == handle.result()


async def test_a_handle_is_equal_to_itself_and_to_no_other(scope):
    """Handles compare by unit, and can be in sets."""
    one, two = scope.spawn(answer), scope.spawn(answer)

    assert {one, two} == set(scope)
    assert one != two
    assert one != "answer#1"


async def test_a_handle_says_what_it_knows(scope):
    """Name, state, outcome, commits and timing, before and after the end."""

    async def body(session):
        session.add(Item(name="a"))
        await session.commit()
        return asyncio.current_task().get_name()

    handle = scope.spawn(body)
    before = (handle.name, handle.state, handle.outcome, repr(handle), handle.commits)
    name_of_task = await handle

    assert "body#1" == handle.name.rpartition(".")[2]
    assert handle.name == name_of_task
    assert (TaskState.QUEUED, Outcome.NONE) == before[1:3]
    assert (f"<TaskHandle {handle.name} queued, none>", 0) == before[3:]
    assert (TaskState.SUCCEEDED, Outcome.COMMITTED, 1) == (handle.state, handle.outcome, handle.commits)
    assert 0 < handle.timing.queued < handle.timing.total


async def test_the_time_of_a_living_unit_runs(scope):
    """Timing can be read while the unit is queued and while it runs."""
    handle = scope.spawn(for_ever)
    queued = handle.timing
    await started(handle)
    running = handle.timing

    assert 0 < queued.queued <= running.queued <= running.total
    assert handle.timing.queued == running.queued


async def test_a_cancelled_unit_is_freed_without_the_garbage_collector(scope, caplog):
    """What its body held is gone with it: a result that streams, for one, and the lock that it has on SQLite."""
    caplog.set_level(logging.CRITICAL, "sa_isolated_tasks")

    class Big:
        pass

    async def body(_session):
        big = Big()
        gone.append(weakref.ref(big))
        reached.set()
        await asyncio.Event().wait()

    gone, reached = [], asyncio.Event()
    gc.collect()
    gc.disable()
    try:
        handle = scope.spawn(body)
        await reached.wait()
        handle.cancel()
        await scope.drain()
        assert handle.state is TaskState.CANCELLED
        del handle
        for _ in range(3):
            await asyncio.sleep(0)

        assert gone[0]() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("way", ["by position", "by name", "as a method", "in its context", "as a callback"])
async def test_the_handle_of_an_ended_unit_keeps_nothing_that_it_was_called_with(scope, LiteSession, way):
    """It may live as long as the application."""

    class Big:
        @isolated_session(LiteSession)
        async def method(self, _session):
            pass

        def called_back(self, _handle):
            pass

    async def body(_session, big):
        assert isinstance(big, Big)

    big = Big()
    gone = weakref.ref(big)
    if way == "by position":
        handle = scope.spawn(body, big)
    elif way == "by name":
        handle = scope.spawn(body, big=big)
    elif way == "as a method":
        handle = scope.spawn(big.method)
    elif way == "in its context":
        context = contextvars.copy_context()
        context.run(VARIABLE.set, big)
        handle = context.run(scope.spawn, answer)
        del context
    else:
        handle = scope.spawn(answer)
        handle.add_done_callback(big.called_back)
    await handle
    del big
    await asyncio.sleep(0)
    gc.collect()

    assert (None, TaskState.SUCCEEDED) == (gone(), handle.state)


@pytest.mark.parametrize(
    "way",
    ["cancelled in the queue", pytest.param("cancelled before its first step", marks=not_eager), "dropped"],
)
async def test_a_unit_that_never_ran_keeps_nothing_that_it_was_called_with(LiteSession, way):
    """Its handle may live on all the same."""

    class Big:
        pass

    async def body(_session, big):
        pytest.fail(f"{big} was seen")

    big = Big()
    gone = weakref.ref(big)
    async with TaskScope(LiteSession, name="t", limit=1) as scope, LiteSession() as parent:
        if way == "dropped":
            await parent.begin()
            handle = scope.spawn_after_commit(parent, body, big)
            await parent.rollback()
        else:
            handle = scope.spawn(body, big)
            if way == "cancelled before its first step":
                await asyncio.sleep(0)  # its task is there
            handle.cancel()
    del big
    gc.collect()

    assert gone() is None
    assert handle.state is (TaskState.DROPPED if way == "dropped" else TaskState.CANCELLED)


async def test_cancelled_units_do_not_fill_the_queue(LiteSession):
    """They leave it, though the one before them runs for ever; those that were not cancelled keep their order."""
    release, order = asyncio.Event(), []

    async def hold(_session):
        await release.wait()

    async def note(_session, number):
        order.append(number)

    async with TaskScope(LiteSession, name="t", limit=1) as scope:
        scope.spawn(hold)
        handles = [scope.spawn(note, number) for number in range(1000)]
        for number, handle in enumerate(handles):
            if number % 100:
                handle.cancel()
        left = len(scope._runner.queue._queue)
        release.set()

    assert order == [*range(0, 1000, 100)]
    assert left < 200


async def test_a_failed_unit_is_freed_without_the_garbage_collector(scope, caplog):
    """The stored exception makes no reference cycle: with the handle gone, the body's locals are gone."""
    # pytest keeps the records of the log, and with them the exception.
    caplog.set_level(logging.CRITICAL, "sa_isolated_tasks")

    class Big:
        pass

    async def body(_session):
        big = Big()
        gone.append(weakref.ref(big))
        raise ValueError("no")

    gone = []
    gc.disable()
    try:
        handle = scope.spawn(body)
        await scope.drain()
        assert isinstance(handle.exception(), ValueError)
        del handle
        for _ in range(3):
            await asyncio.sleep(0)

        assert gone[0]() is None
    finally:
        gc.enable()
