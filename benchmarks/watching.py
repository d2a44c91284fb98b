"""
What a scope costs the sessions that have nothing to do with it: it listens to all sessions of the process.

Listeners leave traces in SQLAlchemy that stay when they are removed, and in one process all contenders pay for them
alike. So the pattern by hand is measured in pairs of new processes, with and without a scope in them.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from pathlib import Path
from statistics import median

from benchmarks.contenders import BOUNDED, BY_HAND, OURS
from benchmarks.rounds import measure
from benchmarks.setup import connected
from benchmarks.workloads import select_one

_ROOT = Path(__file__).parent.parent


async def cpu_seconds(url: str, *, watched: bool, rounds: int = 30) -> float:
    """The median of many batches by hand, of what the process computes."""
    async with connected(url) as setup, contextlib.AsyncExitStack() as stack:
        if watched:
            await stack.enter_async_context(BOUNDED[OURS](setup))
        measured = await measure({BY_HAND: BOUNDED[BY_HAND]}, setup, select_one, count=50, rounds=rounds)
    return median(measured.cpu_seconds[BY_HAND])


def ratio(url: str, pairs: int) -> float:
    """With a scope to without one; the median of pairs."""

    def seconds(watched: str) -> float:
        command = [sys.executable, "-m", "benchmarks.watching", url, watched]
        return float(subprocess.run(command, cwd=_ROOT, check=True, capture_output=True, text=True).stdout)

    return median(seconds("watched") / seconds("") for _ in range(pairs))


if __name__ == "__main__":
    print(asyncio.run(cpu_seconds(sys.argv[1], watched=bool(sys.argv[2]))))
