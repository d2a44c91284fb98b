"""``@isolated_session`` on functions, methods, classmethods and staticmethods, and what it refuses to decorate."""

from __future__ import annotations

import functools
import sys
import types

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession
from support import Item, session_maker

from sa_isolated_tasks import (
    DeclarationError,
    IsolatedClassMethod,
    IsolatedFunction,
    IsolatedMethod,
    SessionPassedError,
    TaskScope,
    _isolated,
    isolated_session,
)


async def write(session, name):
    session.add(Item(name=name))
    await session.flush()
    return session, name


def shop_with(Session):
    """A class with each kind of method, in each order of the decorators."""

    class Shop:
        sessions = staticmethod(Session)

        @isolated_session(Session)
        async def method(self, session: AsyncSession, name: str):
            return self, await write(session, name)

        @isolated_session(attribute="sessions")
        async def by_attribute(self, session: AsyncSession, name: str):
            return self, await write(session, name)

        @isolated_session(Session)
        async def bare(self, session, name):
            return self, await write(session, name)

        @isolated_session(Session)
        @classmethod
        async def class_below(cls, session: AsyncSession, name: str):
            return cls, await write(session, name)

        @classmethod
        @isolated_session(Session)
        async def class_above(cls, session: AsyncSession, name: str):
            return cls, await write(session, name)

        @isolated_session(attribute="sessions")
        @classmethod
        async def class_by_attribute(cls, session: AsyncSession, name: str):
            return cls, await write(session, name)

        @isolated_session(Session)
        @staticmethod
        async def static_below(session: AsyncSession, name: str):
            return None, await write(session, name)

        @staticmethod
        @isolated_session(Session)
        async def static_above(session: AsyncSession, name: str):
            return None, await write(session, name)

        @isolated_session(Session)
        @staticmethod
        async def static_bare(anything, name):
            return None, await write(anything, name)

    return Shop


METHODS = ("method", "by_attribute", "bare")
CLASS_METHODS = ("class_below", "class_above", "class_by_attribute")
STATIC_METHODS = ("static_below", "static_above", "static_bare")
EVERY = METHODS + CLASS_METHODS + STATIC_METHODS


def owner_of(kind, shop):
    return {**dict.fromkeys(METHODS, shop), **dict.fromkeys(CLASS_METHODS, type(shop))}.get(kind)


@pytest.mark.filterwarnings("ignore:.* returned its session")  # to look at it
async def test_a_function_is_given_a_session_of_its_own(Session, engine, names_in_table):
    """Each call runs in a new session, which is committed and closed when the call returns."""

    @isolated_session(Session)
    async def add(session: AsyncSession, name: str):
        return await write(session, name)

    first, name = await add("a")
    second, other_name = await add(name="b")

    assert (name, other_name) == ("a", "b")
    assert await names_in_table(engine) == ["a", "b"]
    assert first is not second
    assert [first.in_transaction(), second.in_transaction()] == [False, False]


@pytest.mark.parametrize("kind", EVERY)
async def test_every_kind_of_method_is_bound_to_its_owner_and_given_a_session(
    kind, LiteSession, sqlite_engine, names_in_table
):
    """On an object, a method has the object, a classmethod the class, a staticmethod neither; all have a session."""
    shop = shop_with(LiteSession)()

    owner, (session, name) = await getattr(shop, kind)("a")

    assert owner is owner_of(kind, shop)
    assert isinstance(session, AsyncSession)
    assert name == "a"
    assert await names_in_table(sqlite_engine) == ["a"]


@pytest.mark.parametrize("kind", CLASS_METHODS + STATIC_METHODS)
async def test_class_and_static_methods_are_called_on_the_class(kind, LiteSession):
    """They need no object."""
    Shop = shop_with(LiteSession)

    owner, (_, name) = await getattr(Shop, kind)(name="a")

    assert owner is (Shop if kind in CLASS_METHODS else None)
    assert name == "a"


@pytest.mark.parametrize("kind", METHODS)
async def test_a_method_is_called_on_the_class_with_the_object_first(kind, LiteSession):
    """As a function in a class is."""
    shop = shop_with(LiteSession)()

    owner, _ = await getattr(type(shop), kind)(shop, "a")

    assert owner is shop


@pytest.mark.parametrize("kind", CLASS_METHODS)
async def test_a_classmethod_of_a_subclass_is_given_the_subclass(kind, LiteSession):
    """On the subclass, on an object of it, and through ``super()``."""

    class Corner(shop_with(LiteSession)):
        @classmethod
        def parent(cls):
            return getattr(super(), kind)

    for number, fn in enumerate((getattr(Corner, kind), getattr(Corner(), kind), Corner.parent())):
        owner, _ = await fn(str(number))

        assert owner is Corner


@pytest.mark.parametrize("kind", EVERY)
async def test_every_kind_of_method_is_spawned(kind, LiteSession, sqlite_engine, names_in_table):
    """A scope takes it as it takes a function; the session comes from the decorator's factory, not from the scope's."""
    shop = shop_with(LiteSession)()

    async with TaskScope(AsyncSession, name="t", limit=1) as scope:
        owner, _ = await scope.spawn(getattr(shop, kind), "a")

    assert owner is owner_of(kind, shop)
    assert await names_in_table(sqlite_engine) == ["a"]


@pytest.mark.parametrize("kind", EVERY)
async def test_every_kind_of_method_checks_its_arguments_at_the_call(kind, LiteSession):
    """A wrong number of arguments, and a session, are refused before there is a coroutine."""
    fn = getattr(shop_with(LiteSession)(), kind)

    with pytest.raises(TypeError, match=kind):
        fn()
    with pytest.raises(TypeError, match=kind):
        fn("a", "b")
    with pytest.raises(TypeError, match=kind):
        fn(other="a")
    async with LiteSession() as session:
        with pytest.raises(SessionPassedError, match=kind):
            fn(session, "a")


@pytest.mark.parametrize("kind", METHODS)
async def test_a_session_in_the_object_of_a_method_is_refused(kind, LiteSession):
    """The object is an argument too."""
    shop = shop_with(LiteSession)()
    async with LiteSession() as shop.ui_session:
        with pytest.raises(SessionPassedError, match="ui_session"):
            getattr(shop, kind)("a")


@pytest.mark.filterwarnings("ignore:.* returned its session")  # to look at it
@pytest.mark.parametrize("kind", METHODS + CLASS_METHODS[:1] + CLASS_METHODS[2:])
async def test_an_overriding_method_calls_its_parents(kind, LiteSession, sqlite_engine, names_in_table):
    """Through ``super()``: in a session of the parent's own, or with ``in_session`` in the overriding method's."""

    class Corner(shop_with(LiteSession)):
        pass

    async def override(self, session: AsyncSession, name: str):
        parent = getattr(super(Corner, self), kind)
        await parent(name + "'s own")
        return session, await parent.in_session(session, name)

    override.__qualname__ = f"Corner.{kind}"
    decorator = isolated_session(attribute="sessions")
    setattr(Corner, kind, decorator(classmethod(override) if kind in CLASS_METHODS else override))
    session, (owner, (parents_session, _)) = await getattr(Corner(), kind)("a")

    assert session is parents_session
    assert owner is Corner if kind in CLASS_METHODS else isinstance(owner, Corner)
    assert await names_in_table(sqlite_engine) == ["a", "a's own"]


async def test_the_attribute_is_looked_up_at_each_call(LiteSession, sqlite_engine):
    """Each object has a factory of its own, and a new one is used from the next call on."""

    class Own(AsyncSession):
        pass

    class Shop:
        def __init__(self, Session):
            self.Session = Session

        @isolated_session(attribute="Session")
        async def kind(self, session: AsyncSession):
            return type(session)

    plain, own = Shop(LiteSession), Shop(lambda: Own(sqlite_engine))

    assert await plain.kind() is LiteSession.class_
    assert await own.kind() is Own
    own.Session = LiteSession
    assert await own.kind() is LiteSession.class_


async def test_the_attribute_may_be_a_method_a_slot_or_a_property(LiteSession):
    """Whatever ``self.name`` gives."""

    class Shop:
        __slots__ = ("slot",)

        def method(self):
            return LiteSession()

        @property
        def factory(self):
            return LiteSession

        @isolated_session(attribute="slot")
        async def by_slot(self, session: AsyncSession):
            return type(session)

        @isolated_session(attribute="method")
        async def by_method(self, session: AsyncSession):
            return type(session)

        @isolated_session(attribute="factory")
        async def by_property(self, session: AsyncSession):
            return type(session)

    shop = Shop()
    shop.slot = LiteSession

    assert {await shop.by_slot(), await shop.by_method(), await shop.by_property()} == {LiteSession.class_}


def test_a_missing_attribute_is_said_at_the_call():
    """With the attribute's name, and the line that is missing."""

    class Shop:
        @isolated_session(attribute="Session")
        async def work(self, session: AsyncSession): ...

    with pytest.raises(DeclarationError, match="takes its sessions from the attribute Session") as caught:
        Shop().work()

    assert caught.value.code == "SIT301"
    assert caught.value.cure == "self.Session = async_sessionmaker(engine)"


def test_an_attribute_that_is_no_factory_is_said_at_the_call():
    """A session instead of a factory, or a function that its class has made a method."""

    class Shop:
        @isolated_session(attribute="Session")
        async def work(self, session: AsyncSession): ...

    shop = Shop()
    shop.Session = AsyncSession()
    with pytest.raises(DeclarationError, match="a session, not a factory"):
        shop.work()

    Shop.Session = lambda: None
    with pytest.raises(DeclarationError, match="a function without parameters, made a method") as caught:
        Shop().work()
    assert caught.value.cure == "work = staticmethod(...)"


def test_sessions_are_watched_from_the_decoration_on(monkeypatch):
    """So that a closed one is known to be closed at the first call."""
    watched = []
    monkeypatch.setattr(_isolated, "watch_sessions", lambda: watched.append(True))

    isolated_session(AsyncSession)

    assert watched == [True]


async def test_a_decorator_is_used_more_than_once(LiteSession):
    """``isolated = isolated_session(Session)`` decorates any number of functions."""
    isolated = isolated_session(LiteSession)

    @isolated
    async def one(session: AsyncSession):
        return 1

    @isolated
    async def two(session: AsyncSession):
        return 2

    assert [await one(), await two()] == [1, 2]


async def test_a_closure_over_a_session_is_refused_at_the_call(LiteSession):
    """A function that is defined inside another one may hold what belongs to that."""
    async with LiteSession() as outer:

        @isolated_session(LiteSession)
        async def inner(session: AsyncSession):
            return outer

        with pytest.raises(SessionPassedError, match="closure 'outer'"):
            inner()


async def test_a_session_as_a_default_is_refused_at_the_call(LiteSession):
    """Of a positional and of a keyword-only parameter."""
    async with LiteSession() as outer:

        @isolated_session(LiteSession)
        async def positional(session: AsyncSession, other=outer): ...

        @isolated_session(LiteSession)
        async def keyword(session: AsyncSession, *, other=outer): ...

        for fn in (positional, keyword):
            with pytest.raises(SessionPassedError, match="defaults"):
                fn()


async def test_a_decorated_inner_function_may_use_what_is_around_it(LiteSession):
    """A closure over plain values, another isolated function and a factory is no fault."""

    @isolated_session(LiteSession)
    async def helper(session: AsyncSession):
        return 1

    @isolated_session(LiteSession)
    async def inner(session: AsyncSession, more=(1, 2)):
        async with LiteSession():
            return await helper() + sum(more)

    assert await inner() == 4


def test_the_kinds_have_types_of_their_own(LiteSession):
    """`isinstance` tells them, on the class and on an object."""
    Shop = shop_with(LiteSession)

    assert {type(vars(Shop)[name]) for name in METHODS} == {IsolatedMethod}
    assert {type(vars(Shop)[name]) for name in ("class_below", "class_by_attribute")} == {IsolatedClassMethod}
    assert {type(getattr(Shop(), name)) for name in METHODS} == {IsolatedFunction}
    assert {type(getattr(Shop, name)) for name in ("class_below", "class_by_attribute")} == {IsolatedFunction}
    assert {type(getattr(Shop, name)) for name in STATIC_METHODS} == {IsolatedFunction}


# What is refused, at decoration.


def refused(decorate, match):
    with pytest.raises(DeclarationError, match=match) as caught:
        decorate()
    error = caught.value
    assert error.code == "SIT301"
    assert isinstance(error, TypeError)
    assert error.why
    assert str(error) == (
        f"[SIT301] {error.what}\n  at:   {error.where}\n  why:  {error.why}\n  cure: {error.cure}"
        "\n  docs: docs/errors.md#sit301"
    )
    return error.cure


async def body(session: AsyncSession): ...


class Callable:
    async def __call__(self, session: AsyncSession): ...


REFUSED = {
    "nothing": (isolated_session, "was given neither", "@isolated_session(Session)"),
    "both": (
        lambda: isolated_session(AsyncSession, attribute="Session"),
        "was given both",
        "@isolated_session(Session)",
    ),
    "no factory": (
        lambda: isolated_session(body),
        "was put on body without a factory",
        "@isolated_session(Session)",
    ),
    "no factory, static": (
        lambda: isolated_session(staticmethod(body)),
        "was put on body without a factory",
        "@isolated_session(Session)",
    ),
    "isolated factory": (
        lambda: isolated_session(isolated_session(AsyncSession)(body)),
        "was given body, which is an isolated function, as its factory",
        "@isolated_session(Session)",
    ),
    "no name": (
        lambda: isolated_session(attribute="self.Session"),
        "attribute='self.Session'",
        '@isolated_session(attribute="Session")',
    ),
    "no string": (
        lambda: isolated_session(attribute=AsyncSession),
        "attribute=<class",
        '@isolated_session(attribute="Session")',
    ),
    "twice": (
        lambda: isolated_session(AsyncSession)(isolated_session(AsyncSession)(body)),
        "body is isolated already",
        "body.using(Session)",
    ),
    "twice, static": (
        lambda: isolated_session(AsyncSession)(staticmethod(isolated_session(AsyncSession)(body))),
        "body is isolated already",
        "body.using(Session)",
    ),
    "twice, wrapped": (
        lambda: isolated_session(AsyncSession)(
            functools.wraps(isolated_session(AsyncSession)(body))(lambda *args: None),
        ),
        "body is isolated already",
        "body.using(Session)",
    ),
    "twice, partial": (
        lambda: isolated_session(AsyncSession)(functools.partial(isolated_session(AsyncSession)(body), 1)),
        "body is isolated already",
        "body.using(Session)",
    ),
    "partial": (
        lambda: isolated_session(AsyncSession)(functools.partial(body, 1)),
        "body is an object of partial",
        "scope.spawn(fn, ...)",
    ),
    "callable object": (
        lambda: isolated_session(AsyncSession)(Callable()),
        "Callable is an object of Callable",
        "scope.spawn(fn, ...)",
    ),
    "classmethod of a function": (
        lambda: isolated_session(AsyncSession)(classmethod(body)),
        "body has its session in the wrong place",
        "async def body(cls, session: AsyncSession, ...): ...",
    ),
    "attribute of a function": (
        lambda: isolated_session(attribute="Session")(body),
        "body has its session in the wrong place",
        "async def body(self, session: AsyncSession, ...): ...",
    ),
    "staticmethod of a method": (
        lambda: isolated_session(AsyncSession)(staticmethod(method)),
        "method has its session in the wrong place",
        "async def method(session: AsyncSession, ...): ...",
    ),
}


async def method(self, session: AsyncSession): ...


@pytest.mark.parametrize("case", REFUSED)
def test_a_declaration_that_cannot_work_is_refused_with_its_cure(case):
    """At once, with the code SIT301, what is wrong, and a line that is right."""
    decorate, match, cure = REFUSED[case]

    assert refused(decorate, match) == cure


def test_a_method_that_does_not_say_where_its_session_is_is_refused_by_its_class():
    """Python would pass the object, and the decorator the session, as the same first parameter."""
    with pytest.raises((DeclarationError, RuntimeError)) as caught:

        class Shop:
            @isolated_session(AsyncSession)
            async def work(this, database): ...

    # Before 3.12 Python wraps what `__set_name__` raises.
    error = caught.value if sys.version_info >= (3, 12) else caught.value.__cause__
    assert isinstance(error, DeclarationError)
    assert "Shop.work does not say which of its parameters is the session" in str(error)


async def test_a_function_that_becomes_an_attribute_of_a_class_stays_a_function(LiteSession):
    """An isolated function of a module may be given to a class under any name; it is not bound."""

    @isolated_session(LiteSession)
    async def load(session, number):
        return number

    class Shop:
        work = load

    assert await Shop().work(1) == 1


async def test_a_function_of_a_module_becomes_a_method(LiteSession):
    """With ``self`` first, it may be decorated outside of any class."""

    class Shop:
        work = isolated_session(LiteSession)(method)
        bare = isolated_session(LiteSession)(bare_method)

    shop = Shop()

    assert await shop.work() is None
    assert await shop.bare(1) == (shop, 1)


async def bare_method(self, session, number):
    return self, number


async def test_a_classmethod_above_says_that_it_does_not_know_its_class(LiteSession):
    """Python 3.13 gives a bound method, whose ``using`` and ``in_session`` are those of the function in it."""
    Shop = shop_with(LiteSession)
    inside = vars(Shop)["class_above"].__func__

    with pytest.raises(TypeError, match="needs the class as its first argument"):
        inside.using(LiteSession)("a")
    async with LiteSession() as session:
        with pytest.raises(TypeError, match="needs the class as its first argument"):
            inside.in_session(session, "a")
    owner, _ = await inside.using(LiteSession)(Shop, "a")
    assert owner is Shop
    # What `Shop.class_above` is on 3.13.
    async with TaskScope(LiteSession, name="t") as scope:
        owner, _ = await scope.spawn(types.MethodType(inside, Shop), "b")
    assert owner is Shop


async def test_a_classmethod_object_is_called_with_its_class(LiteSession):
    """What stands in ``vars(Shop)`` takes the class first."""
    Shop = shop_with(LiteSession)

    owner, _ = await vars(Shop)["class_below"](Shop, "a")

    assert owner is Shop
    assert (await vars(Shop)["class_below"].__get__(Shop())("b"))[0] is Shop


async def test_the_rows_of_a_call_are_there_when_it_returns(Session, engine):
    """On every database, another connection sees them at once."""

    @isolated_session(Session)
    async def add(session: AsyncSession, name: str) -> int:
        item = Item(name=name)
        session.add(item)
        await session.flush()
        return item.id

    number = await add("a")

    async with session_maker(engine)() as session:
        assert (await session.execute(sa.select(Item.name).where(Item.id == number))).scalar_one() == "a"
