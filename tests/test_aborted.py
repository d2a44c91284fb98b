"""A transaction that the database has taken back, after an error that the body has caught, is not committed."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from types import SimpleNamespace

import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from support import Item, reset, session_maker

from sa_isolated_tasks import AbortedTransactionError, Outcome, TaskScope, TaskState, _aborted, isolated_session


def insert(name="a"):
    return sa.insert(Item).values(name=name)


async def fail_once(session):
    """Writes a row, and catches the error of a second of that name, and what comes of it."""
    await session.execute(insert())
    with contextlib.suppress(IntegrityError):
        await session.execute(insert())
    with contextlib.suppress(DBAPIError):
        await names_of(session)


async def names_of(session):
    return (await session.execute(sa.select(Item.name))).scalars().all()


@pytest.fixture
def answers(engine):
    """Whether the database takes the whole transaction back after an error."""
    return engine.dialect.name == "postgresql"


async def test_a_unit_that_has_caught_an_error_commits_what_is_left_or_fails(engine, Session, answers, names_in_table):
    """PostgreSQL would answer its COMMIT with ROLLBACK: it fails. Elsewhere the first row is there."""
    async with TaskScope(Session, name="t", limit=1) as scope:
        handle = scope.spawn(fail_once)

    error = handle.exception()
    assert await names_in_table(engine) == ([] if answers else ["a"])
    assert (handle.outcome, handle.commits) == ((Outcome.ROLLED_BACK, 0) if answers else (Outcome.COMMITTED, 1))
    assert isinstance(error, AbortedTransactionError) == answers
    assert not answers or "duplicate key" in error.what
    assert not answers or (error.where == "" and isinstance(error.__cause__, DBAPIError))


async def test_a_commit_of_the_body_raises(postgresql_engine, names_in_table):
    """There, where the body can roll back and go on."""
    raised = []

    @isolated_session(session_maker(postgresql_engine))
    async def work(session: AsyncSession):
        await fail_once(session)
        with pytest.raises(AbortedTransactionError) as caught:
            await session.commit()
        raised.append(caught.value.code)
        await session.rollback()
        await session.execute(insert("b"))

    await work()

    assert raised == ["SIT209"]
    assert await names_in_table(postgresql_engine) == ["b"]


async def test_a_context_manager_commits_nothing_either(postgresql_engine, names_in_table):
    """``Session.begin`` commits by itself, and the error comes out of it."""
    with pytest.raises(AbortedTransactionError):
        await isolated_session(session_maker(postgresql_engine).begin)(fail_once_typed)()

    assert await names_in_table(postgresql_engine) == []


async def fail_once_typed(session: AsyncSession):
    await fail_once(session)


async def test_an_error_that_was_taken_back_with_its_savepoint_is_none(engine, Session, names_in_table):
    """That is the cure."""

    @isolated_session(Session)
    async def work(session: AsyncSession):
        await session.execute(insert())
        with contextlib.suppress(IntegrityError):
            async with session.begin_nested():
                await session.execute(insert())

    await work()

    assert await names_in_table(engine) == ["a"]


async def test_an_error_before_a_rollback_is_none(engine, Session, names_in_table):
    """What comes after it is another transaction."""

    @isolated_session(Session)
    async def work(session: AsyncSession):
        await fail_once(session)
        await session.rollback()
        await session.execute(insert("b"))

    await work()

    assert await names_in_table(engine) == ["b"]


async def test_an_error_of_the_driver_alone_is_none(asyncpg, make_engine, names_in_table):
    """The server has never heard of it, and the transaction goes on."""
    engine = make_engine(asyncpg)
    await reset(engine)

    @isolated_session(session_maker(engine))
    async def work(session: AsyncSession):
        await session.execute(insert())
        with pytest.raises(DBAPIError, match="invalid input for query argument"):
            await session.execute(sa.select(Item).where(Item.id == sa.bindparam("id", "x", sa.Integer)))

    await work()

    assert await names_in_table(engine) == ["a"]


async def test_a_connection_that_dies_after_the_error_says_so_itself(postgresql_engine, make_engine, postgresql):
    """The commit fails with the driver's error, and nobody wonders about the first one."""
    other = make_engine(postgresql)

    @isolated_session(session_maker(postgresql_engine))
    async def work(session: AsyncSession):
        backend = (await session.execute(sa.text("select pg_backend_pid()"))).scalar()
        await fail_once(session)
        async with other.connect() as connection:
            await connection.execute(sa.text("select pg_terminate_backend(:backend)"), {"backend": backend})

    with pytest.raises(Exception) as caught:
        await work()

    assert not isinstance(caught.value, AbortedTransactionError)


async def test_what_waits_for_the_commit_of_an_aborted_transaction_is_dropped(engine, Session, answers):
    """The commit of the parent raises nothing, as it would without this package; but its unit does not run."""
    async with TaskScope(Session, name="t", limit=1) as scope, Session() as parent, parent.begin():
        await fail_once(parent)
        handle = scope.spawn_after_commit(parent, names_of)

    assert handle.state is (TaskState.DROPPED if answers else TaskState.SUCCEEDED)
    assert answers or handle.result() == ["a"]


async def test_a_session_for_which_nobody_waits_is_asked_nothing(postgresql_engine):
    """An application that does this has always done it; only units, and who waits, want to know."""
    statements = []

    @event.listens_for(postgresql_engine.sync_engine, "before_cursor_execute")
    def _(_connection, _cursor, statement, *_others):
        statements.append(statement)

    Session = session_maker(postgresql_engine)
    async with TaskScope(Session, name="t", limit=1), Session() as session, session.begin():
        await fail_once(session)

    assert "select 1" not in statements


async def test_a_deadlock_before_a_rollback_is_none(server, make_engine):
    """Also where the session is bound to a connection, which lives on."""
    engine = make_engine(server)
    await reset(engine)
    signal = sa.text("signal sqlstate '40001' set mysql_errno = 1213, message_text = 'Deadlock found'")
    async with (
        TaskScope(session_maker(engine), name="t", limit=1) as scope,
        engine.connect() as connection,
        AsyncSession(connection) as parent,
    ):
        with pytest.raises(DBAPIError):
            await parent.execute(signal)
        await parent.rollback()
        await parent.execute(insert())
        handle = scope.spawn_after_commit(parent, names_of)
        await parent.commit()

    assert handle.result() == ["a"]


async def test_a_unit_that_catches_a_deadlock_fails(server, make_engine):
    """The one that was taken back to end it; the other one commits. PostgreSQL refuses the rest of the first."""
    engine = make_engine(server)
    await reset(engine)
    Session = session_maker(engine)
    async with Session() as session, session.begin():
        session.add_all([Item(id=1, name="a"), Item(id=2, name="b")])
    locked = asyncio.Barrier(2)

    async def work(session, first, second):
        await session.execute(sa.update(Item).where(Item.id == first).values(amount=first))
        await locked.wait()
        with contextlib.suppress(DBAPIError):
            await session.execute(sa.update(Item).where(Item.id == second).values(amount=first))

    async with TaskScope(Session, name="t", limit=2) as scope:
        handles = [scope.spawn(work, 1, 2), scope.spawn(work, 2, 1)]
    async with Session() as session:
        amounts = (await session.execute(sa.select(Item.amount))).scalars().all()

    failed = [handle for handle in handles if handle.state is TaskState.FAILED]
    assert [type(handle.exception()) for handle in failed] == [AbortedTransactionError]
    assert len(set(amounts)) == 1
    assert "eadlock" in str(failed[0].exception())


async def test_an_error_while_rows_are_streamed_counts(postgresql_engine, names_in_table):
    """asyncpg's fails in a fetch, which SQLAlchemy hands on without a word of its own."""

    async def work(session):
        await session.execute(insert())
        with pytest.raises(Exception, match="division by zero"):
            async for _ in await session.stream(sa.text("select 1 / (3000 - x) from generate_series(1, 5000) x")):
                pass

    async with TaskScope(session_maker(postgresql_engine), name="t", limit=1) as scope:
        handle = scope.spawn(work)

    assert isinstance(handle.exception(), AbortedTransactionError)
    assert (handle.outcome, await names_in_table(postgresql_engine)) == (Outcome.ROLLED_BACK, [])


async def test_a_connection_whose_rollback_fails_is_dropped(asyncpg, make_engine, names_in_table):
    """A task that the body has left behind is using it: from the pool, its transaction would come to another."""
    engine = make_engine(asyncpg, pool_size=1, max_overflow=0)
    executing = asyncio.Event()
    left = []

    @event.listens_for(engine.sync_engine, "before_cursor_execute")
    def _executing(_connection, _cursor, statement, *_):
        if "pg_sleep" in statement:
            executing.set()

    async def work(session):
        await session.execute(insert())
        left.append(asyncio.create_task(session.execute(sa.text("select pg_sleep(60)"))))
        await executing.wait()
        raise ValueError

    async with TaskScope(session_maker(engine), name="t") as scope:
        handle = scope.spawn(work)
    (result,) = await asyncio.gather(*left, return_exceptions=True)

    assert isinstance(handle.exception(), ValueError)
    assert "the rollback failed too: " in handle.exception().__notes__[0]
    assert (isinstance(result, Exception), handle.outcome) == (True, Outcome.ROLLED_BACK)
    assert (engine.pool.checkedout(), await names_in_table(engine)) == (0, [])
    async with engine.begin() as connection:
        await connection.execute(insert())


# How SQLite takes a transaction back.
TAKING_BACK = {
    "on conflict rollback": ("create table taken (name text constraint one unique on conflict rollback)",),
    "raise(rollback)": (
        "create table taken (name text)",
        """
        create trigger taking before insert on taken when exists (select * from taken)
        begin select raise(rollback, 'no'); end
        """,
    ),
}


@pytest.fixture(params=TAKING_BACK)
async def taking(request, sqlite_engine):
    """A table that takes one row, and for a second takes back all that was written."""
    async with sqlite_engine.begin() as connection:
        for statement in TAKING_BACK[request.param]:
            await connection.execute(sa.text(statement))
    yield sa.text("insert into taken values ('a')")
    async with sqlite_engine.begin() as connection:
        await connection.execute(sa.text("drop table taken"))


async def test_what_sqlite_has_taken_back_is_not_committed(taking, sqlite_engine, LiteSession, names_in_table):
    """After the error a new transaction begins by itself, and would be committed without the first row."""

    async def work(session):
        await session.execute(insert("first"))
        for _ in range(2):
            with contextlib.suppress(IntegrityError):
                await session.execute(taking)
        await session.execute(insert("last"))

    async with TaskScope(LiteSession, name="t") as scope:
        handle = scope.spawn(work)

    error = handle.exception()
    assert isinstance(error, AbortedTransactionError)
    assert ("IntegrityError" in error.what, "run it again" in error.cure) == (True, True)
    assert (handle.outcome, await names_in_table(sqlite_engine)) == (Outcome.ROLLED_BACK, [])


async def test_what_waits_for_a_commit_that_sqlite_has_taken_back_is_dropped(taking, LiteSession):
    """The rows are not there."""
    async with TaskScope(LiteSession, name="t") as scope, LiteSession() as parent, parent.begin():
        await parent.execute(taking)
        with contextlib.suppress(IntegrityError):
            await parent.execute(taking)
        handle = scope.spawn_after_commit(parent, names_of)

    assert handle.state is TaskState.DROPPED


@pytest.mark.parametrize("first", ["insert into nowhere values (1)", "select * from nowhere"])
async def test_an_error_with_nothing_written_takes_nothing_back(sqlite_engine, LiteSession, names_in_table, first):
    """SQLite has not begun a transaction by then, nor lost one."""

    async def work(session):
        with pytest.raises(DBAPIError):
            await session.execute(sa.text(first))
        await session.execute(insert())

    async with TaskScope(LiteSession, name="t") as scope:
        handle = scope.spawn(work)

    assert handle.exception() is None
    assert await names_in_table(sqlite_engine) == ["a"]


async def test_an_interrupted_statement_takes_back_what_was_written(sqlite_engine, LiteSession, names_in_table):
    """This package interrupts a statement of SQLite when half of the patience is over: the rest is not committed."""
    loop, deadline = asyncio.get_running_loop(), asyncio.timeout(None)

    @event.listens_for(sqlite_engine.sync_engine, "connect")
    def _register(connection, _record):
        connection.run_async(lambda driver: driver.create_function("begun", 0, begun))

    def begun():
        loop.call_soon_threadsafe(deadline.reschedule, loop.time())

    numbers = "with recursive n(x) as (select begun() union all select 1 from n)"
    endless = sa.text(f"insert into items (name) {numbers} select 'n' from n where x < 0")

    async def work(session):
        await session.execute(insert("first"))
        with contextlib.suppress(DBAPIError, TimeoutError):
            async with deadline:
                await session.execute(endless)
        await session.execute(insert("last"))

    await sqlite_engine.dispose()  # the connections that do not know the function
    async with TaskScope(LiteSession, name="t", cancel_timeout=1) as scope:
        handle = scope.spawn(work)

    assert isinstance(handle.exception(), AbortedTransactionError)
    assert (handle.outcome, await names_in_table(sqlite_engine)) == (Outcome.ROLLED_BACK, [])


async def test_nothing_is_kept_of_connections_that_are_gone(sqlite_engine, LiteSession):
    """A process may begin any number of transactions."""
    async with TaskScope(LiteSession, name="t") as scope:
        for number in range(3):
            scope.spawn(insert_one, f"n{number}")
    gc.collect()

    assert not _aborted._written_before


async def insert_one(session, name):
    await session.execute(insert(name))


def note(connection, error):
    """As SQLAlchemy tells of an error in a statement."""
    _aborted._note(SimpleNamespace(connection=connection, original_exception=error, statement="select 1"))


def test_an_error_of_a_connection_that_was_given_up_is_none(tmp_path):
    """It has no driver to be asked; nor has what was no error, such as a cancellation."""
    with sa.create_engine(f"sqlite:///{tmp_path}/own.db").connect() as connection:
        transaction = connection.begin()
        _aborted.note_begin(connection)
        connection.invalidate()

        note(connection, OSError())
        note(connection, asyncio.CancelledError())
        transaction.rollback()

        assert not _aborted._errors


class Connection:
    """As much of one as is looked at."""

    invalidated = False
    connection = SimpleNamespace(driver_connection=object())

    def __init__(self, dialect):
        self.dialect = SimpleNamespace(name=dialect)


def test_a_driver_that_counts_no_changes_begins_all_the_same():
    """There are others that speak SQLite, and every session of the process is listened to."""
    connection = Connection("sqlite")
    _aborted.note_begin(connection)
    note(connection, OSError())

    assert not _aborted._errors


def test_an_error_is_kept_as_long_as_its_connection():
    """Nobody has ended its transaction by then."""
    connection = Connection("postgresql")
    note(connection, OSError())
    kept = len(_aborted._errors)
    del connection
    gc.collect()

    assert (kept, len(_aborted._errors)) == (1, 0)


@pytest.mark.parametrize("order", [1, -1], ids=["the first", "the second"])
def test_one_of_several_connections_is_enough(order):
    """A session may have one to each engine, and its commit is that of all."""
    connections = [Connection("mysql"), Connection("mysql")]
    note(connections[0], OSError(_aborted._DEADLOCK))

    reason = _aborted.reason_of_abortion(connections[::order])
    _aborted.forget_errors(connections)

    assert isinstance(reason, AbortedTransactionError)
    assert _aborted.reason_of_abortion(connections) is None
