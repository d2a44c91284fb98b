"""
Transactions that the database has taken back, and whose session has not noticed.

After an error PostgreSQL refuses every statement up to the end of the transaction, and answers COMMIT with ROLLBACK,
which is no error: who has caught the first error commits, is told nothing, and has lost what was written. MariaDB takes
everything back to end a deadlock, and lets the session begin anew; COMMIT keeps what came after it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError

from sa_isolated_tasks.exceptions import AbortedTransactionError, describe

__all__ = ["forget_errors", "hear_errors", "reason_of_abortion"]

_REFUSING = {"postgresql", "cockroachdb"}
_DEADLOCK = 1213

# As text: the error itself would keep, by its traceback, the connection for which it stands here.
_errors: WeakKeyDictionary[Connection, str] = WeakKeyDictionary()


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
    if connection is None or context.sqlalchemy_exception is None:
        return
    dialect = connection.dialect.name
    if dialect in _REFUSING or (dialect in {"mysql", "mariadb"} and _is_deadlock(context.original_exception)):
        # The first: to every statement after it PostgreSQL answers that there was one.
        _errors.setdefault(connection, describe(context.original_exception).partition("\n")[0])


def _is_deadlock(error: BaseException) -> bool:
    return bool(error.args) and error.args[0] == _DEADLOCK


def forget_errors(connections: Iterable[Connection]) -> None:
    """The transaction has ended."""
    for connection in connections if _errors else ():
        _errors.pop(connection, None)


def reason_of_abortion(connections: Iterable[Connection]) -> AbortedTransactionError | None:
    """
    The error to raise in place of a commit that would keep nothing, or not all.

    Costs a round trip, and that only after an error: it may have been taken back with its savepoint, or be the driver's
    own, which the server has never heard of.
    """
    for connection in connections if _errors else ():
        what = _errors.get(connection)
        if what is None:
            continue
        if connection.dialect.name not in _REFUSING:
            return _aborted(what, cure="raise  # and run it again: all of it was taken back to end the deadlock")
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
