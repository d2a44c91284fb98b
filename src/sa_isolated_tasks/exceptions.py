"""
Every error that this package raises.

::

    Exception
    └── IsolatedTasksError
        ├── SessionPassedError           SIT101  a session, connection, transaction or result was passed
        │   └── ClosedSessionError       SIT102  ... and it is known to be closed
        ├── InstancePassedError          SIT103  an attached or expired mapped instance was passed
        ├── FakeIsolationError           SIT104  the factory cannot isolate
        ├── ScopeClosedError             SIT201  spawn on a closed, or not yet started, scope
        ├── WrongLoopError               SIT202  used from another loop or thread
        ├── NoTransactionError           SIT203  spawn_after_commit with no transaction in progress
        ├── ShutdownError                SIT204  units survived the cancellation
        ├── TaskDroppedError             SIT205  awaiting a handle whose parent never committed
        ├── UnitCancelledError           SIT206  awaiting a handle whose unit was cancelled
        ├── CommitDeadlockError          SIT207  awaiting a unit inside the transaction that it waits for
        ├── LimitError (ValueError)      SIT208  limit="pool" where no pool size can be known
        ├── AbortedTransactionError      SIT209  committing what the database has rolled back, after a caught error
        └── DeclarationError (TypeError) SIT301  refused at decoration or at spawn
    UserWarning
    └── IsolatedTasksWarning

The text of an error has one line each for what happened, where, why it is wrong, the cure, and the page that says more.
"""

from __future__ import annotations

import logging
import sys
import traceback
from types import FrameType
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from sa_isolated_tasks._types import UnitSnapshot

__all__ = [
    "AbortedTransactionError",
    "ClosedSessionError",
    "CommitDeadlockError",
    "DeclarationError",
    "FakeIsolationError",
    "InstancePassedError",
    "IsolatedTasksError",
    "IsolatedTasksWarning",
    "LimitError",
    "NoTransactionError",
    "ScopeClosedError",
    "SessionPassedError",
    "ShutdownError",
    "TaskDroppedError",
    "UnitCancelledError",
    "WrongLoopError",
]


class IsolatedTasksWarning(UserWarning):
    """
    Something will not work as written, but nothing is lost yet.

    Issued for a result that is an expired or attached mapped instance, and in place of an error under ``guard="warn"``.

    .. versionadded:: 0.1.0
    """


def check_seconds(name: str, value: object, *, or_none: str = ", or None for no limit") -> None:
    if not (value is None and or_none) and not (isinstance(value, int | float) and value >= 0):
        raise ValueError(f"{name} is in seconds, from 0{or_none}; it cannot be {value!r}")


def describe(error: BaseException) -> str:
    """As ``repr``, for exceptions of others, whose own ``repr`` may raise."""
    return "".join(traceback.format_exception_only(error)).strip()


def add_note(error: BaseException, text: str) -> None:
    """A note on the error; in the log, if that takes none: a frozen dataclass does not, and is raised all the same."""
    try:
        error.add_note(text)
    except Exception:  # noqa: BLE001 -- whatever its class has against it
        logging.getLogger(__package__).warning("%s; it takes no note: %s", describe(error), text)


def _place_of_call() -> str:
    """``file:line`` of the innermost frame outside of this package and SQLAlchemy; empty if the event loop is there."""
    frame: FrameType | None = sys._getframe()  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    while frame is not None:
        package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if package not in {__name__.partition(".")[0], "sqlalchemy"}:
            return "" if package == "asyncio" else f"{frame.f_code.co_filename}:{frame.f_lineno}"
        frame = frame.f_back
    return ""  # a greenlet of SQLAlchemy's, in which there is nobody else


class IsolatedTasksError(Exception):
    """
    The base of every error of this package.

    Attributes:
        code: the stable code, ``SIT###``; also the anchor in *docs/errors.md*.
        what: what happened, in one sentence.
        where: ``file:line`` of the call, and its source, if they are known.
        why: why it is wrong.
        cure: the line of code that cures it.

    .. versionadded:: 0.1.0
    """

    code: ClassVar[str] = "SIT000"
    why: str = ""
    cure: str = ""

    def __init__(self, what: str, *, where: str = "", why: str = "", cure: str = "") -> None:
        # Only *what* is in `args`: that, and `__dict__`, is what pickle and copy carry.
        super().__init__(what)
        self.what = what
        self.where: str = where or _place_of_call()
        if why:
            self.why = why
        if cure:
            self.cure = cure

    def __str__(self) -> str:
        details = (("at", self.where), ("why", self.why), ("cure", self.cure))
        lines = [f"  {label + ':':<6}{text}" for label, text in details if text]
        return "\n".join([f"[{self.code}] {self.what}", *lines, f"  docs: docs/errors.md#{self.code.lower()}"])


class SessionPassedError(IsolatedTasksError):
    """
    A session, connection, transaction or result was passed to a unit.

    Raised at the call, before anything starts.

    .. versionadded:: 0.1.0
    """

    code = "SIT101"
    why = (
        "it belongs to the code that opened it, which will commit, roll back or close it while the unit runs; "
        "the unit is given a session of its own"
    )


class ClosedSessionError(SessionPassedError):
    """
    A session or connection was passed to a unit, and it is known to be closed.

    A closed session does not refuse work: it silently begins again, takes a connection and never gives it back.

    .. versionadded:: 0.1.0
    """

    code = "SIT102"
    why = (
        "a closed session refuses nothing: used again, it takes a connection out of the pool and never returns it; "
        "the unit is given a session of its own"
    )


class InstancePassedError(IsolatedTasksError):
    """
    A mapped instance was passed that is attached to another session, or wholly expired and detached.

    .. versionadded:: 0.1.0
    """

    code = "SIT103"
    why = "reading it loads through a session that is not the unit's, or fails; the unit must load its own copy"


class FakeIsolationError(IsolatedTasksError):
    """
    The factory cannot isolate: its sessions would share a connection or a transaction.

    .. versionadded:: 0.1.0
    """

    code = "SIT104"
    why = "two units would share one transaction: the rollback of one would undo the rows of the other"
    cure = 'Session = async_sessionmaker(create_async_engine("sqlite+aiosqlite:///app.db"))'


class ScopeClosedError(IsolatedTasksError):
    """
    A unit was spawned on a scope that is closing, closed or not yet started.

    .. versionadded:: 0.1.0
    """

    code = "SIT201"
    why = "nobody would wait for the unit"


class WrongLoopError(IsolatedTasksError):
    """
    A scope or a handle was used from another event loop or thread than its own.

    .. versionadded:: 0.1.0
    """

    code = "SIT202"
    why = "a scope, its engine's connections and its units belong to one event loop"
    cure = "loop.call_soon_threadsafe(scope.spawn, fn)"


class NoTransactionError(IsolatedTasksError):
    """
    ``spawn_after_commit`` was called with a session that has no transaction in progress.

    .. versionadded:: 0.1.0
    """

    code = "SIT203"
    why = "there is no commit to wait for: the session has not begun, or has committed already"


class ShutdownError(IsolatedTasksError):
    """
    Units survived their cancellation for *cancel_timeout* seconds.

    Attributes:
        survivors: one frozen snapshot per unit: name, age, spawn line.

    .. versionadded:: 0.1.0
    """

    code = "SIT204"
    why = "a unit that is cancelled has to end: something in it waits without end, or swallows the cancellation"
    cure = "except asyncio.CancelledError: raise"
    survivors: tuple[UnitSnapshot, ...] = ()


class TaskDroppedError(IsolatedTasksError):
    """
    A handle was awaited whose unit was dropped: the transaction that it waited for never committed.

    .. versionadded:: 0.1.0
    """

    code = "SIT205"
    why = "a unit that is spawned after a commit runs only if there is one"
    cure = "if handle.state is TaskState.DROPPED: ..."


class UnitCancelledError(IsolatedTasksError):
    """
    A handle was awaited whose unit was cancelled.

    Never a bare ``CancelledError``, which would cancel the waiter.

    Attributes:
        reason: what was given to ``cancel()``, or what cancelled the unit.

    .. versionadded:: 0.1.0
    """

    code = "SIT206"
    why = "a cancelled unit has no result"
    cure = "if handle.state is TaskState.CANCELLED: ..."
    reason: str = ""


class CommitDeadlockError(IsolatedTasksError):
    """
    A unit that waits for a commit was awaited by the code that has yet to commit.

    .. versionadded:: 0.1.0
    """

    code = "SIT207"
    why = "the unit starts when the transaction has committed, and the transaction would wait for the unit"
    cure = "await handle  # after the block of the transaction"


class LimitError(IsolatedTasksError, ValueError):
    """
    The scope's *limit* is wrong, or is ``"pool"`` where no pool size can be known.

    .. versionadded:: 0.1.0
    """

    code = "SIT208"
    why = 'limit="pool" runs at most pool.size() - 1 units, so that one connection stays with the application'
    cure = "TaskScope(Session, name=..., limit=10)"


class AbortedTransactionError(IsolatedTasksError):
    """
    A transaction was to be committed that the database has rolled back, after an error that somebody has caught.

    Raised by the commit of a unit, or of its body, whose transaction is rolled back then. PostgreSQL alone would answer
    such a COMMIT with ROLLBACK, which is no error, and MariaDB would commit what came after a deadlock.

    .. versionadded:: 0.1.0
    """

    code = "SIT209"
    why = "after an error the database takes the transaction back; a commit that nobody doubts would lose the rows"
    cure = "async with session.begin_nested(): ...  # around the statement whose error is caught"


class DeclarationError(IsolatedTasksError, TypeError):
    """
    What was decorated, spawned or given as a factory is not what it has to be.

    .. versionadded:: 0.1.0
    """

    code = "SIT301"
