"""Finds the user's call: its file and line, and its source as a tree, so that an error can show the line to change."""

from __future__ import annotations

import ast
import itertools
import linecache
import sys
from dataclasses import dataclass
from types import FrameType

__all__ = ["CallSite", "find_call", "line_of"]

PACKAGE = __name__.partition(".")[0]


@dataclass(frozen=True, slots=True)
class CallSite:
    """Where the user's code called into this package; *call* is None where the source cannot be read."""

    filename: str
    lineno: int
    call: ast.Call | None

    def __str__(self) -> str:
        line = linecache.getline(self.filename, self.lineno).strip()
        place = f"{self.filename}:{self.lineno}"
        return f"{place}: {line}" if line else place


def line_of(frame: FrameType) -> str:
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def find_call() -> CallSite:
    """The innermost frame that is not this package's own."""
    frame: FrameType | None = sys._getframe()  # noqa: SLF001 -- the only way that does not read source files
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] == PACKAGE:
        frame = frame.f_back
    if frame is None:
        return CallSite("<unknown>", 0, None)
    return CallSite(frame.f_code.co_filename, frame.f_lineno, _running_call(frame))


def _running_call(frame: FrameType) -> ast.Call | None:
    """The call expression that the frame is in the middle of, by the column offsets that the compiler has left."""
    instructions = frame.f_code.co_positions()
    line, end_line, column, end_column = next(itertools.islice(instructions, frame.f_lasti // 2, None))
    if line is None or end_line is None or column is None or end_column is None:
        return None
    source = linecache.getlines(frame.f_code.co_filename, frame.f_globals)[line - 1 : end_line]
    if not source:
        return None
    # Offsets count bytes of UTF-8. The last line is cut first: it may be the first one too.
    encoded = [text.encode() for text in source]
    encoded[-1] = encoded[-1][:end_column]
    encoded[0] = encoded[0][column:]
    try:
        expression = ast.parse(b"(" + b"".join(encoded) + b")", mode="eval").body
    except SyntaxError:
        return None
    return expression if isinstance(expression, ast.Call) else None
