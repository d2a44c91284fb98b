"""
What a scope and a unit tell their listeners.

What is made for every unit is a named tuple: a frozen dataclass takes five times as long to make.
"""

from typing import NamedTuple, Protocol

from sa_isolated_tasks._types import Outcome, TaskState, Timing

__all__ = ["Listener", "ScopeWaiting", "UnitEnded", "UnitStarted"]


class UnitStarted(NamedTuple):
    """
    A unit is about to open its session.

    *scope* is empty for a decorated function that was called rather than spawned. *queued* is in seconds.

    .. versionadded:: 0.1.0
    """

    scope: str
    unit: str
    queued: float


class UnitEnded(NamedTuple):
    """
    A unit has ended: its session is closed and its connection is back in the pool.

    *commits* counts all commits of the unit's session. *exception* is what awaiting the handle raises, or None.

    .. versionadded:: 0.1.0
    """

    scope: str
    unit: str
    state: TaskState
    outcome: Outcome
    commits: int
    timing: Timing
    exception: BaseException | None
    reason: str
    spawned_at: str


class ScopeWaiting(NamedTuple):
    """
    A scope that is being left still waits for units: sent every 30 seconds. *waited* is in seconds.

    .. versionadded:: 0.1.0
    """

    scope: str
    waited: float
    units: tuple[str, ...]


class Listener(Protocol):
    """
    Gets the events of a scope, in the event loop, between two steps of its tasks.

    A method must not block. What it raises is logged and changes nothing.

    .. versionadded:: 0.1.0
    """

    def unit_started(self, event: UnitStarted, /) -> None: ...

    def unit_ended(self, event: UnitEnded, /) -> None: ...

    def scope_waiting(self, event: ScopeWaiting, /) -> None: ...
