"""Who waits until a scope is quiet, apart from any scope."""

from __future__ import annotations

import pytest

from sa_isolated_tasks._quiet import QuietWaiters
from sa_isolated_tasks._slots import Seat, Slots


@pytest.fixture
def slots():
    return Slots(3, lambda: None)


async def test_one_is_told_until_it_has_listened_and_all_when_nobody_is_left(slots):
    """News that comes twice in one turn of the loop changes nothing."""
    waiters = QuietWaiters(slots)
    with waiters.joined_by(Seat(slots)) as first, waiters.joined_by(Seat(slots)) as second:
        told = []
        for live in (3, 2, 2, 0, 0):
            waiters.tell(live)
            told.append((first.done(), second.done()))

    assert told == [(False, False), (True, False), (True, False), (True, True), (True, True)]


async def test_who_has_left_is_told_nothing(slots):
    """It waits no more, and counts as a unit that lives."""
    waiters = QuietWaiters(slots)
    with waiters.joined_by(Seat(slots)) as gone:
        pass
    with waiters.joined_by(Seat(slots)) as left:
        waiters.tell(2)
        assert not left.done()
        waiters.tell(1)

    assert (gone.done(), left.done()) == (False, True)


@pytest.mark.parametrize("ended", [True, False])
async def test_a_helper_of_a_unit_that_has_ended_waits_as_from_outside(slots, ended):
    """Its unit is none of those that live, so nobody is exempt for it."""
    seat = Seat(slots)
    seat.ended = ended
    waiters = QuietWaiters(slots)
    with waiters.joined_by(seat) as quiet:
        waiters.tell(1)

    assert quiet.done() is not ended
    assert waiters.is_quiet(1, seat) is not ended


async def test_a_helper_of_a_unit_that_has_ended_does_not_stand_before_a_unit(slots):
    """The unit is told, although the helper was there first."""
    helper = Seat(slots)
    helper.ended = True
    waiters = QuietWaiters(slots)
    with waiters.joined_by(helper) as first, waiters.joined_by(Seat(slots)) as second:
        waiters.tell(1)

        assert (first.done(), second.done()) == (False, True)


async def test_who_waits_from_outside_waits_for_units_that_wait(slots):
    """They go on soon, but have not ended."""
    waiters = QuietWaiters(slots)
    with waiters.joined_by(Seat(slots)), waiters.joined_by(Seat(slots)):
        assert waiters.is_quiet(2, None) is False
        assert waiters.is_quiet(0, None) is True
