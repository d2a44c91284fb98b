"""How much is measured."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.scale import SIZES


@dataclass(frozen=True)
class Plan:
    """*units* are those of a batch without a database, *queries* those of one with; *counted* are looked into."""

    rounds: int
    units: int
    queries: int
    guard_repeats: int
    containers: tuple[int, ...]
    queued: int
    sizes: tuple[int, ...]
    size_rounds: int
    counted: int
    large: int
    large_rounds: int
    endurance: int
    import_pairs: int
    watch_pairs: int


_CONTAINERS = (10, 100, 1_000, 10_000, 100_000, 1_000_000)

FULL = Plan(100, 200, 50, 100, _CONTAINERS, 100_000, SIZES, 3, 200, 10_000, 5, 1_000_000, 40, 7)
QUICK = Plan(25, 200, 50, 20, _CONTAINERS[:5], 10_000, SIZES[:4], 1, 50, 500, 3, 50_000, 8, 3)
TINY = Plan(2, 2, 2, 1, (10, 20), 200, (20, 40), 1, 2, 3, 1, 200, 1, 1)
