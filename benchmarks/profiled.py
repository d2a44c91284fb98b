"""
Where the time of a unit goes: a contender runs in a new process, and py-spy looks a thousand times a second.

A moment counts for the innermost code that has a name here; what that calls of the standard library is part of it.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from benchmarks.contenders import BOUNDED
from benchmarks.setup import connected
from benchmarks.workloads import nothing, select_one

_ROOT = Path(__file__).parent.parent
_BODIES = {body.__name__: body for body in (nothing, select_one)}

LOG, SQLALCHEMY, ASYNCIO = "the log record", "SQLAlchemy, greenlet and asyncpg", "asyncio"
SPAWN, KEEP, RUN, TELL = (
    "the call and the guard",
    "queue, slot, handle and account",
    "session, commit and cancellation",
    "the line of the log and its fields",
)
BY_HAND = "the code by hand"
PARTS = (SQLALCHEMY, ASYNCIO, LOG, SPAWN, KEEP, RUN, TELL, BY_HAND)

_OURS = {
    SPAWN: "callsite cure function guard holders isolated scope signature spawn walk",
    KEEP: "after_commit blocking context handle leaving queue runner slots types",
    RUN: "call driving factory gate protect steps unit watch",
    TELL: "events logging",
}
_NAMED = {
    **{f"sa_isolated_tasks/_{module}.py": part for part, modules in _OURS.items() for module in modules.split()},
    "sqlalchemy/": SQLALCHEMY,
    "greenlet/": SQLALCHEMY,
    "asyncpg/": SQLALCHEMY,
    "asyncio/": ASYNCIO,
    "benchmarks/": BY_HAND,
}


def shares(url: str, contender: str, body: str, units: int) -> dict[str, float]:
    """Of the time in which the processor was busy with units, by part."""
    with tempfile.TemporaryDirectory() as directory:
        found = Path(directory) / "stacks.txt"
        record = ("py-spy", "record", "--rate", "1000", "--format", "raw", "--output", str(found), "--")
        program = (sys.executable, "-m", "benchmarks.profiled", url, contender, body, str(units))
        subprocess.run([*record, *program], cwd=_ROOT, check=True, capture_output=True)
        return shares_of(found.read_text(encoding="utf-8").splitlines())


def shares_of(stacks: Iterable[str]) -> dict[str, float]:
    """Each line is a stack, the outermost frame first, and how often it was seen."""
    seen: Counter[str] = Counter()
    for line in stacks:
        stack, _, count = line.rpartition(" ")
        part = _part_of(stack.split(";"))
        if part is not None:
            seen[part] += int(count)
    return {part: seen[part] / seen.total() for part in PARTS if seen[part]}


def _part_of(frames: list[str]) -> str | None:
    if not any("asyncio/" in frame for frame in frames):
        return None  # what was imported before
    if any("(logging/" in frame for frame in frames):
        return LOG
    for frame in reversed(frames):
        for name, part in _NAMED.items():
            if f"({name}" in frame:
                return part
    return None


async def _run(url: str, contender: str, body: str, units: int) -> None:
    async with connected(url) as setup, BOUNDED[contender](setup) as batch:
        for _ in range(0, units, 100):
            await batch(_BODIES[body], 100)


if __name__ == "__main__":
    asyncio.run(_run(*sys.argv[1:4], int(sys.argv[4])))
