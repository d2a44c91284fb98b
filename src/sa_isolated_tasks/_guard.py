"""
What may be passed to a unit: checked at the call, before anything starts.

What the walk cannot see: context variables, thread locals, module globals, class attributes, the variables of a
generator or coroutine that has begun, what is held weakly (``weakref.ref``, ``WeakSet``, ``WeakValueDictionary``), what
C objects other than Python's own containers keep to themselves, what a mock remembers, and what lies past the budget.
Those are for the error that a shared session raises while it is in use.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
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
from sa_isolated_tasks._cure import cure_for
from sa_isolated_tasks._holders import are_scalars, bases_of, is_scalar
from sa_isolated_tasks._signature import Shape, carries
from sa_isolated_tasks._types import Guard
from sa_isolated_tasks._walk import Finding, Node, text_of, walk
from sa_isolated_tasks._watch import Phase, phase_of
from sa_isolated_tasks.exceptions import (
    ClosedSessionError,
    InstancePassedError,
    IsolatedTasksError,
    IsolatedTasksWarning,
    SessionPassedError,
)

__all__ = ["BUDGET", "OWNER_BUDGET", "Passed", "check", "check_call", "is_harmless"]

BUDGET = 10_000
"""How many objects are looked at in the arguments of one call."""
OWNER_BUDGET = 1_000
"""How many in the object of a bound method and in the function's closure; they are looked at for every call."""


class Passed(NamedTuple):
    """
    One call to be checked. (A named tuple: this is made for every call, and a frozen dataclass takes a microsecond.)

    *name* is the function's; *owner* the function itself, bound to its object if it is a method, where something may
    hide in it; *offset* how many arguments stand before the function's own in the source of the call
    (``spawn(fn, ...)``: one); *own* a session which may be passed, and its instances too, for ``in_session``, or a
    registry whose current session that is; anything else is a double of a test's.
    """

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    owner: Any = None
    offset: int = 0
    own: Any = None


def is_harmless(fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any], shape: Shape) -> bool:
    """Whether `check_call` would find nothing, as far as that is known at once: of most calls, in half of the time."""
    count = len(args)
    fits = not kwargs and shape.required <= count and (shape.positional is None or count <= shape.positional)
    return fits and not carries(fn) and are_scalars(args)


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
    own = _session_of(passed.own)
    verdicts = _verdicts(suspects, BUDGET, own)
    first = next(verdicts, None)
    if first is None and passed.owner is not None:
        verdicts = _verdicts([Node("owner", passed.name, passed.owner)], OWNER_BUDGET, own)
        first = next(verdicts, None)
    if first is not None:
        # The others are only looked for when there is one, for the cure.
        _refuse(first, [first, *verdicts], passed, guard, signature)


def _session_of(own: Any) -> Session | None:
    is_registry = issubclass(type(own), async_scoped_session | scoped_session)
    given: object = own() if is_registry else own
    session = given.sync_session if isinstance(given, AsyncSession) else given
    return session if isinstance(session, Session) else None


_Judged: TypeAlias = tuple[str, type[IsolatedTasksError]]


class _Verdict(NamedTuple):
    node: Node
    what: str
    error: type[IsolatedTasksError]


def _verdicts(roots: list[Node], budget: int, own: Session | None) -> Iterator[_Verdict]:
    """On every place of what must not be passed, the nearest one first."""
    guilty: dict[int, object] = {}
    for node in walk(roots, budget, guilty):
        judged = _judge(node.value, own)
        if judged is not None:
            guilty[id(node.value)] = node.value
            yield _Verdict(node, *judged)


_WHY_IN_SESSION = (
    "in_session() runs the function in the session that it is given, and in one transaction; another session has a "
    "transaction of its own"
)


def _refuse(
    first: _Verdict, verdicts: list[_Verdict], passed: Passed, guard: Guard, signature: inspect.Signature | None
) -> None:
    site = find_call()
    finding = _finding(verdicts, passed, signature, in_session=passed.own is not None or site.callee == "in_session")
    error = first.error(
        f"{passed.name}() was given {first.what}: {text_of(first.node.path())}",
        where=str(site),
        why=_WHY_IN_SESSION if finding.in_session and first.error is not InstancePassedError else "",
        cure=cure_for(finding, site),
    )
    if guard == "raise":
        raise error
    warnings.warn_explicit(str(error), IsolatedTasksWarning, site.filename, site.lineno)


def _finding(
    verdicts: list[_Verdict], passed: Passed, signature: inspect.Signature | None, *, in_session: bool
) -> Finding:
    paths = [verdict.node.path() for verdict in verdicts]
    are_instances = [verdict.error is InstancePassedError for verdict in verdicts]
    roots = {id(path[0]): path[0] for path in paths}.values()
    parameters = tuple(_parameter_of(root, signature) for root in roots)
    keys = [root.key for root in roots]
    return Finding(
        paths=tuple(path for path, is_instance in zip(paths, are_instances, strict=True) if not is_instance),
        instances=tuple(path for path, is_instance in zip(paths, are_instances, strict=True) if is_instance),
        function=passed.name,
        offset=passed.offset,
        positional=len(passed.args),
        parameters=parameters,
        is_needed=any(parameters) and signature is not None and _are_needed(keys, passed, signature),
        in_session=in_session,
    )


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


def _are_needed(keys: list[int | str], passed: Passed, signature: inspect.Signature) -> bool:
    """Whether the function has places for the arguments, so that the call is another one without them."""
    if _problem_with(passed, signature):
        return False
    kept = [index for index in range(len(passed.args)) if index not in keys]
    args = tuple(passed.args[index] for index in kept)
    kwargs = {name: arg for name, arg in passed.kwargs.items() if name not in keys}
    moves_others = kept != list(range(len(kept)))
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
    return _judge_by_state(f"an instance of {type(value).__name__}", state, own)


def _judge_state(value: InstanceState[Any], own: Session | None) -> _Judged | None:
    """What ``sqlalchemy.inspect(instance)`` gives; it leads to the session as the instance does."""
    return _judge_by_state(f"the state of an instance of {value.class_.__name__}", value, own)


def _judge_by_state(what: str, state: InstanceState[Any], own: Session | None) -> _Judged | None:
    session = state.session
    if session is None:
        return (f"{what} that is detached and expired", InstancePassedError) if state.expired else None
    return None if session is own else (f"{what} that is attached to another session", InstancePassedError)


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
        (_judge_state, (InstanceState,)),
    )
    for cls in classes
}
"""By `id`, for the reason given in `_holders`."""
