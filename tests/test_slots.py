"""Slots and seats alone: who may run, who lends, who comes back first. No database, hardly a loop."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from sa_isolated_tasks._slots import Seat, Slots


@pytest.fixture
def calls():
    return []


@pytest.fixture
def slots(calls):
    return Slots(1, lambda: calls.append("free"))


def seated(slots):
    seat = Seat(slots)
    assert slots.take()
    seat.holds = True
    return seat


def test_no_more_slots_are_taken_than_there_are(slots):
    """The second unit gets no slot when there is one."""
    seated(slots)

    assert not slots.take()


def test_without_a_limit_there_is_always_a_slot(calls):
    """A limit of None never runs out, whatever is taken and given."""
    slots = Slots(None, lambda: calls.append("free"))
    seats = [seated(slots) for _ in range(100)]

    seats[0].lend()

    assert slots.take()


def test_a_seat_that_is_left_frees_its_slot(slots, calls):
    """The end of a unit tells the queue that a slot is free."""
    seat = seated(slots)

    seat.leave()

    assert ["free"] == calls
    assert slots.take()


def test_who_waits_for_a_queued_unit_lends_its_slot(slots):
    """Waiting for a unit without a slot gives the own slot away."""
    waiter, queued = seated(slots), Seat(slots)

    waiter.wait_for(queued)

    assert not waiter.holds
    assert slots.take()


def test_who_waits_for_a_running_unit_keeps_its_slot():
    """Waiting for a unit that can go on needs no lending."""
    slots = Slots(2, lambda: None)
    waiter, running = seated(slots), seated(slots)

    waiter.wait_for(running)

    assert waiter.holds


def test_who_waits_for_a_lender_lends_too():
    """A waits for B, then B waits for a queued unit: both slots are given away, or A would starve what B waits for."""
    slots = Slots(2, lambda: None)
    a, b, queued = seated(slots), seated(slots), Seat(slots)
    a.wait_for(b)

    b.wait_for(queued)

    assert (False, False, 2) == (a.holds, b.holds, slots.free)


def test_a_long_chain_of_waiters_lends_without_recursion():
    """A chain of ten thousand waiters is no matter of the stack."""
    slots = Slots(10_000, lambda: None)
    chain = [seated(slots) for _ in range(10_000)]
    for waiter, target in pairwise(chain):
        waiter.wait_for(target)

    chain[-1].wait_for(Seat(slots))

    assert 10_000 == slots.free


def test_a_lender_comes_back_before_anyone_new(slots):
    """When the unit that was waited for ends, its slot goes to who lent it, not to the queue."""
    waiter, queued = seated(slots), Seat(slots)
    waiter.wait_for(queued)
    assert slots.take()
    queued.holds = True

    queued.leave()

    assert waiter.holds
    assert not slots.take()


def test_a_lender_waits_for_its_turn_when_no_slot_is_free(slots):
    """The slot went to somebody else: the lender gets the next one, before the queue."""
    waiter, queued = seated(slots), Seat(slots)
    waiter.wait_for(queued)
    other = seated(slots)
    queued.leave()
    assert (False, False) == (waiter.holds, slots.take())

    other.leave()

    assert waiter.holds


def test_who_waits_for_two_comes_back_after_the_second():
    """``gather`` over two queued units: the slot is taken back when no slotless one is left."""
    slots = Slots(1, lambda: None)
    waiter, first, second = seated(slots), Seat(slots), Seat(slots)
    waiter.wait_for(first)
    waiter.wait_for(second)

    first.leave()
    between = waiter.holds
    second.leave()

    assert (False, True) == (between, waiter.holds)


def test_who_waits_twice_for_one_comes_back_once(slots):
    """``gather(handle, handle)`` waits twice for one unit and takes one slot back."""
    waiter, queued = seated(slots), Seat(slots)
    waiter.wait_for(queued)
    waiter.wait_for(queued)

    queued.leave()

    assert (True, 0) == (waiter.holds, slots.free)


def test_a_cancelled_waiter_goes_on_at_once(slots):
    """It takes a slot even if none is free: its clean-up must not wait for others."""
    waiter, queued = seated(slots), Seat(slots)
    waiter.wait_for(queued)
    seated(slots)

    waiter.stop_waiting_for(queued)

    assert (True, -1, []) == (waiter.holds, slots.free, queued.watchers)


def test_a_waiter_that_is_cancelled_on_its_way_back_leaves_no_place_in_the_line(slots):
    """Cancelled between the other's end and its own turn, it goes on, and is not served a second time."""
    waiter, queued = seated(slots), Seat(slots)
    waiter.wait_for(queued)
    other = seated(slots)
    queued.leave()

    waiter.stop_waiting_for(queued)
    other.leave()

    assert (True, 0, 0) == (waiter.holds, slots.free, len(slots.returning))


def test_a_cancelled_branch_leaves_the_other_waiting(slots):
    """One branch of a ``gather`` is cancelled, another still waits for a queued unit: the slot stays lent."""
    waiter, first, second = seated(slots), Seat(slots), Seat(slots)
    waiter.wait_for(first)
    waiter.wait_for(second)

    waiter.stop_waiting_for(first)

    assert not waiter.holds


def test_a_new_wait_calls_a_returning_unit_out_of_the_line(slots):
    """It was next in line, but another branch of it now waits for a slotless unit: holding a slot would starve that."""
    waiter, first, second = seated(slots), Seat(slots), Seat(slots)
    waiter.wait_for(first)
    other = seated(slots)
    first.leave()

    waiter.wait_for(second)
    other.leave()

    assert (False, 1) == (waiter.holds, slots.free)


def test_a_unit_in_the_line_has_one_place_in_it():
    """In the line of returning units, another branch waits for a running unit: its end gives no second place."""
    slots = Slots(2, lambda: None)
    waiter, queued = seated(slots), Seat(slots)
    waiter.wait_for(queued)
    first, second = seated(slots), seated(slots)
    queued.leave()
    waiter.wait_for(first)

    first.leave()
    second.leave()

    assert (True, 1, 0) == (waiter.holds, slots.free, len(slots.returning))


def test_a_unit_that_ends_while_it_waits_is_forgotten(slots):
    """A unit that ends, with a helper task of it still waiting, leaves no trace in what was waited for."""
    waiter, queued = seated(slots), Seat(slots)
    waiter.wait_for(queued)
    other = seated(slots)

    waiter.leave()
    other.leave()

    assert ([], 1) == (queued.watchers, slots.free)


def test_a_unit_that_ends_on_its_way_back_takes_no_slot(slots):
    """A unit that ends in the line of returning ones is taken out of it."""
    waiter, queued = seated(slots), Seat(slots)
    waiter.wait_for(queued)
    other = seated(slots)
    queued.leave()

    waiter.leave()
    other.leave()

    assert (1, 0) == (slots.free, len(slots.returning))


async def test_who_waits_for_the_turn_of_a_unit_that_ends_goes_on(slots):
    """A helper has outlived its unit, whose slot somebody else has."""
    waiter, queued = seated(slots), Seat(slots)
    waiter.wait_for(queued)
    other = seated(slots)
    queued.leave()
    helper = asyncio.create_task(waiter.come_back())
    await asyncio.sleep(0)

    waiter.leave()
    async with asyncio.timeout(20):
        await helper

    assert other.holds


async def test_coming_back_waits_for_the_turn(slots):
    """A lender goes on when it has its slot, and not before."""
    waiter, queued = seated(slots), Seat(slots)
    waiter.wait_for(queued)
    other = seated(slots)
    queued.leave()
    back = asyncio.create_task(waiter.come_back())
    await asyncio.sleep(0)
    before = back.done()

    other.leave()
    await back

    assert (False, True) == (before, waiter.holds)


async def test_two_branches_come_back_together(slots):
    """Two helper tasks of one unit wait for one turn."""
    waiter, queued = seated(slots), Seat(slots)
    waiter.wait_for(queued)
    other = seated(slots)
    queued.leave()
    branches = [asyncio.create_task(waiter.come_back()) for _ in range(2)]
    await asyncio.sleep(0)

    other.leave()
    await asyncio.gather(*branches)

    assert (True, 0) == (waiter.holds, slots.free)


async def test_a_branch_goes_on_without_a_slot_when_another_begins_to_wait(slots):
    """On the way back, another branch starts to wait for a slotless unit: this one goes on without a slot."""
    waiter, first, second = seated(slots), Seat(slots), Seat(slots)
    waiter.wait_for(first)
    seated(slots)
    first.leave()
    back = asyncio.create_task(waiter.come_back())
    await asyncio.sleep(0)

    waiter.wait_for(second)
    await back

    assert not waiter.holds


def test_a_unit_belongs_to_the_scope_of_who_spawned_it(slots):
    """A unit of an inner scope counts as one of the outer scope while its spawner lives, and not after."""
    outer = seated(slots)
    inner = Seat(Slots(1, lambda: None), outer)

    during = inner.belongs_to(slots)
    outer.leave()

    assert (True, False) == (during, inner.belongs_to(slots))


def test_who_waits_for_all_of_an_inner_scope_lends_over_two_scopes(slots):
    """A unit in a scope in a scope waits for one of the outermost: its unit there lends its slot."""
    outer = seated(slots)
    middle = seated(Slots(1, lambda: None))
    middle.parent = outer
    inner = seated(Slots(1, lambda: None))
    inner.parent = middle
    everyone = Seat(Slots(0, lambda: None))
    everyone.crowd = everyone.holds = True
    outer.wait_for(everyone)

    inner.wait_for(Seat(slots))

    assert (False, 1) == (outer.holds, slots.free)


def test_who_waits_for_one_running_unit_does_not_lend_for_those_it_has_spawned():
    """That unit can go on, whatever a unit waits for that was spawned elsewhere."""
    slots = Slots(2, lambda: None)
    outer, running = seated(slots), seated(slots)
    inner = seated(Slots(1, lambda: None))
    inner.parent = outer
    outer.wait_for(running)

    inner.wait_for(Seat(slots))

    assert (True, False) == (outer.holds, inner.holds)


class Waiting(RuleBasedStateMachine):
    """Any order of starts, waits, cancelled waits and ends: the invariant holds, and no slot is lost or made."""

    living = Bundle("living")
    LIMIT = 2

    def __init__(self):
        super().__init__()
        self.slots = Slots(self.LIMIT, lambda: None)
        self.seats = []
        self.forced = 0

    @rule(target=living)
    def spawn(self):
        seat = Seat(self.slots)
        self.seats.append(seat)
        return seat

    @rule(seat=living)
    def start(self, seat):
        if not seat.holds and not seat.targets and seat not in self.slots.returning and self.slots.take():
            seat.holds = True

    @rule(waiter=living, other=living)
    def wait(self, waiter, other):
        if waiter.holds and waiter is not other and not self.reaches(other, waiter):
            waiter.wait_for(other)

    @rule(waiter=living, data=st.data())
    def stop(self, waiter, data):
        if waiter.targets:
            waiter.stop_waiting_for(data.draw(st.sampled_from(waiter.targets)))

    @rule(seat=consumes(living))
    def end(self, seat):
        self.seats.remove(seat)
        seat.leave()

    def reaches(self, start, goal):
        return start is goal or any(self.reaches(target, goal) for target in start.targets)

    @invariant()
    def who_waits_for_a_slotless_unit_has_none(self):
        assert [seat for seat in self.seats if seat.holds and seat.waits_for_a_slotless_unit()] == []

    @invariant()
    def no_slot_is_lost_or_made(self):
        assert self.slots.free + sum(seat.holds for seat in self.seats) == self.LIMIT

    @invariant()
    def nobody_stands_in_line_while_a_slot_is_free(self):
        assert not (self.slots.returning and self.slots.free > 0)


Waiting.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
test_any_order_of_waits_keeps_the_invariant = Waiting.TestCase
