"""What a decorated function is: one of three nominal types, which pass for the function that was decorated."""

from __future__ import annotations

import copy
import functools
import inspect
import pickle
import types
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Generic, NamedTuple, ParamSpec, TypeVar, cast, final, overload

from sqlalchemy.ext.asyncio import AsyncSession

from sa_isolated_tasks._call import run_call
from sa_isolated_tasks._factory import SessionFactory
from sa_isolated_tasks._guard import Passed, check, check_call, is_harmless
from sa_isolated_tasks._signature import Shape, carries, is_a, name_of, refuse_taken
from sa_isolated_tasks._types import Factory, Guard, Welcome
from sa_isolated_tasks._unit import Unit
from sa_isolated_tasks.exceptions import DeclarationError

__all__ = [
    "Declaration",
    "Isolated",
    "IsolatedClassMethod",
    "IsolatedFunction",
    "IsolatedMethod",
    "as_isolated",
    "isolated_under",
    "prepare",
]

P = ParamSpec("P")
# Calls give a `Coroutine[object, None, R_co]`: with `Any` in it, mypy takes `gather` of two different ones for `Any`.
R_co = TypeVar("R_co", covariant=True)
R = TypeVar("R")
# Covariant although it is a parameter's, as for the `self` of a function: a subclass narrows it when it overrides.
OwnerT_co = TypeVar("OwnerT_co", covariant=True)

_METADATA = ("__module__", "__name__", "__qualname__", "__doc__", "__type_params__")


class Declaration(NamedTuple):
    """What was decorated: the function, its shape, and where its sessions come from."""

    fn: Callable[..., Coroutine[Any, Any, Any]]
    shape: Shape
    source: SessionFactory | str
    """A factory, or the name of the attribute of ``self`` that is one."""

    def using(self, factory: Factory) -> Declaration:
        return self._replace(source=SessionFactory(factory))

    def factory_for(self, bound: tuple[Any, ...]) -> SessionFactory:
        if isinstance(self.source, SessionFactory):
            return self.source
        try:
            factory = getattr(bound[0], self.source)
        except AttributeError as error:
            raise DeclarationError(
                f"{name_of(self.fn)} takes its sessions from the attribute {self.source}: {error}",
                why="isolated_session(attribute=...) names the attribute that holds the session factory",
                cure=f"self.{self.source} = async_sessionmaker(engine)",
            ) from None
        # Made anew for each call: a cache of them would keep the object's factory, and its engine, alive.
        return SessionFactory(factory)


class Isolated(Welcome):
    """
    What the three kinds share: they pass for a coroutine function, with the metadata of the one that was decorated.

    The package's own state is in slots. ``__dict__`` is the function's: other decorators read and write there.
    """

    __slots__ = ("__dict__", "__isolated__")

    # What `inspect` asks of an object before it takes it for a function, and who asks `inspect` follows.
    __code__: property = property(lambda self: self.__isolated__.fn.__code__)
    __defaults__: property = property(lambda self: self.__isolated__.fn.__defaults__)
    __kwdefaults__: property = property(lambda self: self.__isolated__.fn.__kwdefaults__)
    __globals__: property = property(lambda self: self.__isolated__.fn.__globals__)

    # Set for each object, by `_take_after`.
    __name__: str
    __qualname__: str
    __signature__: inspect.Signature

    def __init__(self, declaration: Declaration) -> None:
        self.__isolated__: Declaration = declaration

    def _take_after(self, metadata: Mapping[str, Any], signature: inspect.Signature) -> None:
        self.__dict__.update(metadata)
        self.__signature__ = signature

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {name_of(self.__isolated__.fn)}>"

    def __copy__(self) -> Any:
        return self  # as functions do

    def __deepcopy__(self, _memo: dict[int, Any]) -> Any:
        return self

    def __reduce__(self) -> str | tuple[Any, ...]:
        return self.__qualname__  # by name, as functions do


def _metadata_of(declaration: Declaration) -> dict[str, Any]:
    fn, signature = declaration.fn, declaration.shape.signature
    # An attribute that would hide one of this package's is left out: `using` is a promise, the other is not.
    metadata = {name: value for name, value in vars(fn).items() if not any(hasattr(kind, name) for kind in _KINDS)}
    metadata |= {name: getattr(fn, name) for name in _METADATA if hasattr(fn, name)}
    annotations = getattr(fn, "__annotations__", {})
    metadata["__annotations__"] = {
        name: annotation for name, annotation in annotations.items() if name in {*signature.parameters, "return"}
    }
    metadata["__wrapped__"] = fn
    return metadata


@final
class IsolatedFunction(Isolated, Generic[P, R_co]):
    """
    A function, or a method that is bound, which is given a session of its own whenever it is called.

    Made by `isolated_session`. It passes for a coroutine function everywhere, and its signature is the one without the
    session.

    .. versionadded:: 0.1.0
    """

    __slots__ = ("__bound__",)

    def __init__(
        self, declaration: Declaration, bound: tuple[Any, ...] = (), metadata: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(declaration)
        self.__bound__: tuple[Any, ...] = bound
        shape = declaration.shape
        self._take_after(
            _metadata_of(declaration) if metadata is None else metadata,
            shape.bound_signature if bound else shape.signature,
        )

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[object, None, R_co]:
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
        coroutine: Any = run_call(self.__qualname__, prepare(self, args, kwargs))
        # So "was never awaited", task names and debuggers show the user's function.
        coroutine.__name__, coroutine.__qualname__ = self.__name__, self.__qualname__
        return cast("Coroutine[object, None, R_co]", coroutine)

    def using(self, factory: Factory) -> IsolatedFunction[P, R_co]:
        """
        The same function with another factory: for tests, or for a second database.

        Raises:
            DeclarationError: *factory* is none.
        """
        return IsolatedFunction(self.__isolated__.using(factory), self.__bound__, vars(self))

    def in_session(self, session: AsyncSession, /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[object, None, R_co]:
        """
        Runs the body inside a session of the caller's, on purpose: to compose functions, and to test them.

        Nothing is committed, rolled back or closed. Instances of that session may be arguments.

        Raises:
            SessionPassedError: an argument is, or holds, another session.
            InstancePassedError: an argument is, or holds, an instance of another session.
            TypeError: the arguments do not fit the signature.
        """
        check(Passed(self.__name__, args, kwargs, own=session))
        return self.__isolated__.fn(*self.__bound__, session, *args, **kwargs)

    def __eq__(self, other: object) -> bool:
        """As for bound methods: each access to the attribute makes a new one, and they are equal."""
        if not isinstance(other, IsolatedFunction):
            return NotImplemented
        return self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)

    @property
    def _identity(self) -> tuple[object, ...]:
        return (self.__isolated__, *map(id, self.__bound__))

    def __deepcopy__(self, memo: dict[int, Any]) -> IsolatedFunction[P, R_co]:
        """As for bound methods: of a copy of the object."""
        if not self.__bound__:
            return self
        return IsolatedFunction(self.__isolated__, (copy.deepcopy(self.__bound__[0], memo),), vars(self))

    def __reduce__(self) -> str | tuple[Any, ...]:
        if not self.__bound__:
            return super().__reduce__()
        owner = self.__bound__[0]
        if getattr(owner, self.__name__, None) != self:
            raise pickle.PicklingError(f"{self!r} is not what {self.__name__} of {type(owner).__name__} is")
        return getattr, (owner, self.__name__)

    def __set_name__(self, owner: type, name: str) -> None:
        """
        Refuses a function of a class body in which Python sees a method, and nobody has said where its session is.

        Raises:
            DeclarationError: its first parameter has no annotation, and it is no staticmethod.
        """
        if self.__isolated__.shape.guessed and self.__qualname__ == f"{owner.__qualname__}.{name}":
            raise DeclarationError(
                f"{self.__qualname__} does not say which of its parameters is the session",
                why="a function of a class body is a method, unless it is a staticmethod",
                cure=f"async def {self.__name__}(self, session: AsyncSession, ...): ...",
            )


def prepare(
    fn: IsolatedFunction[Any, R],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    offset: int = 0,
    guard: Guard = "raise",
    timeout: float | None = None,
) -> Unit[R]:
    """
    Checks a call, and makes its unit; raises what `IsolatedFunction.__call__` does.

    *offset* arguments stand before *args* in the source of the call.
    """
    declaration, bound = fn.__isolated__, fn.__bound__
    body, shape = declaration.fn, declaration.shape
    # First: a session in the place of the factory is that, and not just any session in the object.
    factory = declaration.factory_for(bound)
    if bound or not is_harmless(body, args, kwargs, shape):
        owner: Any = None
        if bound:
            owner = types.MethodType(body, bound[0])
        elif carries(body):
            owner = body
        check_call(Passed(fn.__name__, args, kwargs, owner, offset), shape, fn.__signature__, guard)
        refuse_taken(shape, fn.__name__, kwargs)
    factory.check_isolation()
    return Unit(factory, body, args, kwargs, before=bound, timeout=timeout)


class _Method(Isolated):
    """A method that is not bound yet."""

    __slots__ = ()

    def __init__(self, declaration: Declaration, metadata: Mapping[str, Any] | None = None) -> None:
        super().__init__(declaration)
        self._take_after(_metadata_of(declaration) if metadata is None else metadata, declaration.shape.signature)

    def bind(self, owner: Any) -> IsolatedFunction[Any, Any]:
        return IsolatedFunction(self.__isolated__, (owner,), vars(self))


@final
class IsolatedMethod(_Method, Generic[OwnerT_co, P, R_co]):
    """
    A method that is given a session of its own: on an object it is an `IsolatedFunction`.

    .. versionadded:: 0.1.0
    """

    __slots__ = ()

    @overload
    def __get__(self, instance: None, owner: type, /) -> IsolatedMethod[OwnerT_co, P, R_co]: ...
    @overload
    def __get__(self, instance: object, owner: type | None = None, /) -> IsolatedFunction[P, R_co]: ...
    def __get__(self, instance: object, owner: type | None = None, /) -> Any:
        return self if instance is None else self.bind(instance)

    def __call__(
        self,
        owner: OwnerT_co,  # type: ignore[misc]  # pyright: ignore[reportGeneralTypeIssues]  # see OwnerT_co
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Coroutine[object, None, R_co]:
        """As `IsolatedFunction.__call__`, with the object as the first argument."""
        return self._of(owner)(*args, **kwargs)

    def using(self, factory: Factory) -> IsolatedMethod[OwnerT_co, P, R_co]:
        """The same method with another factory."""
        return IsolatedMethod(self.__isolated__.using(factory), vars(self))

    def in_session(
        self,
        owner: OwnerT_co,  # type: ignore[misc]  # pyright: ignore[reportGeneralTypeIssues]  # see OwnerT_co
        session: AsyncSession,
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Coroutine[object, None, R_co]:
        """As `IsolatedFunction.in_session`, with the object as the first argument."""
        return self._of(owner).in_session(session, *args, **kwargs)

    def _of(self, owner: object) -> IsolatedFunction[P, R_co]:
        # Python 3.13 gives a classmethod around this object as a bound method whose `using` and `in_session` are those
        # of this object, which then does not know the class.
        if next(iter(self.__signature__.parameters)) == "cls" and not isinstance(owner, type):
            raise TypeError(
                f"{self.__qualname__}() needs the class as its first argument; with @isolated_session above "
                "@classmethod, not below it, the class is known"
            )
        return self.bind(owner)


@final
class IsolatedClassMethod(_Method, Generic[P, R_co]):
    """
    A classmethod that is given a session of its own: on the class, or an object of it, it is an `IsolatedFunction`.

    .. versionadded:: 0.1.0
    """

    __slots__ = ()

    def __get__(self, instance: object, owner: type | None = None, /) -> IsolatedFunction[P, R_co]:
        return self.bind(type(instance) if owner is None else owner)

    def __call__(self, owner: type[Any], /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[object, None, R_co]:
        """As `IsolatedFunction.__call__`, with the class as the first argument."""
        return cast("IsolatedFunction[P, R_co]", self.bind(owner))(*args, **kwargs)


def as_isolated(fn: Any) -> IsolatedFunction[Any, Any] | None:
    """*fn* as an isolated function; a classmethod around an isolated method gives a bound method, on Python 3.13."""
    if is_a(fn, IsolatedFunction):
        return cast("IsolatedFunction[Any, Any]", fn)
    if is_a(fn, types.MethodType) and is_a(fn.__func__, _Method):
        return cast("_Method", fn.__func__).bind(fn.__self__)
    return None


_KINDS = (IsolatedFunction, IsolatedMethod, IsolatedClassMethod)


def isolated_under(fn: Any) -> Isolated | None:
    """The isolated function that *fn* wraps, as a retry decorator does; *fn* itself if it is one."""
    inner = fn
    while not isinstance(inner, Isolated):
        if isinstance(inner, functools.partial):
            inner = inner.func
        elif isinstance(inner, types.FunctionType) and "__wrapped__" in vars(inner):
            inner = vars(inner)["__wrapped__"]
        else:
            return None
    return inner
