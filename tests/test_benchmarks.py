"""The benchmarks run, on a handful of units; what they measure here says nothing."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import logging
import sys
from pathlib import Path

import pytest
import sqlalchemy
from databases import SQLALCHEMY
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncSession

import sa_isolated_tasks

if SQLALCHEMY < (2, 0) or sqlalchemy.__version__ == "2.0.0":
    pytest.skip("the benchmarks need a pool on SQLite, as a recent SQLAlchemy has it", allow_module_level=True)

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks import (
    counted,
    endurance,
    guard,
    imports,
    missed,
    page,
    peers,
    plan,
    results,
    setup,
    watching,
    workloads,
)
from benchmarks.contenders import BOUNDED, BY_HAND, CORE, LEAST, ONE_STATEMENT, OURS, OURS_TO_THE_FULL, UNBOUNDED
from benchmarks.results import RatioTarget, Target
from benchmarks.rounds import Measured, check, measure
from benchmarks.workloads import BODIES, INSERT, NOTHING, SELECT

NAMES = [*BOUNDED, *UNBOUNDED, *peers.NAMES]


@pytest.fixture(autouse=True)
def quiet_again():
    """The benchmarks set the log of the package to INFO."""
    logger = logging.getLogger("sa_isolated_tasks")
    level, handlers, propagate = logger.level, logger.handlers, logger.propagate
    yield
    logger.setLevel(level)
    logger.handlers, logger.propagate = handlers, propagate


@pytest.fixture
async def found(connected, monkeypatch):
    """What the smallest plan finds, without peers and new processes."""
    monkeypatch.setattr(peers, "installed", dict)
    monkeypatch.setattr(endurance, "in_a_new_process", lambda _units: [1.0] * 10)
    monkeypatch.setattr(imports, "measure", lambda _pairs: imports.Imported(1.0, 0.1))
    monkeypatch.setattr(watching, "ratios", lambda _url, _pairs: dict.fromkeys(BODIES, FACTORS))
    if sys.version_info < (3, 12):
        monkeypatch.setattr(counted, "instructions", instructions_of_another_python)
    async with setup.connected_to_sqlite() as sqlite:
        return await results.run(plan.TINY, connected, sqlite, lambda _: None)


FACTORS = dict.fromkeys(watching.CONTENDERS, 1.5)


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


async def test_one_statement_needs_no_session(connected):
    """The one without a session emits one for each unit, in a transaction."""
    emitted = []
    event.listen(connected.engine.sync_engine, "before_cursor_execute", lambda *args: emitted.append(args[2]))
    event.listen(connected.engine.sync_engine, "commit", lambda _connection: emitted.append("commit"))

    async with ONE_STATEMENT[CORE](connected) as batch:
        await batch(workloads.select_one, 3)

    assert sorted(emitted) == ["commit"] * 3 + ["select 1"] * 3


async def test_the_least_runs_as_many_at_once_as_the_pool_has_connections(connected):
    """Also if there are fewer units than that, or none is left when one ends."""
    running, most = 0, 0

    async def body(_session, _number):
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1

    async with BOUNDED[LEAST](connected) as batch:
        await batch(body, 3)
        few = most
        await batch(body, 35)

    assert (few, most, running) == (3, connected.slots, 0)


def test_the_whole_run_gives_the_page(found):
    """Every part runs; the page has targets and contenders."""
    text = page.text(found, "nox -s bench")

    assert all(f"| {name} |" in text for name in [*BOUNDED, *UNBOUNDED, *ONE_STATEMENT])
    assert all(f"| {target.text} |" in text for target in found.targets())
    assert all(f"| {shape} |" in text for shape in guard.SHAPES)
    assert all(f"Left out: {name}" in text for name in peers.missing())


def test_one_statement_is_no_target(found):
    """It is reported with `select 1` alone, where a connection is enough."""
    assert [CORE in measured.seconds for measured in found.workloads.values()] == [False, True, False]
    assert not any(CORE in target.text for target in found.targets())


def test_targets_are_corrected_for_what_listening_costs_the_others(found):
    """Those to what is written by hand, by the factor of their workload; the page has both."""
    measured = {target.text: target.measured for target in found.ratio_targets()}
    corrected = {target.text: target.measured for target, _ in found.unlistened()}
    text = page.text(found, "nox -s bench")

    assert len(corrected) == 5
    assert corrected == {text: 1.5 * measured[text] for text in corrected}
    assert all(f"| 1.50 | {ratio:.2f} |" in text for ratio in corrected.values())


CPU = {NOTHING: {OURS: 5.0, LEAST: 3.0}, SELECT: {OURS: 9.0, LEAST: 7.0}, INSERT: {OURS: 9.0, LEAST: 8.0}}


def test_a_target_is_out_of_reach_if_the_least_takes_more(found):
    """In CPU time; a target that the least keeps is missed by so much. One that is met is not in the table."""
    for name, measured in found.workloads.items():
        took = dict.fromkeys(measured.seconds, 10.0) | {OURS_TO_THE_FULL: 9.0} | CPU[name]
        measured.seconds.update({who: [seconds] for who, seconds in took.items()})
        measured.cpu_seconds.update({who: [seconds] for who, seconds in took.items()})
    lines = list(missed.lines(found))

    assert f"| {NOTHING}: to {BY_HAND} | 0.20 | 0.30 | -0.10 | 0.20 | **out of reach** |" in lines
    assert f"| {SELECT}: to {BY_HAND} | 0.88 | 0.70 | 0.18 | 0.20 | missed by 0.020 |" in lines
    assert not any(line.startswith(f"| {INSERT}: to") for line in lines)


def test_what_is_no_ratio_is_missed_by_its_own_measure(found, monkeypatch):
    """The guard has no least."""
    monkeypatch.setattr(results.Results, "targets", lambda _: [Target("the guard", 2, 2.5, "us")])

    assert "| the guard |  |  |  |  | missed by 0.500 us |" in list(missed.lines(found))


def test_nothing_stands_in_the_way_if_nothing_is_missed(found, monkeypatch):
    """No table of what is missed; the profile is there all the same."""
    monkeypatch.setattr(results.Results, "targets", lambda _: [RatioTarget("all", 1, 1)])
    lines = list(missed.lines(found))

    assert "No target is missed in this run." in lines
    assert any(line.startswith(f"| {counted.SPAWN} |") for line in lines)


def test_a_ratio_is_of_the_same_round():
    """Slow rounds are slow for both: the median of the ratios, not the ratio of the medians."""
    measured = Measured(1, {OURS: [1.0, 20.0, 3.0], BY_HAND: [2.0, 40.0, 3.0]}, {})

    assert measured.ratio(OURS, BY_HAND).median == 0.5


def test_code_belongs_to_the_package_that_it_is_in():
    """Also where one has a folder that is named like another; what is in none of them is of the library."""
    code = [AsyncSession.execute, asyncio.run, logging.info, page.text, contextlib.ExitStack.enter_context]
    generated = "<sqlalchemy generated _go() wrapper for sqlalchemy.orm.session.SessionTransaction.commit>"

    assert [counted.part_of(name) for name in [*(function.__code__.co_filename for function in code), generated]] == [
        counted.LIBRARIES,
        counted.ASYNCIO,
        counted.LOG,
        counted.BY_HAND,
        counted.OTHERS,
        counted.LIBRARIES,
    ]


def test_the_code_of_another_package_is_its_own():
    """And not that of Python's library."""
    assert {counted.part_of(f"{folder}/some.py") for folder in peers.folders()} <= {counted.PEER}
    assert len(peers.folders()) >= len(peers.versions())


def test_code_that_is_generated_belongs_to_whoever_calls_it():
    """What makes a named tuple is in no file."""
    Pair = collections.namedtuple("Pair", "one two", defaults=[0])
    frames = []
    sys.setprofile(lambda frame, what, _: frames.append(frame) if what == "call" else None)
    Pair(1)
    sys.setprofile(None)

    assert frames[0].f_code.co_filename == "<string>"
    assert counted.file_of(frames[0]) == __file__


def test_every_module_has_a_part():
    """Or its instructions would be those of others."""
    package = Path(sa_isolated_tasks.__file__).parent

    assert {counted.part_of(str(path)) for path in package.rglob("*.py")} == {*counted.OWN_PARTS}


def test_a_module_without_a_part_is_an_error():
    """It is not counted as anything."""
    with pytest.raises(KeyError, match="_unheard_of"):
        counted.part_of(str(Path(sa_isolated_tasks.__file__).with_name("_unheard_of.py")))


@pytest.mark.skipif(sys.version_info < (3, 12), reason="Python 3.11 does not count instructions")
async def test_instructions_are_counted(connected):
    """Of a unit; the same number for two as for four, but for how often the loop turns."""
    two, four = [await counted.instructions(BOUNDED[OURS], connected, workloads.select_one, n) for n in (2, 4)]

    assert two.keys() == four.keys() >= {counted.LIBRARIES, counted.ASYNCIO, *counted.OWN_PARTS}
    assert [two[part] for part in (counted.RUN, counted.TELL)] == [four[part] for part in (counted.RUN, counted.TELL)]


@pytest.mark.parametrize("shape", guard.SHAPES)
def test_the_guard_is_bounded(shape, monkeypatch):
    """The cost of an argument past the budget is not that of its size; attributes are past it at five times as many."""
    monkeypatch.setattr(guard, "SHAPES", {shape: guard.SHAPES[shape]})
    (small,), (large,) = guard.by_size((5 * guard.bound(), 20 * guard.bound()), repeat=3).values()

    assert large < 3 * small


def test_memory_grows_to_its_highest():
    """Not to the last sample, which may happen to be low; the first is after a tenth."""
    assert endurance.growth([2.0, 3.0, 2.0]) == 1.5


def test_an_import_is_compared_with_that_of_sqlalchemy(monkeypatch):
    """By the difference, in milliseconds, and by the ratio."""
    seconds = {"import sqlalchemy.ext.asyncio": 0.2, "import sqlalchemy.ext.asyncio, sa_isolated_tasks": 0.25}
    monkeypatch.setattr(imports, "_seconds", seconds.get)

    imported = imports.measure(3)

    assert imported == pytest.approx((50, 0.25))
    assert str(imported) == "50.0 ms over `import sqlalchemy.ext.asyncio`, 0.25 of what that takes"


async def test_what_runs_in_new_processes(asyncpg):
    """Here in this one."""
    samples = await endurance.resident_while(20)
    ratios = await watching.cpu_to_yardstick(asyncpg.url.render_as_string(hide_password=False), watched=True, rounds=1)

    assert len(samples) == 10
    assert all(ratios[name][who] > 0 for name in BODIES for who in watching.CONTENDERS)
