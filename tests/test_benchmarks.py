"""The benchmarks run, on a handful of units; what they measure here says nothing."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import pytest
from databases import SQLALCHEMY

if SQLALCHEMY < (2, 0):
    pytest.skip("the benchmarks are written for SQLAlchemy 2", allow_module_level=True)

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks import guard, page, peers, plan, results, setup, workloads
from benchmarks.contenders import BOUNDED, BY_HAND, OURS, UNBOUNDED
from benchmarks.rounds import Measured, measure

NAMES = [*BOUNDED, *UNBOUNDED, *peers.NAMES]


@pytest.fixture
async def connected(asyncpg):
    async with setup.connected(asyncpg.url) as made:
        yield made


@pytest.mark.parametrize("name", NAMES)
async def test_a_contender_does_the_work(name, connected):
    """Each writes the rows of its units before its batch ends, or `measure` raises."""
    if name in peers.missing():
        pytest.skip("not installed; `nox -s bench` has it")
    contenders = BOUNDED | UNBOUNDED | peers.installed()

    measured = await measure({name: contenders[name]}, connected, workloads.insert, count=3, rounds=2)

    assert len(measured.seconds[name]) == 2


async def test_who_does_not_do_the_work_is_not_measured(connected):
    """A contender that forgets a unit is refused."""

    @contextlib.asynccontextmanager
    async def lazy(connected):
        async with BOUNDED[OURS](connected) as batch:
            yield lambda body, count: batch(body, count - 1)

    with pytest.raises(RuntimeError, match="lazy: 20 of 21 units have committed"):
        await measure({"lazy": lazy}, connected, workloads.nothing, count=3, rounds=1)


async def test_the_whole_run_gives_the_page(connected):
    """Every part runs, on the smallest plan; the page has a line for each target and each contender."""
    async with setup.connected_to_sqlite() as sqlite:
        found = await results.run(plan.TINY, connected, sqlite, lambda _: None)
    text = page.text(found)

    assert all(f"| {name} |" in text for name in [*BOUNDED, *UNBOUNDED, *peers.installed()])
    assert all(f"| {target.text} |" in text for target in found.targets())
    assert all(f"Left out: {name}" in text for name in peers.missing())


def test_a_ratio_is_of_the_same_round():
    """Slow rounds are slow for both: the median of the ratios, not the ratio of the medians."""
    measured = Measured(1, {OURS: [1.0, 20.0, 3.0], BY_HAND: [2.0, 40.0, 3.0]}, {})

    assert measured.ratio(OURS, BY_HAND).median == 0.5


def test_the_guard_is_bounded():
    """The cost of a container past the budget is not that of its size."""
    (_, _, small), (_, _, large) = guard.containers((guard.bound(), 20 * guard.bound()), repeat=3)

    assert large < 5 * small
