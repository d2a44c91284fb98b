"""Work that a cancellation may not cut off: awaited to its end, or until patience ends."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar, final

from sa_isolated_tasks._steps import PatienceEnded, Steps
from sa_isolated_tasks._suspended import awaited_by, has_run_out

__all__ = ["LAST_WORDS", "finish", "settle"]

_T = TypeVar("_T")

# Longer than a driver takes to close a connection gracefully before it just closes it: two seconds for asyncpg.
LAST_WORDS = 3.0
"""Seconds that work has to end in after it was given up, and the same again after it was cancelled."""


async def _just_cancel() -> None:
    """Nothing else is to be done to work that is given up."""


async def finish(
    work: Coroutine[Any, Any, _T],
    *,
    patience: float = math.inf,
    since: float = math.inf,
    give_up: Callable[[], Coroutine[Any, Any, object]] = _just_cancel,
) -> _T:
    """
    Awaits *work*, in the current task, however often that is cancelled meanwhile; then the cancellation goes on.

    Args:
        work: the coroutine; its exception goes before the cancellation's.
        patience: seconds that it may take after the first cancellation.
        since: when there was a cancellation already, in the time of the loop.
        give_up: awaited for a moment when patience has ended, to make *work* fail; it is cancelled too.

    Raises:
        CancelledError: there was one; or patience has ended, and *work* has no result.
    """
    settling = _Settling(work, patience, since)
    try:
        result = await settling
    except PatienceEnded:
        raise await _give_up(settling, give_up) from None
    finally:
        settling.end()
    held, settling.held = settling.held, None
    if held is not None:
        try:
            raise held
        finally:
            del held  # this frame is in its traceback
    return result


async def settle(work: Coroutine[Any, Any, _T]) -> tuple[_T, asyncio.CancelledError | None]:
    """As `finish`; gives the result of *work*, and the cancellation that came meanwhile, in place of raising it."""
    settling = _Settling(work, math.inf, math.inf)
    return await settling, settling.held


async def _give_up(
    settling: _Settling[Any], give_up: Callable[[], Coroutine[Any, Any, object]]
) -> asyncio.CancelledError:
    cancelled = settling.held
    settling.given_up = True
    loop = asyncio.get_running_loop()
    rest = loop.create_task(settling.rest())
    # It starts in the first turn of this wait: what is cancelled has to have begun.
    await _wait_a_moment(loop.create_task(give_up()))
    rest.cancel("given up")
    await _wait_a_moment(rest)
    return cancelled or asyncio.CancelledError("what had to be finished was given up")


@final
class _Settling(Steps[_T]):
    """Holds every cancellation, until patience ends."""

    given_up: bool = False

    def __init__(self, work: Coroutine[Any, Any, _T], patience: float, since: float) -> None:
        super().__init__(work)
        self._patience = patience
        self._timer: asyncio.TimerHandle | None = None
        if since + patience < math.inf:
            self._timer = asyncio.get_running_loop().call_at(since + patience, self.leave)

    def holds(self) -> bool:
        return not self.given_up

    def owns(self) -> bool:
        return has_run_out(awaited_by(self._coroutine))

    def on_hold(self) -> None:
        if self._timer is None and self._patience < math.inf:
            self._timer = asyncio.get_running_loop().call_later(self._patience, self.leave)

    def end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


async def _wait_a_moment(task: asyncio.Task[Any]) -> None:
    # Its exception, if it has one, comes from having been given up.
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    # Q: Why hold a cancellation here too? A: The connection is being closed, and who comes next may need it:
    # test_protect.py::test_a_cancellation_during_the_last_words_changes_nothing.
    await settle(asyncio.wait([task], timeout=LAST_WORDS))
