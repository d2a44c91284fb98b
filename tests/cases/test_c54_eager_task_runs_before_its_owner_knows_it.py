"""
With an eager task factory a task runs, and may fail or spawn, before ``create_task`` returns: its owner misses it.

https://github.com/python/cpython/issues/128550 and https://github.com/python/cpython/issues/128588. A scope must know
a unit before its first step, whatever that step does, and no step may run in the frame that spawns.
"""

from __future__ import annotations

import asyncio

import pytest
from support import Item

from sa_isolated_tasks import TaskScope, TaskState, UnitCancelledError, isolated_session


@pytest.fixture
def eager():
    factory = getattr(asyncio, "eager_task_factory", None)
    if factory is None:
        pytest.skip("eager tasks came with Python 3.12")
    asyncio.get_event_loop().set_task_factory(factory)


@pytest.fixture(params=["plain", "eager"])
def tasks(request):
    """Both kinds of tasks: what holds for the one must hold for the other."""
    if request.param == "eager":
        request.getfixturevalue("eager")


async def test_control_the_registry_never_forgets_a_task_that_it_did_not_know(eager):
    """Plain asyncio: the task has left the registry before it is put into it, and so stays there."""
    registry = set()

    async def child():
        known.append(asyncio.current_task() in registry)
        registry.discard(asyncio.current_task())

    known = []
    task = asyncio.create_task(child())
    registry.add(task)
    await task

    assert [False] == known
    assert {task} == registry


async def test_control_the_child_runs_first_inside_the_parents_block(eager, LiteSession):
    """Plain asyncio: the parent has not done its next line, nor committed, and the child has begun."""
    steps = []

    async def child():
        steps.append("child")

    async with LiteSession.begin():
        task = asyncio.create_task(child())
        steps.append("parent")
    await task

    assert ["child", "parent"] == steps


async def test_a_unit_is_known_before_its_first_step(tasks, LiteSession):
    """The body finds itself in the scope, running; afterwards nobody keeps it."""

    async def body(_session):
        return [(unit.name, unit.state) for unit in scope]

    async with TaskScope(LiteSession, name="c54") as scope:
        handle = scope.options(name="child").spawn(body)
        known = await handle
        left = len(scope)

    assert [(handle.name, TaskState.RUNNING)] == known
    assert 0 == left


async def test_no_step_of_a_unit_runs_in_the_frame_that_spawns(tasks, engine, Session, names_in_table):
    """Inside the parent's block the spawn returns first, from the parent as from a unit."""
    steps = []

    async def grandchild(_session):
        steps.append("grandchild")

    async def child(session):
        steps.append("child")
        scope.spawn(grandchild)
        steps.append("child has spawned")
        session.add(Item(name="child"))

    async with TaskScope(Session, name="c54", limit=2) as scope, Session.begin() as session:
        scope.spawn(child)
        steps.append("parent has spawned")
        session.add(Item(name="parent"))

    assert ["parent has spawned", "child", "child has spawned", "grandchild"] == steps
    assert ["child", "parent"] == await names_in_table(engine)


async def test_a_unit_that_fails_in_its_first_step_cancels_its_siblings(tasks, LiteSession):
    """The scope learns of a failure that came before the task was there, and leaving it does not hang."""

    async def fail(_session):
        raise ZeroDivisionError

    async def wait(_session):
        await asyncio.Event().wait()

    with pytest.raises(ExceptionGroup) as group:
        async with TaskScope(LiteSession, name="c54", limit=2, on_failure="cancel") as scope:
            handles = [scope.spawn(wait), scope.spawn(fail), scope.spawn(wait)]

    assert [ZeroDivisionError] == [type(error) for error in group.value.exceptions]
    assert [TaskState.CANCELLED, TaskState.FAILED, TaskState.CANCELLED] == [handle.state for handle in handles]
    assert 0 == asyncio.current_task().cancelling()


async def test_a_unit_that_cancels_the_scope_in_its_first_step_is_cancelled_too(tasks, LiteSession):
    """The cancellation reaches the unit whose task nobody outside has seen yet."""

    async def cancel_all(_session):
        scope.cancel("enough")
        await asyncio.Event().wait()

    async with TaskScope(LiteSession, name="c54") as scope:
        handle = scope.spawn(cancel_all)
        with pytest.raises(UnitCancelledError) as cancelled:
            await handle

    assert "enough" == cancelled.value.reason


async def test_leaving_waits_for_units_that_are_spawned_in_first_steps(tasks, LiteSession):
    """A chain of units, each spawned by the first step of the one before, which ends in that step."""
    links = []

    async def link(_session, left):
        links.append(left)
        if left:
            scope.spawn(link, left - 1)

    async with TaskScope(LiteSession, name="c54") as scope:
        scope.spawn(link, 5)

    assert [5, 4, 3, 2, 1, 0] == links


async def test_an_isolated_function_may_run_in_create_task_itself(tasks, engine, Session, names_in_table):
    """Without a scope the task may be eager: each has a session of its own and commits, whoever is first."""

    @isolated_session(Session)
    async def add(session, name):
        session.add(Item(name=name))

    running = [asyncio.create_task(add(name)) for name in ("a", "b")]
    await asyncio.gather(*running)

    assert ["a", "b"] == await names_in_table(engine)
