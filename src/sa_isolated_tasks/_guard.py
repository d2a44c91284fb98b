"""
What may be passed to a unit: checked at the call, before anything starts.

What the walk cannot see: context variables, module globals, C objects that keep references to themselves, and what lies
past the budget. Those are for the error that a shared session raises while it is in use.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy.engine import Connection, Result, Transaction
from sqlalchemy.engine.result import FilterResult
from sqlalchemy.ext.asyncio import (
    AsyncConnection,
    AsyncSession,
    AsyncSessionTransaction,
    AsyncTransaction,
    async_scoped_session,
)
from sqlalchemy.orm import Session, SessionTransaction, scoped_session
from sqlalchemy.orm.state import InstanceState

from sa_isolated_tasks._callsite import CallSite, find_call
from sa_isolated_tasks._cure import Finding, cure_for
from sa_isolated_tasks._signature import Shape
from sa_isolated_tasks._types import Guard
from sa_isolated_tasks._walk import SCALARS, Node, walk
from sa_isolated_tasks._watch import Phase, phase_of
from sa_isolated_tasks.exceptions import (
    ClosedSessionError,
    InstancePassedError,
    IsolatedTasksError,
    IsolatedTasksWarning,
    SessionPassedError,
)

__all__ = ["BUDGET", "OWNER_BUDGET", "Passed", "check", "check_call"]

BUDGET = 10_000
"""How many objects are looked at in the arguments of one call."""
OWNER_BUDGET = 1_000
"""How many in the object of a bound method and in the function's closure; they are looked at for every call."""


class Passed(NamedTuple):
    """
    One call to be checked. (A named tuple: this is made for every call, and a frozen dataclass takes a microsecond.)

    *name* is the function's; *owner* what is bound to it (the function itself, or the object of a method);
    *offset* how many arguments stand before the function's own in the source of the call (``spawn(fn, ...)``: one);
    *own* a session whose instances may be passed, for ``in_session``.
    """

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    owner: Any = None
    offset: int = 0
    own: Session | None = None


def check_call(passed: Passed, shape: Shape, signature: inspect.Signature, guard: Guard) -> None:
    """
    Raises if the arguments do not fit, or if `check` does.

    Raises:
        TypeError: the arguments do not fit *signature*.
    """
    count = len(passed.args)
    if passed.kwargs or count < shape.required or (shape.positional is not None and count > shape.positional):
        try:
            signature.bind(*passed.args, **passed.kwargs)
        except TypeError as error:
            # One argument too many is the founding mistake: if it is a session, that is what has to be said.
            check(passed, guard)
            raise TypeError(f"{passed.name}() {error}") from None
    check(passed, guard)


def check(passed: Passed, guard: Guard = "raise") -> None:
    """
    Raises, or warns, if the call hands over something that belongs to another session.

    Raises:
        SessionPassedError: a session, connection, transaction or open result was found.
        ClosedSessionError: ... and it is known to be closed.
        InstancePassedError: a mapped instance of another session was found.
    """
    if guard == "off" or (passed.owner is None and not passed.kwargs and SCALARS.issuperset(map(type, passed.args))):
        return
    suspects = [Node("argument", index, arg) for index, arg in enumerate(passed.args) if type(arg) not in SCALARS]
    suspects += [Node("argument", name, arg) for name, arg in passed.kwargs.items() if type(arg) not in SCALARS]
    verdict = _first_verdict(suspects, BUDGET, passed.own)
    if verdict is None and passed.owner is not None:
        verdict = _first_verdict([Node("owner", passed.name, passed.owner)], OWNER_BUDGET, passed.own)
    if verdict is not None:
        _refuse(verdict, passed, guard)


@dataclass(frozen=True, slots=True)
class _Verdict:
    node: Node
    what: str
    error: type[IsolatedTasksError]


def _first_verdict(roots: list[Node], budget: int, own: Session | None) -> _Verdict | None:
    if not roots:
        return None
    for node in walk(roots, budget):
        judged = _judge(node.value, own)
        if judged is not None:
            return _Verdict(node, *judged)
    return None


def _refuse(verdict: _Verdict, passed: Passed, guard: Guard) -> None:
    site = find_call()
    finding = Finding(verdict.node.path(), passed.name, passed.offset, instance=verdict.error is InstancePassedError)
    error = verdict.error(
        f"{passed.name}() was given {verdict.what}: {finding.text}",
        where=str(site),
        cure=cure_for(finding, site),
    )
    if guard == "raise":
        raise error
    _warn_at(site, error)


def _warn_at(site: CallSite, error: IsolatedTasksError) -> None:
    warnings.warn_explicit(str(error), IsolatedTasksWarning, site.filename, site.lineno)


_Judged = tuple[str, type[IsolatedTasksError]]


def _judge(value: Any, own: Session | None) -> _Judged | None:
    cls = type(value)
    if cls in _CONTAINERS:
        return None
    # The type is asked, never `isinstance`: a mock with a spec claims to be a session by its `__class__`.
    for kinds, judge in _JUDGES:
        if issubclass(cls, kinds):
            return judge(value)
    state = _instance_state(value, cls)
    return None if state is None else _judge_instance(value, state, own)


def _instance_state(value: Any, cls: type) -> InstanceState[Any] | None:
    """Of a mapped instance, without asking the instance: a mock answers every question."""
    if cls.__module__ == "builtins":
        return None
    try:
        state = object.__getattribute__(value, "_sa_instance_state")
    except AttributeError:
        return None
    return state if isinstance(state, InstanceState) else None


def _judge_instance(value: Any, state: InstanceState[Any], own: Session | None) -> _Judged | None:
    session = state.session
    name = type(value).__name__
    if session is not None and session is not own:
        return f"an instance of {name} that is attached to another session", InstancePassedError
    if session is None and state.expired:
        return f"an instance of {name} that is detached and expired", InstancePassedError
    return None


def _judge_session(value: AsyncSession | Session) -> _Judged:
    session = value.sync_session if isinstance(value, AsyncSession) else value
    phase = phase_of(session)
    name = type(value).__name__
    if phase is Phase.CLOSED:
        return f"a closed {name} (closed or reset since its last transaction)", ClosedSessionError
    if phase is Phase.FRESH:
        return f"a session ({name})", SessionPassedError
    return f"a session ({name}, {phase.value})", SessionPassedError


def _judge_registry(value: object) -> _Judged:
    return f"a scoped registry ({type(value).__name__})", SessionPassedError


def _judge_connection(value: AsyncConnection | Connection) -> _Judged:
    if value.closed:
        return f"a closed {type(value).__name__}", ClosedSessionError
    return f"a connection ({type(value).__name__})", SessionPassedError


def _judge_transaction(value: Any) -> _Judged:
    name = type(value).__name__
    # The asynchronous ones raise when they are asked before their start.
    started = getattr(value, "sync_transaction", value)
    if started is not None and not started.is_active:
        return f"a transaction that has ended ({name})", ClosedSessionError
    return f"a transaction ({name})", SessionPassedError


def _judge_result(value: Any) -> _Judged | None:
    if getattr(value, "closed", False) is True:
        return None
    return f"an open result ({type(value).__name__})", SessionPassedError


_CONTAINERS = frozenset({list, dict, tuple, set, frozenset})
_JUDGES: tuple[tuple[tuple[type, ...], Callable[[Any], _Judged | None]], ...] = (
    ((AsyncSession, Session), _judge_session),
    ((async_scoped_session, scoped_session), _judge_registry),
    ((AsyncConnection, Connection), _judge_connection),
    ((AsyncTransaction, AsyncSessionTransaction, Transaction, SessionTransaction), _judge_transaction),
    ((Result, FilterResult), _judge_result),
)
