"""
The units that wait for one transaction: released by its commit, dropped by anything else.

It is the session's own root transaction that counts. A savepoint that is rolled back drops what was registered in it;
one that is released passes it on to the transaction around it. `_watch` tells of all this from the session's events.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable
from typing import Any, Protocol, final

from sqlalchemy.orm import Session, SessionTransaction

from sa_isolated_tasks._blocking import waits_for
from sa_isolated_tasks._watch import current_task, record_of
from sa_isolated_tasks.exceptions import CommitDeadlockError

__all__ = ["DeadlockWatch", "ParentTransaction", "WaitingUnit", "parent_transaction_of"]

_LOOK_AGAIN = 0.5
"""Seconds."""


class WaitingUnit(Protocol):
    """
    What a parent transaction does with a unit. Neither method raises; both may be called in any thread.

    *later* is for a drop that comes out of the garbage collector, in the middle of anything.
    """

    def release(self) -> None: ...

    def drop(self, reason: str, /, *, later: bool = False) -> None: ...


@final
class ParentTransaction:
    """
    The queue of one root transaction, from the first registration to the transaction's end.

    It refers to the session weakly: a session that is given up, and collected, drops its units.
    """

    __slots__ = ("__weakref__", "_finalizer", "_released", "_tasks", "_units", "is_open", "was_committed")

    def __init__(self, session: Session) -> None:
        self.is_open: bool = True
        self.was_committed: bool = False
        # With the savepoint in which it was registered: a weak reference, since a transaction refers to its session.
        self._units: list[tuple[WaitingUnit, weakref.ref[SessionTransaction] | None]] = []
        self._released: weakref.ref[SessionTransaction] | None = None
        # Those that may have to end it. Q: Why not only who has registered? A: That may have been a helper, which is
        # through: test_after_commit.py::test_awaiting_what_a_helper_has_registered_is_a_deadlock.
        self._tasks: weakref.WeakSet[asyncio.Task[Any]] = weakref.WeakSet()
        beginner = record_of(session).begun_by()
        if beginner is not None:
            self._tasks.add(beginner)
        self._finalizer = weakref.finalize(session, self._collected)
        self._finalizer.atexit = False

    def add(self, unit: WaitingUnit, savepoint: SessionTransaction | None) -> None:
        task = current_task()
        if task is not None:
            self._tasks.add(task)
        if self.was_committed:  # from a hook that runs after the commit, while the transaction has not ended yet
            unit.release()
        else:
            self._units.append((unit, _reference(savepoint)))

    def would_wait_for_itself(self, waiter: asyncio.Task[Any] | None) -> bool:
        """Whether a task that has yet to end this transaction waits for *waiter*, or is it."""
        if not self.is_open or self.was_committed or waiter is None:
            return False
        return any(task is waiter or (not task.done() and waits_for(task, waiter)) for task in self._tasks)

    def savepoint_released(self, savepoint: SessionTransaction) -> None:
        self._released = weakref.ref(savepoint)

    def savepoint_ended(self, savepoint: SessionTransaction) -> None:
        """Its units go to the transaction around it, if it was released; otherwise it was rolled back."""
        # Not as lists: a savepoint may hold thousands.
        inside = {unit: None for unit, held_by in self._units if held_by is not None and held_by() is savepoint}
        if self._released is not None and self._released() is savepoint:
            outer = _boundary_around(savepoint)
            moved = _reference(outer)
            self._units = [(unit, moved if unit in inside else held_by) for unit, held_by in self._units]
        elif inside:
            self._units = [(unit, held_by) for unit, held_by in self._units if unit not in inside]
            for unit in inside:
                unit.drop("the savepoint in which it was registered was rolled back")

    def committed(self) -> None:
        """In the order of registration. It runs inside the parent's ``commit()``, so it only hands over."""
        self.was_committed = True
        units, self._units = self._units, []
        for unit, _ in units:
            unit.release()

    def ended(self) -> None:
        self.is_open = False
        self._finalizer.detach()
        units, self._units = self._units, []
        for unit, _ in units:
            unit.drop("its parent's transaction ended without a commit")

    def _collected(self) -> None:
        self.is_open = False
        units, self._units = self._units, []
        for unit, _ in units:
            unit.drop("its parent's session was collected without a commit", later=True)


@final
class DeadlockWatch:
    """
    Around the wait of a task for a unit: fails it if the unit's parent comes to wait for that task.

    Q: Why by the clock? A: The parent may begin to wait at any time, and asyncio tells nobody of it:
    test_after_commit.py::test_a_deadlock_that_comes_about_later_ends.
    """

    __slots__ = ("_deadlock_error", "_parent", "_timer", "_waiter", "_waiting")

    def __init__(
        self,
        parent: ParentTransaction,
        waiting: asyncio.Future[None],
        deadlock_error: Callable[[], CommitDeadlockError],
    ) -> None:
        self._parent = parent
        self._waiting = waiting
        self._waiter = current_task()
        self._deadlock_error = deadlock_error

    def __enter__(self) -> None:
        self._timer = self._waiting.get_loop().call_later(_LOOK_AGAIN, self._look)

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    def _look(self) -> None:
        if self._waiting.done() or not self._parent.is_open or self._parent.was_committed:
            return
        if self._parent.would_wait_for_itself(self._waiter):
            self._waiting.set_exception(self._deadlock_error())
        else:
            self.__enter__()


def _reference(savepoint: SessionTransaction | None) -> weakref.ref[SessionTransaction] | None:
    return None if savepoint is None else weakref.ref(savepoint)


def parent_transaction_of(session: Session) -> ParentTransaction:
    """The queue of the transaction that *session* is in."""
    record = record_of(session)
    if record.parent is None:
        record.parent = ParentTransaction(session)
    assert isinstance(record.parent, ParentTransaction)  # noqa: S101 -- nothing else is ever put there
    return record.parent


def _boundary_around(savepoint: SessionTransaction) -> SessionTransaction | None:
    """The savepoint around this one, or None for the root."""
    outer = savepoint.parent
    while outer is not None and not outer.nested:
        outer = outer.parent
    return outer
