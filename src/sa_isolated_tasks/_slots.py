"""
Who may run: the slots of a scope, and the seat of each unit.

The invariant that rules out deadlock: *a unit that waits for a unit without a slot has no slot itself*.
So a slot is always held by a unit that can go on, or by one that waits for such a unit.
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, final

__all__ = ["Seat", "Slots"]


@final
class Slots:
    """
    The slots of one scope.

    Units that lent their slot and want it back come before the units in the queue: they may hold connections.
    *on_free* is called when a slot is left for the queue, *on_wait* when a unit of the scope begins to wait.
    """

    __slots__ = ("free", "limit", "on_free", "on_wait", "returning")

    def __init__(
        self, limit: int | None, on_free: Callable[[], None], on_wait: Callable[[], None] = lambda: None
    ) -> None:
        self.limit: int | None = limit
        self.free: float = math.inf if limit is None else limit
        # In order; not a deque, since seats are looked for, and leave it from the middle.
        self.returning: OrderedDict[Seat, None] = OrderedDict()
        self.on_free: Callable[[], None] = on_free
        self.on_wait: Callable[[], None] = on_wait

    def take(self) -> bool:
        if self.free <= 0 or self.returning:
            return False
        self.free -= 1
        return True

    def give(self) -> None:
        self.free += 1
        self.serve()

    def serve(self) -> None:
        while self.free > 0 and self.returning:
            self.free -= 1
            seat, _ = self.returning.popitem(last=False)
            seat.sit_down()
        if self.free > 0:
            self.on_free()


_NOBODY: list[Any] = []
"""Shared by all seats, and never changed."""


@final
class Seat:
    """The place of one unit: whether it holds a slot, which units it waits for, and which wait for it."""

    __slots__ = ("crowd", "ended", "holds", "parent", "slots", "targets", "turn", "watchers")

    def __init__(self, slots: Slots, parent: Seat | None = None) -> None:
        self.slots: Slots = slots
        self.parent: Seat | None = parent
        self.holds: bool = False
        self.ended: bool = False
        # Whether this stands for all units of a scope, not for one.
        self.crowd: bool = False
        # Lists, not sets: `gather(handle, handle)` waits twice. Most units wait for nobody: they have the empty one.
        self.targets: list[Seat] = _NOBODY
        self.watchers: list[Seat] = _NOBODY
        self.turn: asyncio.Future[None] | None = None

    def belongs_to(self, slots: Slots) -> bool:
        """Whether this is the seat of a living unit of that scope, or of one that such a unit has spawned elsewhere."""
        seat: Seat | None = self
        while seat is not None:
            if seat.slots is slots and not seat.ended:
                return True
            seat = seat.parent
        return False

    def wait_for(self, target: Seat) -> None:
        if self.targets is _NOBODY:
            self.targets = []
        if target.watchers is _NOBODY:
            target.watchers = []
        self.targets.append(target)
        target.watchers.append(self)
        if not target.holds:
            self.lend()
            self._lend_for_ancestors(target)
        self.slots.on_wait()

    def _lend_for_ancestors(self, target: Seat) -> None:
        """
        A unit of an inner scope waits for one of an outer: who waits for all of the inner scope lends its outer slot.

        Guarded by ``test_scope.py::test_an_inner_scope_in_a_unit_may_wait_for_units_of_the_outer``.
        """
        seat = self.parent
        while seat is not None:
            if seat.slots is target.slots and any(waited_for.crowd for waited_for in seat.targets):
                seat.lend()
            seat = seat.parent

    def lend(self) -> None:
        """
        Gives the slot away, and with it those of all who wait for this unit.

        Why theirs too? They hold slots, wait for a unit that now waits for a slot, and would starve it:
        ``test_slots.py::test_who_waits_for_a_lender_lends_too``.
        """
        lenders: list[Seat] = [self]
        while lenders:
            seat = lenders.pop()
            if seat.holds:
                seat.holds = False
                lenders.extend(seat.watchers)
                seat.slots.give()
            elif seat in seat.slots.returning:
                # It was about to take its slot back, but another branch of it now waits for a slotless unit.
                del seat.slots.returning[seat]
                seat.wake()

    def stop_waiting_for(self, target: Seat) -> None:
        """
        The waiter was cancelled: it goes on at once, and takes a slot even if none is free.

        Why not wait for one? It is being cancelled; a clean-up that waits for other units might never come to an end.
        """
        if self in target.watchers:
            target.watchers.remove(self)
            self.targets.remove(target)
        # A helper task may outlive its unit; the slot went with the unit.
        if self.ended or self.holds or self.waits_for_a_slotless_unit():
            return
        self.slots.returning.pop(self, None)
        self.slots.free -= 1
        self.sit_down()

    def waits_for_a_slotless_unit(self) -> bool:
        return any(not target.holds for target in self.targets)

    async def come_back(self) -> None:
        """
        Waits for the slot that was lent, after what this unit waited for has ended.

        A unit that still waits for another slotless one (in another branch of a ``gather``) goes on without: taking the
        slot would break the invariant.
        """
        while not (self.holds or self.ended or self.waits_for_a_slotless_unit()):
            if self.turn is None:
                self.turn = asyncio.get_running_loop().create_future()
            await asyncio.wait([self.turn])

    def sit_down(self) -> None:
        self.holds = True
        self.wake()

    def leave(self) -> None:
        """The unit has ended: those who waited for it get their slots back before anyone new starts."""
        self.ended = True
        self.parent = None
        if self.watchers:
            watchers, self.watchers = self.watchers, _NOBODY
            for watcher in watchers:
                watcher.targets.remove(self)
            for watcher in dict.fromkeys(watchers):
                watcher.queue_for_return()
        for target in self.targets:
            target.watchers.remove(self)
        self.targets = _NOBODY
        if self.turn is not None:
            self.wake()
        slots = self.slots
        if slots.returning:
            slots.returning.pop(self, None)
        if self.holds:
            self.holds = False
            slots.give()

    def queue_for_return(self) -> None:
        if self.holds or self.ended or self.waits_for_a_slotless_unit():
            return
        if self not in self.slots.returning:
            self.slots.returning[self] = None
            self.slots.serve()

    def wake(self) -> None:
        if self.turn is not None and not self.turn.done():
            self.turn.set_result(None)
        self.turn = None
