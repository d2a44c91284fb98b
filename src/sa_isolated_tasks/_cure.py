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
from typing import Any

import sqlalchemy
from sqlalchemy.orm.state import InstanceState

from sa_isolated_tasks._callsite import CallSite, Source, copy_with
from sa_isolated_tasks._holders import IGNORE
from sa_isolated_tasks._walk import MOST_PLACES, Finding, Node, joined, source_of

__all__ = ["cure_for"]

_MOST_STEPS = 12


def cure_for(finding: Finding, site: CallSite) -> str:
    if finding.paths and finding.instances:
        return _in_words(finding)
    if finding.instances:
        finding = finding._replace(paths=finding.instances)
        return _pass_the_keys(finding, source_of(finding, site), site)
    source = source_of(finding, site)
    if source is not None and len(source.arguments) == 1:
        literal, count = site.cut_out([place.value for place in finding.places], source.argument)
        if count >= len(finding.paths):
            return source.having(literal)
    # What a default dict calls has a place of its own, and is not to be changed.
    factory = next((index for index, node in enumerate(finding.path) if node.kind == "factory"), len(finding.path) - 1)
    # A holder of a kind that cannot do without it is what has to be left out itself.
    for length in range(factory + 1, 1, -1):
        part = finding.cut(length)
        if part is None or len(part.paths) > MOST_PLACES or len({place.kind for place in part.places}) > 1:
            continue
        cure = part.last.kind in _CURES and _CURES[part.last.kind](part, source, site)
        if cure:
            return cure
    return _leave_out(finding, source)


def _leave_out(finding: Finding, source: Source | None) -> str:
    name, own = finding.name, "it runs in the session that is given first"
    if finding.root.kind == "owner":
        return f"async def work(session, ...): ...  # a function that is given its session, in place of {finding.text}"
    if source is None and finding.in_session:
        return f"{name}.in_session(session, ...)  # without {finding.all_texts}: {own}"
    if source is None:
        return f"{name}(...)  # without {finding.all_texts}: the unit has a session of its own"
    if finding.in_session and not any(finding.parameters):
        return f"{source.without()}  # and {name}() without a parameter for it: {own}"
    if not finding.is_needed:
        return source.without()
    words = finding.parameters_in_words
    own = own if finding.in_session else "it has a session of its own"
    return f"{source.without()}  # and {name}() without {words}: {own}"


def _in_words(finding: Finding) -> str:
    """Of a session and of an instance in one call, which have different cures."""
    keys = finding._replace(paths=finding.instances).all_texts
    own = "it runs in the session that is given first" if finding.in_session else "the unit has a session of its own"
    return f"{finding.name}(...)  # without {finding.all_texts}, and with a key in place of {keys}: {own}"


# ---- Containers.


def _from_container(finding: Finding, source: Source | None, site: CallSite) -> str | None:
    if source is None:
        return None
    if finding.is_direct:
        container = _container_without(finding, source.text, site)
        return container and source.having(container)
    if len(finding.paths) > 1:
        return None
    place = _place_of(finding, source)
    statement = place and _statement_without(finding, place, site.name_of(finding.last.value))
    return statement and f"{statement}  # before the call"


def _container_without(finding: Finding, source: str, site: CallSite) -> str | None:
    """A new container of the same kind, if there is a way to tell what is not to be in it, and more is in it."""
    holder, kind, keys = finding.holder, finding.last.kind, [place.key for place in finding.places]
    if 1 < len(keys) >= len(holder):
        return None
    if kind == "field":
        return f"{source}._replace({', '.join(f'{key}=None' for key in keys)})"
    if kind == "item":
        items = f"item for index, item in enumerate({source}) if index {_is_none_of(keys)}"
        return f"tuple({items})" if isinstance(holder, tuple) else f"[{items}]"
    if kind == "value" and all(map(_is_plain, keys)):
        return f"{{key: value for key, value in {source}.items() if key {_is_none_of(keys)}}}"
    return _container_by_test(finding, source, site)


def _container_by_test(finding: Finding, source: str, site: CallSite) -> str | None:
    """Where there is no index or key to tell it by."""
    holder, kind = finding.holder, finding.last.kind
    variable = "item" if kind == "member" else kind
    tests = dict.fromkeys(_test_for(place.value, variable, site) for place in finding.places)
    if None in tests:
        return None
    test = " and ".join(filter(None, tests))
    if kind != "member":
        return f"{{key: value for key, value in {source}.items() if {test}}}"
    items = f"item for item in {source} if {test}"
    return f"{{{items}}}" if isinstance(holder, set) else f"frozenset({items})"


def _is_none_of(keys: list[Any]) -> str:
    texts = list(map(repr, keys))
    return f"!= {texts[0]}" if len(texts) == 1 else f"not in {{{', '.join(texts)}}}"


def _test_for(value: object, variable: str, site: CallSite) -> str | None:
    name = site.name_of(value)
    if name is not None:
        return f"{variable} is not {name}"
    cls = _class_of(value)
    return f"type({variable}).__name__ != {cls.__name__!r}" if _is_the_users(cls) else None


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
    cls, names = _class_of(finding.holder), [place.key for place in finding.places]
    quoted = ", ".join(f'"{name}"' for name in names) + ("," if len(names) == 1 else "")
    ignore = f"{IGNORE} = ({quoted})" if _is_the_users(cls) else ""
    values = dict.fromkeys(names, "None")
    copy = copy_with(cls, values, source.text) if source is not None and finding.is_direct else None
    if source is not None and copy is not None:
        return source.having(copy) + (f"  # or, in class {cls.__name__}: {ignore}" if ignore else "")
    kept = joined([f".{name}" for name in names])
    return f"{ignore}  # in class {cls.__name__}, if it keeps {kept} for other purposes" if ignore else None


def _class_of(value: object) -> type[Any]:
    return type(value)


def _is_the_users(cls: type[Any]) -> bool:
    """Or a library's: it can be told from what is everywhere, and be asked to change."""
    return cls.__module__.partition(".")[0] not in sys.stdlib_module_names


def _from_factory(finding: Finding, source: Source | None, _site: CallSite) -> str | None:
    """A default dict becomes a plain one."""
    return source.having(f"dict({source.text})") if source is not None and finding.is_direct else None


# ---- Functions, and what has been made of them.


def _from_partial(finding: Finding, source: Source | None, _site: CallSite) -> str | None:
    """``partial(fn, session, 1)`` becomes ``partial(fn, item_id=1)``; one that is spawned becomes its function."""
    partial, keys = finding.holder, {place.key for place in finding.places}
    if not isinstance(partial, functools.partial):
        return None
    call = source.call_of("partial") if source is not None and finding.is_direct else None
    parameters = _parameters(getattr(partial.func, "__code__", None))
    if source is None or call is None:
        return (
            f"{_partial_of(finding.holder, parameters, keys)}  # {finding.name}() calls it with the session of the unit"
        )
    function, *args = call.args
    keywords = [keyword for keyword in call.keywords if keyword.arg not in keys]
    first = min((key for key in keys if isinstance(key, int)), default=len(args))
    after = {index: arg for index, arg in enumerate(args) if index > first and index not in keys}
    if finding.root.kind == "owner":
        given = [*args[:first], *after.values(), *source.call.args[finding.offset :]]
        return source.spawning(finding.offset, ast.Call(function, given, [*keywords, *source.call.keywords]))
    # The session comes first when it is called; what stood behind it has to keep out of its way.
    named = [ast.keyword(parameters[index], arg) for index, arg in after.items() if index < len(parameters)]
    new = source.having(ast.Call(call.func, [function, *args[:first]], [*named, *keywords]))
    return f"{new}  # {finding.name}() calls it with the session of the unit"


def _partial_of(partial: functools.partial[Any], parameters: list[str], keys: set[int | str]) -> str:
    """With dots for its other arguments, which are not to be shown."""
    first = min((key for key in keys if isinstance(key, int)), default=len(partial.args))
    behind = [index for index in range(first, min(len(parameters), len(partial.args))) if index not in keys]
    names = [*(parameters[index] for index in behind), *(name for name in partial.keywords if name not in keys)]
    given = [getattr(partial.func, "__name__", "fn"), *["..."] * first, *(f"{name}=..." for name in names)]
    return f"functools.partial({', '.join(given)})"


_CODES = {"coroutine": "cr_code", "generator": "gi_code", "async generator": "ag_code"}


def _from_unstarted(finding: Finding, source: Source | None, site: CallSite) -> str | None:
    """``spawn(run, work(session, 1))`` becomes ``spawn(work, 1)``: the function, not a coroutine that has a session."""
    if len(finding.paths) > 1:
        return None
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


def _from_closure(finding: Finding, source: Source | None, _site: CallSite) -> str | None:
    """The body has a session of its own under another name; any other function becomes one that is given it."""
    code: types.CodeType = finding.holder.__code__
    variable = finding.last.key
    if _is_body(finding):
        return f"{_assignment(finding)}  # first line of {finding.name}(): the session of the unit"
    if len(finding.paths) > 1:
        return None
    argument = source.argument if source is not None and finding.is_direct else None
    if source is None or not isinstance(argument, ast.Lambda):
        return _with_parameter(code, variable, finding)
    argument.args.args.insert(0, ast.arg(variable))
    return f"{source.having(argument)}  # {finding.name}() calls it with the session of the unit"


def _from_default(finding: Finding, _source: Source | None, _site: CallSite) -> str | None:
    code: types.CodeType = finding.holder.__code__
    name, variable = finding.name, finding.last.key
    if _is_body(finding):
        words = finding._replace(parameters=tuple(place.key for place in finding.places)).parameters_in_words
        return f"{_assignment(finding)}  # first line of {name}(), in place of {words}"
    if len(finding.paths) > 1:
        return None
    return f"{variable}=None  # in place of the default of {code.co_name}(): {name}() gives it the session of the unit"


def _assignment(finding: Finding) -> str:
    return " = ".join([*(place.key for place in finding.places), _session_of(finding.holder.__code__)])


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


def _pass_the_keys(finding: Finding, source: Source | None, site: CallSite) -> str:
    """Instances are loaded again by their primary keys, in the session of the unit."""
    states: list[Any] = [sqlalchemy.inspect(place.value) for place in finding.places]
    cls = states[0].class_.__name__
    pending = next((state for state in states if state.pending), None)
    if pending is not None:
        name = (pending.async_session and site.name_of(pending.async_session)) or "session"
        cls = pending.class_.__name__
        return f"await {name}.commit()  # before the call: the instance of {cls} has no row yet, and no key to pass"
    if source is not None and all(len(path) == 1 for path in finding.paths):
        keys = [
            _key_of(place.value, ast.unparse(arg)) for place, arg in zip(finding.places, source.arguments, strict=True)
        ]
        names = [name or "instance" for name in finding.parameters]
        classes = [state.class_.__name__ for state in states]
        loads = [f"{name} = await session.get({each}, {name})" for name, each in zip(names, classes, strict=True)]
        return f"{source.having(*keys)}  # in {finding.name}(): {'; '.join(loads)}"
    cure = _keys_in_place(finding, source, site) if source is not None else None
    key, place = ("key", "its place") if len(states) == 1 else ("keys", "their place")
    words = f"in {finding.name}(), given the {key} of {finding.all_texts} in {place}"
    return cure or f"await session.get({cls}, key)  # {words}"


def _keys_in_place(finding: Finding, source: Source, site: CallSite) -> str | None:
    """The call with keys in place of the instances that its argument holds."""
    part = finding.cut(len(("argument", "what it holds")))
    if (
        part is None
        or any(len(path) > len(part.path) for path in finding.paths)
        or len(part.paths) != len(finding.paths)
    ):
        return None
    kinds = {place.kind for place in part.places}
    if kinds <= {"item", "member"}:
        return _keys_of_all(part, source)
    if len(kinds) > 1 or len(part.paths) > MOST_PLACES:
        return None
    if all(issubclass(_class_of(place.value), InstanceState) for place in part.places):
        # As in `vars(instance)`: the values are what is wanted.
        return _from_container(part, source, site) if kinds == {"value"} else None
    keys = {place.key: _key_of(place.value, source.text + place.text) for place in part.places}
    new = _copy_with_keys(part, keys, source.text)
    cls = type(part.last.value).__name__
    loads = [f"await session.get({cls}, {finding.parameter or 'instance'}{place.text})" for place in part.places]
    return new and f"{source.having(new)}  # in {finding.name}(): {'; '.join(loads)}"


def _copy_with_keys(finding: Finding, keys: dict[Any, str], source: str) -> str | None:
    kind = finding.last.kind
    if kind == "value" and all(map(_is_plain, keys)):
        return f"{{**{source}, {', '.join(f'{name!r}: {key}' for name, key in keys.items())}}}"
    if kind == "field":
        return f"{source}._replace({', '.join(f'{name}={key}' for name, key in keys.items())})"
    return copy_with(_class_of(finding.holder), keys, source) if kind == "attribute" else None


def _keys_of_all(finding: Finding, source: Source) -> str | None:
    """Of a container that holds instances of one class only."""
    if type(finding.holder) not in {list, tuple, set, frozenset} or len({*map(type, finding.holder)}) > 1:
        return None
    keys = {_key_of(place.value, "item") for place in finding.places}
    name, cls = finding.parameter or "instance", sqlalchemy.inspect(finding.last.value).class_.__name__
    # Where one is not loaded, or is a state, all are asked in the way that does for that one.
    new = f"[{min(keys, key=lambda text: 'identity' not in text)} for item in {source.text}]"
    return f"{source.having(new)}  # in {finding.name}(): {name} = [await session.get({cls}, key) for key in {name}]"


def _key_of(instance: Any, source: str) -> str:
    if issubclass(_class_of(instance), InstanceState):
        return f"{source}.identity"
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
    "factory": _from_factory,
    "partial": _from_partial,
    "local": _from_unstarted,
    "closure": _from_closure,
    "default": _from_default,
}
