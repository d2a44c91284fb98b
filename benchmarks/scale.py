"""Many units: what a queued one weighs, and whether a unit costs the same among a thousand and a hundred thousand."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from collections.abc import Sequence
from typing import Any

from benchmarks.contenders import BOUNDED, BY_HAND, OURS
from benchmarks.rounds import measure
from benchmarks.setup import Setup
from benchmarks.workloads import nothing
from sa_isolated_tasks import TaskScope

SIZES = (1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000)


async def bytes_of_a_queued_unit(setup: Setup, count: int) -> float:
    """With its handle, which is kept."""
    running, release = asyncio.Event(), asyncio.Event()

    async def hold(_session: Any) -> None:
        running.set()
        await release.wait()

    async with TaskScope(setup.Session, name="queue", limit=1) as scope:
        scope.spawn(hold)
        await running.wait()
        gc.collect()
        tracemalloc.start()
        try:
            handles = [scope.spawn(nothing, 1) for _ in range(count)]
            size, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        scope.cancel()
        release.set()
        del handles
    return size / count


async def microseconds_by_size(setup: Setup, sizes: Sequence[int], rounds: int) -> dict[str, list[float]]:
    """For us, and for the pattern written by hand: a unit's microseconds for each number of units at once."""
    contenders = {name: BOUNDED[name] for name in (OURS, BY_HAND)}
    by_size: dict[str, list[float]] = {name: [] for name in contenders}
    for size in sizes:
        measured = await measure(contenders, setup, nothing, count=size, rounds=rounds)
        for name, values in by_size.items():
            values.append(measured.microseconds(name))
    return by_size
