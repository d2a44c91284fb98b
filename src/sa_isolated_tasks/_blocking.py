"""
Does one task wait for another? Asked once, when a deadlock is suspected.

asyncio does not tell. But a suspended task refers to what it awaits, and whom the end of a task will wake stands in its
callbacks: directly, through ``gather``, ``wait``, ``shield``, ``wait_for`` or a task group.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
from collections.abc import Callable, Iterable
from types import BuiltinMethodType, FunctionType, MethodType
from typing import Any

from sa_isolated_tasks._gate import Gate

__all__ = ["waits_for"]

_LIMIT = 1_000


def waits_for(waiter: asyncio.Task[Any], task: asyncio.Task[Any]) -> bool:
    """Whether *waiter* is suspended until *task* has ended, as far as can be seen."""
    awaited = _awaited_by(waiter)
    if awaited is None:
        return False
    reached: list[Any] = [task]
    seen = {id(task)}
    while reached and len(seen) < _LIMIT:
        value = reached.pop()
        if value is awaited:
            return True
        fresh = [held for held in _woken_by(value) if id(held) not in seen]
        seen.update(map(id, fresh))
        reached.extend(fresh)
    return False


def _awaited_by(task: asyncio.Task[Any]) -> object:
    """The future by whose end it will be woken: the only one that it refers to. A gate is one (`_steps`)."""
    return next((held for held in gc.get_referents(task) if isinstance(held, (_FUTURE, Gate))), None)


def _woken_by(value: Any) -> Iterable[Any]:
    """What gets to know of the end of a future, one step further."""
    for kinds, step in _STEPS:
        if isinstance(value, kinds):
            return step(value)
    # A unit keeps the futures of those who await its handle.
    if type(value).__name__ == "Entry":
        return list(getattr(value, "waiters", ()))
    # A task group, of asyncio or anyio, keeps the future by which its exit is woken.
    attributes: dict[str, Any] = getattr(value, "__dict__", {}) if type(value).__name__ == "TaskGroup" else {}
    return [held for held in attributes.values() if isinstance(held, _FUTURE)]


def _woken_by_function(function: FunctionType) -> list[Any]:
    cells: dict[str, Any] = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # an empty one
            cells[name] = cell.cell_contents
    if function.__module__ == asyncio.wait.__module__ and "return_when" in cells:
        # Q: Why not wake from every `asyncio.wait`? A: One with a timeout, or for the first of several, goes on without
        # this one: test_blocking.py::test_who_waits_for_others_too_or_for_a_time_does_not_wait.
        waits_for_all = cells["return_when"] == asyncio.ALL_COMPLETED or cells.get("counter") == 1
        if cells.get("timeout_handle") is not None or not waits_for_all:
            return []
    return list(cells.values())


_FUTURE: Any = asyncio.Future
_METHODS = (MethodType, BuiltinMethodType)
_CALLBACKS: Any = (list, tuple, functools.partial, FunctionType, *_METHODS)
_STEPS: tuple[tuple[Any, Callable[[Any], Iterable[Any]]], ...] = (
    (_FUTURE, lambda future: [held for held in gc.get_referents(future) if isinstance(held, _CALLBACKS)]),
    ((list, tuple), iter),
    (functools.partial, lambda partial: [partial.func, *partial.args]),
    (FunctionType, _woken_by_function),
    (_METHODS, lambda method: [method.__self__]),
)
