"""
Transactions that the database has taken back, and whose session has not noticed.

After an error PostgreSQL refuses every statement up to the end of the transaction, and answers COMMIT with ROLLBACK,
which is no error: who has caught the first error commits, is told nothing, and has lost what was written. MariaDB takes
everything back to end a deadlock, and lets the session begin anew; COMMIT keeps what came after it. So does SQLite when
a statement that writes is interrupted, or where the schema says ON CONFLICT ROLLBACK.

And those whose ROLLBACK fails, which nobody has ended.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Generator, Iterable
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError

from sa_isolated_tasks.exceptions import AbortedTransactionError, describe

__all__ = ["dropped_if_rollback_fails", "forget_errors", "hear_errors", "note_begin", "reason_of_abortion"]

_REFUSING = {"postgresql", "cockroachdb"}
_DEADLOCK = 1213

# As text: the error itself would keep, by its traceback, the connection for which it stands here.
# A plain dict, since every transaction asks whether it is empty, and a WeakKeyDictionary takes long to say.
_errors: dict[weakref.ref[Connection], str] = {}
# Of connections to SQLite: how many rows they had written when their last transaction began.
_written_before: dict[weakref.ref[Connection], int] = {}
# Of those that units are rolling back.
_rolling_back: set[weakref.ref[Connection]] = set()


def hear_errors() -> None:
    """
    Starts to note errors; a second call does nothing.

    A listener for errors costs nothing where there is none, but for SQLAlchemy 1.4, which has all events or no events:
    there every transaction of the process takes a twentieth more.
    """
    if not event.contains(Engine, "handle_error", _note):
        event.listen(Engine, "handle_error", _note)


def _note(context: Any) -> None:
    connection: Connection | None = context.connection
    if connection is None or connection.invalidated or not isinstance(context.original_exception, Exception):
        return
    if context.statement is None and weakref.ref(connection) in _rolling_back:
        context.is_disconnect = True
        context.invalidate_pool_on_disconnect = False
        return
    dialect = connection.dialect.name
    if (
        dialect in _REFUSING
        or (dialect in {"mysql", "mariadb"} and _is_deadlock(context.original_exception))
        or (dialect == "sqlite" and _has_taken_back(connection))
    ):
        # The first: to every statement after it PostgreSQL answers that there was one.
        noted = weakref.ref(connection, _connection_collected)
        _errors.setdefault(noted, describe(context.original_exception).partition("\n")[0])


@contextlib.contextmanager
def dropped_if_rollback_fails(connections: Iterable[Connection]) -> Generator[None]:
    """
    They are closed then, as if the database had gone.

    Q: What does SQLAlchemy do? A: It gives them back to the pool, and whoever is next has the transaction of another:
    test_aborted.py::test_a_connection_whose_rollback_fails_is_dropped.
    """
    ending = {weakref.ref(connection) for connection in connections}
    _rolling_back.update(ending)
    try:
        yield
    finally:
        _rolling_back.difference_update(ending)


def _connection_collected(noted: weakref.ref[Connection]) -> None:
    _errors.pop(noted, None)
    _written_before.pop(noted, None)


def _is_deadlock(error: BaseException) -> bool:
    return bool(error.args) and error.args[0] == _DEADLOCK


def note_begin(connection: Connection) -> None:
    """A transaction has begun on SQLite; not every driver counts, and none may make it fail."""
    written = getattr(_driver_of(connection), "total_changes", None)
    if written is not None:
        _written_before[weakref.ref(connection, _connection_collected)] = written


def _has_taken_back(connection: Connection) -> bool:
    """Whether something was written in the transaction, and there is none any more."""
    before = _written_before.get(weakref.ref(connection))
    if before is None:
        return False
    driver = _driver_of(connection)
    return bool(driver.total_changes > before and not driver.in_transaction)


def _driver_of(connection: Connection) -> Any:
    return connection.connection.driver_connection


def forget_errors(connections: Iterable[Connection]) -> None:
    """The transaction has ended."""
    for connection in connections if _errors else ():
        _errors.pop(weakref.ref(connection), None)


def reason_of_abortion(connections: Iterable[Connection]) -> AbortedTransactionError | None:
    """
    The error to raise in place of a commit that would keep nothing, or not all.

    Costs a round trip, and that only after an error: it may have been taken back with its savepoint, or be the driver's
    own, which the server has never heard of.
    """
    for connection in connections if _errors else ():
        what = _errors.get(weakref.ref(connection))
        if what is None:
            continue
        if connection.dialect.name not in _REFUSING:
            return _aborted(what, cure="raise  # and run it again: all of it was taken back")
        try:
            connection.exec_driver_sql("select 1").close()
        except DBAPIError as error:
            if not error.connection_invalidated:  # or the COMMIT will say so
                aborted = _aborted(what)
                aborted.__cause__ = error
                return aborted
    return None


def _aborted(what: str, cure: str = "") -> AbortedTransactionError:
    return AbortedTransactionError(f"the database has rolled back what was to be committed, after {what}", cure=cure)
