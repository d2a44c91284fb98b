"""``@isolated_session``: a function that opens its own session whenever it is called."""

from __future__ import annotations

import asyncio
import inspect
import weakref
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from time import perf_counter
from types import MethodType
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar, cast, final, overload

from sqlalchemy.ext.asyncio import AsyncSession

from sa_isolated_tasks._events import UnitEnded, UnitStarted
from sa_isolated_tasks._factory import SessionFactory
from sa_isolated_tasks._guard import Passed, check, check_call
from sa_isolated_tasks._logging import LoggingListener
from sa_isolated_tasks._signature import Kind, Shape, check_body, name_of, read_shape
from sa_isolated_tasks._types import Factory, Guard, SessionT, TaskState, Welcome
from sa_isolated_tasks._unit import Unit
from sa_isolated_tasks._watch import watch_sessions
from sa_isolated_tasks.exceptions import DeclarationError

__all__ = ["IsolatedClassMethod", "IsolatedFunction", "IsolatedMethod", "as_isolated", "isolated_session"]

P = ParamSpec("P")
R_co = TypeVar("R_co", covariant=True)
R = TypeVar("R")
OwnerT = TypeVar("OwnerT")

_METADATA = ("__module__", "__name__", "__qualname__", "__doc__", "__annotations__", "__type_params__")
# An object that has these is a coroutine function for `inspect`, and for whoever asks it, on every Python.
_LOG = LoggingListener()
_FUNCTION_ATTRIBUTES = ("__code__", "__defaults__", "__kwdefaults__", "__globals__")


@dataclass(frozen=True, slots=True)
class Declaration:
    """What was decorated: the function, its shape, and where its sessions come from."""

    fn: Callable[..., Coroutine[Any, Any, Any]]
    shape: Shape
    source: SessionFactory | str
    """A factory, or the name of the attribute of ``self`` that is one."""

    known: weakref.WeakKeyDictionary[Any, SessionFactory] = field(default_factory=weakref.WeakKeyDictionary)
    """Factories that were found by attribute: what can be checked once is checked once for each."""

    def factory_for(self, bound: tuple[Any, ...]) -> SessionFactory:
        if isinstance(self.source, SessionFactory):
            return self.source
        given = self._attribute_of(bound[0], self.source)
        try:
            factory = self.known.get(given)
            if factory is None:
                factory = self.known[given] = SessionFactory(given)
        except TypeError:  # not hashable, or nothing can refer to it weakly
            factory = SessionFactory(given)
        return factory

    def _attribute_of(self, owner: Any, name: str) -> Any:
        try:
            return getattr(owner, name)
        except AttributeError as error:
            raise DeclarationError(
                f"{name_of(self.fn)} takes its sessions from self.{name}: {error}",
                why="isolated_session(attribute=...) names the attribute that holds the session factory",
                cure=f"self.{name} = async_sessionmaker(engine)",
            ) from None


class _Isolated(Welcome):
    """What the three kinds share: the metadata of the function that was decorated, and how it is run."""

    def __init__(self, declaration: Declaration, signature: inspect.Signature) -> None:
        self.declaration = declaration
        fn = declaration.fn
        for name in _METADATA + _FUNCTION_ATTRIBUTES:
            try:
                object.__setattr__(self, name, getattr(fn, name))
            except AttributeError:
                continue
        self.__signature__ = signature
        self.__wrapped__ = fn

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {name_of(self.declaration.fn)}>"


def _using(declaration: Declaration, factory: Factory) -> Declaration:
    return replace(declaration, source=SessionFactory(factory))


@final
class IsolatedFunction(_Isolated, Generic[P, R_co]):
    """
    A function, or a method that is bound, which is given a session of its own whenever it is called.

    Made by `isolated_session`. Passes for a coroutine function everywhere; its signature is the one without the session.

    .. versionadded:: 0.1.0
    """

    def __init__(self, declaration: Declaration, bound: tuple[Any, ...] = ()) -> None:
        signature = declaration.shape.signature
        if bound:
            signature = signature.replace(parameters=list(signature.parameters.values())[1:])
        super().__init__(declaration, signature)
        self.bound = bound

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R_co]:
        """
        Checks the arguments, and returns the coroutine that runs the unit in the task that awaits it.

        The session is opened at the first step and closed before the coroutine returns or raises: committed if the
        body returned, rolled back if it raised or was cancelled. The body's exception comes out as it is.

        Raises:
            SessionPassedError: an argument is, or holds, a session; see *docs/errors.md*.
            InstancePassedError: an argument is, or holds, a mapped instance of another session.
            FakeIsolationError: the factory's sessions would share a connection.
            TypeError: the arguments do not fit the signature.
        """
        self.check_arguments(args, kwargs, 0)
        coroutine = self._run(args, kwargs)
        # So "was never awaited", task names and debuggers show the user's function.
        coroutine.__name__, coroutine.__qualname__ = self.__name__, self.__qualname__
        return coroutine

    def using(self, factory: Factory) -> IsolatedFunction[P, R_co]:
        """
        The same function with another factory: for tests, or for a second database.

        Raises:
            DeclarationError: *factory* is none.
        """
        return IsolatedFunction(_using(self.declaration, factory), self.bound)

    def in_session(self, session: AsyncSession, /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R_co]:
        """
        Runs the body inside a session of the caller's, on purpose: to compose functions, and to test them.

        Nothing is committed, rolled back or closed. Instances of that session may be arguments.

        Raises:
            SessionPassedError: an argument is, or holds, another session.
            InstancePassedError: an argument is, or holds, an instance of another session.
        """
        own = session.sync_session if issubclass(type(session), AsyncSession) else None
        check(Passed(self.__name__, args, kwargs, own=own))
        return self.declaration.fn(*self.bound, session, *args, **kwargs)

    def check_arguments(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], offset: int, guard: Guard = "raise"
    ) -> None:
        """Raises what `__call__` raises; *offset* arguments stand before *args* in the source of the call."""
        declaration = self.declaration
        owner: Any = None
        if self.bound:
            owner = MethodType(declaration.fn, self.bound[0])
        elif getattr(declaration.fn, "__closure__", None):
            owner = declaration.fn
        passed = Passed(self.__name__, args, kwargs, owner, offset)
        check_call(passed, declaration.shape, self.__signature__, guard)
        self.factory.check_isolation()

    @property
    def factory(self) -> SessionFactory:
        return self.declaration.factory_for(self.bound)

    def unit(self, args: tuple[Any, ...], kwargs: dict[str, Any], timeout: float | None = None) -> Unit[R_co]:
        fn, bound = self.declaration.fn, self.bound
        return Unit(self.factory, lambda session: fn(*bound, session, *args, **kwargs), fn, timeout)

    async def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> R_co:
        unit = self.unit(args, kwargs)
        _LOG.unit_started(UnitStarted("", self.__qualname__, 0.0))
        started = perf_counter()

        def end(state: TaskState, failure: BaseException | None = None, reason: str = "") -> None:
            timing = unit.timing(perf_counter() - started, 0.0)
            _LOG.unit_ended(
                UnitEnded("", self.__qualname__, state, unit.outcome, unit.commits, timing, failure, reason, "")
            )

        try:
            result = await unit.run()
        except asyncio.CancelledError:
            end(TaskState.CANCELLED, reason="its task was cancelled")
            raise
        except BaseException as error:
            end(TaskState.FAILED, error)
            raise
        end(TaskState.SUCCEEDED)
        return result


class _Method(_Isolated):
    """A method that is not bound yet."""

    def __init__(self, declaration: Declaration) -> None:
        super().__init__(declaration, declaration.shape.signature)

    def bind(self, owner: Any) -> IsolatedFunction[Any, Any]:
        return IsolatedFunction(self.declaration, (owner,))


@final
class IsolatedMethod(_Method, Generic[OwnerT, P, R_co]):
    """
    A method that is given a session of its own: on an object it is an `IsolatedFunction`.

    .. versionadded:: 0.1.0
    """

    @overload
    def __get__(self, instance: None, owner: type, /) -> IsolatedMethod[OwnerT, P, R_co]: ...
    @overload
    def __get__(self, instance: object, owner: type | None = None, /) -> IsolatedFunction[P, R_co]: ...
    def __get__(self, instance: object, owner: type | None = None, /) -> Any:
        return self if instance is None else self.bind(instance)

    def __call__(self, owner: OwnerT, /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R_co]:
        """As `IsolatedFunction.__call__`, with the object as the first argument."""
        return cast("IsolatedFunction[P, R_co]", self.bind(owner))(*args, **kwargs)

    def using(self, factory: Factory) -> IsolatedMethod[OwnerT, P, R_co]:
        """The same method with another factory."""
        return IsolatedMethod(_using(self.declaration, factory))


@final
class IsolatedClassMethod(_Method, Generic[P, R_co]):
    """
    A classmethod that is given a session of its own: on the class, or an object of it, it is an `IsolatedFunction`.

    .. versionadded:: 0.1.0
    """

    def __get__(self, instance: object, owner: type | None = None, /) -> IsolatedFunction[P, R_co]:
        return self.bind(type(instance) if owner is None else owner)


def as_isolated(fn: Any) -> IsolatedFunction[Any, Any] | None:
    """*fn* as an isolated function; a classmethod around an isolated method gives a bound method, on Python 3.13."""
    if isinstance(fn, IsolatedFunction):
        return fn
    if isinstance(fn, MethodType) and isinstance(fn.__func__, _Method):
        return fn.__func__.bind(fn.__self__)
    return None


class _Decorator(Protocol):
    @overload
    def __call__(self, fn: Callable[Concatenate[SessionT, P], Coroutine[Any, Any, R]], /) -> IsolatedFunction[P, R]: ...
    @overload
    def __call__(
        self, fn: classmethod[Any, Concatenate[SessionT, P], Coroutine[Any, Any, R]], /
    ) -> IsolatedClassMethod[P, R]: ...
    @overload
    def __call__(
        self, fn: Callable[Concatenate[OwnerT, SessionT, P], Coroutine[Any, Any, R]], /
    ) -> IsolatedMethod[OwnerT, P, R]: ...


class _MethodDecorator(Protocol):
    @overload
    def __call__(
        self, fn: classmethod[Any, Concatenate[SessionT, P], Coroutine[Any, Any, R]], /
    ) -> IsolatedClassMethod[P, R]: ...
    @overload
    def __call__(
        self, fn: Callable[Concatenate[OwnerT, SessionT, P], Coroutine[Any, Any, R]], /
    ) -> IsolatedMethod[OwnerT, P, R]: ...


@overload
def isolated_session(factory: Factory, /) -> _Decorator: ...
@overload
def isolated_session(*, attribute: str) -> _MethodDecorator: ...
def isolated_session(factory: Any = None, /, *, attribute: str | None = None) -> Any:
    """
    Decorates an ``async def`` so that every call runs in a session of its own.

    The function's first parameter (after ``self`` or ``cls``) is the session; callers do not pass it. A call commits
    when the body returns, rolls back when it raises or is cancelled, and always closes. Nothing is begun in advance,
    so the body may commit as often as it likes, and one that never touches the database costs no connection.

    Args:
        factory: called with no arguments for each unit. Gives an ``AsyncSession``, which the unit commits and closes, or
            an async context manager of one, which the unit only enters and exits.
        attribute: for methods, in place of *factory*: the name of the attribute of ``self`` that is the factory.

    Returns:
        A decorator. What it makes is an `IsolatedFunction`, an `IsolatedMethod` or an `IsolatedClassMethod`.

    Raises:
        DeclarationError: the factory or the function cannot be used; at decoration.

    .. versionadded:: 0.1.0
    """
    if (factory is None) == (attribute is None):
        raise DeclarationError(
            "isolated_session() was given "
            + ("neither a factory nor" if factory is None else "both a factory and")
            + " attribute=",
            why="each call needs to know where its session comes from",
            cure="@isolated_session(Session)",
        )
    if inspect.iscoroutinefunction(factory) and not _looks_like_factory(factory):
        raise DeclarationError(
            f"isolated_session was put on {name_of(factory)} without a factory",
            why="it is called with the factory first; what it returns is the decorator",
            cure="@isolated_session(Session)",
        )
    watch_sessions()
    source = SessionFactory(factory) if attribute is None else attribute

    def decorate(fn: Any) -> Any:
        return _decorate(fn, source)

    return decorate


def _looks_like_factory(fn: Callable[..., Any]) -> bool:
    """An ``async def`` without parameters was meant as a factory, and is refused as one."""
    return isinstance(fn, _Isolated) or not inspect.signature(fn).parameters


def _decorate(fn: Any, source: SessionFactory | str) -> Any:
    inner = fn.__func__ if isinstance(fn, classmethod | staticmethod) else fn
    if isinstance(inner, _Isolated):
        raise DeclarationError(
            f"{name_of(inner)} is isolated already",
            why="it would open a session and pass it to a function that takes none",
            cure=f"{inner.__name__}.using(Session)",
        )
    check_body(inner)
    if not inspect.isfunction(inner):
        raise DeclarationError(
            f"{name_of(inner)} is an object of {type(inner).__name__}",
            why="isolated_session decorates functions: it reads their signature and takes their name",
            cure="scope.spawn(fn, ...)",
        )
    declaration = Declaration(inner, read_shape(inner), source)
    if isinstance(fn, classmethod):
        return IsolatedClassMethod(_expect(declaration, Kind.METHOD, "cls"))
    if isinstance(source, str):
        return IsolatedMethod(_expect(declaration, Kind.METHOD, "self"))
    if isinstance(fn, staticmethod) or declaration.shape.kind is Kind.FUNCTION:
        return IsolatedFunction(_expect(declaration, Kind.FUNCTION, ""))
    return IsolatedMethod(declaration)


def _expect(declaration: Declaration, kind: Kind, first: str) -> Declaration:
    if declaration.shape.kind is not kind:
        parameters = ", ".join(filter(None, (first, "session: AsyncSession", "...")))
        raise DeclarationError(
            f"{name_of(declaration.fn)} has its session in the wrong place",
            why="the session is the first parameter, after self or cls where there is one",
            cure=f"async def {declaration.fn.__name__}({parameters}): ...",
        )
    return declaration
