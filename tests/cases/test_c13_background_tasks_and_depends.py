"""
An endpoint gives the session of ``Depends`` to a background task, or to a stream; FastAPI closes it before or after.

https://github.com/fastapi/fastapi/pull/10831 and https://github.com/fastapi/fastapi/issues/11143. The order of the exit
code has changed twice; with a session of its own the task must do the same in either order, and the request's session
must be refused in either.
"""

import asyncio
from contextlib import asynccontextmanager

import pytest
import sqlalchemy as sa
from support import Item

from sa_isolated_tasks import ClosedSessionError, SessionPassedError, TaskScope, isolated_session

fastapi = pytest.importorskip("fastapi", reason="the report is about this framework")
httpx = pytest.importorskip("httpx", reason="calls the application")

# "function" runs the exit code before the response, and so before background tasks, as 0.106 to 0.117 did; "request"
# runs it after them, as the versions before and since.
ORDERS = ["function", "request"]


async def work(session, name):
    session.add(Item(name=name))
    await session.flush()


@pytest.fixture
async def get():
    """Gives the status of a request to an endpoint."""

    async def request(endpoint):
        app = fastapi.FastAPI()
        app.get("/")(endpoint)
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return (await client.get("/")).status_code

    return request


@pytest.fixture
def get_db(LiteSession):
    async def get_db():
        async with LiteSession() as session:
            # A request has always looked something up by the time it adds a task.
            await session.execute(sa.select(Item))
            yield session

    return {order: fastapi.Depends(get_db, scope=order) for order in ORDERS}


@pytest.mark.parametrize(("order", "kept"), [("function", 1), ("request", 0)])
async def test_control_the_order_decides(sqlite_engine, get_db, get, names_in_table, order, kept):
    """Plain SQLAlchemy: closed before the task, the session begins again and keeps a connection; the row is lost."""
    sessions = []

    async def endpoint(tasks: fastapi.BackgroundTasks, db=get_db[order]):
        sessions.append(db)
        tasks.add_task(work, db, "row")

    status = await get(endpoint)
    checked_out = sqlite_engine.pool.checkedout()
    await sessions[0].close()

    assert (200, kept) == (status, checked_out)
    assert [] == await names_in_table(sqlite_engine)


@pytest.mark.parametrize("order", ORDERS)
async def test_the_requests_session_is_refused_in_the_endpoint(sqlite_engine, LiteSession, get_db, get, order):
    """A scope looks at the arguments in the endpoint, so the request fails and nothing is left behind."""

    async def endpoint(db=get_db[order]):
        scope.spawn(work, db, "row")

    async with TaskScope(LiteSession, name="c13") as scope:
        with pytest.raises(SessionPassedError, match="arg 1"):
            await get(endpoint)

        assert (0, 0) == (len(scope), sqlite_engine.pool.checkedout())


@pytest.mark.parametrize(("order", "error"), [("function", ClosedSessionError), ("request", SessionPassedError)])
async def test_add_task_refuses_the_requests_session(sqlite_engine, LiteSession, get_db, get, order, error):
    """Starlette calls the function after the response: it is refused then, and known to be closed where it is."""
    isolated = isolated_session(LiteSession)(work)

    async def endpoint(tasks: fastapi.BackgroundTasks, db=get_db[order]):
        tasks.add_task(isolated, db, "row")

    with pytest.raises(SessionPassedError) as refused:
        await get(endpoint)

    assert error is type(refused.value)
    assert 0 == sqlite_engine.pool.checkedout()


@pytest.mark.parametrize("order", ORDERS)
async def test_an_isolated_function_is_a_background_task(
    sqlite_engine, LiteSession, get_db, get, names_in_table, order
):
    """With a session of its own it commits its row, whichever comes first."""
    isolated = isolated_session(LiteSession)(work)

    async def endpoint(tasks: fastapi.BackgroundTasks, db=get_db[order]):
        tasks.add_task(isolated, "row")

    status = await get(endpoint)

    assert 200 == status
    assert ["row"] == await names_in_table(sqlite_engine)


@pytest.mark.parametrize("order", ORDERS)
async def test_a_scope_outlives_the_request(sqlite_engine, LiteSession, get_db, get, names_in_table, order):
    """A unit that is still running after the response is the scope's, and knows nothing of the request's session."""
    response_is_sent = asyncio.Event()

    async def work_later(session, name):
        await response_is_sent.wait()
        await work(session, name)

    async def endpoint(db=get_db[order]):
        scope.spawn(work_later, "row")

    async with TaskScope(LiteSession, name="c13") as scope:
        status = await get(endpoint)
        assert (200, 1) == (status, len(scope))
        response_is_sent.set()

    assert ["row"] == await names_in_table(sqlite_engine)


async def test_a_stream_over_the_requests_session_is_refused(LiteSession):
    """A generator that was made with a session, and not started, is seen through."""

    async def rows(db):
        for row in await db.execute(sa.select(Item)):
            yield row

    async def consume(session, stream):
        return [row async for row in stream]

    async with LiteSession() as db:
        with pytest.raises(SessionPassedError, match=r"un-started async generator rows\(\) variable 'db'"):
            isolated_session(LiteSession)(consume)(rows(db))


async def test_the_dependency_is_a_factory(sqlite_engine, LiteSession, get_db, names_in_table):
    """``Depends(get_db)`` and a unit may share one function: as a context manager, which then owns the transaction."""

    @isolated_session(asynccontextmanager(get_db["request"].dependency))
    async def add(session, name):
        await work(session, name)
        await session.commit()

    await add("row")

    assert ["row"] == await names_in_table(sqlite_engine)
