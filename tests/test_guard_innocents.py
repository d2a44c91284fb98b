"""
A hundred shapes of arguments that hold no session pass, and nothing of theirs is run.

The proof: each hook of a class that is made to count, counts to zero; generators and iterators give all that they had
afterwards; no SQL is sent; ``__dict__`` is what it was.
"""

from __future__ import annotations

import abc
import array
import asyncio
import collections
import concurrent.futures
import contextlib
import contextvars
import ctypes
import dataclasses
import datetime as dt
import decimal
import enum
import fractions
import functools
import io
import itertools
import logging
import mmap
import operator
import pathlib
import queue
import random
import re
import string
import sys
import threading
import types
import typing
import uuid
import weakref
import zoneinfo
from unittest import mock

import anyio
import attrs
import fastapi
import httpx
import pydantic
import pytest
import sqlalchemy as sa
import starlette.applications
import starlette.background
import starlette.datastructures
import starlette.requests
import starlette.websockets
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession
from sqlalchemy.orm import Session, declarative_base, relationship
from sqlalchemy.orm import registry as mapper_registry
from support import Base, Item, reset, session_maker

from sa_isolated_tasks import TaskScope, isolated_session
from sa_isolated_tasks._guard import Passed, check

# ---- Classes that count what is done to them.

COUNTED = [
    *(
        "getattr",
        "call",
        "iter",
        "next",
        "len",
        "bool",
        "eq",
        "ne",
        "hash",
        "repr",
        "str",
        "contains",
        "getitem",
        "index",
    ),
    *(
        "enter",
        "exit",
        "aenter",
        "aexit",
        "await",
        "aiter",
        "anext",
        "get",
        "set",
        "instancecheck",
        "subclasscheck",
        "del",
    ),
    *(
        "reduce",
        "reduce_ex",
        "copy",
        "deepcopy",
        "dir",
        "format",
        "sizeof",
        "length_hint",
        "reversed",
        "fspath",
        "lt",
        "le",
    ),
]
touched: list[str] = []


def counting(name):
    def hook(self, *args, **kwargs):
        touched.append(f"__{name}__")
        raise ArithmeticError(f"__{name}__ was called")

    return hook


class Counting:
    """Every special method counts, and raises."""

    def __init__(self, **attributes):
        vars(self).update(attributes)

    for _name in COUNTED:
        if _name not in {"del", "hash"}:
            locals()[f"__{_name}__"] = counting(_name)

    __hash__ = counting("hash")

    @property
    def __class__(self):
        touched.append("__class__")
        raise ArithmeticError("__class__ was read")

    @property
    def side_effect(self):
        touched.append("property")
        raise ArithmeticError("a property was read")

    @functools.cached_property
    def cached(self):
        touched.append("cached_property")
        raise ArithmeticError("a cached property was read")


class GetAttribute:
    def __getattribute__(self, name):
        touched.append(f"__getattribute__({name})")
        raise ArithmeticError(name)


class DictProperty:
    @property
    def __dict__(self):
        touched.append("__dict__")
        raise ArithmeticError("__dict__ was read")


class CountingMeta(type):
    """A class whose class counts."""

    for _name in ("eq", "ne", "hash", "call", "instancecheck", "subclasscheck", "iter", "len", "bool", "repr"):
        locals()[f"__{_name}__"] = counting(_name)

    def __getattribute__(cls, name):
        touched.append(f"metaclass {name}")
        return super().__getattribute__(name)


OfCountingMeta = type.__call__(CountingMeta, "OfCountingMeta", (), {})


class CountingDict(dict):
    for _name in ("iter", "len", "getitem", "contains", "bool", "eq", "repr"):
        locals()[f"__{_name}__"] = counting(_name)
    items = values = keys = get = counting("items")
    __hash__ = None


class CountingList(list):
    for _name in ("iter", "len", "getitem", "contains", "bool", "eq", "repr"):
        locals()[f"__{_name}__"] = counting(_name)
    __hash__ = None


class CountingDescriptor:
    __get__ = counting("get")


class WithDescriptors:
    one = CountingDescriptor()
    __sa_instance_state = CountingDescriptor()


class DictOfItsOwn:
    """Its ``__dict__`` is of a class with methods of its own."""


class LocalProxy:
    """As in werkzeug: everything is forwarded, the class too, to what does not exist outside of a request."""

    __slots__ = ("__wrapped", "_get_current_object")

    def __init__(self, get):
        object.__setattr__(self, "_get_current_object", get)

    __class__ = property(lambda self: type(self._get_current_object()))
    __dict__ = property(lambda self: vars(self._get_current_object()))

    def __getattr__(self, name):
        return getattr(self._get_current_object(), name)

    for _name in ("iter", "len", "bool", "eq", "hash", "repr", "call", "getitem"):
        locals()[f"__{_name}__"] = counting(_name)


def outside_of_a_request():
    touched.append("proxy")
    raise RuntimeError("working outside of a request")


class Magic:
    """Answers every question."""

    def __getattr__(self, name):
        touched.append(f"getattr {name}")
        return self


# ---- Models.

registry = mapper_registry()


@registry.mapped
@dataclasses.dataclass
class MappedData:
    """A mapped dataclass: ``getattr`` would load."""

    __sa_dataclass_metadata_key__ = "sa"
    __tablename__ = "innocent_data"

    id: int = dataclasses.field(init=False, metadata={"sa": sa.Column(sa.Integer, primary_key=True)})
    name: str = dataclasses.field(default="", metadata={"sa": sa.Column(sa.String(20))})
    deferred: str = dataclasses.field(
        default="", metadata={"sa": sa.orm.deferred(sa.Column("deferred", sa.String(20)))}
    )


ModelBase = declarative_base()


class Parent(ModelBase):
    __tablename__ = "innocent_parents"
    id = sa.Column(sa.Integer, primary_key=True)
    children = relationship("Child")


class Child(ModelBase):
    __tablename__ = "innocent_children"
    id = sa.Column(sa.Integer, primary_key=True)
    parent_id = sa.Column(sa.ForeignKey(Parent.id))


class Model(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")
    name: str = "a"
    nested: Model | None = None
    _private: int = 1

    @pydantic.computed_field
    @property
    def computed(self) -> int:
        touched.append("computed field")
        return 1


class ModelWithGetattr(pydantic.BaseModel):
    def __getattr__(self, name):
        touched.append(f"model {name}")
        raise AttributeError(name)


class Settings(pydantic.RootModel[dict[str, int]]): ...


@dataclasses.dataclass
class Data:
    value: typing.Any = None


@attrs.define
class Attrs:
    value: int = 1


class Colour(enum.Enum):
    RED = 1


class Permission(enum.IntFlag):
    READ = 1
    WRITE = 2


class Protocol(typing.Protocol):
    def method(self) -> None: ...


class Abstract(abc.ABC):
    @abc.abstractmethod
    def method(self): ...


class Concrete(Abstract):
    def method(self): ...


Named = collections.namedtuple("Named", "first second")


class TypedNamed(typing.NamedTuple):
    first: int


class Typed(typing.TypedDict):
    first: int


class Structure(ctypes.Structure):
    _fields_: typing.ClassVar = [("x", ctypes.c_int)]


# ---- Shapes. Each is made when it is needed.


def cyclic_list():
    cycle: list[typing.Any] = [1]
    cycle.append(cycle)
    return cycle


def cyclic_objects():
    one, two = Data(), Data()
    one.value, two.value = {"two": two}, [one]
    return one


def deep_list():
    nested: list[typing.Any] = []
    for _ in range(100_000):
        nested = [nested]
    return nested


def deep_objects():
    nested = None
    for _ in range(100_000):
        nested = Data(nested)
    return nested


def deep_partial():
    nested = print
    for _ in range(300):
        nested = functools.partial(lambda f: f, nested)
    return nested


def deleted(value):
    """What holds many levels is taken apart by hand; Python would need its stack for it."""
    while isinstance(value, list | Data):
        value = (value or [None])[0] if isinstance(value, list) else vars(value).pop("value")


def with_dict_of_its_own():
    made = DictOfItsOwn()
    made.__dict__ = CountingDict(a=1)
    return made


def application():
    app = fastapi.FastAPI()
    app.state.Session = session_maker(None)

    @app.get("/")
    async def endpoint(): ...

    return app


def request(kind=fastapi.Request, app=None):
    app = app or application()

    async def receive():
        touched.append("receive")

    scope = {
        "type": "http" if kind is not fastapi.WebSocket else "websocket",
        "app": app,
        "router": app.router,
        "endpoint": print,
        "headers": [(b"host", b"x")],
        "query_string": b"a=1",
        "path": "/",
        "state": {"request_id": 7},
        "fastapi_inner_astack": contextlib.AsyncExitStack(),
        "extensions": {},
        "route": app.routes[-1],
    }
    return kind(scope) if kind is starlette.requests.HTTPConnection else kind(scope, receive, receive)


def weak():
    class Target: ...

    target = Target()
    WEAK.append(target)
    return target


WEAK: list[typing.Any] = []
LOCAL = threading.local()
VARIABLE = contextvars.ContextVar("VARIABLE", default=1)


def chained_error():
    """As an application passes one on, to be stored: with what it was raised from, and what was handled meanwhile."""
    try:
        try:
            {}["missing"]
        except KeyError as inner:
            raise ChainProperty("outer") from inner
    except ChainProperty as outer:
        return outer


class ChainProperty(Exception):
    __cause__ = property(counting("cause"))
    __context__ = property(counting("context"))


def generator():
    touched.append("generator")
    yield 1


async def async_generator():
    touched.append("async generator")
    yield 1


async def coroutine():
    touched.append("coroutine")


def begun_generator():
    made = (number for number in (1, 2, 3))
    next(made)
    return made


def function_with_defaults(a, b=(1, 2), *, c=None, d={}): ...  # noqa: B006 -- it is what is tried


class Service:
    attribute = 1

    def method(self): ...
    @classmethod
    def class_method(cls): ...
    @staticmethod
    def static_method(): ...


def rows():
    engine = sa.create_engine("sqlite://")
    with engine.connect() as connection:
        made = connection.execute(sa.text("select 1 as one, 'a' as two")).fetchall()
    engine.dispose()
    return made


def frozen_result():
    engine = sa.create_engine("sqlite://")
    with engine.connect() as connection:
        made = connection.execute(sa.text("select 1")).freeze()
    engine.dispose()
    return made


INNOCENTS: dict[str, typing.Callable[[], typing.Any]] = {
    # Scalars, and what is like them.
    "integer": lambda: 1,
    "huge text": lambda: "x" * 1_000_000,
    "bytes": lambda: b"x",
    "bytearray": lambda: bytearray(10),
    "memoryview": lambda: memoryview(b"abc"),
    "array": lambda: array.array("d", [1.0] * 1000),
    "memory map": lambda: mmap.mmap(-1, 100),
    "C array": ctypes.c_double * 1000,
    "C structure": Structure,
    "decimal": lambda: decimal.Decimal("1.5"),
    "fraction": lambda: fractions.Fraction(1, 3),
    "complex": lambda: 1j,
    "uuid": uuid.uuid4,
    "path": lambda: pathlib.Path("/x"),
    "pure path": lambda: pathlib.PurePosixPath("x"),
    "date": lambda: dt.date(2020, 1, 1),
    "aware time": lambda: dt.datetime.now(dt.UTC),
    "time zone": lambda: zoneinfo.ZoneInfo("UTC"),
    "slice": lambda: slice(1, 2),
    "range": lambda: range(10**9),
    "ellipsis": lambda: ...,
    "enum": lambda: Colour.RED,
    "flag": lambda: Permission.READ | Permission.WRITE,
    "str subclass": lambda: type("Text", (str,), {})("x"),
    "quoted name": lambda: sa.sql.quoted_name("x", quote=True),
    "regular expression": lambda: re.compile("x+"),
    "match": lambda: re.match("x", "x"),
    "template": lambda: string.Template("$x"),
    "random": random.Random,
    # Containers.
    "100,000 numbers": lambda: list(range(100_000)),
    "100,000 objects": lambda: [object() for _ in range(100_000)],
    "100,000 keys": lambda: {str(number): number for number in range(100_000)},
    "cyclic list": cyclic_list,
    "cyclic objects": cyclic_objects,
    "100,000 lists deep": deep_list,
    "100,000 objects deep": deep_objects,
    "deep partial": deep_partial,
    "named tuple": lambda: Named(1, [2]),
    "typed named tuple": lambda: TypedNamed(1),
    "typed dict": lambda: Typed(first=1),
    "default dict": lambda: collections.defaultdict(counting("call"), a=[1]),
    "default dict without a factory": lambda: collections.defaultdict(None, a=[1]),
    "default dict with hooks": lambda: collections.defaultdict(Counting().__call__),
    "chained error": chained_error,
    "ordered dict": lambda: collections.OrderedDict(a=[1]),
    "chain map": lambda: collections.ChainMap({"a": 1}, {}),
    "mapping proxy": lambda: types.MappingProxyType({"a": [1]}),
    "dict views": lambda: ({"a": 1}.items(), {"a": 1}.values(), {"a": 1}.keys()),
    "deque": lambda: collections.deque([[1]], maxlen=5),
    "dict with methods of its own": lambda: CountingDict(a=[1]),
    "list with methods of its own": lambda: CountingList([[1]]),
    "namespace": lambda: types.SimpleNamespace(a=[1]),
    "queues": lambda: (asyncio.Queue(), queue.Queue(), queue.SimpleQueue()),
    # Classes whose hooks count.
    "hooks": Counting,
    "hooks in a dict": lambda: {"a": [Counting(b=Counting())]},
    "getattribute": GetAttribute,
    "property for __dict__": DictProperty,
    "object of a class whose class counts": lambda: type.__call__(OfCountingMeta),
    "class whose class counts": lambda: OfCountingMeta,
    "descriptors": WithDescriptors,
    "dict of its own": with_dict_of_its_own,
    "local proxy": lambda: LocalProxy(outside_of_a_request),
    "answers everything": Magic,
    # Mocks.
    "mock": mock.Mock,
    "magic mock": mock.MagicMock,
    "async mock": mock.AsyncMock,
    "magic mock of a session": lambda: mock.MagicMock(spec=AsyncSession),
    "async mock of a session": lambda: mock.AsyncMock(spec=AsyncSession),
    "mock of a sync session": lambda: mock.Mock(spec=Session),
    "mock of a connection": lambda: mock.MagicMock(spec=AsyncConnection),
    "autospecced session": lambda: mock.create_autospec(AsyncSession, instance=True),
    "sentinel": lambda: mock.sentinel.value,
    # Models.
    "pydantic": lambda: Model(nested=Model(), more=[1]),
    "pydantic with __getattr__": ModelWithGetattr,
    "pydantic root": lambda: Settings({"a": 1}),
    "pydantic class": lambda: Model,
    "dataclass": lambda: Data([1]),
    "attrs": Attrs,
    "name that SQLAlchemy uses": lambda: types.SimpleNamespace(_sa_instance_state=Counting(), _sa_adapter=1),
    "transient instance": lambda: Parent(children=[Child()]),
    "state of a transient instance": lambda: sa.inspect(Parent(children=[Child()])),
    "collections of an empty session": lambda: (Session().identity_map, Session().new, Session().dirty),
    "transient mapped dataclass": MappedData,
    "abstract": Concrete,
    "generic alias": lambda: (list[int], dict[str, typing.Any], int | None),
    "type variable": lambda: typing.TypeVar("T"),
    "protocol": lambda: Protocol,
    # SQLAlchemy's own.
    "engine": lambda: sa.create_engine("sqlite://"),
    "factory": lambda: session_maker(None),
    "table": lambda: Item.__table__,
    "mapped class": lambda: Item,
    "attribute": lambda: Item.name,
    "statement": lambda: sa.select(Item).where(Item.id == 1),
    "metadata": lambda: Base.metadata,
    "mapper": lambda: sa.inspect(Item),
    "url": lambda: sa.engine.make_url("sqlite://"),
    "rows": rows,
    "row mapping": lambda: rows()[0]._mapping,
    "frozen result": frozen_result,
    # Web.
    "request": request,
    "starlette request": lambda: request(starlette.requests.Request),
    "connection of a request": lambda: request(starlette.requests.HTTPConnection),
    "websocket": lambda: request(fastapi.WebSocket),
    "application": application,
    "starlette application": starlette.applications.Starlette,
    "background tasks": fastapi.BackgroundTasks,
    "dependency": lambda: fastapi.Depends(generator),
    "state": lambda: starlette.datastructures.State({"a": 1}),
    "upload": lambda: fastapi.UploadFile(io.BytesIO(b"x")),
    "response": lambda: fastapi.Response("x"),
    "http request": lambda: httpx.Request("GET", "http://x"),
    # Functions and lazy things.
    "function": lambda: function_with_defaults,
    "lambda": lambda: lambda: None,
    "builtin": lambda: len,
    "method": lambda: Service().method,
    "class method": lambda: Service.class_method,
    "static method": lambda: Service.static_method,
    "method of a builtin": lambda: [1].append,
    "slot wrapper": lambda: [1].__len__,
    "partial": lambda: functools.partial(print, 1, sep=""),
    "cached function": lambda: functools.lru_cache(generator),
    "single dispatch": lambda: functools.singledispatch(print),
    "getters": lambda: (operator.itemgetter(1), operator.attrgetter("a.b"), operator.methodcaller("x", 1)),
    "generator": generator,
    "async generator": async_generator,
    "begun generator": begun_generator,
    "iterators": lambda: [iter([1]), zip([1], [2], strict=True), map(counting("call"), [1]), itertools.tee([1])],
    "endless iterators": lambda: [itertools.count(), itertools.repeat(1), itertools.cycle([1])],
    "file": lambda: io.StringIO("abc"),
    # The process.
    "module": lambda: sys,
    "class": lambda: Service,
    "exception": lambda: ValueError("x", [1]),
    "exception group": lambda: ExceptionGroup("x", [ValueError(1)]),
    "code": lambda: generator.__code__,
    "frame": sys._getframe,
    "weak reference": lambda: weakref.ref(weak()),
    "weak proxy": lambda: weakref.proxy(weak()),
    "weak method": lambda: weakref.WeakMethod(WEAK.append(Service()) or WEAK[-1].method),
    "weak set": lambda: weakref.WeakSet([weak()]),
    "weak values": lambda: weakref.WeakValueDictionary(a=weak()),
    "logger": lambda: logging.getLogger("x"),
    "log adapter": lambda: logging.LoggerAdapter(logging.getLogger("x"), {}),
    "log record": lambda: logging.makeLogRecord({"a": 1}),
    "thread": threading.current_thread,
    "thread local": lambda: LOCAL,
    "locks": lambda: [threading.Lock(), threading.RLock(), threading.Condition(), asyncio.Lock(), asyncio.Semaphore()],
    "events": lambda: [asyncio.Event(), threading.Event(), anyio.Event()],
    "context variable": lambda: VARIABLE,
    "context": contextvars.copy_context,
    "executor": lambda: concurrent.futures.ThreadPoolExecutor(1),
    "loop": asyncio.get_running_loop,
    "task": asyncio.current_task,
    "future": lambda: asyncio.get_running_loop().create_future(),
    "concurrent future": concurrent.futures.Future,
    "task group": asyncio.TaskGroup,
    "exit stacks": lambda: [contextlib.ExitStack(), contextlib.AsyncExitStack()],
    "null context": contextlib.nullcontext,
    "context manager": contextlib.contextmanager(generator),
    "isolated function": lambda: isolated_session(session_maker(None))(plain_body),
}


async def plain_body(session: AsyncSession): ...


@pytest.fixture
def statements(sqlite_engine):
    """The SQL that is sent."""
    seen = []
    event.listen(sqlite_engine.sync_engine, "before_cursor_execute", lambda *args: seen.append(args[2]))
    return seen


def looked_at(value):
    """Every way to pass it; the hooks that were run."""
    touched.clear()
    check(Passed("f", (value,), {"key": [value]}))
    check(Passed("f", (), {}, value))
    return list(touched)


@pytest.mark.parametrize("shape", INNOCENTS)
async def test_an_innocent_shape_passes_untouched(shape):
    """As an argument, inside of one, and as what is bound to the function."""
    value = INNOCENTS[shape]()

    assert looked_at(value) == []

    if shape.endswith("deep"):
        deleted(value)


def test_there_are_a_hundred_innocent_shapes():
    """The issue asks for as many; those that need a database come on top."""
    assert len(INNOCENTS) >= 100


async def test_what_is_lazy_is_not_advanced():
    """Generators, iterators and files give everything that they had."""
    lazy = [
        generator(),
        iter([1]),
        map(abs, [1]),
        zip([1], strict=False),
        enumerate([1]),
        io.StringIO("1"),
        begun_generator(),
    ]

    assert looked_at(lazy) == []

    assert [len(list(each)) for each in lazy] == [1, 1, 1, 1, 1, 1, 2]


async def test_a_coroutine_is_not_run():
    """It can be awaited afterwards."""
    lazy = coroutine()

    assert looked_at(lazy) == []

    await lazy
    assert touched == ["coroutine"]


async def test_nothing_is_loaded(statements, sqlite_engine):
    """Detached instances with deferred columns, lazy relationships and expired attributes."""
    await reset(sqlite_engine)
    async with sqlite_engine.begin() as connection:
        await connection.run_sync(registry.metadata.create_all)
        await connection.run_sync(ModelBase.metadata.drop_all)
        await connection.run_sync(ModelBase.metadata.create_all)
    Session = session_maker(sqlite_engine, expire_on_commit=False)
    async with Session() as session:
        session.add_all([Parent(id=1, children=[Child(), Child()]), Item(name="a"), MappedData("b")])
        await session.commit()
    async with Session() as session:
        loaded = [(await session.execute(sa.select(cls))).scalars().all()[0] for cls in (Parent, Item, MappedData)]
        session.expire(loaded[1], ["name"])
    before = [dict(vars(instance)) for instance in loaded]
    statements.clear()

    assert looked_at(loaded) == []

    assert statements == []
    assert [dict(vars(instance)) for instance in loaded] == before
    assert "children" not in before[0]
    assert "deferred" not in before[2]


async def test_an_error_of_the_database_passes(engine):
    """It has the driver's as its cause, and statement and parameters; a handler may hand it on, to be stored."""
    await reset(engine)
    async with session_maker(engine)() as session:
        session.add_all([Item(name="a"), Item(name="a")])
        with pytest.raises(sa.exc.IntegrityError) as caught:
            await session.flush()

    assert caught.value.__cause__ is not None
    assert looked_at(caught.value) == []


async def test_a_sqlmodel_passes_unloaded(statements, sqlite_engine):
    """Transient, and detached with a lazy relationship."""
    sqlmodel = pytest.importorskip("sqlmodel", exc_type=ImportError)

    class Hero(sqlmodel.SQLModel, table=True):
        __tablename__ = "innocent_heroes"
        id: int | None = sqlmodel.Field(default=None, primary_key=True)
        name: str = "x"

    async with sqlite_engine.begin() as connection:
        await connection.run_sync(Hero.__table__.drop, checkfirst=True)
        await connection.run_sync(Hero.__table__.create)
    async with session_maker(sqlite_engine, expire_on_commit=False)() as session:
        session.add(Hero())
        await session.commit()
        (hero,) = (await session.execute(sa.select(Hero))).scalars()
    statements.clear()

    assert looked_at([hero, Hero(name="y"), Hero]) == []

    assert statements == []
    assert hero.name == "x"


async def test_what_belongs_to_this_package_passes(LiteSession, statements):
    """A scope, its views and handles, isolated functions and methods; an engine, and a task that has a session."""

    class Repo:
        def __init__(self):
            self.session = LiteSession()

        @isolated_session(LiteSession)
        async def job(self, session: AsyncSession): ...

    async with TaskScope(LiteSession, name="t") as scope, LiteSession() as session:
        handle = scope.spawn(plain_body)
        task = asyncio.create_task(asyncio.sleep(0, session))
        engine: AsyncEngine = LiteSession.kw["bind"]
        passed = [
            scope,
            scope.options(name="x"),
            handle,
            isolated_session(LiteSession)(plain_body),
            Repo().job,
            task,
            engine,
        ]

        assert looked_at(passed) == []

        await handle
        await task
    assert statements == []


async def test_what_is_shared_by_design_may_know_a_session(LiteSession):
    """A request's exit stack, a thread local, a future, a context variable, a weak reference, a class, a module."""
    session = LiteSession()
    stack = contextlib.AsyncExitStack()
    stack.push_async_callback(session.close)
    with_stack = request()
    with_stack.scope["fastapi_inner_astack"] = stack
    local = threading.local()
    local.session = session
    future = concurrent.futures.Future()
    future.set_result(session)
    done = asyncio.get_running_loop().create_future()
    done.set_result(session)
    context = contextvars.copy_context()
    context.run(contextvars.ContextVar("with_session").set, session)
    module = types.ModuleType("with_session")
    module.session = session

    class Repo:
        shared = session

    assert (
        looked_at([with_stack, stack, local, future, done, context, weakref.ref(session), module, Repo, Repo()]) == []
    )

    await stack.aclose()


async def test_a_mock_that_remembers_a_session_passes(LiteSession):
    """It was called with one in a test; that is no way to use it."""
    notify = mock.AsyncMock()
    await notify(LiteSession())
    repository = mock.MagicMock()
    repository.add(LiteSession())

    assert looked_at([notify, repository]) == []


async def test_a_thread_may_change_what_is_looked_at():
    """A dict, set or deque that changes meanwhile is read in one step: no RuntimeError comes out of the check."""
    busy = {"dict": dict.fromkeys(range(1000)), "set": set(range(1000)), "deque": collections.deque(range(1000))}
    stop = threading.Event()

    def change():
        number = 1000
        while not stop.is_set():
            number += 1
            busy["dict"][number] = busy["dict"].pop(number - 1000, None)
            busy["set"].add(number)
            busy["set"].discard(number - 1000)
            busy["deque"].append(number)
            busy["deque"].popleft()

    interval = sys.getswitchinterval()
    thread = threading.Thread(target=change)
    sys.setswitchinterval(1e-6)
    thread.start()
    try:
        for _ in range(200):
            assert looked_at(busy) == []
    finally:
        stop.set()
        thread.join()
        sys.setswitchinterval(interval)
