"""Cancelled at every suspension point: nothing is left, nothing is half done, and the outcome is true."""

from __future__ import annotations

import pytest
from support import reset, session_maker
from sweep import KINDS, sweep


@pytest.mark.parametrize("kind", KINDS)
async def test_every_point_of_a_cancellation_is_clean(database, make_engine, kind):
    """Pool, tasks, rows, outcome and the next unit, after a cancellation at each suspension in turn."""
    arguments = {"timeout": 0} if database.has_one_writer else {}
    engine = make_engine(database, pool_size=1, max_overflow=1, connect_args=arguments)
    await reset(engine)

    report = await sweep(engine, session_maker(engine), kind)

    assert report.reached > 5
    assert [] == report.problems
