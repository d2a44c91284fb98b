"""
The words of the package as types: states, outcomes, timings and the shapes of factories.

Annotations are not postponed here, nor in `_events`: a named tuple compiles each that is a text, at every import.
"""

import enum
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Literal, NamedTuple, TypeAlias, TypeVar

from sqlalchemy.ext.asyncio import AsyncSession

__all__ = [
    "Context",
    "Factory",
    "Guard",
    "Limit",
    "OnFailure",
    "Outcome",
    "ScopeSnapshot",
    "SessionT",
    "TaskState",
    "Timing",
    "UnitSnapshot",
    "Welcome",
]

SessionT = TypeVar("SessionT", bound=AsyncSession)

Factory: TypeAlias = Callable[[], AsyncSession | AbstractAsyncContextManager[AsyncSession, Any]]
Limit: TypeAlias = int | Literal["pool"] | None
OnFailure: TypeAlias = Literal["log", "raise", "cancel"]
Context: TypeAlias = Literal["copy", "fresh"]
Guard: TypeAlias = Literal["raise", "warn", "off"]


class TaskState(enum.Enum):
    """
    What became of a task; what became of its transaction is the `Outcome`.

    .. versionadded:: 0.1.0
    """

    WAITING = "waiting"
    """For its parent's commit."""
    QUEUED = "queued"
    """For a slot, with neither a task nor a session yet."""
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    DROPPED = "dropped"
    """Its parent never committed, so it never ran."""

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen."""
        # By identity: an enum's hash is a function in Python, and this is asked several times for each unit.
        return not (self is TaskState.RUNNING or self is TaskState.QUEUED or self is TaskState.WAITING)


class Outcome(enum.Enum):
    """
    What became of the last transaction of a unit.

    .. versionadded:: 0.1.0
    """

    NONE = "none"
    """The database was never touched."""
    COMMITTED = "committed"
    ROLLED_BACK = "rolled_back"
    UNKNOWN = "unknown"
    """
    The connection died during the commit, or was cut when *cancel_timeout* had passed: the rows may be there or not.
    """


class Timing(NamedTuple):
    """
    Where the time of a unit went, in seconds of a monotonic clock.

    *total* runs from the spawn (or the call) to the end; *waiting* is the part of it before the parent's commit,
    *queued* the part that was spent waiting for a slot;
    *body* the function's own run; *commit* the final commit or rollback; *connection* the time in which a transaction
    held a connection, which overlaps with *body* and *commit*.

    .. versionadded:: 0.1.0
    """

    total: float = 0.0
    queued: float = 0.0
    body: float = 0.0
    commit: float = 0.0
    connection: float = 0.0
    waiting: float = 0.0


class UnitSnapshot(NamedTuple):
    """
    One unit, frozen at a moment.

    *age* is in seconds since the spawn; *spawned_at* is ``file:line``. *doing* says what a running unit waits for: the
    innermost line of its own code that awaits something, or that it is committing, rolling back or closing.

    .. versionadded:: 0.1.0
    """

    name: str
    state: TaskState
    outcome: Outcome
    age: float
    spawned_at: str
    doing: str = ""

    def __str__(self) -> str:
        doing = f", {self.doing}" if self.doing else ""
        return f"{self.name} ({self.state.value} for {self.age:.2f}s, spawned at {self.spawned_at}{doing})"


class ScopeSnapshot(NamedTuple):
    """
    One scope, frozen at a moment: for a person or a metric.

    *limit* is the resolved number of units that may run at once, None for no limit.
    *waiting*, *queued* and *running* count the *units* that live now, the fields from *succeeded* to *dropped* those
    that have ended since the scope was started.

    .. versionadded:: 0.1.0
    """

    name: str
    state: str
    limit: int | None
    waiting: int
    queued: int
    running: int
    succeeded: int
    failed: int
    cancelled: int
    dropped: int
    units: tuple[UnitSnapshot, ...]


class Welcome:
    """Marks what the guard lets pass unseen: scopes, handles and isolated functions may be arguments of a unit."""

    __slots__ = ("__weakref__",)
