"""Writes what was found as *docs/benchmarks.md*."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from benchmarks import guard, plot
from benchmarks.contenders import BY_HAND, BY_HAND_UNLIMITED, LEAST, OURS, OURS_TO_THE_FULL, OURS_UNLIMITED
from benchmarks.counted import OWN_PARTS, PARTS
from benchmarks.results import Results, Target
from benchmarks.rounds import Measured

PICTURE = "benchmarks.svg"


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
    yield "`nox -s bench` takes seven minutes on a machine that does nothing else, and with `-- --quick` two;"
    yield "`-- --print` prints the page in place of writing it."
    yield "PostgreSQL is the server of `TEST_POSTGRESQL_URL`, or the one on port 5432, or one from a wheel."
    yield ""
    yield f"Measured on: {results.cpu}, which other programs used too."
    yield f"Versions: {', '.join(f'{name} {version}' for name, version in results.versions.items())}."
    yield from ["", "## Targets", ""]
    yield from _targets(results.targets())
    yield from _counts(results)
    yield from ["", "## How it is measured", ""]
    yield "A batch of units is started at once and waited for; all contenders run in one process, one after the other,"
    yield "in an order that is shuffled in every round."
    yield "A ratio is that of two batches of the same round; the table has the median of all rounds, and the quartiles."
    yield "*CPU time alone* is the same ratio of what this process computes, which other programs disturb less."
    yield "The garbage collector runs between two batches, and as always within them."
    yield "Each contender opens a session for each unit, and each has to prove that its units have committed."
    yield ""
    yield "- *This package* has everything on: the guard, the log at INFO (to a handler that writes nothing), handles."
    yield "- *By hand* is a task in a set with a done callback, timed and logged:"
    yield f"  [`handwritten.py`]({_SOURCE}handwritten.py)."
    yield "  With a semaphore of the pool's size, which is 10; this package leaves one connection free, and runs 9."
    yield f"- *The floor* is ten tasks that take one number after the other: [`contenders.py`]({_SOURCE}contenders.py)."
    yield "  For each a session is made, the body run, committed, and closed without a greenlet."
    yield f"- *The others* are used as their documentation says: [`peers.py`]({_SOURCE}peers.py)."
    yield "  Where they bring no session, they run what is written by hand, and log as that does."
    yield "  context-async-sqlalchemy, fastapi-async-sqlalchemy and transactional-boundary bring one, and log nothing;"
    yield "  the first of them is not bounded, except by the pool, and none of them has handles or outcomes."
    for name, reason in results.skipped.items():
        yield f"- Left out: {name}: {reason}"
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
    yield from ["", "## Other sessions", ""]
    yield "A scope listens to all sessions of its process, so all contenders above pay for that alike."
    yield f"The pattern by hand takes {results.watched:.2f} times the CPU time for `select 1` in a process that has a"
    yield "scope, compared with one that has none: the median of pairs of new processes."
    yield from ["", "## Import", ""]
    yield f"{results.imported:.1f} ms over `import sqlalchemy.ext.asyncio`: the median of the differences of pairs of"
    yield _IMPORT


_SOURCE = "../benchmarks/"
_IMPORT = """new processes, in time of the processor, with this Python. With 3.11 a full run of the garbage collector
may fall into it, which takes longer than the import. Alone: `python -m benchmarks --only imports`."""


def _counts(results: Results) -> Iterator[str]:
    yield from ["", "## What stands in the way of what is missed", ""]
    yield "*The least* is a session, a task, a log record and the commit for each unit: without guard, handle, queue,"
    yield "outcome or account. In CPU time, to the pattern by hand:"
    yield ""
    yield "| | the least | this package, `limit=10` | this package |"
    yield "|---|---|---|---|"
    for name, measured in results.workloads.items():
        ratios = [measured.cpu_ratio(contender, BY_HAND).median for contender in (LEAST, OURS_TO_THE_FULL, OURS)]
        yield f"| {name} | {' | '.join(f'{ratio:.2f}' for ratio in ratios)} |"
    yield ""
    yield "A connection that stays free costs too: nine units wait for the server together, not ten."
    yield ""
    yield "What Python executes for a unit, in instructions of its bytecode, by whose code they are; what functions in"
    yield f"C do is not in them. Unlike what a profiler sees they are exact: [`counted.py`]({_SOURCE}counted.py)."
    for name, counts in results.counts.items():
        three = [counts[contender] for contender in (BY_HAND, LEAST, OURS)]
        yield from ["", f"| {name} | by hand | the least | this package |", "|---|---|---|---|"]
        for part in PARTS:
            if any(part in count for count in three):
                yield f"| {part} | {' | '.join(_cell(count.get(part, 0)) for count in three)} |"
        yield f"| **all** | {' | '.join(_cell(sum(count.values())) for count in three)} |"
        yield from _left(name, results, sum(counts[OURS].get(part, 0) for part in OWN_PARTS))


def _left(name: str, results: Results, own: float) -> Iterator[str]:
    counts, least = results.counts[name], sum(results.counts[name][LEAST].values())
    yield ""
    yield f"The least takes {least:,.0f}, and this package's own code {own:,.0f}. What a target leaves for that code:"
    yield ""
    yield "| target | instructions | less the least | |"
    yield "|---|---|---|---|"
    for contender, limit in results.limits(name).items():
        allowed = limit * sum(counts[contender].values())
        enough = "" if allowed - least >= own else "**not enough**"
        yield f"| {limit:.2f} of {contender} | {allowed:,.0f} | {allowed - least:,.0f} | {enough} |"


def _cell(instructions: float) -> str:
    return f"{instructions:,.0f}" if instructions else ""


def _targets(targets: Iterable[Target]) -> Iterator[str]:
    yield from ["| what | at most | measured | |", "|---|---|---|---|"]
    for target in targets:
        unit = f" {target.unit}" if target.unit else ""
        met = "met" if target.is_met else "**missed**"
        yield f"| {target.text} | {target.limit:.2f}{unit} | {target.measured:.2f}{unit} | {met} |"


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
    yield f"At most {guard.bound():,} objects of a call are looked at, and of one container at most half of what is"
    yield "left of them, so the cost grows with the size up to there, and no further."
    yield ""
    yield "| a list of | numbers, us | objects with an attribute, us |"
    yield "|---|---|---|"
    for size, numbers, objects in results.containers:
        yield f"| {size:,} | {numbers:,.1f} | {objects:,.1f} |"


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
    yield f"them, {results.resident[-1]:.1f} MiB after all."
    yield ""
    large = results.large
    ratio = large.ratio(OURS, BY_HAND)
    yield f"{large.count:,} units of `select 1` over a pool of ten: {ratio.median:.2f} of the pattern by hand with a"
    yield f"semaphore ({large.microseconds(OURS):.0f} and {large.microseconds(BY_HAND):.0f} us a unit)."
