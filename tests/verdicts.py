"""How a unit of the state machine may have ended, by what its body has put down, and what its transactions came to."""

from __future__ import annotations

import asyncio

import sqlalchemy as sa
from bodies import Fate
from programs import End, Odd, Planned

from sa_isolated_tasks import Outcome, TaskDroppedError, TaskState, UnitCancelledError

OUTCOMES = {Fate.COMMITTED: Outcome.COMMITTED, Fate.ROLLED_BACK: Outcome.ROLLED_BACK}


def judge(unit):
    """State, outcome and the number of commits of a unit that has ended."""
    if not unit.done:
        return
    handle = unit.handle
    if handle.state not in states_of(unit):
        unit.world.fault(f"{unit} should be one of {states_of(unit)}, raised {unit.raised!r}")
    if not is_planned(unit):
        unit.world.fault(f"{unit} raised {unit.raised!r}")
    if handle.commits != len(committed(unit)):
        unit.world.fault(f"{unit} has committed {len(committed(unit))} times, and says {handle.commits}")
    if handle.outcome not in outcomes_of(unit):
        unit.world.fault(f"{unit} should have an outcome of {outcomes_of(unit)}")


def states_of(unit):
    if unit.dropped:
        return {TaskState.DROPPED}
    may_be_cancelled = unit.cancelled or unit.arena.leaving == "timeout"
    if unit.task is None:
        return {TaskState.CANCELLED} if may_be_cancelled else set()
    states = set()
    if unit.raised is not None and not isinstance(unit.raised, asyncio.CancelledError):
        # Cancelled, if that was waiting for the end of a call.
        return {TaskState.FAILED, TaskState.CANCELLED} if may_be_cancelled else {TaskState.FAILED}
    if unit.cancelled is None:
        states |= own_states(unit)
    elif fails_to_commit(unit):
        states.add(TaskState.FAILED)
    if may_be_cancelled:
        states.add(TaskState.CANCELLED)
    if unit.timeout == 0:
        states.add(TaskState.FAILED)
    return states


def own_states(unit):
    """If nobody interferes, and nothing was raised but a cancellation."""
    if unit.raised is not None:
        return {TaskState.FAILED} if unit.program.end is End.STRAY else set()
    return {TaskState.FAILED if fails_to_commit(unit) else TaskState.SUCCEEDED}


def fails_to_commit(unit):
    return unit.program.end is End.DUPLICATE


def is_planned(unit):
    """No lock, no timeout of the pool: only what the program says, or what an awaited unit has raised."""
    raised = unit.raised
    own = isinstance(raised, Planned | Odd) and raised.args == (unit.name,)
    return raised is None or isinstance(raised, asyncio.CancelledError) or raised is unit.passed_on or own


def fate_of(unit, transaction):
    """The body does not know what became of its last one."""
    if transaction.fate is not Fate.OPEN or not unit.done:
        return transaction.fate
    if unit.handle.state is TaskState.SUCCEEDED:
        return Fate.COMMITTED
    if unit.swallowed or (unit.handle.state is TaskState.FAILED and not transaction.closing):
        return Fate.ROLLED_BACK
    # Cancelled while it committed, or just before: the handle knows, and the rows will tell whether it does.
    before = sum(other.fate is Fate.COMMITTED for other in unit.transactions)
    return Fate.COMMITTED if unit.handle.commits == before + 1 else Fate.ROLLED_BACK


def committed(unit):
    return [transaction for transaction in unit.transactions if fate_of(unit, transaction) is Fate.COMMITTED]


def rows_of(unit):
    return {row for transaction in committed(unit) for row in transaction.rows}


def outcomes_of(unit):
    """That of the last transaction; one that was cut off in its first statement may never have begun."""
    outcomes = [OUTCOMES[fate_of(unit, transaction)] for transaction in unit.transactions]
    if not outcomes:
        return {Outcome.NONE}
    if unit.transactions[-1].begun:
        return {outcomes[-1]}
    return {outcomes[-1], outcomes[-2] if len(outcomes) > 1 else Outcome.NONE}


def exception_of(unit):
    return unit.handle.exception()


def judge_exception(unit):
    """What awaiting the handle raises: looked at last, since looking is remembered."""
    error = exception_of(unit)
    if not isinstance(error, ENDS[unit.handle.state](unit)):
        unit.world.fault(f"{unit} has {error!r}, and raised {unit.raised!r}")
    kept = error.__cause__ if unit.handle.state is TaskState.CANCELLED else error
    if type(unit.raised) in {Planned, Odd} and kept is not unit.raised:
        unit.world.fault(f"{unit} raised {unit.raised!r}, and the handle has {error!r}")
    if error is None and unit.handle.result() != unit.name:
        unit.world.fault(f"{unit} has the result {unit.handle.result()!r}")


def causes_of(unit):
    if unit.raised is not None and not isinstance(unit.raised, asyncio.CancelledError):
        return (type(unit.raised),)
    causes = [TimeoutError] if unit.timeout == 0 else []
    causes += [UnitCancelledError] if unit.program.end is End.STRAY else []
    return (*causes, sa.exc.IntegrityError) if fails_to_commit(unit) else tuple(causes)


ENDS = {
    TaskState.SUCCEEDED: lambda unit: (type(None),),
    TaskState.DROPPED: lambda unit: (TaskDroppedError,),
    TaskState.CANCELLED: lambda unit: (UnitCancelledError,),
    TaskState.FAILED: causes_of,
}
