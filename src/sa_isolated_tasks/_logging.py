"""The listener that writes the log; it is a listener like any other."""

from __future__ import annotations

import contextlib
import inspect
import logging
from collections.abc import Callable, Sequence
from types import TracebackType

from sa_isolated_tasks._events import Listener, ScopeWaiting, UnitEnded, UnitStarted
from sa_isolated_tasks._types import TaskState
from sa_isolated_tasks.exceptions import DeclarationError, check_seconds

__all__ = ["LOGGER", "LoggingListener", "hear_starts", "notify", "with_logging"]

_METHODS = ("unit_started", "unit_ended", "scope_waiting")

LOGGER = logging.getLogger("sa_isolated_tasks")

_FIGURES = "(queued %.2fs, body %.2fs, commit %.2fs, connection %.2fs), %s"
_TEXTS = {
    TaskState.SUCCEEDED: f"%s completed in %.2fs {_FIGURES}",
    TaskState.FAILED: f"%s failed after %.2fs {_FIGURES}",
    TaskState.CANCELLED: f"%s cancelled after %.2fs {_FIGURES}: %s",
    TaskState.DROPPED: "%s dropped after %.2fs: %s",
}


class LoggingListener:
    """
    Logs units to the logger ``sa_isolated_tasks``.

    DEBUG at the start of a unit; at its end INFO with its timing, or WARNING if *slow* seconds or more passed between
    spawn and end, or ERROR with traceback for a failure. WARNING while a scope that is being left waits.

    Every scope has one. To set *slow*, give one: ``TaskScope(..., listeners=[LoggingListener(slow=1.0)])``.

    Args:
        slow: seconds from which on an end is logged as WARNING; None for never.

    Raises:
        ValueError: *slow* is no number of seconds.

    .. versionadded:: 0.1.0
    """

    __slots__ = ("slow",)

    def __init__(self, slow: float | None = None) -> None:
        check_seconds("slow", slow, or_none=", or None for never")
        self.slow: float | None = slow

    def unit_started(self, event: UnitStarted, /) -> None:
        if LOGGER.isEnabledFor(logging.DEBUG):
            LOGGER.debug("%s started (queued %.2fs)", event.unit, event.queued, extra=_extra(event))

    def unit_ended(self, event: UnitEnded, /) -> None:
        level = self._level_of(event)
        if not LOGGER.isEnabledFor(level):
            return
        timing = event.timing
        args: tuple[object, ...] = (
            event.unit,
            timing.total,
            timing.queued,
            timing.body,
            timing.commit,
            timing.connection,
            event.outcome._value_,  # `value` is a property, in Python, and takes five times as long
        )
        if event.state is TaskState.DROPPED:
            args = (event.unit, timing.total, event.reason)
        elif event.state is TaskState.CANCELLED:
            args = (*args, event.reason)
        error = event.exception if event.state is TaskState.FAILED else None
        # Q: Why not `LOGGER.log`? A: It looks for its caller, on the stack of the event loop, and asks of each extra
        # key whether it is taken; both take longer than making the record.
        record = LOGGER.makeRecord(LOGGER.name, level, __file__, 0, _TEXTS[event.state], args, _exc_info(error))
        record.__dict__.update(_extra_of_end(event))
        LOGGER.handle(record)

    def _level_of(self, event: UnitEnded) -> int:
        if event.state is TaskState.FAILED:
            return logging.ERROR
        slow = self.slow is not None and event.timing.total >= self.slow
        return logging.WARNING if slow else logging.INFO

    def scope_waiting(self, event: ScopeWaiting, /) -> None:
        LOGGER.warning(
            "scope %s has waited %.0fs for %d unit(s): %s",
            event.scope,
            event.waited,
            len(event.units),
            ", ".join(event.units),
            extra={"sit_scope": event.scope, "sit_total": event.waited},
        )


def _exc_info(
    error: BaseException | None,
) -> tuple[type[BaseException], BaseException, TracebackType | None] | None:
    # As a tuple: of an exception alone `logging` asks whether it is true, and some are not.
    return None if error is None else (type(error), error, error.__traceback__)


def _extra(event: UnitStarted) -> dict[str, object]:
    return {"sit_scope": event.scope, "sit_unit": event.unit}


def _extra_of_end(event: UnitEnded) -> dict[str, object]:
    timing = event.timing
    return {
        "sit_scope": event.scope,
        "sit_unit": event.unit,
        "sit_state": event.state._value_,
        "sit_outcome": event.outcome._value_,
        "sit_commits": event.commits,
        "sit_total": timing.total,
        "sit_waiting": timing.waiting,
        "sit_queued": timing.queued,
        "sit_body": timing.body,
        "sit_commit": timing.commit,
        "sit_connection": timing.connection,
        "sit_spawned_at": event.spawned_at,
    }


def hear_starts(listeners: Sequence[Listener]) -> bool:
    """Whether one of them does something when a unit starts, at any level of the log but DEBUG."""
    return any(type(listener) is not LoggingListener for listener in listeners)


def with_logging(listeners: Sequence[Listener]) -> tuple[Listener, ...]:
    """
    The log comes first, so that a listener which raises cannot hide an event from it.

    Raises:
        DeclarationError: a listener lacks a method.
    """
    for listener in listeners:
        methods = {name: getattr(listener, name, None) for name in _METHODS}
        missing = [name for name, method in methods.items() if not callable(method)]
        waiting = [name for name, method in methods.items() if inspect.iscoroutinefunction(method)]
        if missing or waiting:
            problem = f"has no {', '.join(missing)}" if missing else f"has an `async def` {', '.join(waiting)}"
            raise DeclarationError(
                f"the listener {type(listener).__name__} {problem}",
                why="a listener has one method for each event, which is called in the event loop and awaits nothing",
                cure=f"def {(missing or waiting)[0]}(self, event, /) -> None: ...",
            )
    if any(isinstance(listener, LoggingListener) for listener in listeners):
        return tuple(listeners)
    return (LoggingListener(), *listeners)


def notify(listeners: Sequence[Listener], tell: Callable[[Listener], None]) -> None:
    """Tells every listener; one that raises is logged and changes nothing."""
    for listener in listeners:
        try:
            tell(listener)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:  # a test's `fail()` and a CancelledError change nothing either
            with contextlib.suppress(Exception):  # a handler of the log that raises is a listener that raises
                LOGGER.exception("a listener raised: %s", type(listener).__name__)
