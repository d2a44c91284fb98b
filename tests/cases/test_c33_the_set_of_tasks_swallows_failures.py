"""
A background task is kept in a set by ``add_done_callback(tasks.discard)``, and nobody ever reads its exception.

https://github.com/HKUDS/nanobot/issues/5429. A failure must be reported once, when it happens, with the unit's name and
duration; a ``CancelledError`` from inside the task is one too; and reading it later must not report it again.
"""

from __future__ import annotations

import asyncio
import gc
import logging

import pytest
from sqlalchemy import event

from sa_isolated_tasks import LoggingListener, Outcome, TaskScope, TaskState, UnitCancelledError, isolated_session


class Worker:
    """Cancels something of its own, and awaits it."""

    async def fail(self, session=None):
        raise ZeroDivisionError("a bug")

    async def await_what_is_cancelled(self, session=None):
        inner = asyncio.get_running_loop().create_future()
        inner.cancel()
        await inner


@pytest.fixture
def errors(caplog):
    """Gives the records of level ERROR from the package."""
    caplog.set_level(logging.ERROR, logger="sa_isolated_tasks")
    return lambda: list(caplog.records)


async def run_in_a_set(coroutine, loop_errors):
    """The documented pattern; gives how many reports there were before the task was collected."""
    tasks = set()
    task = asyncio.create_task(coroutine)
    tasks.add(task)
    task.add_done_callback(tasks.discard)
    ended = asyncio.Event()
    task.add_done_callback(lambda _: ended.set())
    await ended.wait()
    assert tasks == set()
    return len(loop_errors)


async def test_control_the_failure_is_seen_when_the_task_is_collected(loop_errors):
    """Plain asyncio: nothing is said when the task fails, only when the collector finds it, whenever that is."""
    reports = await run_in_a_set(Worker().fail(), loop_errors)
    gc.collect()

    assert reports == 0
    assert [context["message"] for context in loop_errors] == ["Task exception was never retrieved"]


async def test_control_a_cancelled_error_from_inside_is_never_seen(loop_errors):
    """Plain asyncio: a task that ends with a ``CancelledError`` is never reported, though nobody has cancelled it."""
    reports = await run_in_a_set(Worker().await_what_is_cancelled(), loop_errors)
    gc.collect()

    assert (reports, loop_errors) == (0, [])


async def test_a_failure_is_logged_once_when_it_happens(LiteSession, errors, loop_errors):
    """At the end of the unit, with its name, duration and traceback; neither leaving nor the collector repeats it."""
    async with TaskScope(LiteSession, name="c33") as scope:
        scope.spawn(Worker().fail)
        await scope.drain()
        seen_at_once = errors()
    gc.collect()

    (record,) = seen_at_once
    assert errors() == seen_at_once
    assert record.getMessage().startswith("Worker.fail#1 failed after 0.")
    assert record.exc_info[0] is ZeroDivisionError
    assert record.sit_total >= record.sit_body > 0
    assert loop_errors == []


async def test_a_cancelled_error_from_inside_is_a_failure(LiteSession, errors):
    """Nobody has cancelled the unit, so it has failed: logged as that, and raised as that to who awaits it."""
    async with TaskScope(LiteSession, name="c33") as scope:
        handle = scope.spawn(Worker().await_what_is_cancelled)
        with pytest.raises(UnitCancelledError, match="but nobody had cancelled it"):
            await handle

    assert handle.state is TaskState.FAILED
    assert [record.exc_info[1] for record in errors()] == [handle.exception()]


async def test_a_unit_that_is_cancelled_is_no_failure(LiteSession, errors):
    """A cancellation that was asked for is no error in the log."""
    running = asyncio.Event()

    async def wait(session):
        running.set()
        await asyncio.get_running_loop().create_future()

    async with TaskScope(LiteSession, name="c33") as scope:
        handle = scope.spawn(wait)
        await running.wait()
        handle.cancel("enough")

    assert (handle.state, errors()) == (TaskState.CANCELLED, [])


@pytest.mark.parametrize("times", [0, 1, 2])
async def test_reading_the_failure_does_not_change_what_is_logged(LiteSession, errors, loop_errors, times):
    """Awaited by nobody, once or twice: one record, one exception, and nothing for the collector to say."""
    raised = []
    async with TaskScope(LiteSession, name="c33") as scope:
        handle = scope.spawn(Worker().fail)
        for _ in range(times):
            raised += await asyncio.gather(handle, return_exceptions=True)
    gc.collect()

    assert raised == [handle.exception()] * times
    assert (len(errors()), loop_errors) == (1, [])


async def test_a_failed_commit_is_reported_like_a_failed_body(Session, errors):
    """The body has returned by then; that the rows are lost is said all the same."""

    class Refusal(Exception):
        pass

    async def write(session):
        def refuse(_session):
            raise Refusal

        event.listen(session.sync_session, "before_commit", refuse)
        await session.connection()

    async with TaskScope(Session, name="c33") as scope:
        handle = scope.spawn(write)

    assert (handle.state, handle.outcome) == (TaskState.FAILED, Outcome.ROLLED_BACK)
    assert [record.exc_info[0] for record in errors()] == [Refusal]


async def test_a_handler_is_called_for_each_failure(LiteSession, errors):
    """A listener sees every end with its exception; it takes the place of a done callback that reads it."""
    seen = []

    class Alarm(LoggingListener):
        def unit_ended(self, event, /):
            seen.append((event.unit, type(event.exception)))

    async with TaskScope(LiteSession, name="c33", listeners=[Alarm()]) as scope:
        scope.spawn(Worker().fail)
        scope.spawn(Worker().await_what_is_cancelled)

    assert seen == [
        ("Worker.fail#1", ZeroDivisionError),
        ("Worker.await_what_is_cancelled#2", UnitCancelledError),
    ]
    assert errors() == []


async def test_a_script_does_not_exit_as_if_nothing_had_failed(LiteSession, errors):
    """With ``on_failure="raise"`` leaving raises what nobody has read."""
    with pytest.raises(ExceptionGroup) as raised:
        async with TaskScope(LiteSession, name="c33", on_failure="raise") as scope:
            scope.spawn(Worker().fail)
            scope.spawn(Worker().await_what_is_cancelled)

    assert [type(error) for error in raised.value.exceptions] == [ZeroDivisionError, UnitCancelledError]
    assert len(errors()) == 2


async def test_a_task_of_an_isolated_function_is_what_asyncio_makes_of_it(LiteSession, loop_errors):
    """``create_task`` of an isolated function tracks nothing: who needs the report needs a scope."""
    reports = await run_in_a_set(isolated_session(LiteSession)(Worker().fail.__func__)(Worker()), loop_errors)
    gc.collect()

    assert reports == 0
    assert [type(context["exception"]) for context in loop_errors] == [ZeroDivisionError]
