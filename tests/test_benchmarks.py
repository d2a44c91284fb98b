"""The benchmarks run, on a handful of units; what they measure here says nothing."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from pathlib import Path

import pytest
import sqlalchemy
from databases import SQLALCHEMY
from sqlalchemy.ext.asyncio import AsyncSession

import sa_isolated_tasks

if SQLALCHEMY < (2, 0) or sqlalchemy.__version__ == "2.0.0":
    pytest.skip("the benchmarks need a pool on SQLite, as a recent SQLAlchemy has it", allow_module_level=True)

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks import counted, endurance, guard, imports, page, peers, plan, results, setup, watching, workloads
from benchmarks.contenders import BOUNDED, BY_HAND, OURS, UNBOUNDED
from benchmarks.rounds import Measured, check, measure

NAMES = [*BOUNDED, *UNBOUNDED, *peers.NAMES]


@pytest.fixture(autouse=True)
def quiet_again():
    """The benchmarks set the log of the package to INFO."""
    logger = logging.getLogger("sa_isolated_tasks")
    level, handlers, propagate = logger.level, logger.handlers, logger.propagate
    yield
    logger.setLevel(level)
    logger.handlers, logger.propagate = handlers, propagate


async def instructions_of_another_python(*_args):
    return dict.fromkeys(counted.PARTS, 1.0)


@pytest.fixture
async def connected(asyncpg):
    async with setup.connected(asyncpg.url) as made:
        yield made


@pytest.mark.parametrize("name", NAMES)
async def test_a_contender_does_the_work(name, connected):
    """Each writes the rows of its units before its batch ends, or `check` raises."""
    if name in peers.missing():
        pytest.skip("not installed; `nox -s bench` has it")
    contenders = BOUNDED | UNBOUNDED | peers.installed()

    await check(name, contenders[name], connected)
    measured = await measure({name: contenders[name]}, connected, workloads.nothing, count=3, rounds=2)

    assert len(measured.seconds[name]) == 2


async def test_who_does_not_do_the_work_is_not_measured(connected):
    """A contender that forgets a unit is refused."""

    @contextlib.asynccontextmanager
    async def lazy(connected):
        async with BOUNDED[OURS](connected) as batch:
            yield lambda body, count: batch(body, count - 1)

    with pytest.raises(RuntimeError, match="lazy: 20 of 21 units have committed"):
        await check("lazy", lazy, connected)


async def test_the_whole_run_gives_the_page(connected, monkeypatch):
    """Every part runs, on the smallest plan, without peers and new processes; the page has targets and contenders."""
    monkeypatch.setattr(peers, "installed", dict)
    monkeypatch.setattr(endurance, "in_a_new_process", lambda _units: [1.0] * 10)
    monkeypatch.setattr(imports, "milliseconds", lambda _pairs: 1.0)
    monkeypatch.setattr(watching, "ratio", lambda _url, _pairs: 1.0)
    if sys.version_info < (3, 12):
        monkeypatch.setattr(counted, "instructions", instructions_of_another_python)
    async with setup.connected_to_sqlite() as sqlite:
        found = await results.run(plan.TINY, connected, sqlite, lambda _: None)
    text = page.text(found, "nox -s bench")

    assert all(f"| {name} |" in text for name in [*BOUNDED, *UNBOUNDED])
    assert all(f"| {target.text} |" in text for target in found.targets())
    assert all(f"Left out: {name}" in text for name in peers.missing())


def test_a_ratio_is_of_the_same_round():
    """Slow rounds are slow for both: the median of the ratios, not the ratio of the medians."""
    measured = Measured(1, {OURS: [1.0, 20.0, 3.0], BY_HAND: [2.0, 40.0, 3.0]}, {})

    assert measured.ratio(OURS, BY_HAND).median == 0.5


def test_code_belongs_to_the_package_that_it_is_in():
    """Also where one has a folder that is named like another; what is in none of them is of the library."""
    code = [AsyncSession.execute, asyncio.run, logging.info, page.text, contextlib.ExitStack.enter_context]

    assert [counted.part_of(function.__code__.co_filename) for function in code] == [
        counted.LIBRARIES,
        counted.ASYNCIO,
        counted.LOG,
        counted.BY_HAND,
        counted.OTHERS,
    ]


def test_the_code_of_every_module_has_a_name():
    """Or its instructions would be those of others."""
    package = Path(sa_isolated_tasks.__file__).parent
    parts = {counted.part_of(str(path)) for path in package.glob("_[a-z]*.py")}

    assert parts == {*counted.OWN_PARTS, counted.LISTEN}


@pytest.mark.skipif(sys.version_info < (3, 12), reason="Python 3.11 does not count instructions")
async def test_instructions_are_counted(connected):
    """Of a unit; the same number for two as for four, but for how often the loop turns."""
    two, four = [await counted.instructions(BOUNDED[OURS], connected, workloads.select_one, n) for n in (2, 4)]

    assert two.keys() == four.keys() >= {counted.LIBRARIES, counted.ASYNCIO, counted.LISTEN, *counted.OWN_PARTS}
    assert [two[part] for part in (counted.RUN, counted.TELL)] == [four[part] for part in (counted.RUN, counted.TELL)]


def test_the_guard_is_bounded():
    """The cost of a container past the budget is not that of its size."""
    (_, _, small), (_, _, large) = guard.containers((guard.bound(), 20 * guard.bound()), repeat=3)

    assert large < 5 * small


async def test_what_runs_in_new_processes(asyncpg):
    """Here in this one."""
    samples = await endurance.resident_while(20)
    seconds = await watching.cpu_seconds(asyncpg.url.render_as_string(hide_password=False), watched=True, rounds=1)

    assert len(samples) == 10
    assert seconds > 0
