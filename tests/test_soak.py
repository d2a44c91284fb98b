"""The soak itself, in a few units: it reports, it is flat, and it would notice a leak."""

from __future__ import annotations

import logging

import pytest
from soak import INTERVALS, soak

UNITS = 2_500


@pytest.fixture(autouse=True)
def quiet_log():
    """The failures are planned; pytest would keep a record of each of them, and that is a leak too."""
    logger = logging.getLogger("sa_isolated_tasks")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(level)


async def test_memory_is_flat_over_units_of_every_kind(sqlite_engine):
    """Units that succeed, fail, are cancelled and are dropped leave nothing behind, and end as they have to."""
    lines = []

    report = await soak(sqlite_engine, UNITS, tell=lines.append)

    assert report.problems == []
    assert "1750 succeeded, 250 failed, 375 cancelled, 125 dropped" == lines[-2]
    assert lines[-1].startswith("after the first quarter: ")


async def test_the_report_has_the_figures_of_the_whole_run(sqlite_engine):
    """A line for each interval, up to the last unit, with figures that can be true."""
    report = await soak(sqlite_engine, UNITS)

    assert [500, 1000, 1500, 2000, 2500] == [sample.units for sample in report.samples]
    assert len(report.samples) <= INTERVALS
    assert all(sample.resident > 1_000_000 and sample.objects > 1_000 for sample in report.samples)


async def test_a_leak_is_noticed(sqlite_engine):
    """Somebody keeps every handle: that is what a leak of the package would look like."""
    kept = []

    report = await soak(sqlite_engine, UNITS, keep=kept.append)

    assert UNITS == len(kept)
    assert any("more objects after the first quarter" in problem for problem in report.problems)
