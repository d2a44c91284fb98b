"""What can be seen of the program without asking it: log, sessions, tasks, and SQL on a second connection."""

from __future__ import annotations

import asyncio
import gc
import logging
import warnings
from collections import defaultdict
from collections.abc import Callable
from typing import Any, Self

from sqlalchemy import create_engine, event, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

LOGGERS = ("sa_isolated_tasks", "gum", "sqlalchemy")
_USES = ("do_orm_execute", "before_flush", "before_commit")
_WORDS = ("sqlalche", "closed transaction")


def trigger_tasks() -> list[asyncio.Task[Any]]:
    return [task for task in asyncio.all_tasks() if "_trigger_" in task.get_name()]


async def until(condition: Callable[[], object], seconds: float, pause: float = 0.01) -> bool:
    """Looks again and again; False when it has not come true in time."""
    for _ in range(int(seconds / pause)):
        if condition():
            return True
        await asyncio.sleep(pause)
    return bool(condition())


class Outside(logging.Handler):
    """
    Watches from `__enter__` to `__exit__`, in the running loop.

    Args:
        url: of the database, for a synchronous driver.
    """

    def __init__(self, url: URL) -> None:
        super().__init__(logging.DEBUG)
        self.records: list[logging.LogRecord] = []
        self.unretrieved: list[str] = []
        self.seen_at_start: list[int] = []
        # The sessions themselves: of two whose lives do not overlap the `id` may be the same.
        self.tasks_of_session: dict[Session, set[str]] = defaultdict(set)
        self._engine = create_engine(url, poolclass=NullPool)

    def __enter__(self) -> Self:
        for name in LOGGERS:
            logging.getLogger(name).addHandler(self)
        logging.getLogger("sa_isolated_tasks").setLevel(logging.DEBUG)
        for name in _USES:
            event.listen(Session, name, self._session_is_used)
        self._catching = warnings.catch_warnings(record=True)
        self.warnings = self._catching.__enter__() or []
        warnings.simplefilter("always")
        asyncio.get_running_loop().set_exception_handler(self._unretrieved)
        return self

    def __exit__(self, *error: object) -> None:
        gc.collect()  # a task whose exception nobody has looked at says so when it is collected
        self._catching.__exit__(*error)
        for name in _USES:
            event.remove(Session, name, self._session_is_used)
        for name in LOGGERS:
            logging.getLogger(name).removeHandler(self)

    def sql(self, statement: str) -> Any:
        """The first value that *statement* gives on a connection of its own."""
        with self._engine.connect() as connection:
            return connection.execute(text(statement)).scalar()

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)
        if "_trigger_" in record.getMessage() and " started" in record.getMessage():
            self.seen_at_start.append(self.sql("select count(*) from observations"))

    def lines(self, containing: str) -> list[logging.LogRecord]:
        return [record for record in self.records if containing in record.getMessage()]

    def complaints(self) -> list[str]:
        """Errors and warnings of SQLAlchemy, and exceptions that nobody has looked at."""
        gc.collect()
        logged = [record.getMessage() for record in self.records if _is_complaint(record)]
        warned = [str(warning.message) for warning in self.warnings if warning.category is not ResourceWarning]
        return [*logged, *warned, *self.unretrieved]

    def _session_is_used(self, used: Any, *_: object) -> None:
        session = used if isinstance(used, Session) else used.session
        task = asyncio.current_task()
        self.tasks_of_session[session].add("" if task is None else task.get_name())

    def _unretrieved(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.unretrieved.append(f"{context['message']}: {context.get('exception')!r}")


def _is_complaint(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    # GUM logs its own errors as text.
    as_text = record.levelno >= logging.ERROR and any(words in record.getMessage() for words in _WORDS)
    return as_text or isinstance(error, SQLAlchemyError)
