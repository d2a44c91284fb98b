"""
A dependency commits in its exit code, which runs after the background tasks; a task looks for the row before that.

https://github.com/fastapi/fastapi/pull/14099. Which of the two comes first has changed twice in FastAPI. A unit that is
spawned after the commit is bound to the session's commit, not to the framework's order, and holds no connection of the
request's.
"""

from __future__ import annotations

import contextlib

import fastapi
import sqlalchemy as sa
from fastapi import BackgroundTasks, Depends, FastAPI
from httpx import ASGITransport, AsyncClient
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncSession
from support import Item

from sa_isolated_tasks import TaskScope, TaskState

VERSION = tuple(int(part) for part in fastapi.__version__.split(".")[:2])


async def find(session, item_id, found):
    found.append((await session.execute(sa.select(Item.name).where(Item.id == item_id))).scalar())


def application(Session, endpoint):
    """One endpoint that flushes a row, with a dependency that commits it in its exit code, or fails there."""
    app = FastAPI()

    async def get_db():
        async with Session() as session:
            yield session
            await session.commit()

    async def post(tasks: BackgroundTasks, db: AsyncSession = Depends(get_db)):  # noqa: B008 -- FastAPI's own form
        db.add(item := Item(name="a"))
        await db.flush()
        await endpoint(tasks, db, item.id)

    # This module's are strings, and name what only this function knows.
    post.__annotations__ = {"tasks": BackgroundTasks, "db": AsyncSession}
    app.post("/", response_model=None)(post)
    return app


@contextlib.asynccontextmanager
async def client_of(app):
    async with AsyncClient(transport=ASGITransport(app=app), base_url="http://test") as client:
        yield client


async def test_control_a_task_with_a_session_of_its_own_does_not_wait_for_the_commit(Session):
    """This FastAPI runs it before the exit code or after it, and no error says which; before it, there is no row."""
    order = []

    async def job():
        order.append("task")

    async def endpoint(tasks, db, _item_id):
        event.listen(db.sync_session, "after_commit", lambda _: order.append("commit"))
        tasks.add_task(job)

    async with client_of(application(Session, endpoint)) as client:
        await client.post("/")

    expected = ["commit", "task"] if (0, 106) <= VERSION < (0, 118) else ["task", "commit"]
    assert expected == order


async def test_a_unit_after_the_commit_finds_the_row(Session):
    """In every order; the response does not wait for it."""
    found, handles = [], []

    async def endpoint(_tasks, db, item_id):
        handles.append(scope.spawn_after_commit(db, find, item_id, found))

    async with TaskScope(Session, name="c14") as scope, client_of(application(Session, endpoint)) as client:
        response = await client.post("/")
        await handles[0]

    assert (200, ["a"]) == (response.status_code, found)


async def test_a_request_that_fails_starts_nothing(Session):
    """The dependency never commits: the unit is dropped, and says so."""
    found, handles = [], []

    async def endpoint(_tasks, db, item_id):
        handles.append(scope.spawn_after_commit(db, find, item_id, found))
        raise ZeroDivisionError

    async with TaskScope(Session, name="c14") as scope, client_of(application(Session, endpoint)) as client:
        with contextlib.suppress(ZeroDivisionError):
            await client.post("/")

    assert ([], TaskState.DROPPED) == (found, handles[0].state)
