"""
The line of code that cures a refused call.

Where the source of the call can be read, the cure is that call rewritten; otherwise it is a line to put somewhere else,
and a comment says where. What a comment behind a rewritten call says comes on top of it.
"""

from __future__ import annotations

import ast
import functools
import inspect
import sys
import types
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import sqlalchemy
from sqlalchemy.ext.asyncio import async_object_session

from sa_isolated_tasks._callsite import CallSite, Source
from sa_isolated_tasks._holders import IGNORE
from sa_isolated_tasks._types import Welcome
from sa_isolated_tasks._walk import Node

__all__ = ["Finding", "cure_for"]

_MOST_STEPS = 12


class Finding(NamedTuple):
    """
    Where something was found that must not be passed.

    *path* leads from an argument, or from the function itself, to it. *offset* is how many arguments stand before the
    function's own in the source of the call, *positional* how many of its own are given by position. *parameter* takes
    the argument; *is_needed* if the function cannot do without.
    """

    path: tuple[Node, ...]
    function: str
    offset: int
    positional: int
    parameter: str
    is_needed: bool
    is_instance: bool

    @property
    def text(self) -> str:
        root, *steps = (node.text for node in self.path)
        if len(steps) > _MOST_STEPS:
            steps[_MOST_STEPS // 2 : -_MOST_STEPS // 2] = [" ... "]
        return f"{root} -> {''.join(steps).strip()}" if steps else root

    @property
    def name(self) -> str:
        return self.function.rpartition(".")[2]

    @property
    def root(self) -> Node:
        return self.path[0]

    @property
    def last(self) -> Node:
        return self.path[-1]

    @property
    def holder(self) -> Any:
        return self.path[-2].value

    @property
    def is_direct(self) -> bool:
        """Whether the argument itself holds what was found."""
        return len(self.path) == len(("argument", "what it holds"))


def cure_for(finding: Finding, site: CallSite) -> str:
    source = _source_of(finding, site)
    if finding.is_instance:
        return _pass_the_key(finding, source, site)
    if source is not None:
        literal = site.cut_out(finding.last.value, source.argument)
        if literal is not source.argument:
            return source.having(literal)
    # A holder of a kind that cannot do without it is what has to be left out itself.
    for length in range(len(finding.path), 1, -1):
        part = finding._replace(path=finding.path[:length])
        cure = part.last.kind in _CURES and _CURES[part.last.kind](part, source, site)
        if cure:
            return cure
    return _leave_out(finding, source)


def _source_of(finding: Finding, site: CallSite) -> Source | None:
    """The source of the guilty argument, if it can be told which one it is."""
    call = site.call
    if call is None or not _is_call_of(finding, call, site):
        return None
    root = finding.root
    key: int | str = root.key if root.kind == "argument" else -1
    if isinstance(key, str):
        argument = next((keyword.value for keyword in call.keywords if keyword.arg == key), None)
    else:
        position = finding.offset + key
        argument = call.args[position] if position >= 0 else None
    return None if argument is None else Source(call, argument)


def _is_call_of(finding: Finding, call: ast.Call, site: CallSite) -> bool:
    """The line may call something else, which then makes the call: ``map``, ``asyncio``, a decorator's wrapper."""
    if len(call.args) != finding.offset + finding.positional or any(isinstance(arg, ast.Starred) for arg in call.args):
        return False
    if finding.offset:
        return site.callee in {"spawn", "spawn_after_commit", "in_session"}
    return site.callee == finding.name or issubclass(type(site.value_of(call.func)), Welcome)


def _leave_out(finding: Finding, source: Source | None) -> str:
    if finding.root.kind == "owner":
        return f"async def work(session, ...): ...  # a function that is given its session, in place of {finding.text}"
    if source is None:
        return f"{finding.name}(...)  # without {finding.text}: the unit has a session of its own"
    if not finding.is_needed:
        return source.without()
    words = f"and {finding.name}() without its parameter {finding.parameter!r}: it has a session of its own"
    return f"{source.without()}  # {words}"


# ---- Containers.


def _from_container(finding: Finding, source: Source | None, site: CallSite) -> str | None:
    if source is None:
        return None
    name = site.name_of(finding.last.value)
    if finding.is_direct:
        container = _container_without(finding, source.text, name)
        return container and source.having(container)
    place = _place_of(finding, source)
    statement = place and _statement_without(finding, place, name)
    return statement and f"{statement}  # before the call"


def _container_without(finding: Finding, source: str, name: str | None) -> str | None:
    """A new container of the same kind, if there is a way to tell what is not to be in it."""
    holder, last = finding.holder, finding.last
    if last.kind == "field":
        return f"{source}._replace({last.key}=None)"
    if last.kind == "item":
        items = f"item for index, item in enumerate({source}) if index != {last.key}"
        return f"tuple({items})" if isinstance(holder, tuple) else f"[{items}]"
    if last.kind == "value" and _is_plain(last.key):
        return f"{{key: value for key, value in {source}.items() if key != {last.key!r}}}"
    variable = "item" if last.kind == "member" else last.kind
    if name is not None:
        test = f"{variable} is not {name}"
    elif _is_the_users(_class_of(last.value)):
        test = f"type({variable}).__name__ != {type(last.value).__name__!r}"
    else:
        return None
    if last.kind != "member":
        return f"{{key: value for key, value in {source}.items() if {test}}}"
    items = f"item for item in {source} if {test}"
    return f"{{{items}}}" if isinstance(holder, set) else f"frozenset({items})"


def _statement_without(finding: Finding, place: str, name: str | None) -> str | None:
    holder, last = finding.holder, finding.last
    if isinstance(holder, list | deque):
        return f"del {place}[{last.key}]"
    if isinstance(holder, dict) and last.kind == "value" and _is_plain(last.key):
        return f"{place}.pop({last.key!r})"
    if isinstance(holder, dict | set) and name is not None:
        return f"{place}.{'discard' if isinstance(holder, set) else 'pop'}({name})"
    return None


def _place_of(finding: Finding, source: Source) -> str | None:
    """The holder as an expression that can stand before the call."""
    steps = finding.path[1:-1]
    if len(steps) > _MOST_STEPS or not source.is_path or not all(map(_is_step, steps)):
        return None
    return source.text + "".join(step.text for step in steps)


def _is_step(node: Node) -> bool:
    return node.kind in {"item", "attribute", "field"} or (node.kind == "value" and _is_plain(node.key))


def _is_plain(key: object) -> bool:
    """Whether the key is written as it is shown."""
    return type(key) in {str, int, bool, bytes, type(None)}


# ---- Objects.


def _from_object(finding: Finding, source: Source | None, _site: CallSite) -> str | None:
    """A copy of the object without it, or a class that says that it keeps it for other purposes."""
    cls, name = _class_of(finding.holder), finding.last.key
    ignore = f'{IGNORE} = ("{name}",)' if _is_the_users(cls) else ""
    copy = _copy_with(cls, name, source.text, "None") if source is not None and finding.is_direct else None
    if source is not None and copy is not None:
        return source.having(copy) + (f"  # or, in class {cls.__name__}: {ignore}" if ignore else "")
    return f"{ignore}  # in class {cls.__name__}, if it keeps .{name} for other purposes" if ignore else None


def _class_of(value: object) -> type[Any]:
    return type(value)


def _is_the_users(cls: type[Any]) -> bool:
    """Or a library's: it can be told from what is everywhere, and be asked to change."""
    return cls.__module__.partition(".")[0] not in sys.stdlib_module_names


def _copy_with(cls: type[Any], name: str, source: str, value: str) -> str | None:
    """A copy of the object with another value in one attribute, if its class has such a thing."""
    if issubclass(cls, types.SimpleNamespace):
        return f"type({source})(**{{**vars({source}), {name!r}: {value}}})"
    fields: dict[str, Any] = inspect.getattr_static(cls, "__dataclass_fields__", {})
    if name in fields and fields[name].init:
        return f"dataclasses.replace({source}, {name}={value})"
    for attribute in inspect.getattr_static(cls, "__attrs_attrs__", ()):
        if attribute.name == name and attribute.init:
            return f"attrs.evolve({source}, {attribute.alias}={value})"
    # What pydantic calls private is no field, and is copied as it is.
    if hasattr(cls, "model_copy") and not name.startswith("_"):
        return f"{source}.model_copy(update={{{name!r}: {value}}})"
    return None


# ---- Functions, and what has been made of them.


def _from_partial(finding: Finding, source: Source | None, _site: CallSite) -> str | None:
    """``partial(fn, session, 1)`` becomes ``partial(fn, item_id=1)``; one that is spawned becomes its function."""
    partial, key = finding.holder, finding.last.key
    if not isinstance(partial, functools.partial):
        return None
    call = source.call_of("partial") if source is not None and finding.is_direct else None
    parameters = _parameters(getattr(partial.func, "__code__", None))
    if source is None or call is None:
        new = _partial_of(finding.holder, parameters, key)
        return f"{new}  # {finding.name}() calls it with the session of the unit"
    function, *args = call.args
    keywords = [keyword for keyword in call.keywords if keyword.arg != key]
    position = key if isinstance(key, int) else len(args)
    before, after = args[:position], args[position + 1 :]
    if finding.root.kind == "owner":
        given = [*before, *after, *source.call.args[finding.offset :]]
        return source.spawning(finding.offset, ast.Call(function, given, [*keywords, *source.call.keywords]))
    # The session comes first when it is called; what stood behind it has to keep out of its way.
    named = [ast.keyword(name, arg) for name, arg in zip(parameters[position + 1 :], after, strict=False)]
    new = source.having(ast.Call(call.func, [function, *before], [*named, *keywords]))
    return f"{new}  # {finding.name}() calls it with the session of the unit"


def _partial_of(partial: functools.partial[Any], parameters: list[str], key: int | str) -> str:
    """With dots for its other arguments, which are not to be shown."""
    position = key if isinstance(key, int) else len(partial.args)
    dots = ["..."] * len(partial.args[:position])
    names = [*parameters[position + 1 : len(partial.args)], *partial.keywords]
    given = [getattr(partial.func, "__name__", "fn"), *dots, *(f"{name}=..." for name in names if name != key)]
    return f"functools.partial({', '.join(given)})"


_CODES = {"coroutine": "cr_code", "generator": "gi_code", "async generator": "ag_code"}


def _from_unstarted(finding: Finding, source: Source | None, site: CallSite) -> str:
    """``spawn(run, work(session, 1))`` becomes ``spawn(work, 1)``: the function, not a coroutine that has a session."""
    word, name, variable = finding.last.key
    code: types.CodeType = getattr(finding.holder, _CODES[word])
    if variable in code.co_freevars:
        return _with_parameter(code, variable, finding)
    call = source.call_of(name) if source is not None and finding.is_direct else None
    is_body = word == "coroutine" and _parameters(code)[:1] == [variable]
    if source is not None and call is not None and is_body and site.callee.startswith("spawn"):
        keywords = [keyword for keyword in call.keywords if keyword.arg != variable]
        args = call.args[1:] if len(keywords) == len(call.keywords) else call.args
        return source.spawning(finding.offset, ast.Call(call.func, args, keywords))
    made = ("await " if word == "coroutine" else "") + (f"{name}(...)" if call is None else ast.unparse(call))
    place = f"its parameter {finding.parameter!r}" if finding.parameter else finding.root.text
    return f"{made}  # in {finding.name}(), in place of {place}: with the session of the unit"


def _from_closure(finding: Finding, source: Source | None, _site: CallSite) -> str:
    """The body has a session of its own under another name; any other function becomes one that is given it."""
    code: types.CodeType = finding.holder.__code__
    variable = finding.last.key
    if _is_body(finding):
        return f"{variable} = {_session_of(code)}  # first line of {finding.name}(): the session of the unit"
    argument = source.argument if source is not None and finding.is_direct else None
    if source is None or not isinstance(argument, ast.Lambda):
        return _with_parameter(code, variable, finding)
    argument.args.args.insert(0, ast.arg(variable))
    return f"{source.having(argument)}  # {finding.name}() calls it with the session of the unit"


def _from_default(finding: Finding, _source: Source | None, _site: CallSite) -> str:
    code: types.CodeType = finding.holder.__code__
    name, variable = finding.name, finding.last.key
    if _is_body(finding):
        return f"{variable} = {_session_of(code)}  # first line of {name}(), in place of its parameter {variable!r}"
    return f"{variable}=None  # in place of the default of {code.co_name}(): {name}() gives it the session of the unit"


def _is_body(finding: Finding) -> bool:
    """Whether it is the function that is spawned, or called, and not one that is passed to it."""
    return finding.root.kind == "owner" and finding.holder.__name__ == finding.name


def _parameters(code: types.CodeType | None) -> list[str]:
    """The names of a function's parameters that can be given by position, without ``self``."""
    names = [] if code is None else list(code.co_varnames[: code.co_argcount])
    return names[1:] if names[:1] in (["self"], ["cls"]) else names


def _session_of(code: types.CodeType) -> str:
    """What a body calls its session; one without a parameter for it has it in its ``*args``."""
    names = _parameters(code)
    return names[0] if names else f"{code.co_varnames[code.co_argcount + code.co_kwonlyargcount]}[0]"


def _with_parameter(code: types.CodeType, variable: str, finding: Finding) -> str:
    """The line that defines a function, with one more parameter; dots stand for those that it has."""
    parameters = f"{variable}, ..." if code.co_argcount else variable
    line = f"{'async def' if code.co_flags & inspect.CO_COROUTINE else 'def'} {code.co_name}({parameters}):"
    line = f"lambda {parameters}: ..." if code.co_name == "<lambda>" else line
    return f"{line}  # {finding.name}() calls it with the session of the unit"


# ---- Mapped instances.


def _pass_the_key(finding: Finding, source: Source | None, site: CallSite) -> str:
    """An instance is loaded again by its primary key, in the session of the unit."""
    instance = finding.last.value
    cls, variable = type(instance).__name__, finding.parameter or "instance"
    state: Any = sqlalchemy.inspect(instance)
    if state.pending:
        session = async_object_session(instance)
        name = (session and site.name_of(session)) or "session"
        return f"await {name}.commit()  # before the call: the instance of {cls} has no row yet, and no key to pass"
    keys = None if source is None else _keys_in_place(finding, source)
    if source is None or keys is None:
        return f"await session.get({cls}, key)  # in {finding.name}(), given the key of {finding.text} in its place"
    if len(finding.path) == 1:
        line = f"{variable} = await session.get({cls}, {variable})"
    elif finding.last.kind in {"item", "member"}:
        line = f"{variable} = [await session.get({cls}, key) for key in {variable}]"
    else:
        line = f"await session.get({cls}, {variable}{finding.last.text})"
    return f"{source.having(keys)}  # in {finding.name}(): {line}"


def _keys_in_place(finding: Finding, source: Source) -> str | None:
    """The argument with the key in place of the instance, or the keys of all, if it is a container of them."""
    last = finding.last
    if len(finding.path) == 1:
        return _key_of(finding, source.text)
    if not finding.is_direct:
        return None
    if last.kind in {"item", "member"}:
        are_alike = type(finding.holder) in {list, tuple, set, frozenset} and len({*map(type, finding.holder)}) == 1
        return f"[{_key_of(finding, 'item')} for item in {source.text}]" if are_alike else None
    key = _key_of(finding, source.text + last.text)
    if last.kind == "value" and _is_plain(last.key):
        return f"{{**{source.text}, {last.key!r}: {key}}}"
    if last.kind == "field":
        return f"{source.text}._replace({last.key}={key})"
    return _copy_with(_class_of(finding.holder), last.key, source.text, key) if last.kind == "attribute" else None


def _key_of(finding: Finding, source: str) -> str:
    instance = finding.last.value
    state: Any = sqlalchemy.inspect(instance)
    names = [state.mapper.get_property_by_column(column).key for column in state.mapper.primary_key]
    if state.identity is not None and not all(name in vars(instance) for name in names):
        # Reading an attribute would load it, which fails without a session, and without `await`.
        return f"sqlalchemy.inspect({source}).identity"
    fields = [f"{source}.{name}" for name in names]
    return fields[0] if len(fields) == 1 else f"({', '.join(fields)})"


_Cure = Callable[[Finding, Source | None, CallSite], str | None]
_CURES: dict[str, _Cure] = {
    **dict.fromkeys(("item", "value", "key", "member", "field"), _from_container),
    "attribute": _from_object,
    "partial": _from_partial,
    "local": _from_unstarted,
    "closure": _from_closure,
    "default": _from_default,
}
