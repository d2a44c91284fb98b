"""What a decorated function is to others: tools that read, copy, wrap, patch or store functions."""

from __future__ import annotations

import abc
import asyncio
import copy
import doctest
import enum
import functools
import gc
import inspect
import pickle
import pydoc
import types
import typing
import weakref
from contextlib import asynccontextmanager
from dataclasses import dataclass
from unittest import mock

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session
from sqlalchemy.orm import declarative_base
from support import Item, session_maker

from sa_isolated_tasks import (
    DeclarationError,
    InstancePassedError,
    IsolatedClassMethod,
    IsolatedFunction,
    IsolatedMethod,
    SessionPassedError,
    TaskScope,
    isolated_session,
)


@isolated_session(AsyncSession)
async def work(session: AsyncSession, number: int, *, text: str = "a") -> list[str]:
    """What it does."""
    return [text] * number


work.custom = "set after decoration"


class Shop:
    """A class that can be pickled, with one method of each kind."""

    def __init__(self, name="shop"):
        self.name = name

    def __eq__(self, other):
        return isinstance(other, Shop) and other.name == self.name

    __hash__ = None

    @isolated_session(AsyncSession)
    async def method(self, session: AsyncSession, number: int) -> str:
        """What the method does."""
        return f"{self.name} {number}"

    @isolated_session(AsyncSession)
    @classmethod
    async def class_method(cls, session: AsyncSession, number: int) -> str:
        """What the classmethod does."""
        return f"{cls.__name__} {number}"

    @isolated_session(AsyncSession)
    @staticmethod
    async def static_method(session: AsyncSession, number: int) -> str:
        """What the staticmethod does."""
        return f"static {number}"


# Metadata.


def test_a_function_has_the_metadata_of_what_it_decorates():
    """Name, module, docstring, line, and attributes that were set before or after."""

    async def plain(session: AsyncSession): ...

    plain.before = 1
    decorated = isolated_session(AsyncSession)(plain)

    assert (work.__name__, work.__qualname__, work.__module__) == ("work", "work", __name__)
    assert work.__doc__ == "What it does."
    assert inspect.getsource(work).splitlines()[1].startswith("async def work(session")
    assert inspect.getsourcefile(inspect.unwrap(work)) == __file__
    assert work.__wrapped__.__name__ == "work"
    assert (decorated.before, work.custom) == (1, "set after decoration")
    assert repr(work) == "<IsolatedFunction work>"
    assert repr(Shop.method) == "<IsolatedMethod Shop.method>"
    assert repr(vars(Shop)["class_method"]) == "<IsolatedClassMethod Shop.class_method>"


EVERY = {
    "function": work,
    "bound method": Shop().method,
    "method": Shop.method,
    "class method": Shop.class_method,
    "class method of an object": Shop().class_method,
    "class method object": vars(Shop)["class_method"],
    "static method": Shop.static_method,
    "using": work.using(AsyncSession),
    "partial": functools.partial(work, 1),
    "partial method": functools.partial(Shop().method, 1),
}


@pytest.mark.parametrize("kind", EVERY)
def test_it_is_a_coroutine_function(kind):
    """For `inspect` and for `asyncio`, on every Python."""
    fn = EVERY[kind]

    assert inspect.iscoroutinefunction(fn)
    assert callable(fn)
    assert not inspect.isasyncgenfunction(fn)
    assert not inspect.isgeneratorfunction(fn)


def test_its_signature_is_the_one_without_the_session():
    """For functions, methods, bound ones, and for who asks the types of the parameters."""
    assert str(inspect.signature(work)) == "(number: 'int', *, text: 'str' = 'a') -> 'list[str]'"
    assert str(inspect.signature(Shop.method)) == "(self, number: 'int') -> 'str'"
    assert str(inspect.signature(Shop().method)) == "(number: 'int') -> 'str'"
    assert str(inspect.signature(Shop.class_method)) == "(number: 'int') -> 'str'"
    assert str(inspect.signature(Shop.static_method)) == "(number: 'int') -> 'str'"
    assert str(inspect.signature(work.using(AsyncSession))) == str(inspect.signature(work))
    assert inspect.getfullargspec(work).args == ["number"]
    assert typing.get_type_hints(work) == {"number": int, "text": str, "return": list[str]}
    assert typing.get_type_hints(Shop().method) == {"number": int, "return": str}
    assert inspect.get_annotations(work, eval_str=True) == {"number": int, "text": str, "return": list[str]}


@pytest.mark.parametrize("kind", list(EVERY)[:8])
def test_whoever_looks_at_all_attributes_meets_no_error(kind):
    """As mocks, debuggers and doc tools do."""
    names = {name for name, _ in inspect.getmembers(EVERY[kind])}

    assert {"__name__", "__signature__", "__wrapped__"} <= names


def test_doc_tools_show_the_docstring_and_the_signature():
    """``help()`` of a module, of a class and of the function."""
    assert "What it does." in pydoc.render_doc(work)
    text = pydoc.plain(pydoc.render_doc(Shop))
    for doc in ("What the method does.", "What the classmethod does.", "What the staticmethod does."):
        assert doc in text
    assert inspect.getdoc(Shop().method) == "What the method does."


def test_examples_in_its_docstring_are_found():
    """By doctest, as those of a function."""
    module = types.ModuleType("examples")
    exec("async def work(session):\n    '>>> 1 + 1'", vars(module))  # noqa: S102
    module.work = isolated_session(AsyncSession)(module.work)

    found = {test.name: test.examples for test in doctest.DocTestFinder().find(module)}

    assert [example.source for example in found["examples.work"]] == ["1 + 1\n"]


def test_an_attribute_of_the_function_cannot_hide_one_of_the_package():
    """A framework that sets ``fn.using`` on what it decorates does not break the promise of `using`."""

    async def plain(session: AsyncSession): ...

    plain.using = plain.in_session = plain.bind = plain.other = "the framework's"
    decorated = isolated_session(AsyncSession)(plain)

    assert type(decorated.using(AsyncSession)) is IsolatedFunction
    assert decorated.other == "the framework's"


def test_attributes_that_are_set_on_a_method_are_seen_on_the_bound_one():
    """As on functions: outer decorators mark methods, and frameworks look for the mark on an object."""

    class Marked:
        @isolated_session(AsyncSession)
        async def method(self, session: AsyncSession): ...

        method.route = "/path"

    assert Marked().method.route == "/path"
    assert Marked.method.using(AsyncSession).route == "/path"
    assert Marked().method.using(AsyncSession).route == "/path"


# Recognition.


def test_only_the_nominal_types_are_recognised():
    """`functools.wraps` copies attributes, not a type; so it copies no mark either."""

    @functools.wraps(work)
    async def copied(*args):
        return await work(*args)

    assert isinstance(work, IsolatedFunction)
    assert isinstance(Shop.method, IsolatedMethod)
    assert isinstance(vars(Shop)["class_method"], IsolatedClassMethod)
    assert not isinstance(copied, (IsolatedFunction, IsolatedMethod, IsolatedClassMethod))
    assert not isinstance(functools.partial(work), IsolatedFunction)


async def test_a_wrapper_looks_like_it_and_has_none_of_its_state():
    """Signature, docstring and attributes are copied; the wrapper stays what it is."""

    @functools.wraps(work)
    async def copied(*args, **kwargs):
        return await work(*args, **kwargs)

    assert str(inspect.signature(copied)) == str(inspect.signature(work))
    assert copied.custom == "set after decoration"
    assert {name for name in vars(copied) if name.startswith("__")} == {
        *("__wrapped__", "__signature__", "__name__", "__qualname__", "__module__", "__doc__", "__annotations__"),
        *({"__type_params__"} & vars(copied).keys()),
    }
    assert await copied(2) == ["a", "a"]


async def test_a_partial_of_it_is_spawned_as_itself():
    """With its own factory, and the arguments that the partial holds."""

    async def never(session): ...

    async with TaskScope(AsyncSession, name="t", limit=1) as scope:
        handles = [
            scope.spawn(functools.partial(work, 2), text="b"),
            scope.spawn(functools.partial(functools.partial(work, text="c"), 1)),
            scope.spawn(functools.partial(Shop().method, 1)),
        ]
        with pytest.raises(TypeError, match="missing a required"):
            scope.spawn(functools.partial(work, text="b"))

    assert [handle.result() for handle in handles] == [["b", "b"], ["c"], "shop 1"]
    assert [handle.name for handle in handles] == ["work#1", "work#2", "Shop.method#3"]


async def test_a_partialmethod_of_it_is_bound():
    """To the object that it is called on."""

    class Corner(Shop):
        partial = functools.partialmethod(Shop.method, 7)

    assert await Corner("corner").partial() == "corner 7"


async def test_it_is_passed_to_a_unit():
    """Isolated functions are welcome arguments: the guard does not look into them."""

    @isolated_session(AsyncSession)
    async def call(session: AsyncSession, *fns):
        return [await fn(1) for fn in fns]

    assert await call(work, Shop().method, [Shop.class_method][0]) == [["a"], "shop 1", "Shop 1"]


# Equality, copies, pickles.


def pickled(value):
    return pickle.loads(pickle.dumps(value))


def test_bound_ones_are_equal_if_they_are_bound_to_the_same_object():
    """As bound methods: each access makes a new one; equal objects are not the same."""
    shop, twin = Shop(), Shop()

    assert shop.method == shop.method
    assert hash(shop.method) == hash(shop.method)
    assert shop == twin
    assert shop.method != twin.method
    assert shop.method != shop.class_method
    assert Shop.class_method == shop.class_method
    assert work == work  # noqa: PLR0124 -- its `__eq__` is the package's
    assert work != work.using(AsyncSession)
    assert work != work.__wrapped__
    assert len({work, work, shop.method, shop.method}) == 2


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickled])
def test_a_function_is_copied_and_pickled_by_name(duplicate):
    """As functions are: the copy is the function."""
    for fn in (work, Shop.method, Shop.static_method):
        assert duplicate(fn) is fn
    assert duplicate(Shop.class_method) == Shop.class_method
    assert duplicate([functools.partial(work, 1)])[0].func is work


async def test_a_bound_method_is_copied_as_bound_methods_are():
    """``copy`` keeps the object, ``deepcopy`` and ``pickle`` make one of their own."""
    shop = Shop()

    assert copy.copy(shop.method) == shop.method
    for duplicate in (copy.deepcopy(shop.method), pickled(shop.method)):
        assert duplicate != shop.method
        shop.name = "changed"
        assert await duplicate(1) == "shop 1"
        shop.name = "shop"


def test_a_function_with_another_factory_is_copied_and_not_pickled():
    """It has no name: a pickle of it would come back with the first factory."""
    other, bound = work.using(AsyncSession), Shop().method.using(AsyncSession)

    assert copy.copy(other) is copy.deepcopy(other) is other
    assert copy.copy(bound) is bound
    for fn in (other, bound):
        with pytest.raises(pickle.PicklingError):
            pickle.dumps(fn)


def test_an_object_that_holds_one_is_copied():
    """A settings object, a registry of handlers, a dataclass."""

    @dataclass
    class Registry:
        handler: object
        by_name: dict

    registry = Registry(work, {"method": Shop().method})
    duplicate = copy.deepcopy(registry)

    assert duplicate.handler is work
    assert duplicate.by_name["method"] != registry.by_name["method"]


def test_it_keeps_no_factory_of_an_object_alive():
    """A method with ``attribute=`` forgets the object, its factory and its engine as soon as the caller does."""

    class Owner:
        def __init__(self):
            self.Session = lambda: AsyncSession()  # noqa: PLW0108 -- something that a weak reference can watch

        @isolated_session(attribute="Session")
        async def method(self, session: AsyncSession): ...

    owner = Owner()
    watched = weakref.ref(owner.Session)
    owner.method().close()
    del owner
    gc.collect()

    assert watched() is None
    assert weakref.ref(work)() is work


# Classes of all kinds.


async def test_an_abstract_method_stays_abstract():
    """In both orders of the decorators; what overrides it may be decorated or not."""

    class Base(abc.ABC):
        @abc.abstractmethod
        @isolated_session(AsyncSession)
        async def above(self, session: AsyncSession): ...

        @isolated_session(AsyncSession)
        @abc.abstractmethod
        async def below(self, session: AsyncSession): ...

    class Half(Base):
        @isolated_session(AsyncSession)
        async def above(self, session: AsyncSession):
            return "above"

    class Whole(Half):
        async def below(self):
            return "below"

    with pytest.raises(TypeError, match="abstract"):
        Base()
    with pytest.raises(TypeError, match="abstract"):
        Half()
    assert [await Whole().above(), await Whole().below()] == ["above", "below"]


async def test_dataclasses_have_isolated_methods():
    """Plain, frozen, with slots; the object need not be hashable, and its fields are looked at like arguments."""

    @dataclass(slots=True)
    class Slotted:
        Session: object
        number: int = 1
        session: object = None

        @isolated_session(attribute="Session")
        async def method(self, session: AsyncSession):
            return self.number

    @dataclass(frozen=True)
    class Frozen:
        number: int = 2

        @isolated_session(AsyncSession)
        async def method(self, session: AsyncSession):
            return self.number

    assert [await Slotted(AsyncSession).method(), await Frozen().method()] == [1, 2]
    with pytest.raises(SessionPassedError, match=r"self\.session"):
        Slotted(AsyncSession, session=AsyncSession()).method()


async def test_mapped_classes_have_isolated_methods(LiteSession):
    """An object that belongs to a session is refused as the owner of a method; a classmethod needs none."""

    class Mapped(declarative_base()):
        __tablename__ = "items"
        id = sa.Column(sa.Integer, primary_key=True)
        name = sa.Column(sa.String(100))

        @isolated_session(LiteSession)
        @classmethod
        async def count(cls, session: AsyncSession):
            return (await session.execute(sa.select(sa.func.count()).select_from(cls))).scalar_one()

        @isolated_session(LiteSession)
        async def named(self, session: AsyncSession):
            return self.name

    assert await Mapped.count() == 0
    assert await Mapped(name="a").named() == "a"
    async with LiteSession() as session:
        attached = Mapped(name="b")
        session.add(attached)
        with pytest.raises(InstancePassedError, match="attached"):
            attached.named()


async def test_pydantic_models_have_isolated_methods():
    """Pydantic wants to be told what in a class body is no field; below a classmethod it knows."""
    pydantic = pytest.importorskip("pydantic")

    class Model(pydantic.BaseModel):
        model_config = pydantic.ConfigDict(ignored_types=(IsolatedFunction, IsolatedMethod, IsolatedClassMethod))
        number: int

        @isolated_session(AsyncSession)
        async def method(self, session: AsyncSession):
            return self.number

        @isolated_session(AsyncSession)
        @classmethod
        async def class_below(cls, session: AsyncSession):
            return cls.__name__

    class Untold(pydantic.BaseModel):
        @classmethod
        @isolated_session(AsyncSession)
        async def class_above(cls, session: AsyncSession):
            return cls.__name__

    assert [await Model(number=1).method(), await Model.class_below()] == [1, "Model"]
    assert await Untold.class_above() == "Untold"
    with pytest.raises(pydantic.errors.PydanticUserError, match="ignored_types"):

        class Wrong(pydantic.BaseModel):
            @isolated_session(AsyncSession)
            async def method(self, session: AsyncSession): ...


async def test_pydantic_validates_the_arguments_of_a_call():
    """Below the decorator, with the session as it is; above it pydantic takes functions only, and says so."""
    pydantic = pytest.importorskip("pydantic")

    @isolated_session(AsyncSession)
    @pydantic.validate_call(config={"arbitrary_types_allowed": True})
    async def below(session: AsyncSession, number: int):
        return number

    assert await below("1") == 1
    with pytest.raises(pydantic.ValidationError):
        await below("one")
    with pytest.raises(pydantic.errors.PydanticUserError, match="validate_call"):
        pydantic.validate_call(work)


async def test_enums_and_metaclasses_have_isolated_methods():
    """A method of an enum is no member of it; one of a metaclass is bound to the class."""

    class Color(enum.Enum):
        RED = "red"

        @isolated_session(AsyncSession)
        async def method(self, session: AsyncSession):
            return self.value

    class Meta(type):
        @isolated_session(AsyncSession)
        async def of_class(cls, session: AsyncSession):
            return cls.__name__

    class Made(metaclass=Meta):
        pass

    assert list(Color) == [Color.RED]
    assert await Color.RED.method() == "red"
    assert await Made.of_class() == "Made"
    assert await Meta.of_class(Made) == "Made"


async def test_a_method_is_used_through_a_property_or_a_getattr():
    """Objects that give others' methods."""

    class Facade:
        def __init__(self, shop):
            self.shop = shop

        @property
        def method(self):
            return self.shop.method

        def __getattr__(self, name):
            return getattr(self.shop, name)

    facade = Facade(Shop())

    assert [await facade.method(1), await facade.static_method(2)] == ["shop 1", "static 2"]


# Tests that replace a decorated function.


async def test_mock_patches_it_with_something_that_can_be_awaited():
    """On the class, on an object and in a module; afterwards it is as it was."""
    shop, method = Shop(), vars(Shop)["method"]

    with mock.patch.object(Shop, "method", return_value="patched"):
        assert await shop.method(1) == "patched"
    with mock.patch.object(shop, "method") as patched:
        patched.return_value = "patched"
        assert await shop.method(1) == "patched"
        assert await Shop().method(1) == "shop 1"
    with mock.patch.object(Shop, "class_method", return_value="patched"):
        assert await Shop.class_method(1) == "patched"
    with mock.patch(f"{__name__}.work", autospec=True, return_value=["patched"]) as patched:
        assert await work(1) == ["patched"]
        patched.assert_awaited_once_with(1)

    assert vars(Shop)["method"] is method
    assert [await shop.method(1), await Shop.class_method(1), await work(1)] == ["shop 1", "Shop 1", ["a"]]


async def test_it_is_replaced_by_a_plain_function():
    """``monkeypatch`` with an ``async def`` that takes what callers pass."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Shop, "method", mock.AsyncMock(return_value="patched"))
        assert await Shop().method(1) == "patched"

    assert await Shop().method(1) == "shop 1"


# Another factory, or a session of the caller's.


async def test_using_is_the_same_function_with_another_factory(LiteSession, sqlite_engine, names_in_table):
    """For tests and second databases; the function itself does not change."""

    class Refusing(AsyncSession):
        async def execute(self, *args, **kwargs):
            raise NotImplementedError

    @isolated_session(lambda: Refusing(sqlite_engine))
    async def add(session: AsyncSession, name: str):
        await session.execute(sa.select(Item))
        session.add(Item(name=name))

    other = add.using(LiteSession)

    await other("a")
    with pytest.raises(NotImplementedError):
        await add("b")
    assert await names_in_table(sqlite_engine) == ["a"]
    assert (other.__name__, other.__wrapped__) == (add.__name__, add.__wrapped__)


async def test_using_replaces_the_attribute_of_a_method(LiteSession):
    """On an object, on the class, and of a classmethod; the object needs no attribute then."""

    class Bare:
        @isolated_session(attribute="Session")
        async def method(self, session: AsyncSession):
            return self, type(session)

        @isolated_session(attribute="Session")
        @classmethod
        async def class_method(cls, session: AsyncSession):
            return cls, type(session)

    bare = Bare()

    assert await bare.method.using(LiteSession)() == (bare, LiteSession.class_)
    assert await Bare.method.using(LiteSession)(bare) == (bare, LiteSession.class_)
    assert await Bare.class_method.using(LiteSession)() == (Bare, LiteSession.class_)
    with pytest.raises(DeclarationError, match="a session, not a factory"):
        bare.method.using(AsyncSession())


async def test_using_a_context_manager(LiteSession, sqlite_engine, names_in_table):
    """Of the project's own, which commits as the project does."""
    ends = []

    @asynccontextmanager
    async def get_session():
        async with LiteSession() as session:
            yield session
            await session.commit()
            ends.append("committed")

    @isolated_session(LiteSession)
    async def add(session: AsyncSession, name: str):
        session.add(Item(name=name))

    await add.using(get_session)("a")

    assert ends == ["committed"]
    assert await names_in_table(sqlite_engine) == ["a"]


async def test_in_session_runs_the_body_in_a_session_of_the_callers(Session, engine, names_in_table):
    """Nothing is committed, rolled back or closed: the caller does it."""

    @isolated_session(Session)
    async def add(session: AsyncSession, name: str):
        session.add(Item(name=name))
        await session.flush()
        if name == "failing":
            raise ValueError
        return session

    async with Session() as session:
        assert await add.in_session(session, "a") is session
        assert session.in_transaction()
        await session.commit()
        with pytest.raises(ValueError):
            await add.in_session(session, name="failing")
        assert session.in_transaction()
        assert sorted((await session.execute(sa.select(Item.name))).scalars()) == ["a", "failing"]

    assert await names_in_table(engine) == ["a"]


async def test_in_session_composes_functions_in_one_transaction(Session, engine, names_in_table):
    """One fails, and all are rolled back."""

    @isolated_session(Session)
    async def add(session: AsyncSession, name: str):
        session.add(Item(name=name))
        await session.flush()

    @isolated_session(Session)
    async def add_all(session: AsyncSession, *names: str):
        for name in names:
            await add.in_session(session, name)
        if len(names) > 2:
            raise ValueError

    await add_all("a", "b")
    with pytest.raises(ValueError):
        await add_all("c", "d", "e")

    assert await names_in_table(engine) == ["a", "b"]


async def test_in_session_takes_instances_of_that_session_and_of_no_other(LiteSession):
    """Nor another session: what `__call__` refuses is refused."""

    @isolated_session(LiteSession)
    async def rename(session: AsyncSession, item: Item, name: str):
        item.name = name

    async with LiteSession() as session, LiteSession() as other:
        item, stranger = Item(name="a"), Item(name="b")
        session.add(item)
        other.add(stranger)

        await rename.in_session(session, item, "c")
        with pytest.raises(InstancePassedError, match="attached to another session"):
            rename.in_session(session, stranger, "c")
        with pytest.raises(SessionPassedError):
            rename.in_session(session, other, "c")
        with pytest.raises(InstancePassedError):
            rename(item, "c")
        with pytest.raises(TypeError, match="missing 1 required positional argument: 'name'"):
            rename.in_session(session, item)

    assert item.name == "c"


async def test_in_session_takes_a_registry_and_instances_of_its_session(LiteSession):
    """It passes for the session of this task, and is given to the body as it is."""
    registry = async_scoped_session(LiteSession, scopefunc=asyncio.current_task)

    @isolated_session(LiteSession)
    async def rename(session: AsyncSession, item: Item, name: str):
        item.name = name
        return session

    item = Item(name="a")
    registry.add(item)
    async with LiteSession() as other:
        stranger = Item(name="b")
        other.add(stranger)

        assert await rename.in_session(registry, item, "c") is registry
        with pytest.raises(InstancePassedError, match="another session"):
            rename.in_session(registry, stranger, "c")
    await registry.remove()


async def test_in_session_of_methods():
    """On an object, on the class, and of class and static methods; no factory is asked for."""

    class Bare:
        @isolated_session(attribute="Session")
        async def method(self, session: AsyncSession, number: int):
            return self, session, number

        @isolated_session(attribute="Session")
        @classmethod
        async def class_method(cls, session: AsyncSession, number: int):
            return cls, session, number

        @isolated_session(AsyncSession)
        @staticmethod
        async def static_method(session: AsyncSession, number: int):
            return None, session, number

    bare, session = Bare(), AsyncSession()

    assert await bare.method.in_session(session, 1) == (bare, session, 1)
    assert await Bare.method.in_session(bare, session, 1) == (bare, session, 1)
    assert await Bare.class_method.in_session(session, number=1) == (Bare, session, 1)
    assert await bare.static_method.in_session(session, 1) == (None, session, 1)


async def test_in_session_takes_a_double():
    """A unit test of the body needs no database."""

    @isolated_session(AsyncSession)
    async def load(session: AsyncSession, number: int):
        return await session.get(Item, number)

    double = mock.AsyncMock(spec=AsyncSession)
    double.get.return_value = "the item"

    assert await load.in_session(double, 1) == "the item"
    double.get.assert_awaited_once_with(Item, 1)


async def test_other_loops_use_it_as_well(sqlite):
    """It belongs to no event loop; its engine does, and another factory has another one."""
    from sqlalchemy.ext.asyncio import create_async_engine

    async def count():
        engine = create_async_engine(sqlite.url)
        try:
            return await one.using(session_maker(engine))()
        finally:
            await engine.dispose()

    @isolated_session(AsyncSession)
    async def one(session: AsyncSession):
        return (await session.execute(sa.text("select 1"))).scalar_one()

    assert await asyncio.gather(*(asyncio.to_thread(asyncio.run, count()) for _ in range(2))) == [1, 1]
