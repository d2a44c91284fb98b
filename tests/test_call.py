"""A decorated call: its session, its transaction, its log, and its cancellation."""

from __future__ import annotations

import asyncio
import logging
import re

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError, InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncSession
from support import Item

from sa_isolated_tasks import SessionPassedError, isolated_session

KEYS = {"sit_scope", "sit_unit"}
END_KEYS = KEYS | {
    *("sit_state", "sit_outcome", "sit_commits", "sit_total", "sit_waiting", "sit_queued", "sit_body", "sit_commit"),
    *("sit_connection", "sit_spawned_at"),
}


@pytest.fixture
def records(caplog):
    """What the package logs in the test itself, from DEBUG on."""
    seen = []
    handler = logging.Handler()
    handler.emit = seen.append
    caplog.set_level(logging.DEBUG, "sa_isolated_tasks")
    logging.getLogger("sa_isolated_tasks").addHandler(handler)
    yield seen
    logging.getLogger("sa_isolated_tasks").removeHandler(handler)


def extra(record):
    return {name: value for name, value in vars(record).items() if name.startswith("sit_")}


class ClosingSession(AsyncSession):
    """Counts how often it is closed."""

    closed = 0

    async def close(self):
        type(self).closed += 1
        await super().close()


@pytest.fixture
def counted(sqlite_engine, monkeypatch):
    monkeypatch.setattr(ClosingSession, "closed", 0)
    return lambda: ClosingSession(sqlite_engine)


async def test_a_call_commits_what_its_body_did(Session, engine, names_in_table):
    """The body returned: its rows are there, and the connection is back in the pool."""

    @isolated_session(Session)
    async def add(session: AsyncSession, name: str) -> str:
        session.add(Item(name=name))
        return name.upper()

    result = await add("a")

    assert result == "A"
    assert engine.pool.checkedout() == 0
    assert await names_in_table(engine) == ["a"]


async def test_a_call_that_raises_is_rolled_back(Session, engine, names_in_table):
    """The exception comes out as it is; nothing of the body is left, and the connection is back in the pool."""
    failure = ValueError("the body's own")

    @isolated_session(Session)
    async def add(session: AsyncSession, name: str):
        session.add(Item(name=name))
        await session.flush()
        raise failure

    with pytest.raises(ValueError, match="the body's own") as caught:
        await add("a")

    assert caught.value is failure
    assert engine.pool.checkedout() == 0
    assert await names_in_table(engine) == []


async def test_a_commit_that_fails_is_the_calls_failure(Session, engine, names_in_table):
    """The body has returned, but the caller gets the exception and not the result."""

    @isolated_session(Session)
    async def add(session: AsyncSession, *names: str):
        session.add_all(Item(name=name) for name in names)

    with pytest.raises(IntegrityError):
        await add("a", "a")

    assert engine.pool.checkedout() == 0
    assert await names_in_table(engine) == []


async def test_the_body_commits_and_rolls_back_as_it_likes(Session, engine, names_in_table):
    """Nothing is begun in advance, so its own commits, rollbacks and blocks are not in the way."""

    @isolated_session(Session)
    async def add(session: AsyncSession):
        async with session.begin():
            session.add(Item(name="a"))
        session.add(Item(name="b"))
        await session.commit()
        session.add(Item(name="c"))
        await session.flush()
        await session.rollback()
        session.add(Item(name="d"))
        async with session.begin_nested():
            session.add(Item(name="e"))

    await add()

    assert await names_in_table(engine) == ["a", "b", "d", "e"]


async def test_with_begin_as_its_factory_a_body_that_commits_fails(Session, engine, names_in_table):
    """The founding error, in the session's own block: documented, and not prevented."""

    @isolated_session(Session.begin)
    async def add(session: AsyncSession, *, commit: bool):
        session.add(Item(name="a"))
        if commit:
            await session.commit()
            await session.execute(sa.select(Item))

    with pytest.raises(InvalidRequestError, match="Can't operate on closed transaction inside context manager"):
        await add(commit=True)

    assert await names_in_table(engine) == ["a"]
    with pytest.raises(IntegrityError):
        await add(commit=False)


async def test_the_session_is_closed_after_every_end(counted):
    """Returned, raised, or cancelled."""
    begun = asyncio.Event()

    @isolated_session(counted)
    async def work(session: AsyncSession, end: str):
        await session.execute(sa.select(Item))
        if end == "raise":
            raise ValueError
        if end == "cancel":
            begun.set()
            await asyncio.Event().wait()

    await work("return")
    assert ClosingSession.closed == 1

    with pytest.raises(ValueError):
        await work("raise")
    assert ClosingSession.closed == 2

    task = asyncio.create_task(work("cancel"))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ClosingSession.closed == 3


async def test_a_call_that_is_cancelled_is_rolled_back(Session, engine, names_in_table, records):
    """The cancellation goes on, the session is closed, and the log says so."""
    begun = asyncio.Event()

    @isolated_session(Session)
    async def add(session: AsyncSession):
        session.add(Item(name="a"))
        await session.flush()
        begun.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(add())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert task.cancelled()
    assert engine.pool.checkedout() == 0
    assert await names_in_table(engine) == []
    assert records[-1].levelno == logging.INFO
    assert records[-1].getMessage().endswith("rolled_back: its task was cancelled")


async def test_a_call_that_is_cancelled_before_its_first_step_opens_nothing(sqlite_engine, records):
    """Its task never ran: there is no session, and no log."""
    made = []

    @isolated_session(lambda: made.append(1) or AsyncSession(sqlite_engine))
    async def work(session: AsyncSession): ...

    task = asyncio.create_task(work())
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert made == []
    assert records == []


@pytest.mark.parametrize("how", ["awaited", "in a task", "cancelled inside"])
async def test_a_call_in_the_clean_up_of_a_cancelled_task_commits(Session, engine, names_in_table, how):
    """The cancellation came before the call, and is none of it; one that comes in the body is."""

    @isolated_session(Session)
    async def add(session: AsyncSession, name: str) -> None:
        session.add(Item(name=name))
        await session.flush()
        if how == "cancelled inside":
            asyncio.current_task().cancel()
            with pytest.raises(asyncio.CancelledError):
                await asyncio.sleep(0)

    async def work():
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if how == "in a task":
                await asyncio.create_task(add("a"))
            else:
                await add("a")
            raise

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert ([] if how == "cancelled inside" else ["a"]) == await names_in_table(engine)


async def test_a_call_inside_a_timeout_fails_with_it(LiteSession, sqlite_engine, names_in_table):
    """``asyncio.timeout`` around a call turns its cancellation into ``TimeoutError``; the unit is rolled back."""

    @isolated_session(LiteSession)
    async def add(session: AsyncSession):
        session.add(Item(name="a"))
        await session.flush()
        await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await add()

    assert await names_in_table(sqlite_engine) == []


async def test_a_cancellation_that_nobody_asked_for_is_a_failure(LiteSession, records):
    """The body has awaited something that was cancelled: that comes out as it is, and is logged as an error."""
    stray = asyncio.get_running_loop().create_future()
    stray.cancel()

    @isolated_session(LiteSession)
    async def work(session: AsyncSession, future: asyncio.Future):
        await future

    with pytest.raises(asyncio.CancelledError):
        await work(stray)

    assert records[-1].levelno == logging.ERROR
    assert records[-1].sit_state == "failed"


async def test_a_coroutine_that_is_closed_in_the_middle_is_logged_as_cancelled(LiteSession, records):
    """As happens to one that is left when its loop has gone."""

    class Never:
        def __await__(self):
            yield

    @isolated_session(LiteSession)
    async def work(session: AsyncSession):
        await Never()

    coroutine = work()
    coroutine.send(None)
    coroutine.close()

    assert records[-1].levelno == logging.INFO
    assert records[-1].getMessage().endswith("its coroutine was closed")


async def test_a_call_logs_its_start_and_its_end(LiteSession, records):
    """DEBUG and INFO, with the function's qualified name, the figures, and documented extra keys."""

    @isolated_session(LiteSession)
    async def add(session: AsyncSession, name: str):
        session.add(Item(name=name))
        await session.commit()
        await session.execute(sa.select(Item))

    await add("secret")

    start, end = records
    assert (start.name, start.levelno) == ("sa_isolated_tasks", logging.DEBUG)
    assert extra(start) == {"sit_scope": "", "sit_unit": add.__qualname__}
    assert (end.name, end.levelno, end.exc_info) == ("sa_isolated_tasks", logging.INFO, None)
    assert extra(end).keys() == END_KEYS
    assert (end.sit_unit, end.sit_scope, end.sit_spawned_at) == (add.__qualname__, "", "")
    assert (end.sit_state, end.sit_outcome, end.sit_commits) == ("succeeded", "committed", 2)
    assert end.sit_total >= end.sit_body + end.sit_commit > 0
    assert end.sit_connection > 0
    assert end.sit_queued == 0
    assert re.fullmatch(
        re.escape(add.__qualname__)
        + r" completed in \d+\.\d\ds \(queued 0.00s, body \d.\d\ds, commit \d.\d\ds, connection \d.\d\ds\), committed",
        end.getMessage(),
    )
    assert "secret" not in start.getMessage() + end.getMessage()


async def test_a_call_that_fails_is_logged_with_its_traceback(LiteSession, records):
    """ERROR, once, with the exception; whoever awaits the call gets it as well."""

    @isolated_session(LiteSession)
    async def work(session: AsyncSession):
        await session.execute(sa.select(Item))
        raise LookupError("nothing there")

    with pytest.raises(LookupError) as caught:
        await work()

    _, end = records
    assert end.levelno == logging.ERROR
    assert end.exc_info[1] is caught.value
    assert "raise LookupError" in logging.Formatter().formatException(end.exc_info)
    assert (end.sit_state, end.sit_outcome, end.sit_commits) == ("failed", "rolled_back", 0)


async def test_a_body_that_never_touches_the_database_costs_no_connection(sqlite_engine, records):
    """No connection is taken out of the pool, and the outcome is that there was none."""
    taken = []
    sa.event.listen(sqlite_engine.sync_engine, "checkout", lambda *args: taken.append(args))

    @isolated_session(lambda: AsyncSession(sqlite_engine))
    async def work(session: AsyncSession):
        return 1

    assert await work() == 1
    assert taken == []
    assert records[-1].sit_outcome == "none"


async def test_every_attempt_of_a_retry_has_a_session_of_its_own(Session, engine, names_in_table):
    """What a failed attempt did is gone when the next one starts."""
    attempts = []

    @isolated_session(Session)
    async def add(session: AsyncSession, name: str):
        seen = (await session.execute(sa.select(sa.func.count()).select_from(Item))).scalar_one()
        attempts.append((id(session), seen))
        session.add(Item(name=name))
        await session.flush()
        if len(attempts) < 3:
            raise ConnectionError

    for _ in range(2):
        with pytest.raises(ConnectionError):
            await add("a")
    await add("a")

    assert [seen for _, seen in attempts] == [0, 0, 0]
    assert await names_in_table(engine) == ["a"]


async def test_calls_that_run_at_once_do_not_see_each_other(Session, engine, names_in_table, database):
    """Each has a transaction of its own: the failure of one takes nothing from the others."""
    if database.has_one_writer:
        pytest.skip("two transactions cannot write at once")
    everyone = asyncio.Barrier(3)

    @isolated_session(Session)
    async def add(session: AsyncSession, name: str):
        session.add(Item(name=name))
        await session.flush()
        await everyone.wait()
        if name == "b":
            raise ValueError

    results = await asyncio.gather(add("a"), add("b"), add("c"), return_exceptions=True)

    assert [type(result) for result in results] == [type(None), ValueError, type(None)]
    assert await names_in_table(engine) == ["a", "c"]


async def test_a_call_from_inside_a_call_has_a_session_of_its_own(Session, engine, names_in_table, database):
    """It commits on its own, and stays although the outer one fails."""
    if database.has_one_writer:
        pytest.skip("two transactions cannot write at once")

    @isolated_session(Session)
    async def inner(session: AsyncSession):
        session.add(Item(name="inner"))

    @isolated_session(Session)
    async def outer(session: AsyncSession):
        session.add(Item(name="outer"))
        await session.flush()
        await inner()
        raise ValueError

    with pytest.raises(ValueError):
        await outer()

    assert await names_in_table(engine) == ["inner"]


async def test_arguments_are_checked_at_the_call_and_not_when_it_is_awaited(LiteSession):
    """The guilty line is in the traceback, and no coroutine is left that nobody awaits."""

    @isolated_session(LiteSession)
    async def work(session: AsyncSession, number: int): ...

    async with LiteSession() as session:
        with pytest.raises(SessionPassedError) as caught:
            work(session)  # the guilty line
        with pytest.raises(SessionPassedError):
            work(1, session)
        with pytest.raises(SessionPassedError):
            work(number=1, session=session)

    assert "work(session)  # the guilty line" in caught.value.where
    for args, kwargs, message in [
        ((), {}, "missing a required argument: 'number'"),
        ((1, 2), {}, "too many positional arguments"),
        ((), {"number": 1, "other": 2}, "got an unexpected keyword argument 'other'"),
        ((1,), {"session": None}, "got an unexpected keyword argument 'session'"),
    ]:
        with pytest.raises(TypeError, match=rf"^work\(\) {message}$"):
            work(*args, **kwargs)


async def test_a_coroutine_has_the_name_of_the_function(LiteSession):
    """In warnings, debuggers and tasks."""

    class Shop:
        @isolated_session(LiteSession)
        async def work(self, session: AsyncSession): ...

    coroutine = Shop().work()

    assert asyncio.iscoroutine(coroutine)
    assert coroutine.__name__ == "work"
    assert coroutine.__qualname__ == Shop.work.__qualname__
    await coroutine


def test_a_coroutine_that_is_never_awaited_is_reported_by_name(LiteSession):
    """By Python itself, with the function's own name."""

    @isolated_session(LiteSession)
    async def work(session: AsyncSession): ...

    with pytest.warns(RuntimeWarning, match=rf"coroutine '{re.escape(work.__qualname__)}' was never awaited"):
        work()


async def test_a_call_made_in_one_task_runs_in_the_task_that_awaits_it(LiteSession):
    """A coroutine is made here, and awaited elsewhere: the session is opened there."""

    @isolated_session(LiteSession)
    async def work(session: AsyncSession):
        return asyncio.current_task()

    coroutine = work()
    task = asyncio.create_task(coroutine)

    assert await task is task


@pytest.mark.parametrize("exception", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_is_rolled_back_and_goes_on(exception, sqlite, records):
    """It ends the loop, as it does without this package."""
    from sqlalchemy.ext.asyncio import create_async_engine
    from support import reset

    seen = []

    async def main():
        engine = create_async_engine(sqlite.url)
        await reset(engine)

        @isolated_session(lambda: AsyncSession(engine))
        async def add(session: AsyncSession):
            session.add(Item(name="a"))
            await session.flush()
            raise exception

        try:
            await add()
        finally:
            async with AsyncSession(engine) as session:
                seen.extend((await session.execute(sa.select(Item.name))).scalars())
            await engine.dispose()

    with pytest.raises(exception):
        asyncio.run(main())

    assert seen == []
    assert records[-1].sit_outcome == "rolled_back"
