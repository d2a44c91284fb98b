"""Where the session parameter of a function is, what callers see without it, and what is refused for having none."""

from __future__ import annotations

import functools
import inspect
import types
from typing import TYPE_CHECKING, Annotated, Any, Optional, Protocol, TypeVar, Union
from unittest.mock import AsyncMock, MagicMock

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session
from sqlalchemy.orm import Session

from sa_isolated_tasks import (
    DeclarationError,
    IsolatedFunction,
    IsolatedMethod,
    SessionPassedError,
    TaskScope,
    isolated_session,
)
from sa_isolated_tasks._signature import code_of, is_a

if TYPE_CHECKING:
    from nowhere import AsyncSession as Hidden
    from nowhere import ClientSession, Database

isolated = isolated_session(AsyncSession)


class OwnSession(AsyncSession):
    pass


class CanExecute(Protocol):
    async def execute(self, statement): ...


Bound = TypeVar("Bound", bound=AsyncSession)
Constrained = TypeVar("Constrained", int, OwnSession)
Free = TypeVar("Free")
Wrong = TypeVar("Wrong", bound=int)
Numbers = TypeVar("Numbers", int, float)


# Annotations of the session parameter that are understood, in a form that no annotation decides but this one.


async def bare(session, number: int): ...
async def exact(session: AsyncSession, number: int): ...
async def subclass(session: OwnSession, number: int): ...
async def base(session: object, number: int): ...
async def string(session: "AsyncSession", number: int): ...  # noqa: UP037 -- it is what is tested
async def hidden(session: Hidden, number: int): ...
async def nowhere(session: nowhere.AsyncSession | None, number: int): ...
async def unknown(session: Database, number: int): ...
async def anything(session: Any, number: int): ...
async def optional(session: Optional[AsyncSession], number: int): ...  # noqa: UP045
async def union(session: Union[int, AsyncSession], number: int): ...  # noqa: UP007
async def either(session: None | AsyncSession, number: int): ...  # noqa: RUF036
async def perhaps(session: int | Any, number: int): ...
async def annotated(session: Annotated[AsyncSession, "a dependency"], number: int): ...
async def nested(session: Annotated[AsyncSession | None, "a dependency"], number: int): ...
async def bound(session: Bound, number: int): ...
async def constrained(session: Constrained, number: int): ...
async def free(session: Free, number: int): ...
async def protocol(session: CanExecute, number: int): ...
async def broken(session: "not an annotation", number: int): ...  # noqa: F722
async def attribute(session: inspect.missing, number: int): ...
async def positional_only(session: AsyncSession, /, number: int): ...
async def default(session: AsyncSession = None, number: int = 1): ...
async def other_name(database: AsyncSession, number: int): ...
async def client(session, number: ClientSession): ...


UNDERSTOOD = (
    *(bare, exact, subclass, base, string, hidden, nowhere, unknown, anything, optional, union, either, perhaps),
    *(annotated, nested, bound, constrained, free, protocol, broken, attribute, positional_only, default, other_name),
    client,
)


@pytest.mark.parametrize("fn", UNDERSTOOD, ids=lambda fn: fn.__name__)
async def test_a_session_parameter_is_understood(fn):
    """However it is annotated, if at all; callers see the signature without it."""
    decorated = isolated(fn)

    assert type(decorated) is IsolatedFunction
    assert list(inspect.signature(decorated).parameters) == ["number"]
    assert await decorated(1) is None


# Those that are refused.


async def nothing(): ...
async def number(number: int): ...
async def keyword_only(*, session: AsyncSession): ...
async def keywords(**session: AsyncSession): ...
async def sync_session(session: Session): ...
async def connection(session: AsyncConnection): ...
async def registry(session: async_scoped_session): ...
async def optional_number(session: int | None): ...
async def wrong_type_variable(session: Wrong): ...
async def wrong_constraints(session: Numbers): ...
async def wrong_generic(sessions: list[AsyncSession]): ...
async def annotated_number(session: Annotated[int, AsyncSession]): ...
async def only_self(self): ...
async def self_and_keyword(self, *, session: AsyncSession): ...
async def self_and_number(self, number: int): ...
async def self_number_session(self, number: int, session: AsyncSession): ...
async def number_first(number: int, session: AsyncSession): ...
async def second(target, session: AsyncSession): ...


WITHOUT_SESSION = (
    *(nothing, number, keyword_only, keywords, sync_session, connection, registry, optional_number),
    *(
        wrong_type_variable,
        wrong_constraints,
        wrong_generic,
        annotated_number,
        only_self,
        self_and_keyword,
        self_and_number,
    ),
    *(self_number_session, number_first, second),
)


@pytest.mark.parametrize("fn", WITHOUT_SESSION, ids=lambda fn: fn.__name__)
def test_a_function_without_a_session_parameter_is_refused(fn):
    """At decoration, with its name, its signature, the code SIT301 and a line that is right."""
    with pytest.raises(DeclarationError) as caught:
        isolated(fn)

    error = caught.value
    assert error.code == "SIT301"
    assert error.what == f"{fn.__name__}{inspect.signature(fn)} has no session parameter"
    assert error.why == "the first parameter (after self or cls) receives the session of the unit, by position"
    assert error.cure == f"async def {fn.__name__}(session: AsyncSession, ...): ..."


@pytest.mark.parametrize("fn", WITHOUT_SESSION, ids=lambda fn: fn.__name__)
async def test_a_function_without_a_session_parameter_is_not_spawned(fn):
    """For a plain function the same is said at the spawn, and no unit is made."""
    async with TaskScope(AsyncSession, name="t", limit=1) as scope:
        with pytest.raises(DeclarationError, match="has no session parameter"):
            scope.spawn(fn)
        assert len(scope) == 0


def plain(session): ...


def generator(session):
    yield session


async def async_generator(session):
    yield session


class Thing:
    def __call__(self, session): ...


NO_BODIES = {
    "def": (plain, "plain is no `async def`", "async def plain(session, ...): ..."),
    "lambda": (lambda session: None, "<lambda> is no `async def`", "async def work(session, ...): ..."),
    "generator": (generator, "generator is a generator function", "async def generator(session, ...): ..."),
    "async generator": (
        async_generator,
        "async_generator is an async generator function",
        "async def async_generator(session, ...) -> list[...]: ...",
    ),
    "partial": (functools.partial(plain, 1), "plain is no `async def`", "async def plain(session, ...): ..."),
    "callable object": (Thing(), "Thing is no `async def`", "async def Thing(session, ...): ..."),
    "class": (Thing, "Thing is no `async def`", "async def Thing(session, ...): ..."),
    "mock": (MagicMock(), "MagicMock is no `async def`", "async def MagicMock(session, ...): ..."),
    "number": (1, "int is a int, not a function", "async def work(session, ...): ..."),
    "none": (None, "NoneType is a NoneType, not a function", "async def work(session, ...): ..."),
}


@pytest.mark.parametrize("case", NO_BODIES)
def test_what_is_no_async_function_is_refused(case):
    """At decoration, by its kind, with the line that is right."""
    fn, what, cure = NO_BODIES[case]

    with pytest.raises(DeclarationError) as caught:
        isolated(fn)

    error = caught.value
    assert (error.code, error.what, error.cure) == ("SIT301", what, cure)
    assert error.why == "only an `async def` can be run in a session of its own, and spawned"


@pytest.mark.parametrize("case", NO_BODIES)
async def test_what_is_no_async_function_is_not_spawned(case):
    """With the same words."""
    fn, what, _ = NO_BODIES[case]

    async with TaskScope(AsyncSession, name="t", limit=1) as scope:
        with pytest.raises(DeclarationError) as caught:
            scope.spawn(fn)

    assert caught.value.what == what


async def test_a_coroutine_object_is_refused_and_closed():
    """Decorated or spawned; nothing complains afterwards that it was never awaited."""
    async with TaskScope(AsyncSession, name="t", limit=1) as scope:
        for take in (isolated, scope.spawn):
            coroutine = exact(None, 1)

            with pytest.raises(DeclarationError, match=r"a coroutine object was given, exact\(\.\.\.\)") as caught:
                take(coroutine)

            assert caught.value.cure == "scope.spawn(exact, ...)"
            assert inspect.getcoroutinestate(coroutine) == inspect.CORO_CLOSED


# Signatures.


async def many(session: AsyncSession, a, /, b, *rest, c, d=1, **more) -> int:
    return (a, b, rest, c, d, more)


async def test_callers_see_the_signature_without_the_session():
    """Every other parameter keeps its kind, default and annotation, and the return annotation stays."""
    decorated = isolated(many)

    assert str(inspect.signature(decorated)) == "(a, /, b, *rest, c, d=1, **more) -> 'int'"
    assert await decorated(1, 2, 3, c=4, e=5) == (1, 2, (3,), 4, 1, {"e": 5})
    for args, kwargs in [((1,), {"c": 1}), ((1, 2), {}), ((), {"b": 2, "c": 3})]:
        with pytest.raises(TypeError, match=r"^many\(\) missing a required"):
            decorated(*args, **kwargs)


@pytest.mark.parametrize("name", ["session", "self"])
async def test_an_argument_cannot_have_the_name_of_what_is_passed_already(name, LiteSession):
    """Although ``**more`` would take it: Python would refuse it later, in the task."""

    class Shop:
        @isolated_session(LiteSession)
        async def work(self, session: AsyncSession, **more): ...

        async def plain(self, session: AsyncSession, **more): ...

    with pytest.raises(TypeError, match=rf"^work\(\) got multiple values for argument '{name}'$"):
        Shop().work(**{name: 1})
    async with TaskScope(LiteSession, name="t") as scope:
        with pytest.raises(TypeError, match=r"^Shop.work\(\) got multiple values|^work\(\) got multiple values"):
            scope.spawn(Shop().work, **{name: 1})
        with pytest.raises(TypeError, match=r"plain\(\) got multiple values for argument 'session'$"):
            scope.spawn(Shop().plain, session=1)


async def test_a_positional_only_session_leaves_its_name_to_the_caller(LiteSession):
    """There is no conflict then."""

    @isolated_session(LiteSession)
    async def work(session: AsyncSession, /, **more):
        return more

    assert await work(session=1) == {"session": 1}


async def test_a_function_of_any_arguments_is_given_the_session_first(LiteSession):
    """``*args`` may hold the session; it takes the place of no other argument."""

    @isolated_session(LiteSession)
    async def work(*args, **kwargs):
        return type(args[0]), args[1:], kwargs

    class Shop:
        @isolated_session(LiteSession)
        async def method(self, *args):
            return type(args[0]), args[1:]

    assert await work() == (LiteSession.class_, (), {})
    assert await work(1, 2, a=3) == (LiteSession.class_, (1, 2), {"a": 3})
    assert await Shop().method(1, 2) == (LiteSession.class_, (1, 2))
    assert str(inspect.signature(work)) == "(*args, **kwargs)"
    assert str(inspect.signature(Shop().method)) == "(*args)"


def test_methods_are_told_by_their_annotation_or_their_first_parameter():
    """In a class body, an annotated second parameter is enough, and so is a first one that is called ``self``."""

    class Shop:
        @isolated
        async def annotated(this, database: AsyncSession): ...

        @isolated
        async def annotated_self(self: Shop, database): ...

        @isolated
        async def named(self, database): ...

        @isolated
        async def optional(self, database: AsyncSession | None = None): ...

        @isolated
        async def typed(this: int, database: AsyncSession): ...

    assert {type(member) for name, member in vars(Shop).items() if not name.startswith("__")} == {IsolatedMethod}


def test_a_local_function_is_no_method():
    """One that is defined in a function of a class, and has a session first."""

    class Shop:
        @staticmethod
        def make():
            @isolated
            async def work(session, number): ...

            return work

    assert type(Shop.make()) is IsolatedFunction


# Plain functions in a scope.


async def test_an_unbound_method_is_not_spawned(LiteSession):
    """Plain or isolated; the cure is the bound one."""

    class Shop:
        async def plain(self, session: AsyncSession): ...

        @isolated_session(LiteSession)
        async def isolated(self, session: AsyncSession): ...

    async with TaskScope(LiteSession, name="t") as scope:
        for fn in (Shop.plain, Shop.isolated):
            with pytest.raises(DeclarationError) as caught:
                scope.spawn(fn, Shop())
            assert caught.value.what.endswith(f"Shop.{fn.__name__} is a method that is bound to no object")
            assert caught.value.why == "the session is its second parameter, and would be passed as the first"
            assert caught.value.cure == f"scope.spawn(obj.{fn.__name__}, ...)"


async def test_every_kind_of_plain_callable_is_spawned(LiteSession):
    """Functions, bound methods, partials, callable objects, wrapped functions and mocks."""

    class Shop:
        async def method(self, session: AsyncSession, number: int):
            return number

        @classmethod
        async def class_method(cls, session: AsyncSession, number: int):
            return number

        async def __call__(self, session: AsyncSession, number: int):
            return number

    async def function(session, number):
        return number

    @functools.wraps(function)
    async def wrapped(*args, **kwargs):
        return await function(*args, **kwargs)

    shop = Shop()
    partials = [functools.partial(shop.method, number=1), functools.partial(functools.partial(shop), number=1)]
    async with TaskScope(LiteSession, name="t") as scope:
        handles = [scope.spawn(fn, 1) for fn in (function, wrapped, shop.method, Shop.class_method, shop)]
        handles += [scope.spawn(fn) for fn in partials]
        handles.append(scope.spawn(AsyncMock(return_value=1), 1))

    assert [handle.result() for handle in handles] == [1] * 8


async def test_functions_of_one_decorator_have_signatures_of_their_own(LiteSession):
    """They share the code of its wrapper; what is known of the one must not be taken for the other."""

    def decorator(fn):
        @functools.wraps(fn)
        async def wrapper(*args, **kwargs):
            return await fn(*args, **kwargs)

        return wrapper

    @decorator
    async def one(session, a):
        return a

    @decorator
    async def two(session, a, b):
        return a + b

    async with TaskScope(LiteSession, name="t") as scope:
        handles = [scope.spawn(one, 1), scope.spawn(two, 1, 2)]
        with pytest.raises(TypeError, match="missing a required argument: 'b'"):
            scope.spawn(two, 1)

    assert [handle.result() for handle in handles] == [1, 3]


async def test_the_signature_of_a_function_is_read_once_for_each_code(LiteSession, monkeypatch):
    """A function that is defined where it is spawned is a new one each time, and costs no new reading."""
    read = []
    real = inspect.signature
    monkeypatch.setattr(inspect, "signature", lambda *args, **kwargs: read.append(args) or real(*args, **kwargs))

    async with TaskScope(LiteSession, name="t") as scope:
        for number in range(3):

            async def work(session, number=number):
                return number

            scope.spawn(work)

    assert len([fn for fn, *_ in read if getattr(fn, "__name__", "") == "work"]) == 1


async def test_a_wrapper_around_an_isolated_function_is_not_spawned(LiteSession):
    """It takes no session; the cure is a function that does, and calls it."""

    @isolated_session(LiteSession)
    async def work(session, number):
        return number

    @functools.wraps(work)
    async def retried(*args):
        return await work(*args)

    async with TaskScope(LiteSession, name="t") as scope:
        with pytest.raises(DeclarationError) as caught:
            scope.spawn(retried, 1)
        what = "work wraps an isolated function, which opens its own session and takes none"
        why = "a spawned function is given a session as its first argument, unless it is an isolated function itself"
        assert caught.value.what.endswith(what)
        assert caught.value.why == why

        names = {"work": retried}
        exec(caught.value.cure, names)  # noqa: S102
        assert await scope.spawn(names["run_work"], 1) == 1


async def test_what_hides_in_a_plain_function_is_refused(LiteSession):
    """In its closure, its defaults, or the object that it is bound to or is."""

    class Shop:
        def __init__(self, ui_session):
            self.ui_session = ui_session

        async def method(self, session): ...

        async def __call__(self, session): ...

    async with LiteSession() as outer, TaskScope(LiteSession, name="t") as scope:

        async def closure(session):
            return outer

        async def default(session, other=outer): ...

        async def keyword(session, *, other=outer): ...

        async def innocent(session, other=1, *, another="a"): ...

        for fn in (closure, default, keyword, Shop(outer).method, Shop(outer), functools.partial(exact, number=outer)):
            with pytest.raises(SessionPassedError):
                scope.spawn(fn)
        assert await scope.spawn(innocent) is None


@pytest.mark.parametrize("method", ["commit", "execute"])
async def test_a_method_of_a_session_is_a_session_that_was_passed(LiteSession, method):
    """Whether it has parameters or not: that none of them is a session is not what is wrong with it."""
    async with LiteSession() as session, TaskScope(LiteSession, name="t") as scope:
        with pytest.raises(SessionPassedError):
            scope.spawn(getattr(session, method))


# Helpers.


def test_the_code_of_a_function_is_that_of_what_runs_in_the_end():
    """Under partials, decorators, bound methods and callable objects; it is named in warnings."""

    class Shop:
        async def method(self, session): ...

        async def __call__(self, session): ...

    class Corner(Shop):
        pass

    @functools.wraps(exact)
    async def wrapper(*args): ...

    for fn in (exact, wrapper, functools.partial(exact, 1), functools.partial(wrapper), isolated(exact)):
        assert code_of(fn) is exact.__code__
    assert code_of(Shop().method) is code_of(functools.partial(Shop().method)) is Shop.method.__code__
    assert code_of(Corner()) is Shop.__call__.__code__


def test_a_mock_is_what_its_type_says():
    """`isinstance` believes its ``__class__``."""
    mock = MagicMock(spec=AsyncSession)

    assert isinstance(mock, AsyncSession)
    assert not is_a(mock, AsyncSession)
    assert is_a(mock, MagicMock, AsyncSession)
    assert is_a(AsyncSession(), AsyncSession)


def test_the_marks_of_a_coroutine_function_are_kept():
    """A ``def`` that is marked as a coroutine function, as 3.12 allows, is one when it is decorated."""
    if not hasattr(inspect, "markcoroutinefunction"):
        pytest.skip("up to Python 3.11 there is no such mark")

    @inspect.markcoroutinefunction
    def work(session, number):
        return exact(session, number)

    assert inspect.iscoroutinefunction(isolated(work))
    assert isinstance(work, types.FunctionType)
