"""The log and the listeners: which line at which level, with which extra, and what a listener cannot break."""

from __future__ import annotations

import asyncio
import logging
import re
from pathlib import Path

import pytest
from support import Item

from sa_isolated_tasks import (
    DeclarationError,
    LoggingListener,
    Outcome,
    ScopeWaiting,
    TaskScope,
    TaskState,
    UnitCancelledError,
    UnitEnded,
    UnitStarted,
    isolated_session,
)
from sa_isolated_tasks._logging import notify

SECRET = "the value of an argument"
SECONDS = re.compile(r"\d+\.\d\ds")

PAGE = (Path(__file__).parent.parent / "docs" / "logging.md").read_text()
EXTRA_AT_THE_END = set(re.findall(r"^\| `(sit_\w+)` \|", PAGE, re.MULTILINE))
EXTRA_AT_THE_START = {"sit_scope", "sit_unit"}


class Recorder:
    """Keeps the events."""

    def __init__(self):
        self.events = []

    def unit_started(self, event, /):
        self.events.append(event)

    unit_ended = scope_waiting = unit_started


class Broken:
    """Raises on every event."""

    def unit_started(self, event, /):
        raise OSError(type(event).__name__)

    unit_ended = scope_waiting = unit_started


async def add(session, name):
    session.add(Item(name=name))


async def fail(_session, _name):
    raise ValueError("no")


async def for_ever(_session, _name):
    await asyncio.Event().wait()


async def run(factory, body, *, cancel=False, **options):
    async with TaskScope(factory, name="gum", **options) as scope:
        handle = scope.spawn(body, SECRET)
        if cancel:
            while handle.state is TaskState.QUEUED:
                await asyncio.sleep(0)
            handle.cancel("not needed")
    return handle


def lines(caplog):
    return [(record.levelname, record.getMessage()) for record in caplog.records]


@pytest.fixture
def log(caplog):
    """Records of the package, from DEBUG on; the driver logs too."""
    caplog.set_level(logging.DEBUG, "sa_isolated_tasks")
    caplog.handler.addFilter(logging.Filter("sa_isolated_tasks"))
    return caplog


async def test_a_unit_is_logged_at_its_start_and_at_its_end(LiteSession, log):
    """DEBUG at the start; one INFO at the end with the split of time and the outcome."""
    await run(LiteSession, add)

    (start, end) = lines(log)
    assert ("DEBUG", "add#1 started (queued _s)") == (start[0], SECONDS.sub("_s", start[1]))
    assert ("INFO", "add#1 completed in _s (queued _s, body _s, commit _s, connection _s), committed") == (
        end[0],
        SECONDS.sub("_s", end[1]),
    )


async def test_a_failure_is_logged_with_its_traceback(LiteSession, log):
    """One ERROR with exc_info, and the time so far."""
    await run(LiteSession, fail)

    record = log.records[-1]
    assert ("ERROR", ValueError) == (record.levelname, record.exc_info[0])
    assert SECONDS.sub("_s", record.getMessage()).startswith("fail#1 failed after _s (")


async def test_a_cancelled_unit_is_logged_with_the_reason(LiteSession, log):
    """INFO, and who wanted it."""
    await run(LiteSession, for_ever, cancel=True)

    level, message = lines(log)[-1]
    assert "INFO" == level
    assert SECONDS.sub("_s", message).startswith("for_ever#1 cancelled after _s (")
    assert message.endswith("none: not needed")


@pytest.mark.parametrize("slow", [-1, "1", float("nan")], ids=repr)
def test_a_threshold_that_is_no_number_of_seconds_is_refused(slow):
    with pytest.raises(ValueError, match="slow is in seconds, from 0, or None for never; it cannot be"):
        LoggingListener(slow=slow)


@pytest.mark.parametrize(("slow", "level"), [(0, "WARNING"), (3600, "INFO"), (None, "INFO")], ids=str)
async def test_a_slow_unit_is_a_warning(LiteSession, log, slow, level):
    """From the threshold of the logging listener on the end is a WARNING."""
    await run(LiteSession, add, listeners=[LoggingListener(slow=slow)])

    assert [level] == [record.levelname for record in log.records if "completed" in record.getMessage()]


async def test_the_extra_keys_are_those_of_the_table(LiteSession, log):
    """Start and end carry the documented keys, and no others that begin like them."""
    await run(LiteSession, add)

    keys = [{key for key in vars(record) if key.startswith("sit_")} for record in log.records]
    assert [EXTRA_AT_THE_START, EXTRA_AT_THE_END] == keys
    assert ("gum", "add#1", "committed", 1) == (
        log.records[1].sit_scope,
        log.records[1].sit_unit,
        log.records[1].sit_outcome,
        log.records[1].sit_commits,
    )


@pytest.mark.parametrize("body", [add, fail, for_ever])
async def test_no_argument_gets_into_the_log(LiteSession, log, body):
    """Arguments may be secrets: they are in no message and in no extra."""
    await run(LiteSession, body, cancel=body is for_ever)

    assert [] == [record for record in log.records if SECRET in str(vars(record))]


@pytest.mark.parametrize("body", [add, fail, for_ever])
async def test_nothing_is_logged_below_the_level(LiteSession, caplog, body):
    """With the logger at CRITICAL a unit writes nothing."""
    caplog.set_level(logging.CRITICAL, "sa_isolated_tasks")

    await run(LiteSession, body, cancel=body is for_ever)

    assert [] == [record for record in caplog.records if record.name == "sa_isolated_tasks"]


async def test_a_listener_gets_frozen_events(LiteSession):
    """One event at the start and one at the end, with what the handle knows."""
    recorder = Recorder()

    handle = await run(LiteSession, add, listeners=[recorder])

    started, ended = recorder.events
    assert [UnitStarted, UnitEnded] == [type(started), type(ended)]
    assert ("gum", "add#1", TaskState.SUCCEEDED, Outcome.COMMITTED, 1, None, "") == (
        ended.scope,
        ended.unit,
        ended.state,
        ended.outcome,
        ended.commits,
        ended.exception,
        ended.reason,
    )
    assert handle.timing == ended.timing
    assert "test_logging.py:" in ended.spawned_at
    with pytest.raises(AttributeError):
        ended.state = None


async def test_a_listener_is_told_of_failure_and_cancellation(LiteSession):
    """The exception is what awaiting the handle raises."""
    recorder = Recorder()

    failed = await run(LiteSession, fail, listeners=[recorder])
    cancelled = await run(LiteSession, for_ever, cancel=True, listeners=[recorder])

    ends = [event for event in recorder.events if isinstance(event, UnitEnded)]
    assert [failed.exception(), cancelled.exception()] == [event.exception for event in ends]
    assert isinstance(ends[1].exception, UnitCancelledError)


async def test_a_listener_that_raises_is_logged_and_changes_nothing(LiteSession, log, names_in_table, sqlite_engine):
    """The unit commits, the other listeners are told, and the log says which listener raised."""
    recorder = Recorder()

    handle = await run(LiteSession, add, listeners=[Broken(), recorder])

    assert (TaskState.SUCCEEDED, 2) == (handle.state, len(recorder.events))
    assert [SECRET] == await names_in_table(sqlite_engine)
    assert 2 == sum(message == "a listener raised: Broken" for _, message in lines(log))


class Failing:
    """Raises what no ``except Exception`` catches, as the ``fail()`` of a test does."""

    def unit_started(self, event, /):
        raise asyncio.CancelledError

    unit_ended = scope_waiting = unit_started


class BrokenHandler(logging.Handler):
    """A handler of the log that raises."""

    def emit(self, record):
        raise OSError("handler")


@pytest.mark.parametrize("body", [add, fail])
async def test_nothing_that_a_listener_or_the_log_does_changes_a_unit(LiteSession, log, body):
    """Neither a BaseException nor a broken handler of the log: the body runs, the state is true, leaving ends."""
    handler = BrokenHandler()
    logging.getLogger("sa_isolated_tasks").addHandler(handler)
    try:
        handle = await run(LiteSession, body, listeners=[Failing()])
        isolated = isolated_session(LiteSession)(add)
        await isolated("called")
    finally:
        logging.getLogger("sa_isolated_tasks").removeHandler(handler)

    assert (TaskState.SUCCEEDED if body is add else TaskState.FAILED) is handle.state


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_a_listener_may_end_the_program(error):
    """An interrupt that comes while a listener runs is no failure of the listener."""

    def interrupt(_listener):
        raise error

    with pytest.raises(error):
        notify([Recorder()], interrupt)


async def test_a_listener_may_cancel_other_units(LiteSession):
    """While a scope cancels its units, a listener cancels the rest: each ends once."""

    class Canceller(Recorder):
        def unit_ended(self, event, /):
            self.events.append(event)
            for handle in scope:
                handle.cancel("listener")

    canceller = Canceller()
    async with TaskScope(LiteSession, name="t", limit=1, listeners=[canceller]) as scope:
        handles = [scope.spawn(for_ever, "") for _ in range(3)]
        scope.cancel("scope")

    assert {TaskState.CANCELLED} == {handle.state for handle in handles}
    assert 3 == len(canceller.events)


async def test_an_exception_that_is_false_has_its_traceback_in_the_log(LiteSession, log):
    """``logging`` asks an exception whether it is true; some are not."""

    class Empty(Exception):
        def __bool__(self):
            return False

    async def body(_session, _name):
        raise Empty

    await run(LiteSession, body)

    assert Empty is log.records[-1].exc_info[0]


async def test_a_scope_has_one_logging_listener(LiteSession, log):
    """Giving one replaces the one that is there by default: no line comes twice."""
    await run(LiteSession, add, listeners=[LoggingListener(), Recorder()])

    assert 1 == sum("completed" in message for _, message in lines(log))


def test_a_listener_needs_all_its_methods():
    """What is missing is named when the scope is made."""

    class Half:
        def unit_started(self, event):
            pass

    with pytest.raises(DeclarationError, match="Half has no unit_ended, scope_waiting"):
        TaskScope(lambda: None, name="t", listeners=[Half()])


def test_the_methods_of_a_listener_are_not_coroutine_functions():
    """Nobody would await them."""

    class Async:
        async def unit_started(self, event):
            pass

        unit_ended = scope_waiting = unit_started

    with pytest.raises(DeclarationError, match="Async has an `async def` unit_started"):
        TaskScope(lambda: None, name="t", listeners=[Async()])


def test_waiting_is_a_warning_with_names(caplog):
    """A scope that is being left names what it waits for, with the keys that the page names."""
    LoggingListener().scope_waiting(ScopeWaiting("gum", 30.0, ("a#1", "b#2")))

    assert [("WARNING", "scope gum has waited 30s for 2 unit(s): a#1, b#2")] == lines(caplog)
    assert {"sit_scope", "sit_total"} == {key for key in vars(caplog.records[0]) if key.startswith("sit_")}
    assert "a scope that waits has `sit_scope` and `sit_total`" in PAGE
