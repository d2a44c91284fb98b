"""A decorated function in the hands of the real libraries that run, retry, schedule and serve coroutine functions."""

import asyncio
import contextlib
import functools
import logging
from contextlib import asynccontextmanager
from typing import Annotated

import anyio
import pytest
import sqlalchemy as sa
import stamina
import tenacity
from fastapi import BackgroundTasks, Depends, FastAPI, HTTPException, Request
from httpx import ASGITransport, AsyncClient
from pydantic import BaseModel
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from support import Item, reset, session_maker

from sa_isolated_tasks import DeclarationError, Outcome, TaskScope, TaskState, isolated_session

eager = pytest.mark.skipif(not hasattr(asyncio, "eager_task_factory"), reason="eager tasks came with Python 3.12")


class NewItem(BaseModel):
    name: str
    amount: int = 0


@pytest.fixture
def add(Session):
    """Adds a row, on each database."""

    @isolated_session(Session)
    async def add(session: AsyncSession, name: str):
        session.add(Item(name=name))
        await session.flush()
        return name

    return add


@pytest.fixture
def lite_add(LiteSession):
    """Adds a row, and returns its id."""

    @isolated_session(LiteSession)
    async def add(session: AsyncSession, name: str) -> int:
        item = Item(name=name)
        session.add(item)
        await session.flush()
        return item.id

    return add


@pytest.fixture
def rows(sqlite_engine, names_in_table):
    return lambda: names_in_table(sqlite_engine)


@asynccontextmanager
async def client_of(app):
    async with AsyncClient(transport=ASGITransport(app), base_url="http://test") as client:
        yield client


# FastAPI.


async def test_fastapi_serves_it_as_an_endpoint(LiteSession, rows):
    """Path, query and body parameters come from the signature without the session, also where types are strings."""
    app = FastAPI()

    @app.post("/shops/{shop}/items")
    @isolated_session(LiteSession)
    async def create(session: "AsyncSession", shop: "int", item: "NewItem", note: str = "none") -> "dict[str, str]":
        """Creates an item."""
        session.add(Item(name=item.name, amount=item.amount))
        return {"shop": str(shop), "item": item.name, "note": note}

    async with client_of(app) as client:
        created = await client.post("/shops/3/items?note=new", json={"name": "a", "amount": 2})
        refused = await client.post("/shops/three/items", json={"name": "b"})

    assert (created.status_code, created.json()) == (200, {"shop": "3", "item": "a", "note": "new"})
    assert refused.status_code == 422
    assert await rows() == ["a"]


async def test_fastapi_describes_it_without_the_session(LiteSession):
    """The OpenAPI schema has the caller's parameters, the docstring, and the name of the function."""
    app = FastAPI()

    @app.post("/items/{shop}")
    @isolated_session(LiteSession)
    async def create_item(session: AsyncSession, shop: int, item: NewItem, note: str = "none") -> NewItem:
        """Creates an item."""

    operation = app.openapi()["paths"]["/items/{shop}"]["post"]

    assert operation["summary"] == "Create Item"
    assert operation["description"] == "Creates an item."
    assert [(parameter["in"], parameter["name"]) for parameter in operation["parameters"]] == [
        ("path", "shop"),
        ("query", "note"),
    ]
    body = operation["requestBody"]["content"]["application/json"]["schema"]
    assert body == {"$ref": "#/components/schemas/NewItem"}
    assert operation["responses"]["200"]["content"]["application/json"]["schema"] == body


async def test_fastapi_gets_the_exception_of_an_endpoint(LiteSession, rows):
    """An ``HTTPException`` rolls back, and is the response that it always is."""
    app = FastAPI()

    @app.post("/items")
    @isolated_session(LiteSession)
    async def create(session: AsyncSession, item: NewItem) -> None:
        session.add(Item(name=item.name))
        await session.flush()
        raise HTTPException(409, "taken")

    async with client_of(app) as client:
        response = await client.post("/items", json={"name": "a"})

    assert (response.status_code, response.json()) == (409, {"detail": "taken"})
    assert await rows() == []


async def test_fastapi_resolves_it_as_a_dependency(LiteSession):
    """With parameters and dependencies of its own; its rows are committed before the endpoint runs."""
    app = FastAPI()

    def tenant(request: Request) -> str:
        return request.headers["x-tenant"]

    @isolated_session(LiteSession)
    async def visitor(session: AsyncSession, name: str, tenant: Annotated[str, Depends(tenant)]) -> str:
        session.add(Item(name=name))
        return f"{tenant}/{name}"

    @app.get("/visits/{name}")
    async def visits(
        visitor: Annotated[str, Depends(visitor)], again: Annotated[str, Depends(visitor)]
    ) -> dict[str, object]:
        async with LiteSession() as session:
            count = (await session.execute(sa.select(sa.func.count()).select_from(Item))).scalar_one()
        return {"visitor": visitor, "same": again == visitor, "count": count}

    async with client_of(app) as client:
        response = await client.get("/visits/a", headers={"x-tenant": "t"})

    # FastAPI calls a dependency once for each request, as it does with any function.
    assert response.json() == {"visitor": "t/a", "same": True, "count": 1}


async def test_fastapi_serves_methods(LiteSession):
    """Bound methods and classmethods of a service object, as endpoint and as dependency."""

    class Service:
        Session = staticmethod(LiteSession)

        @isolated_session(attribute="Session")
        async def number(self, session: AsyncSession, number: int) -> int:
            return number + (await session.execute(sa.text("select 1"))).scalar_one()

        @isolated_session(LiteSession)
        @classmethod
        async def named(cls, session: AsyncSession) -> str:
            return cls.__name__

    app, service = FastAPI(), Service()
    app.get("/numbers/{number}")(service.number)

    @app.get("/both")
    async def both(
        number: Annotated[int, Depends(service.number)], name: Annotated[str, Depends(Service.named)]
    ) -> list[object]:
        return [number, name]

    async with client_of(app) as client:
        assert (await client.get("/numbers/2")).json() == 3
        assert (await client.get("/both?number=5")).json() == [6, "Service"]


async def test_fastapi_runs_it_as_a_background_task(LiteSession, lite_add, rows):
    """After the response, in a session of its own: that of the request is closed by then, or about to be."""
    app = FastAPI()

    async def get_session():
        async with LiteSession.begin() as session:
            yield session

    @app.post("/items")
    async def create(
        tasks: BackgroundTasks, session: Annotated[AsyncSession, Depends(get_session, scope="function")]
    ) -> str:
        session.add(Item(name="request"))
        tasks.add_task(lite_add, "background")
        tasks.add_task(functools.partial(lite_add, name="partial"))
        return "created"

    async with client_of(app) as client:
        response = await client.post("/items")

    assert response.json() == "created"
    assert await rows() == ["background", "partial", "request"]


async def test_a_scope_lives_as_long_as_the_application(LiteSession, lite_add, rows):
    """An endpoint spawns and answers at once; the end of the application waits for the unit."""
    may_go_on, began = asyncio.Event(), asyncio.Event()

    @isolated_session(LiteSession)
    async def slow(session: AsyncSession, name: str):
        began.set()
        await may_go_on.wait()
        session.add(Item(name=name))

    @asynccontextmanager
    async def lifespan(app):
        async with TaskScope(LiteSession, name="application", limit=2) as app.state.scope:
            yield

    app = FastAPI(lifespan=lifespan)

    @app.post("/items/{name}")
    async def create(name: str, request: Request) -> str:
        return request.app.state.scope.spawn(slow, name).name

    async with app.router.lifespan_context(app):
        async with client_of(app) as client:
            response = await client.post("/items/a")
        await began.wait()
        assert await rows() == []
        may_go_on.set()

    assert response.json().endswith("slow#1")
    assert await rows() == ["a"]


async def test_the_endpoint_can_hand_over_no_session(LiteSession, lite_add):
    """The founding mistake is an error of the request, with the cure; nothing runs."""
    app, scope = FastAPI(), TaskScope(LiteSession, name="application")

    async def get_session():
        async with LiteSession() as session:
            yield session

    async def work(session: AsyncSession, other: object): ...

    @app.post("/items")
    async def create(session: Annotated[AsyncSession, Depends(get_session)]) -> str:
        try:
            scope.spawn(work, session)
        except Exception as error:
            return type(error).__name__
        return "spawned"

    async with scope, client_of(app) as client:
        assert (await client.post("/items")).json() == "SessionPassedError"


# asyncio.


async def test_a_task_group_runs_it(add, engine, names_in_table):
    """Each task has a session of its own; leaving the group is the end of all."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(add(name)) for name in "abc"]

    assert [task.result() for task in tasks] == ["a", "b", "c"]
    assert await names_in_table(engine) == ["a", "b", "c"]


async def test_a_failing_task_group_cancels_it(LiteSession, rows):
    """The others are rolled back, and the group raises the failure."""
    began = asyncio.Event()

    @isolated_session(LiteSession)
    async def wait(session: AsyncSession):
        session.add(Item(name="waiting"))
        await session.flush()
        began.set()
        await asyncio.Event().wait()

    @isolated_session(LiteSession)
    async def fail(session: AsyncSession):
        await began.wait()
        raise ValueError

    with pytest.raises(ExceptionGroup) as caught:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(wait())
            group.create_task(fail())

    assert [type(error) for error in caught.value.exceptions] == [ValueError]
    assert task.cancelled()
    assert await rows() == []


async def test_gather_and_create_task_run_it(add, engine, names_in_table):
    """With results in order."""
    task = asyncio.create_task(add("a"), name="mine")

    results = await asyncio.gather(task, add("b"), asyncio.wait_for(add("c"), timeout=60))

    assert results == ["a", "b", "c"]
    assert await names_in_table(engine) == ["a", "b", "c"]


@eager
async def test_eager_tasks_run_it(lite_add, rows):
    """Its first steps run inside ``create_task``; nothing else is different."""
    asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)

    async with asyncio.TaskGroup() as group:
        group.create_task(lite_add("a"))
        task = asyncio.create_task(lite_add("b"))
    await task

    assert await rows() == ["a", "b"]


@eager
async def test_an_eager_task_that_never_suspends_ends_in_create_task(LiteSession):
    """A body that does not touch the database has nothing to wait for."""
    asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)

    @isolated_session(LiteSession)
    async def work(session: AsyncSession):
        return 1

    task = asyncio.create_task(work())

    assert task.done()
    assert await task == 1


@eager
async def test_a_scope_under_eager_tasks_runs_no_step_in_spawn(LiteSession):
    """What a decorated function does is after the spawn, also then."""
    asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
    steps = []

    @isolated_session(LiteSession)
    async def work(session: AsyncSession, log: list):
        log.append("body")

    async with TaskScope(LiteSession, name="t") as scope:
        handle = scope.spawn(work, steps)
        steps.append("spawned")
        await handle

    assert steps == ["spawned", "body"]


def test_uvloop_runs_it(sqlite):
    """Calls, tasks, a scope, and a cancellation."""
    uvloop = pytest.importorskip("uvloop")

    async def main():
        assert type(asyncio.get_running_loop()) is uvloop.Loop
        engine = create_async_engine(sqlite.url)
        await reset(engine)
        Session, began = session_maker(engine), asyncio.Event()

        @isolated_session(Session)
        async def add(session: AsyncSession, name: str, *, wait: bool = False):
            session.add(Item(name=name))
            if wait:
                await session.flush()
                began.set()
                await asyncio.Event().wait()

        await add("a")
        async with asyncio.TaskGroup() as group:
            group.create_task(add("b"))
        async with TaskScope(Session, name="t") as scope:
            scope.spawn(add, "c")
            handle = scope.spawn(add, "d", wait=True)
            await began.wait()
            handle.cancel("enough")
        async with Session() as session:
            names = sorted((await session.execute(sa.select(Item.name))).scalars())
        await engine.dispose()
        return names, handle.state, handle.outcome

    names, state, outcome = asyncio.Runner(loop_factory=uvloop.new_event_loop).run(main())

    assert names == ["a", "b", "c"]
    assert (state, outcome) == (TaskState.CANCELLED, Outcome.ROLLED_BACK)


# anyio.


async def test_an_anyio_task_group_runs_it(add, engine, names_in_table):
    """``start_soon`` takes the function and its arguments."""
    async with anyio.create_task_group() as group:
        for name in "abc":
            group.start_soon(add, name)

    assert await names_in_table(engine) == ["a", "b", "c"]


async def test_an_anyio_cancel_scope_cancels_it(Session, engine, names_in_table, caplog):
    """Anyio cancels again and again: the unit is rolled back all the same, and says that it was cancelled."""
    caplog.set_level(logging.INFO, "sa_isolated_tasks")

    @isolated_session(Session)
    async def work(session: AsyncSession, scope: anyio.CancelScope):
        session.add(Item(name="a"))
        await session.flush()
        scope.cancel()
        await anyio.sleep_forever()

    with anyio.CancelScope() as scope:
        await work(scope)

    assert scope.cancelled_caught
    assert engine.pool.checkedout() == 0
    assert await names_in_table(engine) == []
    assert caplog.records[-1].sit_state == "cancelled"


async def test_a_failing_anyio_task_group_cancels_it(LiteSession, rows):
    """As one of asyncio's does."""
    began = asyncio.Event()

    @isolated_session(LiteSession)
    async def wait(session: AsyncSession):
        session.add(Item(name="waiting"))
        await session.flush()
        began.set()
        await anyio.sleep_forever()

    @isolated_session(LiteSession)
    async def fail(session: AsyncSession):
        await began.wait()
        raise ValueError

    with pytest.raises(ExceptionGroup) as caught:
        async with anyio.create_task_group() as group:
            group.start_soon(wait)
            group.start_soon(fail)

    assert [type(error) for error in caught.value.exceptions] == [ValueError]
    assert await rows() == []


async def test_move_on_after_ends_it_without_an_error(LiteSession, rows):
    """Around the call, and inside the body, where what comes after it is committed."""

    @isolated_session(LiteSession)
    async def outside(session: AsyncSession):
        session.add(Item(name="outside"))
        await session.flush()
        await anyio.sleep_forever()

    @isolated_session(LiteSession)
    async def inside(session: AsyncSession):
        with anyio.move_on_after(0):
            await anyio.sleep_forever()
        session.add(Item(name="inside"))

    with anyio.move_on_after(0.02) as scope:
        await outside()
    await inside()

    assert scope.cancelled_caught
    assert await rows() == ["inside"]


async def test_a_shielded_call_is_completed(LiteSession, rows):
    """Inside ``CancelScope(shield=True)`` a cancelled scope does not reach it."""

    @isolated_session(LiteSession)
    async def add(session: AsyncSession, outer: anyio.CancelScope):
        outer.cancel()
        session.add(Item(name="a"))

    with anyio.CancelScope() as outer, anyio.CancelScope(shield=True):
        await add(outer)

    assert await rows() == ["a"]


async def test_anyio_threads_come_back_to_it(lite_add, rows):
    """Code in a worker thread calls it in the loop, with ``anyio.from_thread.run``."""

    def work():
        return anyio.from_thread.run(lite_add, "a")

    assert await anyio.to_thread.run_sync(work) == 1
    assert await rows() == ["a"]


# Retries.


class Unlucky:
    """Fails two times, after its work is done, and tells in which sessions."""

    def __init__(self, exception):
        self.exception = exception
        self.sessions = []
        self.seen = []

    async def __call__(self, session):
        self.sessions.append(id(session))
        self.seen.append((await session.execute(sa.select(sa.func.count()).select_from(Item))).scalar_one())
        session.add(Item(name="a"))
        await session.flush()
        if len(self.sessions) < 3:
            raise self.exception


RETRIES = {
    "tenacity": tenacity.retry(stop=tenacity.stop_after_attempt(3), retry=tenacity.retry_if_exception_type(OSError)),
    "stamina": stamina.retry(on=OSError, attempts=3),
}


@pytest.fixture
def no_waiting():
    """Retries at once."""
    stamina.set_testing(True, attempts=3)
    yield
    stamina.set_testing(False)


@pytest.mark.parametrize("name", RETRIES)
async def test_a_retry_around_it_gives_each_attempt_a_session_of_its_own(
    name, Session, engine, names_in_table, no_waiting
):
    """What a failed attempt wrote is gone when the next one begins."""
    unlucky = Unlucky(OSError)

    @RETRIES[name]
    @isolated_session(Session)
    async def work(session: AsyncSession, body: Unlucky):
        await body(session)
        return "done"

    assert await work(unlucky) == "done"
    assert unlucky.seen == [0, 0, 0]
    assert await names_in_table(engine) == ["a"]


@pytest.mark.parametrize("name", RETRIES)
async def test_a_retry_inside_it_has_one_session_for_all_attempts(name, LiteSession, rows, no_waiting):
    """The body is retried in one unit; it has to roll back to a savepoint of its own."""
    unlucky = Unlucky(OSError)

    @isolated_session(LiteSession)
    @RETRIES[name]
    async def work(session: AsyncSession, body: Unlucky):
        async with session.begin_nested():
            await body(session)

    await work(unlucky)

    assert len(set(unlucky.sessions)) == 1
    assert unlucky.seen == [0, 0, 0]
    assert await rows() == ["a"]


@pytest.mark.parametrize("name", RETRIES)
async def test_a_retried_function_is_spawned_inside_a_plain_one(name, LiteSession, rows, no_waiting):
    """The wrapper itself takes no session, and is refused; the line that the error gives works."""
    unlucky = Unlucky(OSError)

    @RETRIES[name]
    @isolated_session(LiteSession)
    async def work(session: AsyncSession, body: Unlucky):
        await body(session)

    async def run_work(session, *args):
        return await work(*args)

    async with TaskScope(LiteSession, name="t") as scope:
        with pytest.raises(DeclarationError) as caught:
            scope.spawn(work, unlucky)
        await scope.spawn(run_work, unlucky)

    assert caught.value.cure.startswith("async def run_work(session, *args): return await work(*args)")
    assert len(unlucky.sessions) == 3
    assert await rows() == ["a"]


@pytest.mark.parametrize("name", RETRIES)
async def test_a_retry_gives_up_with_the_last_failure(name, LiteSession, rows, no_waiting):
    """Nothing is left of any attempt."""

    @RETRIES[name]
    @isolated_session(LiteSession)
    async def work(session: AsyncSession):
        session.add(Item(name="a"))
        await session.flush()
        raise OSError

    with pytest.raises((OSError, tenacity.RetryError)):
        await work()

    assert await rows() == []


async def test_retry_loops_run_it(lite_add, rows, no_waiting):
    """``AsyncRetrying`` and ``retry_context``, for calls whose arguments change."""
    async for attempt in tenacity.AsyncRetrying(stop=tenacity.stop_after_attempt(2)):
        with attempt:
            await lite_add("ab"[attempt.retry_state.attempt_number - 1])
            if attempt.retry_state.attempt_number == 1:
                raise OSError
    async for attempt in stamina.retry_context(on=OSError):
        with attempt:
            await lite_add("c")

    assert await rows() == ["a", "b", "c"]


# The standard library.


async def test_functools_compose_with_it(LiteSession, lite_add, rows):
    """``partial`` keeps it a coroutine function; ``singledispatch`` and ``cache`` call it."""

    @functools.singledispatch
    def dispatch(value):
        raise NotImplementedError

    dispatch.register(str)(lite_add)
    partial = functools.partial(lite_add, name="a")

    assert asyncio.iscoroutine(coroutine := partial())
    assert await coroutine == 1
    assert await dispatch("b") == 2
    with contextlib.suppress(NotImplementedError):
        dispatch(1)
    assert await rows() == ["a", "b"]


async def test_an_exit_stack_runs_it_at_its_end(lite_add, rows):
    """``push_async_callback`` takes the function."""
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(lite_add, "a")
        assert await rows() == []

    assert await rows() == ["a"]
