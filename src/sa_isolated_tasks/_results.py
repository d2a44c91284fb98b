"""What a unit should not return: what cannot be used without its session, which is closed by then."""

from __future__ import annotations

import warnings
from collections import deque
from itertools import islice
from typing import Any

from sqlalchemy.engine import Row, RowMapping
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm.state import InstanceState

from sa_isolated_tasks._holders import children_of
from sa_isolated_tasks._signature import code_of
from sa_isolated_tasks.exceptions import IsolatedTasksWarning

__all__ = ["warn_about"]

# As Any, `isinstance` does not narrow to a type with unknown parameters.
_STATE: Any = InstanceState

_ATTRIBUTES = 100
"""How many attributes of a result are looked at."""


def warn_about(result: object, session: AsyncSession | None, body: Any) -> None:
    """If it is, or holds one level deep, a mapped instance that cannot be read, or the unit's *session* itself."""
    problem = next(filter(None, (_problem_with(part, session) for part in _parts_of(result))), None)
    if problem is None and _holds(result, session):
        problem = f"a {type(result).__name__} that holds its session: {_SESSION}"
    if problem is not None:
        code = code_of(body)
        warnings.warn_explicit(
            f"{code.co_qualname}() returned {problem}", IsolatedTasksWarning, code.co_filename, code.co_firstlineno
        )


_SESSION = (
    "it is closed, and who uses it again takes a connection that nobody gives back. Return what was read with it."
)


def _parts_of(result: Any) -> list[Any]:
    if issubclass(type(result), (list, tuple, set, frozenset, deque, Row)):
        return [result, *result]
    if issubclass(type(result), (dict, RowMapping)):
        return [result, *result.keys(), *result.values()]
    return [result]


def _problem_with(part: object, session: AsyncSession | None) -> str | None:
    if session is not None and (part is session or part is session.sync_session):
        return f"its session: {_SESSION}"
    state: Any = _state_of(part)
    if not isinstance(state, _STATE) or not (state.expired or state.session is not None):
        return None
    return (
        f"an instance of {type(part).__name__} that is {'expired' if state.expired else 'attached to a session'}: "
        "reading it fails, because the unit's session is closed. Return plain values, or use "
        "async_sessionmaker(engine, expire_on_commit=False)."
    )


def _holds(result: object, session: AsyncSession | None) -> bool:
    held = islice(children_of(result, _ATTRIBUTES), _ATTRIBUTES)
    return session is not None and any(child is session or child is session.sync_session for _, _, child in held)


def _state_of(value: object) -> object:
    # Past any `__getattribute__` of the user's, and any property that raises.
    try:
        return object.__getattribute__(value, "_sa_instance_state")
    except AttributeError:
        return None
