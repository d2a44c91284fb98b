"""
What may be passed to a unit: checked at the call, before anything starts.

What the walk cannot see: context variables, thread locals, module globals, class attributes, the variables of a
generator that has begun, what C objects other than Python's own containers keep to themselves, what a mock remembers,
and what lies past the budget. Those are for the error that a shared session raises while it is in use.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from inspect import Parameter
from typing import Any, NamedTuple, TypeAlias

from sqlalchemy import pool
from sqlalchemy.engine import AdaptedConnection, Connection, Result, Transaction
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

from sa_isolated_tasks._callsite import find_call
from sa_isolated_tasks._cure import Finding, cure_for
from sa_isolated_tasks._holders import are_scalars, bases_of, is_scalar
from sa_isolated_tasks._signature import Shape
from sa_isolated_tasks._types import Guard
from sa_isolated_tasks._walk import Node, walk
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

    *name* is the function's; *owner* the function itself, bound to its object if it is a method, where something may
    hide in it; *offset* how many arguments stand before the function's own in the source of the call
    (``spawn(fn, ...)``: one); *own* a session which may be passed, and its instances too, for ``in_session``.
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
    if passed.kwargs:
        fits = _fits(count, passed.kwargs, signature.parameters)
    else:
        fits = shape.required <= count and (shape.positional is None or count <= shape.positional)
    problem = "" if fits else _problem_with(passed, signature)
    # One argument too many is the founding mistake: if it is a session, that is what has to be said.
    check(passed, guard, signature)
    if problem:
        raise TypeError(f"{passed.name}() {problem}")


def _fits(count: int, kwargs: dict[str, Any], parameters: Mapping[str, Parameter]) -> bool:
    """Whether arguments fit, for the usual parameters; False if `inspect` has to be asked, which takes microseconds."""
    found = 0
    for name in list(parameters)[count:]:
        parameter = parameters[name]
        kind = parameter.kind
        if kind is not Parameter.POSITIONAL_OR_KEYWORD and kind is not Parameter.KEYWORD_ONLY:
            return False
        if name in kwargs:
            found += 1
        elif parameter.default is Parameter.empty:
            return False
    return found == len(kwargs)


def _problem_with(passed: Passed, signature: inspect.Signature) -> str:
    try:
        signature.bind(*passed.args, **passed.kwargs)
    except TypeError as error:
        return str(error)
    return ""


def check(passed: Passed, guard: Guard = "raise", signature: inspect.Signature | None = None) -> None:
    """
    Raises, or warns, if the call hands over something that belongs to another session.

    *signature*, without the session, makes the cure more exact.

    Raises:
        SessionPassedError: a session, connection, transaction or open result was found.
        ClosedSessionError: ... and it is known to be closed.
        InstancePassedError: a mapped instance of another session was found.
    """
    if guard == "off":
        return
    given = (*passed.args, *passed.kwargs.values()) if passed.kwargs else passed.args
    if passed.owner is None and are_scalars(given):
        return
    suspects = [Node("argument", index, arg) for index, arg in enumerate(passed.args) if not is_scalar(arg)]
    suspects += [Node("argument", name, arg) for name, arg in passed.kwargs.items() if not is_scalar(arg)]
    verdict = _first_verdict(suspects, BUDGET, passed.own)
    if verdict is None and passed.owner is not None:
        verdict = _first_verdict([Node("owner", passed.name, passed.owner)], OWNER_BUDGET, passed.own)
    if verdict is not None:
        _refuse(verdict, passed, guard, signature)


_Judged: TypeAlias = tuple[str, type[IsolatedTasksError]]


class _Verdict(NamedTuple):
    node: Node
    what: str
    error: type[IsolatedTasksError]


def _first_verdict(roots: list[Node], budget: int, own: Session | None) -> _Verdict | None:
    for node in walk(roots, budget):
        judged = _judge(node.value, own)
        if judged is not None:
            return _Verdict(node, *judged)
    return None


def _refuse(verdict: _Verdict, passed: Passed, guard: Guard, signature: inspect.Signature | None) -> None:
    site = find_call()
    path = verdict.node.path()
    parameter = _parameter_of(path[0], signature)
    finding = Finding(
        path=path,
        function=passed.name,
        offset=passed.offset,
        positional=len(passed.args),
        parameter=parameter,
        is_needed=bool(parameter) and signature is not None and _is_needed(path[0].key, passed, signature),
        is_instance=verdict.error is InstancePassedError,
    )
    error = verdict.error(
        f"{passed.name}() was given {verdict.what}: {finding.text}",
        where=str(site),
        cure=cure_for(finding, site),
    )
    if guard == "raise":
        raise error
    warnings.warn_explicit(str(error), IsolatedTasksWarning, site.filename, site.lineno)


def _parameter_of(root: Node, signature: inspect.Signature | None) -> str:
    """The name of the parameter that takes the argument, if it has one of its own."""
    if root.kind != "argument" or signature is None:
        return ""
    key: int | str = root.key
    if isinstance(key, str):
        return key
    named = [name for name, parameter in signature.parameters.items() if parameter.kind not in _NO_POSITION]
    return named[key] if key < len(named) else ""


_NO_POSITION = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD, Parameter.KEYWORD_ONLY)


def _is_needed(key: int | str, passed: Passed, signature: inspect.Signature) -> bool:
    """Whether the function has a place for the argument, so that the call is another one without it."""
    if _problem_with(passed, signature):
        return False
    args = tuple(arg for index, arg in enumerate(passed.args) if index != key)
    kwargs = {name: arg for name, arg in passed.kwargs.items() if name != key}
    moves_others = isinstance(key, int) and key < len(args)
    return moves_others or bool(_problem_with(passed._replace(args=args, kwargs=kwargs), signature))


def _judge(value: Any, own: Session | None) -> _Judged | None:
    # The type is asked, never `isinstance`: a mock with a spec claims to be a session by its `__class__`.
    for base in bases_of(value):
        judge = _JUDGES.get(id(base))
        if judge is not None:
            return judge(value, own)
    return _judge_instance(value, own)


def _judge_instance(value: Any, own: Session | None) -> _Judged | None:
    try:
        # Not by `getattr`: a mock answers every question, and a model may have a `__getattr__`.
        state: Any = object.__getattribute__(value, "_sa_instance_state")
    except AttributeError:
        return None
    if not issubclass(type(state), InstanceState):
        return None
    session = state.session
    if session is None and not state.expired:
        return None
    if session is None:
        return f"an instance of {type(value).__name__} that is detached and expired", InstancePassedError
    if session is own:
        return None
    return f"an instance of {type(value).__name__} that is attached to another session", InstancePassedError


def _judge_session(value: AsyncSession | Session, own: Session | None) -> _Judged | None:
    session = value.sync_session if isinstance(value, AsyncSession) else value
    if session is own:
        return None
    phase = phase_of(session)
    name = type(value).__name__
    if phase is Phase.CLOSED:
        return f"a session ({name}) that was closed, or emptied, since its last transaction", ClosedSessionError
    if phase is Phase.FRESH:
        return f"a session ({name})", SessionPassedError
    return f"a session ({name}, {phase.value})", SessionPassedError


def _judge_registry(value: object, _own: Session | None) -> _Judged:
    return f"a scoped registry ({type(value).__name__})", SessionPassedError


def _judge_connection(value: Connection, _own: Session | None) -> _Judged:
    if value.closed:
        return f"a closed connection ({type(value).__name__})", ClosedSessionError
    return f"a connection ({type(value).__name__})", SessionPassedError


def _judge_async_connection(value: AsyncConnection, _own: Session | None) -> _Judged:
    # Before it is started it has no connection, and raises when it is asked whether it is closed.
    if value.sync_connection is not None and value.sync_connection.closed:
        return f"a closed connection ({type(value).__name__})", ClosedSessionError
    return f"a connection ({type(value).__name__})", SessionPassedError


def _judge_raw_connection(value: object, _own: Session | None) -> _Judged:
    return f"a raw connection ({type(value).__name__})", SessionPassedError


def _judge_transaction(value: Transaction | SessionTransaction, _own: Session | None) -> _Judged:
    return _transaction(value, has_ended=not value.is_active)


def _judge_async_transaction(value: AsyncTransaction | AsyncSessionTransaction, _own: Session | None) -> _Judged:
    started = value.sync_transaction
    return _transaction(value, has_ended=started is not None and not started.is_active)


def _transaction(value: object, *, has_ended: bool) -> _Judged:
    if has_ended:
        return f"a transaction that has ended ({type(value).__name__})", ClosedSessionError
    return f"a transaction ({type(value).__name__})", SessionPassedError


def _judge_result(value: Any, _own: Session | None) -> _Judged | None:
    if value.closed:
        return None
    return f"an open result ({type(value).__name__})", SessionPassedError


# As SQLAlchemy 1.4 calls it, and 2.0.
_PROXIED: Any = getattr(pool, "PoolProxiedConnection", getattr(pool, "_ConnectionFairy", None))
_Judge: TypeAlias = Callable[[Any, Session | None], _Judged | None]
_JUDGES: dict[int, _Judge] = {
    id(cls): judge
    for judge, classes in (
        (_judge_session, (AsyncSession, Session)),
        (_judge_registry, (async_scoped_session, scoped_session)),
        (_judge_connection, (Connection,)),
        (_judge_async_connection, (AsyncConnection,)),
        (_judge_raw_connection, (_PROXIED, AdaptedConnection)),
        (_judge_transaction, (Transaction, SessionTransaction)),
        (_judge_async_transaction, (AsyncTransaction, AsyncSessionTransaction)),
        (_judge_result, (Result, FilterResult)),
    )
    for cls in classes
}
"""By `id`, for the reason given in `_holders`."""
