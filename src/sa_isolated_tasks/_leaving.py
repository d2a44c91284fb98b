"""What leaving a scope raises, when units have failed or survived."""

from __future__ import annotations

from sa_isolated_tasks._types import UnitSnapshot
from sa_isolated_tasks.exceptions import ShutdownError, add_note, describe

__all__ = ["raise_problems", "shutdown_error"]


def shutdown_error(scope: str, survivors: tuple[UnitSnapshot, ...], seconds: float) -> ShutdownError:
    names = "; ".join(str(survivor) for survivor in survivors)
    error = ShutdownError(
        f"{len(survivors)} unit(s) of scope {scope} survived their cancellation by {seconds} s: {names}"
    )
    error.survivors = survivors
    return error


def raise_problems(
    scope: str,
    problems: list[BaseException],
    error: BaseException | None,
    cause: BaseException | None,
    *,
    strict: bool,
) -> None:
    """
    Raises *problems*, unless something else is coming out already: then they become notes on that.

    Args:
        scope: its name.
        problems: failures of units, and survivors.
        error: what the block is being left with; the caller re-raises it.
        cause: the same, or the cancellation of who waited.
        strict: *error* goes into the group with the failures, as in ``asyncio.TaskGroup``.

    Raises:
        ShutdownError: if that is the only problem.
        BaseExceptionGroup: otherwise.
        CancelledError: the waiting was cancelled.
    """
    if strict and problems and isinstance(error, Exception):
        raise BaseExceptionGroup(f"units of scope {scope} failed", [error, *problems])
    if cause is not None:
        for problem in problems:
            add_note(cause, f"scope {scope}: {describe(problem)}")
        if error is None:
            raise cause
    elif len(problems) == 1 and isinstance(problems[0], ShutdownError):
        raise problems[0]
    elif problems:
        raise BaseExceptionGroup(f"units of scope {scope} failed", problems)
