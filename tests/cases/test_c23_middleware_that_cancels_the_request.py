"""
The client leaves, two middlewares cancel the request that holds a session, and the pool complains of what is left.

https://github.com/greeves89/AI-Employee/issues/344. ``BaseHTTPMiddleware`` runs what is inside of it in an anyio task
group. The session of the request is the request's; current SQLAlchemy gives its connection back, so the control shows
only that the cancellation gets there. Work that a request has spawned is no child of its cancel scope.
"""

from __future__ import annotations

import asyncio
import gc
import logging

import anyio
import pytest
import sqlalchemy as sa
from at_rest import Server
from fastapi import Depends, FastAPI
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.middleware.base import BaseHTTPMiddleware
from support import Item

from sa_isolated_tasks import Outcome, TaskScope, TaskState, isolated_session


class Client:
    """Sends one request, and leaves."""

    def __init__(self, left):
        self.left = left
        self._requests = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive(self):
        if self._requests:
            return self._requests.pop()
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message):
        """Nobody is there any more."""

    async def post(self, app):
        scope = {"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": []}
        with pytest.raises(ConnectionAbortedError):
            await app(scope, self.receive, self.send)


def application(Session, endpoint, client, ends):
    """An endpoint with the request's session, in two middlewares, of which one ends it when the client leaves."""
    app = FastAPI()

    async def get_db():
        try:
            async with Session() as session:
                yield session
        except asyncio.CancelledError:
            ends.append("cancelled")
            raise

    async def post(db=Depends(get_db)):  # noqa: B008 -- FastAPI's own form
        await db.execute(sa.select(Item))
        await endpoint()

    # This module's are strings, and name what only this function knows.
    post.__annotations__ = {"db": AsyncSession}
    app.post("/", response_model=None)(post)

    class Plain(BaseHTTPMiddleware):
        async def dispatch(self, request, call_next):
            return await call_next(request)

    class LeaveWithTheClient(BaseHTTPMiddleware):
        async def dispatch(self, request, call_next):
            async with anyio.create_task_group() as group:
                group.start_soon(self.watch, group.cancel_scope)
                await call_next(request)
            # Only an exception makes the middleware cancel what is inside of it.
            raise ConnectionAbortedError

        async def watch(self, cancel_scope):
            await client.left.wait()
            cancel_scope.cancel()

    app.add_middleware(Plain)
    app.add_middleware(LeaveWithTheClient)
    return app


@pytest.fixture
def leave(Session, engine, caplog):
    """A request whose client leaves when *endpoint* has ended, or by *left*; what became of session and pool."""

    async def run(endpoint, left=None):
        async def stay():
            await endpoint()
            client.left.set()
            await asyncio.Event().wait()

        client, ends = Client(left or asyncio.Event()), []
        await client.post(application(Session, stay, client, ends))
        gc.collect()
        complaints = [record.getMessage() for record in caplog.records if record.name.startswith("sqlalchemy")]
        return ends, complaints

    caplog.set_level(logging.WARNING)
    return run


async def write(session, reached, release):
    session.add(Item(name="unit"))
    await session.flush()
    reached.set()
    await release.wait()


async def test_control_the_request_is_cancelled_in_its_session(leave, engine):
    """In its transaction; today's SQLAlchemy gives the connection back, and says nothing."""

    async def endpoint():
        pass

    ends, complaints = await leave(endpoint)

    assert (["cancelled"], [], 0) == (ends, complaints, engine.pool.checkedout())


async def test_a_unit_that_the_request_has_spawned_is_not_reached(leave, Session, engine, names_in_table):
    """It goes on in its transaction, commits, and gives its connection back."""

    async def endpoint():
        handles.append(scope.spawn(write, reached, release))
        await reached.wait()

    reached, release, handles = asyncio.Event(), asyncio.Event(), []
    async with TaskScope(Session, name="c23") as scope:
        ends, complaints = await leave(endpoint)
        state = handles[0].state
        release.set()

    assert (["cancelled"], [], TaskState.RUNNING) == (ends, complaints, state)
    assert (Outcome.COMMITTED, 0) == (handles[0].outcome, engine.pool.checkedout())
    assert ["unit"] == await names_in_table(engine)


async def test_a_call_in_the_request_is_cancelled_with_it_and_leaves_nothing(leave, Session, engine, names_in_table):
    """It is awaited there, so it ends there: rolled back, and at rest on the server too."""

    async def endpoint():
        await asyncio.gather(call(reached, asyncio.Event()), leave_when(reached))

    async def leave_when(reached):
        await reached.wait()
        left.set()

    call = isolated_session(Session)(write)
    reached, left = asyncio.Event(), asyncio.Event()
    ends, complaints = await leave(endpoint, left)

    assert (["cancelled"], [], 0) == (ends, complaints, engine.pool.checkedout())
    async with Server(engine) as server:
        assert [] == await server.at_rest()
    assert [] == await names_in_table(engine)
