"""
What is known about sessions from their own events: closed or idle, committed or rolled back.

A closed session looks like a new one (``close()`` only resets it), so somebody has to have watched. What gives it away
is that ``close()`` replaces the identity map, which commit and rollback do not.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import weakref
from collections.abc import Callable
from time import perf_counter
from typing import Any, Protocol, final

from sqlalchemy import event
from sqlalchemy.engine import Connection
from sqlalchemy.orm import Session, SessionTransaction

from sa_isolated_tasks._aborted import forget_errors, hear_errors, note_begin, reason_of_abortion
from sa_isolated_tasks._types import Outcome

__all__ = [
    "Phase",
    "Record",
    "TransactionListener",
    "current_task",
    "new_record",
    "phase_of",
    "record_of",
    "watch_sessions",
]

# Q: Why not in `info`? A: That is the application's, which may clear it, or give a copy to another session:
# test_watch.py::test_what_becomes_of_info_is_no_matter.
_ATTRIBUTE = "_sa_isolated_tasks"
_ENDS = ("commit", "commit_twophase", "rollback", "rollback_twophase")


class Phase(enum.Enum):
    """What a session is doing, as far as it was watched."""

    FRESH = "not known to have done any work"
    OPEN = "in a transaction"
    IDLE = "between two transactions"
    CLOSED = "closed"
    REOPENED = "closed, and in use again"


class TransactionListener(Protocol):
    """Is told what becomes of one root transaction; it must not raise, since it would raise into ``commit()``."""

    def savepoint_released(self, savepoint: SessionTransaction, /) -> None: ...

    def savepoint_ended(self, savepoint: SessionTransaction, /) -> None: ...

    def committed(self) -> None: ...

    def ended(self) -> None: ...


@final
class Record:
    """
    What is remembered of one session, in an attribute of it.

    *identity_map* is weak: a strong reference would keep the rows of a closed session in memory.
    """

    # Defaults of the class, not of `__init__`: a record is made for every session of the process.
    reopened: bool = False
    isolated: bool = False
    begun: bool = False
    committed: bool = False
    commit_sent: bool = False
    # Which task has begun the commit: the unit's own, or one of the body's.
    committer: asyncio.Task[Any] | None = None
    on_sqlite: bool = False
    # A flush is on its way, and COMMIT comes after it.
    flushes_to_commit: bool = False
    lost: bool = False
    # The connection was cut because patience had ended.
    abandoned: bool = False
    # The database has rolled back what is being committed.
    aborted: bool = False
    # A unit's, which may be left open when it is empty: closing it would do nothing.
    may_stay_open: bool = False
    commits: int = 0
    outcome: Outcome = Outcome.NONE
    parent: TransactionListener | None = None
    held: float = 0.0
    held_since: float = 0.0
    on_end: Callable[[], object] | None = None
    # Called when the session begins to do something; may raise there.
    on_entry: Callable[[], object] | None = None

    def __init__(self) -> None:
        self.identity_map: Callable[[], object] = _nothing
        # Which task has begun the transaction, and so will end it, if anybody knows.
        self.begun_by: Callable[[], asyncio.Task[Any] | None] = _nothing
        # While the session is in a transaction: a unit's are cut when patience ends.
        self.connections: list[Connection] = []
        # Those of them that were in a call to the driver which was cut off.
        self.distrusted: list[Connection] = []

    def remember(self, session: Session) -> None:
        self.identity_map = weakref.ref(session.identity_map)

    def is_closed(self, session: Session) -> bool:
        return self.identity_map is not _nothing and self.identity_map() is not session.identity_map

    def close(self) -> None:
        """The session counts as closed, though its ``close()`` was not called."""
        self.identity_map = _closed

    def end(self) -> None:
        """The root transaction has ended; without a connection it was nothing."""
        if self.begun:
            self.held += perf_counter() - self.held_since
            self.outcome = Outcome.COMMITTED if self.committed else Outcome.ROLLED_BACK
            # Of several COMMITs, one for each engine, another may have come before the one that has failed.
            is_half = self.commit_sent and len(self.connections) > 1
            if not self.committed and (self.lost or self.abandoned or is_half):
                self.outcome = Outcome.UNKNOWN
            self.commits += self.committed
        self.begun = self.committed = self.commit_sent = self.flushes_to_commit = False
        self.lost = self.abandoned = self.aborted = False
        self.committer = None
        forget_errors(self.connections)
        self.connections.clear()
        self.distrusted.clear()
        if self.on_end is not None:
            self.on_end()

    def distrust_connections(self) -> None:
        """
        A call to the driver is cut off, and nobody knows what becomes of it, a BEGIN for one: no more calls.

        COMMIT fails then, and the connection is cut in place of a ROLLBACK, which does as well.
        """
        for connection in self.connections:
            if connection not in self.distrusted:
                self.distrusted.append(connection)
                for name in _ENDS:
                    event.listen(connection, name, self._cut_if_distrusted)

    def _cut_if_distrusted(self, connection: Connection, *_: object) -> None:
        if connection in self.distrusted and not connection.invalidated:
            self.commit_sent = False
            connection.invalidate()

    @property
    def has_lost_a_connection(self) -> bool:
        return any(connection.invalidated for connection in self.connections)

    def second_phase(self, *_: object) -> None:
        """COMMIT PREPARED is about to be sent."""
        self.commit_sent = True

    def interrupt(self) -> None:
        for connection in self.connections:
            _interrupt(connection)

    @property
    def is_cut_at_once(self) -> bool:
        """Whether nothing has to be awaited, nor should be: the thread of SQLite's connection may never answer."""
        dialects = [connection.dialect for connection in self.connections]
        return all(dialect.name == "sqlite" and getattr(dialect, "has_terminate", False) for dialect in dialects)

    def cut_connections(self) -> None:
        connections, self.connections = self.connections, []
        for connection in connections:
            _interrupt(connection)
            connection.invalidate()


def _interrupt(connection: Connection) -> None:
    """
    Ends a running statement where the driver can: aiosqlite, whose thread would go on with it.

    Its ``interrupt`` is a coroutine function that awaits nothing.
    """
    interrupt = getattr(connection.connection.driver_connection, "interrupt", None)
    if interrupt is not None:
        with contextlib.suppress(StopIteration):
            interrupt().send(None)


def _nothing() -> None:
    """The identity map of a session that never began."""


def _closed() -> None:
    """The identity map of a session that is closed: no session has it."""


def current_task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:  # a worker thread
        return None


def record_of(session: Session) -> Record:
    record: Record | None = session.__dict__.get(_ATTRIBUTE)  # as `_known`; this runs in every transaction
    return new_record(session) if record is None else record


def new_record(session: Session) -> Record:
    """Of a session that nobody has used."""
    record = session.__dict__[_ATTRIBUTE] = Record()
    return record


def _known(session: Session) -> Record | None:
    return session.__dict__.get(_ATTRIBUTE)


def phase_of(session: Session) -> Phase:
    """Tells from public attributes only; a session that was never seen at work is FRESH."""
    record = _known(session)
    if session.in_transaction():
        return Phase.REOPENED if record is not None and record.reopened else Phase.OPEN
    if record is None or record.identity_map is _nothing:
        return Phase.FRESH
    return Phase.CLOSED if record.is_closed(session) else Phase.IDLE


def watch_sessions() -> None:
    """
    Starts watching every session of the process; a second call does nothing.

    Listeners on the class cost about one microsecond a transaction, listeners on each session forty-five.
    """
    hear_errors()
    for name, listener in _LISTENERS:
        if not event.contains(Session, name, listener):
            # First: a listener that raises after a commit must not keep it from being known.
            event.listen(Session, name, listener, insert=True)


def _after_transaction_create(session: Session, transaction: SessionTransaction) -> None:
    if transaction.parent is None:
        record = record_of(session)
        record.reopened = record.reopened or record.is_closed(session)
        record.remember(session)
        task = current_task()
        record.begun_by = _nothing if task is None else weakref.ref(task)
    elif not transaction.nested:
        # The transaction of a flush, within the root's.
        # Q: Why not leave it as it is? A: A connection that dies in the flush has committed nothing:
        # test_unit.py::test_a_connection_that_dies_in_the_flush_of_a_commit_has_committed_nothing.
        # Q: Why not `before_flush`? A: After it there may be nothing left to flush, and COMMIT follows at once:
        # test_commit_in_body.py::test_a_commit_with_nothing_left_to_flush_is_awaited.
        record = record_of(session)
        record.flushes_to_commit, record.commit_sent = record.commit_sent, False


def _after_begin(session: Session, _transaction: SessionTransaction, connection: Connection) -> None:
    record = record_of(session)
    record.connections.append(connection)
    if connection.dialect.name == "sqlite":
        record.on_sqlite = True
        note_begin(connection)
    if record.isolated and session.twophase:
        event.listen(connection, "commit_twophase", record.second_phase)
    if not record.begun:
        record.begun = True
        record.held_since = perf_counter()
    if record.on_entry is not None:
        record.on_entry()


def _after_commit(session: Session) -> None:
    # It also fires for a savepoint that is released, and the outer transaction may still roll back:
    # test_watch.py::test_a_released_savepoint_is_no_commit.
    record = record_of(session)
    savepoint = session.get_nested_transaction()
    if savepoint is not None:
        if record.parent is not None:
            record.parent.savepoint_released(savepoint)
        return
    record.remember(session)
    if record.aborted:
        return
    record.committed = True
    if record.parent is not None:
        record.parent.committed()


def _before_commit(session: Session) -> None:
    """
    COMMIT is about to be sent, unless there is something to flush first; of a savepoint, it is RELEASE.

    Q: Why not the event of that name of the engine? A: One listener there makes every transaction of the process a
    sixth more expensive, the application's own included.
    """
    record = record_of(session)
    if record.on_entry is not None:
        record.on_entry()
    # Q: Why not in two phases? A: It is also the hook of the first, after which anything may come but a COMMIT:
    # test_two_phase.py::test_a_unit_that_is_cancelled_between_the_phases_is_rolled_back.
    if session.get_nested_transaction() is None and not session.twophase:
        _refuse_what_is_aborted(record)
        # Over a connection that is dead already nothing can be sent:
        # test_terminate.py::test_a_body_that_hides_the_death_of_its_connection.
        record.commit_sent = not record.has_lost_a_connection
        record.committer = current_task() if record.isolated else None


def _refuse_what_is_aborted(record: Record) -> None:
    """Raises in a unit's session. Elsewhere a hook must not raise: what waits for the commit is dropped."""
    if record.isolated or record.parent is not None:
        reason = reason_of_abortion(record.connections)
        record.aborted = reason is not None
        if reason is not None and record.isolated:
            raise reason


def _after_rollback(session: Session) -> None:
    # `expunge_all()` inside the transaction has replaced the identity map; the session is not closed for that.
    record = record_of(session)
    record.remember(session)
    # COMMIT was sent, and its connection given up before an answer came, or because none would: nobody knows.
    record.lost = record.commit_sent and record.has_lost_a_connection
    if session.get_nested_transaction() is None:
        record.flushes_to_commit = False


def _after_transaction_end(session: Session, transaction: SessionTransaction) -> None:
    record = record_of(session)
    if transaction.parent is None:
        record.end()
        parent, record.parent = record.parent, None
        if parent is not None:
            parent.ended()
    elif not transaction.nested:
        record.commit_sent, record.flushes_to_commit = record.flushes_to_commit, False
    elif record.parent is not None:
        record.parent.savepoint_ended(transaction)


_LISTENERS: tuple[tuple[str, Callable[..., Any]], ...] = (
    ("after_transaction_create", _after_transaction_create),
    ("after_begin", _after_begin),
    ("after_commit", _after_commit),
    ("before_commit", _before_commit),
    ("after_rollback", _after_rollback),
    ("after_transaction_end", _after_transaction_end),
)
