"""Cancellations are kept out of commits, and of SQLite's statements, and out of nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import threading

import anyio
import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session as SyncSession
from support import Item, session_maker

from sa_isolated_tasks import Outcome, TaskScope, UnitCancelledError
from sa_isolated_tasks._driving import Driven, _has_sqlite
from sa_isolated_tasks._factory import SessionFactory
from sa_isolated_tasks._unit import Unit
from sa_isolated_tasks._watch import record_of, watch_sessions


class SlowStatement:
    """A function of SQLite's that waits in the thread of the connection until it is released."""

    def __init__(self, engine):
        self.reached = asyncio.Event()
        self.release = threading.Event()
        self.loop = asyncio.get_running_loop()

        @event.listens_for(engine.sync_engine, "connect")
        def _register(connection, _record):
            connection.run_async(lambda driver: driver.create_function("slow", 0, self.wait))

    def wait(self):
        self.loop.call_soon_threadsafe(self.reached.set)
        self.release.wait(30)
        return 42

    async def select(self, session):
        return (await session.execute(sa.text("select slow()"))).scalar()

    async def end_after_cancelling(self, task, *reason):
        """The cancellation comes while the statement runs, which is released only then."""
        await self.reached.wait()
        task.cancel(*reason)
        await asyncio.sleep(0)
        self.release.set()


@pytest.fixture
async def slow(sqlite_engine):
    statement = SlowStatement(sqlite_engine)
    yield statement
    statement.release.set()


@pytest.fixture
async def session(sqlite_engine, slow):
    await sqlite_engine.dispose()  # the connections that do not know the function
    async with session_maker(sqlite_engine)() as session:
        yield session


class Known:
    """What a driver has to know of a session."""

    def __init__(self, *, commit_sent=False, interrupt=lambda: None):
        self.commit_sent = commit_sent
        self.committer = None  # a task of the body's own
        self.on_sqlite = False
        self.interrupt = interrupt
        self.on_end = self.on_entry = None
        self.connections = []

    def distrust_connections(self):
        """There are none."""


async def nothing():
    """Stands in for giving a connection up."""


def known_of(session):
    """As a unit knows its session."""
    if not isinstance(session, AsyncSession):
        return Known()
    watch_sessions()
    record = record_of(session.sync_session)
    record.isolated = True
    return record


def driven(body, session, *, known=None, patience=60, give_up=nothing):
    """*body* in a task, driven."""

    async def run():
        return await Driven(body, session, known or known_of(session), patience, give_up)

    return asyncio.create_task(run())


@pytest.mark.parametrize("factory", ["server", "unbound"])
async def test_outside_of_a_commit_only_sqlite_holds_a_cancellation(session, slow, factory):
    """It gets into a call of a driver that survives it; and of one that is known only when it is used."""

    class Dialect:
        name = "postgresql"

    class Bind:
        dialect = Dialect

    class Elsewhere:
        class sync_session:
            bind = Bind if factory == "server" else None

    task = driven(slow.select(session), Elsewhere)
    await slow.reached.wait()
    task.cancel()
    slow.release.set()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_result_and_an_error_come_out_as_they_are(session, slow):
    """Without a cancellation it is an ``await``."""

    async def fail():
        await asyncio.sleep(0)
        raise ValueError("no")

    slow.release.set()

    assert 42 == await driven(slow.select(session), session)
    with pytest.raises(ValueError, match="no"):
        await driven(fail(), session)


async def test_an_error_of_a_statement_is_the_bodys_to_handle(session):
    """It comes out of the call, where the body can catch it."""

    async def body():
        try:
            await session.execute(sa.text("select nothing_like_this()"))
        except sa.exc.OperationalError:
            await session.rollback()
            return "handled"

    assert "handled" == await driven(body(), session)


async def test_a_cancellation_in_a_statement_comes_after_it(session, slow):
    """The statement is awaited, and the body is cancelled at its next suspension outside of a call."""
    steps = []

    async def body():
        steps.append(await slow.select(session))
        try:
            await asyncio.Event().wait()
        finally:
            steps.append("cancelled here")

    task = driven(body(), session)
    await slow.end_after_cancelling(task, "why")
    with pytest.raises(asyncio.CancelledError, match="why"):
        await task

    assert [42, "cancelled here"] == steps


@pytest.mark.parametrize("way", ["binds", "get_bind"])
async def test_a_session_may_come_to_sqlite_by_other_ways(sqlite_engine, slow, way):
    """By the class of an instance, or by code of its own: the statement is awaited all the same."""
    await sqlite_engine.dispose()  # the connections that do not know the function

    class Routing(SyncSession):
        def get_bind(self, *_, **__):
            return sqlite_engine.sync_engine

    options = {"binds": {Item: sqlite_engine}} if way == "binds" else {"sync_session_class": Routing}
    steps = []

    async def body(session):
        statement = sa.text("select slow()")
        steps.append((await session.execute(statement, bind_arguments={"mapper": sa.inspect(Item)})).scalar())
        await asyncio.Event().wait()

    async with session_maker(None, **options)() as session:
        task = driven(body(session), session)
        await slow.reached.wait()
        task.cancel()
        await asyncio.sleep(0)
        slow.release.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    assert [42] == steps


@pytest.mark.parametrize(
    "options", [{"binds": {Item: "engine"}}, {"bind": "engine"}, {}], ids=["binds", "bind", "none"]
)
async def test_a_session_that_may_connect_to_sqlite_is_known_before_it_does(sqlite_engine, options):
    """While it connects it is in a call already."""
    if "binds" in options:
        options = {"binds": {Item: sqlite_engine}}
    elif options:
        options = {"bind": sqlite_engine}
    async with AsyncSession(**options) as session:
        assert _has_sqlite(session) is bool(options)


async def test_a_cancellation_in_the_last_statement_comes_at_the_end(session, slow):
    """The body has no other suspension: it is cancelled when it returns."""
    task = driven(slow.select(session), session)
    await slow.end_after_cancelling(task)

    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("entry", ["execute", "flush", "commit"])
async def test_a_cancellation_in_a_statement_comes_at_the_entry_of_the_next_call(session, slow, entry):
    """The next call does not begin."""
    steps = []

    async def body():
        await slow.select(session)
        session.add(Item(name="a"))
        try:
            await getattr(session, entry)(*([sa.select(Item)] if entry == "execute" else []))
        except asyncio.CancelledError:
            steps.append("cancelled at the entry")
            raise

    task = driven(body(), session)
    await slow.end_after_cancelling(task)
    with pytest.raises(asyncio.CancelledError):
        await task

    assert ["cancelled at the entry"] == steps


async def test_a_cancellation_that_is_taken_back_is_forgotten(session, slow):
    """A timeout in the body that ran out during a statement, and was left before the next suspension."""

    async def body():
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None) as deadline:
                deadlines.append(deadline)
                await slow.select(session)
        await asyncio.sleep(0)
        return "went on"

    deadlines = []
    task = driven(body(), session)
    await slow.reached.wait()
    deadlines[0].reschedule(0)
    while not task.cancelling():
        await asyncio.sleep(0)
    slow.release.set()

    assert "went on" == await task


async def test_an_anyio_scope_does_not_spin_and_knows_its_cancellation(session, slow):
    """It cancels again and again; it is held once, and delivered as it came, so that the scope takes it."""
    cancels = []

    class Counting(asyncio.Task):
        def cancel(self, msg=None):
            cancels.append(msg)
            return super().cancel(msg)

    async def run():
        with anyio.CancelScope() as scope:
            scopes.append(scope)
            await Driven(slow.select(session), session, Known(), 60, nothing)
        return scope.cancelled_caught

    scopes = []
    task = Counting(run(), loop=asyncio.get_running_loop())
    await slow.reached.wait()
    scopes[0].cancel()
    for _ in range(100):
        await asyncio.sleep(0)
    slow.release.set()

    assert await task
    assert 0 < len(cancels) < 10


async def test_half_of_the_patience_is_the_statements(session):
    """It is interrupted then; the connection is given up when all of it has ended."""
    driver = Driven(nothing(), session, Known(), 60, nothing)
    now = asyncio.get_running_loop().time()
    driver.on_hold()
    delays = [timer.when() - now for timer in driver._timers]
    await driver

    assert [30, 60] == [pytest.approx(delay, abs=5) for delay in delays]
    assert all(timer.cancelled() for timer in driver._timers)


async def test_past_its_patience_the_statement_is_interrupted(session, slow):
    """The interruption releases the statement here, as it ends one in SQLite."""
    interruptions = []

    def interrupt():
        interruptions.append(1)
        slow.release.set()

    task = driven(slow.select(session), session, known=Known(interrupt=interrupt), patience=0)
    await slow.reached.wait()
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert interruptions


class Cut:
    """A call that ends when its connection is given up, and a connection that is closed when the test says so."""

    def __init__(self, error=None):
        self.call = asyncio.get_running_loop().create_future()
        self.error = error
        self.closing, self.closed = asyncio.Event(), asyncio.Event()

    async def give_up(self):
        if self.error is None:
            self.call.set_result(None)
        else:
            self.call.set_exception(self.error)
        self.closing.set()
        await self.closed.wait()

    def drive(self, body, session):
        return driven(body, session, known=Known(commit_sent=True), patience=0, give_up=self.give_up)


async def test_a_body_that_fails_because_its_connection_is_given_up_is_cancelled(session):
    """
    The error is the driver's answer to the cut, and the cause of the cancellation that comes out.

    The body learns of it when the connection is closed, however often there was another cancellation meanwhile.
    """
    cut = Cut(ValueError("the connection was cut"))
    failed = asyncio.Event()

    async def body():
        try:
            await cut.call
        finally:
            failed.set()

    task = cut.drive(body(), session)
    await asyncio.sleep(0)
    task.cancel("held")
    await cut.closing.wait()
    for _ in range(5):
        task.cancel("again")
        await asyncio.sleep(0)
    has_failed = failed.is_set()
    cut.closed.set()
    with pytest.raises(asyncio.CancelledError, match="held") as caught:
        await task

    assert not has_failed
    assert isinstance(caught.value.__cause__, ValueError)


@pytest.mark.parametrize("again", [False, True])
async def test_a_body_goes_on_when_what_was_given_up_is_closed(session, again):
    """It swallows its cancellation; one that came while the connection was being closed is part of that."""
    cut = Cut()
    steps = []

    async def body():
        await cut.call
        for _ in range(2):
            try:
                await asyncio.sleep(0)
                steps.append("went on")
            except asyncio.CancelledError:
                steps.append("was cancelled")
        return "done"

    task = cut.drive(body(), session)
    await asyncio.sleep(0)
    task.cancel()
    await cut.closing.wait()
    for _ in range(3):
        await asyncio.sleep(0)
        if again:
            task.cancel("again")
    before = list(steps)
    cut.closed.set()

    assert "done" == await task
    assert [] == before
    assert ["was cancelled", "went on"] == steps


async def test_patience_that_ends_while_a_timeout_gives_back_what_it_was_lent(session, monkeypatch):
    """The work is through by then, and nothing of it is given up."""
    given_up, drivers, deadlines = [], [], []
    monkeypatch.setattr("sa_isolated_tasks._driving._is_of_the_body", lambda _: False)  # a driver's timeout

    async def body():
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None) as deadline:
                deadlines.append(deadline)
                await asyncio.Event().wait()
        asyncio.get_running_loop().call_soon(drivers[0]._end_patience)

    async def give_up():
        given_up.append(1)

    async def run():
        drivers.append(Driven(body(), session, Known(commit_sent=True), 60, give_up))
        await drivers[0]

    task = asyncio.create_task(run())
    await asyncio.sleep(0)
    task.cancel("from outside")
    await asyncio.sleep(0)
    deadlines[0].reschedule(0)
    with pytest.raises(asyncio.CancelledError, match="from outside"):
        await task

    assert [] == given_up


@pytest.mark.parametrize("taken_back", [False, True])
async def test_a_body_that_fails_while_its_cancellation_is_held_is_cancelled(session, slow, taken_back):
    """Or nobody would know that it was to end: its error is the cause. One that was taken back is none."""

    async def body():
        await slow.select(session)
        if taken_back:
            asyncio.current_task().uncancel()
        raise ValueError("no")

    task = driven(body(), session)
    await slow.end_after_cancelling(task, "held")
    with pytest.raises(ValueError if taken_back else asyncio.CancelledError) as caught:
        await task

    assert taken_back or isinstance(caught.value.__cause__, ValueError)


async def test_after_a_timeout_of_the_body_a_cancellation_comes_at_once():
    """It is the first one of its call: the timeout has had its own, and has taken it back."""
    # A call of SQLAlchemy's is known by the file of its coroutine.
    names = {}
    exec(  # noqa: S102 -- a coroutine of another file
        compile("async def call(future): return await future", sa.__file__, "exec"), names
    )
    answer, reached = asyncio.get_running_loop().create_future(), asyncio.Event()

    class Elsewhere:
        class sync_session:
            bind = None

    async def body():
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0):
                await asyncio.Event().wait()
        reached.set()
        await names["call"](answer)

    task = driven(body(), Elsewhere)
    await reached.wait()
    task.cancel()
    await asyncio.sleep(0)
    await asyncio.sleep(0)

    assert task.cancelled()


async def test_a_hold_in_the_call_of_a_listener(session, slow):
    """A listener of the session runs the statement: the cancellation comes after it, and breaks no listener."""
    event.listen(session.sync_session, "before_flush", lambda flushing, *_: flushing.execute(sa.text("select slow()")))

    async def body():
        session.add(Item(name="a"))
        await session.flush()

    task = driven(body(), session)
    await slow.end_after_cancelling(task)
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_cancellation_comes_at_the_entry_of_a_call_of_core(session, slow):
    """Not only of the session's own."""
    done = []

    async def body():
        connection = await session.connection()
        for number in range(3):
            await connection.execute(sa.text("select slow()"))
            done.append(number)

    task = driven(body(), session)
    await slow.end_after_cancelling(task)
    with pytest.raises(asyncio.CancelledError):
        await task

    assert [0] == done


async def test_patience_that_ends_without_a_cancellation_to_deliver_gives_nothing_up(session, slow):
    """The one that was held was taken back meanwhile."""
    given_up = []

    async def body():
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None) as deadline:
                deadlines.append(deadline)
                await slow.select(session)
        while not ended.is_set():
            await asyncio.sleep(0)

    async def give_up():
        given_up.append(1)

    deadlines, ended = [], asyncio.Event()
    task = driven(body(), session, patience=0.5, give_up=give_up, known=Known(interrupt=slow.release.set))
    await slow.reached.wait()
    deadlines[0].reschedule(0)
    asyncio.get_running_loop().call_later(0.6, ended.set)
    await task

    assert [] == given_up


async def test_a_cancellation_that_was_taken_back_interrupts_nothing(session, slow):
    """Half of the patience after it another statement is running, which has nothing to do with it."""
    interruptions, deadlines, half_is_over = [], [], asyncio.Event()

    async def body():
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None) as deadline:
                deadlines.append(deadline)
                await slow.select(session)
        await asyncio.sleep(0)
        await half_is_over.wait()

    task = driven(body(), session, patience=0.1, known=Known(interrupt=lambda: interruptions.append(1)))
    await slow.reached.wait()
    deadlines[0].reschedule(0)
    while not task.cancelling():
        await asyncio.sleep(0)
    slow.release.set()
    asyncio.get_running_loop().call_later(0.1, half_is_over.set)
    await task

    assert [] == interruptions


async def test_a_cancellation_outside_of_a_call_comes_at_once(session):
    """Nothing is held where nothing has to be."""
    reached = asyncio.Event()

    async def body():
        reached.set()
        await asyncio.Event().wait()

    task = driven(body(), session)
    await reached.wait()
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("way", ["its coroutine's", "a generator", "an async generator", "one with a default"])
async def test_a_call_through_an_awaitable_object_is_seen(session, slow, way):
    """What stands between the body and the call may be an object with an ``__await__`` of its own."""

    class Call:
        def __await__(self):
            return slow.select(session).__await__()

    class Counted:
        def __await__(self):
            return (yield from slow.select(session).__await__())

    async def values():
        yield await slow.select(session)

    calls = {
        "its coroutine's": Call,
        "a generator": Counted,
        "an async generator": lambda: anext(values()),
        "one with a default": lambda: anext(values(), None),
    }

    answers = []

    async def body():
        answers.append(await calls[way]())

    task = driven(body(), session)
    await slow.end_after_cancelling(task)
    with pytest.raises(asyncio.CancelledError):
        await task

    assert answers == [42]


async def test_the_error_of_a_cancelled_unit_is_in_its_handle(sqlite_engine, slow):
    """As the cause of what the handle raises."""

    async def body(session):
        await slow.select(session)
        raise ValueError("no")

    await sqlite_engine.dispose()  # the connections that do not know the function
    async with TaskScope(session_maker(sqlite_engine), name="t") as scope:
        handle = scope.options(guard="off").spawn(body)
        await slow.reached.wait()
        handle.cancel()
        await asyncio.sleep(0)
        slow.release.set()
        with pytest.raises(UnitCancelledError) as caught:
            await handle

    assert isinstance(caught.value.__cause__, ValueError)


HOURS = "with recursive c(x) as (select 1 union all select x + 1 from c) select max(x) from c"


async def test_a_timeout_of_a_unit_interrupts_its_statement(sqlite, make_engine, monkeypatch):
    """It fails with TimeoutError, and not with the driver's answer to the interruption."""
    watch_sessions()
    engine = make_engine(sqlite)
    deadline = asyncio.timeout(None)
    monkeypatch.setattr(asyncio, "timeout", {60: deadline}.__getitem__)

    @sa.event.listens_for(engine.sync_engine, "before_cursor_execute")
    def _(connection, cursor, statement, *others):
        if statement == HOURS:
            deadline.reschedule(0)  # it passes when the loop runs next, and that is with the statement under way

    async def body(session):
        await session.execute(sa.text(HOURS))

    unit = Unit(SessionFactory(session_maker(engine)), body, timeout=60)
    unit.patience = 2  # on a busy machine too, the interruption comes before the connection is cut
    with pytest.raises(TimeoutError) as caught:
        await unit.run()

    assert isinstance(caught.value.__cause__, sa.exc.OperationalError)


async def test_the_timeout_of_the_pool_is_not_held(sqlite, make_engine):
    """The pool waits for a connection with a timeout that cancels the waiting task itself: it gets there."""
    engine = make_engine(sqlite, pool_size=1, max_overflow=0, pool_timeout=0.01)
    async with engine.connect(), session_maker(engine)() as session:
        with pytest.raises(sa.exc.TimeoutError):
            await driven(session.execute(sa.text("select 1")), session)


async def test_a_unit_interrupts_its_own_statement(sqlite, make_engine, names_in_table):
    """A statement that would take hours ends when half of the patience has passed; the next unit writes at once."""
    watch_sessions()
    engine = make_engine(sqlite, connect_args={"timeout": 0})
    reached = asyncio.Event()

    async def body(session):
        session.add(Item(name="a"))
        await session.flush()
        asyncio.get_running_loop().call_soon(reached.set)
        await session.execute(sa.text(HOURS))

    async def add(session):
        session.add(Item(name="next"))

    async with engine.begin() as connection:
        await connection.run_sync(Item.metadata.drop_all)
        await connection.run_sync(Item.metadata.create_all)
    unit = Unit(SessionFactory(session_maker(engine)), body)
    unit.patience = 2
    task = asyncio.create_task(unit.run())
    await reached.wait()
    task.cancel()
    with pytest.raises((asyncio.CancelledError, sa.exc.OperationalError)):
        await task
    await Unit(SessionFactory(session_maker(engine)), add).run()

    assert ["next"] == await names_in_table(engine)
    assert Outcome.ROLLED_BACK is unit.outcome


async def test_after_a_commit_that_has_failed_nothing_is_held(engine):
    """``commit()`` has raised, and the body waits before it tries again: a cancellation comes at once."""
    reached = asyncio.Event()

    async def body(session):
        await session.execute(sa.text("select 1"))
        event.listen(session.sync_session, "before_commit", fail)
        with pytest.raises(ZeroDivisionError):
            await session.commit()
        reached.set()
        await asyncio.Event().wait()

    def fail(_session):
        raise ZeroDivisionError

    unit = Unit(SessionFactory(session_maker(engine)), body)
    unit.patience = 60
    task = asyncio.create_task(unit.run())
    await reached.wait()
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(asyncio.shield(task), 10)
    assert Outcome.ROLLED_BACK is unit.outcome
