"""Finds the user's call: its file and line, and its source as a tree, so that an error can show the line to change."""

from __future__ import annotations

import ast
import inspect
import itertools
import linecache
import types
from collections.abc import Iterable, Sequence
from types import FrameType
from typing import Any, NamedTuple, cast

__all__ = ["CallSite", "Source", "copy_with", "find_call", "innermost_line"]

_PACKAGE = __name__.partition(".")[0]
_LIBRARIES = {"asyncio", "sqlalchemy"}
_UNKNOWN = object()


class CallSite(NamedTuple):
    """
    Where the user's code called into this package.

    *call* is None where the source cannot be read; *frame* where there is no code of the user's at all.
    """

    filename: str
    lineno: int
    call: ast.Call | None
    frame: FrameType | None

    def __str__(self) -> str:
        line = linecache.getline(self.filename, self.lineno).strip()
        place = f"{self.filename}:{self.lineno}"
        return f"{place}: {line}" if line else place

    @property
    def callee(self) -> str:
        """The last name in what is called: ``spawn`` for ``scope.spawn(...)``."""
        return "" if self.call is None else _callee(self.call)

    def value_of(self, expression: ast.expr) -> object:
        """What a name or an attribute of one stands for at the call; an object of its own if that cannot be told."""
        if isinstance(expression, ast.Attribute):
            return inspect.getattr_static(self.value_of(expression.value), expression.attr, _UNKNOWN)
        if not isinstance(expression, ast.Name) or self.frame is None:
            return _UNKNOWN
        return self.frame.f_locals.get(expression.id, self.frame.f_globals.get(expression.id, _UNKNOWN))

    def cut_out(self, unwanted: Sequence[object], expression: ast.expr) -> tuple[ast.expr, int]:
        """A literal without what stands for one of *unwanted*, and how many there were in it."""
        cutter = _Cutter(self, unwanted)
        return cast("ast.expr", cutter.visit(expression)), cutter.count

    def name_of(self, value: object) -> str | None:
        """The variable that stands for *value* at the call."""
        if self.frame is None:
            return None
        variables = {**self.frame.f_globals, **self.frame.f_locals}
        return next((name for name, item in variables.items() if item is value), None)


class Source(NamedTuple):
    """The call and its guilty arguments, as the user has written them."""

    call: ast.Call
    arguments: list[ast.expr]

    @property
    def argument(self) -> ast.expr:
        return self.arguments[0]

    @property
    def text(self) -> str:
        return ast.unparse(self.argument)

    @property
    def is_path(self) -> bool:
        """Whether it is a variable, or an attribute of one, and can be written twice."""
        node = self.argument
        while isinstance(node, ast.Attribute):
            node = node.value
        return isinstance(node, ast.Name)

    def call_of(self, name: str) -> ast.Call | None:
        """The argument, if it is a call of *name* whose own arguments can be told apart."""
        call = self.argument
        if not isinstance(call, ast.Call) or _callee(call) != name:
            return None
        return None if any(isinstance(arg, ast.Starred) for arg in call.args) else call

    def without(self) -> str:
        return self._call_with([None] * len(self.arguments))

    def having(self, *expressions: str | ast.expr) -> str:
        """The call with these in place of the arguments."""
        return self._call_with(
            [ast.parse(new, mode="eval").body if isinstance(new, str) else new for new in expressions]
        )

    def spawning(self, offset: int, call: ast.Call) -> str:
        """The call with another function and its arguments behind the *offset* - 1 first arguments."""
        args = [*self.call.args[: offset - 1], call.func, *call.args]
        return ast.unparse(ast.Call(self.call.func, args, call.keywords))

    def _call_with(self, replaced: Sequence[ast.expr | None]) -> str:
        new = dict(zip(self.arguments, replaced, strict=True))
        args = [new.get(arg, arg) for arg in self.call.args]
        pairs = [(keyword.arg, new.get(keyword.value, keyword.value)) for keyword in self.call.keywords]
        keywords = [ast.keyword(name, value) for name, value in pairs if value is not None]
        return ast.unparse(ast.Call(self.call.func, [arg for arg in args if arg is not None], keywords))


def _callee(call: ast.Call) -> str:
    if isinstance(call.func, ast.Attribute):
        return call.func.attr
    return call.func.id if isinstance(call.func, ast.Name) else ""


def copy_with(cls: type[Any], values: dict[str, str], source: str) -> str | None:
    """A copy of the object with other values in some attributes, if its class has such a thing."""
    pairs = ", ".join(f"{name!r}: {value}" for name, value in values.items())
    if issubclass(cls, types.SimpleNamespace):
        return f"type({source})(**{{**vars({source}), {pairs}}})"
    fields: dict[str, Any] = inspect.getattr_static(cls, "__dataclass_fields__", {})
    if all(name in fields and fields[name].init for name in values):
        return f"dataclasses.replace({source}, {', '.join(f'{name}={value}' for name, value in values.items())})"
    attributes = {each.name: each.alias for each in inspect.getattr_static(cls, "__attrs_attrs__", ()) if each.init}
    if attributes.keys() >= values.keys():
        return f"attrs.evolve({source}, {', '.join(f'{attributes[name]}={value}' for name, value in values.items())})"
    # What pydantic calls private is no field, and is copied as it is.
    if hasattr(cls, "model_copy") and not any(name.startswith("_") for name in values):
        return f"{source}.model_copy(update={{{pairs}}})"
    return None


def find_call() -> CallSite:
    """The innermost frame that is not this package's own."""
    frame = inspect.currentframe()
    while frame is not None and _is_own(frame):
        frame = frame.f_back
    if frame is None:
        return CallSite("<unknown>", 0, None, None)
    return CallSite(frame.f_code.co_filename, frame.f_lineno, _running_call(frame), frame)


def innermost_line(chain: Iterable[Any]) -> str:
    """Of the user's code, in a chain of suspended coroutines: before it goes into SQLAlchemy or asyncio."""
    line = ""
    for awaiting in chain:
        frame = getattr(awaiting, "cr_frame", None) or getattr(awaiting, "ag_frame", None)
        if isinstance(frame, FrameType) and not _is_own(frame):
            if str(frame.f_globals.get("__name__")).partition(".")[0] in _LIBRARIES:
                break
            line = f"{frame.f_code.co_filename}:{frame.f_lineno}"
    return line


def _is_own(frame: FrameType) -> bool:
    module = frame.f_globals.get("__name__")
    return isinstance(module, str) and module.partition(".")[0] == _PACKAGE


def _running_call(frame: FrameType) -> ast.Call | None:
    """The call expression that the frame is in the middle of, by the column offsets that the compiler has left."""
    positions = itertools.islice(frame.f_code.co_positions(), frame.f_lasti // 2, None)
    line, end_line, column, end_column = next(positions)
    if line is None or end_line is None or column is None or end_column is None:
        return None
    lines = linecache.getlines(frame.f_code.co_filename, frame.f_globals)[line - 1 : end_line]
    if not lines:
        return None
    # Offsets count bytes of UTF-8. The last line is cut first: it may be the first one too.
    encoded = [text.encode() for text in lines]
    encoded[-1] = encoded[-1][:end_column]
    encoded[0] = encoded[0][column:]
    try:
        expression = ast.parse(b"(" + b"".join(encoded) + b")", mode="eval").body
    except SyntaxError:  # the file was changed since it was loaded
        return None
    return expression if isinstance(expression, ast.Call) else None


class _Cutter(ast.NodeTransformer):
    def __init__(self, site: CallSite, unwanted: Sequence[object]) -> None:
        self._site = site
        self._unwanted = unwanted
        self.count = 0

    def visit(self, node: ast.AST) -> Any:
        if isinstance(node, ast.List | ast.Tuple | ast.Set):
            return self._sequence(node)
        return self._dict(node) if isinstance(node, ast.Dict) else node

    def _sequence(self, node: ast.List | ast.Tuple | ast.Set) -> ast.expr:
        kept = [cast("ast.expr", self.visit(item)) for item in node.elts if not self._is_unwanted(item)]
        if kept == node.elts:
            return node
        if isinstance(node, ast.Set):
            return ast.Set(kept) if kept else ast.Call(ast.Name("set"), [], [])
        return type(node)(kept, ast.Load())

    def _dict(self, node: ast.Dict) -> ast.expr:
        pairs = [
            (key, cast("ast.expr", self.visit(value)))
            for key, value in zip(node.keys, node.values, strict=True)
            if not self._is_unwanted(value) and not (key is not None and self._is_unwanted(key))
        ]
        values = [value for _, value in pairs]
        return node if values == node.values else ast.Dict([key for key, _ in pairs], values)

    def _is_unwanted(self, node: ast.expr) -> bool:
        value = self._site.value_of(node)
        is_unwanted = any(value is each for each in self._unwanted)
        self.count += is_unwanted
        return is_unwanted
