"""
What Python executes for a unit: the instructions of its bytecode, by whose code they are.

Why not a profiler? py-spy, which looks where the program is a thousand times a second, gave our own code a third of
what it costs: it sees a thread only where it can be seen. Counts are exact, and the same on every machine, but for how
often the event loop turns. What functions in C do is not in them, so they tell where work is done, not how long it
takes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FrameType, ModuleType
from typing import Any

import asyncpg
import greenlet
import sqlalchemy

import sa_isolated_tasks
from benchmarks import peers
from benchmarks.contenders import Contender
from benchmarks.setup import Setup
from benchmarks.workloads import Body

LIBRARIES, ASYNCIO, LOG, PEER, OTHERS = (
    "SQLAlchemy, greenlet and asyncpg",
    "asyncio",
    "logging",
    "the other package's own code",
    "the rest of Python's library",
)
BY_HAND = "the code by hand"
LISTEN, SPAWN, KEEP, RUN, TELL = (
    "listening to sessions",
    "the call and the guard",
    "queue, slot, handle and account",
    "session, commit and cancellation",
    "the event of the end, and what is logged of it",
)
OWN_PARTS = (LISTEN, SPAWN, KEEP, RUN, TELL)
PARTS = (LIBRARIES, ASYNCIO, LOG, OTHERS, BY_HAND, PEER, *OWN_PARTS)

_MODULES = {
    LISTEN: "_aborted _watch",
    SPAWN: "_callsite _cure _function _guard _holders _isolated _scope _signature _spawn _walk __init__ exceptions",
    KEEP: "_after_commit _blocking _context _handle _leaving _queue _quiet _runner _slots _types",
    RUN: "_call _driving _factory _gate _protect _results _steps _suspended _unit",
    TELL: "_events _logging",
}
_PART_OF_MODULE = {module: part for part, modules in _MODULES.items() for module in modules.split()}


def _folder(module: ModuleType) -> str:
    return str(Path(str(module.__file__)).parent)


_PACKAGE = _folder(sa_isolated_tasks)
_HOMES = {
    **{_folder(module): LIBRARIES for module in (sqlalchemy, greenlet, asyncpg)},
    "<sqlalchemy generated": LIBRARIES,
    _folder(asyncio): ASYNCIO,
    _folder(logging): LOG,
    **dict.fromkeys(peers.folders(), PEER),
    str(Path(__file__).parent): BY_HAND,
}


def part_of(filename: str) -> str:
    """
    Whose the code in a file is.

    Raises:
        KeyError: it is in a module of this package that no part has.
    """
    if Path(filename).is_relative_to(_PACKAGE):
        return _PART_OF_MODULE[Path(filename).stem]
    return next((part for home, part in _HOMES.items() if filename.startswith(home)), OTHERS)


_GENERATED = "<string>"


def file_of(frame: FrameType) -> str:
    """Where code stands. What Python makes from a string, as a named tuple's ``__new__``, is of whoever calls it."""
    while frame.f_code.co_filename == _GENERATED and frame.f_back is not None:
        frame = frame.f_back
    return frame.f_code.co_filename


@contextlib.contextmanager
def _counting(executed: Counter[str]) -> Iterator[None]:
    monitoring: Any = vars(sys)["monitoring"]  # from Python 3.12 on
    tool, event = monitoring.PROFILER_ID, monitoring.events.INSTRUCTION

    def count(code: CodeType, _offset: int) -> None:
        filename = code.co_filename  # the frame takes longer to find, and this runs for every instruction
        executed[file_of(sys._getframe(1)) if filename == _GENERATED else filename] += 1

    monitoring.use_tool_id(tool, __name__)
    monitoring.register_callback(tool, event, count)
    monitoring.set_events(tool, event)
    try:
        yield
    finally:
        monitoring.set_events(tool, 0)
        monitoring.free_tool_id(tool)


async def instructions(contender: Contender, setup: Setup, body: Body, units: int) -> dict[str, float]:
    """Of a unit, by part."""
    executed: Counter[str] = Counter()
    async with contender(setup) as batch:
        await batch(body, units)  # caches are filled
        with _counting(executed):
            await batch(body, units)
    counted: Counter[str] = Counter()
    for filename, times in executed.items():
        counted[part_of(filename)] += times
    return {part: counted[part] / units for part in PARTS if counted[part]}
