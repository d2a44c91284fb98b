"""What the check of the arguments costs. It runs at every call, so it is measured alone, without the unit."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Callable
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


def by_size(sizes: tuple[int, ...], *, repeat: int = 10) -> dict[int, list[float]]:
    """For each size what an argument of each of the `SHAPES` costs."""
    return {size: [microseconds((make(size),), repeat=repeat, number=1) for make in SHAPES.values()] for size in sizes}


def bound() -> int:
    """How many objects of one call are looked at."""
    return BUDGET


class _Plain:
    """An object of the user's."""

    def __init__(self, attributes: int) -> None:
        for number in range(attributes):
            setattr(self, f"a{number}", number)


SHAPES: dict[str, Callable[[int], object]] = {
    "a list of n numbers": lambda n: list(range(n)),
    "a list of n objects with an attribute": lambda n: [_Plain(1) for _ in range(n)],
    "a list of n objects with 20 plain attributes": lambda n: [_Plain(20) for _ in range(n)],
    "an object with n plain attributes": _Plain,
}
