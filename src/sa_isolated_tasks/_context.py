"""The only context variable of the package."""

from __future__ import annotations

from contextvars import ContextVar

from sa_isolated_tasks._slots import Seat

__all__ = ["current_seat"]

# Which unit is waiting? `asyncio.gather` and, on 3.11, `asyncio.wait_for` await a handle in another task than the
# unit's, so `current_task()` cannot tell; a helper task inherits this variable. No session is ever kept in one.
current_seat: ContextVar[Seat | None] = ContextVar("sa_isolated_tasks_current_seat", default=None)
