"""
How each kind of object holds others, read without running any code of theirs.

Containers are read by the built-in types' own methods, attributes from ``__dict__`` and slots, iterators by the garbage
collector's view of them, classes by their identity.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import datetime as dt
import decimal
import dis
import functools
import gc
import itertools
import logging
import operator
import pathlib
import queue
import re
import sys
import threading
import types
import uuid
import weakref
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, TypeAlias, cast

from sqlalchemy import MetaData
from sqlalchemy.engine import Engine, Result, Row, RowMapping
from sqlalchemy.engine.result import FilterResult
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Mapper, Session, sessionmaker
from sqlalchemy.orm.state import InstanceState
from sqlalchemy.sql import ClauseElement

from sa_isolated_tasks._types import Welcome

__all__ = ["IGNORE", "are_scalars", "bases_of", "children_of", "flat_items_of", "is_scalar", "stored_in"]

IGNORE = "__isolated_tasks_ignore__"

_Class: TypeAlias = type[Any]

# Read past any metaclass or property of the user's.
_mro_of = cast("Callable[[_Class], tuple[_Class, ...]]", type.__dict__["__mro__"].__get__)
_members_of = cast("Callable[[_Class], types.MappingProxyType[str, Any]]", type.__dict__["__dict__"].__get__)


def bases_of(value: object) -> tuple[_Class, ...]:
    return _mro_of(type(value))


_SCALARS: tuple[_Class, ...] = (
    *(type(None), bool, int, float, complex, str, bytes, bytearray, memoryview, range),
    *(type(Ellipsis), type(NotImplemented), decimal.Decimal, uuid.UUID),
    *(dt.date, dt.datetime, dt.time, dt.timedelta, dt.timezone),
    *(pathlib.Path, pathlib.PosixPath, pathlib.WindowsPath),
    *(pathlib.PurePath, pathlib.PurePosixPath, pathlib.PureWindowsPath),
)
# Classes are told apart by `id`, here and below: a metaclass may have an `__eq__` or `__hash__` of its own, and a set
# of classes would call it. None of these is ever collected, so no id of theirs is used again.
_SCALAR_IDS = frozenset(map(id, _SCALARS))


def is_scalar(value: object) -> bool:
    """Whether *value* can hold nothing else, judged by its exact type."""
    return id(type(value)) in _SCALAR_IDS


def are_scalars(values: Iterable[object]) -> bool:
    """Whether they all are: this is the whole cost of the guard for most calls, so no bytecode runs for each."""
    return _SCALAR_IDS.issuperset(map(id, map(type, values)))


Child: TypeAlias = tuple[str, Any, Any]
"""How an object holds another: the kind of place, which one of that kind, and what stands there."""


def children_of(value: object, room: int) -> Iterator[Child]:
    plain = _PLAIN.get(id(type(value)))
    if plain is not None:
        yield from plain(value, room)
        return
    bases = bases_of(value)
    if not _SHARED_IDS.isdisjoint(map(id, bases)) or _is_mock(bases) or _is_asgi_application(bases):
        return
    reader = next((_READERS[id(base)] for base in bases if id(base) in _READERS), None)
    if reader is not None:
        yield from reader(value, room)
    yield from _attributes_of(value, bases, room)


def flat_items_of(value: object, room: int) -> list[Any] | None:
    """The first items of a plain container, keys and values of a dict; None of anything else."""
    flat = _FLAT.get(id(type(value)))
    return None if flat is None else flat(value, room)


def _is_mock(bases: tuple[_Class, ...]) -> bool:
    """A mock answers for itself; it may remember a session that it was called with, which is no harm."""
    mock = sys.modules.get("unittest.mock")
    return mock is not None and any(base is mock.NonCallableMock for base in bases)


def _is_asgi_application(bases: tuple[_Class, ...]) -> bool:
    """An application, router or middleware, which every request refers to."""
    call = next((members["__call__"] for members in map(_members_of, bases) if "__call__" in members), None)
    return type(call) is types.FunctionType and call.__code__.co_varnames[1:4] == ("scope", "receive", "send")


# What SQLAlchemy puts into a collection of mapped instances; it leads to the configuration of the mapper.
_COLLECTION_ADAPTER = "_sa_adapter"


_CHEAP = 10
"""So many classes and plain attributes cost about as much as one object that is looked at, and count as one."""
_CHEAP_ONES: Child = ("attribute", "", None)


def _attributes_of(value: object, bases: tuple[_Class, ...], room: int) -> Iterator[Child]:
    """What stands in ``__dict__`` and slots, but for what a class names in ``__isolated_tasks_ignore__``."""
    ignored: set[str] | None = None
    cheap = len(bases) % _CHEAP
    yield from itertools.repeat(_CHEAP_ONES, len(bases) // _CHEAP)
    for name, child in stored_in(value, bases, room * _CHEAP):
        if is_scalar(child) or type(name) is not str or name == _COLLECTION_ADAPTER:
            cheap += 1
            if cheap == _CHEAP:
                cheap = 0
                yield _CHEAP_ONES
            continue
        if ignored is None:
            ignored = _ignored_by(bases)
        if name not in ignored:
            yield "attribute", name, child


def stored_in(value: object, bases: tuple[_Class, ...], room: int) -> Iterator[tuple[str, Any]]:
    """The names and values of the attributes that the object itself holds; of those in a dict, the first ones."""
    for members in map(_members_of, bases):
        descriptor = members.get("__dict__")
        # Anything else of that name is the user's own.
        if type(descriptor) is types.GetSetDescriptorType or type(descriptor) is types.MemberDescriptorType:
            yield from _snapshot(_dict_items, descriptor.__get__(value), room)
        if "__slots__" in members:
            for name, member in members.items():
                if type(member) is types.MemberDescriptorType and name != "__dict__":
                    yield from _slot(name, member, value, room)


# Pydantic keeps these apart from `__dict__`; for its users they are attributes like the others.
_BAGS = ("__pydantic_private__", "__pydantic_extra__")


def _slot(name: str, member: types.MemberDescriptorType, value: object, room: int) -> Iterator[tuple[str, Any]]:
    try:
        child = member.__get__(value)
    except AttributeError:  # an empty slot
        return
    if name in _BAGS and type(child) is dict:
        yield from _snapshot(_dict_items, cast("dict[str, Any]", child), room)
    else:
        yield name, child


def _ignored_by(bases: tuple[_Class, ...]) -> set[str]:
    names: set[str] = set()
    for members in map(_members_of, bases):
        given: Any = members.get(IGNORE, ())
        names.update((given,) if isinstance(given, str) else given)
    return names


# ---- One reader for each kind of holder.

_Reader: TypeAlias = Callable[[Any, int], Iterator[Child]]
_Iterate: TypeAlias = Callable[[Any], Iterable[Any]]


def _snapshot(iterate: _Iterate, value: object, room: int) -> list[Any]:
    """Its first items, although another thread may be changing it."""
    while True:
        try:
            return list(islice(iterate(value), room))
        except RuntimeError:
            # Q: What has changed it? A: A thread that ran after the iterator was made, and before it was used up in one
            # step: test_guard_innocents.py::test_a_thread_may_change_what_is_looked_at.
            continue


def _in_order(iterate: _Iterate) -> _Reader:
    def read(value: object, room: int) -> Iterator[Child]:
        return (("item", index, item) for index, item in enumerate(_snapshot(iterate, value, room)))

    return read


def _without_order(iterate: _Iterate) -> _Reader:
    def read(value: object, room: int) -> Iterator[Child]:
        return (("member", None, item) for item in _snapshot(iterate, value, room))

    return read


def _by_key(iterate: _Iterate) -> _Reader:
    def read(value: object, room: int) -> Iterator[Child]:
        for key, item in _snapshot(iterate, value, room):
            yield "value", key, item
            if not is_scalar(key):
                yield "key", None, key

    return read


def _tuple(value: tuple[Any, ...], room: int) -> Iterator[Child]:
    bases = bases_of(value)
    names: Any = next((members["_fields"] for members in map(_members_of, bases) if "_fields" in members), None)
    if type(names) is not tuple:
        yield from _plain_tuple(value, room)
        return
    ignored = _ignored_by(bases)
    for name, (_, _, item) in zip(cast("tuple[str, ...]", names), _plain_tuple(value, room), strict=False):
        if name not in ignored:
            yield "field", name, item


def _referents(value: object, _room: int) -> Iterator[Child]:
    name = type(value).__name__
    return (("iterator", name, item) for item in gc.get_referents(value))


def _default_dict(value: defaultdict[Any, Any], room: int) -> Iterator[Child]:
    yield "factory", "default_factory", _factory_of(value)
    yield from _dict(value, room)


def _exception(value: BaseException, _room: int) -> Iterator[Child]:
    for index, item in enumerate(_args_of(value)):
        yield "partial", index, item
    for name, read in _CHAIN.items():
        yield "chained", name, read(value)


def _partial(value: functools.partial[Any], room: int) -> Iterator[Child]:
    for index, item in enumerate(value.args):
        yield "partial", index, item
    for name, item in _snapshot(_dict_items, value.keywords, room):
        yield "partial", name, item
    yield "attribute", "func", value.func


def _function(value: types.FunctionType, _room: int) -> Iterator[Child]:
    code = value.__code__
    for name, cell in zip(code.co_freevars, value.__closure__ or (), strict=True):
        try:
            yield "closure", name, cell.cell_contents
        except ValueError:  # a cell that is not filled yet
            continue
    defaults = value.__defaults__ or ()
    for name, item in zip(code.co_varnames[code.co_argcount - len(defaults) :], defaults, strict=False):
        yield "default", name, item
    for name, item in list((value.__kwdefaults__ or {}).items()):
        yield "default", name, item


def _method(value: types.MethodType, _room: int) -> Iterator[Child]:
    yield "self", None, value.__self__
    yield "attribute", "__func__", value.__func__


def _builtin_method(value: types.BuiltinMethodType, _room: int) -> Iterator[Child]:
    yield "self", None, value.__self__


def _unstarted(word: str, attribute: str) -> _Reader:
    """The arguments and the closure of what has not begun to run; afterwards it has variables of its own."""

    def read(value: Any, _room: int) -> Iterator[Child]:
        frame: types.FrameType | None = getattr(value, attribute)
        if frame is not None and frame.f_lasti <= _last_before_the_body(frame.f_code):
            for variable, item in list(frame.f_locals.items()):
                yield "local", (word, value.__name__, variable), item

    return read


def _last_before_the_body(code: types.CodeType) -> int:
    """The last instruction that a coroutine or generator has run when it is made: on 3.13 one more than before."""
    return 2 + next(step.offset for step in dis.get_instructions(code) if step.opname == "RETURN_GENERATOR")


_SHARED: tuple[_Class, ...] = (
    # What is shared by design, or leads to the whole process.
    *(type, types.ModuleType, types.CodeType, types.FrameType, types.TracebackType),
    *(asyncio.AbstractEventLoop, concurrent.futures.Future, concurrent.futures.Executor),
    *(threading.Thread, logging.Logger, logging.Handler, re.Pattern, re.Match),
    *(contextvars.ContextVar, contextvars.Context, contextvars.Token, weakref.ReferenceType, *weakref.ProxyTypes),
    # The exit stack of a request knows the sessions of its dependencies.
    *(contextlib.ExitStack, contextlib.AsyncExitStack),
    # SQLAlchemy's own: an engine or a session factory is what one should pass; the rest is configuration.
    *(Engine, AsyncEngine, sessionmaker, ClauseElement, MetaData, Mapper, InstanceState),
    # These are judged as a whole: what the guard lets pass is not to be refused for its parts.
    *(Session, AsyncSession, Result, FilterResult),
    Welcome,
)
_SHARED_IDS = frozenset(map(id, _SHARED))
_ROW: Any = Row  # a generic class, but not on SQLAlchemy 1.4
_VIEWED: dict[Any, Any] = {}
_VIEWS: list[Any] = [_VIEWED.keys(), _VIEWED.values(), _VIEWED.items()]
_EMPTY: list[Any] = [[], {}, deque[Any](), OrderedDict[Any, Any](), *_VIEWS]
# They hold what they iterate over, or work on, where only the garbage collector sees it. Asking it consumes nothing.
_WRAPPERS: list[Any] = [
    *(type(empty) for empty in _VIEWS),
    *(type(iter(empty)) for empty in [*_EMPTY, (), set[Any]()]),
    *(type(reversed(empty)) for empty in _EMPTY),
    *(zip, map, filter, enumerate, reversed, *(cls for cls in vars(itertools).values() if type(cls) is type)),
    *(types.MappingProxyType, type(iter(int, 1)), operator.itemgetter, operator.methodcaller),
    *(staticmethod, classmethod, property, super, slice, queue.SimpleQueue),
]
_plain_tuple = _in_order(vars(tuple)["__iter__"])
_dict_items: _Iterate = vars(dict)["items"]
_dict = _by_key(_dict_items)
_factory_of: Callable[[Any], Any] = vars(defaultdict)["default_factory"].__get__
_args_of: _Iterate = vars(BaseException)["args"].__get__
_CHAIN: dict[str, Callable[[Any], Any]] = {
    name: vars(BaseException)[name].__get__ for name in ("__cause__", "__context__")
}
# What `session.new` and `session.dirty` are; from SQLAlchemy 2.0 on it is compiled, and shows no attribute.
_IdentitySet: Any = type(Session().new)
_identity_set = _without_order(_IdentitySet.__iter__)
_READERS: dict[int, _Reader] = {
    **dict.fromkeys(map(id, _WRAPPERS), _referents),
    id(list): _in_order(vars(list)["__iter__"]),
    id(deque): _in_order(vars(deque)["__iter__"]),
    id(tuple): _tuple,
    id(Row): _in_order(_ROW.__iter__),
    id(set): _without_order(vars(set)["__iter__"]),
    id(frozenset): _without_order(vars(frozenset)["__iter__"]),
    id(defaultdict): _default_dict,
    id(dict): _dict,
    id(RowMapping): _by_key(RowMapping.items),
    id(BaseException): _exception,
    id(functools.partial): _partial,
    id(types.FunctionType): _function,
    id(types.MethodType): _method,
    id(types.BuiltinMethodType): _builtin_method,
    id(types.MethodWrapperType): _builtin_method,
    id(types.CoroutineType): _unstarted("coroutine", "cr_frame"),
    id(types.GeneratorType): _unstarted("generator", "gi_frame"),
    id(types.AsyncGeneratorType): _unstarted("async generator", "ag_frame"),
}


def _items_of(iterate: _Iterate) -> Callable[[Any, int], list[Any]]:
    return lambda value, room: _snapshot(iterate, value, room)


def _keys_and_values(value: dict[Any, Any], room: int) -> list[Any]:
    # A key and its value count as two.
    return [*itertools.chain.from_iterable(_snapshot(_dict_items, value, room // 2))]


_FLAT: dict[int, Callable[[Any, int], list[Any]]] = {
    id(dict): _keys_and_values,
    **{id(cls): _items_of(vars(cls)["__iter__"]) for cls in (list, tuple, set, frozenset, deque)},
}
# These hold nothing else, unless a class is derived from them.
_PLAIN: dict[int, _Reader] = {
    **{id(cls): _READERS[id(cls)] for cls in (list, tuple, dict, set, frozenset, deque)},
    id(_IdentitySet): _identity_set,
}
