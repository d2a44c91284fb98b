"""
What a scope costs the sessions that have nothing to do with it: it listens to all sessions of the process.

Listeners leave traces in SQLAlchemy that stay when they are removed, and in one process all contenders pay for them
alike. So what is written by hand is measured in pairs of new processes, with and without a scope in them. Of two
processes one may have the faster minute, so in each the measure is one that is not listened to: a connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from statistics import median
from typing import TypeAlias

from benchmarks.contenders import BOUNDED, BY_HAND, CORE, FLOOR, LEAN, LEAST, ONE_STATEMENT, OURS, Batch
from benchmarks.rounds import measure
from benchmarks.setup import Setup, connected
from benchmarks.workloads import BODIES, select_one

CONTENDERS = {name: BOUNDED[name] for name in (BY_HAND, LEAN, FLOOR, LEAST)}
_ROOT = Path(__file__).parent.parent

Figures: TypeAlias = dict[str, dict[str, float]]
"""For each workload, one of each contender."""


@contextlib.asynccontextmanager
async def _yardstick(setup: Setup) -> AsyncIterator[Batch]:
    async with ONE_STATEMENT[CORE](setup) as batch:
        yield lambda _body, count: batch(select_one, count)


async def cpu_to_yardstick(url: str, *, watched: bool, rounds: int = 20) -> Figures:
    """Of what the process computes."""
    async with connected(url) as setup, contextlib.AsyncExitStack() as stack:
        if watched:
            await stack.enter_async_context(BOUNDED[OURS](setup))
        figures: Figures = {}
        for name, body in BODIES.items():
            measured = await measure(CONTENDERS | {CORE: _yardstick}, setup, body, count=50, rounds=rounds)
            figures[name] = {who: measured.cpu_ratio(who, CORE).median for who in CONTENDERS}
    return figures


def ratios(url: str, pairs: int, seed: int = 0) -> Figures:
    """With a scope to without one; the median of pairs of new processes, in either order."""

    def figures(watched: str) -> Figures:
        command = [sys.executable, "-m", "benchmarks.watching", url, watched]
        ran = subprocess.run(command, cwd=_ROOT, check=True, capture_output=True, text=True)
        found: Figures = json.loads(ran.stdout)
        return found

    order = random.Random(seed)  # noqa: S311 -- no secret
    measured = [{watched: figures(watched) for watched in order.sample(["", "watched"], 2)} for _ in range(pairs)]
    return {
        name: {who: median(pair["watched"][name][who] / pair[""][name][who] for pair in measured) for who in CONTENDERS}
        for name in BODIES
    }


if __name__ == "__main__":
    print(json.dumps(asyncio.run(cpu_to_yardstick(sys.argv[1], watched=bool(sys.argv[2])))))
