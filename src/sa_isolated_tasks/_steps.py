"""
Drives a coroutine step by step in the current task, so that a cancellation can be kept out of it for a while.

A task of its own would keep it out as well. But it costs more than the commit that it protects, and ``asyncio.run``
cancels it like any other when the program ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Coroutine, Generator, Iterator
from contextlib import AbstractContextManager
from typing import Any, Generic, TypeVar, cast

from sa_isolated_tasks._gate import Gate, let_threads_run
from sa_isolated_tasks._suspended import awaited_by, groups_being_left, groups_that_cancelled

__all__ = [
    "PatienceEnded",
    "Steps",
    "anyio_shield",
    "awaited_deep_down",
    "times_cancelled",
]

R = TypeVar("R")


class PatienceEnded(BaseException):
    """The driver has left a coroutine that has not ended; see `Steps.rest`."""


class Steps(Generic[R]):
    """
    Awaits a coroutine in the current task, as ``await`` does, but for cancellations that come while `holds()`.

    Such a one is remembered in `held`, the first of them, and does not reach the coroutine. It is thrown into it at the
    next suspension at which `holds()` says no, unless it was taken back by then.
    """

    # Defaults of the class, not of `__init__`: steps are made for every unit, and most need none of this.
    # As it came: by its text an anyio cancel scope knows its own.
    held: asyncio.CancelledError | None = None
    # How many cancellations the task had when one of them reached the work; 0 for none.
    _struck_at: int = 0
    _asked: int = 0
    _task: asyncio.Task[Any] | None = None
    # Cancellations that are held, and do not count while a timeout of the work, which has run out, has its way.
    _lent: int = 0
    _gate: Gate | None = None
    _groups: tuple[asyncio.TaskGroup, ...] = ()
    _seen: tuple[asyncio.TaskGroup, ...] = ()
    _waiting: asyncio.Future[Any] | None = None
    _is_left: bool = False
    # What was begun while the work waited, and has to be over before it goes on.
    unfinished: asyncio.Task[None] | None = None

    def __init__(self, coroutine: Coroutine[Any, Any, R]) -> None:
        self._coroutine = coroutine

    @property
    def driven(self) -> Coroutine[Any, Any, R]:
        return self._coroutine

    def was_struck(self) -> bool:
        """Whether a cancellation has reached the work; one that was taken back since is forgotten."""
        if not self._struck_at:
            return False
        # Q: Why does it matter? A: After a timeout in the work that has run out, the next cancellation is a first one:
        # test_driving.py::test_after_a_timeout_of_the_body_a_cancellation_comes_at_once.
        task = self._task
        if task is None or task.cancelling() < self._struck_at:
            self._struck_at = 0
        return self._struck_at > 0

    @property
    def is_due(self) -> bool:
        """Whether a cancellation is held that nobody has taken back; asked by anybody."""
        task = self._task
        return self.held is not None and task is not None and task.cancelling() + self._lent > self._asked

    @property
    def is_waiting(self) -> bool:
        """Whether the work is suspended where a cancellation does not reach it."""
        return self._gate is not None

    @property
    def left_by_groups(self) -> int:
        """
        How many cancellations of the task are no cancellations of the work, but stem from its task groups.

        A TaskGroup cancels the task that it is in when one of its own has failed. Before Python 3.13 it never takes
        that back: test_unit.py::test_a_failure_in_a_task_group_that_the_body_handles_cancels_nothing.
        """
        return len(self._groups) if sys.version_info < (3, 13) else 0

    def holds(self) -> bool:
        """Whether a cancellation would do harm now: asked at each suspension, and again whenever `wake()` is called."""
        raise NotImplementedError

    def owns(self) -> bool:
        """Whether a timeout inside the work has run out: it cancels the task that it was entered in, which is this."""
        raise NotImplementedError

    def on_hold(self) -> None:
        """A cancellation was remembered; before that there was none."""
        raise NotImplementedError

    def finish(self, unfinished: asyncio.Task[None]) -> Generator[Any, None, None]:
        """Waits for what was begun."""
        raise NotImplementedError

    def __await__(self) -> Generator[Any, None, R]:  # noqa: C901, PLR0912 -- one function more is one call more a suspension
        error: BaseException | None = None
        try:
            if self._waiting is not None:
                error = yield from self._resume(self._waiting)
            while True:
                try:
                    waiting = self._coroutine.send(None) if error is None else self._throw(error)
                except BaseException as end:
                    if self._lent:
                        yield from self._take_back()
                    if not isinstance(end, StopIteration):
                        raise
                    result: R = end.value
                    return result
                if self._lent and not self.owns():
                    yield from self._take_back()
                error = None
                if self.holds():
                    error = yield from self._wait(waiting)
                    unfinished, self.unfinished = self.unfinished, None
                    if unfinished is not None:
                        yield from self.finish(unfinished)
                elif self.held is not None:
                    error = yield from self._pass_on(waiting)
                else:
                    # As `_pass_on` does, without a generator for each suspension.
                    try:
                        yield waiting
                    except GeneratorExit:
                        raise
                    except BaseException as thrown:  # noqa: BLE001 -- it is thrown into the coroutine
                        error = self._struck_by(thrown)
        finally:
            error = None  # its traceback leads to this frame
            if not self._is_left:
                self._coroutine.close()

    def _wait(self, waiting: asyncio.Future[Any] | None) -> Generator[Any, None, BaseException | None]:
        """Waits, while it holds, for what the coroutine waits for. A cancellation is kept, and goes no further."""
        if waiting is None:
            waiting = _next_turn()
        # Whoever yields a future to its task says so by this flag; it is another one that is yielded now.
        waiting._asyncio_future_blocking = False  # noqa: SLF001 -- the protocol between futures and tasks
        shield: AbstractContextManager[Any] | None = None
        asked = times_cancelled()
        while not waiting.done():
            try:
                # Q: Why not yield it as it is? A: The task would cancel it. Q: Why behind anyio's shield? A: A cancel
                # scope cancels in every turn of the loop, and one core would be busy until the commit is through:
                # test_protect.py::test_anyio_does_not_spin_during_a_commit.
                gate = self._gate = Gate(waiting)
                if shield is None:
                    yield gate
                else:
                    with shield:
                        yield gate
            except asyncio.CancelledError as cancelled:
                if self.owns():
                    # Q: Is it the timeout's alone? A: Not if another came in the same turn of the loop:
                    # test_steps.py::test_a_timeout_of_the_work_runs_out_in_the_turn_of_a_cancellation.
                    if times_cancelled() > asked + 1:
                        self._hold(asyncio.CancelledError(*cancelled.args), asked)
                    return self._let_in(cancelled, waiting)
                shield = anyio_shield()
                self._hold(cancelled, asked)
            finally:
                self._gate = None
            if self._is_left:
                if self._lent:
                    yield from self._take_back()
                self._waiting = waiting
                raise PatienceEnded
            if not waiting.done() and not self.holds():
                break
        return (yield from self._resume(waiting))

    def _resume(self, waiting: asyncio.Future[Any]) -> Generator[Any, None, BaseException | None]:
        self._waiting = None
        if waiting.done():
            return None
        waiting._asyncio_future_blocking = True  # noqa: SLF001 -- as it was
        return (yield from self._pass_on(waiting))

    def _pass_on(self, waiting: asyncio.Future[Any] | None) -> Generator[Any, None, BaseException | None]:
        """Yields to the task, unless a cancellation is due; gives what is to be thrown into the coroutine."""
        if self.held is not None:
            held = self.take_held()
            if held is not None:
                if waiting is not None:
                    waiting.cancel()
                self._strike()
                return held
        try:
            yield waiting
        except BaseException as error:  # noqa: BLE001 -- it is thrown into the coroutine
            return self._struck_by(error)
        return None

    def _struck_by(self, error: BaseException) -> BaseException:
        if isinstance(error, asyncio.CancelledError):
            self._strike()
            self._look_for_groups()
        return error

    def _strike(self) -> None:
        self._task = task = asyncio.current_task()
        self._struck_at = 0 if task is None else task.cancelling()

    def _look_for_groups(self) -> None:
        # Each cancels its task once, so one that was seen before is not the cause. One that was still in its block
        # takes that back, and sees to it when it is left; one that was waiting for its tasks already does not.
        chain = list(awaited_deep_down(self._coroutine))
        fresh = [group for group in groups_that_cancelled(chain) if group not in self._seen]
        leaving = groups_being_left(chain)
        self._seen += tuple(fresh)
        self._groups += tuple(group for group in fresh if group in leaving)

    def _hold(self, cancelled: asyncio.CancelledError, asked: int) -> None:
        self._look_for_groups()
        if self.held is None:
            self.held = cancelled
            self._task = asyncio.current_task()
            # Q: Was it asked for since this wait began? A: Not if the work itself, on its last step, has cancelled its
            # task: test_steps.py::test_a_cancellation_that_the_work_asks_for_itself_is_held.
            self._asked = min(asked, times_cancelled() - 1)
            self.on_hold()
        else:
            let_threads_run()
            # An anyio cancel scope knows its own by the text, and looks for it along the chain:
            # test_steps.py::test_every_cancellation_that_was_held_is_in_the_chain_of_the_one_that_comes.
            chain, more = _chain_of(self.held), _chain_of(cancelled)
            is_new = all(error.args != cancelled.args for error in chain)
            if is_new and not {id(error) for error in chain} & {id(error) for error in more}:
                chain[-1].__context__ = cancelled

    def take_held(self) -> asyncio.CancelledError | None:
        """The cancellation that is due: none if who asked for it, a timeout in the work, has taken it back."""
        is_due = self.is_due
        held, self.held = self.held, None
        return held if is_due else None

    def _let_in(self, cancelled: asyncio.CancelledError, waiting: asyncio.Future[Any]) -> asyncio.CancelledError:
        """A timeout inside the work has run out, and cancels what it waits for, as it would without a driver."""
        waiting.cancel()
        # Q: Why does it matter what is held? A: The timeout looks at the number of cancellations of its task, and takes
        # none for its own while there is another: test_steps.py::test_a_timeout_of_the_work_runs_out_during_a_hold.
        if self.held is not None and not self._lent:
            task: Any = asyncio.current_task()
            self._lent = times_cancelled() - self._asked - 1
            for _ in range(self._lent):
                task.uncancel()
        return cancelled

    def _throw(self, error: BaseException) -> asyncio.Future[Any] | None:
        try:
            waiting: asyncio.Future[Any] | None = self._coroutine.throw(error)
            return waiting
        finally:
            # This frame is in its traceback: what the body holds would stay until the garbage collector runs,
            # test_handle.py::test_a_cancelled_unit_is_freed_without_the_garbage_collector.
            del error

    def _take_back(self) -> Generator[Any, None, None]:
        """
        The timeout is through: what is held counts again.

        Cancelling a running task, to that end, makes for one CancelledError too many.
        """
        lent, self._lent = self._lent, 0
        task: Any = asyncio.current_task()
        for _ in range(lent):
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            yield

    def wake(self) -> None:
        """Something has changed: `holds()` is asked again."""
        if self._gate is not None:
            self._gate.open()

    def leave(self) -> None:
        """Ends the awaiting, by `PatienceEnded`, at once; the coroutine lives on in `rest()`."""
        self._is_left = True
        self.wake()

    async def rest(self) -> R:
        """What is left of the coroutine, for another task. By then `holds()` has to say no."""
        self._is_left = False
        self.held = None
        return await self


# As Any, `isinstance` does not narrow to a type with unknown parameters.
_STEPS: Any = Steps


def _next_turn() -> asyncio.Future[None]:
    """What a bare ``yield`` waits for."""
    loop = asyncio.get_running_loop()
    turn: asyncio.Future[None] = loop.create_future()
    loop.call_soon(turn.set_result, None)
    return turn


def _chain_of(error: BaseException) -> list[BaseException]:
    chain = [error]
    while chain[-1].__context__ is not None:
        chain.append(chain[-1].__context__)
    return chain


def awaited_deep_down(coroutine: Any) -> Iterator[Any]:
    """As `awaited_by`, and on into what a driver in the chain drives."""
    driven: Any = coroutine
    while driven is not None:
        inner = None
        for awaiting in awaited_by(driven):
            yield awaiting
            frame = getattr(awaiting, "gi_frame", None)
            driver: Any = None if frame is None else frame.f_locals.get("self")
            if isinstance(driver, _STEPS):
                inner = driver.driven
        driven = inner


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
