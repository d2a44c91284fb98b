"""What the check of the arguments costs. It runs at every call, so it is measured alone, without the unit."""

from __future__ import annotations

import datetime as dt
import uuid
from time import process_time
from typing import Any

from sa_isolated_tasks._guard import BUDGET, Passed, check_call
from sa_isolated_tasks._signature import read_shape

TWO_SCALARS = (1, "two")
TEN_MIXED = (
    *(1, "two", 3.0, None, True, b"six"),
    *(uuid.UUID(int=7), dt.datetime(2026, 1, 1, tzinfo=dt.UTC)),
    *(["nine", "and", "more"], {"ten": 10, "more": ("a", "b")}),
)


async def _work(session: Any, *values: Any) -> None:
    """The function that is called: it is never run."""


def microseconds(args: tuple[Any, ...], *, repeat: int = 100, number: int = 100) -> float:
    """The fastest of many: the check waits for nothing, so what is slower was disturbed."""
    shape = read_shape(_work)

    def seconds() -> float:
        started = process_time()
        for _ in range(number):
            check_call(Passed("work", args, {}, None, 1), shape, shape.signature, "raise")
        return (process_time() - started) / number

    return min(seconds() for _ in range(repeat)) * 1e6


def containers(sizes: tuple[int, ...], *, repeat: int = 10) -> list[tuple[int, float, float]]:
    """For each size the cost of a list of so many numbers, and of so many objects that have to be looked into."""
    return [
        (
            size,
            microseconds((list(range(size)),), repeat=repeat, number=1),
            microseconds(([_Plain() for _ in range(size)],), repeat=repeat, number=1),
        )
        for size in sizes
    ]


def bound() -> int:
    """How many objects of one call are looked at."""
    return BUDGET


class _Plain:
    """An object of the user's, with one attribute."""

    def __init__(self) -> None:
        self.name = "plain"
