"""The order in which the units of a scope start."""

from __future__ import annotations

from collections import deque
from typing import Generic, Protocol, TypeVar, final

__all__ = ["StartQueue"]


class Queued(Protocol):
    """What can stand in the queue; it stays in its place when it has started or ended, and is skipped."""

    @property
    def is_queued(self) -> bool: ...


Q = TypeVar("Q", bound=Queued)

_FEW = 100


@final
class StartQueue(Generic[Q]):
    """First come, first served; but who is waited for by a unit comes before the others."""

    __slots__ = ("_awaited", "_queue")

    def __init__(self) -> None:
        self._queue: deque[Q] = deque()
        self._awaited: deque[Q] = deque()

    def append(self, unit: Q) -> None:
        self._queue.append(unit)

    def prefer(self, unit: Q) -> None:
        """
        A unit waits for this one, and has lent its slot: it starts before the others.

        Q: Why not in its turn? A: The lender may hold what the others need, a row or the only connection; they would
        take all slots and wait for it: test_limit.py::test_what_a_lender_waits_for_starts_before_others.
        """
        if unit.is_queued:
            self._awaited.append(unit)

    def pop(self) -> Q:
        """Takes the next one; there has to be one."""
        while True:
            unit = self._awaited.popleft() if self._awaited else self._queue.popleft()
            if unit.is_queued:
                return unit

    def tidy(self, left: int) -> None:
        """Only *left* of them are still in the queue: those that were cancelled are dropped, if they are the most."""
        if len(self._queue) > 2 * left + _FEW:
            self._queue = deque(self.units())

    def units(self) -> list[Q]:
        return [unit for unit in self._queue if unit.is_queued]

    def clear(self) -> None:
        self._queue.clear()
        self._awaited.clear()
