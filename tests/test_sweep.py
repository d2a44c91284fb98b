"""Cancelled at every suspension point: nothing is left, nothing is half done, and the outcome is true."""

from __future__ import annotations

import pytest
from support import reset, session_maker
from sweep import BODIES, KINDS, sweep


@pytest.mark.parametrize("kind", KINDS)
async def test_every_point_of_a_cancellation_is_clean(database, make_engine, kind):
    """Pool, tasks, rows, outcome and the next unit, after a cancellation at each suspension in turn."""
    arguments = {"timeout": 0} if database.has_one_writer else {}
    engine = make_engine(database, pool_size=1, max_overflow=1, connect_args=arguments)
    await reset(engine)

    report = await sweep(engine, session_maker(engine), kind)

    assert report.reached > 5
    assert [] == report.problems


# A cursor of the server's that is cut off in the making is closed by nobody, and psycopg complains of that.
@pytest.mark.filterwarnings("ignore:.*ServerCursorMixin:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("body", ["commits", "streams"])
@pytest.mark.parametrize("kind", ["handle", "anyio"])
async def test_every_point_is_clean_in_other_bodies(database, make_engine, kind, body):
    """A commit that the body makes, and a result that it streams, by one cancellation and by one that comes again."""
    arguments = {"timeout": 0} if database.has_one_writer else {}
    engine = make_engine(database, pool_size=1, max_overflow=1, connect_args=arguments)
    await reset(engine)

    report = await sweep(engine, session_maker(engine), kind, BODIES[body])

    assert report.reached > 5
    assert [] == report.problems


@pytest.mark.parametrize("kind", ["handle", "anyio"])
async def test_every_point_is_clean_from_a_cold_pool(database, make_engine, kind):
    """The connection is made by the unit, and cut off in the making."""
    arguments = {"timeout": 0} if database.has_one_writer else {}
    engine = make_engine(database, pool_size=1, max_overflow=1, connect_args=arguments)
    await reset(engine)

    report = await sweep(engine, session_maker(engine), kind, cold=True)

    assert report.reached > 5
    assert [] == report.problems
