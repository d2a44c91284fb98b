"""What a task waits for in place of a future that must not be cancelled with it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextvars import Context
from typing import Any, final

__all__ = ["Gate", "let_threads_run"]


def let_threads_run() -> None:
    """
    Blocks the loop for a fifth of a millisecond.

    Q: Why should one? A: A task that is cancelled in every turn, as anyio does it to what waits inside of its scopes,
    keeps the loop turning without a pause. The thread in which SQLite rolls back may then wait for the interpreter's
    lock as long as patience lasts: test_c23_middleware_that_cancels_the_request.py.
    """
    time.sleep(0.0002)


@final
class Gate:
    """
    Stands between a task and the future that its coroutine waits for: what cancels the task does not cancel that.

    To the task it is a future. A real one between the two would do the same, but each wait would take two turns of the
    loop. Gates stand behind one another where a unit is called in the body of a unit.
    """

    __slots__ = ("_asyncio_future_blocking", "_callback", "_context", "_future", "_is_open")

    def __init__(self, future: asyncio.Future[Any] | Gate) -> None:
        self._asyncio_future_blocking = True
        self._future = future
        self._callback: Callable[[Any], object] | None = None
        self._context: Context | None = None
        self._is_open = False

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return self._future.get_loop()

    def done(self) -> bool:
        return self._is_open or self._future.done()

    def result(self) -> None:
        """The coroutine asks the future itself."""

    def add_done_callback(self, callback: Callable[[Any], object], *, context: Context | None = None) -> None:
        self._callback, self._context = callback, context
        self._future.add_done_callback(self._let_through, context=context)

    def remove_done_callback(self, _callback: Callable[[Any], object]) -> int:
        self._callback = None
        return self._future.remove_done_callback(self._let_through)

    def _let_through(self, _: object) -> None:
        callback, self._callback = self._callback, None
        if callback is not None:
            callback(self)

    def open(self) -> None:
        """Wakes the task, though the future is not done."""
        alarm = self._alarm()
        if alarm is not None:
            alarm.set_result(None)

    def cancel(self, msg: object = None) -> bool:
        """Wakes the task with a CancelledError; says no if it has been woken already, as a future does."""
        alarm = self._alarm()
        return alarm is not None and alarm.cancel(msg)

    def _alarm(self) -> asyncio.Future[None] | None:
        """A real future in place of this, if the task still waits."""
        callback = self._callback
        if callback is None:
            return None
        self.remove_done_callback(callback)
        self._is_open = True
        alarm: asyncio.Future[None] = self.get_loop().create_future()
        alarm.add_done_callback(callback, context=self._context)
        return alarm
