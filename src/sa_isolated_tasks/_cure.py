"""
The line of code that cures a refused call.

Where the source of the call can be read, the cure is that call rewritten; otherwise it is a line to add. A cure that
does not replace the call says in a comment where it goes.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import sqlalchemy

from sa_isolated_tasks._callsite import CallSite
from sa_isolated_tasks._walk import IGNORE, Node

__all__ = ["Finding", "cure_for"]


@dataclass(frozen=True, slots=True)
class Finding:
    """
    Where something was found that must not be passed.

    *path* leads from an argument, or from the function itself, to it. *offset* is how many arguments stand before the
    function's own in the source of the call.
    """

    path: tuple[Node, ...]
    function: str
    offset: int
    instance: bool

    @property
    def text(self) -> str:
        root, *steps = (node.text for node in self.path)
        return f"{root} -> {''.join(steps).strip()}" if steps else root

    @property
    def is_direct(self) -> bool:
        """Whether the argument itself holds what was found."""
        return len(self.path) == len(("argument", "what it holds"))

    @property
    def root(self) -> Node:
        return self.path[0]

    @property
    def last(self) -> Node:
        return self.path[-1]


def cure_for(finding: Finding, site: CallSite) -> str:
    argument = _argument_of(finding, site)
    if finding.instance:
        return _pass_the_key(finding, site, argument)
    if len(finding.path) == 1:
        return _leave_out(finding, site, argument)
    cure = _CURES.get(finding.last.kind, _change_the_holder)
    return cure(finding, site, argument)


def _argument_of(finding: Finding, site: CallSite) -> ast.expr | None:
    """The source of the guilty argument, if it can be told which one it is."""
    if site.call is None or finding.root.kind != "argument":
        return None
    key = finding.root.key
    if isinstance(key, str):
        return next((keyword.value for keyword in site.call.keywords if keyword.arg == key), None)
    position = key + finding.offset
    before = site.call.args[: position + 1]
    if len(before) <= position or any(isinstance(arg, ast.Starred) for arg in before):
        return None
    return before[position]


def _rewritten(site: CallSite, argument: ast.expr, replacement: ast.expr | None) -> str:
    """The call with one argument replaced, or left out."""
    assert site.call is not None  # noqa: S101 -- there is an argument, so there is a call
    args = [replacement if arg is argument else arg for arg in site.call.args]
    keywords = [
        ast.keyword(keyword.arg, replacement if keyword.value is argument else keyword.value)  # type: ignore[arg-type]
        for keyword in site.call.keywords
        if replacement is not None or keyword.value is not argument
    ]
    call = ast.Call(site.call.func, [arg for arg in args if arg is not None], keywords)
    return ast.unparse(ast.fix_missing_locations(call))


def _expression(source: str) -> ast.expr:
    return ast.parse(source, mode="eval").body


def _leave_out(finding: Finding, site: CallSite, argument: ast.expr | None) -> str:
    if argument is None:
        return f"{finding.function}(...)  # without {finding.text}: the unit has a session of its own"
    return _rewritten(site, argument, None)


def _pass_the_key(finding: Finding, site: CallSite, argument: ast.expr | None) -> str:
    """An instance is loaded again by its primary key."""
    keys = [column.key for column in sqlalchemy.inspect(type(finding.last.value)).primary_key]
    if argument is not None and len(finding.path) == 1:
        fields = [f"{ast.unparse(argument)}.{key}" for key in keys]
        return _rewritten(site, argument, _expression(fields[0] if len(fields) == 1 else f"({', '.join(fields)})"))
    return f"session.get({type(finding.last.value).__name__}, {keys[0]})  # in {finding.function}(): pass the key only"


def _filter_out(finding: Finding, site: CallSite, argument: ast.expr | None) -> str:
    """The container without the guilty item, by its place."""
    container = finding.path[-2].value
    if argument is None or not finding.is_direct:
        return _take_out(finding, argument)
    source, key = ast.unparse(argument), finding.last.key
    if finding.last.kind == "value":
        text = f"{{key: value for key, value in {source}.items() if key != {key!r}}}"
    elif finding.last.kind == "item":
        text = f"[item for index, item in enumerate({source}) if index != {key}]"
        text = f"tuple({text[1:-1]})" if isinstance(container, tuple) else text
    else:
        text = f"{{item for item in {source} if type(item).__name__ != {type(finding.last.value).__name__!r}}}"
    return _rewritten(site, argument, _literal_without(argument, finding.last) or _expression(text))


def _literal_without(argument: ast.expr, last: Node) -> ast.expr | None:
    """``[a, session]`` is better cured as ``[a]`` than by a comprehension."""
    if isinstance(argument, ast.List | ast.Tuple) and last.kind == "item":
        if any(isinstance(element, ast.Starred) for element in argument.elts):
            return None
        kept = [element for index, element in enumerate(argument.elts) if index != last.key]
        return type(argument)(kept, ast.Load())
    if isinstance(argument, ast.Dict) and last.kind == "value":
        pairs = list(zip(argument.keys, argument.values, strict=True))
        kept_pairs = [(key, value) for key, value in pairs if not _is_constant(key, last.key)]
        if len(kept_pairs) == len(pairs) - 1:
            return ast.Dict([key for key, _ in kept_pairs], [value for _, value in kept_pairs])
    return None


def _is_constant(node: ast.expr | None, value: Any) -> bool:
    return isinstance(node, ast.Constant) and bool(node.value == value)


def _take_out(finding: Finding, argument: ast.expr | None) -> str:
    """A container deep in an argument: a line before the call."""
    if not isinstance(argument, ast.Name | ast.Attribute):
        return f"{finding.function}(...)  # without {finding.text}: the unit has a session of its own"
    holder = ast.unparse(argument) + "".join(node.text for node in finding.path[1:-1])
    if finding.last.kind == "value":
        return f"{holder}.pop({finding.last.key!r})  # before the call"
    if finding.last.kind == "item" and isinstance(finding.path[-2].value, list):
        return f"del {holder}[{finding.last.key}]  # before the call"
    return f"{holder} = {type(finding.path[-2].value).__name__}()  # before the call: leave the session out"


def _change_the_holder(finding: Finding, site: CallSite, argument: ast.expr | None) -> str:
    """An attribute: without it if the object can be copied that way, otherwise the class says that it is no argument."""
    holder, name = finding.path[-2].value, finding.last.key
    copy = _copy_without(type(holder), name)
    if copy is not None and argument is not None and finding.is_direct:
        return _rewritten(site, argument, _expression(copy(ast.unparse(argument))))
    return f'{IGNORE} = ("{name}",)  # in class {type(holder).__name__}, if it keeps .{name} for other purposes'


def _copy_without(cls: type, name: str) -> Callable[[str], str] | None:
    for marker, template in _COPIES:
        if marker in dir(cls):
            return lambda source: template.format(source=source, name=name)
    return None


_COPIES = (
    ("__dataclass_fields__", "dataclasses.replace({source}, {name}=None)"),
    ("__attrs_attrs__", "attrs.evolve({source}, {name}=None)"),
    ("model_copy", '{source}.model_copy(update={{"{name}": None}})'),
)


def _rebuild_partial(finding: Finding, site: CallSite, argument: ast.expr | None) -> str:
    """``partial(fn, session, 1)`` becomes ``partial(fn, 1)``."""
    partial: functools.partial[Any] = finding.path[-2].value
    name = getattr(partial.func, "__name__", "fn")
    if isinstance(argument, ast.Call) and finding.is_direct:
        position = finding.last.key + 1 if isinstance(finding.last.key, int) else None
        args = [arg for index, arg in enumerate(argument.args) if index != position]
        keywords = [keyword for keyword in argument.keywords if keyword.arg != finding.last.key]
        return _rewritten(site, argument, ast.Call(argument.func, args, keywords))
    return f"functools.partial({name})  # without {finding.last.text}"


def _spawn_the_function(finding: Finding, site: CallSite, argument: ast.expr | None) -> str:
    """``spawn(run, work(session, 1))`` becomes ``spawn(work, 1)``: the function, not a coroutine that has a session."""
    _, name, variable = finding.last.key
    if isinstance(argument, ast.Call) and site.call is not None and finding.offset and finding.is_direct:
        position = _position_of(variable, finding.path[-2].value)
        args = [arg for index, arg in enumerate(argument.args) if index != position]
        keywords = [keyword for keyword in argument.keywords if keyword.arg != variable]
        return ast.unparse(ast.Call(site.call.func, [argument.func, *args], keywords))
    return f"{name}(...)  # call it inside {finding.function}(), with the session of the unit"


def _position_of(variable: str, unstarted: Any) -> int:
    """Which argument of the call that made this coroutine or generator became *variable*."""
    code = next(getattr(unstarted, name) for name in ("cr_code", "gi_code", "ag_code") if hasattr(unstarted, name))
    parameters = [name for name in code.co_varnames[: code.co_argcount] if name not in {"self", "cls"}]
    return parameters.index(variable) if variable in parameters else -1


def _use_own_session(finding: Finding, _site: CallSite, _argument: ast.expr | None) -> str:
    """A closure: the first parameter takes the name of the outer variable, and so hides it."""
    function = finding.path[-2].value
    if not isinstance(function, FunctionType):
        return f"async def {finding.function}({finding.last.key}, ...):"
    code = function.__code__
    names = code.co_varnames[: code.co_argcount]
    parameters = ", ".join((finding.last.key, *names[1:]))
    return f"async def {function.__name__}({parameters}):"


_CURES: dict[str, Callable[[Finding, CallSite, ast.expr | None], str]] = {
    "item": _filter_out,
    "value": _filter_out,
    "member": _filter_out,
    "partial": _rebuild_partial,
    "local": _spawn_the_function,
    "closure": _use_own_session,
}
