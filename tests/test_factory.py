"""Where sessions come from: every kind of factory, those that cannot isolate, and how many units fit into a pool."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from contextlib import asynccontextmanager, contextmanager
from unittest.mock import MagicMock

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_scoped_session, create_async_engine
from sqlalchemy.orm import Session as SyncSession
from sqlalchemy.orm import sessionmaker
from sqlalchemy.pool import AsyncAdaptedQueuePool, NullPool, SingletonThreadPool, StaticPool
from support import Item, session_maker

from sa_isolated_tasks import DeclarationError, FakeIsolationError, LimitError, TaskScope, isolated_session
from sa_isolated_tasks._factory import SessionFactory, resolve_limit

try:
    from sqlalchemy.ext.asyncio import async_sessionmaker
except ImportError:  # SQLAlchemy 1.4
    async_sessionmaker = None

MAKERS = [functools.partial(sessionmaker, class_=AsyncSession), async_sessionmaker]


class OwnSession(AsyncSession):
    """A subclass of the project's."""


async def add(session, name="a"):
    session.add(Item(name=name))
    await session.flush()
    return type(session)


@pytest.fixture
def rows(sqlite_engine, names_in_table):
    return lambda: names_in_table(sqlite_engine)


def unconnected(**options):
    """An engine of a database that need not be there."""
    return create_async_engine("postgresql+asyncpg://nobody@nowhere/nothing", **options)


async def in_scope_and_call(factory, body=add, **options):
    """One unit by each way to use a factory, and what they give."""
    called = await isolated_session(factory)(body)("called")
    async with TaskScope(factory, name="t", **options) as scope:
        return called, await scope.spawn(body, "spawned")


# Factories that give a session.


@pytest.mark.parametrize("maker", MAKERS, ids=["sessionmaker", "async_sessionmaker"])
async def test_a_sessionmaker_is_a_factory(maker, sqlite_engine, rows):
    """``async_sessionmaker``, or 1.4's ``sessionmaker(class_=AsyncSession)``."""
    if maker is None:
        pytest.skip("SQLAlchemy 1.4 has no async_sessionmaker")

    classes = await in_scope_and_call(maker(sqlite_engine))

    assert all(issubclass(cls, AsyncSession) for cls in classes)
    assert await rows() == ["called", "spawned"]


async def test_any_callable_without_arguments_is_a_factory(sqlite_engine, rows):
    """A lambda, a partial, a function with defaults, a class, a bound method, an object, a mock."""

    class Bound(AsyncSession):
        def __init__(self):
            super().__init__(sqlite_engine)

    class Database:
        def session(self, **options):
            return OwnSession(sqlite_engine, **options)

        def __call__(self):
            return OwnSession(sqlite_engine)

    def function(engine=sqlite_engine, *args, **options):
        return OwnSession(engine)

    mock = MagicMock(side_effect=lambda: OwnSession(sqlite_engine))
    partial = functools.partial(functools.partial(AsyncSession, sqlite_engine), expire_on_commit=False)
    factories = [lambda: OwnSession(sqlite_engine), partial, function, Bound, Database().session, Database(), mock]

    classes = [await isolated_session(factory)(add)(str(number)) for number, factory in enumerate(factories)]

    assert classes == [OwnSession, AsyncSession, OwnSession, Bound, OwnSession, OwnSession, OwnSession]
    assert await rows() == [str(number) for number in range(7)]


async def test_a_mock_that_claims_to_be_an_engine_is_a_factory(sqlite_engine, rows):
    """Its type is asked, and that is a mock's."""
    mock = MagicMock(spec=AsyncEngine, side_effect=lambda: AsyncSession(sqlite_engine))
    mock.__class__ = AsyncEngine

    await isolated_session(mock)(add)("a")

    assert await rows() == ["a"]


async def test_a_session_class_of_the_projects_own_is_kept(sqlite_engine, rows):
    """Units get what the maker makes."""
    classes = await in_scope_and_call(sessionmaker(sqlite_engine, class_=OwnSession))

    assert all(issubclass(cls, OwnSession) for cls in classes)
    assert await rows() == ["called", "spawned"]


async def test_the_session_of_sqlmodel_is_an_async_session(sqlite_engine, rows):
    """It is a subclass, and has ``exec()``."""
    pytest.importorskip("sqlmodel", exc_type=ImportError)  # or one that does not fit this SQLAlchemy
    from sqlmodel import select
    from sqlmodel.ext.asyncio.session import AsyncSession as SQLModelSession

    async def names(session: SQLModelSession, name: str):
        session.add(Item(name=name))
        return (await session.exec(select(Item.name))).all()

    called, spawned = await in_scope_and_call(sessionmaker(sqlite_engine, class_=SQLModelSession), names)

    assert (called, sorted(spawned)) == (["called"], ["called", "spawned"])
    assert await rows() == ["called", "spawned"]


# Factories that give a context manager.


async def test_a_context_manager_is_entered_and_left_in_the_units_task(sqlite_engine, rows):
    """It owns its transaction: the unit commits nothing and closes nothing."""
    seen = []

    @asynccontextmanager
    async def get_session():
        seen.append(asyncio.current_task())
        async with AsyncSession(sqlite_engine) as session:
            yield session
            await session.commit()
        seen.append(asyncio.current_task())

    async def work(session, name):
        await add(session, name)
        return asyncio.current_task()

    called, spawned = await in_scope_and_call(get_session, work, limit=1)

    assert [called, called, spawned, spawned] == seen
    assert await rows() == ["called", "spawned"]


async def test_a_context_manager_that_does_not_commit_loses_the_rows(sqlite_engine, rows):
    """A session that it only closes is rolled back: the unit does not commit behind its back."""

    @asynccontextmanager
    async def get_session():
        async with AsyncSession(sqlite_engine) as session:
            yield session

    await in_scope_and_call(get_session, limit=1)

    assert await rows() == []


async def test_a_context_manager_sees_the_exception_of_the_body(sqlite_engine, rows):
    """It is thrown in, the manager rolls back, and the exception goes on."""
    seen = []

    @asynccontextmanager
    async def get_session():
        async with AsyncSession(sqlite_engine) as session:
            try:
                yield session
            except ValueError as error:
                seen.append(error)
                raise
            await session.commit()

    @isolated_session(get_session)
    async def work(session):
        await add(session)
        raise ValueError("the body's own")

    with pytest.raises(ValueError, match="the body's own") as caught:
        await work()

    assert seen == [caught.value]
    assert await rows() == []


async def test_a_context_manager_cannot_suppress_the_exception_of_the_body(sqlite_engine):
    """The unit has no result then; its caller gets the exception."""

    @asynccontextmanager
    async def get_session():
        with contextlib.suppress(ValueError):
            async with AsyncSession(sqlite_engine) as session:
                yield session

    @isolated_session(get_session)
    async def work(session):
        raise ValueError("the body's own")

    with pytest.raises(ValueError, match="the body's own"):
        await work()


async def test_a_context_manager_whose_exit_raises_makes_the_unit_fail(sqlite_engine):
    """Its commit has failed, for example."""

    @asynccontextmanager
    async def get_session():
        async with AsyncSession(sqlite_engine) as session:
            yield session
        raise OSError("the commit failed")

    @isolated_session(get_session)
    async def work(session):
        return 1

    with pytest.raises(OSError, match="the commit failed"):
        await work()


async def test_a_context_manager_whose_entry_raises_makes_the_unit_fail():
    """The body never runs."""

    @asynccontextmanager
    async def get_session():
        raise OSError("no database")
        yield

    @isolated_session(get_session)
    async def work(session):
        pytest.fail("the body ran")

    with pytest.raises(OSError, match="no database"):
        await work()


async def test_a_context_manager_that_yields_no_session_is_left_again():
    """And the unit says what it got."""
    left = []

    @asynccontextmanager
    async def get_session():
        try:
            yield 1
        finally:
            left.append(True)

    with pytest.raises(DeclarationError, match="context manager yielded a int"):
        await isolated_session(get_session)(add)()

    assert left == [True]


async def test_a_context_manager_of_a_manager_is_no_session(sqlite_engine):
    """``async with`` is done once: a manager that yields another one is told apart from a session."""

    @asynccontextmanager
    async def get_session():
        yield AsyncSession(sqlite_engine).begin()

    with pytest.raises(DeclarationError, match="context manager yielded a AsyncSessionTransaction"):
        await isolated_session(get_session)(add)()


async def test_the_begin_of_a_maker_is_a_factory(sqlite_engine, rows):
    """The session comes with a transaction that is begun, and is committed at the exit."""
    await in_scope_and_call(session_maker(sqlite_engine).begin, limit=1)

    assert await rows() == ["called", "spawned"]


async def test_a_begin_block_that_fails_is_rolled_back(sqlite_engine, rows):
    """By its own exit."""

    @isolated_session(session_maker(sqlite_engine).begin)
    async def work(session):
        await add(session)
        raise ValueError

    with pytest.raises(ValueError):
        await work()

    assert await rows() == []


# Refused where they are given.


async def coroutine_function(): ...


async def async_generator():
    yield


def generator():
    yield


def needs(url, *, echo): ...


class AsyncCall:
    async def __call__(self): ...


class GeneratorCall:
    async def __call__(self):
        yield


MAKER = "Session = async_sessionmaker(engine)"
REFUSED = {
    "session": (AsyncSession, "AsyncSession is a session, not a factory", MAKER),
    "sync session": (SyncSession, "Session is a session, not a factory", MAKER),
    "engine": (lambda: create_async_engine("sqlite+aiosqlite://"), "AsyncEngine is an engine", MAKER),
    "sync engine": (lambda: sa.create_engine("sqlite://"), "Engine is an engine", MAKER),
    "sync maker": (sessionmaker, "sessionmaker is a sessionmaker of synchronous sessions", MAKER),
    "sync class": (lambda: SyncSession, "Session is a class of synchronous sessions", MAKER),
    "number": (lambda: 1, "int is not callable", MAKER),
    "async def": (
        lambda: coroutine_function,
        "coroutine_function is an `async def`, which gives a coroutine",
        "def coroutine_function() -> AsyncSession: ...",
    ),
    "async def in a partial": (
        lambda: functools.partial(coroutine_function),
        "coroutine_function is an `async def`, which gives a coroutine",
        "def coroutine_function() -> AsyncSession: ...",
    ),
    "async call": (
        AsyncCall,
        "AsyncCall is an `async def`, which gives a coroutine",
        "def AsyncCall() -> AsyncSession: ...",
    ),
    "async generator": (
        lambda: async_generator,
        "async_generator is an async generator function",
        "@contextlib.asynccontextmanager\nasync def async_generator(): ...",
    ),
    "async generator call": (
        GeneratorCall,
        "GeneratorCall is an async generator function",
        "@contextlib.asynccontextmanager\nasync def GeneratorCall(): ...",
    ),
    "generator": (
        lambda: generator,
        "generator is a generator function",
        "@contextlib.asynccontextmanager\nasync def generator(): ...",
    ),
    "arguments": (
        lambda: needs,
        "needs is called with no arguments, but needs url, echo",
        "functools.partial(needs, ...)",
    ),
    "too few arguments": (
        lambda: functools.partial(needs, "url"),
        "needs is called with no arguments, but needs echo",
        "functools.partial(needs, ...)",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_factory_is_refused(case):
    """Decorator, scope and ``using`` say the same, with the cure, before anything runs."""
    make, what, cure = REFUSED[case]
    factory = make()
    takers = [isolated_session, lambda factory: TaskScope(factory, name="t"), isolated_session(AsyncSession)(add).using]

    for take in takers:
        with pytest.raises(DeclarationError) as caught:
            take(factory)

        error = caught.value
        assert (error.code, error.what, error.cure) == ("SIT301", f"the session factory {what}", cure) or (
            error.what.startswith(f"the session factory {what}: ") and error.cure == cure
        )
        assert error.why == (
            "a factory is called with no arguments, and gives an AsyncSession or an async context manager of one"
        )


def test_a_callable_that_cannot_be_asked_for_its_parameters_passes():
    """What it needs will show when it is called."""
    assert SessionFactory(type).make is type

    class Silent:
        __signature__ = 1

        def __call__(self):
            return AsyncSession()

    silent = Silent()
    assert SessionFactory(silent).make is silent


# Refused when they are called.


@contextmanager
def sync_manager():
    yield AsyncSession()


def call(fn):
    return fn()


MISMADE = {
    "coroutine": (functools.partial(call, coroutine_function), "coroutine", "def factory() -> AsyncSession: ..."),
    "async generator": (
        functools.partial(call, async_generator),
        "async_generator",
        "@contextlib.asynccontextmanager\nasync def factory(): ...",
    ),
    "sync manager": (
        sync_manager,
        "_GeneratorContextManager",
        "@contextlib.asynccontextmanager\nasync def factory(): ...",
    ),
    "sync session": (
        functools.partial(call, SyncSession),
        "Session",
        "@contextlib.asynccontextmanager\nasync def factory(): ...",
    ),
    "nothing": (lambda: None, "NoneType", MAKER),
}


@pytest.mark.parametrize("case", MISMADE)
async def test_a_factory_that_gives_no_session_is_refused(case):
    """When the scope starts, and at the first unit of a decorated function; nothing complains afterwards."""
    factory, kind, cure = MISMADE[case]

    with pytest.raises(DeclarationError) as called:
        await isolated_session(factory)(add)()
    with pytest.raises(DeclarationError) as started:
        await TaskScope(factory, name="t", limit=1).start()

    for caught in (called, started):
        assert caught.value.what == f"the session factory gave a {kind}"
        assert caught.value.cure == cure


async def test_a_factory_that_raises_makes_the_unit_fail():
    """With its own exception."""

    def factory():
        raise OSError("no database")

    with pytest.raises(OSError, match="no database"):
        await isolated_session(factory)(add)()


# Factories that cannot isolate.


def fake(error, text):
    assert isinstance(error, FakeIsolationError)
    assert error.code == "SIT104"
    assert text in error.what
    assert "two units would share one transaction" in error.why
    return error.cure


async def refused_by(factory, error_type=FakeIsolationError):
    """What the start of a scope, and the call of a decorated function, raise."""
    with pytest.raises(error_type) as started:
        await TaskScope(factory, name="t", limit=1).start()
    fn = isolated_session(factory)(add)
    with pytest.raises(error_type) as called:
        coroutine = fn()
        # What only a session tells is known when there is one.
        await coroutine
    assert (started.value.what, started.value.cure) == (called.value.what, called.value.cure)
    return started.value


@pytest.mark.parametrize("poolclass", [StaticPool, SingletonThreadPool])
@pytest.mark.parametrize("wrap", [lambda maker: maker, functools.partial], ids=["maker", "partial"])
async def test_a_pool_of_one_connection_is_refused(poolclass, wrap, make_engine, sqlite):
    """All sessions would share it, and with it a transaction."""
    try:
        engine = make_engine(sqlite, poolclass=poolclass)
    except ArgumentError:
        pytest.skip("this SQLAlchemy refuses the pool by itself")

    error = await refused_by(wrap(session_maker(engine)))

    assert "create_async_engine" in fake(error, f"uses {poolclass.__name__}")


@pytest.mark.parametrize("wrap", [lambda maker: maker, functools.partial], ids=["maker", "partial"])
async def test_a_factory_that_is_bound_to_a_connection_is_refused(wrap, sqlite_engine):
    """As test fixtures make one: all sessions would work in the connection's transaction."""
    async with sqlite_engine.connect() as connection:
        error = await refused_by(wrap(session_maker(connection)))

    assert fake(error, "bound to one connection") == MAKER


async def test_the_binds_of_a_factory_are_looked_at_one_by_one(sqlite_engine, make_engine, sqlite):
    """One of them is enough to share a transaction."""
    static = make_engine(sqlite, poolclass=StaticPool)

    class Routed(AsyncSession):
        def __init__(self):
            super().__init__(binds={Item: static})

    for factory in (sessionmaker(class_=AsyncSession, binds={Item: static}, bind=sqlite_engine), Routed):
        fake(await refused_by(factory), "uses StaticPool")


async def test_a_scoped_registry_is_refused(LiteSession):
    """At the start and at the call: it gives one session to all who share its scope."""
    registry = async_scoped_session(LiteSession, scopefunc=asyncio.current_task)

    with pytest.raises(FakeIsolationError) as started:
        await TaskScope(registry, name="t").start()
    with pytest.raises(FakeIsolationError) as called:
        isolated_session(registry)(add)()

    for caught in (started, called):
        assert fake(caught.value, "async_scoped_session") == "Session = registry.session_factory"
    assert await isolated_session(registry.session_factory)(add)() is LiteSession.class_


async def test_a_factory_that_gives_a_scoped_registry_is_refused(LiteSession):
    """It is no session either."""
    registry = async_scoped_session(LiteSession, scopefunc=asyncio.current_task)

    fake(await refused_by(lambda: registry), "async_scoped_session")


async def test_a_maker_that_cannot_isolate_is_refused_at_the_call(make_engine, sqlite):
    """Before there is a coroutine; a decorated function may be declared, though, before its engine is replaced."""
    fn = isolated_session(session_maker(make_engine(sqlite, poolclass=StaticPool)))(add)

    with pytest.raises(FakeIsolationError):
        fn()


async def test_a_session_is_given_once(sqlite_engine, rows):
    """A factory that gives it again is refused, although it is idle by then."""
    session = AsyncSession(sqlite_engine)
    fn = isolated_session(lambda: session)(add)

    await fn("a")
    with pytest.raises(FakeIsolationError) as caught:
        await fn("b")

    fake(caught.value, "already used")
    assert await rows() == ["a"]


async def test_a_session_that_is_in_use_is_refused(sqlite_engine):
    """A factory that gives the session of the code around it: open, idle, or closed."""
    async with AsyncSession(sqlite_engine) as session:
        fn = isolated_session(lambda: session)(add)
        await session.execute(sa.select(Item))
        with pytest.raises(FakeIsolationError):
            await fn()
        await session.commit()
        with pytest.raises(FakeIsolationError):
            await fn()
    with pytest.raises(FakeIsolationError):
        await fn()


async def test_two_units_do_not_share_the_session_of_a_context_manager(sqlite_engine):
    """The second one is refused, and the manager left."""
    shared, left = AsyncSession(sqlite_engine), []

    @asynccontextmanager
    async def get_session():
        yield shared
        left.append("returned")

    fn = isolated_session(get_session)(add)
    await fn("a")
    with pytest.raises(FakeIsolationError):
        await fn("b")
    await shared.close()

    assert left == ["returned"]


async def test_a_context_manager_that_yields_a_bound_session_is_refused(sqlite_engine, rows):
    """What it is bound to shows when it is entered."""
    async with sqlite_engine.connect() as connection:

        @asynccontextmanager
        async def get_session():
            async with AsyncSession(connection) as session:
                yield session

        with pytest.raises(FakeIsolationError):
            await isolated_session(get_session)(add)()

    assert await rows() == []


# How many units fit into a pool.


@pytest.mark.parametrize(("size", "limit"), [(1, 1), (2, 1), (5, 4), (20, 19)])
async def test_the_pool_leaves_one_connection_to_the_application(size, limit):
    """At most ``size - 1`` units, and at least one; from a maker and from a function."""
    engine = unconnected(pool_size=size)

    for factory in (session_maker(engine), lambda: AsyncSession(engine)):
        scope = TaskScope(factory, name="t")
        await scope.start()
        assert scope.snapshot().limit == limit
        await scope.aclose()


@pytest.mark.parametrize("poolclass", [AsyncAdaptedQueuePool, NullPool])
async def test_sqlite_has_one_writer_whatever_its_pool(poolclass, make_engine, sqlite):
    """So one unit runs at once."""
    factory = SessionFactory(session_maker(make_engine(sqlite, poolclass=poolclass)))

    assert resolve_limit("pool", factory) == 1


async def test_the_smallest_of_several_pools_counts():
    """A session may need a connection of each; an engine that is given twice counts once."""
    small, large = unconnected(pool_size=3), unconnected(pool_size=9)
    options = {"class_": AsyncSession, "binds": {Item: large, SyncSession: small}, "bind": large}

    class Routed(AsyncSession):
        def __init__(self):
            super().__init__(binds={Item: small})

    assert resolve_limit("pool", SessionFactory(sessionmaker(**options))) == 2
    assert resolve_limit("pool", SessionFactory(sessionmaker(class_=AsyncSession, binds={Item: large}))) == 8
    assert resolve_limit("pool", SessionFactory(Routed)) == 2


class RoutingSession(SyncSession):
    """Chooses its engine for each statement."""

    def get_bind(self, mapper=None, **options):
        return super().get_bind(mapper, **options)


class OwnRouting(AsyncSession):
    sync_session_class = RoutingSession


@asynccontextmanager
async def managed():
    yield AsyncSession()


UNKNOWN = {
    "null pool": (lambda: session_maker(unconnected(poolclass=NullPool)), "NullPool"),
    "unlimited pool": (
        lambda: session_maker(unconnected(pool_size=0)),
        "AsyncAdaptedQueuePool of size 0, which is unlimited",
    ),
    "one of two": (
        lambda: sessionmaker(
            unconnected(pool_size=5), class_=AsyncSession, binds={Item: unconnected(poolclass=NullPool)}
        ),
        "AsyncAdaptedQueuePool, NullPool",
    ),
    "context manager": (lambda: managed, "a context manager or a get_bind() of your own decides"),
    "begin": (
        lambda: session_maker(unconnected(pool_size=5)).begin,
        "a context manager or a get_bind() of your own decides",
    ),
    "get_bind of a class": (
        lambda: sessionmaker(unconnected(pool_size=5), class_=OwnRouting),
        "a context manager or a get_bind() of your own decides",
    ),
    "get_bind by option": (
        lambda: session_maker(unconnected(pool_size=5), sync_session_class=RoutingSession),
        "a context manager or a get_bind() of your own decides",
    ),
    "get_bind of a function": (
        lambda: functools.partial(OwnRouting, unconnected(pool_size=5)),
        "a context manager or a get_bind() of your own decides",
    ),
    "no bind": (lambda: AsyncSession, "it is bound to nothing"),
    "maker without bind": (lambda: sessionmaker(class_=AsyncSession), "it is bound to nothing"),
}


@pytest.mark.parametrize("case", UNKNOWN)
async def test_an_unknown_pool_size_asks_for_a_number(case):
    """``limit="pool"`` is an error when the scope starts; a number, or None, is not."""
    make, why = UNKNOWN[case]
    factory = make()

    with pytest.raises(LimitError) as caught:
        await TaskScope(factory, name="t").start()

    error = caught.value
    assert isinstance(error, ValueError)
    assert error.code == "SIT208"
    assert error.what.endswith(f"a QueuePool of some size, and here: {why}")
    assert error.cure == "TaskScope(Session, name=..., limit=10)"
    for limit in (7, None):
        assert resolve_limit(limit, SessionFactory(factory)) == limit


async def test_a_start_makes_at_most_one_session():
    """To look at it; a maker is asked without."""
    made = []

    class Counted(AsyncSession):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            made.append(self)

    engine = unconnected(pool_size=5)
    for factory, count in [(sessionmaker(engine, class_=Counted), 0), (lambda: Counted(engine), 1)]:
        made.clear()
        scope = TaskScope(factory, name="t")
        await scope.start()
        await scope.aclose()
        assert len(made) == count


@pytest.mark.parametrize("limit", [0, -1, True, 1.0, "many", [5]])
def test_a_limit_that_is_no_number_of_units_is_refused(limit):
    """When the scope is made; ``True`` and ``1.0`` are no numbers of units either."""
    with pytest.raises(LimitError) as caught:
        TaskScope(AsyncSession, name="t", limit=limit)

    assert caught.value.what == f"limit is {limit!r}"
    assert caught.value.why == 'it is "pool", a number from 1, or None for no limit'


class CachingMaker(sessionmaker):
    """Gives the same session again and again, though its classes are SQLAlchemy's own."""

    def __call__(self, **options):
        self.made = getattr(self, "made", None) or super().__call__(**options)
        return self.made


class Caching(type(AsyncSession)):
    """A class that gives the same session again and again."""

    def __call__(cls, *args, **options):
        cls.made = getattr(cls, "made", None) or super().__call__(*args, **options)
        return cls.made


class SharingSession(AsyncSession):
    """A new object for one and the same session."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        type(self).shared = getattr(type(self), "shared", self.sync_session)
        self.sync_session = self.shared


@pytest.mark.parametrize(
    "make",
    [
        lambda engine: CachingMaker(engine, class_=AsyncSession),
        lambda engine: sessionmaker(engine, class_=Caching("Cached", (AsyncSession,), {})),
        lambda engine: sessionmaker(engine, class_=SharingSession),
    ],
    ids=["maker", "metaclass", "init"],
)
async def test_a_sessionmaker_that_gives_one_session_twice_is_found_out(sqlite_engine, make):
    """Only what SQLAlchemy's own classes make is known to be new without a look at it."""
    add_once = isolated_session(make(sqlite_engine))(add)
    await add_once()

    with pytest.raises(FakeIsolationError, match="already used"):
        await add_once()


class CarefulSession(AsyncSession):
    """Does something of its own when it is closed."""

    closed = ()

    async def close(self):
        self.closed.append(self)
        await super().close()


async def test_a_close_of_the_users_own_is_called_for_an_empty_session_too(sqlite_engine, monkeypatch):
    """Closing is left out only where it does nothing."""
    monkeypatch.setattr(CarefulSession, "closed", [])

    @isolated_session(sessionmaker(sqlite_engine, class_=CarefulSession))
    async def work(session):
        pass

    await work()

    assert len(CarefulSession.closed) == 1


async def test_a_maker_that_is_configured_anew_is_looked_at_anew(sqlite_engine, make_engine, sqlite, names_in_table):
    """What was known of its sessions holds for the engine that it had."""
    other = make_engine(sqlite, poolclass=StaticPool)
    Session = session_maker(sqlite_engine)
    add_one = isolated_session(Session)(add)
    await add_one()
    Session.configure(bind=other)

    with pytest.raises(FakeIsolationError, match="StaticPool"):
        await add_one()

    assert len(await names_in_table(sqlite_engine)) == 1


async def test_a_session_that_is_closed_for_good_is_closed_when_it_is_empty_too(sqlite_engine):
    """The setting of the maker holds for units as for everybody."""
    kept = []

    async def keep(session):
        kept.append(session)

    try:
        await isolated_session(session_maker(sqlite_engine, close_resets_only=False))(keep)()
    except TypeError as error:
        pytest.skip(str(error))  # before SQLAlchemy 2.0.22

    with pytest.raises(sa.exc.InvalidRequestError, match="permanently closed"):
        await kept[0].execute(sa.text("select 1"))


async def test_a_maker_that_is_given_another_class_is_looked_at_anew(sqlite_engine):
    """What was known of its sessions holds for the classes that it had."""
    closed = []

    class Careful(SyncSession):
        def close(self):
            closed.append(True)
            super().close()

    async def rest(session):
        pass

    Session = session_maker(sqlite_engine)
    work = isolated_session(Session)(rest)
    await work()
    Session.configure(sync_session_class=Careful)
    await work()

    assert closed == [True]


async def test_a_session_that_has_loaded_something_is_closed(sqlite_engine):
    """What was loaded is of no session any more, and may be handed to another."""

    async def make(session):
        item = Item(name="a")
        session.add(item)
        await session.flush()
        return item

    item = await isolated_session(session_maker(sqlite_engine, expire_on_commit=False))(make)()

    assert sa.inspect(item).detached
