"""Writes what was found as *docs/benchmarks.md*."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from benchmarks import guard, missed, plot
from benchmarks.contenders import BY_HAND, BY_HAND_UNLIMITED, CORE, OURS, OURS_UNLIMITED
from benchmarks.counted import LISTEN
from benchmarks.results import Results, Target
from benchmarks.rounds import Measured
from benchmarks.watching import CONTENDERS
from benchmarks.workloads import SELECT

PICTURE = "benchmarks.svg"
_SOURCE = "../benchmarks/"


def write(results: Results, command: str, directory: Path) -> None:
    plot.draw(results.sizes, results.by_size, directory / PICTURE)
    (directory / "benchmarks.md").write_text(text(results, command), encoding="utf-8")


def text(results: Results, command: str) -> str:
    return "\n".join(_lines(results, command)) + "\n"


def _lines(results: Results, command: str) -> Iterator[str]:
    yield "# Benchmarks"
    yield ""
    yield "When to read it: you want to know what a unit costs, next to the pattern that you would write by hand."
    yield "Every figure of this page comes from one run of one command, which writes the page:"
    yield from ["", "```sh", command, "```", ""]
    yield f"It took {results.minutes:.1f} minutes. With `-- --quick` there are fewer rounds of fewer units, and rougher"
    yield "figures; with `-- --print` the page is printed in place of being written."
    yield "PostgreSQL is the server of `TEST_POSTGRESQL_URL`, or the one on port 5432, or one from a wheel."
    yield ""
    yield f"Measured on: {results.cpu}, which other programs used too."
    yield f"Versions: {', '.join(f'{name} {version}' for name, version in results.versions.items())}."
    yield from ["", "## Targets", ""]
    yield from _targets(results.targets())
    yield from _unlistened(results)
    yield from ["", "## What stands in the way of what is missed", ""]
    yield from missed.lines(results)
    yield from _method(results)
    for name, measured in results.workloads.items():
        yield from ["", f"## PostgreSQL: {name}", ""]
        yield f"{measured.count} units a batch, {len(measured.seconds[OURS])} rounds."
        yield ""
        yield from _table(measured)
    for name, measured in results.on_sqlite.items():
        yield from ["", f"## SQLite: {name}", ""]
        yield "One unit at a time, by hand as in this package, since SQLite has one writer."
        yield ""
        yield from _table(measured)
    yield from _guard(results)
    yield from _scale(results)
    yield from _others(results)
    yield from ["", "## Import", ""]
    yield f"{results.imported}:"
    yield _IMPORT


_IMPORT = """the medians of pairs of new processes, in time of the processor, with this Python.
With 3.11 a full run of the garbage collector may fall into it, which takes longer than the import.
Alone: `nox -s bench -- --only imports`."""


def _method(results: Results) -> Iterator[str]:
    yield from ["", "## How it is measured", ""]
    yield "A batch of units is started at once and waited for; all contenders run in one process, one after the other,"
    yield "in an order that is shuffled in every round."
    yield "A ratio is that of two batches of the same round; the table has the median of all rounds, and the quartiles."
    yield "*CPU time alone* is the same ratio of what this process computes, which other programs disturb less."
    yield "The garbage collector runs between two batches, and as always within them."
    yield f"Each contender opens a session for each unit, but for *{CORE}*,"
    yield "and each of those has to prove that its units have committed."
    yield ""
    yield "- *This package* has everything on: the guard, the log at INFO (to a handler that writes nothing), handles."
    yield "  Its batch is waited for by `drain()`, while the handles are kept; a row of its own has `gather(*handles)`."
    yield "  Its log records are made without `findCaller`, which looks for the line that logs: they have none."
    yield "- *By hand* is a task in a set with a done callback, timed and logged:"
    yield f"  [`handwritten.py`]({_SOURCE}handwritten.py). A batch is waited for by `gather` of its tasks."
    yield "  It logs as one does, by `LOGGER.info()`, and pays for `findCaller`."
    yield "  With a semaphore of the pool's size, which is 10; this package leaves one connection free, and runs 9."
    yield f"- *The floor* is ten tasks that take one number after the other: [`contenders.py`]({_SOURCE}contenders.py)."
    yield "  For each a session is made, the body run, committed, and closed without a greenlet."
    yield f"- *{CORE}* is the same with a connection of the engine in place of a session, for {SELECT}."
    yield "- *The least* has a task for each unit, started where another has ended, and a log record without"
    yield "  `findCaller`; its session is left open, as this package leaves one that is empty and in no transaction."
    yield f"- *The others* are used as their documentation says: [`peers.py`]({_SOURCE}peers.py)."
    yield "  Where they bring no session, they run what is written by hand, and log as that does."
    yield "  context-async-sqlalchemy, fastapi-async-sqlalchemy and transactional-boundary bring one, and log nothing;"
    yield "  the first of them is not bounded, except by the pool, and none of them has handles or outcomes."
    yield "  aiojobs has one scheduler, as long as the application lives, and each of its jobs is waited for."
    for name, reason in results.skipped.items():
        yield f"- Left out: {name}: {reason}"


def _targets(targets: Iterable[Target]) -> Iterator[str]:
    yield from ["| what | at most | measured | |", "|---|---|---|---|"]
    for target in targets:
        unit = f" {target.unit}" if target.unit else ""
        star = "\\*" if target.is_chosen else ""
        yield f"| {target.text} | {target.limit:.2f}{unit}{star} | {target.measured:.2f}{unit} | {_met(target)} |"
    yield ""
    yield "\\* A limit that the project has chosen itself: it set out for *flat*, without a number."


def _met(target: Target) -> str:
    return "met" if target.is_met else "**missed**"


def _unlistened(results: Results) -> Iterator[str]:
    yield ""
    factor = results.watched[SELECT][BY_HAND]
    yield "A scope listens to all sessions of its process, so here those of the others are listened to as well:"
    yield f"by hand, `select 1` takes {factor:.2f} times the CPU time that it takes without a scope in the process"
    yield "([other sessions](#other-sessions)). To what is written by hand in a process that does without this package,"
    yield "the ratios are larger by that factor. *Corrected* is the measured ratio times the factor:"
    yield ""
    yield "| what | at most | measured | factor | corrected | |"
    yield "|---|---|---|---|---|---|"
    for target, times in results.unlistened():
        figures = (target.limit, target.measured / times, times, target.measured)
        yield f"| {target.text} | {' | '.join(f'{figure:.2f}' for figure in figures)} | {_met(target)} |"


def _table(measured: Measured) -> Iterator[str]:
    yield "| contender | us a unit | to the pattern by hand | quartiles | CPU time alone | this package to it |"
    yield "|---|---|---|---|---|---|"
    for name in sorted(measured.seconds, key=measured.microseconds):
        star, reference = ("*", BY_HAND_UNLIMITED) if name == OURS_UNLIMITED else ("", BY_HAND)
        ratio = measured.ratio(name, reference)
        cells = (
            f"{measured.microseconds(name):.0f}",
            f"{ratio.median:.2f}{star}",
            f"{ratio.low:.2f} to {ratio.high:.2f}",
            f"{measured.cpu_ratio(name, reference).median:.2f}{star}",
            f"{measured.ratio(OURS, name).median:.2f}",
        )
        yield f"| {name} | {' | '.join(cells)} |"
    if OURS_UNLIMITED in measured.seconds:
        yield ""
        yield "\\* to the one without a semaphore."


def _guard(results: Results) -> Iterator[str]:
    yield from ["", "## The guard", ""]
    yield f"Two scalars {results.scalars:.1f} us; ten mixed arguments, two of them containers, {results.mixed:.1f} us."
    yield f"At most {guard.bound():,} objects of a call are looked at; ten plain attributes count as one."
    yield "Of one container it is at most half of what is left of them, so the cost grows with the size up to there,"
    yield "and no further. In microseconds:"
    yield ""
    yield f"| n | {' | '.join(guard.SHAPES)} |"
    yield f"|---|{'---|' * len(guard.SHAPES)}"
    for size, costs in results.containers.items():
        yield f"| {size:,} | {' | '.join(f'{cost:,.1f}' for cost in costs)} |"


def _scale(results: Results) -> Iterator[str]:
    yield from ["", "## Many units", ""]
    yield f"A queued unit, with its handle, takes {results.queued_bytes:,.0f} bytes, measured over {results.queued:,}."
    yield ""
    yield f"![Time per unit over the number of units]({PICTURE})"
    yield ""
    yield f"| units at once | {' | '.join(f'{size:,}' for size in results.sizes)} |"
    yield f"|---|{'---|' * len(results.sizes)}"
    for name, values in results.by_size.items():
        yield f"| {name}, us | {' | '.join(f'{value:.0f}' for value in values)} |"
    yield ""
    yield f"{results.endurance:,} units through one scope: resident {results.resident[0]:.1f} MiB after a tenth of"
    yield f"them, at most {max(results.resident[1:]):.1f} MiB after each of the other nine."
    yield ""
    large = results.large
    ratio = large.ratio(OURS, BY_HAND)
    yield f"{large.count:,} units of `select 1` over a pool of ten: {ratio.median:.2f} of the pattern by hand with a"
    yield f"semaphore ({large.microseconds(OURS):.0f} and {large.microseconds(BY_HAND):.0f} us a unit)."


def _others(results: Results) -> Iterator[str]:
    yield from ["", "## Other sessions", ""]
    yield "A scope listens to all sessions of its process, and so to those of the other contenders above."
    yield "The CPU time of what is written by hand in a process that has a scope, to that in one that has none: the"
    yield f"median of pairs of new processes, in each of which it is measured by *{CORE}*, which"
    yield "nobody listens to, since one process may have a faster minute than the other."
    yield ""
    yield f"| | {' | '.join(CONTENDERS)} |"
    yield f"|---|{'---|' * len(CONTENDERS)}"
    for workload, factors in results.watched.items():
        yield f"| {workload} | {' | '.join(f'{factors[who]:.2f}' for who in CONTENDERS)} |"
    yield ""
    yield "What each pays of it in the process above, in instructions of bytecode for a unit:"
    yield ""
    yield f"| | {' | '.join(results.counts)} |"
    yield f"|---|{'---|' * len(results.counts)}"
    for who in results.counts[SELECT]:
        paid = (f"{counts[who].get(LISTEN, 0):,.0f}" if who in counts else "" for counts in results.counts.values())
        yield f"| {who} | {' | '.join(paid)} |"
