"""
What stands in the way of the targets that are missed, and where the time goes.

Time decides, of this process's CPU and from the same rounds as the targets: an instruction of one contender may take
twice as long as one of another, so their counts are a profile and no verdict.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from benchmarks.contenders import BY_HAND, LEAST, OURS, OURS_TO_THE_FULL
from benchmarks.counted import LISTEN, OWN_PARTS, PARTS, PEER
from benchmarks.results import RatioTarget, Results, Target


def lines(results: Results) -> Iterator[str]:
    yield "*The least* is a session, a task, a log record made as this package makes it, and the commit for each unit:"
    yield "without guard, handle, outcome, account, or care for cancellations and failures. It is listened to as well."
    yield "In CPU time, of which a unit of the pattern by hand takes 1:"
    yield ""
    yield "| | the least | this package, `limit=10` | this package |"
    yield "|---|---|---|---|"
    for name, measured in results.workloads.items():
        ratios = [measured.cpu_ratio(contender, BY_HAND).median for contender in (LEAST, OURS_TO_THE_FULL, OURS)]
        yield _row(name, *(f"{ratio:.2f}" for ratio in ratios))
    yield ""
    yield "A connection that stays free costs too: nine units wait for the server together, not ten."
    yield ""
    missed = [target for target in results.targets() if not target.is_met]
    yield from _missed(results, missed) if missed else ["No target is missed in this run."]
    yield from _profile(results, missed)


def _missed(results: Results, missed: Iterable[Target]) -> Iterator[str]:
    yield "In the same CPU time, what each target that is missed allows, and what this package takes."
    yield "What is left is for what it does over the least."
    yield "A target is out of reach if the least alone takes more than it allows; or else it is missed by so much, as"
    yield "in the table of targets, by the clock. Each figure is a median of its own: they may differ by a hundredth."
    yield ""
    yield "| target | allows | the least | is left | this package over the least | |"
    yield "|---|---|---|---|---|---|"
    for target in missed:
        yield _row(target.text, *_judged(results, target))


def _judged(results: Results, target: Target) -> tuple[str, ...]:
    by = f"missed by {target.measured - target.limit:.3f} {target.unit}".rstrip()
    if not isinstance(target, RatioTarget):
        return ("", "", "", "", by)
    measured = results.workloads[target.workload]
    allowed = target.limit * measured.cpu_ratio(target.contender, BY_HAND).median
    least, ours = (measured.cpu_ratio(contender, BY_HAND).median for contender in (LEAST, OURS))
    figures = (f"{figure:.2f}" for figure in (allowed, least, allowed - least, ours - least))
    return (*figures, "**out of reach**" if least > allowed else by)


def _profile(results: Results, missed: Iterable[Target]) -> Iterator[str]:
    yield ""
    yield "Where the work is: what Python executes for a unit, in instructions of its bytecode, by whose code they are."
    yield "They are exact, and no measure of time: what functions in C do is not in them, and one instruction takes"
    yield "longer than another: [`counted.py`](../benchmarks/counted.py)."
    yield f"*{LISTEN.capitalize()}* is this package's own work; the others pay what is in their column, since their"
    yield "sessions are in the same process."
    for name, counts in results.counts.items():
        names = {BY_HAND: "by hand", LEAST: "the least", OURS: "this package"}
        names |= {who: who for who in _ahead(name, missed) if PEER in counts[who]}
        yield from ["", _row(name, *names.values()), f"|---|{'---|' * len(names)}"]
        for part in PARTS:
            if any(part in counts[who] for who in names):
                yield _row(part, *(_cell(counts[who].get(part, 0)) for who in names))
        yield _row("**all**", *(_cell(sum(counts[who].values())) for who in names))
        own = sum(counts[OURS].get(part, 0) for part in OWN_PARTS)
        yield from ["", f"This package's own code, with its listening, takes {own:,.0f}."]


def _ahead(workload: str, missed: Iterable[Target]) -> list[str]:
    """Of whom this package is not ahead, as it should be."""
    return [it.contender for it in missed if isinstance(it, RatioTarget) and it.workload == workload]


def _cell(instructions: float) -> str:
    return f"{instructions:,.0f}" if instructions else ""


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
