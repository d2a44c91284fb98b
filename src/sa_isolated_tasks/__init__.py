"""
Background tasks for async SQLAlchemy, each with a session of its own.

Start with `isolated_session` for one function, or `TaskScope` for the tasks of an application.
"""

from sa_isolated_tasks._events import Listener, ScopeWaiting, UnitEnded, UnitStarted
from sa_isolated_tasks._handle import TaskHandle
from sa_isolated_tasks._isolated import IsolatedClassMethod, IsolatedFunction, IsolatedMethod, isolated_session
from sa_isolated_tasks._logging import LoggingListener
from sa_isolated_tasks._scope import TaskScope
from sa_isolated_tasks._spawn import Spawner
from sa_isolated_tasks._types import Factory, Outcome, ScopeSnapshot, TaskState, Timing, UnitSnapshot
from sa_isolated_tasks.exceptions import (
    AbortedTransactionError,
    ClosedSessionError,
    CommitDeadlockError,
    DeclarationError,
    FakeIsolationError,
    InstancePassedError,
    IsolatedTasksError,
    IsolatedTasksWarning,
    LimitError,
    NoTransactionError,
    ScopeClosedError,
    SessionPassedError,
    ShutdownError,
    TaskDroppedError,
    UnitCancelledError,
    WrongLoopError,
)

__all__ = [
    "AbortedTransactionError",
    "ClosedSessionError",
    "CommitDeadlockError",
    "DeclarationError",
    "Factory",
    "FakeIsolationError",
    "InstancePassedError",
    "IsolatedClassMethod",
    "IsolatedFunction",
    "IsolatedMethod",
    "IsolatedTasksError",
    "IsolatedTasksWarning",
    "LimitError",
    "Listener",
    "LoggingListener",
    "NoTransactionError",
    "Outcome",
    "ScopeClosedError",
    "ScopeSnapshot",
    "ScopeWaiting",
    "SessionPassedError",
    "ShutdownError",
    "Spawner",
    "TaskDroppedError",
    "TaskHandle",
    "TaskScope",
    "TaskState",
    "Timing",
    "UnitCancelledError",
    "UnitEnded",
    "UnitSnapshot",
    "UnitStarted",
    "WrongLoopError",
    "isolated_session",
]
