"""What a suspended coroutine awaits, seen from outside."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from unittest.mock import MagicMock

from sa_isolated_tasks._suspended import awaited_by, groups_being_left, groups_that_cancelled, has_run_out


async def test_what_is_awaited_is_seen_through_an_object_with_an_await_of_its_own():
    """Such as a handle: what its ``__await__`` gives hides a coroutine."""

    class Turn:
        def __await__(self):
            yield

    async def inner():
        await Turn()

    class Awaitable:
        def __await__(self):
            return inner().__await__()

    async def work():
        await Awaitable()

    coroutine = work()
    coroutine.send(None)
    names = [getattr(awaiting, "__name__", "") for awaiting in awaited_by(coroutine)]
    coroutine.close()

    assert {"work", "inner"} <= set(names)


async def test_what_is_awaited_is_seen_through_a_generator_as_an_await():
    """One that does something before or after it, and so has to be a generator itself."""
    started = asyncio.Event()

    async def inner():
        started.set()
        await asyncio.Event().wait()

    class Awaitable:
        def __await__(self):
            yield from inner().__await__()

    async def work():
        await Awaitable()

    assert await names_in(work(), started) == ["work", "__await__", "inner", "wait"]


def test_what_answers_to_any_name_is_the_end_of_the_chain():
    """As a mock does."""
    steps = MagicMock()
    steps.__iter__.return_value = steps
    steps.__next__.return_value = None

    class Awaitable:
        def __await__(self):
            return steps

    async def work():
        await Awaitable()

    coroutine = work()
    coroutine.send(None)
    chain = list(itertools.islice(awaited_by(coroutine), 3))
    coroutine.close()

    assert chain == [coroutine, steps]


def test_what_a_coroutine_refers_to_is_asked_nothing():
    """A proxy of a web framework raises, outside of a request, whatever it is asked for."""

    class Proxy:
        def __getattr__(self, name):
            raise RuntimeError(f"outside of a request: {name}")

    class Turn:
        def __await__(self):
            yield

    async def work(proxy):
        local = [proxy, Proxy()].pop()
        await Turn()
        return local

    coroutine = work(Proxy())
    coroutine.send(None)
    chain = list(awaited_by(coroutine))

    assert not has_run_out(chain)
    assert groups_that_cancelled(chain) == []
    coroutine.close()


async def names_in(coroutine, started):
    """Of the chain, while the coroutine is suspended."""
    task = asyncio.create_task(coroutine)
    await started.wait()
    names = [awaiting.__name__ for awaiting in awaited_by(coroutine) if hasattr(awaiting, "__name__")]
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    return names


async def test_what_is_awaited_is_seen_through_an_async_generator():
    """By its next value, by a value that is sent into it, and by an exception that is thrown into it."""
    started = asyncio.Event()

    async def values(waits_at):
        with contextlib.suppress(ValueError):
            for at in range(2):
                if waits_at == at:
                    started.set()
                    await asyncio.Event().wait()
                yield at
        started.set()
        await asyncio.Event().wait()

    async def by_a_loop():
        async for _ in values(1):
            pass

    async def by_sending():
        generator = values(1)
        await anext(generator)
        await generator.asend(None)

    async def by_throwing():
        generator = values(None)
        await anext(generator)
        await generator.athrow(ValueError)

    async def by_a_default():
        generator = values(0)
        await anext(generator, None)

    for body in (by_a_loop, by_sending, by_throwing, by_a_default):
        started.clear()
        names = await names_in(body(), started)
        assert names[0] == body.__name__
        assert names[-2:] == ["values", "wait"], (body, names)


async def test_a_timeout_that_has_run_out_is_found_as_long_as_its_block_waits():
    """Not before, and not when the coroutine is through with it."""
    inside, expired, leave, left, end = (asyncio.Event() for _ in range(5))
    timeout = asyncio.timeout(60)

    async def waits():
        async with timeout:
            inside.set()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
            expired.set()
            await leave.wait()
        left.set()
        await end.wait()

    coroutine = waits()
    task = asyncio.create_task(coroutine)
    await inside.wait()
    assert not has_run_out(awaited_by(coroutine))
    timeout.reschedule(asyncio.get_running_loop().time())
    await expired.wait()
    assert has_run_out(awaited_by(coroutine))
    leave.set()
    await left.wait()
    assert not has_run_out(awaited_by(coroutine))
    end.set()
    await task


async def test_a_group_that_has_cancelled_its_task_is_told_from_one_that_has_not():
    """In its block, and while it is left: there it waits for its tasks."""
    fail, hold, inside = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def fails():
        await fail.wait()
        raise ValueError

    async def holds():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        inside.set()
        await hold.wait()

    async def body():
        async with asyncio.TaskGroup(), asyncio.TaskGroup() as inner:
            inner.create_task(fails())
            inner.create_task(holds())
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
        return inner

    coroutine = body()
    task = asyncio.create_task(coroutine)
    await asyncio.sleep(0)
    assert groups_that_cancelled(list(awaited_by(coroutine))) == []
    assert groups_being_left(awaited_by(coroutine)) == []

    fail.set()
    await inside.wait()
    chain = list(awaited_by(coroutine))
    cancelled, left = groups_that_cancelled(chain), groups_being_left(chain)
    hold.set()
    result = await asyncio.gather(task, return_exceptions=True)

    assert isinstance(result[0], ExceptionGroup)
    assert len(cancelled) == 1
    assert left == cancelled
