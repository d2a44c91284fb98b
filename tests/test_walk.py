"""The walk through an object graph: its order, its bounds, and what it reads; whole shapes are in *test_guard.py*."""

from __future__ import annotations

import collections
import functools
import types

import pydantic
import pytest
import sqlalchemy as sa
from sqlalchemy.orm import declarative_base, relationship

from sa_isolated_tasks import _holders
from sa_isolated_tasks._holders import _snapshot, are_scalars, bases_of, is_scalar, stored_in
from sa_isolated_tasks._walk import Node, walk

ModelBase = declarative_base()


class Leaf:
    """Something to be found; it holds nothing."""

    __slots__ = ()


def visited(*roots, budget=1_000):
    return [node.value for node in walk([Node("argument", index, root) for index, root in enumerate(roots)], budget)]


def paths_to(wanted, *roots, budget=1_000):
    nodes = walk([Node("argument", index, root) for index, root in enumerate(roots)], budget)
    return ["".join(step.text for step in node.path()) for node in nodes if node.value is wanted]


def test_what_is_nearest_comes_first():
    """Breadth first: all arguments before what is in them, and so on down."""
    one, two, three = Leaf(), Leaf(), Leaf()
    nested = [[three], two]

    assert visited(nested, one) == [one, two, three]


def test_every_object_is_visited_once():
    """By the shortest path, however many lead to it, and around a cycle."""
    leaf = Leaf()
    cycle = [leaf, [leaf]]
    cycle.append(cycle)

    assert visited(cycle) == [leaf]
    assert paths_to(leaf, cycle) == ["arg 1[0]"]


def test_scalars_and_plain_containers_are_not_visited():
    """They count, but are nothing to be judged."""
    assert visited([1, "a", b"b", None, 2.5, [3], {"four": 4}, (5, {6}), frozenset({7})]) == []


def test_scalars_in_a_container_count():
    """What stands behind a huge container of them is seen, as long as the budget lasts; the container gets half."""
    leaf = Leaf()

    assert visited([[1] * 10_000, [leaf]], budget=100) == [leaf]
    assert visited([1] * 49, [[2] * 49, [leaf]], budget=100) == [leaf]
    assert visited([{number: number for number in range(10_000)}, [leaf]], budget=100) == [leaf]
    assert visited([[1] * 100, [2] * 100, [3] * 100, [4] * 100, [5] * 100, [6] * 100, [leaf]], budget=20) == []


def test_a_subclass_of_a_scalar_is_visited():
    """It may have attributes."""

    class Text(str):
        __slots__ = ("__dict__",)

    text, leaf = Text("x"), Leaf()
    text.leaf = leaf

    assert not is_scalar(text)
    assert paths_to(leaf, text) == ["arg 1.leaf"]


@pytest.mark.parametrize(("values", "expected"), [((), True), ((1, "a", None), True), ((1, []), False), (([],), False)])
def test_scalars_are_told_by_their_exact_type(values, expected):
    """All of them, in one step."""
    assert are_scalars(values) is expected


def test_the_number_of_visited_objects_is_bounded():
    """By the budget and the roots, however wide or deep the graph is."""
    wide = [Leaf() for _ in range(100_000)]
    deep = None
    for _ in range(100_000):
        deep = types.SimpleNamespace(next=deep)
    bushy = {number: types.SimpleNamespace(leaves=[Leaf() for _ in range(100)]) for number in range(200)}

    counts = [len(visited(graph, budget=1_000)) for graph in (wide, deep, bushy)]

    assert all(100 < count <= 1_001 for count in counts), counts
    while deep:
        deep = deep.next


def test_scalars_use_up_the_budget():
    """A list of a hundred million numbers takes no longer than one of as many as the budget."""
    leaf = Leaf()

    assert paths_to(leaf, [*range(400), leaf], budget=1_000) == ["arg 1[400]"]
    assert paths_to(leaf, [*range(600), leaf], budget=1_000) == []


def with_attributes(count, leaf):
    """An object with as many plain attributes, and *leaf* behind them."""
    return types.SimpleNamespace(**{f"plain_{number}": number for number in range(count)}, leaf=leaf)


def with_slots(count, leaf):
    names = [f"plain_{number:04}" for number in range(count)]
    made = type("Slotted", (), {"__slots__": (*names, "z_leaf")})()
    for name in names:
        setattr(made, name, 1)
    made.z_leaf = leaf
    return made


def with_bases(count, leaf):
    """An object whose class derives from as many others."""
    cls = object
    for _ in range(count):
        cls = type("Deep", (cls,), {})
    made = cls()
    made.leaf = leaf
    return made


@pytest.mark.parametrize("make", [with_attributes, with_slots, with_bases])
def test_ten_plain_attributes_or_classes_count_as_one_object(make):
    """What stands behind so many of them that half of the budget is used up is not seen, and what is before, is."""
    leaf = Leaf()

    assert [node.value for node in walk([Node("argument", 0, make(490, leaf))], 100)][1:] == [leaf]
    assert [node.value for node in walk([Node("argument", 0, make(510, leaf))], 100)][1:] == []


@pytest.mark.parametrize(("make", "cost"), [(with_attributes, 10), (with_slots, 10), (with_bases, 10)])
def test_plain_attributes_and_classes_use_up_the_budget_of_what_comes_next(make, cost):
    """Of many objects with a hundred each, as many are read as the budget pays for."""
    leaves = [Leaf() for _ in range(100)]
    many = [make(100, leaf) for leaf in leaves]

    seen = {id(value) for value in visited(many, budget=400)}

    found = sum(id(leaf) in seen for leaf in leaves)
    assert 0 < found <= (400 - len(many)) // cost


class Bag(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")


@pytest.mark.parametrize(
    ("make", "most"),
    [
        (lambda names: types.SimpleNamespace(**names), 500),
        (lambda names: functools.partial(print, **names), 50),
        (lambda names: Bag(**names), 500),
    ],
    ids=["attributes", "keywords of a partial", "extras of pydantic"],
)
def test_no_dict_is_copied_further_than_the_budget_goes(monkeypatch, make, most):
    """A copy of a dict with a million names would take its time although most of it is never looked at."""
    made = make({f"name_{number}": Leaf() for number in range(10_000)})
    copied = []

    def snapshot(iterate, value, room):
        items = _snapshot(iterate, value, room)
        copied.append(len(items))
        return items

    monkeypatch.setattr(_holders, "_snapshot", snapshot)

    assert 40 < len(visited(made, budget=100)) <= 51

    assert max(copied) == most


def test_one_container_leaves_half_of_the_budget_to_the_others():
    """And the second one half of the rest."""
    leaf = Leaf()
    huge = [Leaf() for _ in range(10_000)]

    assert paths_to(leaf, huge, list(huge), [[leaf]], budget=1_000) == ["arg 3[0][0]"]


def test_a_hidden_metaclass_is_not_asked():
    """Neither for the bases nor for what they define."""

    class Meta(type):
        __mro__ = property(lambda cls: pytest.fail("the metaclass was asked"))
        __dict__ = property(lambda cls: pytest.fail("the metaclass was asked"))

        def mro(cls):
            return [cls, object]

    hidden = type.__call__(Meta, "Hidden", (), {})()
    leaf = Leaf()
    object.__setattr__(hidden, "leaf", leaf)

    assert paths_to(leaf, hidden) == ["arg 1.leaf"]
    assert bases_of(hidden)[-1] is object


def test_slots_of_every_base_are_read():
    """Also those that a subclass hides by a property of the same name; empty ones are left out."""

    class Base:
        __slots__ = ("first", "hidden", "unset")

    class Sub(Base):
        __slots__ = ("second",)
        hidden = property(lambda self: pytest.fail("a property was read"))

    sub = Sub()
    sub.first, sub.second = "f", "s"
    Base.hidden.__set__(sub, "h")

    assert dict(stored_in(sub, bases_of(sub), 10)) == {"first": "f", "second": "s", "hidden": "h"}


def test_a_dict_with_names_that_are_no_text():
    """Somebody has put them there by hand; they are left alone."""

    class Strange: ...

    strange, leaf = Strange(), Leaf()
    vars(strange)[1] = leaf
    vars(strange)["named"] = [leaf]

    assert paths_to(leaf, strange) == ["arg 1.named[0]"]


def test_a_namespace_is_no_class_with_slots():
    """Its ``__dict__`` is described in another way than that of other objects."""
    leaf = Leaf()

    assert paths_to(leaf, types.SimpleNamespace(x=leaf)) == ["arg 1.x"]


def test_a_tuple_whose_fields_are_no_fields():
    """A class may use the name ``_fields`` for something else."""

    class Odd(tuple):
        __slots__ = ()
        _fields = "not a tuple"

    leaf = Leaf()

    assert paths_to(leaf, Odd([leaf])) == ["arg 1[0]"]


def test_keys_that_are_objects_are_visited_too():
    """After their values."""
    key, value = Leaf(), Leaf()

    assert visited({key: value}) == [value, key]


def test_application_objects_are_not_entered():
    """What takes ``(scope, receive, send)`` is an ASGI application, router or middleware."""
    leaf = Leaf()

    class App:
        def __init__(self):
            self.state = leaf

        async def __call__(self, scope, receive, send): ...

    class NotAnApp(App):
        async def __call__(self, first, second): ...

    assert paths_to(leaf, App()) == []
    assert paths_to(leaf, NotAnApp()) == ["arg 1.state"]


def test_a_collection_of_instances_does_not_lead_to_its_mapper():
    """What SQLAlchemy puts into it is not looked at; its items are."""

    class Parent(ModelBase):
        __tablename__ = "walked_parents"
        id = sa.Column(sa.Integer, primary_key=True)
        children = relationship("Child")

    class Child(ModelBase):
        __tablename__ = "walked_children"
        id = sa.Column(sa.Integer, primary_key=True)
        parent_id = sa.Column(sa.ForeignKey(Parent.id))

    parent = Parent(children=[Child(), Child()])

    found = [type(each).__name__ for each in visited(parent)]

    assert sorted(found) == [
        "Child",
        "Child",
        "InstanceState",
        "InstanceState",
        "InstanceState",
        "InstrumentedList",
        "Parent",
    ]


def test_a_running_generator_has_no_arguments_any_more():
    """Only what has not begun is looked into; what has ended has no frame."""
    leaf = Leaf()

    def generate(value):
        yield value

    waiting, begun, ended = generate(leaf), generate(leaf), generate(leaf)
    next(begun)
    ended.close()

    assert paths_to(leaf, waiting) == ["arg 1 un-started generator generate() variable 'value'"]
    assert paths_to(leaf, begun) == []
    assert paths_to(leaf, ended) == []


async def test_a_running_coroutine_has_no_arguments_any_more():
    """The same, of coroutines and async generators, with a closure and many arguments."""
    leaf, other = Leaf(), Leaf()

    @types.coroutine
    def suspend():
        yield

    async def run(value, *args, key=None):
        await suspend()
        return value, args, key, other

    async def generate(value):
        yield value
        yield other

    begun, lazy = run(leaf), generate(leaf)
    assert len(paths_to(leaf, begun) + paths_to(leaf, lazy) + paths_to(other, begun, lazy)) == 3

    begun.send(None)
    await anext(lazy)

    assert paths_to(leaf, begun) + paths_to(leaf, lazy) + paths_to(other, begun, lazy) == []
    begun.close()
    await lazy.aclose()


def test_partials_of_partials_are_flat():
    """Python joins them; the walk sees the arguments of both."""
    leaf = Leaf()

    nested = functools.partial(functools.partial(print, 1, leaf), 2, sep=leaf)

    assert paths_to(leaf, nested) == ["arg 1.args[1]"]


def test_a_path_names_each_kind_of_place():
    """As it is written in an error."""
    leaf = Leaf()
    steps = [("argument", "ctx", "arg 'ctx'"), ("value", "a", "['a']"), ("item", 3, "[3]"), ("field", "b", ".b")]
    steps += [
        ("value", collections.deque, "[<type>]"),
        ("value", slice(leaf), "[<slice>]"),
        ("value", "x" * 99, "[<str>]"),
    ]
    steps += [("owner", "work", "work"), ("self", None, " self"), ("key", None, ".keys()"), ("member", None, "{...}")]

    assert [(kind, key, Node(kind, key, leaf).text) for kind, key, _ in steps] == steps


def test_what_changes_while_it_is_read_is_read_again():
    """Another thread may put something in between the two steps of reading a dict, a set or a deque."""
    attempts = []

    def iterate(value):
        attempts.append(value)
        if len(attempts) < 3:
            raise RuntimeError("changed size during iteration")
        return iter(value)

    assert _snapshot(iterate, [1, 2, 3], 2) == [1, 2]
    assert len(attempts) == 3
