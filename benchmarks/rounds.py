"""
Measures contenders in turns, in an order that is shuffled in each round.

Why none of the usual harnesses? pyperf gives each benchmark a process of its own, and pytest-benchmark runs one to its
end before the next. Where other programs use the machine too, what they compare is then the machine at two times. Here
every ratio is that of two measurements of the same second.
"""

from __future__ import annotations

import contextlib
import gc
import random
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from statistics import median, quantiles
from time import perf_counter, process_time

from benchmarks.contenders import Batch, Contender
from benchmarks.setup import Setup
from benchmarks.workloads import Body, insert, rows_written


@dataclass(frozen=True)
class Ratio:
    """The median of the ratios of all rounds, and their quartiles."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Measured:
    """For each contender the seconds of a batch of *count* units, round by round, and those of this process's CPU."""

    count: int
    seconds: dict[str, list[float]]
    cpu_seconds: dict[str, list[float]]

    def microseconds(self, name: str) -> float:
        """A unit's, in the median."""
        return median(self.seconds[name]) / self.count * 1e6

    def cpu_microseconds(self, name: str) -> float:
        """The same, of what this process computes."""
        return median(self.cpu_seconds[name]) / self.count * 1e6

    def ratio(self, name: str, to: str) -> Ratio:
        return _ratio(self.seconds[name], self.seconds[to])

    def cpu_ratio(self, name: str, to: str) -> Ratio:
        """Of what this process computes, without what it waits for; other programs disturb it less."""
        return _ratio(self.cpu_seconds[name], self.cpu_seconds[to])


def _ratio(mine: list[float], theirs: list[float]) -> Ratio:
    ratios = [a / b for a, b in zip(mine, theirs, strict=True)]
    low, middle, high = quantiles(ratios, method="inclusive") if len(ratios) > 1 else ratios * 3
    return Ratio(middle, low, high)


async def measure(
    contenders: Mapping[str, Contender], setup: Setup, body: Body, *, count: int, rounds: int, seed: int = 0
) -> Measured:
    order = random.Random(seed)  # noqa: S311 -- no secret
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    cpu_seconds: dict[str, list[float]] = {name: [] for name in contenders}
    async with _started(contenders, setup) as batches:
        for batch in batches.values():
            await batch(body, min(count, 100))  # warm: connections are open, caches are filled
        gc.freeze()  # what is there by now, mostly modules, is not looked at again and again
        for _ in range(rounds):
            for name in order.sample(sorted(batches), len(batches)):
                gc.collect()  # what the one before has left is not this one's; in the batch it collects as always
                started, cpu_started = perf_counter(), process_time()
                await batches[name](body, count)
                seconds[name].append(perf_counter() - started)
                cpu_seconds[name].append(process_time() - cpu_started)
        gc.unfreeze()
    return Measured(count, seconds, cpu_seconds)


@contextlib.asynccontextmanager
async def _started(contenders: Mapping[str, Contender], setup: Setup) -> AsyncIterator[dict[str, Batch]]:
    async with contextlib.AsyncExitStack() as stack:
        yield {name: await stack.enter_async_context(contender(setup)) for name, contender in contenders.items()}


async def check(name: str, contender: Contender, setup: Setup) -> None:
    """
    Who does not do the work is not measured: every unit has to have committed its row when the batch ends.

    Raises:
        RuntimeError: rows are missing.
    """
    count = 2 * setup.slots + 1
    async with setup.Session() as session:
        before = await rows_written(session)
    async with contender(setup) as batch:
        await batch(insert, count)
    async with setup.Session() as session:
        written = await rows_written(session) - before
    if written != count:
        raise RuntimeError(f"{name}: {written} of {count} units have committed")
