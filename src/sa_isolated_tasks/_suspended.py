"""What a suspended coroutine awaits, and what it is inside of: read from outside, without a step of it being run."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterable, Iterator
from types import CoroutineType, MethodType
from typing import Any

__all__ = ["awaited_by", "groups_being_left", "groups_that_cancelled", "has_run_out"]

# Where a coroutine that is not Python's own, an async generator, and a generator, which an `__await__` may be, say what
# they wait for.
_ELSEWHERE = ("cr_await", "ag_await", "gi_yieldfrom")
# What CPython puts between an `await` and the coroutine or async generator behind it.
_WRAPPERS = {"coroutine_wrapper", "async_generator_asend", "async_generator_athrow", "anext_awaitable"}


def awaited_by(coroutine: Any) -> Iterator[Any]:
    """The chain of coroutines in which this one is suspended, itself included."""
    awaiting = coroutine
    while awaiting is not None:
        yield awaiting
        awaiting = awaiting.cr_await if type(awaiting) is CoroutineType else _awaited_by_another(awaiting)


def _awaited_by_another(awaiting: Any) -> Any:
    """What is awaited by something that is no coroutine of Python's."""
    if type(awaiting).__name__ in _WRAPPERS:
        return next(filter(_is_a_link, gc.get_referents(awaiting)), None)
    name = _attribute_of(awaiting)
    return None if name is None else getattr(awaiting, name)


def _is_a_link(held: object) -> bool:
    return type(held).__name__ in _WRAPPERS or _attribute_of(held) is not None


def _attribute_of(held: object) -> str | None:
    # Q: Why ask the class? A: An object may answer to any name, and there would be no end to the chain:
    # test_suspended.py::test_what_answers_to_any_name_is_the_end_of_the_chain.
    return next((name for name in _ELSEWHERE if hasattr(type(held), name)), None)


def has_run_out(chain: Iterable[Any]) -> bool:
    """Whether a suspended coroutine in *chain* is inside of an ``asyncio.timeout`` that has run out."""
    return any(isinstance(manager, asyncio.Timeout) and manager.expired() for manager in _entered(chain))


def groups_that_cancelled(chain: Iterable[Any]) -> list[asyncio.TaskGroup]:
    """The task groups around a suspended coroutine in *chain* that have cancelled their task; they tell nobody."""
    groups = [manager for manager in _entered(chain) if isinstance(manager, asyncio.TaskGroup)]
    return [group for group in dict.fromkeys(groups) if getattr(group, "_parent_cancel_requested", False)]


def groups_being_left(chain: Iterable[Any]) -> list[asyncio.TaskGroup]:
    code = asyncio.TaskGroup.__aexit__.__code__
    return [awaiting.cr_frame.f_locals["self"] for awaiting in chain if getattr(awaiting, "cr_code", None) is code]


def _entered(chain: Iterable[Any]) -> Iterator[object]:
    """
    The context managers that suspended coroutines are inside of; and others whose methods they hold.

    One lives on the stack of the frame that has entered it, as the bound method that will leave it, and in the frame of
    that method once it runs.
    """
    for awaiting in chain:
        yield from groups_being_left([awaiting])
        # By the exact type: others, which may be anything that a coroutine refers to, are asked nothing.
        yield from (held.__self__ for held in gc.get_referents(awaiting) if type(held) is MethodType)
