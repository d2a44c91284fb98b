"""A coroutine that is driven step by step: what is held, what is let in, and what is left of it."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from sa_isolated_tasks._gate import Gate
from sa_isolated_tasks._steps import PatienceEnded, Steps, awaited_deep_down
from sa_isolated_tasks._suspended import awaited_by, has_run_out


class Holding(Steps):
    """Holds cancellations while the test says so."""

    def __init__(self, coroutine):
        super().__init__(coroutine)
        self.holding = True
        self.holds_begun = 0

    def holds(self):
        return self.holding

    def owns(self):
        return has_run_out(awaited_by(self._coroutine))

    def on_hold(self):
        self.holds_begun += 1


async def test_what_is_to_be_held_is_said_by_a_subclass():
    """The driver itself has no policy."""
    steps = Steps(asyncio.sleep(0))

    for question in (steps.holds, steps.owns, steps.on_hold, lambda: steps.finish(asyncio.current_task())):
        with pytest.raises(NotImplementedError):
            question()
    await asyncio.create_task(run(Holding(steps._coroutine)))


class Turn:
    """A bare ``yield``, as in ``asyncio.sleep(0)``."""

    def __await__(self):
        yield


async def run(steps):
    return await steps


async def cancelled_at_its_next_suspension():
    """Whether the current task has a cancellation to come."""
    try:
        await asyncio.sleep(0)
    except asyncio.CancelledError:
        return True
    return False


async def test_a_cancellation_at_a_bare_yield_is_held():
    """The work goes on in the next turn; the cancellation is in ``held``."""

    async def work():
        reached.set()
        await Turn()
        await Turn()
        return "done"

    reached = asyncio.Event()
    steps = Holding(work())
    task = asyncio.create_task(run(steps))
    await reached.wait()
    task.cancel("first")
    await asyncio.sleep(0)
    task.cancel("second")

    assert "done" == await task
    assert (("first",), 1) == (steps.held.args, steps.holds_begun)


async def test_every_cancellation_that_was_held_is_in_the_chain_of_the_one_that_comes():
    """By that an anyio cancel scope finds its own."""

    async def work():
        for _ in range(4):
            await Turn()

    steps = Holding(work())
    task = asyncio.create_task(run(steps))
    await asyncio.sleep(0)
    for text in ("first", "second", "third"):
        task.cancel(text)
        await asyncio.sleep(0)
    await task

    assert "first" == str(steps.held)
    assert ["second", "third"] == [str(steps.held.__context__), str(steps.held.__context__.__context__)]


async def test_one_in_every_turn_makes_no_longer_chain_and_lets_threads_run(monkeypatch):
    """An anyio cancel scope cancels in every turn, thousands of times; the first is no reason to block the loop."""
    pauses = []
    monkeypatch.setattr("sa_isolated_tasks._gate.time.sleep", pauses.append)

    async def work():
        for _ in range(9):
            await Turn()

    steps = Holding(work())
    task = asyncio.create_task(run(steps))
    await asyncio.sleep(0)
    counts = []
    for _ in range(3):
        task.cancel("the same")
        await asyncio.sleep(0)
        counts.append(len(pauses))
    await task

    assert counts == [0, 1, 2]
    assert steps.held.__context__ is None


async def test_one_that_comes_twice_is_in_the_chain_once():
    """The chain of an exception has no end if it leads back to it."""

    async def work():
        await asyncio.Event().wait()

    steps, error = Holding(work()), asyncio.CancelledError()
    awaiting = steps.__await__()
    awaiting.send(None)
    awaiting.throw(error)
    awaiting.throw(error)
    awaiting.close()

    assert error is steps.held
    assert error.__context__ is None


async def test_a_cancellation_that_the_work_asks_for_itself_is_held():
    """It is due like any other, though the task was cancelled before it came to wait."""

    async def work():
        asyncio.current_task().cancel("by itself")
        await Turn()
        return "done"

    async def whole():
        steps = Holding(work())
        return await steps, steps.take_held()

    result, held = await asyncio.create_task(whole())

    assert ("done", ("by itself",)) == (result, held.args)


async def test_what_is_held_is_thrown_when_nothing_holds_any_longer():
    """At once, if the driver is woken, and what the work waits for is cancelled, as a task would do it."""

    async def helper():
        await asyncio.Event().wait()

    async def work():
        helpers.append(asyncio.create_task(helper()))
        await helpers[0]

    helpers = []
    steps = Holding(work())
    task = asyncio.create_task(run(steps))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.sleep(0)
    before = (task.done(), steps.was_struck())
    steps.holding = False
    steps.wake()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert ((False, False), True) == (before, helpers[0].cancelled())
    assert steps.was_struck()


async def test_what_is_held_is_thrown_at_a_bare_yield():
    """The work has no future there that could be cancelled."""

    async def work():
        await release.wait()
        steps.holding = False
        await Turn()

    release = asyncio.Event()
    steps = Holding(work())
    task = asyncio.create_task(run(steps))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.sleep(0)
    release.set()

    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_wake_without_a_cancellation_changes_nothing():
    """What the work waits for is waited for as by ``await``."""

    async def work():
        return await future

    future = asyncio.get_running_loop().create_future()
    steps = Holding(work())
    steps.wake()
    task = asyncio.create_task(run(steps))
    await asyncio.sleep(0)
    steps.holding = False
    steps.wake()
    await asyncio.sleep(0)
    future.set_result("done")

    assert "done" == await task


@pytest.mark.parametrize("goes_on", [True, False])
@pytest.mark.parametrize("fails", [True, False])
async def test_a_timeout_of_the_work_runs_out_during_a_hold(goes_on, fails):
    """It takes its own cancellation; the one that is held stays, is counted once, and nothing comes after it."""

    async def work():
        try:
            async with asyncio.timeout(None) as deadline:
                deadlines.append(deadline)
                await asyncio.Event().wait()
        except TimeoutError:
            if goes_on:
                await Turn()
                await release.wait()
        asyncio.get_running_loop().call_soon(order.append, "a turn later")
        if fails:
            raise ValueError("work")
        return "done"

    async def whole():
        steps.append(Holding(work()))
        try:
            result = await steps[0]
        except ValueError as error:
            result = str(error)
        order.append("the end")
        return result, asyncio.current_task().cancelling(), await cancelled_at_its_next_suspension()

    steps, deadlines, order, release = [], [], [], asyncio.Event()
    task = asyncio.create_task(whole())
    await asyncio.sleep(0)
    task.cancel("from outside")
    await asyncio.sleep(0)
    deadlines[0].reschedule(0)
    for _ in range(5):
        await asyncio.sleep(0)
    release.set()
    result = await task

    assert ("work" if fails else "done", 1, False) == result
    # Only who ends in the very step in which its timeout ran out has to give a turn for what was lent.
    assert ("the end" if goes_on else "a turn later") == order[0]
    assert ("from outside",) == steps[0].held.args


@pytest.mark.parametrize("first", ["the timeout", "the cancellation"])
async def test_a_timeout_of_the_work_runs_out_in_the_turn_of_a_cancellation(first):
    """One CancelledError comes for both: the timeout takes its own, and the other is held."""

    async def work():
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None) as deadline:
                deadlines.append(deadline)
                await asyncio.Event().wait()
        return "done"

    async def whole():
        steps.append(Holding(work()))
        result = await steps[0]
        return result, asyncio.current_task().cancelling(), await cancelled_at_its_next_suspension()

    steps, deadlines = [], []
    task = asyncio.create_task(whole())
    await asyncio.sleep(0)
    orders = [lambda: deadlines[0].reschedule(0), lambda: task.cancel("from outside")]
    for step in orders if first == "the timeout" else reversed(orders):
        step()

    assert ("done", 1, False) == await task
    assert (("from outside",), 1) == (steps[0].held.args, steps[0].holds_begun)


async def test_what_a_timeout_of_the_work_does_in_the_end_is_cut_off_by_nothing():
    """It has its one cancellation; what was held before it is held still."""

    async def work():
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None) as deadline:
                deadlines.append(deadline)
                try:
                    await asyncio.Event().wait()
                finally:
                    await release.wait()
                    cleaned_up.append(True)
        return "done"

    steps, deadlines, cleaned_up, release = Holding(work()), [], [], asyncio.Event()
    task = asyncio.create_task(run(steps))
    await asyncio.sleep(0)
    task.cancel("from outside")
    await asyncio.sleep(0)
    deadlines[0].reschedule(0)
    for _ in range(5):
        await asyncio.sleep(0)
    release.set()

    assert "done" == await task
    assert ([True], ("from outside",)) == (cleaned_up, steps.held.args)


async def test_who_leaves_in_the_middle_of_a_timeout_is_cancelled_as_often_as_before():
    """What was lent to the timeout comes back, and there is no CancelledError too many."""

    async def work():
        async with asyncio.timeout(None) as deadline:
            deadlines.append(deadline)
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.Event().wait()

    async def leave():
        with pytest.raises(PatienceEnded):
            await steps
        return asyncio.current_task().cancelling(), await cancelled_at_its_next_suspension()

    deadlines = []
    steps = Holding(work())
    task = asyncio.create_task(leave())
    await asyncio.sleep(0)
    task.cancel("from outside")
    await asyncio.sleep(0)
    deadlines[0].reschedule(0)
    for _ in range(5):
        await asyncio.sleep(0)
    steps.leave()

    assert (2, False) == await task
    steps._coroutine.close()


async def test_what_is_awaited_is_seen_through_a_driver_wherever_it_waits():
    """Behind its gate, and while it waits for what was begun meanwhile, in a coroutine of its own."""
    release, finishing, finish = asyncio.Event(), asyncio.Event(), asyncio.Event()

    class Finishing(Holding):
        def finish(self, unfinished):
            finishing.set()
            yield from asyncio.wait([unfinished]).__await__()

    async def work():
        await release.wait()

    steps = Finishing(work())
    outer = run(steps)
    task = asyncio.create_task(outer)

    def names():
        return {getattr(awaiting, "__name__", "") for awaiting in awaited_deep_down(outer)}

    await asyncio.sleep(0)
    behind_the_gate = names()
    steps.unfinished = asyncio.create_task(finish.wait())
    release.set()
    await finishing.wait()
    while_it_finishes = names()
    finish.set()
    await task

    assert {"run", "_wait", "work"} <= behind_the_gate
    assert {"run", "finish", "work"} <= while_it_finishes


async def test_a_timeout_of_the_work_runs_out_without_a_hold():
    """The driver is not in its way."""

    async def work():
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0):
                await asyncio.Event().wait()
        return "done"

    steps = Holding(work())

    assert "done" == await asyncio.create_task(run(steps))
    assert steps.held is None


@pytest.mark.parametrize("is_done", [True, False])
async def test_what_is_left_goes_on_in_another_task(is_done):
    """Whether what it waited for has come meanwhile, or comes later."""

    async def work():
        return await future

    async def leave():
        try:
            await steps
        except PatienceEnded:
            steps.holding = False
            if is_done:
                future.set_result("done")
            return asyncio.create_task(steps.rest())

    future = asyncio.get_running_loop().create_future()
    steps = Holding(work())
    task = asyncio.create_task(leave())
    await asyncio.sleep(0)
    steps.leave()
    rest = await task
    await asyncio.sleep(0)
    if not is_done:
        future.set_result("done")

    assert "done" == await rest


async def test_outside_of_a_hold_everything_gets_in():
    """Results, errors and cancellations, as with ``await``."""

    async def work():
        await asyncio.sleep(0)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError as error:
            return error.args

    steps = Holding(work())
    steps.holding = False
    task = asyncio.create_task(run(steps))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    before = steps.was_struck()
    task.cancel("in")

    assert ("in",) == await task
    assert (False, True) == (before, steps.was_struck())


async def test_a_driver_that_is_closed_closes_the_work():
    """As the loop does it with tasks that it never ran to their end."""

    async def work():
        try:
            await Turn()
        finally:
            closed.append(1)

    closed = []
    steps = Holding(work())
    steps.holding = False
    stepping = steps.__await__()
    stepping.send(None)
    stepping.close()

    assert [1] == closed


async def test_a_hold_behind_a_hold_wakes_once_and_keeps_both():
    """A unit that is called in the body of a unit: the cancellation is held by both, and the work ends undisturbed."""
    released = asyncio.get_running_loop().create_future()

    async def work():
        await released
        return "done"

    inner = Holding(work())
    outer = Holding(run(inner))
    task = asyncio.create_task(run(outer))
    await asyncio.sleep(0)

    task.cancel("once")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    held = str(outer.held)
    released.set_result(None)

    assert "done" == await task
    assert ("once", None, False) == (held, inner.held, released.cancelled())


@pytest.mark.parametrize("which", ["inner", "outer"])
async def test_a_wake_reaches_through_holds_behind_one_another(which):
    """What one of them is told makes it ask again, and the future that the work waits for is not touched."""
    never = asyncio.get_running_loop().create_future()

    async def work():
        await never

    steps = {"inner": Holding(work())}
    steps["outer"] = Holding(run(steps["inner"]))
    task = asyncio.create_task(run(steps["outer"]))
    await asyncio.sleep(0)

    steps[which].leave()
    with pytest.raises(PatienceEnded):
        await task

    assert not never.done()
    never.cancel()
    for step in steps.values():
        step._coroutine.close()


async def test_the_end_and_a_cancellation_in_one_turn_of_the_loop():
    """In both orders the work has its result, and the cancellation is held."""
    for cancel_first in (True, False):
        future = asyncio.get_running_loop().create_future()

        async def work(future=future):
            return await future

        steps = Holding(work())
        task = asyncio.create_task(run(steps))
        await asyncio.sleep(0)
        orders = [lambda task=task: task.cancel("now"), lambda future=future: future.set_result(7)]
        for step in orders if cancel_first else reversed(orders):
            step()

        assert 7 == await task
        assert "now" == str(steps.held)


async def test_two_cancellations_in_one_turn_are_both_counted():
    """The second finds the task woken already, and comes at its next suspension."""
    future = asyncio.get_running_loop().create_future()

    async def work():
        return await future

    steps = Holding(work())
    task = asyncio.create_task(run(steps))
    await asyncio.sleep(0)

    assert (True, True) == (task.cancel("first"), task.cancel("second"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    future.set_result(8)

    assert (8, 2) == (await task, task.cancelling())


async def test_a_gate_at_which_nobody_waits_stays_as_it_is():
    """Who would open it is late: the future is done, and the task is on its way."""
    gate = Gate(asyncio.get_running_loop().create_future())

    gate.open()

    assert not gate.done()
