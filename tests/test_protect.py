"""Work that is protected from cancellation: awaited to its end, without spinning, and not for ever."""

from __future__ import annotations

import asyncio

import anyio
import pytest

from sa_isolated_tasks import _protect
from sa_isolated_tasks._protect import finish, settle


class Work:
    """A coroutine that waits, and says how it was ended."""

    def __init__(self, result="done"):
        self.reached = asyncio.Event()
        self.release = asyncio.Event()
        self.result = result
        self.cancelled = False

    async def run(self):
        self.reached.set()
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


async def test_the_result_comes_out():
    """Without a cancellation the result of the work is returned."""
    work = Work()
    work.release.set()

    assert "done" == await finish(work.run())


async def test_a_cancellation_waits_for_the_work_and_goes_on():
    """However often it is cancelled; the work is not."""
    work = Work()
    task = asyncio.create_task(finish(work.run()))
    await work.reached.wait()
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
    before = task.done()
    work.release.set()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert (False, False) == (before, work.cancelled)


async def test_the_error_of_the_work_goes_before_the_cancellation():
    """Work that fails after its waiter was cancelled raises its own error."""
    work = Work(ValueError("work"))
    task = asyncio.create_task(finish(work.run()))
    await work.reached.wait()
    task.cancel()
    await asyncio.sleep(0)
    work.release.set()

    with pytest.raises(ValueError, match="work"):
        await task


async def test_settle_gives_the_cancellation_back():
    """Together with the result, for who has more to do before it goes on."""
    work = Work()
    task = asyncio.create_task(settle(work.run()))
    await work.reached.wait()
    task.cancel()
    await asyncio.sleep(0)
    work.release.set()
    result, cancelled = await task

    assert ("done", asyncio.CancelledError) == (result, type(cancelled))


async def test_anyio_does_not_spin_during_a_commit():
    """An anyio cancel scope cancels again and again; the work is waited for in peace."""
    work, cancels, results = Work(), [], []

    class Counting(asyncio.Task):
        def cancel(self, msg=None):
            cancels.append(self)
            return super().cancel(msg)

    async def guarded():
        with scope:
            results.append(await finish(work.run()))

    scope = anyio.CancelScope()
    task = Counting(guarded(), loop=asyncio.get_running_loop())
    await work.reached.wait()
    scope.cancel()
    for _ in range(100):
        await asyncio.sleep(0)
    work.release.set()
    await task

    assert [] == results
    assert 0 < len(cancels) < 5


async def test_without_anyio_there_is_nothing_to_be_shielded_from(monkeypatch):
    """Where nobody has imported anyio the work is protected all the same."""
    monkeypatch.delitem(__import__("sys").modules, "anyio")
    work = Work()
    task = asyncio.create_task(finish(work.run()))
    await work.reached.wait()
    task.cancel()
    await asyncio.sleep(0)
    work.release.set()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert not work.cancelled


@pytest.mark.parametrize("when", ["before", "during"])
async def test_patience_ends(when, loop_errors):
    """From the first cancellation on, or one before: the work is given up, and the cancellation goes on by itself."""
    given_up = []
    work = Work()
    since = asyncio.get_running_loop().time() if when == "before" else float("inf")

    async def give_up():
        given_up.append(1)

    task = asyncio.create_task(finish(work.run(), patience=0, since=since, give_up=give_up))
    await work.reached.wait()
    if when == "during":
        await asyncio.sleep(0)
        task.cancel()
    with pytest.raises(asyncio.CancelledError) as caught:
        await task

    assert ([1], True) == (given_up, work.cancelled)
    assert caught.value.__suppress_context__
    assert [] == loop_errors


async def test_patience_is_counted_from_the_cancellation_that_came_before():
    """Work that ends within it is not given up."""
    work = Work()
    since = asyncio.get_running_loop().time()
    task = asyncio.create_task(finish(work.run(), patience=60, since=since))
    await work.reached.wait()
    for _ in range(5):
        await asyncio.sleep(0)
    work.release.set()

    assert "done" == await task


async def test_what_is_given_up_is_cancelled_wherever_it_is_by_then():
    """Giving it up has woken it: the cancellation comes at its next suspension, and is not held."""
    woken, steps = asyncio.Event(), []

    async def work():
        await woken.wait()
        try:
            await asyncio.Event().wait()
        finally:
            steps.append("cancelled")

    async def give_up():
        woken.set()
        for _ in range(5):
            await asyncio.sleep(0)

    task = asyncio.create_task(finish(work(), patience=0, give_up=give_up))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert ["cancelled"] == steps


async def test_work_that_does_not_end_when_it_is_given_up_is_left_alone(monkeypatch):
    """It swallows its cancellation: the waiter goes on after the last words, and its error is reported to nobody."""
    monkeypatch.setattr(_protect, "LAST_WORDS", 0)
    reached, release = asyncio.Event(), asyncio.Event()

    async def stubborn():
        reached.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await release.wait()
            raise ValueError from None

    task = asyncio.create_task(finish(stubborn(), patience=0))
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    left = [other for other in asyncio.all_tasks() if other.get_coro().__name__ == "rest"]
    release.set()
    await asyncio.wait(left)

    assert 1 == len(left)


async def test_a_cancellation_during_the_last_words_changes_nothing():
    """Cancelled once more while what was given up ends: it still ends first."""
    cleaning, release = asyncio.Event(), asyncio.Event()

    async def slow():
        try:
            await asyncio.Event().wait()
        finally:
            cleaning.set()
            await release.wait()
            steps.append("clean")

    steps = []
    task = asyncio.create_task(finish(slow(), patience=0))
    await asyncio.sleep(0)
    task.cancel()
    await cleaning.wait()
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    before = task.done()
    release.set()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert (False, ["clean"]) == (before, steps)
