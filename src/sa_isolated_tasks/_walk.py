"""
Looks into the arguments of a call, without running any code of theirs.

Nothing is called, iterated (other than by the built-in containers' own methods), loaded or compared: attributes are read
from ``__dict__`` and slots, never by ``getattr``. The walk is iterative and breadth first, so that the shortest path is found, and
visits a bounded number of objects.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import datetime
import decimal
import dis
import fractions
import functools
import gc
import logging
import pathlib
import re
import threading
import types
import uuid
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, TypeAlias, final

from sqlalchemy import MetaData
from sqlalchemy.engine import Engine
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import Mapper, sessionmaker
from sqlalchemy.orm.state import InstanceState
from sqlalchemy.sql import ClauseElement

from sa_isolated_tasks._types import Welcome

__all__ = ["IGNORE", "SCALARS", "Node", "walk"]

IGNORE = "__isolated_tasks_ignore__"

SCALARS: frozenset[type] = frozenset(
    {
        *(type(None), bool, int, float, complex, str, bytes, bytearray, memoryview, range, slice),
        *(type(Ellipsis), type(NotImplemented), decimal.Decimal, fractions.Fraction, uuid.UUID),
        *(datetime.date, datetime.datetime, datetime.time, datetime.timedelta, datetime.timezone),
        *(pathlib.Path, pathlib.PosixPath, pathlib.WindowsPath, pathlib.PurePosixPath, pathlib.PureWindowsPath),
    }
)
"""Looked up by the exact type: this is the whole cost of the guard for most calls."""

_LEAVES: tuple[type, ...] = (
    # What is shared by design, or leads to the whole process.
    *(type, types.ModuleType, types.CodeType, types.FrameType, types.TracebackType),
    *(asyncio.AbstractEventLoop, asyncio.Future, concurrent.futures.Future, concurrent.futures.Executor),
    *(threading.Thread, logging.Logger, logging.Handler, re.Pattern, re.Match),
    *(contextvars.ContextVar, contextvars.Context, contextvars.Token, weakref.ReferenceType, *weakref.ProxyTypes),
    *(contextlib.ExitStack, contextlib.AsyncExitStack),
    # SQLAlchemy's own: an engine or a session factory is what one should pass; the rest is configuration.
    *(Engine, AsyncEngine, sessionmaker, ClauseElement, MetaData, Mapper, InstanceState),
    Welcome,
)

_ITERATORS: tuple[type, ...] = (
    *(type(iter([])), type(iter(())), type(iter(set())), type(reversed([])), type(iter({}))),
    *(type(iter({}.values())), type(iter({}.items())), zip, map, filter, enumerate, islice),
    *(type({}.keys()), type({}.values()), type({}.items()), types.MappingProxyType),
)
"""Their underlying containers are found by the garbage collector's own means: nothing is consumed."""

_SEQUENCES: tuple[type, ...] = (list, tuple, deque)
_SETS: tuple[type, ...] = (set, frozenset)
_UNSTARTED: tuple[tuple[type, str, str], ...] = (
    (types.CoroutineType, "cr_frame", "coroutine"),
    (types.GeneratorType, "gi_frame", "generator"),
    (types.AsyncGeneratorType, "ag_frame", "async generator"),
)

# Read past any metaclass or property of the user's.
_mro_of: Callable[[type], tuple[type, ...]] = type.__dict__["__mro__"].__get__
_vars_of: Callable[[type], types.MappingProxyType[str, Any]] = type.__dict__["__dict__"].__get__


Child: TypeAlias = tuple[str, Any, Any]
"""How an object holds another: the kind of place, which one of that kind, and what stands there."""

_TEXTS: dict[str, Callable[[Any], str]] = {
    "argument": lambda key: f"arg {key + 1}" if isinstance(key, int) else f"arg {key!r}",
    "owner": str,
    "self": lambda _key: " self",
    "item": lambda key: f"[{key}]",
    "value": lambda key: f"[{key!r}]" if type(key) in SCALARS else f"[<{type(key).__name__}>]",
    "key": lambda _key: ".keys()",
    "member": lambda _key: "{...}",
    "iterator": lambda key: f"<{key}>",
    "attribute": lambda key: f".{key}",
    "partial": lambda key: f".args[{key}]" if isinstance(key, int) else f".keywords[{key!r}]",
    "default": lambda key: f".__defaults__[{key}]" if isinstance(key, int) else f".__kwdefaults__[{key!r}]",
    "closure": lambda key: f" closure {key!r}",
    "local": lambda key: f" un-started {key[0]} {key[1]}() variable {key[2]!r}",
}


@final
class Node:
    """An object that was reached, and from where."""

    __slots__ = ("key", "kind", "parent", "value")

    def __init__(self, kind: str, key: Any, value: Any, parent: Node | None = None) -> None:
        self.kind = kind
        self.key = key
        self.value = value
        self.parent = parent

    @property
    def text(self) -> str:
        return _TEXTS[self.kind](self.key)

    def path(self) -> tuple[Node, ...]:
        nodes: list[Node] = []
        node: Node | None = self
        while node is not None:
            nodes.append(node)
            node = node.parent
        return tuple(reversed(nodes))


def walk(roots: list[Node], budget: int) -> Iterator[Node]:
    """Yields every object that can be reached and is no scalar, nearest first, until *budget* objects were seen."""
    queue = deque(roots)
    seen: dict[int, object] = {}
    while queue:
        node = queue.popleft()
        if id(node.value) in seen:
            continue
        # The value is kept, not only its id: an id is reused when what had it is gone.
        seen[id(node.value)] = node.value
        yield node
        # One huge container must not hide what stands next to it: it gets half of what is left.
        for kind, key, child in islice(_children_of(node.value), budget // 2):
            budget -= 1
            if type(child) not in SCALARS:
                queue.append(Node(kind, key, child, node))
        if budget <= 1:
            return


def _children_of(value: Any) -> Iterator[Child]:
    cls = type(value)
    if issubclass(cls, _LEAVES) or _is_asgi_application(cls):
        return
    if issubclass(cls, dict):
        yield from _items_of(value)
    elif issubclass(cls, _SEQUENCES):
        base = next(base for base in _SEQUENCES if issubclass(cls, base))
        for index, item in enumerate(base.__iter__(value)):
            yield "item", index, item
    elif issubclass(cls, _SETS):
        base = next(base for base in _SETS if issubclass(cls, base))
        for item in base.__iter__(value):
            yield "member", None, item
    elif issubclass(cls, _ITERATORS):
        for item in gc.get_referents(value):
            yield "iterator", cls.__name__, item
    elif issubclass(cls, functools.partial):
        yield from _partial(value)
    elif cls is types.FunctionType:
        yield from _function(value)
    elif cls in {types.MethodType, types.BuiltinMethodType}:
        yield "self", None, value.__self__
        if cls is types.MethodType:
            yield "attribute", "__func__", value.__func__
    else:
        yield from _unstarted(value, cls)
    yield from _attributes_of(value)


def _attributes_of(value: Any) -> Iterator[Child]:
    """What stands in ``__dict__`` and slots; a class names what is no one's business in ``__isolated_tasks_ignore__``."""
    cls = type(value)
    ignored = _ignored_by(cls)
    for name, child in _stored_in(value, cls):
        if name not in ignored and not name.startswith("_sa_"):
            yield "attribute", name, child


def _stored_in(value: Any, cls: type) -> Iterator[tuple[str, Any]]:
    for base in _mro_of(cls):
        members = _vars_of(base)
        descriptor = members.get("__dict__")
        if type(descriptor) is types.GetSetDescriptorType and base is not type:
            yield from list(descriptor.__get__(value).items())
        if "__slots__" in members:
            for name, member in members.items():
                if type(member) is types.MemberDescriptorType:
                    try:
                        yield name, member.__get__(value)
                    except AttributeError:  # an empty slot
                        continue


def _ignored_by(cls: type) -> frozenset[str]:
    names: set[str] = set()
    for base in _mro_of(cls):
        given = _vars_of(base).get(IGNORE, ())
        names.update((given,) if isinstance(given, str) else given)
    return frozenset(names)


def _items_of(value: dict[Any, Any]) -> Iterator[Child]:
    for key, item in dict.items(value):
        yield "value", key, item
        if type(key) not in SCALARS:
            yield "key", None, key


def _partial(value: functools.partial[Any]) -> Iterator[Child]:
    for index, item in enumerate(value.args):
        yield "partial", index, item
    for name, item in value.keywords.items():
        yield "partial", name, item
    yield "attribute", "func", value.func


def _function(value: types.FunctionType) -> Iterator[Child]:
    for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
        try:
            yield "closure", name, cell.cell_contents
        except ValueError:  # a cell that is not filled yet
            continue
    for index, item in enumerate(value.__defaults__ or ()):
        yield "default", index, item
    for name, item in (value.__kwdefaults__ or {}).items():
        yield "default", name, item


def _unstarted(value: Any, cls: type) -> Iterator[Child]:
    """The arguments and the closure of something that has not begun to run."""
    for kind, attribute, word in _UNSTARTED:
        if cls is not kind:
            continue
        frame: types.FrameType | None = getattr(value, attribute)
        # One that has begun keeps variables of its own; they are no arguments any more.
        if frame is None or frame.f_lasti > _last_before_the_body(frame.f_code):
            return
        for name, item in frame.f_locals.items():
            yield "local", (word, value.__name__, name), item


def _last_before_the_body(code: types.CodeType) -> int:
    """The last instruction that a coroutine or generator has run when it is made: on 3.13 one more than before."""
    return 2 + next(step.offset for step in dis.get_instructions(code) if step.opname == "RETURN_GENERATOR")


def _is_asgi_application(cls: type) -> bool:
    call = next((_vars_of(base)["__call__"] for base in _mro_of(cls) if "__call__" in _vars_of(base)), None)
    return isinstance(call, types.FunctionType) and call.__code__.co_varnames[1:4] == ("scope", "receive", "send")
