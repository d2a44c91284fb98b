"""Who waits until a scope is quiet, and when it is that to each of them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Generator
from typing import final

from sa_isolated_tasks._slots import Seat, Slots

__all__ = ["QuietWaiters"]


@final
class QuietWaiters:
    """
    Those who wait for all units of a scope to end: who leaves it, and units of its own, by their seats.

    *live* is always the number of units that have to end before it is quiet.
    """

    __slots__ = ("_slots", "_waiters")

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self._waiters: list[tuple[asyncio.Future[None], Seat | None]] = []

    def is_quiet(self, live: int, waiter: Seat | None) -> bool:
        """
        Whether no unit is left that *waiter* has to wait for.

        Not for itself, not for units that wait here too, and not for those around it that wait for it in turn.
        """
        if not live or waiter is None or waiter.ended:
            return not live
        return self._are_only(live, self._waiting(), waiter)

    def _waiting(self) -> set[Seat]:
        return {seat for _, seat in self._waiters if seat is not None and self._is_live(seat)}

    def _are_only(self, live: int, waiting: set[Seat], waiter: Seat) -> bool:
        """Whether no units live but *waiting*, and those around *waiter* that wait for it."""
        around = {seat for seat in _chain_of(waiter) if (seat is waiter or seat.targets) and self._is_live(seat)}
        return live <= len(waiting) + len(around - waiting)

    def _is_live(self, seat: Seat) -> bool:
        return seat.slots is self._slots and not seat.ended

    @contextlib.contextmanager
    def joined_by(self, waiter: Seat | None) -> Generator[asyncio.Future[None]]:
        """A future that is done when it is quiet, or was for a moment: who is told has to look again."""
        quiet: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append((quiet, waiter))
        try:
            yield quiet
        finally:
            self._waiters.remove((quiet, waiter))

    def tell(self, live: int) -> None:
        """
        Tells all if nobody is left; otherwise one, if all the others wait here.

        Q: Why one at a time? A: Who is told goes on, and the others have to wait for its end. Told all at once, each
        would look at each: test_limit.py::test_many_units_that_wait_until_it_is_quiet.
        """
        if not live:
            for quiet, _ in self._waiters:
                if not quiet.done():
                    quiet.set_result(None)
        elif self._waiters and not any(quiet.done() for quiet, _ in self._waiters):
            waiting = self._waiting()
            for quiet, waiter in self._waiters:
                if waiter is not None and not waiter.ended and self._are_only(live, waiting, waiter):
                    quiet.set_result(None)
                    return


def _chain_of(seat: Seat | None) -> list[Seat]:
    chain: list[Seat] = []
    while seat is not None:
        chain.append(seat)
        seat = seat.parent
    return chain
