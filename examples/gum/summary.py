"""A day as a table: every trigger of it, what it cost, and whether anything was lost."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles

PARTS = ("total", "waiting", "queued", "body", "commit", "connection")


@dataclass(frozen=True)
class Day:
    """What was seen of it; *ended* are the log records of the triggers."""

    updates: int
    observations: int
    propositions: int
    expected: int
    delivered: int
    locked: int
    complaints: list[str]
    checked_out: int
    ended: Sequence[logging.LogRecord]

    @property
    def holds(self) -> bool:
        triggers = self.expected // 2
        return (
            self.updates == self.observations
            and self.expected == self.delivered > 0
            and triggers == len(self.ended) == sum(state_of(record) == "succeeded" for record in self.ended)
            and not (self.locked or self.complaints or self.checked_out)
        )


def state_of(record: logging.LogRecord) -> str:
    return str(vars(record)["sit_state"])


def report(day: Day) -> Iterator[str]:
    """The table that a person wants to read."""
    yield f"  {day.updates} updates, {day.observations} observations, {day.propositions} propositions"
    yield f"  {day.delivered} of {day.expected} suggestions delivered; {len(day.ended)} log lines of triggers"
    yield f"  database is locked: {day.locked}; other errors and warnings: {len(day.complaints)}"
    yield f"  connections checked out at the end: {day.checked_out}"
    yield ""
    yield f"  {'milliseconds':<34}{'triggers':>9}" + "".join(f"{part:>12}" for part in PARTS)
    for name, records in _by_name(day.ended):
        for label, figure in (("median", median), ("95 %", _ninety_five)):
            figures = "".join(f"{1000 * figure(_seconds(records, part)):>12.1f}" for part in PARTS)
            yield f"  {name + ', ' + label:<34}{len(records):>9}" + figures
    slowest = max(day.ended, key=lambda record: vars(record)["sit_total"], default=None)
    if slowest is not None:
        yield f"\n  the slowest: {slowest.getMessage()}"


def _by_name(records: Iterable[logging.LogRecord]) -> Iterator[tuple[str, list[logging.LogRecord]]]:
    kinds = {"proactive": "_trigger_proactive", "gumbo": "_trigger_gumbo"}
    for name, part in kinds.items():
        found = [record for record in records if part in record.getMessage()]
        if found:
            yield name, found


def _seconds(records: Iterable[logging.LogRecord], part: str) -> list[float]:
    return [vars(record)[f"sit_{part}"] for record in records]


def _ninety_five(values: list[float]) -> float:
    return quantiles(values, n=20)[-1] if len(values) > 1 else values[0]


def write_log(day: Day, path: Path) -> None:
    path.write_text("".join(f"{record.levelname} {record.getMessage()}\n" for record in day.ended), encoding="utf-8")
