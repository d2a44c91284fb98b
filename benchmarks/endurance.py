"""
A million units through one scope: does the memory stay flat?

In a process of its own, ``python -m benchmarks.endurance 1000000``, because what ran before would hide a growth.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

from benchmarks.contenders import BOUNDED, OURS
from benchmarks.setup import connected_to_sqlite
from benchmarks.workloads import nothing

BATCH = 10_000
_ROOT = Path(__file__).parent.parent


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


async def resident_while(units: int) -> list[float]:
    """MiB after each tenth of *units*."""
    async with connected_to_sqlite() as setup, BOUNDED[OURS](setup) as batch:
        samples: list[float] = []
        for _ in range(10):
            for done in range(0, units // 10, BATCH):
                await batch(nothing, min(BATCH, units // 10 - done))
            samples.append(resident_mib())
    return samples


def growth(samples: list[float]) -> float:
    """The highest of those after the first, to the first: a last one may happen to be low."""
    return max(samples[1:]) / samples[0]


def in_a_new_process(units: int) -> list[float]:
    command = [sys.executable, "-m", "benchmarks.endurance", str(units)]
    ran = subprocess.run(command, cwd=_ROOT, check=True, capture_output=True, text=True)
    samples: list[float] = json.loads(ran.stdout)
    return samples


if __name__ == "__main__":
    print(json.dumps(asyncio.run(resident_while(int(sys.argv[1])))))
