"""What the fault tests share: an engine that suffers, a healthy one beside it, and a view of the server's sessions."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools

import sqlalchemy as sa
from proxy import Proxy
from support import Item, session_maker

from sa_isolated_tasks import Outcome, TaskScope, TaskState

# Seconds; a safety net only. Nothing here takes a tenth of it.
DEADLINE = 15
# The markers of statements, as the drivers write them: the statement COMMIT, neither READ COMMITTED nor AUTOCOMMIT.
INSERT = b"INSERT INTO items"
_COMMIT = {"asyncpg": b"COMMIT;", "psycopg": b"COMMIT\x00", "asyncmy": b"\x03COMMIT"}
_PLAIN = {"asyncpg": {"ssl": False}, "psycopg": {"sslmode": "disable", "gssencmode": "disable"}}
_WHO_AM_I = {"postgresql": "select pg_backend_pid()", "mysql": "select connection_id()"}
_TERMINATE = {"postgresql": "select pg_terminate_backend({}, 5000)", "mysql": "kill connection {}"}
_IS_THERE = {
    "postgresql": "select count(*) from pg_stat_activity where pid = {}",
    "mysql": "select count(*) from information_schema.processlist where id = {}",
}
_HOLD = {"postgresql": "select pg_advisory_lock(4711)", "mysql": "select get_lock('sit-faults', 10)"}
_IS_WAITING = {
    "postgresql": "select count(*) from pg_locks where pid = {} and locktype = 'advisory' and not granted",
    "mysql": "select count(*) from information_schema.processlist where id = {} and state = 'User lock'",
}


@contextlib.contextmanager
def deadline():
    """
    Ends the test if it hangs.

    Not by ``asyncio.timeout``: a fixture is entered in another task than that of its test.
    """

    def cancel_everything():
        for task in asyncio.all_tasks():
            task.cancel(f"the test has hung for {DEADLINE} s")

    timer = asyncio.get_running_loop().call_later(DEADLINE, cancel_everything)
    try:
        yield
    finally:
        timer.cancel()


def proxy_before(database):
    """A proxy before the server of *database*."""
    url = database.url
    directory = url.query.get("host", "")
    if directory.startswith("/"):  # the embedded server listens on a socket only
        return Proxy(functools.partial(asyncio.open_unix_connection, f"{directory}/.s.PGSQL.{url.port or 5432}"))
    port = url.port or (3306 if database.name == "mariadb" else 5432)
    return Proxy(functools.partial(asyncio.open_connection, url.host, port))


def through(proxy, database):
    """The same database, by way of *proxy*."""
    query = {key: value for key, value in database.url.query.items() if key != "host"}
    return dataclasses.replace(database, url=database.url.set(host="127.0.0.1", port=proxy.port, query=query))


def plain_connections(database):
    """Options for an engine whose bytes can be read on the way."""
    return {"connect_args": _PLAIN.get(database.name, {})}


async def add(session, name):
    session.add(Item(name=name))
    await session.flush()


async def who_am_i(session):
    """The server's number for the connection of *session*."""
    connection = await session.connection()
    return (await connection.execute(sa.text(_WHO_AM_I[connection.dialect.name]))).scalar()


async def wait_for_lock(session):
    """Waits in a statement for the lock that the test holds."""
    connection = await session.connection()
    await connection.execute(sa.text(_HOLD[connection.dialect.name]))


class Watcher:
    """A healthy engine: what the server says, and what is done to it."""

    def __init__(self, engine):
        self._engine = engine
        self._dialect = engine.dialect.name

    async def rows(self):
        async with self._engine.connect() as connection:
            return sorted((await connection.execute(sa.text("select name from items"))).scalars())

    async def forget(self):
        """Its own connections, after the server has gone."""
        await self._engine.dispose()

    async def run(self, *statements):
        async with self._engine.begin() as connection:
            for statement in statements:
                await connection.execute(sa.text(statement))

    async def terminate(self, number):
        """Ends a connection, and waits until it has ended."""
        async with self._engine.connect() as connection:
            await connection.execute(sa.text(_TERMINATE[self._dialect].format(number)))
            await self._until(connection, _IS_THERE, number, 0)

    async def until_it_waits(self, number):
        """Until that connection waits for the lock that the test holds."""
        async with self._engine.connect() as connection:
            await self._until(connection, _IS_WAITING, number, 1)

    async def _until(self, connection, question, number, expected):
        statement = sa.text(question[self._dialect].format(number))
        while (await connection.execute(statement)).scalar() != expected:
            pass

    def lock(self):
        """A connection that holds the lock for which `wait_for_lock` waits."""
        return _Lock(self._engine, _HOLD[self._dialect])


class _Lock:
    def __init__(self, engine, statement):
        self._connecting = engine.connect()
        self._statement = statement

    async def __aenter__(self):
        self._connection = await self._connecting.__aenter__()
        await self._connection.execute(sa.text(self._statement))

    async def __aexit__(self, *error):
        # Both servers release it with the connection.
        await self._connection.invalidate()
        await self._connecting.__aexit__(*error)


class Ward:
    """
    An engine that suffers, with a watcher beside it.

    Args:
        engine: the unit's; there may be a proxy before its server.
        watcher: whom nothing happens to.
    """

    def __init__(self, engine, watcher):
        self.engine = engine
        self.watcher = watcher
        self.Session = session_maker(engine)
        self.proxy = None
        self.COMMIT = _COMMIT[engine.dialect.driver]

    def scope(self, **options):
        return TaskScope(self.Session, name="ward", **{"cancel_timeout": 0.3} | options)

    async def warm_up(self):
        """Leaves a connection in the pool, so that the next unit need not make one."""
        async with self.engine.connect():
            pass

    async def diagnosis(self, handle):
        """
        Waits for the unit; gives its state, its outcome and whether its row is there.

        The outcome has to be true: what it says has to be what the watcher sees.
        """
        await end_of(handle)
        rows = await self.watcher.rows()
        possible = {
            Outcome.COMMITTED: (True,),
            Outcome.ROLLED_BACK: (False,),
            Outcome.NONE: (False,),
            Outcome.UNKNOWN: (True, False),
        }
        assert ("unit" in rows) in possible[handle.outcome], f"{handle} but {rows}"
        return handle.state, handle.outcome, rows

    async def is_well(self, scope):
        """Whether the next units of the scope commit, and the pool has its connections back."""
        names = [f"next {number}" for number in range(3)]
        handles = [scope.spawn(add, name) for name in names]
        for handle in handles:
            await end_of(handle)
        states = {(handle.state, handle.outcome) for handle in handles}
        rows = await self.watcher.rows()
        return states == {(TaskState.SUCCEEDED, Outcome.COMMITTED)} and set(names) <= set(rows) and self._is_whole()

    def _is_whole(self):
        return self.engine.pool.checkedout() == 0


async def end_of(handle):
    """Waits for a unit, whatever becomes of it."""
    ended = asyncio.get_running_loop().create_future()
    handle.add_done_callback(ended.set_result)
    await ended
