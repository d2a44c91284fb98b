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

FULL = Plan(
    rounds=100,
    units=200,
    queries=50,
    guard_repeats=100,
    containers=_CONTAINERS,
    queued=100_000,
    sizes=SIZES,
    size_rounds=3,
    counted=200,
    large=10_000,
    large_rounds=5,
    endurance=1_000_000,
    import_pairs=40,
    watch_pairs=7,
)
QUICK = Plan(
    rounds=25,
    units=200,
    queries=50,
    guard_repeats=20,
    containers=_CONTAINERS[:5],
    queued=10_000,
    sizes=SIZES[:4],
    size_rounds=1,
    counted=50,
    large=500,
    large_rounds=3,
    endurance=50_000,
    import_pairs=8,
    watch_pairs=3,
)
TINY = Plan(
    rounds=2,
    units=2,
    queries=2,
    guard_repeats=1,
    containers=(10, 20),
    queued=200,
    sizes=(20, 40),
    size_rounds=1,
    counted=2,
    large=3,
    large_rounds=1,
    endurance=200,
    import_pairs=1,
    watch_pairs=1,
)
