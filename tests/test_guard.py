"""
What may not be passed is found wherever it hides, before anything starts.

What has to be quiet is in *test_guard_innocents.py*, the cures are in *test_cure.py*.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import enum
import functools
import inspect
import itertools
import operator
import os
import queue
import subprocess
import sys
import types
from typing import Any

import attrs
import pydantic
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, AsyncTransaction, async_scoped_session
from sqlalchemy.orm import declarative_base, relationship, scoped_session
from support import Item, session_maker

from sa_isolated_tasks import (
    ClosedSessionError,
    InstancePassedError,
    IsolatedTasksWarning,
    SessionPassedError,
    TaskScope,
    isolated_session,
)
from sa_isolated_tasks._guard import BUDGET, Passed, check, check_call
from sa_isolated_tasks._signature import read_shape

# ---- Every way to start a unit.


class Ways:
    """Starts units in every way; remembers whether a body has run."""

    def __init__(self, factory, scope):
        self.ran = ran = []
        self.scope = scope

        async def plain(session, *args, **kwargs):
            ran.append(args)

        class Service:
            @isolated_session(factory)
            async def method(self, session, *args, **kwargs):
                ran.append(args)

            async def plain_method(self, session, *args, **kwargs):
                ran.append(args)

        isolated = isolated_session(factory)(plain)
        service = Service()
        spawn = scope.spawn
        # Lambdas, because the error has to name their lines.
        self.calls = {
            "plain": lambda *args, **kwargs: isolated(*args, **kwargs),  # noqa: PLW0108 -- see above
            "method": lambda *args, **kwargs: service.method(*args, **kwargs),  # noqa: PLW0108
            "Service.method": lambda *args, **kwargs: spawn(service.method, *args, **kwargs),
            "Service.plain_method": lambda *args, **kwargs: spawn(service.plain_method, *args, **kwargs),
            "spawned plain": lambda *args, **kwargs: spawn(plain, *args, **kwargs),
            "spawned isolated": lambda *args, **kwargs: spawn(isolated, *args, **kwargs),
            "with options": lambda *args, **kwargs: scope.options(name="x").spawn(plain, *args, **kwargs),
        }

    def refused(self, *args, kind=SessionPassedError, **kwargs):
        """The error that every way raises, at its own line, without starting anything."""
        for call in self.calls.values():
            with pytest.raises(kind) as caught:
                call(*args, **kwargs)
            error = caught.value
            line = call.__code__.co_firstlineno
            assert type(error) is kind
            assert error.where.startswith(f"{__file__}:{line}: ")
            assert error.cure
            assert (len(self.scope), self.ran) == (0, [])
        return error

    async def accepted(self, *args, **kwargs):
        """Every way runs it."""
        for call in self.calls.values():
            await call(*args, **kwargs)
        assert len(self.ran) == len(self.calls)


@pytest.fixture
async def ways(LiteSession):
    async with TaskScope(LiteSession, name="guard") as scope:
        yield Ways(LiteSession, scope)


# ---- What is found.


@contextlib.asynccontextmanager
async def fresh_session(Session):
    yield Session()


@contextlib.asynccontextmanager
async def sync_session(Session):
    yield Session().sync_session


@contextlib.asynccontextmanager
async def open_session(Session):
    async with Session() as session:
        await session.execute(sa.text("select 1"))
        yield session


@contextlib.asynccontextmanager
async def async_registry(Session):
    yield async_scoped_session(Session, scopefunc=asyncio.current_task)


@contextlib.asynccontextmanager
async def registry(Session):
    yield scoped_session(Session)


@contextlib.asynccontextmanager
async def connection(Session):
    async with Session() as session:
        yield await session.connection()


@contextlib.asynccontextmanager
async def sync_connection(Session):
    async with Session() as session:
        yield (await session.connection()).sync_connection


@contextlib.asynccontextmanager
async def connection_not_started(Session):
    async with Session() as session:
        yield AsyncConnection((await session.connection()).engine)


@contextlib.asynccontextmanager
async def transaction(Session):
    async with Session() as session:
        connection = await session.connection()
        async with connection.begin_nested() as nested:
            yield nested


@contextlib.asynccontextmanager
async def transaction_not_started(Session):
    async with Session() as session:
        yield AsyncTransaction(await session.connection())


@contextlib.asynccontextmanager
async def sync_transaction(Session):
    async with Session() as session:
        yield (await session.connection()).sync_connection.get_transaction()


@contextlib.asynccontextmanager
async def session_transaction(Session):
    async with Session() as session, session.begin() as begun:
        yield begun


@contextlib.asynccontextmanager
async def sync_session_transaction(Session):
    async with Session() as session, session.begin() as begun:
        yield begun.sync_transaction


def results(method, *stages):
    @contextlib.asynccontextmanager
    async def make(Session):
        async with Session() as session:
            result = await getattr(session, method)(sa.text("select 1 as one"))
            for stage in stages:
                result = getattr(result, stage)()
            yield result

    return make


THINGS: dict[str, tuple[Any, str]] = {
    "fresh session": (fresh_session, "a session (AsyncSession)"),
    "sync session": (sync_session, "a session (Session)"),
    "open session": (open_session, "a session (AsyncSession, in a transaction)"),
    "async registry": (async_registry, "a scoped registry (async_scoped_session)"),
    "registry": (registry, "a scoped registry (scoped_session)"),
    "connection": (connection, "a connection (AsyncConnection)"),
    "sync connection": (sync_connection, "a connection (Connection)"),
    "connection not started": (connection_not_started, "a connection (AsyncConnection)"),
    "transaction": (transaction, "a transaction (AsyncTransaction)"),
    "transaction not started": (transaction_not_started, "a transaction (AsyncTransaction)"),
    "sync transaction": (sync_transaction, "a transaction (RootTransaction)"),
    "session transaction": (session_transaction, "a transaction (AsyncSessionTransaction)"),
    "sync session transaction": (sync_session_transaction, "a transaction (SessionTransaction)"),
    "result": (results("execute"), "an open result (CursorResult)"),
    "scalars": (results("execute", "scalars"), "an open result (ScalarResult)"),
    "mappings": (results("execute", "mappings"), "an open result (MappingResult)"),
    "stream": (results("stream"), "an open result (AsyncResult)"),
    "streamed scalars": (results("stream", "scalars"), "an open result (AsyncScalarResult)"),
}


@pytest.mark.parametrize("thing", THINGS)
async def test_what_belongs_to_another_transaction_is_refused(ways, LiteSession, thing):
    """As an argument and inside of one, whichever way the unit is started, at the line of the call."""
    make, what = THINGS[thing]

    async with make(LiteSession) as found:
        direct = ways.refused(found)
        nested = ways.refused(1, {"ctx": types.SimpleNamespace(session=found)})

    assert direct.what.partition(" was given ")[2] == f"{what}: arg 1"
    assert nested.what.partition(" was given ")[2] == f"{what}: arg 2 -> ['ctx'].session"


async def test_a_subclass_of_a_session_is_refused(ways, LiteSession, sqlite_engine):
    """A project's own session class, or that of another library."""

    class OurSession(AsyncSession):
        pass

    assert "a session (OurSession): arg 1" in str(ways.refused(OurSession(sqlite_engine)))


async def test_a_query_is_refused_for_its_session(ways, LiteSession):
    """The legacy query object keeps its session in an attribute."""
    query = LiteSession().sync_session.query(Item)

    assert ways.refused(query).what.endswith("a session (Session): arg 1 -> .session")


# ---- Where it is found. Each case is what is passed, made from the session, and the path to it.


@dataclasses.dataclass
class Data:
    other: Any
    number: int = 1


@dataclasses.dataclass(frozen=True, slots=True)
class FrozenSlots:
    other: Any


@attrs.define
class Attrs:
    other: Any
    _private: Any = None


@attrs.frozen(slots=False)
class FrozenAttrs:
    other: Any


class Model(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(arbitrary_types_allowed=True, extra="allow")
    field: Any = None
    _private: Any = pydantic.PrivateAttr(default=None)

    def having_private(self, value):
        self._private = value
        return self


class Slots:
    __slots__ = ("__mangled", "empty", "other")

    def __init__(self, other=None, mangled=None):
        self.other = other
        self.__mangled = mangled


class SubSlots(Slots):
    __slots__ = ("__dict__", "more")


class Plain:
    def __init__(self, other=None):
        self.other = other

    def method(self): ...

    @functools.cached_property
    def cached(self):
        return self.__dict__["other"]


class Named(collections.namedtuple("Named", "first other")):
    __slots__ = ()


class MyList(list):
    """One whose own methods hide what is in it."""

    def __iter__(self):
        return iter(())

    def __len__(self):
        return 0


class MyDict(dict):
    def items(self):
        return {}.items()


class MyTuple(tuple):
    __slots__ = ()


def member_of_an_enum(session):
    return enum.Enum("Kind", {"one": types.SimpleNamespace(other=session)}).one


async def coroutine_function(session, number=1, /, *args, key=None, **kwargs): ...


def generator_function(session):
    yield session


async def async_generator_function(session):
    yield session


def closure_over(session):
    async def inner():
        return session

    return inner


def decorated(function):
    @functools.wraps(function)
    def wrapper(*args):
        return function(*args)

    return wrapper


def half_filled(found):
    def inner():
        return later, session  # noqa: F821 -- not bound any more

    session = found
    later = None
    del later
    return inner


def default_of(session):
    def function(number, other=session): ...

    return function


def keyword_default_of(session):
    def function(*, other=session): ...

    return function


def cyclic(session):
    one, two = Plain(), Plain()
    one.other, two.other = two, {"back": one, "session": session}
    return one


def raised_from(cause):
    error = ValueError("outer")
    error.__cause__ = cause
    return error


def raised_beside(context):
    error = ValueError("outer")
    error.__context__ = context
    return error


def having(target, **attributes):
    target.__dict__.update(attributes)
    return target


def filled(target, value):
    target.put_nowait(value)
    return target


SHAPES = {
    # Those of the contract.
    "list": (lambda s: [1, s], "[1]"),
    "tuple": (lambda s: (1, 2, s), "[2]"),
    "set": (lambda s: {1, s}, "{...}"),
    "frozenset": (lambda s: frozenset({s}), "{...}"),
    "dict value": (lambda s: {"ctx": s}, "['ctx']"),
    "dict key": (lambda s: {s: 1}, ".keys()"),
    "default dict value": (lambda s: collections.defaultdict(list, a=s), "['a']"),
    "default factory": (
        lambda s: collections.defaultdict(closure_over(s)),
        ".default_factory closure 'session'",
    ),
    "cause": (lambda s: raised_from(KeyError(s)), ".__cause__.args[0]"),
    "context": (lambda s: raised_beside(raised_from(KeyError(s))), ".__context__.__cause__.args[0]"),
    "dataclass": (Data, ".other"),
    "frozen dataclass with slots": (FrozenSlots, ".other"),
    "attrs": (Attrs, ".other"),
    "attrs private": (lambda s: Attrs(None, s), "._private"),
    "frozen attrs": (FrozenAttrs, ".other"),
    "pydantic field": (lambda s: Model(field=s), ".field"),
    "pydantic private attribute": (lambda s: Model().having_private(s), "._private"),
    "pydantic extra": (lambda s: Model(more=s), ".more"),
    "slots": (Slots, ".other"),
    "mangled slot": (lambda s: Slots(None, s), "._Slots__mangled"),
    "inherited slots": (SubSlots, ".other"),
    "dict beside slots": (lambda s: having(SubSlots(), mine=s), ".mine"),
    "partial": (lambda s: functools.partial(print, 1, s), ".args[1]"),
    "partial keyword": (lambda s: functools.partial(print, file=s), ".keywords['file']"),
    "partial function": (lambda s: functools.partial(closure_over(s)), ".func closure 'session'"),
    "closure": (closure_over, "closure 'session'"),
    "closure beside an empty cell": (half_filled, "closure 'session'"),
    "lambda": (lambda s: lambda: s, "closure 's'"),
    "default": (default_of, "defaults['other']"),
    "keyword default": (keyword_default_of, "defaults['other']"),
    "bound method": (lambda s: Plain(s).method, "self.other"),
    "object": (Plain, ".other"),
    # Combinations.
    "nested": (lambda s: {"ctx": [Data((s,))]}, "['ctx'][0].other[0]"),
    "decorated function": (lambda s: decorated(closure_over(s)), "closure 'function' closure 'session'"),
    "method of a list": (lambda s: [s].append, "self[0]"),
    "method of a dict": (lambda s: {"a": s}.get, "self['a']"),
    "operator of a list": (lambda s: [s].__len__, "self[0]"),
    "method of the session": (lambda s: s.add, "self"),
    "cycle": (cyclic, ".other.other['session']"),
    "key that is a tuple": (lambda s: {(1, s): 2}, ".keys()[1]"),
    "key of no literal": (lambda s: {Plain: s}, "[<type>]"),
    "long key": (lambda s: {"x" * 99: s}, "[<str>]"),
    # Kinds of containers.
    "defaultdict": (lambda s: collections.defaultdict(list, ctx=s), "['ctx']"),
    "OrderedDict": (lambda s: collections.OrderedDict(ctx=s), "['ctx']"),
    "Counter": (lambda s: collections.Counter({s: 1}), ".keys()"),
    "UserDict": (lambda s: collections.UserDict(ctx=s), ".data['ctx']"),
    "UserList": (lambda s: collections.UserList([s]), ".data[0]"),
    "ChainMap": (lambda s: collections.ChainMap({}, {"ctx": s}), ".maps[1]['ctx']"),
    "named tuple": (lambda s: Named(1, s), ".other"),
    "deque": (lambda s: collections.deque([1, s]), "[1]"),
    "mapping proxy": (lambda s: types.MappingProxyType({"ctx": s}), "<mappingproxy>['ctx']"),
    "namespace": (lambda s: types.SimpleNamespace(other=s), ".other"),
    "values": (lambda s: {"ctx": s}.values(), "<dict_values>['ctx']"),
    "items": (lambda s: {"ctx": s}.items(), "<dict_items>['ctx']"),
    "keys": (lambda s: {s: 1}.keys(), "<dict_keys>.keys()"),
    "ordered values": (lambda s: collections.OrderedDict(ctx=s).values(), "<odict_values>['ctx']"),
    "list with methods of its own": (lambda s: MyList([s]), "[0]"),
    "dict with methods of its own": (lambda s: MyDict(ctx=s), "['ctx']"),
    "tuple of another class": (lambda s: MyTuple([s]), "[0]"),
    "attribute of a list": (lambda s: having(MyList(), other=s), ".other"),
    "attribute of a function": (lambda s: having(decorated(print), other=s), ".other"),
    "enum": (member_of_an_enum, "._value_.other"),
    "asyncio queue": (lambda s: filled(asyncio.Queue(), s), "._queue[0]"),
    "queue": (lambda s: filled(queue.Queue(), s), ".queue[0]"),
    "simple queue": (lambda s: filled(queue.SimpleQueue(), s), ("<SimpleQueue>", "<SimpleQueue>[0]")),
    "null context": (contextlib.nullcontext, ".enter_result"),
    "context manager": (
        contextlib.contextmanager(generator_function),
        ".gen un-started generator generator_function() variable 'session'",
    ),
    "cached property": (lambda s: having(Plain(), cached=s), ".cached"),
    "partialmethod": (lambda s: functools.partialmethod(print, s), ".args[0]"),
    "exception": (lambda s: ValueError("x", s), ".args[1]"),
    "staticmethod": (lambda s: staticmethod(closure_over(s)), "<staticmethod> closure 'session'"),
    "methodcaller": (lambda s: operator.methodcaller("add", s), ("<methodcaller>[0]", "<methodcaller>[1]")),
    # Lazy ones.
    "list iterator": (lambda s: iter([s]), "<list_iterator>[0]"),
    "reversed": (lambda s: reversed([s]), "<list_reverseiterator>[0]"),
    "tuple iterator": (lambda s: iter((s,)), "<tuple_iterator>[0]"),
    "set iterator": (lambda s: iter({s}), "<set_iterator>{...}"),
    "dict iterator": (lambda s: iter({s: 1}), "<dict_keyiterator>.keys()"),
    "deque iterator": (lambda s: iter(collections.deque([s])), "<_deque_iterator>[0]"),
    "map": (lambda s: map(str, [s]), ("<map>[0]<list_iterator>[0]", "<map><tuple_iterator>[0]")),
    "zip": (lambda s: zip([s], strict=False), "<zip>[0]<list_iterator>[0]"),
    "enumerate": (lambda s: enumerate([s]), "<enumerate><list_iterator>[0]"),
    "chain": (lambda s: itertools.chain([s]), "<chain><tuple_iterator>[0][0]"),
    "repeat": (itertools.repeat, "<repeat>"),
    "call iterator": (lambda s: iter(closure_over(s), None), "<callable_iterator> closure 'session'"),
    "generator expression": (
        lambda s: (x for x in (s, 1)),
        "un-started generator <genexpr>() variable '.0'<tuple_iterator>[0]",
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
async def test_a_session_is_found_wherever_it_hides(ways, LiteSession, shape):
    """The error names the exact path."""
    make, paths = SHAPES[shape]
    session = LiteSession()

    positional = ways.refused(make(session))
    keyword = ways.refused(0, key=make(session))

    # Where two are given it depends on the version of Python.
    paths = (paths,) if isinstance(paths, str) else paths
    what = "plain() was given a session (AsyncSession): "
    assert positional.what in {f"{what}arg 1 -> {path}" for path in paths}
    assert keyword.what in {f"{what}arg 'key' -> {path}" for path in paths}


@pytest.mark.parametrize("shape", sorted(SHAPES.keys() - {"method of the session"}))
async def test_the_same_shape_without_a_session_passes(ways, shape):
    """It is the session that is refused, not what holds it."""
    make, _ = SHAPES[shape]

    await ways.accepted(make("no session"))


UNSTARTED = {
    "coroutine": (coroutine_function, "session", lambda f, s: f(s)),
    "coroutine keyword": (coroutine_function, "key", lambda f, s: f(1, key=s)),
    "generator": (generator_function, "session", lambda f, s: f(s)),
    "async generator": (async_generator_function, "session", lambda f, s: f(s)),
}


@pytest.mark.parametrize("case", UNSTARTED)
async def test_a_session_is_found_in_what_has_not_begun_to_run(ways, LiteSession, case):
    """A coroutine, a generator, an async generator: an argument of it is an argument."""
    function, variable, make = UNSTARTED[case]
    lazy = make(function, LiteSession())

    error = ways.refused([lazy])

    word = case.removesuffix(" keyword")
    assert error.what.endswith(f": arg 1 -> [0] un-started {word} {function.__name__}() variable {variable!r}")
    if inspect.iscoroutine(lazy):
        lazy.close()


async def test_further_arguments_of_a_coroutine_are_looked_into(ways, LiteSession):
    """Those that were given to ``*args`` and ``**kwargs``, and the closure."""
    session = LiteSession()
    cases = [
        (coroutine_function(1, 2, 3, session), "un-started coroutine coroutine_function() variable 'args'[1]"),
        (coroutine_function(1, a=session), "un-started coroutine coroutine_function() variable 'kwargs'['a']"),
        (closure_over(session)(), "un-started coroutine inner() variable 'session'"),
    ]

    for coroutine, path in cases:
        assert ways.refused(coroutine).what.endswith(f": arg 1 -> {path}")
        coroutine.close()


async def test_a_row_of_instances_is_looked_into(ways, LiteSession):
    """A row is no tuple, and holds attached instances as one."""
    async with LiteSession() as session:
        session.add(Item(name="a"))
        await session.commit()
        row = (await session.execute(sa.select(Item, Item.name))).one()
        values = (await session.execute(sa.select(Item.name, Item.id))).one()

        by_position = ways.refused(row, kind=InstancePassedError)
        by_name = ways.refused(row._mapping, kind=InstancePassedError)
        await ways.accepted(values)

    assert by_position.what.endswith("attached to another session: arg 1 -> [0]")
    assert by_name.what.endswith("attached to another session: arg 1 -> ['Item']")


# ---- In the function itself.


async def test_a_session_in_the_function_is_refused(ways, LiteSession):
    """In its closure, a default, a partial's arguments or the object of a method; also of isolated functions."""
    session = LiteSession()
    scope = ways.scope

    async def closure(own, number):
        await session.flush()

    async def default(own, number, other=session): ...

    async def keyword_default(own, number, *, other=session): ...

    async def own_first(own, number): ...

    class Service:
        def __init__(self):
            self.parts = {"db": session}

        async def plain(self, session, number): ...

        @isolated_session(LiteSession)
        async def isolated(self, session, number): ...

        async def __call__(self, session, number): ...

    cases = {
        "closure -> closure 'session'": (lambda: scope.spawn(closure, 1), isolated_session(LiteSession)(closure)),
        "default -> defaults['other']": (lambda: scope.spawn(default, 1), isolated_session(LiteSession)(default)),
        "keyword_default -> defaults['other']": (
            lambda: scope.spawn(keyword_default, 1),
            isolated_session(LiteSession)(keyword_default),
        ),
        "own_first -> .args[0]": (lambda: scope.spawn(functools.partial(own_first, session), 1), None),
        "own_first -> .keywords['number']": (lambda: scope.spawn(functools.partial(own_first, number=session)), None),
        "Service.plain -> self.parts['db']": (lambda: scope.spawn(Service().plain, 1), None),
        "isolated -> self.parts['db']": (lambda: scope.spawn(Service().isolated, 1), Service().isolated),
        "Service -> .parts['db']": (lambda: scope.spawn(Service(), 1), None),
    }
    for path, (spawn, isolated) in cases.items():
        with pytest.raises(SessionPassedError) as caught:
            spawn()
        assert caught.value.what.endswith(f"a session (AsyncSession): {path}")
        assert caught.value.where.startswith(f"{__file__}:")
        if isolated is not None:
            with pytest.raises(SessionPassedError) as caught:
                isolated(1)
            assert caught.value.what.endswith(f"a session (AsyncSession): {path}")
    assert len(scope) == 0


async def test_arguments_are_looked_at_before_the_function(ways, LiteSession):
    """What is nearest to the call is named first."""
    session = LiteSession()

    async def closure(own, number):
        await session.flush()

    with pytest.raises(SessionPassedError) as caught:
        ways.scope.spawn(closure, session)

    assert caught.value.what.endswith(": arg 1")


async def test_one_argument_too_many_is_the_founding_mistake(LiteSession):
    """The session in front of the arguments: it is said that it is one, not that the arguments do not fit."""

    async def two(session, first, second): ...

    isolated = isolated_session(LiteSession)(two)
    session = LiteSession()
    async with TaskScope(LiteSession, name="t") as scope:
        for call in (
            lambda: isolated(session, 1, 2),
            lambda: scope.spawn(two, session, 1, 2),
            lambda: isolated(1, 2, session=session),
            lambda: isolated(1, 2, other=session),
        ):
            with pytest.raises(SessionPassedError):
                call()
        assert len(scope) == 0


# ---- What is known about a session.


async def closed_session(Session):
    async with Session() as session:
        await session.execute(sa.text("select 1"))
    return session


async def closed_without_transaction(Session):
    session = Session()
    await session.execute(sa.text("select 1"))
    await session.commit()
    await session.close()
    return session


async def closed_twice(Session):
    session = await closed_session(Session)
    await session.close()
    return session


async def rolled_back_and_closed(Session):
    async with Session() as session:
        await session.execute(sa.text("select 1"))
        await session.rollback()
    return session


async def invalidated(Session):
    session = Session()
    await session.execute(sa.text("select 1"))
    await session.invalidate()
    return session


async def fresh(Session):
    return Session()


async def closed_before_any_work(Session):
    async with Session() as session:
        return session


async def idle(Session):
    session = Session()
    await session.execute(sa.text("select 1"))
    await session.commit()
    return session


async def expunged_inside(Session):
    """``expunge_all()`` replaces the identity map, as ``close()`` does."""
    session = Session()
    await session.execute(sa.text("select 1"))
    session.expunge_all()
    await session.rollback()
    return session


async def leaked_by_a_unit(Session):
    """Empty when the unit ended, and not closed by a call; it counts as closed."""

    @isolated_session(Session)
    async def give_away(session: AsyncSession):
        await session.execute(sa.text("select 1"))
        leaked.append(session)

    leaked = []
    await give_away()
    return leaked[0]


async def begun(Session):
    session = Session()
    await session.execute(sa.text("select 1"))
    return session


async def reopened(Session):
    session = await closed_session(Session)
    await session.execute(sa.text("select 1"))
    return session


async def reopened_and_closed(Session):
    session = await reopened(Session)
    await session.close()
    return session


CLOSED = "a session (AsyncSession) that was closed, or emptied, since its last transaction"
PHASES = {
    closed_session: CLOSED,
    closed_without_transaction: CLOSED,
    closed_twice: CLOSED,
    rolled_back_and_closed: CLOSED,
    invalidated: CLOSED,
    reopened_and_closed: CLOSED,
    leaked_by_a_unit: CLOSED,
    fresh: "a session (AsyncSession)",
    closed_before_any_work: "a session (AsyncSession)",
    idle: "a session (AsyncSession, between two transactions)",
    expunged_inside: "a session (AsyncSession, between two transactions)",
    begun: "a session (AsyncSession, in a transaction)",
    reopened: "a session (AsyncSession, closed, and in use again)",
}


@pytest.mark.parametrize("make", PHASES, ids=lambda make: make.__name__)
async def test_a_closed_session_is_told_from_others(ways, LiteSession, make):
    """Where it is not known that it is closed, the message does not claim it."""
    expected = PHASES[make]
    kind = ClosedSessionError if expected is CLOSED else SessionPassedError
    session = await make(LiteSession)

    error = ways.refused(session, kind=kind)
    sync = ways.refused(session.sync_session, kind=kind)

    await session.close()
    assert error.what == f"plain() was given {expected}: arg 1"
    assert sync.what == f"plain() was given {expected.replace('AsyncSession', 'Session')}: arg 1"
    assert error.code == ("SIT102" if expected is CLOSED else "SIT101")
    assert ("closed" in error.what) == (expected is CLOSED or make is reopened)


async def test_what_else_has_ended_is_closed(ways, LiteSession):
    """A connection that was closed, a transaction that has ended, of both kinds."""
    async with LiteSession() as session:
        engine = (await session.connection()).engine
    async with engine.connect() as sync, LiteSession() as session:
        connection = AsyncConnection(engine)
        await connection.start()
        nested = await connection.begin()
        await nested.rollback()
        await connection.close()
        ended = await session.begin()
        inner = ended.sync_transaction
        await ended.commit()
        del sync

    names = {
        "a closed connection (AsyncConnection)": connection,
        "a closed connection (Connection)": connection.sync_connection or nested.sync_transaction.connection,
        "a transaction that has ended (AsyncTransaction)": nested,
        "a transaction that has ended (RootTransaction)": nested.sync_transaction,
        "a transaction that has ended (AsyncSessionTransaction)": ended,
        "a transaction that has ended (SessionTransaction)": inner,
    }
    for what, value in names.items():
        assert ways.refused(value, kind=ClosedSessionError).what == f"plain() was given {what}: arg 1"


@pytest.mark.parametrize("thing", ["result", "scalars", "mappings", "stream", "streamed scalars"])
async def test_a_closed_result_passes(ways, LiteSession, thing):
    """It holds no connection any more."""
    async with THINGS[thing][0](LiteSession) as result:
        closing = result.close()
        if inspect.isawaitable(closing):
            await closing

    await ways.accepted(result)


# ---- Mapped instances.


ModelBase = declarative_base()


class Parent(ModelBase):
    """With a lazy relationship and a column that is expired by every update."""

    __tablename__ = "guard_parents"

    id = sa.Column(sa.Integer, primary_key=True)
    name = sa.Column(sa.String(20))
    changed = sa.Column(sa.DateTime, server_default=sa.func.now(), onupdate=sa.func.now())
    children = relationship("Child", backref="parent")


class Child(ModelBase):
    __tablename__ = "guard_children"

    id = sa.Column(sa.Integer, primary_key=True)
    parent_id = sa.Column(sa.ForeignKey(Parent.id))


@pytest.fixture
async def Keeping(sqlite_engine):
    """A factory whose sessions do not expire on commit."""
    async with sqlite_engine.begin() as connection:
        await connection.run_sync(ModelBase.metadata.drop_all)
        await connection.run_sync(ModelBase.metadata.create_all)
    return session_maker(sqlite_engine, expire_on_commit=False)


async def attached(Session):
    session = Session()
    session.add(Parent(name="a"))
    await session.commit()
    return (await session.execute(sa.select(Parent))).scalars().one(), session


async def attached_and_expired(Session):
    parent, session = await attached(Session)
    session.expire(parent)
    return parent, session


async def pending(Session):
    session = Session()
    parent = Parent(name="a")
    session.add(parent)
    return parent, session


async def detached_and_expired(Session):
    parent, session = await attached_and_expired(Session)
    await session.close()
    return parent, session


async def transient(Session):
    return Parent(name="a"), Session()


async def detached_and_loaded(Session):
    parent, session = await attached(Session)
    await session.close()
    return parent, session


async def detached_after_an_update(Session):
    """``onupdate`` leaves one attribute expired."""
    parent, session = await attached(Session)
    parent.name = "b"
    await session.commit()
    await session.close()
    return parent, session


async def detached_after_an_insert(Session):
    """``server_default`` leaves one attribute to be loaded."""
    session = Session()
    parent = Parent(name="a")
    session.add(parent)
    await session.commit()
    await session.close()
    return parent, session


REFUSED_INSTANCES = {
    attached: "attached to another session",
    attached_and_expired: "attached to another session",
    pending: "attached to another session",
    detached_and_expired: "detached and expired",
}


@pytest.mark.parametrize("make", REFUSED_INSTANCES, ids=lambda make: make.__name__)
async def test_an_instance_of_another_session_is_refused(ways, Keeping, make):
    """Attached, or with nothing left to read; as an argument or inside of one, and nothing is loaded."""
    parent, session = await make(Keeping)
    before = dict(vars(parent))

    error = ways.refused(parent, kind=InstancePassedError)
    nested = ways.refused({"items": [parent]}, kind=InstancePassedError)

    assert error.what == f"plain() was given an instance of Parent that is {REFUSED_INSTANCES[make]}: arg 1"
    assert nested.what.endswith("arg 1 -> ['items'][0]")
    assert vars(parent) == before
    assert error.code == "SIT103"
    await session.close()


@pytest.mark.parametrize(
    "make",
    [transient, detached_and_loaded, detached_after_an_update, detached_after_an_insert],
    ids=lambda make: make.__name__,
)
async def test_an_instance_that_can_be_read_passes(ways, Keeping, make):
    """Transient, or loaded and detached, even if single attributes are expired; and nothing is loaded."""
    parent, session = await make(Keeping)
    before = dict(vars(parent))

    await ways.accepted(parent, {"items": [parent]})

    assert vars(parent) == before
    await session.close()


WAYS_TO_AN_INSTANCE = {
    "its state": (lambda instance, _: sa.inspect(instance), "the state of an instance of Parent", ""),
    "an attribute of its state": (
        lambda instance, _: sa.inspect(instance).attrs.name,
        "the state of an instance of Parent",
        " -> .state",
    ),
    "its variables": (
        lambda instance, _: vars(instance),
        "the state of an instance of Parent",
        " -> ['_sa_instance_state']",
    ),
    "the identity map": (
        lambda _, session: session.identity_map,
        "the state of an instance of Parent",
        " -> ._dict[<tuple>]",
    ),
    "what is dirty": (lambda _, session: session.dirty, "an instance of Parent", " -> {...}"),
    "what is new": (lambda _, session: session.new, "an instance of Child", " -> {...}"),
}


@pytest.mark.parametrize("way", WAYS_TO_AN_INSTANCE)
async def test_what_leads_to_an_instance_is_judged_as_it_is(ways, Keeping, way):
    """State, variables and collections of a session: refused on their own and inside of others, but for its own."""
    make, what, path = WAYS_TO_AN_INSTANCE[way]
    parent, session = await attached(Keeping)
    parent.name = "changed"
    session.add(Child())
    given = make(parent, session)

    direct = ways.refused(given, kind=InstancePassedError)
    nested = [ways.refused(each, kind=InstancePassedError).what for each in ([given], (given,), {"a": given})]

    assert direct.what == f"plain() was given {what} that is attached to another session: arg 1{path}"
    step = path.removeprefix(" -> ")
    assert [each.partition("arg 1")[2] for each in nested] == [
        f" -> [0]{step}",
        f" -> [0]{step}",
        f" -> ['a']{step}",
    ]
    check(Passed("f", (given,), {}, own=session))
    await session.close()


async def test_the_state_of_an_instance_that_is_expired_and_detached_is_refused(ways, Keeping):
    """There is nothing left to read by it, as by the instance."""
    parent, _ = await detached_and_expired(Keeping)

    error = ways.refused(sa.inspect(parent), kind=InstancePassedError)

    assert error.what.endswith("the state of an instance of Parent that is detached and expired: arg 1")


async def test_what_leads_to_no_instance_of_a_session_passes(ways, Keeping):
    """The state and the variables of detached and transient instances, and the collections of an empty session."""
    parent, _ = await detached_and_loaded(Keeping)
    session = Keeping()

    await ways.accepted(
        sa.inspect(parent), vars(parent), sa.inspect(Parent()), session.identity_map, session.new, session.dirty
    )


async def test_an_instance_is_found_behind_one_that_passes(ways, Keeping):
    """A transient parent whose child is attached; the collection's own bookkeeping is not looked into."""
    async with Keeping() as session:
        child = Child()
        session.add(child)
        await session.commit()
        parent = Parent(name="a")
        with session.no_autoflush:
            parent.__dict__["children"] = [child]

        error = ways.refused(parent, kind=InstancePassedError)

    assert error.what.endswith("an instance of Child that is attached to another session: arg 1 -> .children[0]")


async def test_a_loaded_graph_that_is_detached_passes(ways, Keeping):
    """With its collections."""
    async with Keeping() as session:
        session.add(Parent(name="a", children=[Child(), Child()]))
        await session.commit()
        parent = (await session.execute(sa.select(Parent))).scalars().one()
        await session.execute(sa.select(Child))
        session.expunge_all()

    await ways.accepted(parent)

    assert len(vars(parent)["children"]) == 2


# ---- What the user decides.


async def test_a_warning_in_place_of_the_error(LiteSession):
    """``guard="warn"``: the unit runs, and the warning has the text of the error and stands at the line of the call."""
    session = LiteSession()

    async def work(own, other):
        return other is session

    async with TaskScope(LiteSession, name="t") as scope:
        with pytest.warns(IsolatedTasksWarning) as caught:
            handle = scope.options(guard="warn").spawn(work, session)
        with pytest.raises(SessionPassedError) as error:
            scope.spawn(work, session)

        assert await handle
    (warning,) = caught
    assert warning.filename == __file__
    assert str(warning.message).splitlines()[0] == str(error.value).splitlines()[0]
    assert f"{__file__}:{warning.lineno}: handle = " in str(warning.message)


async def test_a_warning_does_not_hide_arguments_that_do_not_fit(LiteSession):
    """One too many is still an error, after the warning."""

    async def work(own, other): ...

    async with TaskScope(LiteSession, name="t") as scope:
        with pytest.warns(IsolatedTasksWarning), pytest.raises(TypeError, match="too many positional arguments"):
            scope.options(guard="warn").spawn(work, LiteSession(), 1)


async def test_no_check(LiteSession):
    """``guard="off"``: nothing is looked at, closed or not, and there is no warning."""
    session = await closed_session(LiteSession)

    async def work(own, other, key=None):
        return other is session

    async with TaskScope(LiteSession, name="t") as scope:
        unguarded = scope.options(guard="off")

        assert await unguarded.spawn(work, session)
        assert not await unguarded.spawn(work, [session], key=session)


@pytest.mark.parametrize("given", [("ui_session",), "ui_session", ["other", "ui_session"], {"ui_session"}])
async def test_a_class_keeps_an_attribute_for_other_purposes(ways, LiteSession, given):
    """``__isolated_tasks_ignore__``, one name or several; what a subclass adds is added; the rest is looked at."""

    class Window:
        __isolated_tasks_ignore__ = given

        def __init__(self):
            self.ui_session = LiteSession()

    class Sub(Window):
        __isolated_tasks_ignore__ = ("more",)

        def __init__(self):
            super().__init__()
            self.more = {"s": LiteSession()}
            self.rest = None

    window, sub = Window(), Sub()

    await ways.accepted(window, [sub], key=sub)

    ways.ran.clear()
    sub.rest = LiteSession()
    assert ways.refused(sub).what.endswith("arg 1 -> .rest")


IGNORING = {
    "slots": type("S", (), {"__slots__": ("kept",), "__isolated_tasks_ignore__": ("kept",)}),
    "dataclass": dataclasses.make_dataclass("D", ["kept"], namespace={"__isolated_tasks_ignore__": ("kept",)}),
    "attrs": attrs.make_class("A", ["kept"], class_body={"__isolated_tasks_ignore__": ("kept",)}),
    "named tuple": type("N", (collections.namedtuple("N", "kept"),), {"__isolated_tasks_ignore__": ("kept",)}),
}


class IgnoringModel(pydantic.BaseModel):
    __isolated_tasks_ignore__ = ("kept", "_kept")

    model_config = pydantic.ConfigDict(arbitrary_types_allowed=True)
    kept: Any = None
    _kept: Any = pydantic.PrivateAttr(default=None)


@pytest.mark.parametrize("kind", [*IGNORING, "pydantic"])
async def test_every_kind_of_class_can_keep_one(ways, LiteSession, kind):
    """Slots, dataclasses, attrs, named tuples, fields and private attributes of pydantic."""
    if kind == "slots":
        kept = IGNORING[kind]()
        kept.kept = LiteSession()
    elif kind == "pydantic":
        kept = IgnoringModel(kept=LiteSession())
        kept._kept = LiteSession()
    else:
        kept = IGNORING[kind](LiteSession())

    await ways.accepted(kept)


async def test_an_error_for_an_attribute_mentions_the_way_out(ways, LiteSession):
    """The cure of an attribute names ``__isolated_tasks_ignore__`` and the class."""
    for holder in (Plain(LiteSession()), Data(LiteSession()), Slots(LiteSession())):
        cure = ways.refused(holder).cure
        assert '__isolated_tasks_ignore__ = ("other",)' in cure
        assert f"in class {type(holder).__name__}" in cure


async def test_the_session_of_in_session_may_be_passed(LiteSession):
    """It is the caller's on purpose, and so are its instances; another session and its instances are refused."""

    @isolated_session(LiteSession)
    async def work(session, other):
        return other

    async with LiteSession() as own, LiteSession() as another:
        item, stranger = Item(name="a"), Item(name="b")
        own.add(item)
        another.add(stranger)

        for passed in (own, own.sync_session, item, {"s": own, "i": [item]}):
            assert await work.in_session(own, passed) is passed
        with pytest.raises(SessionPassedError):
            work.in_session(own, another)
        with pytest.raises(InstancePassedError):
            work.in_session(own, stranger)


@pytest.mark.parametrize("kind", ["async registry", "sync registry", "session", "sync session"])
async def test_what_in_session_is_given_is_known_for_its_session(LiteSession, kind):
    """A registry stands for its current session: that and its instances may be passed, and no other."""
    async with LiteSession() as own, LiteSession() as another:
        given = {
            "async registry": async_scoped_session(lambda: own, scopefunc=asyncio.current_task),
            "sync registry": scoped_session(lambda: own.sync_session),
            "session": own,
            "sync session": own.sync_session,
        }[kind]
        item, stranger = Item(name="a"), Item(name="b")
        own.add(item)
        another.add(stranger)

        check(Passed("f", (item, [own], own.sync_session), {}, own=given))
        with pytest.raises(SessionPassedError):
            check(Passed("f", (another,), {}, own=given))
        with pytest.raises(InstancePassedError) as caught:
            check(Passed("f", (stranger,), {}, own=given))

    assert "unit has a session of its own" not in caught.value.cure


async def test_a_double_for_a_session_makes_nothing_welcome(LiteSession):
    """A unit test may give ``in_session`` anything; a session is refused all the same."""
    with pytest.raises(SessionPassedError):
        check(Passed("f", (LiteSession(),), {}, own=types.SimpleNamespace(sync_session=1)))


async def test_sessions_of_a_scope_are_welcome(ways, LiteSession):
    """A scope, a view of it, a handle and an isolated function may be arguments, although they know sessions."""

    async def idle(session): ...

    handle = ways.scope.spawn(idle)

    isolated = isolated_session(LiteSession)(idle)
    await ways.accepted(ways.scope, ways.scope.options(name="x"), handle, isolated, {"all": [ways.scope, isolated]})
    await handle


# ---- Arguments that do not fit.


async def no_defaults(session, a, b): ...
async def some_defaults(session, a, b=1): ...
async def keyword_only(session, a, *, b, c=3): ...
async def positional_only(session, a, /, b): ...
async def variadic(session, a, *args, **kwargs): ...


CALLS = [((), {}), ((1,), {}), ((1, 2), {}), ((1, 2, 3), {}), ((), {"a": 1}), ((1,), {"a": 1}), ((1,), {"b": 2})]
CALLS += [((), {"a": 1, "b": 2}), ((1, 2), {"b": 2}), ((1,), {"b": 2, "c": 3}), ((1,), {"b": 2, "x": 3})]
CALLS += [((1,), {"args": 2}), ((1,), {"kwargs": 2}), ((1,), {"b": 2, "args": 1})]


@pytest.mark.parametrize(("args", "kwargs"), CALLS)
@pytest.mark.parametrize("fn", [no_defaults, some_defaults, keyword_only, positional_only, variadic])
def test_arguments_fit_when_python_says_so(fn, args, kwargs):
    """Whatever way is the quick one, the answer is that of ``inspect.Signature.bind``."""
    shape = read_shape(fn)
    try:
        shape.signature.bind(*args, **kwargs)
        expected = ""
    except TypeError as error:
        expected = f"{fn.__name__}() {error}"

    try:
        check_call(Passed(fn.__name__, args, kwargs), shape, shape.signature, "raise")
        got = ""
    except TypeError as error:
        got = str(error)

    assert got == expected


# ---- Cost and bounds.


COST = """
import timeit
from sa_isolated_tasks._guard import Passed, check_call
from sa_isolated_tasks._signature import read_shape

async def work(session, first, second): ...

shape = read_shape(work)
signature, args, kwargs = shape.signature, {args}, {kwargs}

def call():
    check_call(Passed("work", args, kwargs, None, 1), shape, signature, "raise")

def nothing(first, second):
    return first, second

def as_long():
    for _ in range(60):
        nothing(1, "two")

def seconds(function, number):
    return min(timeit.repeat(function, number=number, repeat=100)) / number

print(seconds(call, 2_000) / seconds(as_long, 50))
"""


@pytest.mark.parametrize(("args", "kwargs"), [((1, "two"), {}), ((), {"first": 1, "second": "two"})])
def test_two_scalars_cost_at_most_sixty_calls(args, kwargs):
    """The whole check of a plain function's call, next to calls of nothing; coverage does not slow that process."""
    code = COST.format(args=args, kwargs=kwargs)
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("COV", "PYTHON"))}

    ran = subprocess.run([sys.executable, "-c", code], env=clean, check=True, capture_output=True, text=True)

    assert float(ran.stdout) <= 1


async def test_raw_connections_are_refused(engine):
    """What ``get_raw_connection()`` gives, and the adapter in it; the driver's own is the driver's business."""
    async with engine.connect() as connection:
        raw = await connection.get_raw_connection()

        for given in (raw, raw.dbapi_connection):
            with pytest.raises(SessionPassedError, match=r"was given a raw connection \(\w+\): arg 1"):
                check(Passed("f", (given,), {}))


async def test_a_session_past_the_budget_is_not_seen(LiteSession):
    """The check is bounded, and says so in the docs; a session that stands first in a huge container is seen."""
    session = LiteSession()
    huge = [object() for _ in range(2 * BUDGET)]

    check(Passed("f", ([*huge, session],), {}))

    with pytest.raises(SessionPassedError) as caught:
        check(Passed("f", ([session, *huge],), {}))
    assert caught.value.what.endswith("arg 1 -> [0]")


async def test_a_session_behind_very_many_plain_attributes_is_not_seen(LiteSession):
    """Ten of them count as one object, and one object gets half of the budget; one that stands before them is seen."""
    session = LiteSession()
    plain = {f"plain_{number}": number for number in range(6 * BUDGET)}

    check(Passed("f", (types.SimpleNamespace(**plain, session=session),), {}))

    few = dict(itertools.islice(plain.items(), 4 * BUDGET))
    for given in (types.SimpleNamespace(session=session, **plain), types.SimpleNamespace(**few, session=session)):
        with pytest.raises(SessionPassedError) as caught:
            check(Passed("f", (given,), {}))
        assert caught.value.what.endswith("arg 1 -> .session")


async def test_a_huge_container_hides_no_other_argument(LiteSession):
    """It gets half of the budget, and what comes after it half of the rest."""
    huge = [object() for _ in range(2 * BUDGET)]

    with pytest.raises(SessionPassedError) as caught:
        check(Passed("f", (huge, [huge.copy(), {"ctx": Plain(LiteSession())}]), {}))

    assert caught.value.what.endswith("arg 2 -> [1]['ctx'].other")


async def test_a_path_that_is_long_is_shortened(ways, LiteSession):
    """The text has the first and the last steps; the walk does not recurse."""
    nested = LiteSession()
    for _ in range(5_000):
        nested = [nested]

    error = ways.refused({"deep": nested})

    path = error.what.partition(" -> ")[2]
    assert path == "['deep'][0][0][0][0][0] ... [0][0][0][0][0][0]"
    assert len(error.cure) < 200


async def test_the_shortest_path_is_named(ways, LiteSession):
    """Of several."""
    session = LiteSession()

    assert ways.refused({"far": [[session]], "near": session}).what.endswith("arg 1 -> ['near']")
