"""Runs a plan, and holds what it found against the targets."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from time import perf_counter

from benchmarks import counted, endurance, guard, imports, machine, peers, scale, watching
from benchmarks.contenders import BOUNDED, BY_HAND, FLOOR, LEAN, ONE_STATEMENT, OURS, UNBOUNDED, Contender
from benchmarks.plan import Plan
from benchmarks.rounds import Measured, check, measure
from benchmarks.setup import Setup
from benchmarks.workloads import BODIES, INSERT, NOTHING, SELECT, select_one

_TO_BY_HAND = {NOTHING: 0.20, SELECT: 0.88, INSERT: 0.92}


@dataclass(frozen=True)
class Target:
    """*measured* is to be at most *limit*; if that *is_chosen*, it is the project's own reading of a word."""

    text: str
    limit: float
    measured: float
    unit: str = ""
    is_chosen: bool = False

    @property
    def is_met(self) -> bool:
        return self.measured <= self.limit


@dataclass(frozen=True)
class RatioTarget(Target):
    """*measured* is what a unit of *workload* takes, to what *contender* takes for one."""

    workload: str = ""
    contender: str = ""


@dataclass(frozen=True)
class Results:
    """All that the page shows."""

    cpu: str
    versions: dict[str, str]
    skipped: dict[str, str]
    workloads: dict[str, Measured]
    on_sqlite: dict[str, Measured]
    counts: dict[str, dict[str, dict[str, float]]]
    large: Measured
    scalars: float
    mixed: float
    containers: dict[int, list[float]]
    queued: int
    queued_bytes: float
    sizes: tuple[int, ...]
    by_size: dict[str, list[float]]
    endurance: int
    resident: list[float]
    imported: imports.Imported
    watched: watching.Figures
    minutes: float

    @property
    def peers(self) -> list[str]:
        return [name for name in self.workloads[NOTHING].seconds if name not in BOUNDED and name not in UNBOUNDED]

    def limits(self, workload: str) -> dict[str, float]:
        """What a unit may take at most, as a ratio, by the contender to which it is one."""
        limits = {BY_HAND: _TO_BY_HAND[workload]}
        if workload == SELECT:
            limits |= {FLOOR: 1.08, LEAN: 1.0}
        return limits | dict.fromkeys(self.peers, 1.0)

    def targets(self) -> list[Target]:
        return [*self.ratio_targets(), *self._other_targets()]

    def ratio_targets(self) -> Iterator[RatioTarget]:
        for workload, measured in self.workloads.items():
            for contender, limit in self.limits(workload).items():
                ratio = measured.ratio(OURS, contender).median
                text = f"{workload}: to {contender}"
                yield RatioTarget(text, limit, ratio, workload=workload, contender=contender)

    def unlistened(self) -> Iterator[tuple[RatioTarget, float]]:
        """To what is written by hand, in a process without a scope; and how much more it takes in one with a scope."""
        for target in self.ratio_targets():
            factor = self.watched[target.workload].get(target.contender)
            if factor is not None:
                yield replace(target, measured=target.measured * factor), factor

    def _other_targets(self) -> Iterator[Target]:
        yield Target("the guard, two scalars", 2, self.scalars, "us")
        yield Target("the guard, ten mixed arguments", 15, self.mixed, "us")
        yield Target(f"a queued unit, of {self.queued:,}", 1.5, self.queued_bytes / 1024, "KiB")
        ours, flat = self.by_size[OURS], f"a unit among {self.sizes[-1]:,} to one among {self.sizes[0]:,}"
        yield Target(flat, 1.2, ours[-1] / ours[0], is_chosen=True)
        flat = f"the most memory during {self.endurance:,} units to that after a tenth"
        yield Target(flat, 1.05, endurance.growth(self.resident), is_chosen=True)
        many = f"{self.large.count:,} units over a pool of ten: to a semaphore by hand"
        yield Target(many, 1.0, self.large.ratio(OURS, BY_HAND).median)
        yield Target("importing the package, after SQLAlchemy", 15, self.imported.milliseconds, "ms")


async def run(plan: Plan, setup: Setup, sqlite: Setup, tell: Callable[[str], None]) -> Results:
    """Blocks as long as *plan* takes; *tell* hears what it is at."""
    started = perf_counter()
    contenders, skipped = await _working(BOUNDED | UNBOUNDED | peers.installed(), setup)
    skipped |= dict.fromkeys(peers.missing(), "not installed")
    of_workload = dict.fromkeys(BODIES, contenders) | {SELECT: contenders | ONE_STATEMENT}
    workloads: dict[str, Measured] = {}
    for name, body in BODIES.items():
        with _timed(name, tell):
            count = plan.units if name == NOTHING else plan.queries
            workloads[name] = await measure(of_workload[name], setup, body, count=count, rounds=plan.rounds)
    some = {name: BOUNDED[name] for name in (OURS, BY_HAND, LEAN, FLOOR)}
    with _timed("SQLite", tell):
        on_sqlite = {
            name: await measure(some, sqlite, BODIES[name], count=plan.queries // 2, rounds=plan.rounds // 2)
            for name in (SELECT, INSERT)
        }
    with _timed("counts", tell):
        counts = {
            name: {
                who: await counted.instructions(contender, setup, body, plan.counted)
                for who, contender in of_workload[name].items()
            }
            for name, body in BODIES.items()
        }
    with _timed(f"{plan.large:,} units over a pool of ten", tell):
        two = {name: BOUNDED[name] for name in (OURS, BY_HAND)}
        large = await measure(two, setup, select_one, count=plan.large, rounds=plan.large_rounds)
    with _timed("the guard", tell):
        scalars = guard.microseconds(guard.TWO_SCALARS, repeat=plan.guard_repeats)
        mixed = guard.microseconds(guard.TEN_MIXED, repeat=plan.guard_repeats)
        containers = guard.by_size(plan.containers, repeat=min(plan.guard_repeats, 10))
    with _timed("the queue", tell):
        queued_bytes = await scale.bytes_of_a_queued_unit(setup, plan.queued)
    with _timed("many units at once", tell):
        by_size = await scale.microseconds_by_size(setup, plan.sizes, plan.size_rounds)
    with _timed(f"{plan.endurance:,} units", tell):
        resident = endurance.in_a_new_process(plan.endurance)
    with _timed("imports", tell):
        imported = imports.measure(plan.import_pairs)
    with _timed("watching", tell):
        watched = watching.ratios(setup.engine.url.render_as_string(hide_password=False), plan.watch_pairs)
    return Results(
        cpu=machine.cpu(),
        versions=await machine.versions(setup),
        skipped=skipped,
        workloads=workloads,
        on_sqlite=on_sqlite,
        counts=counts,
        large=large,
        scalars=scalars,
        mixed=mixed,
        containers=containers,
        queued=plan.queued,
        queued_bytes=queued_bytes,
        sizes=plan.sizes,
        by_size=by_size,
        endurance=plan.endurance,
        resident=resident,
        imported=imported,
        watched=watched,
        minutes=(perf_counter() - started) / 60,
    )


async def _working(contenders: Mapping[str, Contender], setup: Setup) -> tuple[dict[str, Contender], dict[str, str]]:
    """A peer that does not get along with the SQLAlchemy that is installed is left out, and the page says why."""
    working: dict[str, Contender] = {}
    failed: dict[str, str] = {}
    for name, contender in contenders.items():
        try:
            await check(name, contender, setup)
        except Exception as error:
            if name in BOUNDED or name in UNBOUNDED:
                raise
            failed[name] = f"{type(error).__name__}: {error}"
        else:
            working[name] = contender
    return working, failed


@contextlib.contextmanager
def _timed(what: str, tell: Callable[[str], None]) -> Iterator[None]:
    started = perf_counter()
    yield
    tell(f"{what}: measured in {perf_counter() - started:.0f} s")
