"""Work that a cancellation may not cut off: awaited to its end, or until patience ends."""

from __future__ import annotations

import asyncio
import contextlib
import math
import sys
from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager
from typing import Any, TypeVar, cast

__all__ = ["anyio_shield", "finish", "settle", "times_cancelled"]

_T = TypeVar("_T")

_LAST_WORDS = 1.0
"""Seconds that work has to end in after it was given up, and the same again after it was cancelled."""


async def finish(
    work: Coroutine[Any, Any, _T],
    *,
    patience: float = math.inf,
    since: float = math.inf,
    give_up: Callable[[], Coroutine[Any, Any, object]] | None = None,
) -> _T:
    """As `settle`; then the cancellation, if there was one, goes on."""
    result, cancelled = await settle(work, patience=patience, since=since, give_up=give_up)
    if cancelled is not None:
        raise cancelled
    return result


async def settle(
    work: Coroutine[Any, Any, _T],
    *,
    patience: float = math.inf,
    since: float = math.inf,
    give_up: Callable[[], Coroutine[Any, Any, object]] | None = None,
) -> tuple[_T, asyncio.CancelledError | None]:
    """
    Awaits *work*, in a task of its own, however often the current task is cancelled meanwhile.

    Args:
        work: the coroutine; its exception goes before the cancellation's.
        patience: seconds that it may take after the first cancellation.
        since: when there was a cancellation already, in the time of the loop.
        give_up: awaited for a moment when patience has ended, to make *work* fail; it is cancelled too.

    Returns:
        The result of *work*, and the cancellation that came meanwhile.

    Raises:
        CancelledError: patience has ended; *work* has no result.
    """
    loop = asyncio.get_running_loop()
    task = loop.create_task(work)
    cancelled: asyncio.CancelledError | None = None
    deadline = since + patience
    shield: AbstractContextManager[Any] = contextlib.nullcontext()
    while not task.done():
        try:
            with shield:
                await asyncio.wait([task], timeout=_seconds_until(deadline, loop))
        except asyncio.CancelledError as error:
            cancelled = error
            deadline = min(deadline, loop.time() + patience)
            # Q: Why not just go round again? A: An anyio cancel scope cancels in every turn of the loop, and one core
            # would be busy until the commit is through: test_protect.py::test_anyio_does_not_spin_during_a_commit.
            shield = anyio_shield()
            continue
        if not task.done():
            if give_up is not None:
                await _wait_a_moment(loop.create_task(give_up()))
            task.cancel("given up")
            await _wait_a_moment(task)
            raise cancelled or asyncio.CancelledError("what had to be finished was given up")
    return task.result(), cancelled


def _seconds_until(deadline: float, loop: asyncio.AbstractEventLoop) -> float | None:
    return None if deadline == math.inf else max(deadline - loop.time(), 0)


async def _wait_a_moment(task: asyncio.Task[Any]) -> None:
    # Its exception, if it has one, comes from having been given up.
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    with contextlib.suppress(asyncio.CancelledError), anyio_shield():
        await asyncio.wait([task], timeout=_LAST_WORDS)


def anyio_shield() -> AbstractContextManager[Any]:
    """Anyio is no dependency: if nobody has imported it, no cancel scope of it can be around."""
    anyio = sys.modules.get("anyio")
    if anyio is None:
        return contextlib.nullcontext()
    return cast("AbstractContextManager[Any]", anyio.CancelScope(shield=True))


def times_cancelled() -> int:
    """How many cancellations of the current task are not taken back."""
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()
