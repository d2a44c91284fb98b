"""Whether one task waits for another, in each way that asyncio and anyio have."""

from __future__ import annotations

import asyncio

import anyio
import pytest

from sa_isolated_tasks._blocking import waits_for


class Awaitable:
    """An object whose ``__await__`` is a coroutine's."""

    def __init__(self, coroutine):
        self.coroutine = coroutine

    def __await__(self):
        return self.coroutine.__await__()


async def as_a_task(ask):
    await asyncio.create_task(ask())


async def by_gather(ask):
    await asyncio.gather(ask(), asyncio.sleep(0))


async def by_gather_of_objects(ask):
    await asyncio.gather(Awaitable(ask()))


async def by_wait(ask):
    await asyncio.wait([asyncio.create_task(ask())])


async def by_shield(ask):
    await asyncio.shield(ask())


async def by_a_task_group(ask):
    async with asyncio.TaskGroup() as group:
        group.create_task(ask())


async def by_anyio(ask):
    async with anyio.create_task_group() as group:
        group.start_soon(ask)


async def through_another_task(ask):
    await asyncio.create_task(by_gather(ask))


@pytest.mark.parametrize(
    "wait",
    [as_a_task, by_gather, by_gather_of_objects, by_wait, by_shield, by_a_task_group, by_anyio, through_another_task],
)
async def test_a_task_that_waits_is_seen(wait):
    """The waiter is suspended until the other has ended."""
    waiter, answers = asyncio.current_task(), []

    async def ask():
        answers.append(waits_for(waiter, asyncio.current_task()))

    await wait(ask)

    assert [True] == answers


@pytest.mark.parametrize(
    "others",
    [
        {"timeout": 60},
        {"return_when": asyncio.FIRST_COMPLETED},
        {"return_when": asyncio.FIRST_EXCEPTION},
    ],
)
async def test_who_waits_for_others_too_or_for_a_time_does_not_wait(others):
    """The end of this one is not what it needs to go on."""
    waiter, answers, another = asyncio.current_task(), [], asyncio.get_running_loop().create_future()

    async def ask():
        answers.append(waits_for(waiter, asyncio.current_task()))
        another.set_result(None)

    tasks = [asyncio.create_task(ask()), another]
    await asyncio.wait(tasks, **others)

    assert [False] == answers


async def test_who_waits_for_the_first_of_one_waits_for_it():
    """There is no other."""
    waiter, answers = asyncio.current_task(), []

    async def ask():
        answers.append(waits_for(waiter, asyncio.current_task()))

    await asyncio.wait([asyncio.create_task(ask())], return_when=asyncio.FIRST_COMPLETED)

    assert [True] == answers


async def test_a_callback_may_refer_to_what_is_not_there_yet():
    """A variable of the function around it that has no value is none that waits."""
    waiter, answers, release = asyncio.current_task(), [], asyncio.get_running_loop().create_future()

    def wake(_task):
        release.set_result(None)
        return lambda: later

    async def ask():
        answers.append(waits_for(waiter, asyncio.current_task()))

    asyncio.create_task(ask()).add_done_callback(wake)
    await release
    later = answers

    assert [True] == later


async def test_a_task_that_waits_for_something_else_does_not_wait():
    """It is suspended, but the end of the other would not wake it."""
    waiter, answers, release = asyncio.current_task(), [], asyncio.Event()

    async def ask():
        answers.append(waits_for(waiter, asyncio.current_task()))
        release.set()

    other = asyncio.create_task(ask())
    await release.wait()
    await other

    assert [False] == answers


async def test_a_task_that_is_suspended_by_nothing_does_not_wait():
    """It has only given the others a turn."""
    waiter, answers = asyncio.current_task(), []

    async def ask():
        answers.append(waits_for(waiter, asyncio.current_task()))

    other = asyncio.create_task(ask())
    await asyncio.sleep(0)
    await other

    assert [False] == answers
