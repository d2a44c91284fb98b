"""A call outside of any scope: the unit in the caller's task, with the log that a scope would write."""

from __future__ import annotations

import asyncio
from time import perf_counter
from typing import TypeVar

from sa_isolated_tasks._events import UnitEnded, UnitStarted
from sa_isolated_tasks._logging import LoggingListener, notify
from sa_isolated_tasks._steps import times_cancelled
from sa_isolated_tasks._types import TaskState
from sa_isolated_tasks._unit import Unit

__all__ = ["run_call"]

R = TypeVar("R")

_LISTENERS = (LoggingListener(),)


async def run_call(name: str, unit: Unit[R]) -> R:
    """Runs *unit* to its end in the task that awaits this; what it raises comes out as it is."""
    begun = UnitStarted("", name, 0.0)
    notify(_LISTENERS, lambda listener: listener.unit_started(begun))
    started = perf_counter()
    asked = times_cancelled()

    def end(state: TaskState, failure: BaseException | None = None, reason: str = "") -> None:
        timing = unit.timing(perf_counter() - started, queued=0.0, waiting=0.0)
        ended = UnitEnded("", name, state, unit.outcome, unit.commits, timing, failure, reason, "")
        notify(_LISTENERS, lambda listener: listener.unit_ended(ended))

    try:
        result = await unit.run()
    except GeneratorExit:
        end(TaskState.CANCELLED, reason="its coroutine was closed")
        raise
    except BaseException as error:
        if isinstance(error, asyncio.CancelledError) and times_cancelled() > asked:
            end(TaskState.CANCELLED, reason="its task was cancelled")
        else:
            end(TaskState.FAILED, error)
        raise
    end(TaskState.SUCCEEDED)
    return result
