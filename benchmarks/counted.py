"""
What Python executes for a unit: the instructions of its bytecode, by whose code they are.

Why not a profiler? py-spy, which looks where the program is a thousand times a second, gave our own code a third of
what it costs: it sees a thread only where it can be seen. Counts are exact, and the same on every machine, but for how
often the event loop turns. What functions in C do is not in them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import CodeType
from typing import Any

import asyncpg
import greenlet
import sqlalchemy

import sa_isolated_tasks
from benchmarks.contenders import Contender
from benchmarks.setup import Setup
from benchmarks.workloads import Body

LIBRARIES, ASYNCIO, LOG, OTHERS = (
    "SQLAlchemy, greenlet and asyncpg",
    "asyncio",
    "logging",
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
PARTS = (LIBRARIES, ASYNCIO, LOG, OTHERS, BY_HAND, LISTEN, SPAWN, KEEP, RUN, TELL)
OWN_PARTS = (SPAWN, KEEP, RUN, TELL)

_MODULES = {
    LISTEN: "aborted watch",
    SPAWN: "callsite cure function guard holders isolated scope signature spawn walk",
    KEEP: "after_commit blocking context handle leaving queue runner slots types",
    RUN: "call driving factory gate protect steps unit",
    TELL: "events logging",
}
_PACKAGE = Path(sa_isolated_tasks.__file__).parent
_HOMES = {
    **{str(_PACKAGE / f"_{module}.py"): part for part, modules in _MODULES.items() for module in modules.split()},
    **{str(Path(module.__file__).parent): LIBRARIES for module in (sqlalchemy, greenlet, asyncpg)},
    str(Path(asyncio.__file__).parent): ASYNCIO,
    str(Path(logging.__file__).parent): LOG,
    str(Path(__file__).parent): BY_HAND,
}


def part_of(filename: str) -> str:
    return next((part for home, part in _HOMES.items() if filename.startswith(home)), OTHERS)


@contextlib.contextmanager
def _counting(executed: Counter[CodeType]) -> Iterator[None]:
    monitoring: Any = sys.monitoring  # type: ignore[attr-defined,unused-ignore] -- from Python 3.12 on
    tool, event = monitoring.PROFILER_ID, monitoring.events.INSTRUCTION
    monitoring.use_tool_id(tool, __name__)
    monitoring.register_callback(tool, event, lambda code, _offset: executed.update((code,)))
    monitoring.set_events(tool, event)
    try:
        yield
    finally:
        monitoring.set_events(tool, 0)
        monitoring.free_tool_id(tool)


async def instructions(contender: Contender, setup: Setup, body: Body, units: int) -> dict[str, float]:
    """Of a unit, by part."""
    executed: Counter[CodeType] = Counter()
    async with contender(setup) as batch:
        await batch(body, units)  # caches are filled
        with _counting(executed):
            await batch(body, units)
    counted: Counter[str] = Counter()
    for code, times in executed.items():
        counted[part_of(code.co_filename)] += times
    return {part: counted[part] / units for part in PARTS if counted[part]}
