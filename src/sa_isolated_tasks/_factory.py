"""Where a unit's session comes from: what kinds of factory there are, and which of them cannot isolate."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any, final

import sqlalchemy.ext.asyncio as sa_asyncio
from sqlalchemy.engine import Engine
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_scoped_session
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from sqlalchemy.pool import Pool, QueuePool, SingletonThreadPool, StaticPool

from sa_isolated_tasks._signature import identifier_of, is_a, name_of
from sa_isolated_tasks._types import Limit
from sa_isolated_tasks._watch import Phase, Record, new_record, phase_of, record_of
from sa_isolated_tasks.exceptions import DeclarationError, FakeIsolationError, LimitError

__all__ = ["SessionFactory", "adopt", "check_limit", "resolve_limit"]

# SQLAlchemy 1.4 has only the one.
_MAKERS: tuple[type, ...] = (sessionmaker, getattr(sa_asyncio, "async_sessionmaker", sessionmaker))
_ONE_CONNECTION = (StaticPool, SingletonThreadPool)
_MAKES_AND_CLOSES = ("__init__", "close")
_SESSIONMAKER = "Session = async_sessionmaker(engine)"


@final
class SessionFactory:
    """
    A factory that has passed the checks that need no session.

    Raises:
        DeclarationError: it is no callable without arguments that can give a session or an async context manager.
    """

    __slots__ = ("_checked", "_plain", "make")

    def __init__(self, factory: Callable[[], Any]) -> None:
        _check_declaration(factory)
        self.make: Any = factory
        self._checked = False
        # Class, synchronous class and engine of the sessions that it makes, where all of them are new and alike.
        self._plain: tuple[Any, Any, Any] | None = None

    def check_isolation(self) -> None:
        """
        Raises FakeIsolationError if that can be known without making a session; asks only once.

        Raises:
            FakeIsolationError: a scoped registry, or all its sessions would share a connection.
        """
        if not self._checked:
            _check_registry(self.make)
            if _is_maker(self.make):
                binds = _binds_of_maker(self.make)
                _check_binds(binds)
                if len(binds) == 1 and _is_plain_maker(self.make):
                    self._plain = self.make.class_, _session_class_of(self.make), binds[0]
            self._checked = True

    def adopt(self, made: Any) -> Record:
        """As `adopt` does, a session that this factory has made; what holds for all of them is not asked of each."""
        if self._is_plain(made):
            record = new_record(made.sync_session)
            record.isolated = True
            # Unless a session that is closed is closed for good.
            record.may_stay_open = self.make.kw.get("close_resets_only") is not False
            return record
        return adopt(made, in_use=False)

    def _is_plain(self, made: Any) -> bool:
        # The maker may have been configured anew since it was checked.
        if self._plain is None:
            return False
        cls, sync_class, engine = self._plain
        return type(made) is cls and type(made.sync_session) is sync_class and made.sync_session.bind is engine

    def binds(self) -> list[Any] | None:
        """
        What the sessions are bound to, or None where only a context manager or a ``get_bind()`` knows.

        Makes one session, which does nothing, unless the factory is a sessionmaker.
        """
        self.check_isolation()
        maker: Any = self.make
        if _is_maker(maker):
            return None if _routes(_session_class_of(maker)) else _binds_of_maker(maker)
        made: Any = self.make()
        if is_a(made, AbstractAsyncContextManager) and not is_a(made, AsyncSession):
            return None
        _check_session(made)
        binds = _binds_of_session(made)
        _check_binds(binds)
        return None if _routes(type(made.sync_session)) else binds


def _is_maker(factory: Any) -> bool:
    return is_a(factory, *_MAKERS)


def _session_class_of(maker: Any) -> Any:
    return maker.kw.get("sync_session_class", maker.class_.sync_session_class)


def _is_plain_maker(maker: Any) -> bool:
    """Whether no code of the user's chooses which session is given, makes it, or closes it."""
    return type(maker) in _MAKERS and all(
        type(cls) is type(base) and all(getattr(cls, name) is getattr(base, name) for name in _MAKES_AND_CLOSES)
        for cls, base in ((maker.class_, AsyncSession), (_session_class_of(maker), Session))
    )


def _routes(cls: Any) -> bool:
    """Whether the user's own ``get_bind`` decides about the engine, so that it cannot be known in advance."""
    return cls.get_bind is not Session.get_bind


def _check_declaration(factory: Any) -> None:
    problem = _problem_of(factory)
    if problem is not None:
        what, cure = problem
        raise DeclarationError(
            f"the session factory {name_of(factory)} is {what}",
            why="a factory is called with no arguments, and gives an AsyncSession or an async context manager of one",
            cure=cure,
        )


def _problem_of(factory: Any) -> tuple[str, str] | None:
    if is_a(factory, AsyncSession, Session):
        return "a session, not a factory: every unit would get the same one", _SESSIONMAKER
    if is_a(factory, AsyncEngine, Engine):
        return "an engine", _SESSIONMAKER
    if _is_maker(factory) and not _makes_async_sessions(factory):
        return "a sessionmaker of synchronous sessions", _SESSIONMAKER
    if is_a(factory, type) and issubclass(factory, Session):
        return "a class of synchronous sessions", _SESSIONMAKER
    if not callable(factory):
        return "not callable", _SESSIONMAKER
    return None if _is_maker(factory) else _problem_of_function(factory)


def _makes_async_sessions(maker: Any) -> bool:
    return bool(issubclass(maker.class_, AsyncSession))


def _problem_of_function(factory: Callable[..., Any]) -> tuple[str, str] | None:
    inner = factory
    while isinstance(inner, functools.partial):
        inner = inner.func
    name = identifier_of(inner)
    # A class is called to make an object; the `__call__` of one is what calling an object means.
    kinds = (inner,) if isinstance(inner, type) else (inner, type(inner).__call__)
    if any(map(inspect.isasyncgenfunction, kinds)):
        return "an async generator function", f"@contextlib.asynccontextmanager\nasync def {name}(): ..."
    if any(map(inspect.isgeneratorfunction, kinds)):
        return "a generator function", f"@contextlib.asynccontextmanager\nasync def {name}(): ..."
    if any(map(inspect.iscoroutinefunction, kinds)):
        return "an `async def`, which gives a coroutine", f"def {name}() -> AsyncSession: ..."
    return _problem_of_arguments(factory, name)


def _problem_of_arguments(factory: Callable[..., Any], name: str) -> tuple[str, str] | None:
    try:
        parameters = inspect.signature(factory).parameters.values()
    except TypeError:  # not something that can be asked: it will show when it is called
        return None
    except ValueError:
        # A function without parameters that is called as a method; or one that is written in C, and does not say.
        what = "a function without parameters, made a method by its class"
        return (what, f"{name} = staticmethod(...)") if is_a(factory, types.MethodType) else None
    variadic = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
    missing = [p.name for p in parameters if p.default is p.empty and p.kind not in variadic]
    if missing:
        return f"called with no arguments, but needs {', '.join(missing)}", f"functools.partial({name}, ...)"
    return None


def _check_registry(factory: Any) -> None:
    if is_a(factory, async_scoped_session, scoped_session):
        raise FakeIsolationError(
            f"the factory is a scoped registry ({type(factory).__name__}): "
            "it gives one session to all who share its scope",
            cure="Session = registry.session_factory",
        )


def _check_session(made: Any) -> None:
    """
    Raises for what a factory should not have given; a coroutine is closed, or it would complain.

    Raises:
        DeclarationError: it is no AsyncSession; with the cure for each of the usual mistakes.
        FakeIsolationError: a scoped registry.
    """
    if is_a(made, AsyncSession):
        return
    _check_registry(made)
    cure = _SESSIONMAKER
    if inspect.iscoroutine(made):
        made.close()
        cure = "def factory() -> AsyncSession: ..."
    if inspect.isasyncgen(made) or is_a(made, AbstractContextManager):
        cure = "@contextlib.asynccontextmanager\nasync def factory(): ..."
    raise DeclarationError(
        f"the session factory gave a {type(made).__name__}",
        why="it has to give an AsyncSession, or an async context manager that yields one",
        cure=cure,
    )


def _check_yielded(made: Any) -> None:
    if is_a(made, AsyncSession):
        return
    _check_registry(made)
    raise DeclarationError(
        f"the session factory's context manager yielded a {type(made).__name__}",
        why="it has to yield an AsyncSession",
        cure="async with Session() as session: yield session",
    )


def _binds_of_maker(maker: Any) -> list[Any]:
    return _unique([maker.kw.get("bind"), *(maker.kw.get("binds") or {}).values()])


def _binds_of_session(session: AsyncSession) -> list[Any]:
    # `AsyncSession.bind` does not exist on some versions when only `binds` was given; the sync session has both.
    given: dict[Any, Any] = getattr(session, "binds", None) or {}
    return _unique([getattr(session, "bind", None), session.sync_session.bind, *given.values()])


def _unique(binds: Iterable[Any]) -> list[Any]:
    sync = (bind.sync_engine if isinstance(bind, AsyncEngine) else bind for bind in binds if bind is not None)
    return list({id(bind): bind for bind in sync}.values())


def _check_binds(binds: list[Any]) -> None:
    for bind in binds:
        pool = getattr(bind, "pool", None)
        if isinstance(bind, AsyncConnection) or pool is None:
            raise FakeIsolationError(
                "the factory is bound to one connection, which all its sessions share",
                cure="Session = async_sessionmaker(engine)",
            )
        if isinstance(pool, _ONE_CONNECTION):
            raise FakeIsolationError(
                f"the factory's engine uses {type(pool).__name__}: all its sessions share one connection "
                "(an in-memory SQLite database does so unless told otherwise)",
            )


def adopt(made: Any, *, in_use: bool) -> Record:
    """
    Takes over a session that a factory has given: nobody else may be using it.

    A context manager may yield a session that is *in_use*: it has begun the transaction itself.

    Raises:
        DeclarationError: it is no AsyncSession.
        FakeIsolationError: the factory has given it before, or it is in use, or it is bound to what others share.
    """
    if in_use:
        _check_yielded(made)
    else:
        _check_session(made)
    record = record_of(made.sync_session)
    if record.isolated or not (in_use or phase_of(made.sync_session) is Phase.FRESH):
        raise FakeIsolationError(
            f"the factory gave a session ({type(made).__name__}) that it, or somebody else, has already used",
            cure="def factory() -> AsyncSession: return AsyncSession(engine)",
        )
    _check_binds(_binds_of_session(made))
    record.isolated = True
    return record


def check_limit(limit: Any) -> None:
    if limit is None or limit == "pool" or (type(limit) is int and limit > 0):
        return
    raise LimitError(f"limit is {limit!r}", why='it is "pool", a number from 1, or None for no limit')


def resolve_limit(limit: Limit, factory: SessionFactory) -> int | None:
    """
    The number of units that may run at once, None for no limit.

    Raises:
        LimitError: "pool" was asked for and no size can be known.
    """
    binds = factory.binds()
    if limit != "pool":
        return limit
    sizes = [_room_in(bind.pool, bind.dialect.name) for bind in binds or ()]
    known = [size for size in sizes if size is not None]
    if not known or len(known) < len(sizes):
        raise LimitError(
            'limit="pool" needs a factory whose engines are known and have a QueuePool of some size, and here: '
            f"{_why_unknown(binds)}",
        )
    return min(known)


def _room_in(pool: Pool, dialect: str) -> int | None:
    if dialect == "sqlite":  # one writer, whatever the pool
        return 1
    return max(pool.size() - 1, 1) if isinstance(pool, QueuePool) and pool.size() > 0 else None


def _why_unknown(binds: list[Any] | None) -> str:
    if binds is None:
        return "a context manager or a get_bind() of your own decides"
    return ", ".join(_described(bind.pool) for bind in binds) or "it is bound to nothing"


def _described(pool: Pool) -> str:
    unlimited = isinstance(pool, QueuePool) and pool.size() == 0
    return type(pool).__name__ + (" of size 0, which is unlimited" if unlimited else "")
