"""
Three background tasks are added to a response, the second raises, and the third never runs.

https://github.com/Kludex/starlette/issues/1589, /3195. They are run one after the other, by design. Units are
independent: a failure is logged, and the others run.
"""

from __future__ import annotations

import pytest
from starlette.background import BackgroundTasks
from support import Item

from sa_isolated_tasks import TaskScope, TaskState, isolated_session


async def write(session, name):
    if name == "bad":
        raise ZeroDivisionError
    session.add(Item(name=name))


async def test_control_the_third_task_never_runs(LiteSession, sqlite_engine, names_in_table):
    """Starlette, with a decorated function: each has a session of its own, and the last one is not begun."""
    tasks = BackgroundTasks()
    for name in ("a", "bad", "c"):
        tasks.add_task(isolated_session(LiteSession)(write), name)

    with pytest.raises(ZeroDivisionError):
        await tasks()

    assert ["a"] == await names_in_table(sqlite_engine)


async def test_units_are_independent(LiteSession, sqlite_engine, names_in_table, caplog):
    """The tasks of the response only spawn; the failure is logged once, with its traceback, and the third one runs."""

    async def start(name):
        handles.append(scope.spawn(write, name))

    tasks, handles = BackgroundTasks(), []

    async with TaskScope(LiteSession, name="c34") as scope:
        for name in ("a", "bad", "c"):
            tasks.add_task(start, name)
        await tasks()

    failures = [record for record in caplog.records if record.levelname == "ERROR"]
    assert ["a", "c"] == await names_in_table(sqlite_engine)
    assert [TaskState.SUCCEEDED, TaskState.FAILED, TaskState.SUCCEEDED] == [handle.state for handle in handles]
    assert [ZeroDivisionError] == [record.exc_info[0] for record in failures]
